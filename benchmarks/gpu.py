"""What scoring costs on a machine with a CUDA card, and how many cores feed it. Knows no Spark.

    python benchmarks/gpu.py [--models ViT-B-32 ViT-L-14 …] [--batches 64 256 1024] [--dtype bfloat16]
                             [--parts machine forward decode kernel vocabulary memory precision] [--json FILE]

forward     images/s of `Encoder.images` (pixels on the host in, vectors on the host out) and of the model alone (pixels
            on the card already), and the most memory that torch held, by model and batch size
decode      images/s of one core: opened and decoded, prepared for the model, all that the kernel does before the model;
            and of many threads of one process
kernel      images/s of the whole scoring kernel by stored size, by processes on the card and decoding threads of each;
            `encoding` is the share of its time in which a process is in the model
vocabulary  images/s of the whole kernel where images are held against so many entities of each coarse type besides
            their candidates (`score.vocabulary`), with three vectors an entity; 0: against none, with no types
memory      a batch that no card holds: what `Encoder` comes down to, and whether its vectors are the same
precision   the shipped scorer on the sample's images (--pairs): cosines in bfloat16 and float32, on card and CPU

Weights are random but for `precision`: throughput does not depend on them. The JPEGs are made here, of noise with a
photograph's spectrum, to the stored size. FILE is written anew after each part.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from i2e_pipeline.core.config import ImageLimits, ModelConfig, ScoreConfig
from i2e_pipeline.core.machine import choose_device
from i2e_pipeline.images.decode import Decoded, decode, open_rgb
from i2e_pipeline.images.encoder import Encoder, load
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import Images, Shard
from i2e_pipeline.score.entity_vectors import EntityVectors, entity_text
from i2e_pipeline.score.scoring import score
from wikidata.types import TYPES

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-B-16-SigLIP", "MobileCLIP-S2")
PICTURES = {30: (440, 330), 100: (800, 600)}
"""Stored KB to sides in pixels: about 0.2 bytes a pixel, as photographs on the web have."""
SHARDS = 4
ENTITIES = 512


def tokenizer_of(name: str) -> Callable[[list[str]], torch.Tensor]:
    """The model's tokenizer; where that lies on a hub out of reach, one of the right shape, since texts are not
    measured."""
    import open_clip

    try:
        return open_clip.get_tokenizer(name)
    except Exception:
        text = open_clip.get_model_config(name)["text_cfg"]
        length, words = text.get("context_length", 77), text["vocab_size"]

        def tokens(texts: list[str]) -> torch.Tensor:
            rows = torch.ones(len(texts), length, dtype=torch.long)
            for row, said in zip(rows, texts, strict=True):
                for i, letter in enumerate(said[: length - 1]):
                    row[i] = 2 + ord(letter) % (words - 2)
            return rows

        return tokens


def encoder_of(name: str, options: argparse.Namespace, batch: int = 64) -> Encoder:
    """An open_clip architecture with random weights."""
    import open_clip

    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(
        name, precision="bf16" if dtype is torch.bfloat16 else "fp32"
    )
    return Encoder(
        model, preprocess, tokenizer_of(name), name=name, device=options.device, dtype=dtype, batch_size=batch
    )


def jpeg(sides: tuple[int, int], size: int, seed: int) -> bytes:
    """A JPEG of about `size` bytes: noise whose amplitude falls with its frequency, as a photograph's does."""
    rng = np.random.default_rng(seed)
    width, height = sides
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(sides)
    planes = []
    for weight in (1.0, 0.4, 0.4):
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**1.3
        plane = np.fft.irfft2(spectrum, (height, width))
        planes.append(weight * plane / plane.std())
    light, red, blue = planes
    pixels = np.stack([light + red, light - red / 2 - blue / 2, light + blue], axis=2)
    image = Image.fromarray(np.clip(128 + 50 * pixels, 0, 255).astype(np.uint8))
    low, high, best = 20, 97, b""
    while low <= high:  # the quality that comes nearest to the size
        quality = (low + high) // 2
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=quality)
        data = stored.getvalue()
        if not best or abs(len(data) - size) < abs(len(best) - size):
            best = data
        low, high = (quality + 1, high) if len(data) < size else (low, quality - 1)
    return best


def jpegs(kilobytes: int, count: int) -> list[bytes]:
    """Distinct stored images. What stands behind a JPEG's end changes no pixel, and makes equal images distinct."""
    kinds = [jpeg(PICTURES[kilobytes], kilobytes * 1000, seed) for seed in range(min(count, 24))]
    return [kinds[i % len(kinds)] + i.to_bytes(8, "big") for i in range(count)]


