"""Running mean of the weights over the steps (Polyak averaging), which evaluation and export then use.

Under FSDP each rank averages the shards that it holds: the sums are element by element, so no exchange is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.train.strategy import place


class EmaError(I2EError, ValueError):
    """A stored mean of the weights that does not fit the model."""


class Ema:
    """mean ← mean + (1 − d) · (weights − mean) after each step, d = min(decay, (1 + step) / (10 + step)).

    In the first steps d is smaller, so that the mean forgets the random start. With a d of 0.9999 from the beginning,
    e⁻¹ of the initial weights would still be in it after 10,000 steps.

    Averaged are the parameters, and the buffers of the state dict that are floating point and finite (statistics of
    batch norms). Buffers outside the state dict are constants (open_clip's attention mask, which holds −inf); counters
    are left to the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.mean = {name: tensor.detach().clone() for name, tensor in _averaged(model).items()}
        """By name, laid out as the model is: DTensors under FSDP."""
        self._swapped = False

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After optimiser step `step`, counted from 1."""
        if self._swapped:
            raise RuntimeError("the model holds the mean: update the mean outside of `swapped`")
        decay = min(self.decay, (1 + step) / (10 + step))
        now = _live(model)
        torch._foreach_lerp_([_local(m) for m in self.mean.values()], [_local(now[n]) for n in self.mean], 1 - decay)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model holds the mean, after it its own weights again, bit for bit.

        Contents are exchanged in place, one tensor at a time: FSDP gathers from storage of its own, so a parameter
        pointed at other memory would be evaluated with the old weights.
        """
        self._exchange(model)
        self._swapped = True
        try:
            yield
        finally:
            self._exchange(model)
            self._swapped = False

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        live = _live(model)
        for name, mean in self.mean.items():
            here, there = _local(live[name]), _local(mean)
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes a mean of full tensors, on any layout; each rank keeps its shards. Other names are not looked at."""
        missing = [name for name in self.mean if name not in state]
        if missing:
            raise EmaError(f"the mean of the weights lacks {len(missing)} tensors of the model, first {missing[0]}")
        for name, mean in self.mean.items():
            full = state[name]
            if full.shape != mean.shape:
                raise EmaError(f"the mean of {name} has shape {tuple(full.shape)}, the model {tuple(mean.shape)}")
            place(mean, full)


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in _live(model).items()
        if isinstance(tensor, nn.Parameter)
        or (tensor.is_floating_point() and bool(torch.isfinite(_local(tensor)).all()))
    }


def _live(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of the state dict, not copies; one with two names (tied weights) under the first.

    Asked for its state dict, FSDP puts the parameters back into shards; `parameters()` after an evaluation would give
    the gathered ones, which the next forward pass throws away.
    """
    live: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            live[name] = tensor
    return live


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
