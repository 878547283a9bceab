"""Folders of images: which files count, and the labels that a folder per class gives them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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


def images_below(root: Path) -> Iterator[str]:
    """Files with an image's suffix anywhere below a folder, relative to it, sorted within each folder.

    Folders that are links are looked into, since large collections often lie on another disk; one that leads back to a
    folder above it is not. What begins with a dot does not count.
    """
    above = {str(root): {os.path.realpath(root)}}
    for place, folders, names in os.walk(root, followlinks=True):
        trail = above.pop(place)
        inner = {name: os.path.realpath(os.path.join(place, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name, real in inner.items() if real not in trail)
        above |= {os.path.join(place, name): trail | {inner[name]} for name in folders}
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.relpath(os.path.join(place, name), root)
