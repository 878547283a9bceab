"""Heads on the vectors of a scoring model: how often they find what was planted, on images of entities unseen by them.

    python benchmarks/heads.py [--parquet 'PAIRS/*.parquet'] [--images 1200] [--model local-dir:FOLDER] [--precision .9]

Of --images images each stands beside a copy of itself that was spoiled: with a watermark (i2e_pipeline/sample/
watermark.py: a banner, letters across, letters all over), or scaled down to 9 to 20 pixels and up again, as thumbnails
that were blown up are. Both were encoded as JPEG once more, so that compression tells nothing. Heads are fitted to
three fifths of the entities, thresholds chosen on a fifth, and what is printed is of the last fifth: as many spoiled
images as others, so where fewer are spoiled, precision is lower. AUC does not depend on that.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.loader import sources
from benchmarks.near_duplicates import SCORER, read_images
from i2e_pipeline.clean import fitting, heads
from i2e_pipeline.core.config import ScoreConfig
from i2e_pipeline.images.encoder import Encoder, load_once
from i2e_pipeline.sample import watermark

_AT_ONCE = 64
Spoil = Callable[[Image.Image, np.random.Generator], Image.Image]


def marked(kind: str) -> Spoil:
    return lambda image, draw: watermark.watermarked(image, draw, kind)


def blown_up(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    side = int(draw.integers(9, 20))
    small = image.resize((side, max(1, side * image.height // image.width)), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def compressed(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=int(draw.integers(60, 95)))
    return Image.open(io.BytesIO(content.getvalue())).convert("RGB")


def encoded(encoder: Encoder, images: list[Image.Image], spoil: Spoil | None) -> np.ndarray:
    """(N, D) float16 of the images, spoiled."""
    made = []
    for start in range(0, len(images), _AT_ONCE):
        pixels = []
        for number, image in enumerate(images[start : start + _AT_ONCE], start):
            draw = np.random.default_rng(number)
            pixels.append(encoder.prepare(compressed(spoil(image, draw) if spoil else image, draw)))
        made.append(encoder.images(np.stack(pixels)).astype(np.float16))
    return np.concatenate(made)


def figures_of(plain_ND: np.ndarray, spoiled_ND: np.ndarray, groups: list[str], precision: float) -> dict[str, Any]:
    """Of a head that tells the two apart. Where no threshold gives the precision, the AUC alone."""
    vectors_ND = np.concatenate([plain_ND, spoiled_ND])
    wanted_N = np.repeat([False, True], [len(plain_ND), len(spoiled_ND)])
    part_N = np.tile(fitting.parts(groups), 2)
    asked = {"finds": "what was planted", "model": "", "vectors_of": "", "l2": 1.0, "on": ""}
    try:
        _, measured = fitting.trained(vectors_ND, wanted_N, part_N, precision=precision, **asked)  # type: ignore[arg-type]
        return asdict(measured)
    except heads.HeadError as error:
        layer = fitting.fit(vectors_ND[part_N == fitting.FIT], wanted_N[part_N == fitting.FIT], 1.0)
        held_N = part_N == fitting.MEASURE
        number_N = vectors_ND[held_N].astype(np.float64) @ layer[0][0]
        return {"auc": round(fitting.auc(number_N, wanted_N[held_N]), 3), "no threshold": str(error)}


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", nargs="+", help="Parquet files, folders or globs (default: the sample's images)")
    parser.add_argument("--image-column", default="jpg")
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--model", default=f"local-dir:{SCORER}")
    parser.add_argument("--precision", type=float, default=0.9)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    images, entities = read_images(*sources(options), options.images)
    groups = [str(entity) for entity in entities]
    encoder = load_once(ScoreConfig(model=options.model))
    plain_ND = encoded(encoder, images, None)
    figures: dict[str, Any] = {"images": len(images), "entities": len(set(groups)), "width": encoder.width}
    kinds = [(f"watermark, {kind}", marked(kind)) for kind in watermark.KINDS]
    for name, spoil in [*kinds, ("blown up", blown_up)]:
        figures[name] = figures_of(plain_ND, encoded(encoder, images, spoil), groups, options.precision)
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