def rate(work: Callable[[], int], seconds: float, device: str = "cpu") -> float:
    """Images per second, after one call that warms up."""

    def settle() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    work()
    settle()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += work()
        settle()
    return round(done / (time.perf_counter() - started), 1)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    import open_clip
    import PIL

    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "card": torch.cuda.get_device_name() if options.device.startswith("cuda") else None,
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "open_clip": open_clip.__version__,
        "pillow": PIL.__version__,
        "dtype": options.dtype,
    }


def _images(encoder: Encoder, pixels: np.ndarray) -> int:
    return len(encoder.images(pixels))


def _alone(encoder: Encoder, there: torch.Tensor) -> int:
    return len(encoder._model.encode_image(there))


def _opened(stored: list[bytes], limits: ImageLimits, side: int) -> int:
    return sum(isinstance(open_rgb(data, limits, side), tuple) for data in stored)


def _prepared(images: list[Image.Image], encoder: Encoder) -> int:
    return len([encoder.prepare(image) for image in images])


def _decoded(stored: list[bytes], limits: ImageLimits, encoder: Encoder) -> int:
    return sum(isinstance(decode(data, limits, encoder.prepare, encoder.side), Decoded) for data in stored)


def _open(paths: list[str], shard: int) -> Images:
    return formats.images(Shard(paths[shard]), "jpg")


