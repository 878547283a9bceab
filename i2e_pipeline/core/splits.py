"""Which images a training does not see: the column `split` of a dataset.

A share of the entities is kept for tests, with all images that show one of them, and a share of the other images for
validation. Both are drawn by hash of entity and image alone, and an image shows what any of its labels says, published
or not: floors, caps, lists and further rows that take labels or bring them back move no image to another side. Only a
label that is new moves one. A salt draws others.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from i2e_pipeline.core.draws import hashed, mixed, uniform

TRAIN, VALIDATION, TEST = "train", "validation", "test"
TEST_ENTITIES = 0.1
VALIDATION_IMAGES = 0.05


def held_out_entities(entity_ids: np.ndarray, share: float = TEST_ENTITIES, salt: str | None = None) -> np.ndarray:
    """Which entities are kept out of training."""
    held: np.ndarray = uniform(hashed(entity_ids, "held-out entity", *_salted(salt))) < share
    return held


def held_out_images(ids_N2: np.ndarray, share: float = VALIDATION_IMAGES, salt: str | None = None) -> np.ndarray:
    """Which images are kept out of training, if they show no held-out entity. ids_N2: ids.id_halves."""
    held: np.ndarray = uniform(hashed(keys(ids_N2), "held-out image", *_salted(salt))) < share
    return held


def any_held_out(parents: pa.Array, entities: pa.Array, images: int) -> np.ndarray:
    """bool[images]: whether a label of the image is of a held-out entity. parents: the place of each label's image."""
    shows = np.zeros(images, dtype=bool)
    shows[parents.to_numpy()[held_out_entities(entities.to_numpy(zero_copy_only=False))]] = True
    return shows


def _salted(salt: str | None) -> tuple[str, ...]:
    """Without a salt the purpose alone: the draw that the column `split` was made with."""
    return () if salt is None else (salt,)


def keys(ids_N2: np.ndarray) -> np.ndarray:
    """uint64 that stand for image ids in hashes."""
    return np.asarray(ids_N2[..., 0] ^ mixed(ids_N2[..., 1]))
