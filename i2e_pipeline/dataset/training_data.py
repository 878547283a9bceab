"""What an encoder was trained on, in a file beside its weights: the trainer writes it, the evaluation reads it.

    training_data.json   {"decontaminated": {"gpr1200": "digest of the set's files"}, "own_split": {}}

null in the place of the sets: it is not known. An export of before this file has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from i2e_pipeline.core import files

FILE = "training_data.json"
_DECONTAMINATED, _OWN_SPLIT = "decontaminated", "own_split"


@dataclass(frozen=True)
class TrainingData:
    decontaminated: dict[str, str] | None = None
    """By name the evaluation sets that were kept out of the training, each with the digest of its files' content; None:
    nothing is known of that."""
    own_split: dict[str, str] = field(default_factory=dict)
    """The settings below train.data by which other images were held out than the dataset's column `split` names; empty:
    it went by that, or nothing is known."""


def write(folder: str, decontaminated: Mapping[str, str] | None, own_split: Mapping[str, float | str]) -> None:
    """Both as of TrainingData."""
    sets = None if decontaminated is None else dict(decontaminated)
    files.write_json(files.join(folder, FILE), {_DECONTAMINATED: sets, _OWN_SPLIT: dict(own_split)})


def read(folder: str) -> TrainingData:
    try:
        said = files.read_json(files.join(folder, FILE))
        sets, split = said.get(_DECONTAMINATED), said.get(_OWN_SPLIT)
    except (FileNotFoundError, ValueError, AttributeError):
        return TrainingData()
    return TrainingData(
        _words(sets) if isinstance(sets, dict) else None, _words(split) if isinstance(split, dict) else {}
    )


def _words(said: Mapping[object, object]) -> dict[str, str]:
    return {str(name): str(value) for name, value in said.items()}
