"""Trainings in processes of their own, as torchrun starts them; what each step saw is written down."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from i2e_pipeline.train.parallel import World


@dataclass(frozen=True)
class Rank:
    process: ForkServerProcess
    said: Path


def start(
    settings: Path,
    ranks: int = 1,
    seen: Path | None = None,
    slurm: bool = False,
    late: bool = False,
    machines: int = 1,
    scratch: Path | None = None,
) -> list[Rank]:
    """One process per rank of the training that a YAML file describes.

    seen       a folder for the ids of each step
    slurm      they are told their numbers as srun does it, not as torchrun does
    late       they read what a step came to when the next one is under way, as on a card
    machines   how many of them this one stands for
    scratch    a folder for temporary ones, one a machine
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(ranks):
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank % (ranks // machines)), "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks // machines),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        if slurm:
            environment = {
                "SLURM_JOB_ID": str(port), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(ranks),
                "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
                "SLURM_STEP_TASKS_PER_NODE": str(ranks), "SLURM_STEP_NODELIST": "localhost",
            }  # fmt: skip
        said = settings.with_suffix(f".{port}-{rank}.txt")
        if scratch is not None:
            of_machine = scratch / str(rank // (ranks // machines))
            of_machine.mkdir(parents=True, exist_ok=True)
            environment["TMPDIR"] = str(of_machine)
        process = multiprocessing.get_context("forkserver").Process(
            target=train, args=(settings, environment, said, seen, late)
        )
        process.start()
        started.append(Rank(process, said))
    return started


def finish(ranks: list[Rank], timeout: float = 300) -> str:
    """Waits for all ranks; what they said. Asserts that they ended well."""
    until = time.monotonic() + timeout
    for rank in ranks:
        rank.process.join(max(1, until - time.monotonic()))
    said = "".join(rank.said.read_text() for rank in ranks)
    codes = [rank.process.exitcode for rank in ranks]
    for rank in ranks:
        rank.process.kill()
    assert codes == [0] * len(ranks), said
    return said


def kill(ranks: list[Rank], seen: Path, steps: int) -> None:
    """kill -9 of all ranks as soon as so many steps were seen."""
    send(signal.SIGKILL, ranks, seen, steps)
    for rank in ranks:
        rank.process.join()


def send(sign: signal.Signals, ranks: list[Rank], seen: Path, steps: int) -> None:
    """A signal to all ranks as soon as so many steps were seen."""
    until = time.monotonic() + 300
    while len(ids_by_step(seen)) < steps:
        assert time.monotonic() < until
        assert all(rank.process.is_alive() for rank in ranks), "".join(rank.said.read_text() for rank in ranks)
        time.sleep(0.01)
    for rank in ranks:
        assert rank.process.pid is not None
        os.kill(rank.process.pid, sign)


def ids_by_step(seen: Path) -> dict[int, list[str]]:
    """The ids of each step over all ranks and micro-batches, sorted."""
    found: dict[int, list[str]] = defaultdict(list)
    for file in seen.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            if line.endswith("]"):
                step, *ids = json.loads(line)
                found[step] += ids
    return {step: sorted(ids) for step, ids in sorted(found.items())}


def train(settings: Path, environment: dict[str, str], said: Path, seen: Path | None, late: bool) -> None:
    """One rank's main: `i2e train`, with the batches that reach the losses written down on the way."""
    os.environ.update(environment)
    tempfile.tempdir = None
    from i2e_pipeline import cli
    from i2e_pipeline.train.recipes import Recipe
    from i2e_pipeline.train.trainer import _Training

    if late:
        _Training._reads_at_once = False  # type: ignore[assignment,method-assign]
    if seen is not None:
        place = seen / f"{os.getpid()}.jsonl"
        losses = Recipe.losses

        def noted(self, encoded, batch, head, world, step, contrastive=None):  # type: ignore[no-untyped-def]
            with open(place, "a", encoding="utf-8") as file:
                file.write(json.dumps([step, *(i.hex() for i in batch.image_ids)]) + "\n")
            return losses(self, encoded, batch, head, world, step, contrastive)

        Recipe.losses = noted  # type: ignore[method-assign]
    with (
        open(said, "w", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        cli.main(["train", "--config", str(settings)])


def by_ranks(found: Callable[[str, World], Any], cases: Iterable[str], sizes: Sequence[int], folder: Path) -> Any:
    """By number of ranks and case what `found` gives on rank 0 of so many gloo ranks; on one it is called here."""
    cases = list(cases)
    for size in sizes:
        if size > 1:
            torch.multiprocessing.start_processes(
                _found_on_rank, (size, found, cases, str(folder)), nprocs=size, start_method="fork"
            )
    return {
        size: torch.load(folder / f"{size}.pt") if size > 1 else {case: found(case, World()) for case in cases}
        for size in sizes
    }


def _found_on_rank(rank: int, size: int, found: Callable[[str, World], Any], cases: Sequence[str], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{size}", rank=rank, world_size=size)
    results = {case: found(case, World(rank, size)) for case in cases}
    if rank == 0:
        torch.save(results, f"{folder}/{size}.pt")
    dist.destroy_process_group()
