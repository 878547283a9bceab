"""Ask: what does the verifier say of each image, and which candidate does it choose?

Reads    questions of the band, the input shards' images · answers that were given before
Writes   verdicts (pair_id, entity_id, verdict, probability, state, explanation); answers, as they come

Bytes in, verdicts out: a task reads its rows' bytes from the input file itself. An image whose question was answered
before is not opened.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from i2e_pipeline.core.config import ImageLimits, VerifyConfig
from i2e_pipeline.core.errors import ExitCode, I2EError
from i2e_pipeline.core.schemas import ID
from i2e_pipeline.engine.tasks import notes
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.inputs.formats import StoredImages
from i2e_pipeline.inputs.shard import Images
from i2e_pipeline.verify.answers import Answers, as_kept
from i2e_pipeline.verify.question import NONE, Answer, Candidate, Template, in_drawn_order, key_of, read_answer


class VerifierError(I2EError, RuntimeError):
    """A model or server that cannot be asked; the message names it and the remedy."""

    exit_code = ExitCode.FAULT


class State(str, Enum):
    """What became of a candidate's question."""

    __str__ = str.__str__

    CHOSEN = "chosen"
    OTHER = "other"
    """Another candidate was chosen."""
    NONE = "none"
    """None was chosen."""
    UNREADABLE = "unreadable"
    FAILED = "failed"
    """The server gave no answer, however often it was asked."""
    NO_IMAGE = "no_image"
    """The image could not be opened."""
    NOT_SHOWN = "not_shown"
    """More probable candidates were shown, and not this one."""
    OVER_BUDGET = "over_budget"


