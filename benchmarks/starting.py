"""What it costs a rank to start a training of a large dataset on an object store, and what it then holds.

    python benchmarks/starting.py [--images 1e6 1e7 1e8 1e9] [--rows 100000 400000] [--latency 0.04]

The store is simulated (slow_store.py): every request waits, and a connection carries 80 MB/s. Two tables:

    stored   `open_indexed` of a dataset whose index lies there, and the samples made of it, at each of --images. The
             manifest, the entities (one per 500 images, 2.5 million at most) and the index are whole and are read; of
             the files of images only their names are there: nothing else of them is asked for
    made     the same where no index is there yet, for datasets of --rows rows that are really there (their images are
             200 bytes), by one rank: footers, ids, labels and split of every file

What a rank of W has to make is 1/W of the files. Without an index every rank reads what `made` reads, at every start:
`stored_times` says how many times longer that takes, by the line through the sizes that were made.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.slow_store import SlowStore
from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.core.files import as_json
from i2e_pipeline.core.schemas import I2E_ENTITIES, IMAGES
from i2e_pipeline.dataset import published
from i2e_pipeline.dataset.published import ImageFile
from i2e_pipeline.train import indexed
from i2e_pipeline.train.chosen import Chosen
from i2e_pipeline.train.index import Index, to_bytes
from i2e_pipeline.train.indexed import open_indexed
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.samples import Samples

ROWS_A_FILE = 10_000
"""1 GB of images of 100 KB."""
ROWS_A_GROUP = 640
"""64 MB of them."""
FOLDER = "slow://bucket/i2e"
_PHOTO = 200
CONFIG = TrainConfig(data={"hold_out_entities": 0.1, "hold_out_images": 0.05})


def entities(images: int) -> pa.Table:
    """One entity for 500 images, with a name and a description."""
    count = max(2, min(2_500_000, images // 500))
    number = pa.array(np.arange(count))
    columns: dict[str, Any] = {
        "class_index": number.cast(pa.int32()),
        "entity_id": number.cast(pa.int64()),
        "name": pa.array([f"entity {i}" for i in range(count)]),
        "description": pa.array([f"a thing of the kind {i % 977}, in place {i % 13_001}" for i in range(count)]),
    }
    made = []
    for field in I2E_ENTITIES:
        if field.name in columns:
            made.append(columns[field.name].cast(field.type))
        elif field.name == "split":
            made.append(pa.array(["train"] * count, field.type))
        elif field.nullable:
            made.append(pa.nulls(count, field.type))
        else:
            empty = {pa.bool_(): False}.get(field.type, [] if pa.types.is_list(field.type) else 0)
            made.append(pa.array([empty] * count, field.type))
    return pa.table(made, schema=I2E_ENTITIES)


def as_parquet(table: pa.Table, **how: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd", **how)
    return content.getvalue()


def groups_of(rows: int) -> tuple[int, ...]:
    full, rest = divmod(rows, ROWS_A_GROUP)
    return (ROWS_A_GROUP,) * full + ((rest,) if rest else ())


def listed(images: int, of_entities: pa.Table) -> dict[str, bytes | Path | int]:
    """The objects of a dataset of which only the names of its files of images are there, and its index."""
    files = images // ROWS_A_FILE
    groups = groups_of(ROWS_A_FILE)
    units = {f"u-{n:012x}": 10 * ROWS_A_FILE for n in range(files // 10)}
    image_files = [
        ImageFile(f"images/unit={unit}/part-{n:05d}-0.parquet", ROWS_A_FILE, groups, (64 << 20,) * len(groups))
        for unit in units
        for n in range(10)
    ]
    objects: dict[str, bytes | Path | int] = {f"i2e/{f.path}": 1_000_000_000 for f in image_files}
    objects["i2e/manifest.json"] = as_json({"format_version": 2, "units": units, "dataset": "0" * 32, "model": {}})
    objects["i2e/entities/unit=all/part-00000-0.parquet"] = as_parquet(of_entities)
    some = np.arange(CONFIG.evaluate_images)
    chosen = Chosen.of(some, some % len(of_entities), some, some.astype(np.uint64))
    trained_G = np.array([n * 17 // 20 for f in image_files for n in f.row_group_rows])
    trained = int(trained_G.sum())
    index = Index(
        trained_G,
        sides=(trained, images // 10, images - trained - images // 10, 0, 0),
        labels=images,
        labels_per_image=3,
        trained_classes=len(of_entities) * 9 // 10,
        chosen={"entities": chosen, "images": chosen, "trained": chosen},
    )
    with SlowStore(objects, 0, 1e12):
        manifest = published.manifest_of(FOLDER)
        name = indexed.find(FOLDER, manifest, CONFIG, "nowhere").name
    objects[f"i2e/{indexed.FOLDER}/{name}"] = to_bytes(image_files, index)
    return objects


def rows_of(first: int, count: int, classes: int) -> pa.Table:
    """Rows of images as they are published, each of two labels; the image itself is 200 bytes."""
    number = np.arange(first, first + count)
    label = pa.StructArray.from_arrays(
        [
            pa.array(np.repeat(number % classes, 2)),
            pa.array(np.repeat(number % classes, 2), pa.int32()),
            pa.array(np.tile([0.9, 0.4], count), pa.float32()),
        ],
        ["entity_id", "class_index", "score"],
    )
    # Too many bytes between the columns that are read for one request to reach over them, as with photos.
    photos = [os.urandom(_PHOTO) for _ in range(count)]
    image = pa.StructArray.from_arrays([pa.array(photos), pa.nulls(count, pa.string())], ["bytes", "path"])
    return pa.table({
        "image_id": pa.array([f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}{n:016x}" for n in number.tolist()]),
        "image": image.cast(IMAGES.field("image").type),
        "alt_text": pa.array(["a text"] * count),
        "labels": pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * count + 1, 2), pa.int32()), label),
        "split": pa.array(["train"] * count),
    })  # fmt: skip


def written(rows: int, of_entities: pa.Table, folder: Path) -> dict[str, bytes | Path | int]:
    """The objects of a dataset that is there."""
    objects: dict[str, bytes | Path | int] = {}
    units = {}
    for number, first in enumerate(range(0, rows, ROWS_A_FILE)):
        unit = f"u-{number:012x}"
        count = units[unit] = min(ROWS_A_FILE, rows - first)
        path = folder / f"{number}.parquet"
        pq.write_table(rows_of(first, count, len(of_entities)), path, row_group_size=ROWS_A_GROUP, compression="zstd")
        objects[f"i2e/images/unit={unit}/part-00000-0.parquet"] = path
    objects["i2e/manifest.json"] = as_json({"format_version": 2, "units": units, "dataset": "0" * 32, "model": {}})
    objects["i2e/entities/unit=all/part-00000-0.parquet"] = as_parquet(of_entities)
    return objects


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start(objects: dict[str, bytes | Path | int], options: argparse.Namespace) -> dict[str, Any]:
    """One rank's start: seconds, requests, and what it holds of the images (entities apart)."""
    with SlowStore(objects, options.latency, options.bandwidth) as store, tempfile.TemporaryDirectory() as run:
        began = time.perf_counter()
        of_entities = published.entities_of(FOLDER)
        seconds_entities = time.perf_counter() - began
        before, requests = resident(), store.requests
        began = time.perf_counter()
        dataset, index = open_indexed(FOLDER, CONFIG, World(), run)
        samples = Samples.of(dataset, index, CONFIG)
        seconds = time.perf_counter() - began
        assert len(samples)
        held = max(0, resident() - before - of_entities.nbytes)
        files = len(dataset.files)
        return {
            "images": index.images, "files": files, "seconds": round(seconds, 2),
            "seconds_entities": round(seconds_entities, 2), "requests": store.requests - requests,
            "megabytes_held": round(held / 1e6, 1), "bytes_an_image": round(held / index.images, 3),
        }  # fmt: skip


def law(made: list[dict[str, Any]], images: int) -> float:
    """Seconds that a rank alone would take, by a fit through the sizes that were made."""
    rows = np.array([m["images"] for m in made], dtype=float)
    seconds = np.array([m["seconds"] for m in made])
    slope = (seconds @ rows) / (rows @ rows) if len(rows) == 1 else np.polyfit(rows, seconds, 1)[0]
    return float(max(slope, 1e-12) * images)


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=float, nargs="+", default=[1e6, 1e7, 1e8, 1e9])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--latency", type=float, default=0.04, help="seconds a request")
    parser.add_argument("--bandwidth", type=float, default=80e6, help="bytes a second and connection")
    options = parser.parse_args(arguments)
    made = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            made.append(start(written(rows, entities(rows), Path(folder)), options))
    stored = []
    for images in map(int, options.images):
        found = start(listed(images, entities(images)), options)
        stored.append(found | {"stored_times": round(law(made, images) / found["seconds"])})
    figures = {"latency": options.latency, "bandwidth": options.bandwidth, "made": made, "stored": stored}
    print(json.dumps(figures, indent=1))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
