"""Overlap: has the training of an encoder seen the images that it is measured on?

Reads    what the encoder was trained on (dataset/training_data.py), the files of the data set
Writes   a note beside each figure
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from i2e_pipeline.clean import evaluation_sets
from i2e_pipeline.core.errors import I2EError


def notes(decontaminated: Mapping[str, str] | None, name: str, path: str) -> list[str]:
    """What a reader of figures must know; nothing where the training says nothing of it.

    decontaminated   by name the sets whose images were left out of the training, with the digests of their files
    A set is compared by the content of its files, whatever it is called.
    """
    if decontaminated is None:
        return []
    if decontaminated and (here := _digest(name, path)) in decontaminated.values():
        return ["images of this set, and what looks like them, were left out of the training"]
    if name in decontaminated:
        why = "cannot be read as one" if here is None else "has other files"
        return [f"a set called {name} was left out of the training, and this one {why}: it may have been seen"]
    return ["images of this set were not left out of the training: it may have been seen"]


@lru_cache(maxsize=64)
def _digest(name: str, path: str) -> str | None:
    try:
        return evaluation_sets.digest_of(name, (path,))
    except I2EError:
        return None
