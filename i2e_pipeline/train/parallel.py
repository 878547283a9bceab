"""Ranks: who takes part in a training, and the few exchanges that the losses and the entity head need.

With one rank every exchange is the identity, so the same code runs under `torchrun`, under Spark and alone.

Legend: B images of a rank, W ranks, D width.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.machine import card_of, choose_device
from i2e_pipeline.train import slurm

_CPU = torch.device("cpu")


class WorldError(I2EError, ValueError):
    """Ranks that this machine cannot hold."""


@dataclass(frozen=True)
class World:
    """This process among `size` of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, x_BD: Tensor) -> Tensor:
        """Rows of all ranks in the order of ranks, shape (W · B, D); every rank brings the same number of rows.

        Differentiable: a row's gradient is the sum over all ranks that used it.
        """
        return x_BD if self.size == 1 else _Gather.apply(x_BD, self)

    def gather_fixed(self, x_B: Tensor) -> Tensor:
        """As `gather`, for what carries no gradient: class indices, ids. Tensors on the host go through gloo, so that
        nobody waits for a device."""
        if self.size == 1:
            return x_B
        gathered = x_B.new_empty((self.size * len(x_B), *x_B.shape[1:]))
        dist.all_gather_into_tensor(gathered, x_B.contiguous())
        return gathered

    def scatter_sum(self, x_ND: Tensor) -> Tensor:
        """This rank's rows of the sum over ranks, without gradient; x_ND has B rows for each rank, in their order."""
        if self.size == 1:
            return x_ND
        own_BD = x_ND.new_empty((len(x_ND) // self.size, *x_ND.shape[1:]))
        dist.reduce_scatter_tensor(own_BD, x_ND.contiguous())
        return own_BD

    def gather_objects(self, value: Any) -> list[Any]:
        """One small Python value of each rank, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, work: Callable[[], Any]) -> Any:
        """Rank 0 alone calls `work`; every rank gets what it returned. An error of rank 0 is raised on every rank, or
        the others would wait for a rank that is gone."""
        value, error = None, None
        if self.first:
            try:
                value = work()
            except Exception as raised:
                error = raised
        value, error = self.gather_objects((value, error))[0]
        if error is not None:
            raise error
        return value

    def on_each(self, work: Callable[[], Any]) -> Any:
        """What `work` returned on this rank. An error of any rank is raised on all."""
        value, error = None, None
        try:
            value = work()
        except Exception as raised:
            error = raised
        if errors := [e for e in self.gather_objects(error) if e is not None]:
            raise errors[0]
        return value

    def to_first(self, work: Callable[[], Any]) -> list[Any] | None:
        """On rank 0 what `work` returned on each rank, in the order of ranks; None elsewhere. An error of any rank is
        raised on all."""
        value = self.on_each(work)
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks, without gradient; a new tensor."""
        return self._reduced(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """Maximum over ranks, without gradient; a new tensor."""
        return self._reduced(x, dist.ReduceOp.MAX)

    def _reduced(self, x: Tensor, how: Any) -> Tensor:
        x = x.detach().clone()
        if self.size > 1:
            dist.all_reduce(x, how)
        return x

    def on_device(self, x: Tensor) -> Tensor:
        """A tensor of the host on this rank's device, without waiting for what the device has yet to do."""
        if self.device.type == "cuda" and x.device.type == "cpu":
            x = x.pin_memory()  # from other memory CUDA copies once the stream is empty
        return x.to(self.device, non_blocking=True)

    def on_host(self, x: Tensor) -> Callable[[], list[float]]:
        """Numbers of the device, on their way: the call waits for them, and not for what the device was given since."""
        if x.device.type != "cuda":
            return x.tolist
        copy = x.to("cpu", non_blocking=True)
        there = torch.cuda.Event()
        there.record()

        def read() -> list[float]:
            there.synchronize()
            numbers: list[float] = copy.tolist()
            return numbers

        return read

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


class _Gather(torch.autograd.Function):
    """all_gather whose backward adds what every rank found for a row, and hands each rank its own rows."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.gather_fixed(x_BD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        world: World = ctx.world
        return world.scatter_sum(grads[0]), None


def join(device: str = "auto", timeout_minutes: float = 30.0) -> World:
    """The world that the environment describes: RANK, WORLD_SIZE, LOCAL_RANK … as torchrun and TorchDistributor set
    them, else the step that SLURM's srun started (slurm.py); alone where it describes none.

    Each rank has a card of its own and NCCL beside gloo, or all are on processors. Raises WorldError, on every rank,
    where some have a card and others would not, or not the one that is named (cuda:1), and DeviceError for what is no
    device.
    """
    slurm.adopt()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    cards = _cards() if device.startswith(("auto", "cuda")) else ()
    if size > 1 and not dist.is_initialized():
        # NCCL begins at its first use, when each rank knows its card: which one that is, they settle over gloo.
        backend = "cpu:gloo,cuda:nccl" if cards else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    seen = World(rank, size).gather_objects((socket.gethostname(), cards))
    place = torch.device(_place(seen, rank, device))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    return World(rank, size, place)


def _cards() -> tuple[str, ...]:
    """What tells the cards that this process sees from all others, in its order."""
    return tuple(str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count()))


def _place(seen: Sequence[tuple[str, Sequence[str]]], rank: int, device: str) -> str:
    """The device of a rank.

    seen   of each rank, its machine and the cards that it sees there. Ranks of a machine may all see all of its cards,
           or each its own (`srun --gpus-per-task=1`)
    """
    if device == "cpu" or (device == "auto" and not any(cards for _, cards in seen)):
        return "cpu"
    if device == "mps":
        _check_mps(len(seen))
        return device
    number = card_of(device)
    taken: set[tuple[str, str]] = set()
    places = []
    for host, cards in seen:
        wanted = [(n, card) for n, card in enumerate(cards) if number in (None, n)]
        free = next((n for n, card in wanted if (host, card) not in taken), None)
        if free is None:
            ranks = sum(1 for other, _ in seen if other == host)
            there = len({card for other, of in seen for card in of if other == host})
            instead = "cpu" if number is None else "cuda or cpu"
            raise WorldError(
                f"train.device={device}: {host} runs {ranks} rank{'s' * (ranks > 1)} and torch sees {there} "
                f"card{'s' * (there != 1)} there: start fewer ranks, or set train.device={instead}"
            )
        taken.add((host, cards[free]))
        places.append(f"cuda:{free}")
    return places[rank]


def _check_mps(ranks: int) -> None:
    choose_device("mps", "train.device")
    if ranks > 1:
        raise WorldError(f"train.device=mps with {ranks} ranks: ranks cannot exchange from there: start one")


def leave() -> None:
    """Ends what `join` began."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
