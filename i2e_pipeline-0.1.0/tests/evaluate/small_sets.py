"""Small sets of coloured pictures, and folders of stored vectors for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from i2e_pipeline.core.config import Config, from_tree
from i2e_pipeline.evaluate.datasets import open_dataset

CLASSES = 12
EACH = 8


def coloured(folder: Path, classes: int = CLASSES, each: int = EACH) -> Path:
    """A folder of classes, each of one colour with noise."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        place = folder / f"colour {c:02d}"
        place.mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for n in range(each):
            pixels = np.clip(colour + rng.normal(0, 12, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{n}.png")
    return folder


def vectors(folder: Path, name: str, path: Path, noise: float, seed: int = 0) -> str:
    """The spec of stored vectors of a set: the class's own direction, and noise."""
    labels = open_dataset(name, str(path)).labels_N
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(labels.max() + 1, 16))
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", features=(own[labels] + noise * rng.normal(size=(len(labels), 16))))
    return f"vectors:{folder}"


def settings(tmp_path: Path, **evaluate: object) -> Config:
    return from_tree({"output": str(tmp_path / "out"), "evaluate": {"projection": "none", **evaluate}}, "a test")
