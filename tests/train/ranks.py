"""Trainings in processes of their own, as torchrun starts them; what each step saw is written down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def start(settings: Path, ranks: int = 1, seen: Path | None = None) -> list[subprocess.Popen[bytes]]:
    """One process per rank of the training that a YAML file describes; `seen`: a folder for the ids of each step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.train.ranks", str(settings), str(seen or "")]
        processes.append(subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ))
    return processes


def finish(processes: list[subprocess.Popen[bytes]], timeout: float = 120) -> str:
    """Waits for all ranks; what they said. Asserts that they ended well."""
    said = wait(processes, timeout)
    assert all(p.returncode == 0 for p in processes), said
    return said


def wait(processes: list[subprocess.Popen[bytes]], timeout: float = 120) -> str:
    until = time.monotonic() + timeout
    try:
        return "".join(p.communicate(timeout=max(1, until - time.monotonic()))[0].decode() for p in processes)
    finally:
        for p in processes:
            p.kill()


def kill(processes: list[subprocess.Popen[bytes]], seen: Path, steps: int) -> None:
    """kill -9 of all ranks as soon as so many steps were seen."""
    until = time.monotonic() + 120
    while len(ids_by_step(seen)) < steps:
        assert time.monotonic() < until, wait(processes, 1)
        assert all(p.poll() is None for p in processes), wait(processes, 1)
        time.sleep(0.01)
    for p in processes:
        p.send_signal(signal.SIGKILL)
    for p in processes:
        p.wait()


def ids_by_step(seen: Path) -> dict[int, list[str]]:
    """The ids of each step over all ranks and micro-batches, sorted."""
    found: dict[int, list[str]] = defaultdict(list)
    for file in seen.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            if line.endswith("]"):
                step, *ids = json.loads(line)
                found[step] += ids
    return {step: sorted(ids) for step, ids in sorted(found.items())}


def main() -> None:
    """One rank: `i2e train`, with the batches that reach the losses written down on the way."""
    from i2e_pipeline import cli
    from i2e_pipeline.train.recipes import Recipe

    settings, seen = sys.argv[1:]
    if seen:
        place = Path(seen) / f"{os.getpid()}-{os.environ['RANK']}.jsonl"
        losses = Recipe.losses

        def noted(self, encoded, batch, head, world, step):  # type: ignore[no-untyped-def]
            with open(place, "a", encoding="utf-8") as file:
                file.write(json.dumps([step, *(i.hex() for i in batch.image_ids)]) + "\n")
            return losses(self, encoded, batch, head, world, step)

        Recipe.losses = noted  # type: ignore[method-assign]
    cli.main(["train", "--config", settings])


if __name__ == "__main__":
    main()
