"""What a cluster's own ways of going on must not change: retries, speculation, lost shuffle files, decommissioning."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

from tests.faults import injector, processes
from tests.faults.cluster import PATH, LightCluster
from tests.faults.injector import World

FAULTS = (
    ("task that fails", "pairs"),
    ("task that fails", "finish"),
    ("straggler, tried elsewhere", "score"),
    ("executor decommissioned", "extract"),
    ("executor lost with its shuffle files", "select"),
)
IN_WORKERS = Path(__file__).parent / "in_workers"


def attempts(folder: Path, stage: str) -> list[tuple[int, int, int]]:
    """Executor, partition and attempt of every task of a stage that has begun to write."""
    lines = (folder / f"{stage}.attempts").read_text().splitlines()
    return [(int(a), int(b), int(c)) for a, b, c in map(str.split, lines)]


def all_at_once(still: World, cluster: LightCluster, faults: Path) -> injector.Outcome:
    """One run with all of FAULTS, which in_workers/ makes.

    faults   a folder that is not there yet, for what is said to workers
    """
    cluster.replenish()
    leaving = next(iter(cluster.workers.values()))
    cluster.stop(leaving)
    cluster.replenish()
    faults.mkdir()
    for name in ("pairs.fails", "extract.waits", "score.sleeps", "select.waits", "finish.fails"):
        (faults / name).touch()
    output = still.place / "all-of-them"
    conf = {
        "spark.executorEnv.I2E_FAULTS": str(faults),
        "spark.executorEnv.PYTHONPATH": f"{IN_WORKERS}{os.pathsep}{PATH}",
        "spark.speculation": "true",
        "spark.speculation.interval": "200ms",
        "spark.speculation.quantile": "0.5",
        "spark.speculation.multiplier": "1.5",
        # A job of one task has no other to be compared with.
        "spark.speculation.task.duration.threshold": "6s",
        "spark.decommission.enabled": "true",
        "spark.storage.decommission.enabled": "true",
        "spark.storage.decommission.shuffleBlocks.enabled": "true",
    }
    config = injector.configured(still.place, output, *cluster.overrides(**conf))
    running = injector.start(config)
    decommissioned = lost = 0
    try:
        # An executor's machine is taken back while its task is at work …
        assert processes.waited((faults / "extract.waits.done").exists, 180), injector.said_last(config)
        decommissioned = int((faults / "extract.waits.done").read_text().split()[0])
        os.kill(decommissioned, signal.SIGPWR)
        (faults / "extract.waits.over").touch()
        # … and the one that holds shuffle files of a task is lost when that task has begun.
        assert processes.waited((faults / "select.waits.done").exists, 180), injector.said_last(config)
        reading = int((faults / "select.waits.done").read_text().split()[0])
        others = [pid for pid in cluster.executors() if pid != reading]
        lost = others[0] if others else reading
        os.kill(lost, signal.SIGKILL)
        (faults / "select.waits.over").touch()
        assert running.wait(injector.RUNS) == 0, injector.said_last(config)
    finally:
        injector.stop(running)
    assert {p.name for p in faults.glob("*.done")} == {
        f"{name}.done" for name in ("pairs.fails", "extract.waits", "score.sleeps", "select.waits", "finish.fails")
    }
    for stage in ("pairs", "score", "finish"):  # each was tried again, the slow one while it slept
        _, partition, attempt = map(int, next(faults.glob(f"{stage}.*.done")).read_text().split())
        assert any(p == partition and a > attempt for _, p, a in attempts(faults, stage)), stage
    assert processes.waited(lambda: not processes.alive(decommissioned), 60)
    told = Counter(one[0] for one in attempts(faults, "finish"))
    assert lost not in told
    outcome = injector.Outcome(0, "cluster", "parquet", runs=1)
    outcome.faults += [injector.Fault(kind, stage, 0.0) for kind, stage in FAULTS]
    injector.judge(still.whole, output, "parquet", outcome)
    return outcome
