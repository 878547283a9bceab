"""What loading costs: decoded images per second of the trainer's Loader, against webdataset and a bare decode loop.

    python benchmarks/loader.py [--parquet 'PAIRS/*.parquet'] [--images 2048] [--side 224] [--workers 2]
                                [--pixels 512 --kilobytes 100] [--store 30] [--passes 3]

The same stored images, decoded, cropped, scaled and mirrored by the same function, in one run:

    bare         a loop over the bytes in memory, in as many threads; nothing is read, ordered or put together
    webdataset   tar shards of the same bytes through webdataset and a DataLoader of as many processes (started before
                 the clock is), batches put together in the processes
    loader       row groups of a published dataset through train.dataset.Loader, hash shuffle included
    text         the same with texts drawn and tokenised (open_clip's tokenizer)
    one          the bare loop in one thread: shows what threads gain

With --store MS, the row groups lie on a simulated store (slow_store.py): MS milliseconds a request, 80 MB/s a
connection. Two ways more then:

    store        the loader, its row groups read from the store
    connection   the same with one reader and nothing read ahead

--pixels N makes every image N pixels on its shorter side, as a JPEG of about --kilobytes.

Figures are medians of --repeats interleaved rounds, each of --passes over all images. A loader starts anew in each: its
first batches wait for the first row groups, which a training does once and a round of one pass over 2,000 images feels
(some hundredths). Images per CPU second count the processor time of
all threads and processes. On a shared machine these can be compared, while images per second depend on what others left
over.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.slow_store import SlowStore
from i2e_pipeline.core.config import DataConfig, ImageLimits, TrainConfig
from i2e_pipeline.core.files import find, write_json
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.schemas import I2E_ENTITIES, IMAGES
from i2e_pipeline.dataset.published import open_published
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.sample import compose
from i2e_pipeline.train.augment import augmented, decoded_side, draws
from i2e_pipeline.train.dataset import Loader, Samples

CLASSES = 16
SHARDS = 4
BATCH = 64
BANDWIDTH = 80e6
"""Bytes a second and connection of the simulated store."""


class Work:
    """The same images in each form, in a folder."""

    def __init__(self, stored: list[bytes], folder: Path, side: int, workers: int) -> None:
        self.stored, self.side, self.workers = stored, side, workers
        data = DataConfig(batch_size=BATCH, workers=workers, hold_out_entities=0, hold_out_images=0)
        self.config = TrainConfig(data=data)
        drawn_NF = draws(np.arange(len(stored), dtype=np.uint64), data)
        assert drawn_NF is not None
        self.drawn_NF = drawn_NF
        self.dataset = write_dataset(stored, folder / "i2e")
        self.tars = write_tars(stored, folder)

    def pixels(self, number: int, data: bytes) -> np.ndarray:
        """What each way does with an image."""
        config = self.config.data
        opened = open_rgb(data, ImageLimits(), decoded_side(self.side, config))
        assert not isinstance(opened, Rejected)
        return augmented(opened[0], self.side, self.drawn_NF[number], config.crop_area)


def readable(data: bytes | None) -> bool:
    return not isinstance(open_rgb(data, ImageLimits()), Rejected)


def read_stored(patterns: list[str], column: str, images: int) -> list[bytes]:
    """The first images of the files that can be decoded. Where there are fewer, they are repeated."""
    found: list[bytes] = []
    for file in find(tuple(patterns), ".parquet"):
        for batch in pq.ParquetFile(file.path).iter_batches(256, columns=[column]):
            values = batch.column(0)
            values = values.field("bytes") if pa.types.is_struct(values.type) else values
            found += [data for data in values.to_pylist() if readable(data)]
            if len(found) >= images:
                return found[:images]
    return (found * -(-images // len(found)))[:images]


def scaled(stored: bytes, pixels: int, kilobytes: float) -> bytes:
    """The image with `pixels` on its shorter side, as a JPEG nearest to so many kilobytes."""
    opened = open_rgb(stored, ImageLimits())
    assert not isinstance(opened, Rejected)
    width, height = opened[0].size
    factor = pixels / min(width, height)
    image = opened[0].resize((round(width * factor), round(height * factor)))
    made = []
    for quality in (40, 60, 75, 85, 90, 93, 96, 98):
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality)
        made.append(content.getvalue())
    return min(made, key=lambda jpeg: abs(len(jpeg) - 1000 * kilobytes))


def write_dataset(stored: list[bytes], folder: Path) -> str:
    """A published dataset of these images, with meaningless labels."""
    units = {}
    for shard in range(SHARDS):
        part = range(shard, len(stored), SHARDS)
        unit = f"u-{shard:012x}"
        labels = [[{"entity_id": i % CLASSES, "class_index": i % CLASSES, "score": 1.0}] for i in part]
        rows = pa.table(
            {
                "image_id": pa.array([content_id(b"%d" % i).hex() for i in part]),
                "image": pa.array([{"bytes": stored[i], "path": None} for i in part], IMAGES.field("image").type),
                "url": pa.array([""] * len(part)),
                "alt_text": pa.array([f"photo number {i} of a thing on a table" for i in part]),
                "width": pa.array([0] * len(part), pa.int32()),
                "height": pa.array([0] * len(part), pa.int32()),
                "key": pa.array([str(i) for i in part]),
                "pair_id": pa.array([f"{i:032x}" for i in part]),
                "perceptual_hash": pa.nulls(len(part), pa.string()),
                "split": pa.array(["train"] * len(part)),
                "labels": pa.array(labels, IMAGES.field("labels").type),
            }
        ).cast(IMAGES)
        (folder / "images" / f"unit={unit}").mkdir(parents=True)
        # Row groups of about 64 MB, as storage.row_group_mb has it.
        group = max(1, round((64 << 20) / max(1, rows.nbytes) * len(part)))
        pq.write_table(
            rows, folder / "images" / f"unit={unit}" / "part-00000-0.parquet", row_group_size=group, compression="zstd"
        )
        units[unit] = len(part)
    entities = [
        {"class_index": c, "entity_id": c, "name": f"thing {c}", "description": "a thing", "aliases": [], "images": 1,
         "pairs_proposed": 1, "pairs_labelled": 1, "mean_clip_score": 0.3, "mean_probability": 0.9, "split": "train",
         "retired": False}
        for c in range(CLASSES)
    ]  # fmt: skip
    (folder / "entities" / "unit=all").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(entities, I2E_ENTITIES), folder / "entities" / "unit=all" / "part.parquet")
    write_json(str(folder / "manifest.json"), {"format_version": 2, "units": units})
    return str(folder)


def write_tars(stored: list[bytes], folder: Path) -> list[str]:
    paths = []
    for shard in range(SHARDS):
        paths.append(str(folder / f"{shard:05d}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for i in range(shard, len(stored), SHARDS):
                info = tarfile.TarInfo(f"{i:09d}.jpg")
                info.size = len(stored[i])
                tar.addfile(info, io.BytesIO(stored[i]))
    return paths


def bare(work: Work, threads: int, passes: int = 1) -> int:
    """Decodes all images from memory."""

    def part(first: int) -> int:
        return sum(len(work.pixels(i, work.stored[i])) > 0 for i in range(first, min(first + 8, len(work.stored))))

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(part, [*range(0, len(work.stored), 8)] * passes))


def through_loader(
    work: Work, samples: Samples, tokenizer: Any = None, store: SlowStore | None = None, passes: int = 1, **data: int
) -> Callable[[], int]:
    """Some epochs after the others; data: settings of its own."""
    state = {"start": 0}
    steps = passes * len(samples) // BATCH
    config = work.config.model_copy(update={"data": work.config.data.model_copy(update=data)})

    def run() -> int:
        start = state["start"]
        state["start"] = stop = start + steps * BATCH
        with store or contextlib.nullcontext():
            loader = Loader(samples, config, side=work.side, start=start, stop=stop, tokenizer=tokenizer)
            images = sum(len(batch) for batch in loader)
        assert not loader.skipped
        return images

    return run


def through_webdataset(work: Work, passes: int = 1) -> Callable[[], int]:
    """The same epochs; the processes stay between them."""
    import webdataset as wds

    def pixels(sample: dict[str, Any]) -> torch.Tensor:
        return torch.from_numpy(work.pixels(int(sample["__key__"]), sample["jpg"]).copy())

    # One shuffle buffer of 1,000 images, as its documentation has it.
    data = wds.WebDataset(work.tars, shardshuffle=len(work.tars), empty_check=False).shuffle(1000).map(pixels)
    data = data.batched(BATCH, collation_fn=torch.stack, partial=True)
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=work.workers, persistent_workers=work.workers > 0
    )

    def run() -> int:
        return sum(len(batch) for _ in range(passes) for batch in loader)

    run()  # starts the processes
    return run


def cpu_seconds() -> float:
    """Processor time of this process and of the children it has now."""
    spent = time.process_time()
    for child in active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():  # Linux
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            spent += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return spent


def measure(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, float]]:
    """Images per second, and per CPU second, of each way: medians of interleaved rounds."""
    rates: dict[str, dict[str, list[float]]] = {unit: {name: [] for name in ways} for unit in ("wall", "cpu")}
    for _ in range(repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            images = way()
            rates["wall"][name].append(images / (time.perf_counter() - wall))
            rates["cpu"][name].append(images / (cpu_seconds() - cpu))
    return {
        unit: {name: round(statistics.median(values), 1) for name, values in of_unit.items()}
        for unit, of_unit in rates.items()
    }


def ratios(rates: dict[str, float]) -> dict[str, float]:
    return {name: round(rates["loader"] / rate, 2) for name, rate in rates.items() if name != "loader"}


def sources(options: argparse.Namespace) -> tuple[list[str], str]:
    """Files and their image column: those named, the sample's dataset where it was built, or the sample's input."""
    if options.parquet:
        return options.parquet, options.image_column
    if Path("out/sample/i2e/manifest.json").exists():
        return ["out/sample/i2e/images/*/*.parquet"], "image"
    compose.compose(Path("out/sample/input"))
    return ["out/sample/input/pairs/*.parquet"], "jpg"


def on_store(work: Work, milliseconds: float) -> tuple[Samples, SlowStore]:
    """The dataset as it would lie on a store."""
    folder = Path(work.dataset)
    objects = {f"i2e/{path.relative_to(folder)}": path for path in folder.rglob("*.*") if path.is_file()}
    store = SlowStore(objects, milliseconds / 1000, BANDWIDTH)
    with store:
        return Samples.open(open_published("slow://bucket/i2e"), work.config), store


def ways_of(work: Work, store_ms: float | None, passes: int) -> Iterator[tuple[str, Callable[[], int]]]:
    import open_clip

    samples = Samples.open(open_published(work.dataset), work.config)
    yield "webdataset", through_webdataset(work, passes)  # first: its processes are forked before there are threads
    yield "bare", lambda: bare(work, work.workers, passes)
    yield "loader", through_loader(work, samples, passes=passes)
    yield "text", through_loader(work, samples, open_clip.get_tokenizer("ViT-B-32"), passes=passes)
    yield "one", lambda: bare(work, 1, passes)
    if store_ms is not None:
        remote, store = on_store(work, store_ms)
        yield "store", through_loader(work, remote, store=store, passes=passes)
        yield "connection", through_loader(work, remote, store=store, passes=passes, readers=1, read_ahead_mb=0)


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", nargs="+", help="Parquet files, folders or globs (default: the sample's images)")
    parser.add_argument("--image-column", default="jpg")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2, help="decode threads, and processes of webdataset")
    parser.add_argument("--pixels", type=int, help="make the images of this size")
    parser.add_argument("--kilobytes", type=float, default=100.0)
    parser.add_argument("--store", type=float, metavar="MS", help="also from a store of so many milliseconds a request")
    parser.add_argument("--passes", type=int, default=1, help="over all images in a round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stored = read_stored(*sources(options), options.images)
    if options.pixels:
        made = {image: scaled(image, options.pixels, options.kilobytes) for image in set(stored)}
        stored = [made[image] for image in stored]
    with tempfile.TemporaryDirectory() as folder:
        work = Work(stored, Path(folder), options.side, options.workers)
        rates = measure(dict(ways_of(work, options.store, options.passes)), options.repeats)
    figures: dict[str, Any] = {
        "images": len(stored),
        "passes": options.passes,
        "kilobytes_per_image": round(sum(map(len, stored)) / len(stored) / 1000, 1),
        "side": options.side,
        "workers": options.workers,
        "images_per_second": rates["wall"],
        "images_per_cpu_second": rates["cpu"],
        "loader_times": ratios(rates["wall"]),
        "loader_times_per_cpu_second": ratios(rates["cpu"]),
    }
    if options.store is not None:
        wall = rates["wall"]
        figures["store_times_bare"] = round(wall["store"] / wall["bare"], 2)
        figures["store_times_connection"] = round(wall["store"] / wall["connection"], 2)
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
