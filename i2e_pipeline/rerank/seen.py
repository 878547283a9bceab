"""Where entities were seen: of each one a text that names it, as gold links tell.

Many entities have no description, and one of three words says little. A text in which somebody has linked the entity
says who stands beside it and where (entities told by their mentions: FitzGerald et al., "MOLEMAN", ACL 2021). A
reranker is told of such a candidate: "Athens, capital city (settlement); seen: The Acropolis of Athens at dusk".

FOLDER/entities.npy   (N) int64, rising, up to PER_ENTITY entries each; the first is told, unless it is of the text that
                      is asked about: in training a text must not tell its own answer
FOLDER/texts.npy      (N) uint64: a hash of the text that each is of (text_hash)
FOLDER/ends.npy       (N) int64: where each ends in words.bin, which is UTF-8
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from i2e_pipeline.core.arrays import Arrays, new

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

FORMAT = 1
_HEADER = "seen"
PER_ENTITY = 2
_NAMES_A_TEXT = 200
"""Characters of a text that tell it from others: what a limit of length cuts off behind them does not matter."""
_BLANK, _LAST_BLANK = re.compile(r"\s"), re.compile(r"\s\S*\Z")
AROUND = 60
"""Characters on either side of the mention that are told, at most."""


def text_hash(text: str) -> int:
    """Names a text by how it begins, whatever its white space."""
    plain = " ".join(text.split())[:_NAMES_A_TEXT].encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "little")


def around(text: str, start: int, end: int) -> str:
    """The text around a mention, cut between words where it has white space; that is one blank each."""
    left, right = max(0, start - AROUND), min(len(text), end + AROUND)
    before, after = text[left:start], text[end:right]
    if left > 0 and (cut := _BLANK.search(before)):
        before = before[cut.end() :]
    if right < len(text) and (cut := _LAST_BLANK.search(after)):
        after = after[: cut.start()]
    return " ".join(f"{before}{text[start:end]}{after}".split())


def build(links: Iterable[tuple[int, str, int, int]], folder: str | os.PathLike[str]) -> int:
    """Write where entities were seen; returns how many of them there are.

    links   entity, text, start and end of each link, in any order
    Of an entity's texts those of the lowest hashes are kept, so the order of `links` changes nothing.
    """
    kept: dict[int, dict[int, str]] = {}
    for entity, text, start, end in links:
        of = kept.setdefault(entity, {})
        key = text_hash(text)
        told = around(text, start, end)
        of[key] = min(told, of.get(key, told))
        if len(of) > PER_ENTITY:
            del of[max(of)]
    rows = [(entity, key, told) for entity, of in sorted(kept.items()) for key, told in sorted(of.items())]
    words = [told.encode("utf-8", "replace") for _, _, told in rows]
    with new(folder, _HEADER) as store:
        store.save("entities", np.array([entity for entity, _, _ in rows], np.int64))
        store.save("texts", np.array([key for _, key, _ in rows], np.uint64))
        store.save("ends", np.cumsum([len(w) for w in words], dtype=np.int64))
        store.stream("words").write(b"".join(words))
        store.header = {"format": FORMAT, "entities": len(kept), "texts": len(rows)}
    return len(kept)


class Seen:
    """What `build` wrote, memory-mapped. Raises ArraysError for a folder that holds none."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        stored = Arrays(folder, _HEADER, FORMAT)
        self._entities: I64 = stored["entities"]
        self._texts: U64 = stored["texts"]
        self._ends: I64 = stored["ends"]
        self._words = stored.numbers("words", np.uint8)

    def of(self, entities: I64, texts: Sequence[str] | None = None) -> list[str | None]:
        """Of each entity a text in which it was seen; None of one that was not.

        texts   (same length) the text that asks: it is not told itself
        """
        first, last = self._places(entities)
        if texts is not None:
            first = first + self.itself(entities, texts)
        return [self._told(n) if n < end else None for n, end in zip(first.tolist(), last.tolist(), strict=True)]

    def itself(self, entities: I64, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Of each entity whether the text is the one that `of` would tell of it."""
        keys = {text: text_hash(text) for text in set(texts)}
        asking = np.array([keys[text] for text in texts], np.uint64)
        first, last = self._places(entities)
        there = first < last
        found = np.zeros(len(first), bool)
        found[there] = self._texts[first[there]] == asking[there]
        return found

    def _places(self, entities: I64) -> tuple[I64, I64]:
        return np.searchsorted(self._entities, entities), np.searchsorted(self._entities, entities, side="right")

    def _told(self, n: int) -> str:
        begin = int(self._ends[n - 1]) if n else 0
        return bytes(self._words[begin : int(self._ends[n])]).decode("utf-8")
