"""Small published datasets, as `i2e run` leaves them: a base row, and what a test overrides in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core.files import write_json
from i2e_pipeline.core.schemas import I2E_ENTITIES, IMAGES
from tests.small_models import picture, stored


def image_row(number: int, **overrides: Any) -> dict[str, Any]:
    """A row of i2e/images: picture `number`, with one label of class `number` mod 4. `labels`: (class, score) pairs;
    `bytes`: what is stored instead of the picture."""
    labels = overrides.pop("labels", [(number % 4, 0.9)])
    data = overrides.pop("bytes", ...)
    row = {
        "image_id": hashlib.blake2b(f"image {number}".encode(), digest_size=16).digest(),
        "image": {"bytes": stored(picture(number)) if data is ... else data, "path": None},
        "url": f"https://example.org/{number}.png",
        "alt_text": f"alt text {number}",
        "width": 64, "height": 48,
        "labels": [{"entity_id": 100 + c, "class_index": c, "score": s} for c, s in labels],
    }  # fmt: skip
    return row | overrides


def entity_row(class_index: int, **overrides: Any) -> dict[str, Any]:
    row = {
        "class_index": class_index, "entity_id": 100 + class_index, "name": f"entity {class_index}",
        "description": f"thing of kind {class_index}", "aliases": [], "images": 1, "pairs_proposed": 1,
        "pairs_labelled": 1, "mean_clip_score": 0.3, "mean_probability": 0.9,
    }  # fmt: skip
    return row | overrides


def write_dataset(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    classes: int = 4,
    units: int = 2,
    group: int = 8,
    manifest: dict[str, Any] | None = None,
    entities: Sequence[dict[str, Any]] | None = None,
) -> str:
    """A whole dataset: the rows dealt to units in turn, row groups of `group` rows."""
    counts = {}
    for unit in range(units):
        part = list(rows[unit::units])
        name = f"u-{unit:012x}"
        place = folder / "images" / f"unit={name}"
        place.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(part, IMAGES), place / f"part-00000-{unit}.parquet", row_group_size=group)
        counts[name] = len(part)
    place = folder / "entities" / "unit=all"
    place.mkdir(parents=True)
    table = pa.Table.from_pylist(list(entities or [entity_row(c) for c in range(classes)]), I2E_ENTITIES)
    pq.write_table(table, place / "part-00000-0.parquet")
    facts = {"format_version": 1, "units": counts, "storage": "parquet", "dataset": "0" * 32, "model": {}}
    write_json(str(folder / "manifest.json"), facts | (manifest or {}))
    return str(folder)