def forward(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for name in options.models:
        try:
            encoder = encoder_of(name, options)
        except Exception as error:  # a config whose parts lie on a hub
            found.append({"model": name, "failed": f"{type(error).__name__}: {error}"[:300]})
            continue
        for batch in options.batches:
            encoder._rows_at_once = encoder.batch_size = batch
            pixels = np.random.default_rng(0).integers(0, 256, (batch, encoder.side, encoder.side, 3), dtype=np.uint8)
            if options.device.startswith("cuda"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            whole = rate(partial(_images, encoder, pixels), options.seconds, options.device)
            with torch.inference_mode():
                there = encoder._normalised(pixels)
                alone = rate(partial(_alone, encoder, there), options.seconds, options.device)
            peak = torch.cuda.max_memory_allocated() / 2**30 if options.device.startswith("cuda") else None
            found.append(
                {
                    "model": name, "side": encoder.side, "batch": batch, "batch_that_fitted": encoder.batch_size,
                    "images_per_second": whole, "model_alone": alone, "peak_gib": peak and round(peak, 2),
                }
            )  # fmt: skip
            print(json.dumps(found[-1]), flush=True)
        del encoder
    return found


def decoding(options: argparse.Namespace) -> list[dict[str, Any]]:
    encoder = encoder_of("ViT-B-32", options)
    limits = ImageLimits()
    found = []
    for kilobytes in PICTURES:
        stored = jpegs(kilobytes, 48)
        opened = [open_rgb(data, limits, encoder.side) for data in stored]
        images = [o[0] for o in opened if isinstance(o, tuple)]
        assert len(images) == len(stored)
        parts: dict[str, Callable[[], int]] = {
            "decode": partial(_opened, stored, limits, encoder.side),
            "prepare": partial(_prepared, images, encoder),
            "both_and_thumbnail": partial(_decoded, stored, limits, encoder),
        }
        row: dict[str, Any] = {
            "kilobytes": round(sum(map(len, stored)) / len(stored) / 1000, 1), "sides": PICTURES[kilobytes],
            "model_side": encoder.side,
            "one_core": {name: rate(part, options.seconds) for name, part in parts.items()},
            "threads": {},
        }  # fmt: skip
        for threads in options.threads:
            with ThreadPoolExecutor(threads) as pool:
                many = stored * max(1, threads // 2)

                def together(pool: ThreadPoolExecutor = pool, many: list[bytes] = many) -> int:
                    done = pool.map(lambda d: decode(d, limits, encoder.prepare, encoder.side), many)
                    return sum(isinstance(d, Decoded) for d in done)

                row["threads"][threads] = rate(together, options.seconds)
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def lay_out(folder: str, kilobytes: int, images: int) -> list[str]:
    """SHARDS files of stored images."""
    paths = []
    stored = jpegs(kilobytes, images)
    for shard in range(SHARDS):
        path = f"{folder}/{kilobytes}-{shard}.parquet"
        table = pa.table({"jpg": pa.array(stored[shard::SHARDS], pa.binary())})
        pq.write_table(table, path, compression="none", row_group_size=128)
        paths.append(path)
    return paths


def worker(name: str, options: argparse.Namespace, ready: Any, asked: Any, answers: Any) -> None:
    """One process on the card: loads the model once, then scores whatever shards it is asked to."""
    torch.set_num_threads(1)
    encoder = encoder_of(name, options)
    inside = 0.0
    encode = encoder.images

    def timed(pixels: np.ndarray) -> np.ndarray:
        nonlocal inside
        began = time.perf_counter()
        found = encode(pixels)
        inside += time.perf_counter() - began
        return found

    encoder.images = timed  # type: ignore[method-assign]
    rng = np.random.default_rng(0)
    vectors = entity_vectors(rng, encoder.width, max(ENTITIES, len(TYPES.names) * max(options.vocabulary)))
    while (order := asked.get()) is not None:
        paths, threads, batch, active, words = order
        encoder._rows_at_once = encoder.batch_size = batch
        config = ScoreConfig(
            model=name, decode_threads=threads, batch_size=batch, vocabulary=words, type_exemplars=min(words, 128)
        )
        exemplars = {t: range(i * words, (i + 1) * words) for i, t in enumerate(TYPES.names)}
        rows = [(s, r) for s, path in enumerate(paths) for r in range(pq.read_metadata(path).num_rows)]
        table = pa.record_batch(
            {
                "shard": pa.array([s for s, _ in rows], pa.int32()),
                "row": pa.array([r for _, r in rows], pa.int64()),
                "pair_id": pa.array([i.to_bytes(16, "big") for i in range(len(rows))], pa.binary(16)),
                "entity_ids": pa.array(rng.integers(0, ENTITIES, (len(rows), 4)).tolist(), pa.list_(pa.int64())),
            }
        )
        if active:
            encoder.images(np.zeros((batch, encoder.side, encoder.side, 3), np.uint8))
        ready.wait(120)
        inside, began = 0.0, time.perf_counter()
        scored = 0
        if active:
            out = score([table], partial(_open, paths), encoder, vectors, config, range(256), exemplars)
            scored = sum(len(set(b["pair_id"].to_pylist())) for kind, b in out if kind == "scores")
        answers.put((scored, time.perf_counter() - began, inside))


def entity_vectors(rng: np.random.Generator, width: int, count: int) -> EntityVectors:
    """Random ones, with all that the kernel may ask for."""
    told = [rng.standard_normal((count, width), dtype=np.float32) for _ in range(3)]
    whole_ED, name_ED, description_ED = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in told)
    beside = {
        "name_vector": name_ED,
        "description_vector": description_ED,
        "type": (np.arange(count) % len(TYPES.names)).astype(np.int8),
        "visual": np.full(count, 0.5, np.float32),
        "fame": np.ones(count, np.float32),
    }
    return EntityVectors(np.arange(count), whole_ED, beside=beside)


def kernel(options: argparse.Namespace) -> list[dict[str, Any]]:
    return through_kernel(options, PICTURES, options.feeding, [0])


def vocabulary(options: argparse.Namespace) -> list[dict[str, Any]]:
    return through_kernel(options, list(PICTURES)[:1], options.feeding[-1:], options.vocabulary)


def through_kernel(
    options: argparse.Namespace, sizes: Sequence[int] | dict[int, Any], feedings: Sequence[tuple[int, int]],
    vocabularies: Sequence[int],
) -> list[dict[str, Any]]:  # fmt: skip
    context = multiprocessing.get_context("spawn")
    found = []
    most = max(p for p, _ in feedings)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        files = {kb: lay_out(folder, kb, options.images * 30 // kb) for kb in sizes}
        for name in options.kernel_models:
            ready, answers = context.Barrier(most), context.Queue()
            asked = [context.Queue() for _ in range(most)]
            workers: Sequence[Any] = [
                context.Process(target=worker, args=(name, options, ready, asked[r], answers), daemon=True)
                for r in range(most)
            ]
            for process in workers:
                process.start()
            for kilobytes, paths in files.items():
                for (processes, threads), words in itertools.product(feedings, vocabularies):
                    few = threads * processes < 4  # a thread alone would take long over all
                    for rank in range(most):
                        own = paths[rank::processes] if rank < processes else []
                        own = own[:1] if few else own
                        asked[rank].put((own, threads, options.kernel_batch, rank < processes, words))
                    told = [t for t in (answers.get(timeout=120) for _ in range(most)) if t[0]]
                    images, seconds = sum(t[0] for t in told), max(t[1] for t in told)
                    found.append(
                        {
                            "model": name, "kilobytes": kilobytes, "processes": processes, "decode_threads": threads,
                            "batch": options.kernel_batch, "words_of_a_type": words, "images": images,
                            "images_per_second": round(images / seconds, 1),
                            "encoding": round(sum(t[2] for t in told) / len(told) / seconds, 3),
                        }
                    )  # fmt: skip
                    print(json.dumps(found[-1]), flush=True)
            for queue in asked:
                queue.put(None)
            for process in workers:
                process.join(20)
    return found


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """A batch that no card holds. 64 images, so that the host need not hold as many distinct ones."""
    encoder = encoder_of(options.memory_model, options, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (64, encoder.side, encoder.side, 3), dtype=np.uint8)
    small_ND = encoder.images(pixels)
    encoder._rows_at_once = encoder.batch_size = options.absurd
    began = time.perf_counter()
    found_ND = encoder.images(pixels)
    return {
        "model": options.memory_model, "asked": options.absurd, "came_down_to": encoder.batch_size,
        "seconds": round(time.perf_counter() - began, 2),
        "largest_difference_to_batches_of_8": float(np.abs(found_ND - small_ND).max()),
        "smallest_cosine": float((found_ND * small_ND).sum(axis=1).min()),
    }  # fmt: skip


def precision(options: argparse.Namespace) -> dict[str, Any]:
    """Cosines of the shipped scorer on the sample's images with the world's entities."""
    from i2e_pipeline.sample.world import HERE, load_world

    entities = load_world().depicted
    limits = ImageLimits()
    stored = [d for path in options.pairs for d in pq.read_table(path, columns=["jpg"])["jpg"].to_pylist() if d]
    vectors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for device, dtype in dict.fromkeys([("cpu", "float32"), (options.device, "float32"), (options.device, "bfloat16")]):
        config = ModelConfig(model=f"local-dir:{HERE}/models/scorer", dtype=dtype, device=device, batch_size=256)
        encoder = load(config)
        decoded = [decode(d, limits, encoder.prepare, encoder.side) for d in stored]
        pixels = np.stack([d.pixels for d in decoded if isinstance(d, Decoded)])
        texts = [entity_text("{name}, {description}", e.label, e.description) for e in entities]
        vectors[f"{device} {dtype}"] = encoder.images(pixels), encoder.texts(texts)
    first, *others = vectors
    base_NE = vectors[first][0] @ vectors[first][1].T
    found: dict[str, Any] = {
        "images": len(base_NE), "entities": base_NE.shape[1], "against": first,
        "spread_of_an_image": round(float(base_NE.std(axis=1).mean()), 4), "ways": {},
    }  # fmt: skip
    for way in others:
        other_NE = vectors[way][0] @ vectors[way][1].T
        moved_NE = np.abs(other_NE - base_NE)
        found["ways"][way] = {
            "mean": float(moved_NE.mean()), "p99": float(np.quantile(moved_NE, 0.99)), "max": float(moved_NE.max()),
            "best_entity_is_another": round(float((other_NE.argmax(1) != base_NE.argmax(1)).mean()), 4),
        }  # fmt: skip
    return found


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "machine": machine, "precision": precision, "forward": forward, "decode": decoding, "kernel": kernel,
    "vocabulary": vocabulary, "memory": memory,
}  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 4, 8, 16], help="decoding threads of a process")
    parser.add_argument("--kernel-models", nargs="+", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--kernel-batch", type=int, default=256)
    parser.add_argument(
        "--feeding", nargs="+", default=["1x1", "1x4", "1x8", "1x16", "2x8", "4x4"], help="processes x threads"
    )
    parser.add_argument("--images", type=int, default=8192, help="images of 30 KB that the kernel is measured on")
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[0, 128, 1024], help="entities of a type")
    parser.add_argument("--memory-model", default="ViT-L-14")
    parser.add_argument("--absurd", type=int, default=32_768)
    parser.add_argument("--pairs", nargs="+", default=[], help="Parquet files of the sample, for `precision`")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    options.device = choose_device(options.device, "--device")
    options.feeding = [tuple(int(n) for n in pair.split("x")) for pair in options.feeding]
    if options.device == "cpu" and options.dtype == "bfloat16":
        print("no CUDA card here: --dtype float32 --models ViT-B-32 --batches 8 --images 64 measures this CPU")
        return
    failed: list[str] = []
    every: dict[str, Any] = {}
    for name in options.parts:
        if name == "precision" and not options.pairs:
            continue
        try:
            figures = PARTS[name](options)
        except Exception:  # a card is lent by the minute: what else was asked for is still measured
            traceback.print_exc()
            failed.append(name)
            continue
        print(name, json.dumps(figures), flush=True)
        if options.json:
            every[name] = figures
            options.json.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
