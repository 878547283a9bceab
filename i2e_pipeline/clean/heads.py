"""Heads: small models that read one thing of an image's vector, such as whether it has a watermark.

Reads    FILE.safetensors of `i2e head train` or of anybody's, in this form; or a function of somebody's own

A file holds the tensors `0.weight` (outputs, inputs), `0.bias` (outputs), `1.weight` … in float32 or float16, the last
with one output, and under `i2e_head` in its metadata a text of JSON with the fields of `About`. A file is data: nothing
of it is run. Scores are rounded, so that they do not depend on the batch.

Legend: N images, D the width of their vectors.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from i2e_pipeline.core import files
from i2e_pipeline.core.config import ModelConfig, PolicyHead, content
from i2e_pipeline.core.errors import I2EError, first_line
from i2e_pipeline.engine.arrange import from_place, place_of
from i2e_pipeline.images import encoder

FORMAT = 1
_ABOUT = "i2e_head"
_DIGITS = 5
REMEDY = "`i2e head train` writes one, and docs/clean.md says what it holds"

F32 = npt.NDArray[np.float32]
Layers = Sequence[tuple[F32, F32]]


class HeadError(I2EError, ValueError):
    """A head that cannot be used; the message names its file, what is wrong and the remedy."""


class HeadFailed(RuntimeError):
    """A head that raised: what it raised is the cause, and the message names head and rows. Spark tries the task again,
    as after every exception: a function of somebody's own may have failed for what passes."""


