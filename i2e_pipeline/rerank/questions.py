"""What a reranker is asked: a mention in its text, and its candidates as they are told to the model.

A reranker sees QUESTIONS and gives each candidate, and "none of these", a score (a logit). Training adds `chosen`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from i2e_pipeline.rerank.seen import Seen

CANDIDATE = pa.struct(
    [
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("name", pa.string()),
        pa.field("description", pa.string()),
        pa.field("coarse_type", pa.string()),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)
"""A candidate as the fast path left it. What a mention's probabilities lack to 1 is that of "none of these"."""
QUESTIONS = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("candidates", pa.list_(CANDIDATE), nullable=False),
    ]
)
EXAMPLES = QUESTIONS.append(pa.field("chosen", pa.int64()))
"""With the entity that is meant; null, or one that is no candidate: none of these."""

CANDIDATE_TOKENS, CANDIDATE_TOKENS_SEEN = 24, 44
"""Tokens of what a model is told of a candidate: without and with where it was seen."""

LEAST = 1e-6
"""A probability below this counts as this: its logarithm would outweigh whatever a reranker can say."""


@dataclass(frozen=True)
class Asked:
    """Questions laid flat: one entry per candidate, mentions by number (Q of them, C candidates in all)."""

    texts: list[str]
    starts: list[int]
    ends: list[int]
    mention: npt.NDArray[np.int64]
    """(C): which question each candidate belongs to, rising."""
    entity: npt.NDArray[np.int64]
    told: list[str]
    """(C): what the model is told of each candidate."""
    log_probability: npt.NDArray[np.float64]
    """(C): natural logarithm of the fast path's probability."""
    log_none: npt.NDArray[np.float64]
    """(Q): that of "none of these"."""
    vectors: npt.NDArray[np.float32] | None = None
    """(C, W): for a bi-encoder, those of the candidates, where they are known already."""

    def __len__(self) -> int:
        return len(self.texts)

    def counts(self) -> npt.NDArray[np.int64]:
        """(Q): candidates of each question."""
        return np.bincount(self.mention, minlength=len(self))

    def range_of(self, number: int) -> tuple[int, int]:
        """Where the candidates of a question begin and end."""
        return (
            int(np.searchsorted(self.mention, number)),
            int(np.searchsorted(self.mention, number, side="right")),
        )

    def places(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the candidates of these questions stand, question by question."""
        return np.concatenate([np.empty(0, np.int64), *(np.arange(*self.range_of(n)) for n in numbers)])


def laid_flat(rows: pa.RecordBatch | pa.Table, seen: Seen | None = None) -> Asked:
    """Questions in the form that models take.

    rows    with the columns of QUESTIONS
    seen    where entities were seen; a text that asks is not told itself
    """
    lists = rows.column("candidates")
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    flat = lists.flatten()
    lengths = np.diff(lists.offsets.to_numpy())
    mention = np.repeat(np.arange(len(lists)), lengths)
    probability = flat.field("probability").to_numpy(zero_copy_only=False).astype(np.float64)
    none = 1.0 - np.bincount(mention, probability, len(lists))
    entity = flat.field("entity_id").to_numpy(zero_copy_only=False).astype(np.int64)
    texts = rows.column("text").to_pylist()
    places = [None] * len(entity) if seen is None else seen.of(entity, [texts[n] for n in mention])
    return Asked(
        texts=texts,
        starts=rows.column("start").to_pylist(),
        ends=rows.column("end").to_pylist(),
        mention=mention,
        entity=entity,
        told=[
            as_told(*of)
            for of in zip(
                *(flat.field(name).to_pylist() for name in ("name", "description", "coarse_type")), places, strict=True
            )
        ],
        log_probability=np.log(np.maximum(probability, LEAST)),
        log_none=np.log(np.maximum(none, LEAST)),
    )


def as_told(name: str | None, description: str | None, coarse_type: str | None, seen: str | None = None) -> str:
    """The text by which a model is told a candidate: "Athens, capital city of Greece (settlement); seen: Athens by
    night"."""
    told = ", ".join(part for part in (name, description) if part) or "?"
    typed = f"{told} ({coarse_type})" if coarse_type else told
    return f"{typed}; seen: {seen}" if seen else typed


def places_of(chosen: Sequence[int | None], asked: Asked) -> npt.NDArray[np.int64]:
    """(Q): for each question the place of the right candidate in `asked`, or -1 where none of them is right."""
    found = np.full(len(asked), -1)
    wanted = np.array([-1 if c is None else c for c in chosen], dtype=np.int64)
    hits = np.flatnonzero(wanted[asked.mention] == asked.entity)
    found[asked.mention[hits]] = hits
    return found
