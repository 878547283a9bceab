"""Heads that others have trained: from a state dict of Linear layers to a head's file.

Reads    FILE.safetensors, or torch's state dict (FILE.pth), of which nothing but tensors is read
Writes   a Head (heads.py)

A state dict holds weights and their names, and not what stands between the layers. Dropout does nothing where nothing
is trained, so layers with nothing else between are one affine map, and become one: LAION's predictor of aesthetic
scores, five layers of 3.7 MB, is 3 KB. Activations between them have to be said.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from i2e_pipeline.clean.heads import About, Head, HeadError, Layers, layers_of
from i2e_pipeline.core import files
from i2e_pipeline.core.errors import first_line

Activation = Literal["relu", "none"]
_TENSOR = re.compile(r"(?:(?P<layer>.+)\.)?(?P<part>weight|bias)")


def converted(path: str, about: About) -> Head:
    """The head that a file's layers are, with what `about` says of it; `width` is that of the layers.

    Raises HeadError for a file that holds anything but Linear layers that fit together, NoSuchFile for none.
    """
    try:
        named = _layers(_tensors(path))
        numbers = {name: (tensors["weight"], _bias(tensors)) for name, tensors in named.items()}
        layers = layers_of({f"{n}.{part}": value for n, layer in enumerate(numbers.values())
                            for part, value in zip(("weight", "bias"), layer, strict=True)})  # fmt: skip
        if about.activation == "relu":
            _has_room(list(named))
    except ValueError as error:
        raise HeadError(
            f"{path}: {error}: a state dict of Linear layers, the last with one output, is wanted"
        ) from None
    if about.activation == "none":
        layers = [one_map(layers)]
    return Head(About(**{**about.__dict__, "width": layers[0][0].shape[1]}), layers)


def one_map(layers: Layers) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight (outputs, inputs) and bias of layers without anything between."""
    weight, bias = (part.astype(np.float64) for part in layers[0])
    for further, added in layers[1:]:
        weight, bias = further.astype(np.float64) @ weight, further.astype(np.float64) @ bias + added
    return weight.astype(np.float32), bias.astype(np.float32)


def _tensors(path: str) -> Mapping[str, npt.NDArray[Any]]:
    stored = files.read_bytes(path)
    if path.lower().endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return load(stored)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"no file of safetensors ({first_line(error)})") from None
    import torch

    try:
        state = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file and one that would run code are refused in many ways
        raise ValueError(f"no state dict of torch, or one with more than tensors in it ({first_line(error)})") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # of a checkpoint
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError("no state dict: names with tensors")
    return {str(name): value.float().numpy() for name, value in state.items()}


def _layers(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Tensors of each layer by weight and bias, in the order of the layers' names: 2 before 10."""
    found: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for name, value in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or value.ndim != (2 if match["part"] == "weight" else 1):
            raise ValueError(f"{name} {tuple(value.shape)} is of no Linear layer")
        found.setdefault(match["layer"] or "", {})[match["part"]] = value
    if bare := [name for name, of in found.items() if "weight" not in of]:
        raise ValueError(f"{bare[0]} has no weight")
    return {name: found[name] for name in sorted(found, key=_natural)}


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(one), "") if one.isdigit() else (1, 0, one) for one in re.split(r"(\d+)", name)]


def _bias(tensors: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return tensors.get("bias", np.zeros(len(tensors["weight"]), np.float32))


def _has_room(names: list[str]) -> None:
    """Raise ValueError where the names of a Sequential say that two layers follow each other and others do not: what
    stands between has a number, too."""
    places = [int(match[1]) for name in names if (match := re.search(r"(?:^|\.)(\d+)$", name))]
    gaps = [two - one for one, two in pairwise(places)]
    if len(places) == len(names) and gaps and min(gaps) == 1 < max(gaps):
        at = gaps.index(1)
        raise ValueError(f"nothing stands between {names[at]} and {names[at + 1]}, so activation=none is right")
