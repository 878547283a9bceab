"""What other ways to decode and scale a JPEG cost the trainer's loader: processor time of an image, and its pixels.

    python benchmarks/decoders.py [--parquet 'PAIRS/*.parquet'] [--images 200] [--pixels 512] [--kilobytes 95]
                                  [--side 224] [--repeats 7]

The same JPEGs (--pixels on the shorter side, about --kilobytes), the same drawn crops and mirrors, to --side pixels:

    pillow           decoded, cropped and scaled by Pillow: images.open_rgb, Image.resize
    loader           the loader's own way: images.open_rgb, train.augment.augmented
    pillow, scaled   as pillow, decoded at a half, quarter or eighth where that is still --side pixels wide
    torchvision      torchvision.io.decode_jpeg, then the loader's crop and scaling
    simplejpeg       simplejpeg.decode_jpeg, then the same
    turbojpeg        PyTurboJPEG's decode, then the same

Those that are not installed are left out and said. Figures are processor time of one thread per image as a ratio to
pillow's in the same round (median of interleaved rounds), that of decoding alone as a ratio to pillow's decoding, and
how far the pixels are from pillow's: the mean over all of them and the largest one, in grey levels of 0 … 255.

Then damaged JPEGs, each cut in half, cut by its last 1 %, or overwritten in its middle: how many each decoder refuses,
and how many of those that it does not the loader refuses. A decoder that is to take Pillow's place must have none.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.loader import read_stored, scaled, sources
from i2e_pipeline.core.config import DataConfig, ImageLimits
from i2e_pipeline.images.decode import DRAFT_MARGIN, Rejected, open_rgb
from i2e_pipeline.train.augment import augmented, crop_box, decoded_side, draws

PILLOW, LOADER = "pillow", "loader"
Decode = Callable[[bytes], Any]
Finish = Callable[[Any, np.ndarray], np.ndarray]


def ways_of(side: int, config: DataConfig) -> tuple[dict[str, tuple[Decode, Finish]], dict[str, str]]:
    """By name how to decode and how to crop and scale; and why others are left out."""

    def pillow(of: int) -> Decode:
        def decode(stored: bytes) -> Image.Image:
            opened = open_rgb(stored, ImageLimits(), of)
            assert not isinstance(opened, Rejected)
            return opened[0]

        return decode

    def by_pillow(image: Image.Image, drawn_F: np.ndarray) -> np.ndarray:
        box = crop_box(image.size, drawn_F, config.crop_area)
        made = image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        return np.asarray(made.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn_F[4] >= 0.5 else made)

    def as_the_loader(image: Image.Image, drawn_F: np.ndarray) -> np.ndarray:
        return augmented(image, side, drawn_F, config.crop_area)

    usual = decoded_side(side, config)
    ways: dict[str, tuple[Decode, Finish]] = {
        PILLOW: (pillow(usual), by_pillow),
        LOADER: (pillow(usual), as_the_loader),
        "pillow, scaled": (pillow(math.ceil(side / DRAFT_MARGIN)), by_pillow),
    }
    missing: dict[str, str] = {}
    for name, found in (("torchvision", _torchvision), ("simplejpeg", _simplejpeg), ("turbojpeg", _turbojpeg)):
        try:
            decode = found()
        except (ImportError, RuntimeError, OSError) as error:
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        ways[name] = (decode, lambda pixels_HWC, drawn_F: as_the_loader(Image.fromarray(pixels_HWC), drawn_F))
    return ways, missing


def _torchvision() -> Decode:
    io = importlib.import_module("torchvision.io")

    def decode(stored: bytes) -> np.ndarray:
        content = torch.frombuffer(bytearray(stored), dtype=torch.uint8)
        return np.ascontiguousarray(io.decode_jpeg(content, mode=io.ImageReadMode.RGB).permute(1, 2, 0).numpy())

    return decode


def _simplejpeg() -> Decode:
    decode: Decode = importlib.import_module("simplejpeg").decode_jpeg
    return decode


def _turbojpeg() -> Decode:
    turbojpeg = importlib.import_module("turbojpeg")
    decoder = turbojpeg.TurboJPEG()
    return lambda stored: decoder.decode(stored, pixel_format=turbojpeg.TJPF_RGB)


def measure(stored: list[bytes], side: int, repeats: int) -> dict[str, Any]:
    """Times and differences of each way, by name."""
    config = DataConfig()
    drawn_NF = draws(np.arange(len(stored), dtype=np.uint64), config)
    assert drawn_NF is not None
    ways, missing = ways_of(side, config)
    made = {name: _made(stored, drawn_NF, *way) for name, way in ways.items()}  # also warms up
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (decode, finish) in ways.items():
            seconds[name].append(_seconds(stored, drawn_NF, decode, finish))
    by_pillow = np.stack(made[PILLOW]).astype(np.int16)
    figures: dict[str, Any] = {}
    for name in ways:
        rounds = list(zip(seconds[name], seconds[PILLOW], strict=True))
        apart = np.abs(np.stack(made[name]).astype(np.int16) - by_pillow)
        figures[name] = {
            "times_pillow": round(statistics.median(sum(mine) / sum(of) for mine, of in rounds), 3),
            "decoding_times_pillow": round(statistics.median(mine[0] / of[0] for mine, of in rounds), 3),
            "share_of_decoding": round(statistics.median(mine[0] / sum(mine) for mine, _ in rounds), 3),
            "mean_difference": round(float(apart.mean()), 3),
            "largest_difference": int(apart.max()),
        }
    return {"ways": figures, "left_out": missing, "refused": refused(stored, ways)}


def refused(stored: list[bytes], ways: dict[str, tuple[Decode, Finish]]) -> dict[str, dict[str, dict[str, int]]]:
    """By decoder and damage: images that it refuses, and those that it lets through and the loader refuses."""
    damaged = {
        "cut in half": [data[: len(data) // 2] for data in stored],
        "cut by 1 %": [data[: len(data) * 99 // 100] for data in stored],
        "overwritten": [data[: len(data) // 2] + b"\xff\xd8" * 8 + data[len(data) // 2 + 16 :] for data in stored],
    }
    decoders = {name: decode for name, (decode, _) in ways.items() if name not in (PILLOW, "pillow, scaled")}
    found: dict[str, dict[str, dict[str, int]]] = {name: {} for name in decoders}
    for kind, images in damaged.items():
        by_loader = [_refuses(decoders[LOADER], data) for data in images]
        for name, decode in decoders.items():
            mine = [_refuses(decode, data) for data in images]
            let_through = sum(theirs and not own for theirs, own in zip(by_loader, mine, strict=True))
            found[name][kind] = {"refused": sum(mine), "refused_by_the_loader_alone": let_through}
    return found


def _refuses(decode: Decode, data: bytes) -> bool:
    try:
        decode(data)
    except Exception:  # RuntimeError of torch's, ValueError, OSError, the assertion of pillow's way
        return True
    return False


def _made(stored: list[bytes], drawn_NF: np.ndarray, decode: Decode, finish: Finish) -> list[np.ndarray]:
    return [finish(decode(data), drawn_F) for data, drawn_F in zip(stored, drawn_NF, strict=True)]


def _seconds(stored: list[bytes], drawn_NF: np.ndarray, decode: Decode, finish: Finish) -> tuple[float, float]:
    """Processor time of this thread, decoding and the rest."""
    decoding = rest = 0.0
    for data, drawn_F in zip(stored, drawn_NF, strict=True):
        began = time.thread_time()
        decoded = decode(data)
        between = time.thread_time()
        finish(decoded, drawn_F)
        decoding, rest = decoding + between - began, rest + time.thread_time() - between
    return decoding, rest


def table(figures: dict[str, Any]) -> str:
    lines = [f"{'':<20}{'time':>8}{'decoding':>10}{'mean apart':>12}{'most':>6}"]
    for name, one in figures["ways"].items():
        lines.append(
            f"{name:<20}{one['times_pillow']:>8.2f}{one['decoding_times_pillow']:>10.2f}"
            f"{one['mean_difference']:>12.2f}{one['largest_difference']:>6}"
        )
    for name, kinds in figures["refused"].items():
        told = ", ".join(
            f"{one['refused']} {kind} (lets through {one['refused_by_the_loader_alone']})"
            for kind, one in kinds.items()
        )
        lines.append(f"{name:<20}refuses {told}")
    lines += [f"{name:<20}left out: {why}" for name, why in figures["left_out"].items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", nargs="+", help="Parquet files, folders or globs (default: the sample's images)")
    parser.add_argument("--image-column", default="jpg")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--kilobytes", type=float, default=95.0)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = read_stored(*sources(options), options.images)
    made = {image: scaled(image, options.pixels, options.kilobytes) for image in set(found)}
    stored = [made[image] for image in found]
    figures: dict[str, Any] = {
        "images": len(stored),
        "kilobytes_per_image": round(sum(map(len, stored)) / len(stored) / 1000, 1),
        "pixels": options.pixels,
        "side": options.side,
        "pillow": _version(stored[0]),
        **measure(stored, options.side, options.repeats),
    }
    print(f"{figures['images']} JPEGs of {figures['kilobytes_per_image']} KB, {figures['pillow']}\n{table(figures)}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def _version(stored: bytes) -> str:
    from PIL import __version__, features

    assert Image.open(io.BytesIO(stored)).format == "JPEG"
    turbo = features.version_feature("libjpeg_turbo")
    return f"Pillow {__version__}" + (f" on libjpeg-turbo {turbo}" if turbo else "")


if __name__ == "__main__":
    main(sys.argv[1:])
