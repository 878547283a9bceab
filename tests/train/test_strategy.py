"""An update that the device itself leaves out, for towers that are whole on each rank and for shards of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from i2e_pipeline.train import strategy


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 6)


def course(
    towers: nn.Module, step: Callable[[torch.optim.Optimizer, int], None], gradients: tuple[float, ...]
) -> list[Tensor]:
    """Weights, moments and counts after steps with gradients of one number each."""
    optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    for number, gradient in enumerate(gradients):
        for p in towers.parameters():
            p.grad = torch.full_like(p, gradient)
        step(optimizer, number)
    found: list[Tensor] = []
    for p in towers.parameters():
        found += [p, *optimizer.state[p].values()]
    return [x.full_tensor() if hasattr(x, "full_tensor") else x for x in found]


def unless_bad(optimizer: torch.optim.Optimizer, number: int) -> None:
    strategy.update(optimizer, unless=torch.tensor(number == 1))


def check(wrap: Callable[[nn.Module], Any]) -> None:
    expected = course(wrap(Two()), lambda optimizer, _: optimizer.step(), (0.5, -0.25))
    assert all(map(torch.equal, expected, course(wrap(Two()), unless_bad, (0.5, float("nan"), -0.25))))


def test_a_bad_step_changes_no_weight_no_moment_and_no_count() -> None:
    """Catches: weight decay or decayed moments in a step that is passed over."""
    check(lambda towers: towers)


def _in_shards(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    check(lambda towers: fully_shard(towers, mesh=mesh))
    dist.destroy_process_group()


@pytest.mark.slow
def test_nor_does_it_change_shards(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Catches: a flag that FSDP's tensors do not take, or that reaches some ranks."""
    torch.multiprocessing.start_processes(_in_shards, (str(tmp_path),), nprocs=2, start_method="forkserver")