@dataclass(frozen=True)
class About:
    """What a file says of its head."""

    finds: str
    """What its number is of, in a few words."""
    model: str
    """The model whose vectors it reads, by name."""
    vectors_of: str
    """`vectors_of` of that model."""
    width: int
    """D."""
    threshold: float
    drops: Literal["above", "below"] = "above"
    """Which images are left out: those whose number is the threshold or more, or those whose number is less."""
    output: Literal["probability", "number"] = "probability"
    """probability: the last layer's output goes through a sigmoid."""
    activation: Literal["relu", "none"] = "relu"
    """Between layers."""
    scale: Sequence[float] | None = None
    """Lowest and highest number that it was made to give, such as 1 and 10. None: it is not known; probabilities have
    0 and 1."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """How often it is right, and on what."""


@dataclass(frozen=True)
class Head:
    about: About
    layers: Layers
    """(weight (outputs, inputs), bias (outputs)) of each."""

    @property
    def scale(self) -> tuple[float, float]:
        """Between which numbers a threshold can mean something."""
        low, high = (0, 1) if self.about.output == "probability" else self.about.scale or (-math.inf, math.inf)
        return low, high

    def __call__(self, vectors_ND: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """A number for each vector."""
        x = vectors_ND.astype(np.float64)
        for place, (weight, bias) in enumerate(self.layers):
            x = x @ weight.astype(np.float64).T + bias.astype(np.float64)
            if self.about.activation == "relu" and place + 1 < len(self.layers):
                x = np.maximum(x, 0)
        number_N = x[:, 0]
        if self.about.output == "probability":
            number_N = 0.5 * (1 + np.tanh(0.5 * number_N))
        return np.asarray(np.round(number_N, _DIGITS))


@dataclass(frozen=True)
class Judge:
    """A head as a config names it, for a kernel."""

    reason: str
    name: str
    """For details: the file's name, or the function's."""
    score: Callable[[F32], npt.NDArray[Any]]
    threshold: float
    drops: Literal["above", "below"]

    def __call__(
        self, vectors_ND: npt.NDArray[Any], where: str = ""
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """The number of each vector, and which are left out.

        where   what images these are, for messages
        Raises HeadError for a function that gives no numbers, HeadFailed for one that raises.
        """
        of = f" of {where}" if where else ""
        try:
            number_N = np.asarray(self.score(vectors_ND.astype(np.float32)), dtype=np.float64).reshape(-1)
        except Exception as error:
            raise HeadFailed(f"{self.name} fails on float32 vectors {vectors_ND.shape}{of}: {error!r}") from error
        if number_N.shape != (len(vectors_ND),) or not np.isfinite(number_N).all():
            raise HeadError(
                f"{self.name} gave {len(number_N)} numbers for {len(vectors_ND)} vectors{of}, or some that are not "
                "finite: a head takes float32 (images, width) and gives one number for each image"
            )
        gone_N = number_N >= self.threshold if self.drops == "above" else number_N < self.threshold
        return number_N, gone_N


def vectors_of(model: ModelConfig) -> str:
    """Names a model by its content: heads that were fitted to its vectors fit no others.

    Precision is no part of it: a head reads vectors in bfloat16 as it reads those in float32.
    """
    return encoder.fingerprint(model.model_copy(update={"dtype": "float32"}))


def model_name(model: ModelConfig) -> str:
    """What people call it."""
    name = model.model.rstrip("/").rpartition("/")[2]
    return f"{name}@{model.pretrained}" if model.pretrained else name


def judge(config: PolicyHead, number: int, score: ModelConfig) -> Judge:
    """The head that a config names. Raises HeadError where it cannot be had or does not fit the model.

    number   its place in clean.heads, for messages
    score    the model of `score`
    """
    place = f"clean.heads.{number}.head={config.head}"
    low = config.reason == "low_aesthetic"
    if config.is_code:
        function = from_place(config.head, f"clean.heads.{number}.head")
        if not callable(function) or config.threshold is None:
            raise HeadError(f"{place} is {function!r}, and no function of vectors")
        return Judge(config.reason, config.head, function, config.threshold, "below" if low else "above")
    head = read(config.head)
    if (head.about.drops == "below") != low:
        raise HeadError(
            f"{place} leaves images out whose number is {head.about.drops} its threshold ({head.about.finds}), and "
            f"reason={config.reason} those {'below' if low else 'above'}: give it the reason that it was made for"
        )
    model = config.encoder(score)
    if (here := vectors_of(model)) != head.about.vectors_of:
        which = f"clean.heads.{number}.model={config.model}" if config.model else f"score.model={score.model}"
        raise HeadError(
            f"{place} reads vectors of {head.about.model} ({head.about.vectors_of[:12]}), and {which} is {here[:12]}: "
            f"set clean.heads.{number}.model to {head.about.model}, or train a head on this model's vectors "
            "(`i2e head train`)"
        )
    threshold = head.about.threshold if config.threshold is None else config.threshold
    low_end, high_end = head.scale
    if not low_end <= threshold <= high_end:
        raise HeadError(
            f"clean.heads.{number}.threshold={threshold:g}: the numbers of {config.head} ({head.about.finds}) lie "
            f"between {low_end:g} and {high_end:g}; its own threshold is {head.about.threshold:g}"
        )
    return Judge(config.reason, config.head.rpartition("/")[2], head, threshold, head.about.drops)


def content_of(config: PolicyHead, number: int) -> str:
    """Names what a head is made of: its file; of a function, the file that it stands in. Raises NoSuchFile,
    StageError."""
    return content(place_of(config.head, f"clean.heads.{number}.head") if config.is_code else config.head)


def read(path: str) -> Head:
    """Raises HeadError for a file that is none, NoSuchFile where there is no file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    stored = files.read_bytes(path)
    try:
        tensors = load(stored)
        length = int.from_bytes(stored[:8], "little")
        said = json.loads(stored[8 : 8 + length]).get("__metadata__", {}).get(_ABOUT)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HeadError(f"{path} is no file of safetensors ({first_line(error)}): {REMEDY}") from None
    if said is None:
        raise HeadError(f"{path} has no {_ABOUT} in its metadata, so nothing says what it finds: {REMEDY}")
    try:
        return _checked(_about(json.loads(said)), layers_of(tensors))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise HeadError(f"{path} is no head: {first_line(error)}: {REMEDY}") from None


