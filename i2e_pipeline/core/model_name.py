"""How a model is named, in `score.model`, `train.encoder.model` and `evaluate.models`: one grammar for all three.

    NAME@WEIGHTS           open_clip's architecture NAME (ViT-B-32, MobileCLIP2-S0 …); WEIGHTS is a tag that open_clip
                           knows for it (laion2b_s34b_b79k), or a file of weights
    local-dir:FOLDER       a folder with open_clip_config.json and weights
    hf-hub:ORG/NAME        an open_clip model of the Hugging Face hub
    MODEL@random           any of these three with random weights
    hf:FOLDER              a Hugging Face model (transformers)        `i2e evaluate` alone
    vectors:FOLDER         stored vectors instead of a model          `i2e evaluate` alone
    train:FOLDER[@WHICH]   a checkpoint of a training: its step, best or latest (which it is where nothing is said)
                                                                      `i2e evaluate`, `train.start_from`
    LABEL=MODEL            any of these under another name in tables  `i2e evaluate` alone

Paths may hold any sign. Of `train:` and `local-dir:` the last @ counts alone, and only with one of these words (or a
step's digits) behind it to the end: `train:/data/run@v2/train` is a folder, `train:/data/run@v2@1200` its step 1200. A
folder whose own name ends so is written with a / behind it: `train:/data/run@2/`. Nothing is looked up, so a name means
the same wherever it is read. A LABEL ends at the first =, and has no `:`, `/` or `@`, as every MODEL in a folder has:
`local-dir:/data/lang=en/model` bears none.

A training begins with random weights where none are named; `local-dir:FOLDER@folder` begins with those of the folder.
In place of NAME@WEIGHTS the sections `score` and `train.encoder` also take `model: NAME` and `pretrained: WEIGHTS`, and
this is how a config holds it: both spellings are one setting, with one fingerprint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError

Kind = Literal["name", "local-dir", "hf-hub", "hf", "vectors", "train"]
RANDOM, FOLDER = "random", "folder"
"""Words that stand for weights: those drawn at random, those that lie in a local-dir."""
_PREFIXES: tuple[Kind, ...] = ("local-dir", "hf-hub", "hf", "vectors", "train")
_CHECKPOINT = re.compile(r"(.+)@([0-9]+|best|latest)", re.DOTALL)
_NOT_IN_LABELS = re.compile(r"[=:/@]")


class ModelNameError(I2EError, ValueError):
    """A name that is not of this grammar, or not of the part of it that a command takes."""


@dataclass(frozen=True)
class ModelName:
    """A name, taken apart."""

    kind: Kind
    model: str
    """What loads it: as open_clip takes it, with `local-dir:` or `hf-hub:`; of hf:, vectors: and train: the folder
    alone."""
    weights: str | None = None
    """Behind the @: a tag, a file, "random" or "folder"; of train: a step, "best" or "latest"; None: nothing was
    said."""

    @property
    def folder(self) -> str | None:
        """The folder of a local-dir; None of all others."""
        return self.model.removeprefix("local-dir:") if self.kind == "local-dir" else None


def parse(text: str) -> ModelName:
    """Takes MODEL apart. Raises ModelNameError where it names nothing."""
    kind = next((k for k in _PREFIXES if text.startswith(f"{k}:")), None)
    if kind is None:
        # At the first @: a file of weights may have one in its path, a name of open_clip's has none.
        name, at, weights = text.partition("@")
        if not name or (at and not weights):
            raise ModelNameError(f"{text!r} names no model: write NAME@WEIGHTS, local-dir:FOLDER or hf-hub:ORG/NAME")
        return ModelName("name", name, files.at_home(weights) or None)
    if not text.removeprefix(f"{kind}:"):
        raise ModelNameError(f"{text!r} names no model: a folder or name is wanted behind {kind}:")
    if kind != "hf-hub":
        text = f"{kind}:{files.at_home(text.removeprefix(f'{kind}:'))}"
    if kind in ("hf", "vectors"):
        return ModelName(kind, text.removeprefix(f"{kind}:"))
    if kind == "train":
        folder = text.removeprefix("train:")
        which = _CHECKPOINT.fullmatch(folder)
        return ModelName(kind, which[1], which[2]) if which else ModelName(kind, folder)
    for word in (RANDOM, FOLDER) if kind == "local-dir" else (RANDOM,):  # any other @ is part of the folder's name
        if text.endswith(f"@{word}"):
            return ModelName(kind, text.removesuffix(f"@{word}"), word)
    return ModelName(kind, text)


def checkpoint_of(text: str) -> tuple[str, str]:
    """(folder, step | "best" | "latest") of FOLDER[@WHICH], with or without `train:` before it. Raises
    ModelNameError."""
    named = parse(f"train:{text.removeprefix('train:')}")
    return named.model, named.weights or "latest"


def split_label(spec: str) -> tuple[str, str]:
    """(label, MODEL) of `[LABEL=]MODEL`; without a label the model's name, of a folder its last part.

    Raises ModelNameError where there is no model.
    """
    label, equals, model = spec.partition("=")
    if not equals or _NOT_IN_LABELS.search(label):
        label, model = "", spec
    if not model:
        raise ModelNameError(f"{spec!r} names no model")
    if label:
        return label, model
    named = parse(model)
    bare = model.removesuffix(f"@{RANDOM}") if named.weights == RANDOM else model
    rest = bare if named.kind == "name" else bare.removeprefix(f"{named.kind}:")
    name = rest if named.kind == "hf-hub" else rest.rstrip("/").rsplit("/", 1)[-1]
    return f"{name or bare} (untrained)" if bare != model else name or bare, model


def labelled(label: str, model: str) -> str:
    """`LABEL=MODEL`, which `split_label` takes apart as it was put together; signs that a label cannot have are
    blanks."""
    return f"{_NOT_IN_LABELS.sub(' ', label).strip() or 'model'}={model}"


def two_fields(values: Any, untrained: bool) -> Any:
    """A section's values with `model: NAME@WEIGHTS` written as its two fields, model and pretrained.

    untrained   whether random weights are of use to the section: a training begins with them, a score needs trained
                ones
    What is no mapping with a text in `model` is returned as it is, for pydantic to refuse. Raises ModelNameError.
    """
    model = values.get("model") if isinstance(values, dict) else None
    if not isinstance(model, str) or not model:
        return values
    named = parse(model)
    if named.kind in ("hf", "vectors", "train"):
        raise ModelNameError(f"model: {model} is for `i2e evaluate` alone: an open_clip model is wanted here")
    if named.weights is None:
        return {**values, "model": named.model}
    other = values.get("pretrained")
    if other is not None and other != named.weights:
        raise ModelNameError(f"model: {model} names its weights, and pretrained: {other} names others: leave one out")
    weights: str | None = named.weights
    if weights == RANDOM:
        if not untrained:
            raise ModelNameError(f"model: {model} has random weights, with which no score means anything: name trained")
        weights = None
    elif named.kind == "local-dir" and not untrained:
        weights = None  # where trained weights are wanted, those of the folder are what local-dir means
    return {**values, "model": named.model, "pretrained": weights}
