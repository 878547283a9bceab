"""Faults at seeded moments of real runs, and what is left of the rows afterwards.

A chain is one output and several faults: `i2e run` is started, hit, started again, hit again, and so on, and at last it
runs to its end. Each fault waits until a drawn stage is at work, and then for a drawn share of the time which that
stage took in a run that nobody disturbed. What a seed cannot fix is how far a loaded machine is by then.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from i2e_pipeline.core import files
from i2e_pipeline.core.config import dump
from i2e_pipeline.engine.records import Commit
from i2e_pipeline.engine.tables import Tables
from tests.chain import settings
from tests.cluster.tables import tables
from tests.faults import processes

ROOT = Path(__file__).parents[2]
STAGES = (
    "knowledge_base", "surfaces", "pairs", "extract", "link", "entity_vectors", "score", "label", "select", "publish",
    "finish",
)  # fmt: skip
ENDS_WITHIN = 30.0
"""Seconds for a driver that lost its JVM, or was asked to end, on a machine whose cores others share."""
RUNS = 240.0


@dataclass(frozen=True)
class World:
    """Inputs, and what a run over them makes that nobody disturbs."""

    place: Path
    whole: Mapping[str, Counter[Any]]
    pace: Mapping[str, float]
    """Stage to the seconds between the record of the stage before and its own."""


@dataclass
class Fault:
    """One that was injected, and what came of it."""

    kind: str
    stage: str
    """at work when it came"""
    share: float
    seconds: float = 0.0
    """until the command had ended, where the fault ended it"""
    code: int | None = None
    """its exit code; None: it went on"""
    kept: int = 0
    """commits that were there already"""
    said: str = ""
    at: str = ""
    """The change that was not made any more, where it died of itself."""


@dataclass
class Outcome:
    """What a chain came to."""

    seed: int
    where: str
    storage: str
    faults: list[Fault] = field(default_factory=list)
    too_late: int = 0
    """faults for which the run had nothing left to do"""
    runs: int = 0
    rows: int = 0
    lost: int = 0
    twice: int = 0
    """rows that an undisturbed run does not have, or has less often"""
    tables: list[str] = field(default_factory=list)
    """those that differ"""
    orphans: int = 0
    staged: int = 0
    repeated: int = 0
    """commits that were there before a fault, and were made again after it"""

    @property
    def survived(self) -> bool:
        return not (self.lost or self.twice or self.tables or self.orphans or self.staged or self.repeated)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "survived": self.survived}


@dataclass(frozen=True)
class Kind:
    """A way to disturb a run."""

    whom: Callable[[int, Any], Sequence[int]]
    """Of the driver's process and the cluster, the processes that may be hit."""
    signal: int = signal.SIGKILL
    ends: bool = True
    """Does the command end of it, in any case?"""
    group: bool = False
    """Is it sent to the driver's process group, as a terminal sends Ctrl-C?"""


KINDS = {
    "driver": Kind(lambda driver, _: [driver]),
    "driver's JVM": Kind(lambda driver, _: processes.jvms(driver)),
    "driver and JVM": Kind(lambda driver, _: [driver], group=True),
    "worker": Kind(lambda driver, _: processes.workers(driver), ends=False),
    "daemon": Kind(lambda driver, _: processes.daemons(driver), ends=False),
    "SIGTERM": Kind(lambda driver, _: [driver], signal.SIGTERM),
    "SIGTERM to all": Kind(lambda driver, _: [driver], signal.SIGTERM, group=True),
    "Ctrl-C": Kind(lambda driver, _: [driver], signal.SIGINT, group=True),
    "SIGINT": Kind(lambda driver, _: [driver], signal.SIGINT),
    "executor": Kind(lambda _, cluster: cluster.executors(), ends=False),
    "executor's worker": Kind(lambda _, cluster: cluster.python_workers(), ends=False),
    "executor's daemon": Kind(lambda _, cluster: cluster.python_daemons(), ends=False),
    "Worker": Kind(lambda _, cluster: cluster.worker_jvms(), ends=False),
}
ASKED = {signal.SIGTERM: 143, signal.SIGINT: 130}
"""Signals that ask a command to end, and its exit code then (core/errors.py)."""


UNCOMPILED = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
"""Of so few rows the work is to compile queries: a fifth of a run's CPU time."""


def configured(place: Path, output: Path, *overrides: str) -> Path:
    file = output.with_suffix(".yaml")
    quick = f"session.conf={json.dumps(UNCOMPILED)}"
    file.write_text(dump(settings(place / "input", output, "session.shuffle_partitions=2", quick, *overrides)))
    return file


