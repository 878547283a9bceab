"""Model card: the README of an export, from facts that a training has. What it does not have is not said.

Reads    settings, the dataset's facts, held-out figures, what the towers are
Writes   README.md: how to load it · data · training · figures · limits · settings
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.core.version import __version__
from i2e_pipeline.dataset.published import Published
from i2e_pipeline.dataset.split import Side
from i2e_pipeline.train import journal
from i2e_pipeline.train.encoders import Towers
from i2e_pipeline.train.recipes import recipe
from i2e_pipeline.train.samples import Samples

_LEARNT = {
    "supervised": "entities are told apart by a cosine softmax with a margin",
    "contrastive": "images against texts drawn for them: alt-text, name, or name and description of the entity",
    "multi_task": "entities are told apart, and images contrasted with texts, by one image tower",
    "clip_alt_text": "images against their alt-texts, without a look at labels",
    "clip_entity_text": "images against the names and descriptions of their entities",
}
_MEASURED = {
    "mAP": "retrieval among images of entities that were not trained on, by the GPR1200 protocol",
    "knn": "20 weighted nearest training images, for held-out images of entities that were trained on",
    "zero_shot": "the nearest of the held-out images' entity texts is that of their own entity",
}
DECONTAMINATED = "evaluation sets whose images were left out"
"""Of `data_of`."""


@dataclass(frozen=True)
class Card:
    """What is known of the weights that are exported."""

    config: TrainConfig
    step: int | None = None
    """Steps that they were trained for."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """`data_of`."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Figures of the weights that the training began with."""
    figures: Mapping[str, float] = field(default_factory=dict)
    text_trained: bool = True
    start_from: str | None = None
    """The checkpoint that the training began with."""


def data_of(published: Published, samples: Samples) -> dict[str, Any]:
    """What a card says of the data; JSON, for the journal keeps it."""
    sides = samples.index.sides
    shown_C = published.entities.column("images").to_numpy() > 0
    shown_C[samples.held_out_entities] = False
    return {
        "dataset": published.folder,
        "fingerprint": published.fingerprint,
        "images": len(samples),
        "entities": int(shown_C.sum()),
        "held-out entities": len(samples.held_out_entities),
        "images of held-out entities": sides[Side.OF_HELD_OUT_ENTITY],
        "held-out images of the other entities": sides[Side.HELD_OUT_IMAGE],
        DECONTAMINATED: published.decontaminated,
    }


def of_training(folder: str | Path, config: TrainConfig, step: int, text_trained: bool) -> Card:
    """The card of a step of the training in `folder`, as its journal tells it."""
    told = [row for row in journal.rows(folder) if row["step"] <= step]
    starts = [row for row in told if row["kind"] == "start"]
    measured = {row["step"]: row["figures"] for row in told if row["kind"] == "evaluation"}
    return Card(
        config,
        step,
        data=next((row["data"] for row in reversed(starts) if "data" in row), {}),
        before=measured.get(0, {}),
        figures=measured.get(step, {}),
        text_trained=text_trained,
        start_from=next((row["start_from"] for row in starts if "start_from" in row), None),
    )


def text(card: Card, towers: Towers, no_huggingface: str | None) -> str:
    """README.md.

    no_huggingface   why there is no folder for transformers; None: there is one
    """
    parts = [
        _head(card.config),
        _loading(no_huggingface),
        _data(card.data),
        _training(card, towers),
        _figures(card),
        _limits(card, towers, no_huggingface),
        "## Settings\n\n```yaml\n"
        + yaml.safe_dump(card.config.shown(), sort_keys=False, allow_unicode=True).rstrip()
        + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(config: TrainConfig) -> str:
    name = config.encoder.model.rpartition("/")[2].removeprefix("local-dir:")
    return (
        f"# {name}, recipe {config.recipe}\n\n"
        f"An image and a text tower, trained on an I2E dataset by i2e_pipeline {__version__}."
    )


def _loading(no_huggingface: str | None) -> str:
    lines = [
        "import open_clip",
        "",
        'folder = "."  # where this file lies',
        'model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}/open_clip")',
        'tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}/open_clip")',
        "model = model.eval()",
    ]
    if no_huggingface is None:
        transformers = [
            "import transformers",
            "",
            'folder = "."',
            'model = transformers.CLIPModel.from_pretrained(f"{folder}/huggingface")',
            'processor = transformers.CLIPProcessor.from_pretrained(f"{folder}/huggingface")',
        ]
        lines += ["```", "", "or", "", "```python", *transformers]
    return "\n".join(["## Load it", "", "```python", *lines, "```"])


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return ""
    return "## Data\n\n" + _table(("", ""), [(name, _value(value)) for name, value in data.items()])


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(value) or "none"
    return f"{value:,}" if isinstance(value, int) else f"`{value}`"


def _training(card: Card, towers: Towers) -> str:
    config, optimizer = card.config, card.config.optimizer
    losses = config.loss.contrastive if recipe(config).uses_text else None
    begun = card.start_from or (f"weights `{config.encoder.pretrained}`" if config.encoder.pretrained else "at random")
    rows: list[tuple[str, Any]] = [
        ("recipe", f"{config.recipe}: {_LEARNT[config.recipe]}"),
        ("encoder", config.encoder.model),
        ("began", begun),
        ("image size", f"{towers.image_size} × {towers.image_size} pixels"),
        ("width of the vectors", towers.width),
        ("steps", None if card.step is None else f"{card.step:,}"),
        ("images of a step", f"{config.data.batch_size:,}"),
        ("learning rate", f"{optimizer.learning_rate:g}"),
        ("weight decay", f"{optimizer.weight_decay:g}"),
        ("frozen", ", ".join(optimizer.frozen) or None),
        ("contrastive loss", losses),
        ("distilled vectors, weight", config.loss.distillation or None),
        ("mean of the weights, decay", optimizer.ema),
        ("precision", config.precision),
    ]
    return "## Training\n\n" + _table(("", ""), [(name, value) for name, value in rows if value is not None])


def _figures(card: Card) -> str:
    if not card.figures:
        return ""
    rows = []
    for name, value in card.figures.items():
        begun = f"{card.before[name]:.4g}" if name in card.before else ""
        what = _MEASURED.get(name, "another image set, by a protocol of `i2e evaluate`")
        rows.append((name, f"{value:.4g}", begun, what))
    return "## Figures\n\n" + _table(("", "figure", "before the first step", "what it is"), rows)


def _limits(card: Card, towers: Towers, no_huggingface: str | None) -> str:
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits_of(card, towers, no_huggingface))


def _limits_of(card: Card, towers: Towers, no_huggingface: str | None) -> Iterator[str]:
    yield "Labels of an I2E dataset are chosen by models, so some are wrong: the dataset's card says how."
    if any(name in card.figures for name in _MEASURED):
        yield "The held-out images are of the dataset that was trained on: other pictures may be harder."
    if not card.text_trained:
        yield "The text tower was not trained: its weights are random."
    if towers.preprocessing.get("resize_mode", "shortest") == "shortest":
        yield f"Of an image it sees the square in the middle, at {towers.image_size} × {towers.image_size} pixels."
    if card.config.loss.contrastive == "siglip" and no_huggingface is None:
        yield "CLIPModel has no bias: its cosines are the same, its `logits_per_image` lack that constant."
    if no_huggingface is not None:
        yield f"No Hugging Face folder: {no_huggingface}."


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
