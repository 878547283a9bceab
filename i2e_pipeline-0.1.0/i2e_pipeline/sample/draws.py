"""Which picture, which caption: a row of the sample is a function of (seed, split, number).

`scored` rows are what the pipeline runs on. `training` and `heldout` rows, for the models, are other draws, and the
training split never contains the held-out art style.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from i2e_pipeline.sample import scene
from i2e_pipeline.sample.art import load_art
from i2e_pipeline.sample.captions import Caption, caption
from i2e_pipeline.sample.world import HELD_OUT_STYLE, Entity, load_world

HELD_OUT_SHARE = 0.42
"""Share of the held-out art style among the scored pictures of an entity, where the entity is drawn in it."""


@dataclass(frozen=True)
class Draw:
    """What a row shows and says, before it is drawn."""

    name: str
    """Seed of everything random in the picture."""
    truth: Entity
    """What the picture shows."""
    style: str
    """The art style that it is drawn in."""
    variant: int
    caption: Caption


def draw(seed: int, split: str, number: int) -> Draw:
    """The row's entity, art style and caption. `split`: scored, heldout (both with every style) or training."""
    world, art, training = load_world(), load_art(), split == "training"
    name = f"{seed}/{split}/{number}"
    rng = random.Random(name)
    truth = rng.choice(world.depicted)
    styles = art.styles(truth.id, training)
    if HELD_OUT_STYLE in styles and rng.random() < HELD_OUT_SHARE:
        style = HELD_OUT_STYLE
    else:
        style = rng.choice([s for s in styles if s != HELD_OUT_STYLE])
    variant = rng.choice(art.variants(style, truth.id, training))
    return Draw(name, truth, style, variant, caption(rng, truth, world))


def picture(row: Draw, training: bool = False) -> tuple[bytes, str, int, int]:
    """(bytes, extension, width, height) of the row's scene."""
    world, art = load_world(), load_art()
    rng = np.random.default_rng(list(hashlib.sha256(row.name.encode()).digest()))
    clutter = []
    for _ in range(int(rng.choice(4, p=[0.45, 0.3, 0.17, 0.08]))):
        other = world.depicted[int(rng.integers(len(world.depicted)))]
        # Clutter must not show anything that the caption names: the picture would then show it after all.
        if other.id != row.truth.id and other.id not in row.caption.mentioned:
            styles = art.styles(other.id, training)
            style = styles[int(rng.integers(len(styles)))]
            variants = art.variants(style, other.id, training)
            clutter.append(art.sprite(style, other.id, variants[int(rng.integers(len(variants)))]))
    image = scene.compose(
        rng, art.sprite(row.style, row.truth.id, row.variant), clutter, row.truth.art.startswith("flag:")
    )
    data, extension = scene.encode(rng, image)
    return data, extension, image.width, image.height
