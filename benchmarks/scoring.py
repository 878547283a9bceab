"""What scoring costs: images per second of the bare kernel, against the ways one would write it first.

    python benchmarks/scoring.py [--model local-dir:FOLDER --pairs 'PAIRS/0*.parquet'] [--images 256] [--threads 1]

The baselines run in the same process, on the same images, model and candidates (4 per image, or --candidates):

    pair     a joint forward of one image and one text per pair, as model cards show it
    batch    images in batches, and every pair's text encoded anew, padded to the full context
    cached   images in batches as open_clip gives the model, entity vectors cached
    kernel   i2e_pipeline.score.scoring.score on the stored bytes, hashes, checks and background scores included

    spark    with --through-spark instead of the others: the kernel carried by Spark, files written and counted

Damaged images are left out. Figures are medians of --repeats interleaved rounds. On a shared machine compare their
ratios, not the figures.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from i2e_pipeline.core.config import ImageLimits, ScoreConfig
from i2e_pipeline.core.config import load as load_config
from i2e_pipeline.core.files import find
from i2e_pipeline.engine.session import build
from i2e_pipeline.engine.stage import catalogue
from i2e_pipeline.engine.tables import Counting, Kernel, Tables
from i2e_pipeline.images.decode import Decoded, Rejected, decode, open_rgb
from i2e_pipeline.images.encoder import Encoder, load_once
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import Shard
from i2e_pipeline.sample import compose
from i2e_pipeline.score.entity_vectors import EntityVectors
from i2e_pipeline.score.scoring import score
from i2e_pipeline.score.stages import Score

SAMPLE = Path(compose.__file__).parent

SLOWEST = 4
"""The baseline of single pairs runs on 1/SLOWEST of the images; on all of them it would take most of the time."""


@dataclass(frozen=True)
class Work:
    """The same images and candidates for every way."""

    paths: list[str]
    column: str
    rows: pa.RecordBatch
    stored: list[bytes]
    names: list[str]
    """Texts of the entities 0 ... E - 1."""
    candidates_NC: np.ndarray


def read_work(
    patterns: list[str], column: str, images: int, candidates: int, entities: int, limits: ImageLimits
) -> Work:
    """The first images that can be scored, and candidates drawn for each from words that real texts may hold.

    Damaged images are left out: the kernel rejects them, and the baselines would fail on them.
    """
    paths = [f.path for f in find(tuple(patterns), ".parquet")]
    stored: list[bytes] = []
    shards: list[int] = []
    numbers: list[int] = []
    for shard, path in enumerate(paths):
        with formats.images(Shard(path), column) as reader:
            for row, data in enumerate(reader.read(range(reader.rows))):
                if len(stored) == images:
                    break
                if data and not isinstance(open_rgb(data, limits, side=0), Rejected):
                    stored.append(data)
                    shards.append(shard)
                    numbers.append(row)
        if len(stored) == images:
            break
    if not stored:
        raise SystemExit(f"none of the images of {', '.join(patterns)} can be scored")
    rng = np.random.default_rng(0)
    names = [f"entity number {i}, a thing of kind {i % 17} that stands on a table" for i in range(entities)]
    drawn_NC = np.stack([rng.choice(entities, candidates, replace=False) for _ in stored])
    rows = pa.record_batch(
        {
            "shard": pa.array(shards, pa.int32()),
            "row": pa.array(numbers, pa.int64()),
            "pair_id": pa.array([i.to_bytes(16, "big") for i in range(len(stored))], pa.binary(16)),
            "entity_ids": pa.array(drawn_NC.tolist(), pa.list_(pa.int64())),
        }
    )
    return Work(paths, column, rows, stored, names, drawn_NC)


def pair(work: Work, model: Any, preprocess: Any, tokenizer: Any) -> int:
    """A joint forward per (image, text)."""
    count = max(1, len(work.stored) // SLOWEST)
    for data, candidates in zip(work.stored[:count], work.candidates_NC[:count], strict=True):
        for entity in candidates:
            with torch.inference_mode():
                image = preprocess(Image.open(io.BytesIO(data)).convert("RGB"))[None]
                image_D = model.encode_image(image, normalize=True)
                text_D = model.encode_text(tokenizer([work.names[entity]]), normalize=True)
                float((image_D @ text_D.T)[0, 0])
    return count


def batch(work: Work, model: Any, preprocess: Any, tokenizer: Any, texts_1D: torch.Tensor | None = None) -> int:
    """Batches of 64 images. The texts of each batch are encoded anew, unless their vectors are given."""
    for start in range(0, len(work.stored), 64):
        part = slice(start, start + 64)
        images = torch.stack([preprocess(Image.open(io.BytesIO(d)).convert("RGB")) for d in work.stored[part]])
        with torch.inference_mode():
            images_ND = model.encode_image(images, normalize=True)
            entities_NC = torch.from_numpy(work.candidates_NC[part])
            if texts_1D is None:
                texts = [work.names[e] for e in entities_NC.ravel().tolist()]
                texts_PD = model.encode_text(tokenizer(texts), normalize=True)
            else:
                texts_PD = texts_1D[entities_NC.ravel()]
            (images_ND[:, None] * texts_PD.view(*entities_NC.shape, -1)).sum(-1)
    return len(work.stored)


def kernel(work: Work, encoder: Encoder, vectors: EntityVectors, config: ScoreConfig) -> int:
    """The kernel as a task runs it."""
    background = np.arange(min(config.background_entities, len(work.names)))
    scored = 0
    for _, out in score(
        [work.rows],
        lambda shard: formats.images(Shard(work.paths[shard]), work.column),
        encoder,
        vectors,
        config,
        background,
    ):
        scored += out.num_rows
    assert scored >= len(work.stored)
    return len(work.stored)


def through_spark(work: Work, config: ScoreConfig, threads: int, vectors: EntityVectors) -> Callable[[], int]:
    """The same rows by the stage's way: mapInArrow, files written and counted by the task. The model is loaded before.

    One task of as many threads as the bare kernel has, so that the ratio is what Spark costs.
    """
    cores = f"session.conf={{spark.task.cpus: '{threads}'}}"
    session = build(load_config(None, [f"session.master=local[{threads}]", cores]))
    folder = tempfile.mkdtemp()
    entities = pa.table(
        {
            "entity_id": pa.array(np.arange(len(vectors))),
            "vector": pa.array(list(vectors.lookup(np.arange(len(vectors)))), pa.list_(pa.float32())),
            "described": pa.array([True] * len(vectors)),
        }
    )
    pq.write_table(entities, f"{folder}/vectors.parquet")
    background = list(range(min(config.background_entities, len(work.names))))
    plain = pa.Table.from_batches([work.rows])
    plain = plain.set_column(2, "pair_id", plain.column("pair_id").cast(pa.binary()))
    frame = session.createDataFrame(plain).coalesce(1).sortWithinPartitions("shard", "row").cache()
    frame.count()
    paths, column = work.paths, work.column

    def make_kernel() -> Kernel:
        return partial(
            score,
            open_shard=lambda shard: formats.images(Shard(paths[shard]), column),
            config=config,
            background=background,
            encoder=load_once(config, threads=threads),
            vectors=EntityVectors.from_files([f"{folder}/vectors.parquet"], key=folder.rpartition("/")[2]),
        )

    tables = Tables(f"{folder}/out", start_spark=lambda: session, catalogue=catalogue([Score()]))

    def run() -> int:
        counting = Counting(passed=Score.passes)
        written = tables.write(frame, make_kernel, "score", "u-1", ("scores",), counting)
        tables.discard_staging()
        return written.rows_in

    run()
    return run


def shares(work: Work, encoder: Encoder, vectors: EntityVectors, config: ScoreConfig) -> dict[str, float]:
    """Milliseconds per image of each part of the kernel, one after the other in this thread."""
    spent = dict.fromkeys(("read", "decode", "preprocess", "encode", "dot"), 0.0)
    clock = time.perf_counter
    started = clock()
    for shard in sorted(set(work.rows["shard"].to_pylist())):
        with formats.images(Shard(work.paths[shard]), work.column) as reader:
            list(reader.read([r for s, r in zip(*columns(work), strict=True) if s == shard]))
    spent["read"] = clock() - started

    def prepare(image: Image.Image) -> np.ndarray:
        begun = clock()
        pixels = encoder.prepare(image)
        spent["preprocess"] += clock() - begun
        return pixels

    started = clock()
    decoded = [decode(data, config, prepare, encoder.side) for data in work.stored]
    spent["decode"] = clock() - started - spent["preprocess"]
    pixels = np.stack([d.pixels for d in decoded if isinstance(d, Decoded)])
    started = clock()
    images_ND = encoder.images(pixels)
    spent["encode"] = clock() - started
    started = clock()
    texts_PD = vectors.lookup(work.candidates_NC[: len(images_ND)].ravel())
    np.einsum("pd,pd->p", np.repeat(images_ND, work.candidates_NC.shape[1], axis=0), texts_PD)
    background_NM = images_ND @ vectors.lookup(np.arange(min(256, len(vectors)))).T
    background_NM.std(axis=1)
    spent["dot"] = clock() - started
    return {part: round(1000 * seconds / len(work.stored), 3) for part, seconds in spent.items()}


def columns(work: Work) -> tuple[list[int], list[int]]:
    return work.rows["shard"].to_pylist(), work.rows["row"].to_pylist()


def measure(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Images per second of each way, the median of interleaved rounds."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            images = way()
            rates[name].append(images / (time.perf_counter() - started))
    return {name: round(statistics.median(values), 2) for name, values in rates.items()}


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=f"local-dir:{SAMPLE}/models/scorer", help="as score.model")
    parser.add_argument("--pretrained")
    parser.add_argument("--pairs", nargs="+", help="Parquet files, folders or globs (default: the sample's)")
    parser.add_argument("--image-column", default="jpg")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--through-spark", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)

    import open_clip

    if not options.pairs:
        compose.compose(Path("out/sample/input"))
        options.pairs = ["out/sample/input/pairs/*.parquet"]
    config = ScoreConfig(model=options.model, pretrained=options.pretrained, dtype=options.dtype)
    encoder = load_once(config, threads=options.threads)
    work = read_work(options.pairs, options.image_column, options.images, options.candidates, 512, config)
    model, preprocess = open_clip.create_model_from_pretrained(
        options.model, pretrained=options.pretrained, device=encoder.device
    )
    model.eval()
    tokenizer = open_clip.get_tokenizer(options.model)
    text_vectors = encoder.texts(work.names)
    vectors = EntityVectors(np.arange(len(work.names)), text_vectors)
    texts_1D = torch.from_numpy(text_vectors)
    ways: dict[str, Callable[[], int]] = {"kernel": lambda: kernel(work, encoder, vectors, config)}
    if options.through_spark:
        ways["spark"] = through_spark(work, config, options.threads, vectors)
    else:
        ways |= {
            "pair": lambda: pair(work, model, preprocess, tokenizer),
            "batch": lambda: batch(work, model, preprocess, tokenizer),
            "cached": lambda: batch(work, model, preprocess, tokenizer, texts_1D),
        }
    rates = measure(ways, options.repeats)
    texts = measure({"texts": lambda: len(encoder.texts(work.names))}, options.repeats)
    figures = {
        "images": len(work.stored),
        "candidates_per_image": options.candidates,
        "threads": options.threads,
        "device": str(encoder.device),
        "dtype": options.dtype,
        "images_per_second": rates,
        "kernel_is_faster_by": {
            name: round(rates["kernel"] / rate, 2) for name, rate in rates.items() if name != "kernel"
        },
        "texts_per_second": texts["texts"],
        "milliseconds_per_image": shares(work, encoder, vectors, config),
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
