"""Overlap: has the training of an encoder seen the images that it is measured on?

Reads    what the encoder was trained on (dataset/training_data.py), the files of the data set
Writes   a note beside each figure
"""

from __future__ import annotations

from functools import lru_cache

from i2e_pipeline.clean import evaluation_sets
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.dataset.training_data import TrainingData
from i2e_pipeline.evaluate.image_set import OF_DATASET, ImageSet


def notes(trained_on: TrainingData, data: ImageSet, path: str) -> list[str]:
    """What a reader of figures must know of the set, and of what the training says of it, which may be nothing.

    A set is compared by the content of its files, whatever it is called. Of a published I2E dataset, whose other images
    models are trained on, its split is what keeps the two apart.
    """
    name, decontaminated = data.name, trained_on.decontaminated
    if data.split_by == OF_DATASET:
        own = ", ".join(f"train.data.{key}={value}" for key, value in trained_on.own_split.items())
        said = f"the training held out other images than this split does ({own}): it may have seen these"
        return [*data.notes, said] if own else [*data.notes]
    if decontaminated is None:
        return [*data.notes]
    if decontaminated and (here := _digest(name, path)) in decontaminated.values():
        said = "images of this set, and what looks like them, were left out of the training"
    elif name in decontaminated:
        why = "cannot be read as one" if here is None else "has other files"
        said = f"a set called {name} was left out of the training, and this one {why}: it may have been seen"
    else:
        said = "images of this set were not left out of the training: it may have been seen"
    return [*data.notes, said]


@lru_cache(maxsize=64)
def _digest(name: str, path: str) -> str | None:
    try:
        return evaluation_sets.digest_of(name, (path,))
    except I2EError:
        return None
