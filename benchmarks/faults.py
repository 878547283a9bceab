"""Faults injected into real runs, what survived them, and what rows were lost or are there twice.

    python benchmarks/faults.py [--seeds 1 2 3] [--where local cluster] [--kinds KIND ...] [--json FILE]

A chain is one output of two small shards, and faults at seeded moments of the runs over it, until it is whole; then
every table is compared, row by row, with that of a run which nobody disturbed. `local` is `i2e run`, `cluster` a
standalone one of two workers. docs/reliability.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # the injector is the tests'
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from i2e_pipeline.sample import compose
from tests.faults import injector
from tests.faults.cluster import LightCluster

SIGNALS = ("SIGTERM", "Ctrl-C", "SIGINT", "SIGTERM to all")
LOCAL = ("driver", "driver's JVM", "driver and JVM", "worker", "daemon")
CLUSTER = ("executor", "executor's worker", "executor's daemon", "Worker", "driver", "driver's JVM")


def chains(place: Path, seeds: Sequence[int], where: Sequence[str], kinds: Sequence[str]) -> list[injector.Outcome]:
    """One chain for each seed and place; storage and signal follow the seed."""
    world = injector.undisturbed(place)
    found = []
    for seed in seeds:
        storage = ("delta", "parquet")[seed % 2]
        signal = SIGNALS[seed % len(SIGNALS)]
        if "local" in where:
            wanted = kinds or (*LOCAL, signal)
            found.append(injector.chain(world, place / f"local-{seed}", seed, wanted, storage))
        if "cluster" in where:
            cluster = LightCluster(place / f"machines-{seed}")
            cluster.folder.mkdir()
            try:
                cluster.start_master()
                cluster.replenish()
                found.append(
                    injector.chain(
                        world, place / f"cluster-{seed}", seed, kinds or (*CLUSTER, signal), storage, cluster,
                        cluster.overrides(),
                    )
                )  # fmt: skip
            finally:
                for process in reversed(cluster.processes):
                    cluster.stop(process)
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--where", nargs="+", choices=["local", "cluster"], default=["local", "cluster"])
    parser.add_argument("--kinds", nargs="+", choices=list(injector.KINDS), default=[])
    parser.add_argument("--json", type=Path, help="file for the figures, with every fault")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        compose.compose(Path(folder) / "input", rows=80, shards=2)
        outcomes = chains(Path(folder), options.seeds, options.where, options.kinds)
    figures = injector.summary(outcomes)
    table = Table("fault", "injected", "survived", "slowest end, s", title="Killed or asked to end, at seeded moments")
    for kind, of in figures["faults"].items():
        table.add_row(kind, str(of["injected"]), str(of["survived"]), str(of["slowest end, s"] or "goes on"))
    console = Console()
    console.print(table)
    console.print({name: value for name, value in figures.items() if name != "faults"})
    if options.json:
        options.json.write_text(json.dumps({**figures, "outcomes": [o.as_json() for o in outcomes]}, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    main()
