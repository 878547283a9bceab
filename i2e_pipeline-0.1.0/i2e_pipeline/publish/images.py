"""Writes the images of I2E: bytes and labels together, read from the input shards again.

Bytes never shuffle. A task takes some shards of a unit, reads the selected rows in the order they lie, sorts them by
image id, which is a hash, and writes row groups that training reads in sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

BYTES_PER_TASK = 512 << 20
"""Stored bytes of the input rows that one task looks at: at most as much is held in memory, to be sorted."""
_ROWS_PER_BATCH = 64

ReadRows = Callable[[int, Sequence[int], Sequence[str]], Iterator[pa.RecordBatch]]
"""(shard, rising row numbers, columns) to those rows."""


def image_rows(
    batches: Iterator[pa.RecordBatch], read_rows: ReadRows, image_column: str, url_column: str, text_column: str
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of i2e/images.

    batches   the selection of some shards: image_id, shard, row, width, height, labels
    yields    i2e/images in the order of image_id
    """
    rows_of_task = [b for b in batches if b.num_rows]
    if not rows_of_task:
        return
    selected = pa.Table.from_batches(rows_of_task).sort_by([("shard", "ascending"), ("row", "ascending")])
    parts = []
    for shard in pc.unique(selected.column("shard")).to_pylist():
        of_shard = selected.filter(pc.equal(selected.column("shard"), shard))
        rows = of_shard.column("row").to_pylist()
        content = pa.Table.from_batches(read_rows(shard, rows, [image_column, url_column, text_column]))
        stored = content.column(image_column)
        if pa.types.is_struct(stored.type):
            stored = pc.struct_field(stored, "bytes")
        # Large: a task may hold more than the 2 GB that a binary array can.
        stored = stored.cast(pa.large_binary()).combine_chunks()
        parts.append(
            pa.table(
                {
                    "image_id": of_shard.column("image_id"),
                    "image": pa.StructArray.from_arrays(
                        [stored, pa.nulls(len(rows), pa.string())], names=["bytes", "path"]
                    ),
                    "url": content.column(url_column).cast(pa.string()),
                    "alt_text": content.column(text_column).cast(pa.string()),
                    **{c: of_shard.column(c) for c in ("width", "height", "labels")},
                }
            )
        )
    table = pa.concat_tables(parts)
    # Arrow sorts binary, not fixed-size binary.
    order = pc.sort_indices(table.column("image_id").cast(pa.binary()))
    for start in range(0, table.num_rows, _ROWS_PER_BATCH):
        rows_in_order = table.take(order.slice(start, _ROWS_PER_BATCH)).combine_chunks()
        for batch in rows_in_order.to_batches():
            yield "i2e/images", batch