def start(config: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`i2e run` in a group of its own, as a shell starts it. What it says goes to a file beside the config."""
    with config.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "i2e_pipeline.cli", "run", "--config", str(config), *arguments],
            cwd=config.parent, env={**os.environ, **environment}, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def ran(config: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The same to its end: exit code, and what it said."""
    log = config.with_suffix(".log")
    began = log.stat().st_size if log.exists() else 0
    running = start(config, *arguments, **environment)
    try:
        return running.wait(RUNS), log.read_text(errors="replace")[began:]
    finally:
        stop(running)


def stop(running: subprocess.Popen[Any]) -> None:
    """With all that it started."""
    left = [running.pid, *processes.below(running.pid)]
    if running.poll() is None:
        for pid in left:
            processes.send(pid, signal.SIGKILL)
        running.wait(20)


def undisturbed(place: Path) -> World:
    """The world in a folder whose `input` is there; the run is made when it was not yet."""
    output = made(place, "whole")
    return World(place, tables(output), pace(output))


def whole_as(world: World, storage: str) -> Path:
    """The output of a run that nobody disturbed, stored that way; made at the first call."""
    return made(world.place, "whole" if storage == "parquet" else f"whole-{storage}", f"storage.format={storage}")


def made(place: Path, name: str, *overrides: str, of: Path | None = None) -> Path:
    """The output of a run that nobody disturbs, over a copy of another one where that is said. Processes of tests side
    by side share it: the first makes it."""
    output = place / name
    with FileLock(place / f"{name}.lock"):
        if not (output / "i2e" / "manifest.json").exists():
            if of is not None:
                shutil.copytree(of, place / f"{name}-begun")
                os.rename(place / f"{name}-begun", output)
                (output / "i2e" / "manifest.json").unlink()
            code, said = ran(configured(place, output, *overrides))
            assert code == 0, said
    return output


def pace(output: Path) -> dict[str, float]:
    """Of a run that is done, by stage the seconds between the record of the stage before and its own."""
    written = [_first_record(output, stage) for stage in STAGES]
    # Of the first stage its time includes what comes before any.
    began = (output / "_storage.json").stat().st_mtime
    return {s: max(0.2, t - before) for s, t, before in zip(STAGES, written, [began, *written], strict=False)}


def _first_record(output: Path, stage: str) -> float:
    return min(file.stat().st_mtime for file in (output / "_commits" / stage).glob("*.json"))


def commits(output: Path) -> dict[str, Commit]:
    """What every stage has made of every unit, by `stage/unit`."""
    return {f"{s}/{u}": c for s in STAGES for u, c in Tables(str(output)).commits(s).items()}


def chain(
    world: World,
    output: Path,
    seed: int,
    kinds: Sequence[str],
    storage: str = "parquet",
    cluster: Any = None,
    overrides: Sequence[str] = (),
) -> Outcome:
    """Disturb runs of one output until all faults were injected, and let it come to its end.

    cluster   what the kinds that hit one are told; runs are on it when it is given
    Raises AssertionError for a command that hangs, leaves a process behind or ends otherwise than documented.
    """
    drawn = random.Random(f"{seed} {storage} {'cluster' if cluster else 'local'}")
    config = configured(world.place, output, f"storage.format={storage}", *overrides)
    outcome = Outcome(seed, "cluster" if cluster else "local", storage)
    order = list(kinds)
    drawn.shuffle(order)
    stages = sorted((drawn.choice(STAGES) for _ in kinds), key=STAGES.index)
    running: subprocess.Popen[str] | None = None
    before: dict[str, Commit] = {}
    try:
        for kind, stage in zip(order, stages, strict=True):
            fault = Fault(kind, stage, round(drawn.random(), 3))
            whom = drawn.random()
            hit = None
            while hit is None:
                if cluster is not None:
                    cluster.replenish()
                if running is None:
                    running, outcome.runs = start(config), outcome.runs + 1
                hit = _hit(world, output, fault, KINDS[kind], whom, running, cluster, drawn)
                if hit is None:  # it ended before: of the fault before this one, or because all is done
                    code = running.wait(RUNS)
                    before = kept(output, before, outcome)
                    running = None
                    if code == 0:
                        outcome.too_late += 1
                        break
                    assert code == 1, said_last(config)
            if hit is None:
                continue
            outcome.faults.append(fault)
            fault.kept = len(commits(output))
            if KINDS[kind].ends:
                _ended(config, output, fault, KINDS[kind], running, hit)
                before = kept(output, before, outcome)
                running = None
        if running is not None:
            code = running.wait(RUNS)
            assert code in (0, 1), said_last(config)
            before = kept(output, before, outcome)
            running = None
        # What was disturbed last may have failed, and nothing disturbs this run.
        code, said = ran(config)
        outcome.runs += 1
        assert code == 0, said
        kept(output, before, outcome)
    finally:
        if running is not None:
            stop(running)
    judge(world.whole, output, storage, outcome)
    return outcome


def _hit(
    world: World, output: Path, fault: Fault, kind: Kind, whom: float, running: subprocess.Popen[str], cluster: Any,
    drawn: random.Random,
) -> list[int] | None:  # fmt: skip
    """Wait for the fault's moment and let it happen. Returns the processes that the run had; None: it ended before."""
    place = STAGES.index(fault.stage)
    began = time.time()

    def at_work() -> bool:
        if running.poll() is not None:
            return True
        if place and not (output / "_commits" / STAGES[place - 1]).exists():
            return False
        # Of a run that begins with this stage, Spark has to come up first.
        staged = output / "_staging"
        return any(f.stat().st_mtime > started for f in [staged, *staged.glob("*")] if f.exists())

    started = Path(f"/proc/{running.pid}").stat().st_mtime if running.poll() is None else began
    assert processes.waited(at_work, RUNS), f"stage {fault.stage} does not begin"
    until = time.monotonic() + fault.share * world.pace[fault.stage] * (2 if cluster else 1)
    while running.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert processes.waited(lambda: running.poll() is not None or bool(kind.whom(running.pid, cluster)), RUNS)
    if running.poll() is not None or not (targets := kind.whom(running.pid, cluster)):
        return None
    had = [running.pid, *processes.below(running.pid)]
    fault.stage = next((s for s in STAGES if not (output / "_commits" / s).exists()), STAGES[-1])
    if kind.group:
        os.killpg(running.pid, kind.signal)
        return had
    return had if processes.send(targets[int(whom * len(targets))], kind.signal) else None


def _ended(
    config: Path, output: Path, fault: Fault, kind: Kind, running: subprocess.Popen[str], had: Sequence[int]
) -> None:
    """The command must end within seconds, as documented, with all that it started."""
    began = time.monotonic()
    try:
        fault.code = running.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{fault}: it has not ended after {ENDS_WITHIN:.0f} s: {said_last(config)}") from None
    assert processes.waited(lambda: not any(map(processes.alive, had)), ENDS_WITHIN), (
        fault, [(pid, processes.command_of(pid)[:200]) for pid in had if processes.alive(pid)],
    )  # fmt: skip
    fault.seconds = round(time.monotonic() - began, 1)
    said = said_last(config)
    if kind.signal in ASKED:
        assert fault.code == ASKED[signal.Signals(kind.signal)], (fault, said)
        (fault.said,) = re.findall(r"^i2e: .*\Z", said, re.MULTILINE | re.DOTALL)
        assert "goes on" in fault.said, (fault, said)
        assert "Traceback" not in said, (fault, said)
        assert "Exception" not in said, (fault, said)
        assert not (output / "_lock").exists(), fault
    elif fault.kind == "driver's JVM":
        assert fault.code == 1, (fault, said)
        assert "Traceback" not in said, (fault, said)
        assert "i2e: " in said, (fault, said)
    else:
        assert fault.code == -kind.signal, (fault, said)


def said_last(config: Path) -> str:
    """Of the last run."""
    said = config.with_suffix(".log").read_text(errors="replace")
    return said[said.rfind("settings that differ") :][-6000:]


def kept(output: Path, before: Mapping[str, Commit], outcome: Outcome) -> dict[str, Commit]:
    """The commits now; those of before must be among them, as they were. The last stage's counts with its manifest."""
    now = commits(output)
    if not (output / "i2e" / "manifest.json").exists():
        now.pop("finish/all", None)
    outcome.repeated += sum(now.get(name) != commit for name, commit in before.items())
    missing = Tables(str(output)).missing_files(now.values())
    assert not missing, f"records name files that are not there: {missing}"
    return now


def judge(whole: Mapping[str, Counter[Any]], output: Path, storage: str, outcome: Outcome) -> None:
    """Compare what is there with what an undisturbed run made."""
    found = tables(output)
    outcome.rows = sum(sum(rows.values()) for rows in found.values())
    for name in sorted(whole.keys() | found.keys()):
        wanted, made = whole.get(name, Counter()), found.get(name, Counter())
        outcome.lost += sum((wanted - made).values())
        outcome.twice += sum((made - wanted).values())
        if wanted != made:
            outcome.tables.append(name)
    lying = Tables(str(output))
    if storage == "parquet":
        outcome.orphans = len(lying.orphans())
    else:
        # Files that a Delta log does not name lie there until the table is vacuumed; readers do not see them.
        outcome.orphans = len(unnamed(output))
    outcome.staged = sum(not f.path.endswith("/") for f in files.list_files(str(output / "_staging")))
    assert not (output / "_lock").exists()


def unnamed(output: Path) -> set[str]:
    """Files that a table's Delta log names and no commit record, or the other way round."""
    from deltalake import DeltaTable

    recorded: dict[str, set[str]] = {}
    for commit in commits(output).values():
        for table, made in commit.files.items():
            recorded.setdefault(table, set()).update(f"{table}/{f.path}" for f in made)
    found: set[str] = set()
    for table, paths in recorded.items():
        actions = pa.table(DeltaTable(str(output / table)).get_add_actions(flatten=True))
        found |= {f"{table}/{path}" for path in actions["path"].to_pylist()} ^ paths
    return found
