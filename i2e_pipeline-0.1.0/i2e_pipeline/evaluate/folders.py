"""Folders of images: which files count, and the labels that a folder per class gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def folders_in(root: Path) -> list[Path]:
    """Sorted; those that begin with a dot do not count."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def images_in(place: Path) -> list[Path]:
    """Files with an image's suffix, sorted; those that begin with a dot do not count."""
    return sorted(
        path for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def class_images(place: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Images below a folder per class, relative to `place`, and their labels: places in `classes`.

    A class without a folder has no images.
    """
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if (place / name).is_dir():
            inside = [f"{name}/{path.name}" for path in images_in(place / name)]
            names += inside
            labels += [label] * len(inside)
    return tuple(names), np.array(labels, dtype=np.int64)
