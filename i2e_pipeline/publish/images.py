"""Writes the images of I2E: bytes and labels together, read from the input shards again.

Bytes never shuffle. A task takes some shards of a unit, reads the selected rows in the order they lie, sorts them by
image id, which is a hash, and writes row groups that training reads in sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.stored_image import NoImage
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import Shard, ShardChanged

BYTES_PER_TASK = 512 << 20
"""Stored bytes of the input rows that one task looks at: at most as much is held in memory, to be sorted."""
_ROWS_PER_BATCH = 64

ReadRows = Callable[[int, Sequence[int], Sequence[str]], tuple[pa.Table, pa.Array]]
"""(shard, rising row numbers, columns of texts) to those rows: the texts, and the stored images as large_binary."""


def rows_of_shards(
    shards: Mapping[int, Shard], number: int, rows: Sequence[int], columns: Sequence[str]
) -> tuple[pa.Table, pa.Array]:
    """`ReadRows` over these shards. Raises ShardChanged where a row or an image that was scored is gone."""
    shard = shards[number]
    texts = [formats.texts(shard, batch)[0] for batch in formats.rows(shard, rows, columns)]
    stored = []
    with formats.images(shard) as images:
        for row, image in zip(rows, images.read(rows), strict=True):
            if isinstance(image, NoImage):
                raise ShardChanged(f"{shard.path} row {row}: the image that was scored is gone: {image.detail}")
            stored.append(image)
    # Large: a task may hold more than the 2 GB that a binary array can.
    return pa.Table.from_batches(texts), pa.array(stored, pa.large_binary())


def image_rows(
    batches: Iterator[pa.RecordBatch], read_rows: ReadRows, url_column: str | None, text_column: str
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
        names = list(dict.fromkeys(c for c in (url_column, text_column) if c))
        content, stored = read_rows(shard, rows, names)
        parts.append(
            pa.table(
                {
                    "image_id": of_shard.column("image_id"),
                    "image": pa.StructArray.from_arrays(
                        [stored, pa.nulls(len(rows), pa.string())], names=["bytes", "path"]
                    ),
                    "url": content.column(url_column) if url_column else pa.nulls(len(rows), pa.string()),
                    "alt_text": content.column(text_column),
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