ASKED, THERE = "questions asked", "questions answered before"
CHOSEN, NONE_OF_THEM = "images of which a candidate was chosen", "images of which none was chosen"
UNREADABLE, FAILED = "answers that cannot be read", "questions without an answer after all tries"
NO_IMAGE, BROKEN = "images that could not be opened for a question", "files of kept answers that were damaged"
COUNTS = (ASKED, THERE, CHOSEN, NONE_OF_THEM)
"""Notes that tell what was done; the others tell what went wrong."""
VERDICTS = pa.schema(
    [
        pa.field("pair_id", ID, nullable=False),
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("verdict", pa.float32()),
        pa.field("probability", pa.float32(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("explanation", pa.string()),
    ]
)
"""`verdict`: 1, the verifier chose this candidate; -1, it chose another or none; null: no verdict. `probability`: by
text and image, without it."""
_OF_STATE = {State.CHOSEN: 1.0, State.OTHER: -1.0, State.NONE: -1.0}
_BLOCK_BATCHES = 16
_FEW = 8
"""Questions that must have failed before a task gives up in its midst."""


@dataclass(frozen=True)
class Question:
    """What a verifier is asked."""

    key: bytes
    text: str
    image: Any
    """As the verifier's `prepare` made it."""


@dataclass(frozen=True)
class Failed:
    """No answer could be had."""

    why: str


class Verifier(Protocol):
    """A model, or a server that runs one."""

    name: str
    """As messages name it."""
    at_once: int
    """Questions that it works on side by side."""

    def prepare(self, image: Image.Image) -> Any:
        """What is held of an image until it is asked about."""

    def answers(
        self, asked: Sequence[Question], enough: Callable[[], bool] = ...
    ) -> Generator[list[tuple[int, str | Failed]], None, None]:
        """Answers with the numbers of their questions, in groups, as they come. When there is `enough`, what is under
        way comes to its end, and nothing more is asked."""


@dataclass(slots=True)
class _Row:
    """A pair of the band."""

    pair_id: bytes
    options: list[dict[str, Any]]
    shown: list[Candidate] = field(default_factory=list)
    text: str = ""
    key: bytes = b""
    answer: Answer | None = None
    state: State = State.OVER_BUDGET


def ask(
    batches: Iterable[pa.RecordBatch],
    open_shard: Callable[[int], Images],
    verifier: Verifier,
    template: Template,
    identity: str,
    answers_of: Callable[[str], Answers],
    config: VerifyConfig,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Kernel: verdicts about the candidates of pairs in the band.

    batches      pair_id, image_id: binary(16), shard: int32, row: int64, of_unit: string, text: string, options:
                 list<entity_id, probability, surface>, shown: list<entity_id, surface, name, description>; shown is
                 null for a pair that is over the budget. Best in the order of shard and row
    verifier     who is asked
    identity     names what an answer depends on beside question and image (`identity`)
    answers_of   the answers of a unit that are kept
    yields       ("verdicts", VERDICTS): a row for each candidate of `options`; notes, by COUNTS and the others
    Equal questions about equal images are asked once. Raises VerifierError where more of them fail than may.
    """
    told: Counter[str] = Counter()
    asking: _Asking | None = None
    with StoredImages(open_shard) as stored:
        for block in _blocks(batches, verifier.at_once * _BLOCK_BATCHES):
            if asking is None:  # a kernel's rows are of one unit
                asking = _Asking(verifier, answers_of(block.column("of_unit")[0].as_py()), config, told)
            yield "verdicts", _verdicts(_answered(block, stored, asking, template, identity))
    if asking is not None:
        asking.end()
    yield from notes(told)


def _blocks(batches: Iterable[pa.RecordBatch], questions: int) -> Iterator[pa.RecordBatch]:
    """Rows in blocks of some number of questions. Rows that are over the budget ask none and weigh little."""
    for batch in batches:
        for start in range(0, batch.num_rows, questions):
            yield batch.slice(start, questions)


def _answered(
    block: pa.RecordBatch, stored: StoredImages, asking: _Asking, template: Template, identity: str
) -> list[_Row]:
    rows, waiting = [], list[tuple[_Row, tuple[int, int]]]()
    for row in block.to_pylist():
        one = _Row(row["pair_id"], row["options"])
        rows.append(one)
        if row["shown"] is None:
            continue
        one.shown = in_drawn_order((Candidate(**shown) for shown in row["shown"]), row["image_id"])
        one.text = template.filled(row["text"], one.shown)
        one.key = key_of(identity, one.text, row["image_id"])
        waiting.append((one, (row["shard"], row["row"])))
    asking.ask(waiting, stored)
    return rows


class _Asking:
    """What a task knows while it asks the questions of a unit."""

    def __init__(self, verifier: Verifier, answers: Answers, config: VerifyConfig, told: Counter[str]) -> None:
        self.verifier, self.answers, self.config, self.told = verifier, answers, config, told
        self.limits = ImageLimits(min_side=1, max_aspect=1e9)
        self.asked, self.failed, self.why = 0, 0, ""
        self.gave_up = False

    def ask(self, waiting: Sequence[tuple[_Row, tuple[int, int]]], stored: StoredImages) -> None:
        """Give each row its state and answer."""
        known, first = self.answers.known(), dict[bytes, _Row]()
        new = []
        for row, place in waiting:
            if row.key not in known and row.key not in first:
                first[row.key] = row
                new.append((row, place))
        failed = self._ask_new(new, stored)
        for row, _ in waiting:
            if row.key in failed:
                row.state = failed[row.key]
                self.told[NO_IMAGE if row.state is State.NO_IMAGE else FAILED] += 1
                continue
            self.told[ASKED if first.get(row.key) is row else THERE] += 1
            row.answer = read_answer(known[row.key], len(row.shown))
            row.state = State.UNREADABLE if row.answer is None else State.NONE
            if row.answer is not None and row.answer.number != NONE:
                row.state = State.CHOSEN
            self.told[{State.UNREADABLE: UNREADABLE, State.NONE: NONE_OF_THEM}.get(row.state, CHOSEN)] += 1

    def _ask_new(self, new: Sequence[tuple[_Row, tuple[int, int]]], stored: StoredImages) -> dict[bytes, State]:
        """Ask questions and keep the answers; returns those that have none, and why."""
        states: dict[bytes, State] = {}
        questions: list[Question] = []
        of_question: list[_Row] = []
        for (row, _), image in zip(new, stored.at([place for _, place in new]), strict=True):
            opened = open_rgb(image, self.limits, self.config.max_side)
            if isinstance(opened, Rejected):
                states[row.key] = State.NO_IMAGE
                continue
            shown = self.verifier.prepare(scaled(opened[0], self.config.max_side))
            questions.append(Question(row.key, row.text, shown))
            of_question.append(row)
        with closing(self.verifier.answers(questions, self._hopeless)) as groups:
            for group in groups:
                given = []
                for number, said in group:
                    row = of_question[number]
                    self.asked += 1
                    if isinstance(said, Failed):
                        states[row.key] = State.FAILED
                        self.failed, self.why = self.failed + 1, said.why
                    else:
                        given.append((row.key, row.pair_id, as_kept(said)))
                self.answers.keep(given)
        if self.gave_up:
            self._refuse()
        return states

    def _hopeless(self) -> bool:
        """Have so many failed by now that the others need not be asked?"""
        # Once it was so it stays so: the questions that were dropped for it have no answer.
        self.gave_up = self.gave_up or (self.failed >= max(_FEW, self.verifier.at_once) and self._too_many())
        return self.gave_up

    def _too_many(self) -> bool:
        return self.failed > self.config.max_failed * self.asked and (self.failed > 1 or self.asked == 1)

    def _refuse_many(self) -> None:
        if self._too_many():
            self._refuse()

    def _refuse(self) -> None:
        raise VerifierError(
            f"{self.verifier.name}: {self.failed} of {self.asked} questions have no answer, and verify.max_failed "
            f"lets {self.config.max_failed:.0%} be so. The last: {self.why}. What was answered is kept: start the "
            "run again when the server answers, or raise verify.max_failed"
        )

    def end(self) -> None:
        """When the unit's rows are all worked on. Raises VerifierError where too many have failed."""
        self._refuse_many()
        self.answers.settle()
        if self.answers.broken:
            self.told[BROKEN] += self.answers.broken


def scaled(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side at most so many pixels."""
    longer = max(image.size)
    if longer <= side:
        return image
    width, height = (max(1, round(edge * side / longer)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _verdicts(rows: Sequence[_Row]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {name: [] for name in VERDICTS.names}
    for row in rows:
        numbers = {one.entity_id: number for number, one in enumerate(row.shown, 1)}
        for option in row.options:
            entity = option["entity_id"]
            state = row.state
            if row.shown and entity not in numbers:
                state = State.NOT_SHOWN
            elif state is State.CHOSEN and row.answer is not None and numbers[entity] != row.answer.number:
                state = State.OTHER
            columns["pair_id"].append(row.pair_id)
            columns["entity_id"].append(entity)
            columns["verdict"].append(_OF_STATE.get(state))
            columns["probability"].append(option["probability"])
            columns["state"].append(str(state))
            columns["explanation"].append(row.answer.reason if row.answer is not None else None)
    return pa.RecordBatch.from_pydict(columns, schema=VERDICTS)


def candidates_of(batch: pa.RecordBatch) -> int:
    """How many candidates a batch of the kernel stands for."""
    return int(pc.sum(pc.list_value_length(batch.column("options"))).as_py() or 0)


def identity(model: str, config: VerifyConfig) -> str:
    """Names what an answer depends on beside the question's text and the image.

    model   the model and its content, or the name by which a server knows it
    """
    parts = (model, str(config.max_side), str(config.max_tokens))
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
