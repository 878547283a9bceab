"""A question about one image, and what was answered: texts alone, no image and no model.

A question shows the caption and the candidates by number, each with the words that name it and its description, and
"none of these" as number 0: a model that is shown what it may choose from verifies better than one that is asked
freely (Caron et al., "Web-Scale Visual Entity Recognition", NeurIPS 2024, arXiv 2410.23676). An answer is a number, and
what cannot be read as one without a guess is no verdict.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from i2e_pipeline.core import files, packaged
from i2e_pipeline.core.errors import I2EError

NONE = 0
"""The number of "none of these"."""
LONGEST_REASON = 300
"""Characters of a reason that are kept."""
_LONGEST_DESCRIPTION = 200
_PLACES = re.compile(r"\{(\w+)\}")
_FILLED = ("text", "candidates", "form")
_NONE_LINE = "0: none of these, or it cannot be told"
_FORM = 'Reply with nothing but JSON: {"answer": NUMBER}'
_FORM_WITH_REASON = 'Reply with nothing but JSON: {"answer": NUMBER, "reason": "at most 20 words"}'


class PromptError(I2EError, ValueError):
    """A template of questions that cannot be filled; the message names its file."""


@dataclass(frozen=True)
class Candidate:
    """What a question tells of an entity."""

    entity_id: int
    surface: str
    """The words of the caption that may mean it."""
    name: str | None
    description: str | None


@dataclass(frozen=True)
class Answer:
    """An answer that could be read."""

    number: int
    reason: str | None = None


class Template:
    """The text of questions, with places for caption, candidates and the form of the answer."""

    def __init__(self, text: str, reason: bool, where: str = "the template") -> None:
        """Raises PromptError where a place is missing, or one is named that is none."""
        named = _PLACES.findall(text)
        if lacking := [place for place in ("text", "candidates") if place not in named]:
            raise PromptError(f"{where} has no {{{lacking[0]}}}: a question must say {' and '.join(lacking)}")
        if unknown := [place for place in named if place not in _FILLED]:
            raise PromptError(f"{where} has {{{unknown[0]}}}, which nothing fills; places are {', '.join(_FILLED)}")
        self.text, self.form = text.strip(), _FORM_WITH_REASON if reason else _FORM
        self.digest = hashlib.blake2b(f"{self.text}\0{self.form}".encode(), digest_size=16).hexdigest()

    @classmethod
    def read(cls, path: str | None, reason: bool) -> Template:
        """The template of a file; None: the package's."""
        place = path or str(packaged.folder("i2e_pipeline.verify") / "prompt.txt")
        try:
            text = files.read_bytes(place, most=1 << 20).decode()
        except (OSError, ValueError) as error:
            raise PromptError(f"verify.prompt={place} cannot be read: {error}") from None
        return cls(text, reason, f"verify.prompt={place}")

    def filled(self, text: str, candidates: Sequence[Candidate]) -> str:
        """The question about an image with this caption. Candidates are numbered from 1 in their order.

        In one pass: what a caption has in braces is not filled.
        """
        lines = [f"{number}: {_described(one)}" for number, one in enumerate(candidates, 1)]
        values = {"text": _line(text), "candidates": "\n".join([*lines, _NONE_LINE]), "form": self.form}
        return _PLACES.sub(lambda place: values[place[1]], self.text)


def _described(one: Candidate) -> str:
    name = _line(one.name or one.surface)
    meant = "" if name.casefold() == _line(one.surface).casefold() else f' ("{_line(one.surface)}" in the caption)'
    about = _line(one.description or "")[:_LONGEST_DESCRIPTION]
    return f"{name}{meant}{f': {about}' if about else ''}"


def _line(text: str) -> str:
    return " ".join(text.split())


def in_drawn_order(candidates: Iterable[Candidate], image_id: bytes) -> list[Candidate]:
    """The candidates as a question shows them: in an order that is drawn by image and entity and so tells nothing of
    what text and score think of them, and is the same whenever the question is asked."""

    def draw(one: Candidate) -> bytes:
        return hashlib.blake2b(image_id + one.entity_id.to_bytes(8, "big", signed=True), digest_size=8).digest()

    return sorted(candidates, key=lambda one: (draw(one), one.entity_id))


def key_of(identity: str, text: str, image_id: bytes) -> bytes:
    """16 bytes that name a question by what the answer depends on: who is asked and how, the text, the image."""
    return hashlib.blake2b(
        b"\0".join((identity.encode(), image_id, text.encode("utf-8", "replace"))), digest_size=16
    ).digest()


# Reading answers

_FENCED = re.compile(r"```(?:json)?\s*\n?(.*?)\s*```", re.DOTALL | re.IGNORECASE)
_CUT = re.compile(r'\{\s*"answer"\s*:\s*"?([0-9]{1,4})"?\s*,\s*"reason"\s*:\s*"((?:[^"\\]|\\.)*)\\?', re.DOTALL)
"""JSON that ended within its last text because the answer's tokens were used up: the number is there."""
_NUMBER_FIRST = re.compile(
    r"(?:answer\s*[:=]?\s*)?([0-9]{1,4})(?:[.:)]?|[.:)]\s+(.+)|\s*\n(.+)|\s+[–—-]\s+(.+))", re.DOTALL | re.IGNORECASE
)
_ALONE = re.compile(r"(?<![\w.,])\d+(?![\w%])")


def read_answer(said: str, candidates: int) -> Answer | None:
    """The number that an answer gives, 0 to `candidates`, and its reason; None where it cannot be told without a guess.

    Taken are a JSON object with `answer`, fenced or not, and a number at the beginning, with or without a reason behind
    it. Not taken are numbers out of range, two numbers (`1 or 2`), and a number somewhere within a text.
    """
    said = said.strip()
    if fenced := _FENCED.fullmatch(said):
        said = fenced[1].strip()
    if said.startswith("{"):
        number, reason = _of_json(said)
    else:
        number, reason = _of_text(said, candidates)
    if number is None or not NONE <= number <= candidates:
        return None
    return Answer(number, reason)


def _of_json(said: str) -> tuple[int | None, str | None]:
    try:
        tree = json.loads(said, object_pairs_hook=_once, parse_int=_short)
    except (ValueError, RecursionError):
        cut = _CUT.fullmatch(said)
        return (int(cut[1]), _kept(cut[2])) if cut else (None, None)
    if not isinstance(tree, dict):
        return None, None
    number, reason = tree.get("answer"), tree.get("reason")
    if isinstance(number, str) and re.fullmatch(r"[0-9]{1,4}", number.strip()):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        return None, None
    return number, _kept(reason) if isinstance(reason, str) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError where a key stands twice: which is meant cannot be told."""
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a key stands twice")
    return tree


def _short(digits: str) -> int:
    """An integer of a size that an answer may have: Python refuses thousands of digits, and takes long for hundreds."""
    return int(digits) if len(digits) <= 5 else -1


def _of_text(said: str, candidates: int) -> tuple[int | None, str | None]:
    found = _NUMBER_FIRST.fullmatch(said)
    if found is None:
        return None, None
    number, rest = int(found[1]), found[2] or found[3] or found[4] or ""
    others = {int(digits) for digits in _ALONE.findall(rest) if len(digits) <= 4} - {number}
    if any(NONE <= other <= candidates for other in others):
        return None, None
    return number, _kept(rest)


def _kept(reason: str) -> str | None:
    """A reason as it is stored: one line of printable text; None where nothing is left."""
    line = "".join(c if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF else " " for c in reason)
    return _line(line)[:LONGEST_REASON] or None
