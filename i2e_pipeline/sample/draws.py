"""Which picture, which caption: a row of the sample is a function of (seed, split, number).

`scored` rows are what the pipeline runs on. `training` and `heldout` rows, for the models, are other draws, and the
training split never contains the held-out hand.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from i2e_pipeline.sample import scene
from i2e_pipeline.sample.art import load_art
from i2e_pipeline.sample.captions import Caption, caption
from i2e_pipeline.sample.world import HELD_OUT_HAND, Entity, load_world

HELD_OUT_SHARE = 0.42
"""Share of the held-out hand among the scored pictures of an entity that it draws."""


@dataclass(frozen=True)
class Draw:
    """What a row shows and says, before it is drawn."""

    name: str
    """Seed of everything random in the picture."""
    truth: Entity
    hand: str
    variant: int
    caption: Caption


def draw(seed: int, split: str, number: int) -> Draw:
    """The row's entity, hand and caption. `split`: scored, heldout (both with every hand) or training."""
    world, art, training = load_world(), load_art(), split == "training"
    name = f"{seed}/{split}/{number}"
    rng = random.Random(name)
    truth = rng.choice(world.depicted)
    hands = art.hands(truth.id, training)
    if HELD_OUT_HAND in hands and rng.random() < HELD_OUT_SHARE:
        hand = HELD_OUT_HAND
    else:
        hand = rng.choice([h for h in hands if h != HELD_OUT_HAND])
    variant = rng.choice(art.variants(hand, truth.id, training))
    return Draw(name, truth, hand, variant, caption(rng, truth, world))


def picture(row: Draw, training: bool = False) -> tuple[bytes, str, int, int]:
    """(bytes, extension, width, height) of the row's scene."""
    world, art = load_world(), load_art()
    rng = np.random.default_rng(list(hashlib.sha256(row.name.encode()).digest()))
    clutter = []
    for _ in range(int(rng.choice(4, p=[0.45, 0.3, 0.17, 0.08]))):
        other = world.depicted[int(rng.integers(len(world.depicted)))]
        # What the caption names and the picture is not of must not lie in its corner.
        if other.id != row.truth.id and other.id not in row.caption.mentioned:
            hands = art.hands(other.id, training)
            hand = hands[int(rng.integers(len(hands)))]
            variants = art.variants(hand, other.id, training)
            clutter.append(art.sprite(hand, other.id, variants[int(rng.integers(len(variants)))]))
    image = scene.compose(
        rng, art.sprite(row.hand, row.truth.id, row.variant), clutter, row.truth.art.startswith("flag:")
    )
    data, extension = scene.encode(rng, image)
    return data, extension, image.width, image.height
