"""Strategy: how the towers lie on the ranks, whole on each (DDP) or in shards (FSDP2) over all of them or over those of
each machine (HSDP), and how to read and write them.

Everything else sees a plain module. A tensor of the state is gathered one at a time, and each rank places its own
shards, so that no rank ever holds the state twice; names are those of the bare towers in both cases, which is why a
checkpoint of one loads in the other and on any number of ranks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from i2e_pipeline.core.config import OptimizerConfig, TrainConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.train.checkpoint import Part
from i2e_pipeline.train.encoders import Towers
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.parameter_groups import groups_of

MOMENTS = ("exp_avg", "exp_avg_sq")
PART_BYTES = 256 << 20
"""Of the towers' weights, their mean or the optimizer, that one rank writes of a checkpoint."""


class StrategyError(I2EError, ValueError):
    """A way to wrap the towers for several ranks that is not possible here."""


def wrap(towers: Towers, config: TrainConfig, world: World) -> nn.Module:
    """The towers on this rank's device, as a module whose gradients are averaged over ranks."""
    towers.to(world.device)
    if towers.convolutional:
        towers.model.visual.to(memory_format=towers.memory_format(world.device))
    if world.size > 1 and world.device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        # Else statistics would be those of a rank's images, and depend on the number of ranks; torch has this for CUDA.
        # timm's way, because torch's forgets the activation that timm's batch norms carry.
        convert_sync_batchnorm(towers)
    if config.strategy != "ddp":
        if world.size == 1:
            raise StrategyError(
                f"train.strategy={config.strategy} needs two ranks or more: start it with torchrun, or take ddp"
            )
        return _sharded(towers, config, world)
    if world.size == 1:
        return towers
    return DistributedDataParallel(
        towers,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def _sharded(towers: Towers, config: TrainConfig, world: World) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if config.strategy == "fsdp":
        mesh = init_device_mesh(world.device.type, (world.size,))
    else:  # of two dimensions FSDP replicates over the first and shards over the second
        mesh = init_device_mesh(world.device.type, _machines(world), mesh_dim_names=("machines", "ranks"))
    # The sums stay float32: a gradient averaged in bfloat16 over many ranks loses its small parts.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if config.precision == "bfloat16" else None, reduce_dtype=torch.float32
    )
    for block in towers.blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # What is in no block stays float32, and autocast narrows its products: a scale of 100 moves by 0.5 in bfloat16.
    fully_shard(towers, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    return towers


def _machines(world: World) -> tuple[int, int]:
    """How many machines there are and how many ranks each has, by what torchrun or srun told each rank."""
    told = (int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    seen = world.gather_objects(told)
    ranks = seen[0][1]
    if ranks == 1 or [(rank % ranks, ranks) for rank in range(world.size)] != seen or world.size % ranks:
        raise StrategyError(
            "train.strategy=hsdp shards over the ranks of a machine and needs two or more on each, as many on all, one "
            f"machine after the other. LOCAL_RANK and LOCAL_WORLD_SIZE of the ranks are {seen}: start them with "
            "torchrun, or with srun --distribution=block, or take fsdp"
        )
    return world.size // ranks, ranks


@contextlib.contextmanager
def micro_batch(module: nn.Module, last: bool) -> Iterator[None]:
    """Ranks exchange gradients in the last micro-batch of a step only."""
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    exchange = getattr(module, "set_requires_gradient_sync", None)
    if exchange is not None:
        exchange(last)
    yield


def optimizer_of(towers: Towers, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over what is trained, in the groups of parameter_groups.py."""
    return torch.optim.AdamW(
        groups_of(towers, config),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=towers.device.type != "mps",  # older releases of torch have none there
    )


def update(optimizer: torch.optim.Optimizer, unless: Tensor) -> None:
    """A step that changes nothing, moments and their count neither, where `unless` is true on the device. A fused
    optimizer is told as torch's GradScaler tells it; for another one, which has no such flag, the device is asked."""
    if not optimizer.defaults.get("fused"):
        if not bool(unless):
            optimizer.step()
        return
    optimizer.found_inf = unless.float()  # type: ignore[attr-defined]
    optimizer.step()


def gathered(named: Iterable[tuple[str, Tensor]], keep: bool | Callable[[str], bool]) -> dict[str, Tensor]:
    """Tensors as whole pieces on the CPU, by name, those that this rank keeps. Every rank must ask for the same ones in
    the same order, and holds one at a time of those that it does not keep."""
    state: dict[str, Tensor] = {}
    for name, x in named:
        full_tensor = getattr(x, "full_tensor", None)
        full = x if full_tensor is None else full_tensor()
        if keep if isinstance(keep, bool) else keep(name):
            state[name] = full.detach().to("cpu", copy=True)
    return state


def part_of(named: Iterable[tuple[str, Tensor]], world: World) -> Part | None:
    """What this rank writes of some tensors: of as many parts as have PART_BYTES each, at most one a rank, the one with
    its number. None where there are fewer. Every rank calls it."""
    tensors = list(named)
    sizes = [x.numel() * x.element_size() for _, x in tensors]
    total = sum(sizes)
    of = min(world.size, max(1, -(-total // PART_BYTES)))
    begins = np.cumsum([0, *sizes])
    owner = {name: int(begin * of // max(1, total)) for (name, _), begin in zip(tensors, begins, strict=False)}
    mine = gathered(tensors, lambda name: min(owner[name], of - 1) == world.rank)
    return Part(mine, world.rank, of) if world.rank < of else None


def place(target: Tensor, source: Tensor) -> None:
    """Copies a whole tensor into `target`, or what belongs there into this rank's shard of it, without other ranks. A
    tensor of a checkpoint is a view of its file, of which each rank reads that much."""
    with torch.no_grad():
        if hasattr(target, "device_mesh"):
            from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

            shards: Any = target
            shape, begins = compute_local_shape_and_global_offset(shards.shape, shards.device_mesh, shards.placements)
            own = tuple(slice(begin, begin + length) for begin, length in zip(begins, shape, strict=True))
            shards.to_local().copy_(source[own])
        else:
            target.copy_(source)


def towers_state(towers: Towers) -> Iterable[tuple[str, Tensor]]:
    """Weights and buffers by name."""
    return towers.state_dict().items()


def load_towers(towers: Towers, state: Mapping[str, Tensor], where: str) -> None:
    """Raises StrategyError where names or shapes are not those of the towers; `where`: what messages call `state`."""
    targets = towers.state_dict()
    missing = [name for name in targets if name not in state]
    if missing:
        raise StrategyError(f"{where} has no {missing[0]}: it is of another train.encoder, or was trained otherwise")
    for name, x in targets.items():
        if state[name].shape != x.shape:
            hint = "train.loss.teacher is of another width" if "teacher" in name else "it is of another encoder"
            raise StrategyError(f"{where}: {name} is {tuple(state[name].shape)}, the towers' {tuple(x.shape)}: {hint}")
        place(x, state[name])


def optimizer_state(towers: Towers, optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, Tensor]]:
    """AdamW's moments as `<parameter>/<moment>`, and `<parameter>/step`, the updates that made them."""
    return (
        (f"{name}/{part}", optimizer.state[p][part])
        for name, p in towers.named_parameters()
        if p in optimizer.state
        for part in ("step", *MOMENTS)
    )


def load_optimizer(towers: Towers, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor], steps: int) -> None:
    """Puts the moments back. A parameter that the state does not know starts without any.

    steps   that the training has done: the updates of a parameter where the state does not say them. A parameter that
            was frozen at first, or a step that was passed over, has fewer
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in towers.named_parameters():
        if id(p) not in trained or f"{name}/{MOMENTS[0]}" not in state:
            continue
        step = state.get(f"{name}/step", torch.tensor(float(steps)))
        entry = {"step": step.to(p.device, copy=True)}  # a view would keep the checkpoint's file open
        for moment in MOMENTS:
            entry[moment] = torch.zeros_like(p, memory_format=torch.preserve_format)
            place(entry[moment], state[f"{name}/{moment}"])
        optimizer.state[p] = entry
