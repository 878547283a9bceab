"""A device that holds no data, torch's meta device: what would make a host wait for a card raises there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from i2e_pipeline.train.parallel import World

DEVICE = torch.device("meta")


class Alike(World):
    """One of several ranks whose partners have what it has."""

    def gather_fixed(self, x_B: Tensor) -> Tensor:
        return torch.cat([x_B] * self.size)

    def scatter_sum(self, x_ND: Tensor) -> Tensor:
        return x_ND[: len(x_ND) // self.size] * self.size

    def sum(self, x: Tensor) -> Tensor:
        return x.detach() * self.size


class _NoMaskIsWrittenThrough(TorchDispatchMode):
    """The one wait that meta lets pass: x[mask] = y."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.index_put_, torch.ops.aten.index_put):
            masks = [x for x in args[1] if x is not None and x.dtype == torch.bool and x.device == DEVICE]
            assert not masks, "a mask is an index here: its length is asked of the device"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_is_read() -> Iterator[None]:
    """In the block int(x), x.tolist(), x.cpu(), x[mask], torch.unique(x) and the like raise for x on DEVICE."""
    without_autocast = mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext())  # meta has none
    with without_autocast, _NoMaskIsWrittenThrough():
        yield
