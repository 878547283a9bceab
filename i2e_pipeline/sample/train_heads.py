"""Train the sample's head:  python -m i2e_pipeline.sample.train_heads

`flags` finds flags on vectors of the sample's scorer: what a policy against national symbols would leave out. It is
fitted to scenes of some entities, its threshold is chosen on those of others, and it is measured on a third part, in
the held-out split, whose art style Twemoji neither scorer nor head has seen. A watermark, which a policy would rather
ask for, cannot be read off this scorer's vectors: it was trained to look past what lies over a drawing
(benchmarks/heads.py has the figures).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from i2e_pipeline.clean import fitting, heads
from i2e_pipeline.core.config import ScoreConfig
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.images.encoder import Encoder, load
from i2e_pipeline.sample.draws import draw, picture
from i2e_pipeline.sample.world import HELD_OUT_STYLE, HERE

FLAGS = HERE / "models" / "heads" / "flags.safetensors"
SEED = 91
ROWS = 2400
PRECISION = 0.9
_AT_ONCE = 64


def vectors(encoder: Encoder, split: str, rows: int) -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
    """(N, D) float16 of scenes, the entity of each, whether it is a flag, and its art style."""
    training = split == "training"
    made, entities, flags, styles, pixels = [], [], [], [], []
    for number in range(rows):
        row = draw(SEED, split, number)
        opened = open_rgb(picture(row, training)[0], ScoreConfig())
        assert not isinstance(opened, Rejected)
        pixels.append(encoder.prepare(opened[0]))
        entities.append(row.truth.id)
        flags.append(row.truth.art.startswith("flag:"))
        styles.append(row.style)
        if len(pixels) == _AT_ONCE or number == rows - 1:
            made.append(encoder.images(np.stack(pixels)).astype(np.float16))
            pixels.clear()
    return np.concatenate(made), entities, np.array(flags), styles


def train(output: Path, rows: int = ROWS) -> dict[str, Any]:
    """Writes the head; returns its figures on entities that it has not seen."""
    model = ScoreConfig(model=f"local-dir:{HERE}/models/scorer", device="cpu")
    encoder = load(model)
    seen_ND, seen_of, seen_flags, _ = vectors(encoder, "training", rows)
    asked_ND, asked_of, asked_flags, style = vectors(encoder, "heldout", rows)
    seen_N, asked_N = fitting.parts(seen_of), fitting.parts(asked_of)
    head, measured = fitting.trained(
        np.concatenate([seen_ND[seen_N != fitting.MEASURE], asked_ND[asked_N == fitting.MEASURE]]),
        np.concatenate([seen_flags[seen_N != fitting.MEASURE], asked_flags[asked_N == fitting.MEASURE]]),
        np.concatenate([seen_N[seen_N != fitting.MEASURE], asked_N[asked_N == fitting.MEASURE]]),
        finds="flags",
        model=heads.model_name(model),
        vectors_of=heads.vectors_of(model),
        precision=PRECISION,
        l2=1.0,
        on="scenes of entities that it was not fitted to, of all art styles",
    )
    unseen_N = (asked_N == fitting.MEASURE) & (np.array(style) == HELD_OUT_STYLE)
    of_style = fitting.measure(head(asked_ND[unseen_N]), asked_flags[unseen_N], head.about.threshold)
    said = {**head.about.measured, "in_the_held_out_style": asdict(of_style)}
    heads.write(str(output), heads.Head(replace(head.about, measured=said), head.layers))
    return {"threshold": head.about.threshold, "held_out": asdict(measured), "held_out_style": asdict(of_style)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FLAGS)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    print(json.dumps(train(options.output, options.rows), indent=1))


if __name__ == "__main__":
    main()
