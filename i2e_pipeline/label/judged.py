"""Which labels are right, where it is known what their images show, and how far probabilities can be believed.

Reads    an entity a row, beside what is known of its image (inputs/truth.py says how that is written, inputs/marks.py
         how people say it of single labels)
Writes   right, wrong, or not known, per row; calibration error of probabilities

The rule stands here alone. `i2e calibrate` fits by it, and the figures of a run count by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.inputs.truth import casefolded

BINS = 10
"""Of equal width, that the calibration error is taken over."""


def right(table: pa.Table | pa.RecordBatch) -> pa.BooleanArray:
    """Whether each row's entity is what its image shows: null where that is not known, or neither.

    table   entity_id; truth (int64); and where there are such, nothing (bool: no entity of the knowledge base is what
            the image shows), refuted (list<int64>: entities that it does not show), affirmed (list<int64>: entities
            that it shows, and perhaps others beside), wider (bool: the entity bears the name of a wider thing that it
            also shows)
    What is said of an id holds, whatever the names: then comes the wider name, and last that all else is wrong. That
    all else is wrong follows from `truth` and `nothing` alone, and never from what is affirmed.
    """
    entity, truth = _whole(table["entity_id"]), _whole(table["truth"])
    rows, known = table.num_rows, pc.is_valid(truth)
    nothing = told_nothing(table)
    is_truth = pc.or_(pc.fill_null(pc.equal(entity, truth), False), _named_in(table, "affirmed", entity))
    refuted = _named_in(table, "refuted", entity)
    wider = pc.fill_null(_whole(table["wider"]), False) if "wider" in table.schema.names else _no(rows)
    wrong = pc.or_(refuted, pc.and_not(pc.or_(known, nothing), wider))
    return pc.if_else(is_truth, True, pc.if_else(wrong, False, pa.scalar(None, pa.bool_())))


def told_nothing(table: pa.Table | pa.RecordBatch) -> pa.BooleanArray:
    """Whether no entity of the knowledge base is what each row's image shows."""
    if "nothing" not in table.schema.names:
        return _no(table.num_rows)
    return pc.fill_null(_whole(table["nothing"]), False)


def told(table: pa.Table | pa.RecordBatch) -> pa.BooleanArray:
    """Whether anything is known of what each row's image shows."""
    known = pc.or_(pc.is_valid(_whole(table["truth"])), told_nothing(table))
    for name in ("refuted", "affirmed"):
        if name in table.schema.names:
            known = pc.or_(known, pc.is_valid(_whole(table[name])))
    return known


def bears_wider_name(names: pa.Array, wider: pa.Array) -> pa.BooleanArray:
    """Whether each entity's name is among the wider names of its row (list<string>, case-folded)."""
    return pa.array(holds(wider, casefolded(_whole(names))))


def reliability(probability: np.ndarray, is_right: np.ndarray) -> list[dict[str, float]]:
    """Bins of labels by probability: their number, and the sums of probabilities (`expected`) and of right ones."""
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    labels = np.bincount(bins, minlength=BINS)
    expected = np.bincount(bins, weights=probability, minlength=BINS)
    found = np.bincount(bins, weights=is_right.astype(np.float64), minlength=BINS)
    return [
        {"bin": n, "labels": int(labels[n]), "expected": float(expected[n]), "right": float(found[n])}
        for n in range(BINS)
    ]


def summed(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Bins of several parts as those of the whole."""
    whole = reliability(np.empty(0), np.empty(0, dtype=bool))
    for part in parts:
        for key in ("labels", "expected", "right"):
            whole[part["bin"]][key] += part[key]
    return [{key: round(value, 6) for key, value in b.items()} for b in whole]


def calibration_error(bins: Sequence[Mapping[str, Any]]) -> float | None:
    """How far probabilities are off on average: |expected - right| of each bin over all labels. None without labels."""
    total = sum(b["labels"] for b in bins)
    return round(sum(abs(b["expected"] - b["right"]) for b in bins) / total, 4) if total else None


Number = TypeVar("Number", float, np.ndarray)


def wilson(part: Number, whole: Number, deviations: float = 1.96) -> tuple[Number, Number]:
    """Lower and upper end of the interval of a share, here of 95 % (Wilson 1927): it stays within [0, 1], and says
    something of few rows and of shares near the ends, too.

    part, whole   whole > 0; numbers, or arrays of one shape
    """
    share, z2 = part / whole, deviations**2
    middle = share + z2 / (2 * whole)
    half = deviations * np.sqrt(share * (1 - share) / whole + z2 / (4 * whole**2))
    return (middle - half) / (1 + z2 / whole), (middle + half) / (1 + z2 / whole)


def _named_in(table: pa.Table | pa.RecordBatch, name: str, entity: pa.Array) -> pa.BooleanArray:
    """Whether the column's list holds the row's entity; nowhere without the column."""
    return pa.array(holds(table[name], entity)) if name in table.schema.names else _no(table.num_rows)


def holds(lists: Any, values: Any) -> np.ndarray:
    """Whether each row's list holds the row's value; not where either is null."""
    lists, values = _whole(lists), _whole(values)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0), dtype=np.int64)
    parents = np.repeat(np.arange(len(lists)), lengths)
    same = pc.fill_null(pc.equal(lists.flatten(), values.take(pa.array(parents))), False)
    hits = parents[same.to_numpy(zero_copy_only=False)]
    return np.bincount(hits, minlength=len(lists)) > 0


def _whole(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _no(rows: int) -> pa.BooleanArray:
    return pa.array(np.zeros(rows, dtype=bool))
