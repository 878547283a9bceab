"""The stages in their order: what is done, what is to do, do it.

A stage's unit is done when its commit record bears the fingerprint of this run and the files that it names are there.
Everything else is made again, unit by unit, and what depends on it after it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.engine.progress import StageProgress, job_group
from i2e_pipeline.engine.stage import Run, Stage, StageError, difference
from i2e_pipeline.engine.tables import WHOLE, Commit, Tables
from i2e_pipeline.engine.units import Unit, Units

_LISTINGS = 32


def stages() -> list[Stage]:
    """All stages, in the order of the walk."""
    from i2e_pipeline.extract.stages import Extract, Pairs
    from i2e_pipeline.knowledge.stages import KnowledgeBase, Surfaces
    from i2e_pipeline.label.stages import Label
    from i2e_pipeline.link.stages import Link
    from i2e_pipeline.publish.stages import Finish, Publish, Select
    from i2e_pipeline.score.stages import EncodeEntities, Score

    return [
        KnowledgeBase(),
        Surfaces(),
        Pairs(),
        Extract(),
        Link(),
        EncodeEntities(),
        Score(),
        Label(),
        Select(),
        Publish(),
        Finish(),
    ]


@dataclass
class StageState:
    """How a stage stands: which units are done, which are to do and why."""

    stage: Stage
    done: dict[str, Commit] = field(default_factory=dict)
    to_do: dict[str, str] = field(default_factory=dict)
    """Unit to the reason that it is to do."""
    seconds: float = 0.0
    """Of this run; 0 where nothing was to do."""

    @property
    def worked(self) -> bool:
        return bool(self.to_do)


def inspect(run: Run, stage: Stage, redo: bool = False) -> StageState:
    """Which units of a stage are done. Reads commit records and lists files; no Spark."""
    state = StageState(stage)
    run.fingerprints[stage.name] = stage.fingerprint(run, WHOLE)
    found = run.tables.commits(stage.name)
    units = stage.all_units(run)
    with ThreadPoolExecutor(_LISTINGS) as pool:
        gone = dict(zip(found, pool.map(lambda commit: stage.missing(run, commit), found.values()), strict=True))
    for unit in units:
        commit = found.get(unit)
        if commit is None:
            state.to_do[unit] = "new"
        elif redo:
            state.to_do[unit] = "asked for"
        elif commit.fingerprint != stage.fingerprint(run, unit):
            changed = difference(commit.components, stage.components(run, unit))
            state.to_do[unit] = "changed: " + "; ".join(changed)
        elif missing := gone[unit]:
            state.to_do[unit] = f"{missing[0]} is missing or was changed"
        else:
            state.done[unit] = commit
    run.commits[stage.name] = dict(state.done)
    return state


def _refuse_guarded(run: Run, walk: Sequence[Stage], redo: Sequence[str]) -> None:
    """Stop before any work where a setting changed that is guarded: what it made is too dear to be thrown away."""
    units = {u.name for u in run.units}
    for stage in walk:
        if not stage.guarded or stage.name in redo:
            continue
        now = stage.settings(run.config)
        for unit, commit in run.tables.commits(stage.name).items():
            for setting in stage.guarded:
                before = commit.components["settings"].get(setting)
                if unit in units and before != now[setting]:
                    raise StageError(
                        f"{run.tables.path(stage.writes[0])} was written with another {setting} "
                        f"({before}, now {now[setting]}): use another output, or `i2e run --redo {stage.name}`"
                    )


def _refuse_other_format(config: Config, tables: Tables) -> None:
    """An output is Parquet or Delta; what is there in one cannot be read as the other."""
    path, wanted = tables.path("_storage.json"), config.storage.format
    if not files.exists(path):
        files.write_json(path, {"format": wanted})
    elif (found := files.read_json(path)["format"]) != wanted:
        raise StageError(
            f"{tables.root} holds {found} tables, and storage.format is {wanted}: use another output, or "
            f"storage.format={found}"
        )


def run_stages(
    config: Config,
    tables: Tables,
    wanted: Sequence[str] | None = None,
    redo: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Run, list[StageState]]:
    """Run the named stages (None: all); stages before them must be complete. Returns how every stage stands."""
    walk = stages()
    needs_units = wanted is None or any(s.scope == "unit" for s in walk if s.name in wanted)
    units = Units(tables.root).plan(config.pairs) if needs_units else []
    run = Run(config, tables, units)
    last = max(n for n, s in enumerate(walk) if wanted is None or s.name in wanted)
    states = []
    # Whatever is wrong with a setting is said before any work, not hours later when its stage comes.
    for stage in walk[: last + 1]:
        stage.settings(config)
    _refuse_other_format(config, tables)
    _refuse_guarded(run, walk[: last + 1], redo)
    tables.discard_staging()
    for stage in walk[: last + 1]:
        state = inspect(run, stage, redo=stage.name in redo)
        states.append(state)
        if not state.to_do:
            say(f"{stage.name:<15} nothing to do: {_units(len(state.done))} done before")
        elif wanted is not None and stage.name not in wanted:
            raise StageError(_missing(stage, run, walk, wanted))
        else:
            _run_stage(run, state, say)
    return run, states


def _missing(stage: Stage, run: Run, walk: Sequence[Stage], wanted: Sequence[str]) -> str:
    asker = next(s for s in walk if s.name in wanted)
    for table in stage.writes:
        path = run.tables.path(table)
        if not files.exists(path):
            return f"{asker.name} needs the table `{table}`, and {path} does not exist: run jobs/{stage.job}.py first."
    return f"{asker.name} needs {stage.name}, which is not complete under this config: run jobs/{stage.job}.py first."


def _run_stage(run: Run, state: StageState, say: Callable[[str], None]) -> None:
    stage, context = state.stage, run.spark.sparkContext
    started = time.monotonic()
    for reason in sorted(set(state.to_do.values()) - {"new"}):
        say(f"{stage.name:<15} {_units(sum(r == reason for r in state.to_do.values()))} again, {reason}")
    stage.prepare(run)
    rows = {unit: stage.rows_to_do(run, unit) for unit in state.to_do}
    with StageProgress(stage.name, stage.does, sum(rows.values()), context) as progress:

        def work(unit: str) -> Commit:
            context.setJobGroup(job_group(stage.name, unit), f"{stage.does}: {unit}")
            progress.begin(unit, rows[unit])
            commit = stage.carry_out(run, unit)
            progress.end(unit)
            return commit

        for commit in _in_threads(work, list(state.to_do), run.config.run.units_in_flight):
            state.done[commit.unit] = commit
            run.commits[stage.name][commit.unit] = commit
    state.seconds = time.monotonic() - started
    made = [state.done[u] for u in state.to_do]
    rows_in = sum(c.rows_in for c in made)
    say(
        f"{stage.name:<15} {stage.does}: {rows_in:,} {stage.rows_are} in, {sum(c.rows_out for c in made):,} out, "
        f"{_units(len(made))}, {state.seconds:.1f} s" + (f", {rows_in / state.seconds:,.0f} rows/s" if rows_in else "")
    )


def _in_threads(work: Callable[[str], Commit], units: Sequence[str], width: int) -> Iterator[Commit]:
    """Commits as they are made. After a failure no further unit is begun, and the failure is raised."""
    with ThreadPoolExecutor(min(width, max(1, len(units)))) as pool:
        waiting = [pool.submit(work, unit) for unit in units]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise


def _units(count: int) -> str:
    return f"{count} unit" + ("s" if count != 1 else "")


@contextmanager
def exclusive(output: str) -> Iterator[None]:
    """One run at a time in an output folder. A lock whose process is gone does not hold."""
    path = files.join(output, "_lock")
    me = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    if files.exists(path):
        holder = json.loads(files.read_bytes(path) or b"{}")
        if holder.get("host") != me["host"] or _alive(holder.get("process", 0)):
            raise StageError(
                f"{output} is being written by process {holder.get('process')} on {holder.get('host')} since "
                f"{holder.get('since')}: wait for it, or remove {path} if that process is gone"
            )
        files.remove(path)
    files.create_json(path, me)
    try:
        yield
    finally:
        files.remove(path)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def forget(tables: Tables, unit: str) -> None:
    """Drop a unit from the dataset, and what every stage made of it. Raises InputError where it is not known."""
    Units(tables.root).forget(unit)
    for stage in stages():
        if stage.scope == "unit" and stage.name != "publish":
            tables.discard(stage.name, unit)


def status(config: Config, tables: Tables) -> tuple[list[Unit], list[StageState]]:
    """How every stage stands under this config; runs nothing."""
    units = Units(tables.root).plan(config.pairs, remember=False)
    run = Run(config, tables, units)
    return units, [inspect(run, stage) for stage in stages()]