def _about(said: Any) -> About:
    if not isinstance(said, dict):
        raise ValueError(f"{_ABOUT} is no object")
    if said.get("format") != FORMAT:
        raise ValueError(f"its format is {said.get('format')!r}, and {FORMAT} is known")
    known = {f.name: f for f in dataclasses.fields(About)}
    if unknown := sorted(set(said) - {*known, "format"}):
        raise ValueError(f"{', '.join(unknown)} is not known")
    about = About(**{key: value for key, value in said.items() if key != "format"})
    for name in ("finds", "model", "vectors_of"):
        if not isinstance(getattr(about, name), str):
            raise ValueError(f"{name} is no text")
    number = about.threshold
    if not _is_number(number):
        raise ValueError("threshold is no number")
    if not isinstance(about.measured, dict):
        raise ValueError("measured is no object")
    for name, words in (("drops", _DROPS), ("output", _OUTPUTS), ("activation", _ACTIVATIONS)):
        if getattr(about, name) not in words:
            raise ValueError(f"{name} is {getattr(about, name)!r}, and not {' or '.join(words)}")
    scale = (0, 1) if about.output == "probability" else about.scale
    if scale is not None:
        if not (isinstance(scale, list | tuple) and len(scale) == 2 and all(map(_is_number, scale))):
            raise ValueError(f"scale is {scale!r}, and no two numbers")
        if not scale[0] <= number <= scale[1]:
            raise ValueError(f"threshold is {number:g}, and its numbers lie between {scale[0]:g} and {scale[1]:g}")
    return about


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_DROPS, _OUTPUTS, _ACTIVATIONS = ("above", "below"), ("probability", "number"), ("relu", "none")


def layers_of(tensors: Mapping[str, npt.NDArray[Any]]) -> Layers:
    """Layers that fit together, in float32, of the tensors `0.weight`, `0.bias`, `1.weight` … Raises ValueError."""
    count = len(tensors) // 2
    names = [f"{n}.{part}" for n in range(count) for part in ("weight", "bias")]
    if not count or sorted(names) != sorted(tensors):
        raise ValueError(f"its tensors are {', '.join(sorted(tensors)) or 'none'}, and not 0.weight, 0.bias …")
    layers = [(tensors[f"{n}.weight"], tensors[f"{n}.bias"]) for n in range(count)]
    inputs = None
    for n, (weight, bias) in enumerate(layers):
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or (inputs is not None and weight.shape[1] != inputs):
            raise ValueError(f"layer {n} is {weight.shape} with a bias of {bias.shape} and does not fit")
        with np.errstate(over="ignore"):
            layers[n] = weight, bias = weight.astype(np.float32), bias.astype(np.float32)
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"layer {n} has numbers that are not finite in float32")
        inputs = weight.shape[0]
    if inputs != 1:
        raise ValueError(f"its last layer has {inputs} outputs, and not one")
    return layers


def write(path: str, head: Head) -> None:
    """Raises HeadError for layers that do not fit together."""
    from safetensors.numpy import save

    tensors = {f"{n}.{part}": np.ascontiguousarray(value, dtype=np.float32) for n, layer in enumerate(head.layers)
               for part, value in zip(("weight", "bias"), layer, strict=True)}  # fmt: skip
    try:
        _checked(_about({"format": FORMAT, **dataclasses.asdict(head.about)}), layers_of(tensors))
    except ValueError as error:
        raise HeadError(f"{path}: {error}") from None
    said = json.dumps({"format": FORMAT, **dataclasses.asdict(head.about)}, sort_keys=True)
    if files.is_local(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, save(tensors, metadata={_ABOUT: said}))


def _checked(about: About, layers: Layers) -> Head:
    if layers[0][0].shape[1] != about.width:
        raise ValueError(f"its width is {about.width!r}, and its first layer takes {layers[0][0].shape[1]}")
    return Head(about, layers)
