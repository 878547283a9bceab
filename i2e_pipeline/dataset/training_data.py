"""What an encoder was trained on, in a file beside its weights: the trainer writes it, the evaluation reads it.

    training_data.json   {"decontaminated": {"gpr1200": "digest of the set's files"}}

null in the place of the sets: it is not known. An export of before this file has none.
"""

from __future__ import annotations

from collections.abc import Mapping

from i2e_pipeline.core import files

FILE = "training_data.json"
_DECONTAMINATED = "decontaminated"


def written(folder: str, decontaminated: Mapping[str, str] | None) -> None:
    """decontaminated   as of Published; None: not known"""
    sets = None if decontaminated is None else dict(decontaminated)
    files.write_json(files.join(folder, FILE), {_DECONTAMINATED: sets})


def decontaminated(folder: str) -> dict[str, str] | None:
    """By name the evaluation sets that were kept out of the training, each with the digest of its files' content; None
    where nothing is known of that."""
    try:
        sets = files.read_json(files.join(folder, FILE)).get(_DECONTAMINATED)
    except (FileNotFoundError, ValueError, AttributeError):
        return None
    return {str(name): str(digest) for name, digest in sets.items()} if isinstance(sets, dict) else None
