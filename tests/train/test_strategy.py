"""How towers lie on ranks, and an update that the device itself leaves out, for whole towers and for shards of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.train import checkpoint, strategy
from i2e_pipeline.train.ema import Ema
from i2e_pipeline.train.parallel import World


class Two(nn.Module):
    convolutional = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 6)

    def blocks(self) -> list[nn.Module]:
        return [self.body]


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


def test_a_parameter_that_was_frozen_at_first_goes_on_with_its_own_count() -> None:
    """Catches: moments of one update that count as those of a hundred, and are hardly corrected any more."""

    def updated(towers: Two, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            for p in towers.parameters():
                p.grad = torch.full_like(p, 0.5) if p.requires_grad else None
            optimizer.step()

    def adam(towers: Two) -> torch.optim.Optimizer:
        return torch.optim.AdamW(towers.parameters(), lr=0.1, fused=True)

    found = []
    for cut in (False, True):
        towers = Two()
        towers.body.weight.requires_grad_(False)
        optimizer = adam(towers)
        updated(towers, optimizer, 50)
        towers.body.weight.requires_grad_(True)
        updated(towers, optimizer, 2)
        if cut:
            state = strategy.gathered(strategy.optimizer_state(towers, optimizer), True)  # type: ignore[arg-type]
            optimizer = adam(towers)
            strategy.load_optimizer(towers, optimizer, state, 52)  # type: ignore[arg-type]
        updated(towers, optimizer, 8)
        found.append(towers.body.weight.detach().clone())
    assert torch.equal(*found)


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


@pytest.mark.parametrize("ranks", [1, 3, 64])
def test_ranks_write_about_equally_much(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a tensor that two ranks write, or none; a rank that writes all of a large tower."""
    monkeypatch.setattr(strategy, "PART_BYTES", 1000)
    named = [(f"w{n}", torch.full((1 + 37 * n % 100,), n, dtype=torch.float32)) for n in range(200)]
    total = 4 * sum(x.numel() for _, x in named)
    parts = [strategy.part_of(named, World(rank, ranks)) for rank in range(ranks)]
    written = [part for part in parts if part is not None]
    assert len(written) == min(ranks, -(-total // 1000))
    names = [name for part in written for name in part.tensors]
    assert sorted(names) == sorted(name for name, _ in named)
    assert max(sum(4 * x.numel() for x in part.tensors.values()) for part in written) <= total / len(written) + 400


def _on_two_machines(rank: int, folder: str) -> None:
    from torch.distributed.tensor import Replicate, Shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    os.environ |= {"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2"}
    config, world = TrainConfig(strategy="hsdp"), World(rank, 4)
    towers: Any = strategy.wrap(Two(), config, world)  # type: ignore[arg-type]
    for p in towers.parameters():
        assert p.device_mesh.mesh.tolist() == [[0, 1], [2, 3]]
        assert p.placements == (Replicate(), Shard(0))
        assert len(p.to_local()) == 3
    whole = {name: torch.randn(p.shape) for name, p in Two().named_parameters()}
    strategy.load_towers(towers, whole, "here")
    state = strategy.gathered(strategy.towers_state(towers), True)
    assert all(torch.equal(state[name], x) for name, x in whole.items())
    check(lambda towers: strategy.wrap(towers, config, world))  # type: ignore[arg-type]
    strategy.PART_BYTES = 50  # of 120 bytes, 96 of the matrix
    part = strategy.part_of(strategy.towers_state(towers), world)
    assert (part is None) == (rank == 3)
    seen = world.gather_objects(None if part is None else (part.number, part.of, part.tensors))
    assert [one[:2] for one in seen if one] == [(0, 3), (1, 3), (2, 3)]
    together = {name: x for one in seen if one for name, x in one[2].items()}
    assert sum(len(one[2]) for one in seen if one) == len(whole)
    assert all(torch.equal(together[name], x) for name, x in whole.items())

    os.environ["LOCAL_RANK"] = str(rank // 2)  # the tasks of srun --distribution=cyclic
    with pytest.raises(strategy.StrategyError, match=r"one machine after the other. .*\(0, 2\), \(0, 2\), \(1, 2\)"):
        strategy.wrap(Two(), config, world)  # type: ignore[arg-type]
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    with pytest.raises(strategy.StrategyError, match="needs two or more on each"):
        strategy.wrap(Two(), config, world)  # type: ignore[arg-type]
    dist.destroy_process_group()


@pytest.mark.slow
def test_hsdp_shards_within_a_machine_and_replicates_between_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Catches: shards that lie across machines, whose every gather then goes over the network."""
    torch.multiprocessing.start_processes(_on_two_machines, (str(tmp_path),), nprocs=4, start_method="forkserver")


class Large(nn.Module):
    """Rows that no number of ranks divides, fewer rows than four ranks, and buffers, which every rank holds."""

    convolutional = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.ModuleList([nn.Linear(1024, 1001), nn.Linear(1024, 1003), nn.Linear(8, 3)])
        self.register_buffer("mean", torch.randn(5))
        self.register_buffer("batches", torch.tensor(seed))

    def blocks(self) -> list[nn.Module]:
        return list(self.body)


class Reads(TorchDispatchMode):
    """Counts the bytes of some tensors that operations take; a view takes none."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self._of = {x.untyped_storage().data_ptr() for x in tensors.values()}

    def __torch_dispatch__(self, operation: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        if not operation.is_view:
            taken = [x for x in tree_leaves((given, named)) if type(x) is Tensor]  # no DTensor, which has no storage
            self.bytes += sum(x.nbytes for x in taken if x.untyped_storage().data_ptr() in self._of)
        return operation(*given, **(named or {}))


def _read_in_shards(rank: int, folder: str, how: Any, ranks: int) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", meet, rank=rank, world_size=ranks, timeout=timedelta(minutes=2))
    os.environ |= {"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2"}
    config, world = TrainConfig(strategy=how), World(rank, ranks)
    strategy.PART_BYTES = 1 << 20

    def training(seed: int) -> tuple[Any, torch.optim.Optimizer, Ema]:
        towers: Any = strategy.wrap(Large(seed), config, world)  # type: ignore[arg-type]
        return towers, torch.optim.AdamW(towers.parameters()), Ema(towers, 0.5)

    def whole(towers: Any, optimizer: torch.optim.Optimizer, mean: Ema) -> list[dict[str, Tensor]]:
        states = strategy.towers_state(towers), mean.mean.items(), strategy.optimizer_state(towers, optimizer)
        return [strategy.gathered(state, True) for state in states]

    towers, optimizer, mean = training(3)
    for p in towers.parameters():
        p.grad = p.detach().clone()
    optimizer.step()
    mean.update(towers, 1)
    at = checkpoint.Save(
        folder,
        checkpoint.State(1, 8, 4, "multi_task", {}, "f1"),
        world,
        towers=strategy.part_of(strategy.towers_state(towers), world),
        ema=strategy.part_of(mean.mean.items(), world),
        optimizer=strategy.part_of(strategy.optimizer_state(towers, optimizer), world),
    ).finish()
    assert len(list(Path(at).glob("towers-*"))) == ranks
    saved, (new, moments, its_mean) = checkpoint.load(at, world), training(4)
    assert saved.ema is not None
    assert saved.optimizer is not None
    of_towers, of_mean, of_moments = reads = Reads(saved.towers), Reads(saved.ema), Reads(saved.optimizer)
    for turn in range(ranks):
        if turn == rank:  # nobody waits for another
            with of_towers:
                strategy.load_towers(new, saved.towers, "here")
            with of_mean:
                its_mean.load(saved.weights)
            with of_moments:
                strategy.load_optimizer(new, moments, saved.optimizer, 9)
        world.barrier()
    states = strategy.towers_state(new), its_mean.mean.items(), strategy.optimizer_state(new, moments)
    for state, read in zip(states, reads, strict=True):
        held = [(x, x.to_local() if hasattr(x, "to_local") else x) for _, x in state]
        beyond = read.bytes - sum(own.nbytes for _, own in held)
        assert 0 <= beyond < 100, "safetensors itself looks at a byte of a tensor that it is asked for"
        assert read.bytes < 1.01 * sum(x.nbytes for x, _ in held) / (2 if how == "hsdp" else ranks)
    for before, after in zip(whole(towers, optimizer, mean), whole(new, moments, its_mean), strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], x) for name, x in after.items())
    alone = Large(5)
    strategy.load_towers(alone, saved.towers, "here")  # type: ignore[arg-type]
    told = strategy.gathered(strategy.towers_state(towers), True)
    assert all(torch.equal(told[name], x) for name, x in alone.state_dict().items())
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "ranks"), [("fsdp", 2), ("fsdp", 4), ("hsdp", 4)])
def test_a_rank_reads_its_shards_alone(how: str, ranks: int, tmp_path: Path) -> None:
    """Catches: a rank that has whole towers, means or moments in memory when a training goes on, or waits for others'
    tensors one by one; shards that are one row off where ranks do not divide the rows."""
    torch.multiprocessing.start_processes(
        _read_in_shards, (str(tmp_path), how, ranks), nprocs=ranks, start_method="forkserver"
    )


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_with_and_without_the_flag_leaves_a_bad_step_out(fused: bool) -> None:
    """Catches: train.device=mps, whose optimizer is not fused and ended in its first step."""
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.0, fused=fused)
    p.grad = torch.full((3,), torch.nan)
    strategy.update(optimizer, unless=torch.tensor(True))
    assert torch.equal(p, torch.ones(3))
    p.grad = torch.ones(3)
    strategy.update(optimizer, unless=torch.tensor(False))
    assert torch.allclose(p, torch.full((3,), 0.9))
