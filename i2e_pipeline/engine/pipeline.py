"""A pipeline of stages over one output: what is done, what is to do, do it. Knows no stage by name.

A stage's unit is done when its commit record bears the fingerprint of this run and the files that it names are there.
Everything else is made again, wave by wave of units (engine/waves.py), and what depends on it after it.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING

from i2e_pipeline.core import files, places, stores
from i2e_pipeline.core.config import Config, paths
from i2e_pipeline.core.errors import AlreadyThere, ExitCode, I2EError, NoSuchFile
from i2e_pipeline.core.lock import Held, exclusive, waiting
from i2e_pipeline.core.rejects import reason_name
from i2e_pipeline.engine import (
    cluster,
    digest_list,
    garbage,
    kept,
    looking,
    merging,
    seal,
    session,
    sharing,
    taking_over,
)
from i2e_pipeline.engine.causes import cause, limit
from i2e_pipeline.engine.progress import StageProgress, job_group
from i2e_pipeline.engine.stage import Made, RowsLost, Run, Stage, StageError, behind, catalogue
from i2e_pipeline.engine.tables import WHOLE, Commit, Failed, Tables
from i2e_pipeline.engine.units import Gone, Unit, Units, files_gone
from i2e_pipeline.engine.waves import HOPELESS, Waves
from i2e_pipeline.inputs.columns import InputError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

_FAILURES_SHOWN = 5
STORAGE = "_storage.json"
_COMPOSED = ("input", "manifest.json")
"""Lies in an output that has the embedded sample's input within it."""
JOINING = "_joining.json"
"""Lies in an output for as long as two others are being joined in it (engine/joining.py)."""
_CANCELLED = "[SPARK_JOB_CANCELLED]"
"""Stands in the error of a job that somebody cancelled, as Ctrl-C does: no unit is to blame."""
_TELLING_ROWS, _NEARLY_ALL = 1_000, 0.99
_SHUFFLE_PARTITIONS, _MOST_PARTITIONS = 200, 50_000
_ROWS_OF_A_PARTITION = 250_000


class UnitsFailed(StageError):
    """Units whose rows could not be worked on, while the others were made; the message names them."""

    exit_code = ExitCode.FAULT


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
    run = run.handed_to(stage)
    run.fingerprints[stage.name] = stage.fingerprint(run, WHOLE)
    if place := stage.shared_in(run.config):
        run.tables.share(stage.name, sharing.home(place, stage.name, run.fingerprints[stage.name]))
    found = run.tables.commits(stage.name)
    units = stage.all_units(run)
    gone = run.tables.missing_files(found[unit] for unit in units if unit in found)
    for unit in units:
        commit = found.get(unit)
        if commit is None:
            state.to_do[unit] = "new"
        elif redo:
            state.to_do[unit] = "asked for"
        elif commit.fingerprint != stage.fingerprint(run, unit):
            state.to_do[unit] = "changed: " + "; ".join(stage.changed(run, commit))
        elif missing := gone.get(unit) or stage.missing(run, commit):
            state.to_do[unit] = f"{missing[0]} is missing or was changed"
        else:
            state.done[unit] = commit
    run.commits[stage.name] = dict(state.done)
    return state


