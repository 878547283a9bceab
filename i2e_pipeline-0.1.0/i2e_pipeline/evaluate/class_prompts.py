"""Class names and templates of the known data sets, from the data files in class_names/ (each names its source)."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from i2e_pipeline.evaluate.image_set import DatasetError


def class_names(known: str) -> dict[str, str]:
    """What the classes of a known data set are called on the disk -> in a prompt; in the order of their indices."""
    names: dict[str, str] = prompts(known)["classes"]
    return names


def prompts(known: str) -> dict[str, Any]:
    """`source`, `classes` and `templates` of a known data set; raises DatasetError where it has none."""
    file = resources.files(__package__) / "class_names" / f"{known}.json"
    if not file.is_file():
        raise DatasetError(f"{known} has no class names and templates (i2e_pipeline/evaluate/class_names)")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
