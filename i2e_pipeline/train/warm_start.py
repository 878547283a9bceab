"""Warm start: a new training whose towers and entity head begin as those of another training's checkpoint are.

Reads    the checkpoint that train.start_from names: its towers (their mean, where one was kept), rows of its head
Writes   the new towers' weights; in words, what begins otherwise

Optimizer, schedule, step and order of the data are the new training's own. What the checkpoint does not have (a text
tower that was never trained, a bias, what distils) stays as the new training has built it. Position tables are resized
to another resolution by open_clip, those of timm trunks by timm; any other shape that differs is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from i2e_pipeline.core import files
from i2e_pipeline.core.config import EncoderConfig, TrainConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.model_name import checkpoint_of
from i2e_pipeline.train import checkpoint, export
from i2e_pipeline.train.checkpoint import Checkpoint, Place
from i2e_pipeline.train.encoders import EncoderError, Towers, conventions, tower_of
from i2e_pipeline.train.strategy import place


class StartError(I2EError, ValueError):
    """A checkpoint that a training cannot begin from; the message says why and the way out."""


def find(named: str, folder: str) -> Place:
    """The checkpoint that train.start_from names, of another folder than the training's. Raises StartError and
    CheckpointError."""
    other, which = checkpoint_of(named)
    if _place(other) == _place(folder):
        raise StartError(
            f"train.start_from={named} is the folder of this training itself, which goes on from its own checkpoints: "
            "leave train.start_from out, or take another train.folder"
        )
    return checkpoint.find(other, which)


def _place(folder: str) -> Path | str:
    """A folder under one of its names, whichever it was given."""
    return Path(folder.removeprefix("file://")).resolve() if files.is_local(folder) else folder.rstrip("/")


def take(towers: Towers, saved: Checkpoint, config: TrainConfig) -> list[str]:
    """Puts the checkpoint's weights into new towers, whole or in shards, one tensor at a time; returns what the log is
    to say. Every rank calls it.

    config   of the new training
    Raises StartError for weights of another architecture, width, activation or normalisation.
    """
    _refuse_other_conventions(export.settings_of(saved).encoder, config.encoder, saved)
    taken, mean = saved.towers, saved.ema or {}
    wanted = ["image"] + ["text"] * export.text_trained(saved)
    targets = towers.state_dict()
    parts = {name: _part(name) for name in targets}
    if beyond := [name for name in taken if tower_of(name) in wanted and name not in targets]:
        raise StartError(f"{_of(saved)} has {beyond[0]}, which the towers of {config.encoder.model} lack: {_REMEDY}")
    fresh, resized = set(), []
    for name, target in targets.items():
        of_texts = parts[name] in ("text tower", "scale", "bias")
        if of_texts and "text" not in wanted:
            fresh.add(parts[name])
            continue
        if name not in taken:
            if tower_of(name):
                raise StartError(f"{_of(saved)} has no {name}, which {config.encoder.model} has: {_REMEDY}")
            fresh.add(parts[name])
            continue
        before = mean[name] if name in mean else taken[name]
        weight = _resized(name, before, target, towers.model)
        if weight.shape != target.shape and parts[name] == "distillation":
            fresh.add(parts[name])  # of another teacher
            continue
        if weight.shape != target.shape:
            shapes = f"{tuple(before.shape)} there and {tuple(target.shape)} in {config.encoder.model}"
            raise StartError(f"{_of(saved)}: {name} is {shapes}: {_REMEDY}")
        if weight is not before:
            places = f"{before.shape[-2]} places to {weight.shape[-2]}"
            resized.append(f"{name.removeprefix('model.')} resized from {places}")
        place(target, weight)
    untaken = ", ".join(part for part in dict.fromkeys(parts.values()) if part in fresh)
    begins = "as train.encoder says" if config.encoder.pretrained else "at random"
    held = _held_out_otherwise(export.settings_of(saved).data.own_split, config.data.own_split)
    return [*resized, *held, *([f"not of the checkpoint, so begins {begins}: {untaken}"] if untaken else [])]


def _held_out_otherwise(before: Mapping[str, float | str], now: Mapping[str, float | str]) -> list[str]:
    if before == now:
        return []
    ways = ", ".join(f"train.data.{name}={value}" for name, value in before.items()) or "the dataset's column split"
    return [f"it held out other images ({ways}): what is held out now may be what it was trained on"]


_REMEDY = "take the train.encoder that it was trained with, or leave train.start_from out"


def _of(saved: Checkpoint) -> str:
    return f"train.start_from: {saved.folder}"


def _part(name: str) -> str:
    if tower := tower_of(name):
        return f"{tower} tower"
    return {"model.logit_scale": "scale", "model.logit_bias": "bias"}.get(name, "distillation")


def _refuse_other_conventions(before: EncoderConfig, now: EncoderConfig, saved: Checkpoint) -> None:
    """Weights of the same shapes that would mean something else."""
    try:
        theirs = conventions(before)
    except EncoderError:
        return  # the folder of its architecture is gone
    for what, ours in conventions(now).items():
        if theirs[what] != ours:
            raise StartError(
                f"{_of(saved)} was trained with {what} {theirs[what]} ({before.model}, pretrained={before.pretrained}),"
                f" and {now.model}, pretrained={now.pretrained} has {ours}: {_REMEDY}"
            )


def _resized(name: str, weight: Tensor, target: Tensor, model: Any) -> Tensor:
    """A position table at the model's resolution or length; anything else, and one that fits, as it is."""
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    if target.shape == weight.shape or target.shape[-1] != weight.shape[-1]:
        return weight
    bare = name.removeprefix("model.")
    state = {bare: weight}
    if bare == "visual.positional_embedding":
        resize_pos_embed(state, model)
    elif bare in ("positional_embedding", "text.positional_embedding"):
        resize_text_pos_embed(state, model)
    elif bare == "visual.attnpool.positional_embedding":
        side = math.isqrt(len(target) - 1)
        return _resampled(weight[None], 1, (side, side))[0]
    elif bare == "visual.trunk.pos_embed" and weight.ndim == 3:
        trunk = model.visual.trunk
        return _resampled(weight, 0 if trunk.no_embed_class else trunk.num_prefix_tokens, trunk.patch_embed.grid_size)
    return state[bare]


def _resampled(table_1LD: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    resampled: Tensor = resample_abs_pos_embed(table_1LD, list(grid), num_prefix_tokens=prefix)
    return resampled
