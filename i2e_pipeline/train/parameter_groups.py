"""Parameter groups: which parameters of the towers are trained, at which rate, and which of them decay.

Reads    Towers · train.optimizer
Writes   AdamW's groups. `lr_scale` of a group times the schedule's rate is its learning rate

Depths of a tower of n blocks: 0 what comes before them (patches, tokens, positions), 1 … n the blocks, n + 1 what comes
after. Depth d is trained at layer_decay^(n + 1 − d) of the tower's rate, as in BEiT (arXiv 2106.08254) and timm;
of a timm trunk it is timm that tells the depths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from i2e_pipeline.core.config import OptimizerConfig, TowerConfig
from i2e_pipeline.train.encoders import Towers, blocks_of, tower_of

_AFTER_THE_BLOCKS = re.compile(
    r"(^|\.)(proj|ln_post|ln_final|text_projection|attn_pool|attnpool|pooler|head|norm|final_norm|final_layer_norm)\b"
)

_EMBEDDINGS = re.compile(r"(^|\.)embeddings?\.")
"""Of Hugging Face's towers; some have a norm of their own."""


def groups_of(towers: Towers, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of what is trained, those of equal rate and decay as one; what is frozen is in none."""
    scales = {
        name: scale
        for tower, settings in (("image", config.image), ("text", config.text))
        for name, scale in _scales(depths_of(towers, tower), settings, config.learning_rate).items()
    }
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in towers.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if towers.decayed(name, parameter) else 0.0
            found.setdefault((scales.get(name, 1.0), decay), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "lr": scale * config.learning_rate, "weight_decay": decay}
        for (scale, decay), parameters in found.items()
    ]


def _scales(depths: dict[str, int], settings: TowerConfig, learning_rate: float) -> dict[str, float]:
    rate = settings.learning_rate or learning_rate
    top = max(depths.values())
    return {name: rate / learning_rate * settings.layer_decay ** (top - depth) for name, depth in depths.items()}


def depths_of(towers: Towers, tower: str) -> dict[str, int]:
    """Depth of each parameter of a tower, by its name in Towers."""
    children = dict(towers.model.named_children())
    visual = children.pop("visual")
    blocks = blocks_of(visual) if tower == "image" else [b for child in children.values() for b in blocks_of(child)]
    inside = {id(p): depth for depth, block in enumerate(blocks, 1) for p in block.parameters()}
    found = {
        name: inside.get(id(p)) or (len(blocks) + 1 if comes_after_blocks(name) else 0)
        for name, p in towers.named_parameters()
        if tower_of(name) == tower
    }
    if tower == "image" and hasattr(visual, "trunk"):
        of_trunk = dict(_of_trunk(visual.trunk))
        top = max(of_trunk.values())
        found = {name: of_trunk.get(name.removeprefix("model.visual.trunk."), top) for name in found}
    return found


def comes_after_blocks(name: str) -> bool:
    """Whether a parameter that is in no block comes after them, by its name."""
    return _AFTER_THE_BLOCKS.search(name) is not None and _EMBEDDINGS.search(name) is None


def _of_trunk(trunk: Any) -> Iterator[tuple[str, int]]:
    from timm.models import group_parameters

    for name, depth in group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True).items():
        yield name, int(depth)