class Pipeline:
    """Stages over the tables of one output."""

    def __init__(
        self, config: Config, stages: Sequence[Stage], start_spark: Callable[[], SparkSession] | None = None
    ) -> None:
        """`start_spark` is called when Spark is first needed. None: as the config says."""
        stores.use(config.storage.options, paths(config))
        self.config = config
        self.stages = list(stages)
        start = start_spark or self._start_spark
        shared = [s.name for s in stages if s.shared_in(config)]
        self.tables = Tables(
            config.output,
            config.storage,
            lambda: session.ready(start(), config),
            catalogue(stages),
            shared,
            self._settle_shared,
        )
        self._held = False

    def _settle_shared(self) -> None:
        """Find the tables that outputs share, for who asks for one before any stage was inspected."""
        run = Run(self.config, self.tables, [], self.stages)
        for stage in self.stages:
            if stage.shared_in(self.config):
                inspect(run, stage)

    def _start_spark(self) -> SparkSession:
        return session.build(self.config)

    def sealed_further(self) -> list[str]:
        """Folders whose files the seal names beside records, card and report: those of files for workers, and the logs
        of Delta tables."""
        laid_out = [f"{folder}/" for stage in self.stages for folder in stage.lays_out_in]
        if files.exists(self.tables.path(*_COMPOSED)):
            laid_out.append(f"{_COMPOSED[0]}/")
        tables = self.tables.catalogue.writers if self.config.storage.format == "delta" else ()
        return [*laid_out, *(f"{table}/_delta_log/" for table in (*tables, "rejects") if tables)]

    def _seal_shared(self) -> None:
        """Seal what was laid out beside tables that outputs share, by whichever of them. Who holds them now seals
        them."""
        for home in self.tables.known_homes():
            if not files.is_local(home) or os.access(home, os.W_OK):
                with suppress(Held, AlreadyThere), exclusive(home):
                    seal.seal(home, self.sealed_further())

    @property
    def held(self) -> bool:
        """Whether this process holds the output (`exclusive`)."""
        return self._held

    @property
    def names(self) -> list[str]:
        return [s.name for s in self.stages]

    def writer(self, table: str) -> str:
        """Name of the stage that writes a table."""
        return self.tables.catalogue.writers[table]

    def before(self, name: str) -> list[str]:
        """Names of the stages before one."""
        return self.names[: self.names.index(name)]

    def upto(self, name: str) -> list[str]:
        """Names of the stages before one, and its own."""
        return self.names[: self.names.index(name) + 1]

    def depends_on_units(self, stage: Stage) -> bool:
        """Does a stage depend, by itself or through others, on what is made unit by unit?"""
        return any(s.scope == "unit" for s in self.stages if s.name in behind(stage, self.stages))

    def with_config(self, config: Config) -> Pipeline:
        """The same stages under another config of the same output."""
        other = Pipeline(config, self.stages, lambda: self.tables.spark)
        other._held = self._held
        return other

    def known(self, names: Sequence[str]) -> None:
        """Raise StageError for a name that is no stage's."""
        for name in names:
            if name not in self.names:
                raise StageError(f"no stage {name!r}; stages are {', '.join(self.names)}")

    def run(
        self, wanted: Sequence[str] | None = None, redo: Sequence[str] = (), replace_changed: bool = False
    ) -> tuple[Run, list[StageState]]:
        """Run the named stages (None: all); stages before them must be complete. Returns how every stage stands.

        replace_changed   an input file that has changed since it was read takes its old place (`Units.plan`)
        """
        self.known([*(wanted or ()), *redo])
        with self.exclusive():
            return self._run(wanted, redo, replace_changed)

    def _run(
        self, wanted: Sequence[str] | None, redo: Sequence[str], replace_changed: bool
    ) -> tuple[Run, list[StageState]]:
        cluster.refuse_relative(self.config)
        last = max(n for n, s in enumerate(self.stages) if wanted is None or s.name in wanted)
        asked = self.stages[: last + 1]
        needs_units = any(
            s.scope == "unit" or self.depends_on_units(s) for s in asked if wanted is None or s.name in wanted
        )
        unknown: list[str] = []
        units = self._planned_units(replace_changed=replace_changed, unknown=unknown) if needs_units else []
        run = replace(self.open(units), redo=tuple(redo))
        self.numbered_anew(unknown)
        # Whatever is wrong with a setting is said before any work, not hours later when its stage comes.
        for stage in asked:
            run.settings_of(stage)
            stage.check(run.handed_to(stage))
        self.mark_storage()
        if left := [name for name in self.tables.committed_stages() if name not in self.names]:
            log.info("%s: no stage of this config; what it wrote stays, and nobody reads it", ", ".join(left))
        _refuse_guarded(run, asked, redo)
        self._refuse_gone(run, asked, redo)
        self.tables.discard_staging()
        states = []
        for stage in asked:
            state = inspect(run, stage, redo=stage.name in redo)
            states.append(state)
            if not state.to_do:
                log.info("%-15s nothing to do: %s done before", stage.name, _units(len(state.done)))
            elif stage.spares and wanted is not None and stage.name not in wanted:
                log.info("%-15s is not asked for, and spares nothing to those behind it", stage.name)
            elif wanted is not None and stage.name not in wanted:
                raise StageError(_missing(stage, run, asked, wanted))
            elif self.tables.of(stage.name) is not self.tables:
                states[-1] = state = self._make_shared(run, stage, redo)
            else:
                _run_stage(run, state)
            _refuse_empty(run, state)
        if len(asked) == len(self.stages):
            self._drop_replaced(run)
        return run, states

    def numbered_anew(self, units: Sequence[str]) -> None:
        """Let nothing count that was made of these units before: where their records were lost, their input files have
        other numbers now. Costs a look at records where nothing was made."""
        own = [stage for stage in self.stages if stage.scope == "unit" and units]
        if not any(self.tables.commits(stage.name).keys() & set(units) for stage in own):
            return
        # First what was made of all of them, so that a kill leaves it outdated. Its tables know class indices.
        for stage in self.stages:
            if stage not in own and self.depends_on_units(stage):
                self.tables.outdate(stage.name, "input files", "they have other numbers now")
        for stage in own:
            self.tables.discard(stage.name, units)

    def _drop_replaced(self, run: Run) -> None:
        """What is left of units whose place others have taken, which took over what they could."""
        units = Units(self.tables.root)
        if names := units.replaced():
            for name in names:
                self._forget(run, name)
            units.drop_replaced(names)

    def mark_storage(self) -> None:
        """Write down how the output's tables are stored, before the first of them is."""
        if not files.exists(self.tables.path(STORAGE)):
            files.write_json(self.tables.path(STORAGE), {"format": self.config.storage.format})

    def _make_shared(self, run: Run, stage: Stage, redo: Sequence[str]) -> StageState:
        """Make what other outputs read, too, unless one of them has made it meanwhile, or this one made the same for
        itself before."""
        home = self.tables.of(stage.name)
        if stage.name in redo and not inspect(run, stage).to_do:
            raise StageError(
                f"{home.root} is read by other outputs, and is not made again under them: remove it when none of them "
                f"runs, and the next run makes it"
            )
        places.refuse_unwritable(home.root, f"stage {stage.name}")
        with waiting(home.root, f"stage {stage.name}"):
            state = inspect(run, stage)
            if state.to_do:
                home.discard_staging()
                if not self._adopted(run, stage, home):
                    _run_stage(run, state)
                    return state
                state = inspect(run, stage)
        log.info("%-15s nothing to do: made before, in %s", stage.name, home.root)
        return state

    def _adopted(self, run: Run, stage: Stage, home: Tables) -> bool:
        own = self.tables.own
        commit = own.commits(stage.name).get(WHOLE)
        if commit is None or commit.fingerprint != run.fingerprints[stage.name] or own.missing_files([commit]):
            return False
        log.info("%-15s copying what this output holds to %s; `i2e clean` removes it here", stage.name, home.root)
        sharing.adopt(home, own, commit)
        return True

    def _planned_units(
        self,
        remember: bool = True,
        changed: list[Gone] | None = None,
        replace_changed: bool = False,
        unknown: list[str] | None = None,
    ) -> list[Unit]:
        """The units of this config (`Units.plan`). A path that leads to nothing because files that were read are gone
        is passed over: whether a stage needs them is another question."""
        units, pairs = Units(self.tables.root), self.config.pairs
        looks: looking.Looks = looking.by_workers(lambda: self.tables.spark) if remember else looking.by_threads
        try:
            return units.plan(pairs, remember, looks, changed, replace_changed, unknown)
        except InputError as error:
            if not isinstance(error.__context__, NoSuchFile) or not _gone(units.known()):
                raise
        left = tuple(path for path in pairs.path if _leads_somewhere(path))
        log.warning(
            "pairs.path: nothing is left at %s, and files that were read are gone; what was made of them stays",
            ", ".join(path for path in pairs.path if path not in left),
        )
        return units.plan(pairs.model_copy(update={"path": left}), remember, looks, changed, replace_changed, unknown)

    def _refuse_gone(self, run: Run, asked: Sequence[Stage], redo: Sequence[str]) -> None:
        """Raise StageError, before any work, where a stage that may have to run needs an input file that is gone.

        What a stage behind one that is still to run will need is not known yet: then all that it might need counts.
        """
        reading = [stage for stage in asked if stage.opens_input()]
        if not reading or not (gone := _gone(run.units)):
            return
        beforehand = replace(run, commits={}, fingerprints={})
        states = {s.name: inspect(beforehand, s, redo=s.name in redo) for s in asked}
        for stage in reading:
            if needed := [unit for unit in states[stage.name].to_do if unit in gone]:
                before = [states[s.name] for s in asked if s.name in _before(run, stage)]
                cause = next((state for state in before if state.worked), states[stage.name])
                raise StageError(_said_gone(states[stage.name], cause, needed, gone))

    def planned(self) -> Run:
        """What stages are handed, over the units of this config."""
        return self.open(self._planned_units())

    def open(self, units: Sequence[Unit]) -> Run:
        """What stages are handed, over these units; nothing is looked at yet."""
        further = {t: columns for s in self.stages for t, columns in s.further_columns(self.config, units).items()}
        self.tables.catalogue = catalogue(self.stages).widened(further)
        return Run(self.config, self.tables, units, self.stages)

    def as_it_is(self) -> Run:
        """The units and commits of an output as they lie there, whatever config made them. Plans nothing, lists no
        input.

        `fingerprints` are those of the stages over everything, as their records bear them.
        """
        run = self.open(Units(self.tables.root).known())
        for stage in self.stages:
            run.commits[stage.name] = self.tables.commits(stage.name)
            if WHOLE in run.commits[stage.name]:
                run.fingerprints[stage.name] = run.commits[stage.name][WHOLE].fingerprint
        return run

    @contextmanager
    def beside(self, run: Run, stages: Sequence[Stage], unit: Unit) -> Iterator[Run]:
        """Make these stages' tables of one unit that is no part of the dataset. They are removed at the end of the
        block.

        run   knows what the stages before these made
        """
        known = [s for s in self.stages if s in stages or s.name in run.commits]
        beside = replace(run, units=[unit], stages=known, commits=dict(run.commits))
        try:
            for stage in stages:
                inspect(beside, stage)
                handed = beside.handed_to(stage)
                stage.prepare(handed)
                made: list[Made] = []
                for group in stage.carry_out(handed, [unit.name]):
                    for one in group:
                        if isinstance(one, Failed):
                            raise _failure(stage, [one], 0)
                        made.append(one)
                    stage.before_commit(handed, [m.commit.unit for m in made])
                    self.tables.commit([(m.commit, m.staged) for m in made])
                beside.commits[stage.name] = {m.commit.unit: m.commit for m in made}
            yield beside
        finally:
            for stage in stages:
                self.tables.discard(stage.name, [unit.name])

    def status(self) -> tuple[list[Unit], list[StageState]]:
        """How every stage stands under this config; runs nothing."""
        units, states, _ = self.status_and_gone()
        return units, states

    def status_and_gone(self) -> tuple[list[Unit], list[StageState], list[Gone]]:
        """`status`, and the input files of units of before that are gone or have changed since they were read."""
        changed: list[Gone] = []
        units = self._planned_units(remember=False, changed=changed)
        run = self.open(units)
        states = [inspect(run, stage) for stage in self.stages]
        return units, states, list(dict.fromkeys([*files_gone(units), *changed]))

    def forget(self, unit: str) -> None:
        """Drop a unit from the dataset, and what every stage made of it. Raises InputError where it is not known."""
        with self.exclusive():
            Units(self.tables.root).forget(unit)
            self._forget(self.open([]), unit)

    def _forget(self, run: Run, unit: str) -> None:
        for stage in self.stages:
            stage.forget(run, unit)
        # Stages that the config no longer names left something of the unit, too.
        for name in self.tables.committed_stages():
            if name not in self.names:
                self.tables.discard(name, [unit])
        kept.forget(self.tables.root, unit)

    @contextmanager
    def exclusive(self, joining_in: bool = False, looking: bool = False) -> Iterator[None]:
        """One run at a time in an output folder. A lock whose process is gone does not hold.

        joining_in   two others are joined into it (engine/joining.py), which may have been begun before
        looking      nothing is changed in the block: a change of files that was cut off is not ended either
        """
        if self._held:
            yield
            return
        places.refuse_unwritable(self.config.output, "output")
        with ExitStack() as held:
            try:
                held.enter_context(exclusive(self.config.output))
            except Held as error:
                raise StageError(str(error)) from None
            self._held = True
            try:
                _refuse_other_format(self.config, self.tables)
                if not joining_in:
                    _refuse_half_joined(self.tables)
                if looking:
                    if merging.pending(self.tables):
                        log.info("a change of files was cut off; the next command that writes here ends it")
                    yield
                    return
                listed = partial(digest_list.renew, self.tables)
                with seal.unsealed(self.config.output, self.sealed_further(), listed):
                    merging.finish(self.tables)
                    yield
                self._seal_shared()
            finally:
                self._held = False


