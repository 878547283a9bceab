"""Faults injected into real runs, what survived them, and what rows were lost or are there twice.

    python benchmarks/faults.py [--only PART ...] [--rounds 2] [--small] [--json FILE]

A chain is one output of two small shards, and faults at seeded moments of the runs over it, until it is whole; then
every table is compared, row by row, with that of a run which nobody disturbed. Each part has its chains on Parquet and
on Delta:

    local    `i2e run`: kill -9 of the driver, its JVM, both, a Python worker, the workers' daemon; SIGTERM, Ctrl-C
    cluster  a standalone one of two workers: kill -9 of executors, their Python workers and daemons, Spark's Workers,
             the driver; SIGTERM, Ctrl-C
    commits  deaths at the commit points of tests/faults/deaths.py, which the run itself dies at
    others   a full disk; tasks that fail or lag, a decommissioned executor, one that is lost with its shuffle files

A fault for which a run had nothing left to do is drawn again, so that every kind comes up. docs/reliability.md has the
table (docs/generate.py). All of it takes about 25 minutes on two cores; `--small` injects one fault of each part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # the injector is the tests'
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from i2e_pipeline.sample import compose
from tests.cluster.tables import tables
from tests.faults import deaths, injector, tasks
from tests.faults.cluster import LightCluster
from tests.faults.disks import Disk, NoRight, fills_up
from tests.faults.injector import Outcome, World

STORAGES = ("parquet", "delta")
PARTS = ("local", "cluster", "commits", "others")
LOCAL = ("driver", "driver's JVM", "driver and JVM", "worker", "daemon")
CLUSTER = ("executor", "executor's worker", "executor's daemon", "Worker", "driver", "driver's JVM")
SIGNALS = {"parquet": ("SIGTERM", "Ctrl-C"), "delta": ("SIGTERM to all", "SIGINT")}
"""That ask a run to end, beside the kills of a chain."""
DRAWN_AGAIN = 3


def killed(world: World, where: str, storage: str, seed: int, kinds: Sequence[str], cluster: Any) -> Iterator[Outcome]:
    """A chain of these kinds, and one more of those that came too late."""
    for again in range(DRAWN_AGAIN):
        output = world.place / f"{where}-{storage}-{seed}-{again}"
        overrides = cluster.overrides() if cluster else ()
        outcome = injector.chain(world, output, seed + 100 * again, kinds, storage, cluster, overrides)
        shutil.rmtree(output)
        yield outcome
        came = [fault.kind for fault in outcome.faults]
        kinds = [kind for kind in kinds if kind not in came]
        if not kinds:
            return


def local(world: World, rounds: int, small: bool) -> Iterator[Outcome]:
    for seed in range(1, rounds + 1):
        for storage in STORAGES:
            signals = SIGNALS[storage] if seed == 1 else ()
            yield from killed(world, "local", storage, seed, ("driver",) if small else (*LOCAL, *signals), None)
            if small:
                return


def on_cluster(world: World, rounds: int, small: bool) -> Iterator[Outcome]:
    for storage in STORAGES:
        with machines(world.place / f"machines-{storage}") as cluster:
            kinds = ("executor",) if small else (*CLUSTER, SIGNALS[storage][0])
            yield from killed(world, "cluster", storage, 1, kinds, cluster)
        if small:
            return


@contextmanager
def machines(folder: Path) -> Iterator[LightCluster]:
    cluster = LightCluster(folder)
    folder.mkdir()
    try:
        cluster.start_master()
        cluster.replenish()
        yield cluster
    finally:
        for process in reversed(cluster.processes):
            cluster.stop(process)


def at_commits(world: World, rounds: int, small: bool) -> Iterator[Outcome]:
    """The deaths of a first run, and of one that replaces what is there."""
    for storage in STORAGES:
        output = world.place / f"commits-{storage}"
        config = injector.configured(world.place, output, f"storage.format={storage}")
        outcome = Outcome(0, "local", storage)
        deaths.chain(config, output, deaths.FIRST[storage][:1] if small else deaths.FIRST[storage], outcome)
        injector.judge(world.whole, output, storage, outcome)
        yield outcome
        if small:
            return
        yield replaced(world, output, storage)
        shutil.rmtree(output)


def replaced(world: World, output: Path, storage: str) -> Outcome:
    undisturbed = injector.made(world.place, "otherwise", deaths.OTHER, of=injector.whole_as(world, "parquet"))
    config = injector.configured(world.place, output, f"storage.format={storage}")
    outcome = Outcome(0, "local", storage)
    deaths.chain(config, output, deaths.AGAIN[storage], outcome, deaths.OTHER)
    injector.judge(tables(undisturbed), output, storage, outcome)
    return outcome


def others(world: World, rounds: int, small: bool) -> Iterator[Outcome]:
    try:
        disk = Disk(world.place / "disk", 1)
    except NoRight as error:
        print(f"no full disk: {error}", file=sys.stderr)
    else:
        try:
            yield fills_up(world, disk)
        finally:
            disk.free()
    if not small:
        with machines(world.place / "machines-others") as cluster:
            yield tasks.all_at_once(world, cluster, world.place / "told")


INJECTED = {"local": local, "cluster": on_cluster, "commits": at_commits, "others": others}


def how(kind: str) -> str:
    """What a fault is: a signal by its name, or what it is of itself."""
    if kind in (deaths.DEATH, *(k for k, _ in tasks.FAULTS)) or kind not in injector.KINDS:
        return "of itself"
    return "kill -9" if injector.KINDS[kind].signal == injector.signal.SIGKILL else "asked to end"


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Figures by kind of fault, place and storage, and of all chains together."""
    by: dict[tuple[str, str, str], dict[str, Any]] = {}
    for outcome in outcomes:
        for fault in outcome.faults:
            named = {"fault": fault.kind, "how": how(fault.kind), "where": outcome.where, "storage": outcome.storage}
            counts = {"injected": 0, "survived": 0, "slowest end, s": 0.0}
            of = by.setdefault((fault.kind, outcome.where, outcome.storage), named | counts)
            of["injected"] += 1
            of["survived"] += outcome.survived
            of["slowest end, s"] = max(of["slowest end, s"], fault.seconds)
    faults = list(by.values())
    kills = [f for f in faults if f["how"] == "kill -9"]
    return {
        "faults": faults,
        "kinds": len({f["fault"] for f in faults}),
        "never injected": sorted({*injector.KINDS, deaths.DEATH, *dict(tasks.FAULTS)} - {f["fault"] for f in faults}),
        "injected": sum(f["injected"] for f in faults),
        "survived": sum(f["survived"] for f in faults),
        "killed with -9": sum(f["injected"] for f in kills),
        "chains": len(outcomes),
        "rows compared": sum(o.rows for o in outcomes),
        "rows lost": sum(o.lost for o in outcomes),
        "rows twice": sum(o.twice for o in outcomes),
        "orphans": sum(o.orphans for o in outcomes),
        "files left in _staging": sum(o.staged for o in outcomes),
        "commits made again": sum(o.repeated for o in outcomes),
        "too late, drawn again": sum(o.too_late for o in outcomes),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=2, help="of the local kills (default 2)")
    parser.add_argument("--small", action="store_true", help="one fault of each part, to see that it works")
    parser.add_argument("--json", type=Path, help="file for the figures, with every fault")
    options = parser.parse_args(arguments)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        compose.compose(Path(folder) / "input", rows=80, shards=2)
        world = injector.undisturbed(Path(folder))
        for part in options.only:
            for outcome in INJECTED[part](world, options.rounds, options.small):
                outcomes.append(outcome)
                told = ", ".join(f"{f.kind} ({f.stage})" for f in outcome.faults)
                print(f"{part}, {outcome.storage}: {told}: {'survived' if outcome.survived else outcome}", flush=True)
    figures = summary(outcomes)
    table = Table("fault", "how", "where", "storage", "injected", "survived", "slowest end, s", title="Faults")
    for of in figures["faults"]:
        table.add_row(*map(str, of.values()))
    console = Console()
    console.print(table)
    console.print({name: value for name, value in figures.items() if name != "faults"})
    if options.json:
        options.json.write_text(json.dumps({**figures, "outcomes": [o.as_json() for o in outcomes]}, indent=1) + "\n")
    return int(figures["survived"] < figures["injected"])


if __name__ == "__main__":
    sys.exit(main())
