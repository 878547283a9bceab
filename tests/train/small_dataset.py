"""Small published datasets, as `i2e run` leaves them: a base row, and what a test overrides in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core.files import write_json
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.core.schemas import I2E_ENTITIES, IMAGES
from i2e_pipeline.core.splits import TEST, TRAIN, held_out_entities
from i2e_pipeline.publish.images import splits
from i2e_pipeline.train.groups import Facts, Groups
from i2e_pipeline.train.samples import Samples
from tests.small_models import picture, stored


def image_row(number: int, **overrides: Any) -> dict[str, Any]:
    """A row of i2e/images: picture `number`, with one label of class `number` mod 4. `labels`: (class, score) pairs;
    `bytes`: what is stored instead of the picture. `image_id` in bytes, as a training tells it."""
    labels = overrides.pop("labels", [(number % 4, 0.9)])
    data = overrides.pop("bytes", ...)
    row = {
        "image_id": hashlib.blake2b(f"image {number}".encode(), digest_size=16).digest(),
        "image": {"bytes": stored(picture(number)) if data is ... else data, "path": None},
        "url": f"https://example.org/{number}.png",
        "alt_text": f"alt text {number}",
        "width": 64, "height": 48,
        "labels": [
            {"entity_id": 100 + c, "class_index": c, "score": s, "clip_score": 0.3, "mention": "x"} for c, s in labels
        ],
        "key": str(number), "pair_id": f"{number:032x}", "perceptual_hash": f"{number:064x}",
    }  # fmt: skip
    return row | overrides


def entity_row(class_index: int, **overrides: Any) -> dict[str, Any]:
    row = {
        "class_index": class_index, "entity_id": 100 + class_index, "name": f"entity {class_index}",
        "description": f"thing of kind {class_index}", "aliases": [], "images": 1, "pairs_proposed": 1,
        "pairs_labelled": 1, "mean_clip_score": 0.3, "mean_probability": 0.9,
        "types": ["thing"], "coarse_type": "object", "sitelinks": 1, "popularity": None, "is_human": False,
        "wikipedia_title": None, "retired": False,
    }  # fmt: skip
    return row | overrides


def trained(samples: Samples) -> Facts:
    """All images that are trained on, by sample; read row group by row group."""
    groups = Groups(samples, [])
    read = [group for group in map(groups.read, range(len(groups))) for _ in range(len(group))]
    return Facts.of(read, range(len(read)))


def image_ids(samples: Samples) -> list[bytes]:
    """Of every image of the dataset, by row."""
    tables = [pq.read_table(Path(samples.published.folder) / f.path, columns=["image_id"], partitioning=None)
              for f in samples.published.files]  # fmt: skip
    return [halves.tobytes() for table in tables for halves in id_halves(table.column(0))]


IMAGES_1 = pa.schema(
    [
        pa.field("image_id", pa.binary(16), nullable=False),
        *(IMAGES.field(name) for name in ("image", "url", "alt_text", "width", "height")),
        pa.field("labels", pa.list_(pa.struct(list(IMAGES.field("labels").type.value_type)[:3])), nullable=False),
    ]
)
ENTITIES_1 = pa.schema(list(I2E_ENTITIES)[:10])
"""Format 1."""


def _with_split(row: dict[str, Any]) -> dict[str, Any]:
    """A row as format 2 has it."""
    labels = pa.array([row["labels"]], IMAGES.field("labels").type)
    drawn = splits(pa.array([row["image_id"]], pa.binary(16)), labels)[0].as_py()
    return {"split": drawn, **row, "image_id": row["image_id"].hex()}


def _held_out(row: dict[str, Any]) -> dict[str, Any]:
    return {"split": TEST if held_out_entities(np.array([row["entity_id"]]))[0] else TRAIN, **row}


def write_dataset(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    classes: int = 4,
    units: int = 2,
    group: int = 8,
    manifest: dict[str, Any] | None = None,
    entities: Sequence[dict[str, Any]] | None = None,
    format_version: int = 2,
) -> str:
    """A whole dataset of a format: the rows dealt to units in turn, row groups of `group` rows; `split` is drawn where
    a row does not say it."""
    images, of_entities = (IMAGES_1, ENTITIES_1) if format_version == 1 else (IMAGES, I2E_ENTITIES)
    told = [entity_row(c) for c in range(classes)] if entities is None else entities
    if format_version > 1:
        rows, told = [_with_split(row) for row in rows], [_held_out(row) for row in told]
    counts = {}
    for unit in range(units):
        part = list(rows[unit::units])
        name = f"u-{unit:012x}"
        place = folder / "images" / f"unit={name}"
        place.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(part, images), place / f"part-00000-{unit}.parquet", row_group_size=group)
        counts[name] = len(part)
    place = folder / "entities" / "unit=all"
    place.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(told), of_entities), place / "part-00000-0.parquet")
    facts = {"format_version": format_version, "units": counts, "storage": "parquet", "dataset": "0" * 32, "model": {}}
    write_json(str(folder / "manifest.json"), facts | (manifest or {}))
    return str(folder)
