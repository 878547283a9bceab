"""Writes the images of I2E: bytes and labels together, read from the input shards again.

Bytes never shuffle. A task takes some shards of a unit, reads the selected rows in the order they lie, sorts them by
image id, which is a hash, and writes row groups that training reads in sequence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.ids import content_id, hex_of, id_halves
from i2e_pipeline.core.splits import TEST, TRAIN, VALIDATION, any_held_out, held_out_images
from i2e_pipeline.core.stored_image import NoImage
from i2e_pipeline.inputs import formats, kept
from i2e_pipeline.inputs.columns import or_null
from i2e_pipeline.inputs.shard import Shard, ShardChanged
from i2e_pipeline.publish.masking import mask

BYTES_PER_TASK = 512 << 20
"""Stored bytes of the input rows that one task looks at: at most as much is held in memory, to be sorted."""
_ROWS_PER_BATCH = 64

ReadRows = Callable[[int, Sequence[int], Sequence[bytes]], tuple[pa.Table, pa.Array]]
"""(shard, rising row numbers, their image_ids) to those rows: url, alt_text and the kept columns, and the stored images
as large_binary."""


@dataclass(frozen=True)
class Columns:
    """What of the input's columns goes into the dataset."""

    url: str | None
    alt_text: str
    kept: pa.Schema
    """Those that keep their name, as the dataset has them."""
    mask: tuple[str, ...] = ()
    """What is masked in the alt-text (masking.py)."""


def rows_of_shards(
    shards: Mapping[int, Shard],
    columns: Columns,
    lost: Counter[str],
    number: int,
    rows: Sequence[int],
    image_ids: Sequence[bytes] | None = None,
) -> tuple[pa.Table, pa.Array]:
    """`ReadRows` over these shards. Raises ShardChanged where a row or an image that was scored is gone, or is another
    one: files that rows name may change.

    lost        gets how many values of each kept column are not what the column holds
    image_ids   None: whatever images lie there
    """
    texts = [c for c in dict.fromkeys((columns.url, columns.alt_text)) if c]
    shard = replace(shards[number], kept=tuple(name for name in columns.kept.names if name not in texts))
    parts = []
    for batch in formats.rows(shard, rows, list(dict.fromkeys([*texts, *columns.kept.names]))):
        said = formats.texts(shard, batch.select(texts))[0]
        part = {
            "url": or_null(said.column(columns.url)) if columns.url else pa.nulls(batch.num_rows, pa.string()),
            "alt_text": mask(said.column(columns.alt_text), columns.mask),
        }
        for field in columns.kept:
            part[field.name], missing = kept.values(batch.column(field.name), field.type)
            lost[f"{field.name} is no {field.type}, left out"] += missing
        parts.append(pa.table(part))
    stored: list[bytes | None] = []
    with formats.images(shard) as images:
        for row, image in zip(rows, images.read(rows), strict=True):
            if isinstance(image, NoImage):
                raise ShardChanged(f"{shard.path} row {row}: the image that was scored is gone: {image.detail}")
            if image_ids is not None and content_id(image or b"") != image_ids[len(stored)]:
                raise ShardChanged(
                    f"{shard.path} row {row}: its image is another one than was scored: put that back, or score again, "
                    "`i2e run --redo score`"
                )
            stored.append(image)
    # Large: a task may hold more than the 2 GB that a binary array can.
    return pa.concat_tables(parts), pa.array(stored, pa.large_binary())


_OWN = ("image_id", "pair_id", "width", "height", "key", "perceptual_hash", "labels")
_IN_HEX = ("image_id", "pair_id", "perceptual_hash")


def splits(image_ids: pa.Array, labels: pa.ListArray, hides_held_out: np.ndarray | None = None) -> pa.Array:
    """`train`, `validation` or `test` for each image (core/splits.py): the last where any of its labels, as little
    probable as it may be, is of a held-out entity.

    hides_held_out   bool: whether one is that is not among these labels; None: nobody knows
    """
    of, entities = pc.list_parent_indices(labels), pc.struct_field(pc.list_flatten(labels), "entity_id")
    shows_held_out = any_held_out(of, entities, len(labels))
    if hides_held_out is not None:
        shows_held_out |= hides_held_out
    kept_out = held_out_images(id_halves(image_ids))
    return pa.array(np.where(shows_held_out, TEST, np.where(kept_out, VALIDATION, TRAIN)), pa.string())


def image_rows(batches: Iterator[pa.RecordBatch], read_rows: ReadRows) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of i2e/images.

    batches   the selection of some shards: shard, row, image_id, pair_id, width, height, key, perceptual_hash, labels,
              hides_held_out
    yields    i2e/images in the order of image_id
    """
    rows_of_task = [b for b in batches if b.num_rows]
    if not rows_of_task:
        return
    selected = pa.Table.from_batches(rows_of_task).sort_by([("shard", "ascending"), ("row", "ascending")])
    parts = []
    for shard in pc.unique(selected.column("shard")).to_pylist():
        of_shard = selected.filter(pc.equal(selected.column("shard"), shard))
        asked = (of_shard.column(name).to_pylist() for name in ("row", "image_id"))
        content, stored = read_rows(shard, *asked)
        image = pa.StructArray.from_arrays([stored, pa.nulls(len(stored), pa.string())], names=["bytes", "path"])
        own = {c: of_shard.column(c) for c in _OWN}
        # Null in a selection from before it was told.
        hides = pc.fill_null(of_shard.column("hides_held_out"), False).to_numpy()
        own["split"] = splits(own["image_id"], own["labels"].combine_chunks(), hides)
        parts.append(pa.table({**own, "image": image, **{c: content.column(c) for c in content.schema.names}}))
    table = pa.concat_tables(parts)
    for name in _IN_HEX:
        table = table.set_column(table.schema.get_field_index(name), name, hex_of(table.column(name).combine_chunks()))
    order = pc.sort_indices(table.column("image_id"))
    for start in range(0, table.num_rows, _ROWS_PER_BATCH):
        rows_in_order = table.take(order.slice(start, _ROWS_PER_BATCH)).combine_chunks()
        for batch in rows_in_order.to_batches():
            yield "i2e/images", batch