def _refuse_guarded(run: Run, asked: Sequence[Stage], redo: Sequence[str]) -> None:
    """Raise StageError, before any work, where a guarded setting changed: what was made with it cost too much to be
    made again unasked."""
    units = {u.name for u in run.units}
    for stage in asked:
        if not stage.guarded or stage.name in redo:
            continue
        now = run.settings_of(stage)
        for unit, commit in run.tables.commits(stage.name).items():
            for setting in stage.guarded:
                before = commit.components.get("settings", {}).get(setting)
                if unit in units and before != now[setting]:
                    raise StageError(
                        f"{run.tables.path(next(iter(stage.tables)))} was written with another {setting} "
                        f"({before}, now {now[setting]}): use another output, or `i2e run --redo {stage.name}`"
                    )


def _leads_somewhere(path: str) -> bool:
    try:
        return bool(files.find([path], ""))
    except NoSuchFile:
        return False


def _before(run: Run, stage: Stage) -> set[str]:
    """Names of the stages whose tables or fingerprints it needs, and of those that these need."""
    found: set[str] = set()
    left = [stage]
    while left:
        one = left.pop()
        new = {*one.after, *(run.writer(table).name for table in one.reads)} - found
        found |= new
        left += [run.stage(name) for name in new]
    return found


def _gone(units: Sequence[Unit]) -> dict[str, str]:
    """Unit to what is wrong with the first of its input files that is not what it was; the others are not in it."""
    found: dict[str, str] = {}
    for one in files_gone(units):
        found.setdefault(one.unit, str(one))
    return found


