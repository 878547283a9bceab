"""Rows that go no further, as they stand in the table `rejects`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from i2e_pipeline.core.schemas import ID

_PLACES = {"shard": pa.int32(), "row": pa.int64(), "start": pa.int32(), "end": pa.int32()}

Mask: TypeAlias = "pa.Array | pa.ChunkedArray | np.ndarray | Sequence[bool]"
Words: TypeAlias = "str | pa.Array | Sequence[str | None]"


def reject(rows: pa.RecordBatch, mask: Mask, reason: Words, detail: Words | None = None, *, key: str) -> pa.RecordBatch:
    """The rows of a batch that go no further, with the reason why.

    mask     a bool for each row: True goes no further
    reason   one for all, or one for each row that the mask takes, in their order
    detail   likewise: what a reader needs to know beside the reason; None: nothing
    key      the column that `rejects.id` holds; shard, row, start and end come along where the batch has them
    """
    gone = rows.filter(pa.array(mask, pa.bool_()) if not isinstance(mask, pa.Array | pa.ChunkedArray) else mask)
    columns = {
        "reason": _words(reason, gone.num_rows),
        "id": gone.column(key).cast(ID),  # Spark has no fixed-size binary
        **{name: gone.column(name).cast(kind) for name, kind in _PLACES.items() if name in gone.schema.names},
    }
    if detail is not None:
        columns["detail"] = _words(detail, gone.num_rows)
    return pa.RecordBatch.from_pydict(columns)


def part(
    table: str,
    rows: pa.RecordBatch,
    reasons: Sequence[Any],
    detail: Sequence[str | None] | None = None,
    *,
    key: str,
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """What a filter yields: rows whose reason is None go to `table`, the others to `rejects`.

    reasons   for each row the reason why it goes no further, or None
    detail    for each row, or None
    key       the column that `rejects.id` holds
    columns   those of the rows that the table has; None: all
    """
    gone = np.array([reason is not None for reason in reasons], dtype=bool)
    kept = rows.filter(pa.array(~gone))
    yield table, kept if columns is None else kept.select(list(columns))
    if gone.any():
        at = np.flatnonzero(gone).tolist()
        said = None if detail is None else [detail[i] for i in at]
        yield "rejects", reject(rows, gone, [reasons[i] for i in at], said, key=key)


def reason_name(reason: Any) -> str:
    """What stands in `rejects.reason`: a text, or the value of an enum's member."""
    return str(getattr(reason, "value", reason))


def _words(words: Words, rows: int) -> pa.Array:
    if isinstance(words, str):
        return pa.array([str(words)] * rows, pa.string())
    if isinstance(words, pa.Array):
        return words.cast(pa.string())
    return pa.array([None if w is None else reason_name(w) for w in words], pa.string())
