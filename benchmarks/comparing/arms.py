"""What is compared: recipes, and the settings among which each may choose, as many for one as for the other."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

Settings = tuple[str, ...]
"""Overrides, section.key=value."""

_RATES = [f"train.optimizer.learning_rate={rate}" for rate in ("0.002", "0.001", "0.004")]
_MORE_RATES = [*_RATES, *(f"train.optimizer.learning_rate={rate}" for rate in ("0.0005", "0.0014", "0.0028", "0.008"))]
_HEAD_RATES = [f"train.head.learning_rate={rate}" for rate in ("0.1", "0.05", "0.2")]
_ALT_TEXT = [f"train.text.alt_text={weight}" for weight in ("0.5", "0.0", "0.2", "1.5")]
_ENTITY_TEXT = [
    ("train.text.name=0.25", "train.text.name_and_description=0.25"),
    ("train.text.name=0.5", "train.text.name_and_description=0"),
    ("train.text.name=0", "train.text.name_and_description=0.5"),
]
_LAMBDA = [f"train.loss.classification={share}" for share in ("0.5", "0.25", "0.75")]

_CHOICES: dict[str, list[list[str] | list[tuple[str, str]]]] = {
    "clip_alt_text": [_MORE_RATES],
    "supervised": [_RATES, _HEAD_RATES],
    "contrastive": [_RATES, _ALT_TEXT, _ENTITY_TEXT],
    "multi_task": [_RATES, _LAMBDA, _ALT_TEXT, _ENTITY_TEXT],
    "clip_entity_text": [_MORE_RATES, _ENTITY_TEXT],
}
RECIPES = tuple(_CHOICES)
CONTROL = "clip_alt_text"


def candidates(recipe: str, budget: int) -> list[Settings]:
    """So many settings of a recipe to choose from: the defaults first, the others drawn from all combinations. Raises
    ValueError where there are not so many."""
    combined = [
        tuple(itertools.chain.from_iterable([part] if isinstance(part, str) else part for part in parts))
        for parts in itertools.product(*_CHOICES[recipe])
    ]
    if budget > len(combined):
        raise ValueError(f"{recipe} has {len(combined)} settings to choose from, and {budget} were asked for")
    return [combined[0], *random.Random(recipe).sample(combined[1:], budget - 1)]


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    name: str
    recipe: str
    true_labels: bool = False
    further: Settings = ()


ARMS = (
    *(Arm(recipe, recipe) for recipe in RECIPES),
    Arm("multi_task, no alt-text", "multi_task", further=("train.text.alt_text=0",)),
    Arm("supervised, true labels", "supervised", true_labels=True),
    Arm("multi_task, true labels", "multi_task", true_labels=True),
)
UNTRAINED = Arm("untrained", "clip_entity_text")
DIFFERENCES = (
    *((recipe, CONTROL) for recipe in ("supervised", "contrastive", "multi_task", "clip_entity_text")),
    ("multi_task", "supervised"),
    ("multi_task", "contrastive"),
    ("supervised", "contrastive"),
    ("clip_entity_text", "multi_task"),
    ("clip_entity_text", "multi_task, no alt-text"),
    ("supervised, true labels", "supervised"),
    ("multi_task, true labels", "multi_task"),
)
"""What the paper claims, and what its labels cost."""