def _said_gone(state: StageState, cause: StageState, units: Sequence[str], gone: Mapping[str, str]) -> str:
    """What to say of a stage that needs these units' files. `cause`: the first stage because of which it does."""
    why = cause.to_do.get(units[0]) or next(iter(cause.to_do.values()))
    named = "; ".join(f"unit {unit}: {gone[unit]}" for unit in units[:_FAILURES_SHOWN])
    more = f"; and {len(units) - _FAILURES_SHOWN} units more" if len(units) > _FAILURES_SHOWN else ""
    return (
        f"stage {state.stage.name} needs input files again ({cause.stage.name}: {why}), and they are not there. {named}"
        f"{more}. Put each back as it was, or leave its unit out: `i2e run --forget {units[0]}`"
    )


def _refuse_other_format(config: Config, tables: Tables) -> None:
    """Raise StageError where the output holds tables of the other format: one cannot be read as the other."""
    found, wanted = stored_as(tables), config.storage.format
    if found is not None and found != wanted:
        raise StageError(
            f"{tables.root} holds {found} tables, and storage.format is {wanted}: use another output, or "
            f"storage.format={found}"
        )


def stored_as(tables: Tables) -> str | None:
    """The format of an output's tables, as it is written down, or, where that is damaged, as they lie there. None: no
    table was written yet."""
    path = tables.path(STORAGE)
    if not files.exists(path):
        return None
    try:
        return str(files.read_json(path)["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        logs = (tables.path(table, "_delta_log") for table in (*tables.catalogue.writers, "rejects"))
        return "delta" if any(files.exists(log_) for log_ in logs) else "parquet"


def _refuse_half_joined(tables: Tables) -> None:
    """Raise StageError where two outputs were to be joined in this one, and some of it is still to come."""
    path = tables.path(JOINING)
    if files.exists(path):
        plan = files.record(path, remedy := "remove the output, and join again")
        parts = plan.get("from") if isinstance(plan, dict) else None
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
            raise files.RecordError(f"{path} does not say which two outputs are joined: {remedy}")
        first, second = parts
        raise StageError(
            f"{tables.root} is a join of {first} and {second} that was cut off: `i2e merge {first} {second} --to "
            f"{tables.root}` goes on with it"
        )


def _missing(stage: Stage, run: Run, asked: Sequence[Stage], wanted: Sequence[str]) -> str:
    asker = next(s for s in asked if s.name in wanted)
    for table in stage.tables:
        path = run.tables.path(table)
        if not files.exists(path):
            return f"{asker.name} needs the table `{table}`, and {path} does not exist: run jobs/{stage.job}.py first."
    return f"{asker.name} needs {stage.name}, which is not complete under this config: run jobs/{stage.job}.py first."


def _run_stage(run: Run, state: StageState) -> None:
    stage, context = state.stage, run.spark.sparkContext
    cluster.check(run.spark, run.config)
    run = run.handed_to(stage)
    started = time.monotonic()
    for reason in sorted(set(state.to_do.values()) - {"new"}):
        log.info("%-15s %s again, %s", stage.name, _units(sum(r == reason for r in state.to_do.values())), reason)
    if stage.opens_input() and (gone := _gone([u for u in run.units if u.name in state.to_do])):
        raise StageError(_said_gone(state, state, list(gone), gone))  # since the run began
    stage.prepare(run)
    rows = stage.rows_to_do(run, list(state.to_do))
    gb = {u.name: sum(f.size for f in u.files) / 1e9 for u in run.units}
    waves = Waves(list(state.to_do), rows, gb, run.config.run, context.defaultParallelism)
    _size_shuffles(run, sum(rows.values()))
    with StageProgress(stage.name, stage.does, sum(rows.values()), context) as progress:
        try:
            failed = _Workers(run, state, waves, rows, progress).work()
        except KeyboardInterrupt:
            log.info("%-15s stopped: %s of %d whole and kept", stage.name, _units(len(state.done)), len(state.to_do))
            raise
    if failed:
        raise _failure(stage, failed, len(state.to_do) - len(failed))
    run.tables.of(stage.name).records.fold(stage.name)
    state.seconds = time.monotonic() - started
    made = [state.done[u] for u in state.to_do]
    rows_in = sum(c.rows_in for c in made)
    log.info(
        "%-15s %s: %s %s in, %s out, %s, %.1f s%s",
        stage.name,
        stage.does,
        f"{rows_in:,}",
        stage.rows_are,
        f"{sum(c.rows_out for c in made):,}",
        _units(len(made)),
        state.seconds,
        f", {rows_in / state.seconds:,.0f} rows/s" if rows_in else "",
    )
    notes: Counter[str] = Counter()
    for commit in made:
        notes.update(commit.facts.get("notes", {}))
    for note, values in sorted(notes.items()):
        if note in stage.counts:
            log.info("%-15s %s %s", stage.name, f"{values:,}", note)
        else:
            log.warning("%-15s %s: %s values", stage.name, note, f"{values:,}")


def _refuse_empty(run: Run, state: StageState) -> None:
    """Raise StageError where a stage made next to nothing of all its units: what comes behind it would be empty, and
    the run would end well."""
    made = state.done.values()
    rows_in, rows_out = sum(c.rows_in for c in made), sum(c.rows_out for c in made)
    if run.config.run.allow_empty or not rows_in or state.stage.passes is None:
        return
    reasons: Counter[str] = Counter()
    for commit in made:
        reasons.update(commit.rejected)
    stage = state.stage
    unasked = reasons - Counter({reason_name(reason): rows_in for reason in stage.asked_for})
    if rows_out:
        wanted = rows_in - (reasons.total() - unasked.total())
        if wanted < _TELLING_ROWS or max(unasked.values(), default=0) < _NEARLY_ALL * wanted:
            return
        reasons = unasked
    reason, rejected = reasons.most_common(1)[0] if reasons else ("", 0)
    why = next((said for r, said in stage.reasons.items() if reason_name(r) == reason), "")
    raise StageError(
        f"stage {stage.name}: of {rows_in:,} {stage.rows_are} {rows_out:,} were passed on"
        + (f", and {rejected:,} rejected as {reason} ({why.rstrip('.')})" if reason else "")
        + f". Look at {run.tables.path('rejects', f'stage={stage.name}')}, and at the settings of "
        f"{', '.join(stage.all_sections()) or 'the stages before it'}; run.allow_empty=true goes on"
    )


def _size_shuffles(run: Run, rows: int) -> None:
    """On a cluster, as many partitions as the rows need; Spark joins those that turn out small. Spark's own 200 would
    be 200 tasks of many gigabytes for a stage over everything."""
    from i2e_pipeline.engine.session import is_local

    context = run.spark.sparkContext
    if run.config.session.shuffle_partitions is None and not is_local(context.master):
        most = max(_SHUFFLE_PARTITIONS, 2 * context.defaultParallelism)
        wanted = min(_MOST_PARTITIONS, max(most, -(-rows // _ROWS_OF_A_PARTITION)))
        run.spark.conf.set("spark.sql.shuffle.partitions", str(wanted))


class _Workers:
    """Threads that carry out a stage's waves side by side, and commit each unit as soon as it is whole."""

    def __init__(
        self, run: Run, state: StageState, waves: Waves, rows: Mapping[str, int], progress: StageProgress
    ) -> None:
        self.run, self.state, self.waves, self.rows, self.progress = run, state, waves, rows, progress
        self.stage = state.stage
        self.context = run.spark.sparkContext
        self.failed: list[Failed] = []
        self._numbers = count(1)
        self._groups: set[str] = set()
        self._lock = Lock()
        self._since = time.monotonic()

    def work(self) -> list[Failed]:
        """All waves. Returns the units that failed; raises what is no unit's fault. Then, as after an interruption,
        Spark's jobs are cancelled, and nothing more is begun."""
        width = self.run.config.run.waves_in_flight
        with ThreadPoolExecutor(min(width, max(1, len(self.state.to_do)))) as pool:
            threads = [pool.submit(self._thread) for _ in range(width)]
            try:
                wait(threads, return_when=FIRST_EXCEPTION)
                for thread in threads:
                    if thread.done():
                        thread.result()
            except BaseException:
                self.waves.stop()
                for group in list(self._groups):
                    with suppress(Exception):  # the JVM may be what was lost
                        self.context.cancelJobGroup(group)
                raise
        return self.failed

    def _thread(self) -> None:
        while wave := self.waves.next():
            self._carry_out(wave)

    def _carry_out(self, wave: Sequence[str]) -> None:
        started = time.monotonic()
        with self._lock:
            group = job_group(self.stage.name, f"wave {next(self._numbers)}")
            self._groups.add(group)
        what = wave[0] if len(wave) == 1 else f"{wave[0]} and {len(wave) - 1} more units"
        self.context.setJobGroup(group, f"{self.stage.does}: {what}", interruptOnCancel=True)
        self.progress.begin(group, sum(self.rows[unit] for unit in wave))
        left = dict.fromkeys(wave)
        try:
            with closing(taking_over.carry_out(self.stage, self.run, wave)) as groups:
                for made in groups:
                    self._commit(made, group)
                    for one in made:
                        left.pop(one.unit if isinstance(one, Failed) else one.commit.unit, None)
            for unit in left:
                raise StageError(f"stage {self.stage.name}: carry_out has not handed out unit {unit}")
        except I2EError:
            raise
        except Exception as error:
            if not left or self._over() or _CANCELLED in str(error):
                raise
            if not self.waves.failed(list(left)):
                if self.waves.hopeless():
                    if not self._made_any():
                        raise
                    self.waves.stop()
                log.debug("%s", "".join(traceback.format_exception(error)))
                self._add_failed([Failed(unit, cause(error)) for unit in left])
        finally:
            self._groups.discard(group)
            self.progress.end(group)
            garbage.collect()
        self.waves.done([unit for unit in wave if unit not in left], time.monotonic() - started)

    def _commit(self, made: Sequence[Made | Failed], group: str) -> None:
        self._add_failed([one for one in made if isinstance(one, Failed)])
        whole = [one for one in made if isinstance(one, Made)]
        if not whole:
            return
        with self._lock:
            now = time.monotonic()
            share, self._since = round((now - self._since) / len(whole), 4), now
            self.stage.before_commit(self.run, [one.commit.unit for one in whole])
        for commit in self.run.tables.commit([(replace(m.commit, seconds=share), m.staged) for m in whole]):
            self.state.done[commit.unit] = commit
            self.run.commits[self.stage.name][commit.unit] = commit
            self.progress.add(group, self.rows[commit.unit])
        self.waves.made()

    def _add_failed(self, units: Sequence[Failed]) -> None:
        if not units:
            return
        self.failed += units
        if whole := [u.unit for u in units if u.unit in self.run.commits[self.stage.name]]:
            # It counted already, and should not have.
            self.run.tables.discard(self.stage.name, whole)
            for unit in whole:
                self.state.done.pop(unit, None)
                self.run.commits[self.stage.name].pop(unit, None)
        for one in units:
            log.error("%-15s unit %s failed: %s", self.stage.name, one.unit, _reason(one.why))
        if len(self.failed) >= 3 * HOPELESS and not self._made_any():
            self.waves.stop()

    def _over(self) -> bool:
        """Is Spark stopped, or its JVM gone? Then no unit is to blame."""
        try:
            return self.context._jsc is None or bool(self.context._jsc.sc().isStopped())
        except Exception:
            return True

    def _made_any(self) -> bool:
        return any(unit in self.state.done for unit in self.state.to_do)


def _failure(stage: Stage, failed: Sequence[Failed], made: int) -> StageError:
    """The error that names the units that failed, and the way out."""
    kind = RowsLost if all(f.why.startswith(RowsLost.__name__) for f in failed) else UnitsFailed
    said = "; ".join(f"{f.unit}: {_reason(f.why)}" for f in failed[:_FAILURES_SHOWN])
    more = f"; and {len(failed) - _FAILURES_SHOWN} more" if len(failed) > _FAILURES_SHOWN else ""
    log.debug("%s", failed[0].why)
    return kind(
        f"stage {stage.name}: {_units(len(failed))} failed, {made} made. {said}{more}. Mend the cause and start again: "
        "what was made is kept. `i2e run --forget UNIT` leaves a unit out"
    )


def _reason(why: str) -> str:
    """The exception of a trace, without the trace."""
    lines = [line for line in why.strip().splitlines() if line and not line[0].isspace()]
    said = lines[-1] if lines else why
    return said if limit(said) in said else said + limit(said)


def _units(count: int) -> str:
    return f"{count} unit" + ("s" if count != 1 else "")
