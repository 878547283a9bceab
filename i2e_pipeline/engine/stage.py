"""What a stage is: what it declares, and what all stages share.

A stage declares all that others must know of it: name, place, tables with their schemas, reject reasons with their
sentences, settings. Resume, counting, the check that no row was lost, timing and the commit are here; manifest, card,
report, status, terminal and docs read the declarations. So one more stage is one more class, here or in somebody
else's package (docs/extending.md).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pyarrow as pa

from i2e_pipeline.core.config import Config, ModelConfig, Section, VerifyConfig, digest
from i2e_pipeline.core.errors import ExitCode, I2EError
from i2e_pipeline.core.lock import waiting
from i2e_pipeline.core.model_name import parse
from i2e_pipeline.core.rejects import reason_name
from i2e_pipeline.engine import dealing, sharing
from i2e_pipeline.engine.catalogue import Catalogue, Passed, Table
from i2e_pipeline.engine.shipping import Shipped, ship
from i2e_pipeline.engine.tables import WHOLE, Commit, Counting, Failed, Kernel, Tables, Written
from i2e_pipeline.engine.units import InputFile, Unit, Units
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import SHARD_COLUMNS, Images, Shard

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


_DIGEST = 32
_ROWS_PER_TASK = 16_384

OF_NO_STAGE: Mapping[str, str] = {
    "output": "where tables lie says nothing of what is in them",
    "stages": "each stage stands in the fingerprints of those that depend on it",
    "session": "how Spark is started changes no row",
    "run": "how many units are carried at once changes no row",
}
"""Settings that every stage may read and that are in no fingerprint, and why."""


class StageError(I2EError, RuntimeError):
    """A stage cannot run or must not; the message says why and the way out."""


class RowsLost(StageError):
    """The rows that a stage passed on and rejected are not as many as it was given. Nothing was committed."""

    exit_code = ExitCode.FAULT


@dataclass(frozen=True)
class Plan:
    """One Spark job: the rows, the kernel that works on them, the tables that it yields and how rows are counted."""

    rows: DataFrame
    """Of a stage by unit, a column `unit` names each row's unit, and in a partition a unit's rows stand together."""
    make_kernel: Callable[[], Kernel]
    """Called in the worker, once per task. The kernel is called for each unit of which the task has rows; it does not
    see the column `unit`."""
    rows_expected: Mapping[str, int] | int | None = None
    """Rows that the stages before passed on, by unit; of a stage over everything, the number. None: it is not known."""
    rows_of: Callable[[Any], int] | None = None
    """Rows that a batch stands for; None: its length."""
    profile: Any = None
    """Spark's ResourceProfile of the job (engine/cluster.py); None: the application's."""

    def expected(self, unit: str) -> int | None:
        """Rows that must arrive of a unit."""
        return self.rows_expected.get(unit) if isinstance(self.rows_expected, Mapping) else self.rows_expected


@dataclass(frozen=True)
class Made:
    """A unit whose rows were all worked on: what it held is replaced when this is committed."""

    commit: Commit
    staged: Sequence[Written]


class Stage:
    """One step of the pipeline. Subclasses say what it is; the engine runs it."""

    name: str
    does: str
    """What it does, in a few words, for the progress line and the report."""
    rows_are: str
    """What one row is that it counts: pairs, texts, mentions …"""
    after: tuple[str, ...] = ()
    """Stages, or tables, that it depends on: it stands behind them, and is done again when they are."""
    job: str = ""
    """The jobs/ script that runs it. Empty: that of the stage it stands behind."""
    scope: Literal["unit", "segments", "whole"] = "unit"
    """unit: by unit of work; whole: over all units at once; segments: what no earlier run has made yet."""
    version: int = 1
    """To be raised when the code makes something else of the same input. What older code wrote is then made again."""

    reads: tuple[str, ...] = ()
    """Tables that it reads; the engine hands out no others."""
    tables: Mapping[str, Table] = {}
    """Tables that it writes."""
    scratch: Mapping[str, Table] = {}
    """Tables between its own jobs, which are gone when it is done."""
    passes: Passed | None = None
    """In which table, by which key, the rows are that it passes on."""
    reasons: Mapping[Any, str] = {}
    """Why it rejects rows: each reason with a sentence for a reader who has not seen the code."""
    asked_for: tuple[Any, ...] = ()
    """Those of the reasons that are the user's wish: however many rows they take, the run goes on with the others."""
    narrows: str | None = None
    """A table that was written before it. The stages behind it see only those rows of the table that it passed on,
    which are those whose `passes.narrows_by` is in `passes.table`."""
    replaces: str | None = None
    """A table that was written before it, of which it writes all rows again: the same keys, with other values. The
    stages behind it read `passes.table` in its place, whose schema has all columns of that table, and its key."""
    features: tuple[str, ...] = ()
    """Number columns of `passes.table` that the calibration of labels may weigh, by name."""
    tells: tuple[str, ...] = ()
    """Further columns of `passes.table` that `i2e explain` shows beside its features."""
    in_funnel: bool = True
    """Whether it is a step from input rows to published images, which manifest, card and report count."""
    per_pair: bool = True
    """Whether its cost grows with the number of pairs."""
    spares: bool = False
    """Whether it only spares later stages work, who do without what it has not made."""

    Settings: ClassVar[type[Section] | None] = None
    """Settings of a stage from outside; they stand in the config's section of the stage's name."""
    sections: tuple[str, ...] = ()
    """Sections of the config that it reads beside `Settings`; the engine hands out no others. All their settings are in
    its fingerprint except those in `leaves_out`, so that a new setting cannot be forgotten."""
    leaves_out: Mapping[str, str] = {}
    """Settings of those sections (`section.key`) that are not in its fingerprint, and why. One of a section within them
    (`section.part.key`) is left out by `settings`, which the stage overrides."""
    stored_as: Mapping[str, str] = {}
    """Settings (`section.key`) that were renamed, to the older name that commit records hold."""
    retried_from: str | None = None
    """A table by unit whose keys name the rows that it rejects: `i2e retry` hands it those rows of it alone. None: its
    rows are not tried again. Its rows must then be read by `run.read`, and `carry_out` not be overridden."""
    same_by: str | None = None
    """A table by unit of which it makes, of rows with equal keys, the same in every unit. A unit that takes another's
    place takes over what that had of such rows. Its own tables hold that key, its rejects as their id."""
    limits: Mapping[str, tuple[Any, Literal["more", "less"]]] = {}
    """Settings, by their stored names, that reject rows for a reason and do nothing else, and whether a larger value
    lets more of them pass, or less."""
    counts: tuple[str, ...] = ()
    """Notes of its kernel that tell what was done; all others tell what was mended."""
    sees_images: bool = False
    """Whether it opens its rows' images (`Run.open_shards`). If so, the column that they are read from is in its
    fingerprint."""
    reads_input: bool = False
    """Whether it opens input files of its units beside tables. One that `sees_images`, and one by unit that reads no
    table, does anyway. Where such a file is gone, a run that would need it says so before any work."""
    lays_out_in: tuple[str, ...] = ()
    """Folders below the output in which it lays out files for workers."""
    guarded: tuple[str, ...] = ()
    """Settings, by their stored names, whose change is refused: what was made with them cost hours, and is not made
    again unasked."""

    def shared_in(self, config: Config) -> str | None:
        """A folder outside the output where other outputs read this stage's tables, too (engine/sharing.py). None: they
        lie in the output. For stages over everything that depend on no unit."""
        return None

    def takes_what_is_there(self, config: Config) -> bool:
        """Whether it takes what lies in that folder, since the config does not say what it would be made of."""
        return False

    @classmethod
    def all_sections(cls) -> tuple[str, ...]:
        return (*cls.sections, *((cls.name,) if cls.Settings is not None else ()))

    @classmethod
    def opens_input(cls) -> bool:
        return cls.reads_input or cls.sees_images or (cls.scope == "unit" and not cls.reads)

    def settings(self, config: Config) -> dict[str, Any]:
        """What of the config changes this stage's output, in JSON form.

        Paths marked `Content` stand for what lies there. Override it to put the content of a model in the place of its
        name. Raises StageError for a setting that it cannot work with.
        """
        found: dict[str, Any] = {}
        for section in self.all_sections():
            part = getattr(config, section)
            leave_out = [key.partition(".")[2] for key in self.leaves_out if key.startswith(f"{section}.")]
            try:
                values = part.fingerprint(leave_out)
            except FileNotFoundError as error:
                raise StageError(f"{section}.{error}") from None
            found |= {self.stored_as.get(f"{section}.{key}", key): value for key, value in values.items()}
        if self.sees_images:
            found["image_column"] = config.pairs.image_column
        return found

    def weighs(self, config: Config) -> dict[str, Any]:
        """Numbers of the code that the output depends on and that are no settings, in JSON form: fitted defaults.

        They are part of the fingerprint, so that a fit that moves them asks for no new `version`.
        """
        return {}

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        """The Spark job that makes these units. Stages of several jobs override `carry_out` instead.

        Units are independent: read with `run.read(table, units, …)`, which names each row's `unit`, and join by it.
        """
        raise NotImplementedError(f"stage {self.name} defines neither `plan` nor `carry_out`")

    def check(self, run: Run) -> None:
        """Called before any stage works: raise StageError for settings or models that cannot work together."""

    def prepare(self, run: Run) -> None:
        """Done once before the first unit of a run."""

    def before_commit(self, run: Run, units: Sequence[str]) -> None:
        """Called each time before what these units hold is replaced, by one thread at a time."""

    def lays_out(self, run: Run) -> Mapping[str, str]:
        """Those of `lays_out_in`, each with the name of what this config uses there. What else lies in them is of other
        configs, and `i2e clean` removes it."""
        return {}

    def further_columns(self, config: Config, units: Sequence[Unit]) -> Mapping[str, pa.Schema]:
        """Columns that tables of this stage have beside those declared, by what these units' files hold."""
        return {}

    def facts(self, run: Run, unit: str) -> dict[str, Any]:
        """Further facts for the commit record."""
        return {}

    def told(self, commits: Sequence[Commit]) -> dict[str, int]:
        """Further numbers of what these commits hold, each with what it counts, for a run's table and the manifest."""
        return {}

    # What all stages share

    def depends_on(self, run: Run) -> tuple[str, ...]:
        """Stages whose fingerprints are part of this one's: `after`, and those that narrow or replace what it reads."""
        between = [s.name for table in self.reads for s in (*run.replacing(table, self), *run.narrowing(table, self))]
        return tuple(dict.fromkeys((*self.after, *between)))

    def components(self, run: Run, unit: str) -> dict[str, Any]:
        """What a unit's fingerprint is made of."""
        names = self.depends_on(run)
        before: dict[str, Any] = {s: run.fingerprints[s] for s in names}
        if self.scope == "whole":
            made = {s: run.commits.get(s, {}).values() for s in names}
            before["units"] = {s: sorted(named(c.unit, c.edition) for c in of_stage) for s, of_stage in made.items()}
        elif self.scope == "unit":
            before |= {s: named(before[s], edition) for s, edition in self._editions(run, unit).items()}
        weighs = self.weighs(run.config)
        return {
            "version": self.version,
            "settings": run.settings_of(self),
            "after": before,
            **({"weighs": weighs} if weighs else {}),
        }

    def _editions(self, run: Run, unit: str) -> dict[str, str]:
        """Those of the unit's commits of the stages that it depends on, where they have one."""
        made = {s: run.commits.get(s, {}).get(unit) for s in self.depends_on(run)}
        return {s: commit.edition for s, commit in made.items() if commit is not None and commit.edition}

    def fingerprint(self, run: Run, unit: str) -> str:
        return digest(self.components(run, unit))

    def missing(self, run: Run, commit: Commit) -> list[str]:
        """What the commit made beside its tables' files and that is gone."""
        return []

    def changed(self, run: Run, commit: Commit) -> list[str]:
        """What differs between the fingerprint of a commit and today's, in words."""
        names = {f"settings.{stored}": key for key, stored in self.stored_as.items()}
        return difference(commit.components, self.components(run, commit.unit), names=names)

    def all_units(self, run: Run) -> list[str]:
        return [WHOLE] if self.scope == "whole" else [u.name for u in run.units]

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        """Rows that will arrive of each unit, for the progress line and the size of waves; 0 where it is not known."""
        return {unit: run.unit(unit).rows if self.scope == "unit" else 0 for unit in units}

    def forget(self, run: Run, unit: str) -> None:
        """Drop what was made of a unit that is no longer part of the dataset."""
        if self.scope == "unit":
            run.tables.discard(self.name, [unit])

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made | Failed], None, None]:
        """Work on units and hand out each as soon as it is whole, or has failed; whoever iterates commits them."""
        plan = self.plan(run, units)
        if not isinstance(plan, Plan):
            raise StageError(f"stage {self.name}: plan returned {type(plan).__name__}, and not a Plan")
        counting = Counting(plan.rows_of, self.passes)
        tables = tuple(self.tables)
        if self.scope != "unit":
            (unit,) = units
            written = run.tables.write(plan.rows, plan.make_kernel, self.name, unit, tables, counting, plan.profile)
            yield [self.conclude(run, unit, [written], plan.expected(unit))]
            return
        if "unit" not in plan.rows.columns:
            raise StageError(
                f"stage {self.name}: the rows of its plan have no column `unit`: keep it in every select, and join by "
                "it, since units know nothing of each other"
            )
        if isinstance(plan.rows_expected, int):
            raise StageError(f"stage {self.name}: rows_expected is one number: give each unit's (`run.rows_by_unit`)")
        expected = {unit: plan.expected(unit) for unit in units}
        with (
            run.tables.staging(self.name) as staging,
            closing(
                run.tables.write_units(
                    plan.rows, plan.make_kernel, self.name, expected, tables, staging, counting, plan.profile
                )
            ) as groups,
        ):
            for group in groups:
                yield self.conclude_units(run, group, expected)

    def conclude_units(
        self,
        run: Run,
        group: Sequence[tuple[str, Written] | Failed],
        expected: Mapping[str, int | None],
        beside: Callable[[str], Sequence[Written]] = lambda unit: (),
    ) -> list[Made | Failed]:
        """`conclude` for units that became whole together; one that lost a row has failed.

        beside   what other jobs wrote of a unit; if anything, its first is counted
        """
        concluded: list[Made | Failed] = []
        for one in group:
            if isinstance(one, Failed):
                concluded.append(one)
                continue
            unit, written = one
            try:
                concluded.append(self.conclude(run, unit, [*beside(unit), written], expected[unit]))
            except RowsLost as error:
                concluded.append(Failed(unit, f"{RowsLost.__name__}: {error}"))
        return concluded

    def conclude(
        self,
        run: Run,
        unit: str,
        staged: Sequence[Written],
        expected: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Made:
        """Check that no row was lost. The first job of `staged` is the one that is counted. Raises RowsLost."""
        counted = staged[0]
        files: dict[str, list[Any]] = {}
        rejected: dict[str, int] = {}
        for written in staged:
            for table, made in written.files.items():
                files.setdefault(table, []).extend(made)
            for reason, rows in written.rejected.items():
                rejected[reason] = rejected.get(reason, 0) + rows
        before = [s.name for table in self.reads for s in run.narrowing(table, self)]
        check_rows(self.name, unit, counted.rows_in, counted.rows_out, rejected, expected, before)
        commit = Commit(
            stage=self.name,
            unit=unit,
            fingerprint=self.fingerprint(run, unit),
            components=self.components(run, unit),
            files=files,
            rows_in=counted.rows_in,
            rows_out=counted.rows_out,
            rejected=dict(sorted(rejected.items())),
            facts={**self.facts(run, unit), **_notes(staged), **(facts or {})},
            task_seconds=round(sum(w.task_seconds for w in staged), 3),
            edition=" ".join(sorted(set(self._editions(run, unit).values()))),
        )
        return Made(commit, staged)


def named(name: str, edition: str) -> str:
    """A unit, or the fingerprint of what it was made of, with its edition where it has one."""
    return f"{name} {edition}" if edition else name


def without_edition(name: str) -> str:
    return name.partition(" ")[0]


def _notes(staged: Sequence[Written]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for written in staged:
        counts.update(written.notes)
    return {"notes": dict(sorted(counts.items()))} if counts else {}


@dataclass(frozen=True)
class Only:
    """Rows of a table that are worked on again."""

    table: str
    keys: DataFrame
    """Their keys, and `unit`."""
    rows: Mapping[str, int]
    """Unit to their number."""


@dataclass
class Run:
    """What stages are handed: config, tables, units, and which commits count."""

    config: Config
    tables: Tables
    units: Sequence[Unit]
    stages: Sequence[Stage] = ()
    """All stages of the pipeline, in their order."""
    reader: Stage | None = None
    """The stage that this is handed to. None: somebody behind all of them."""
    only: Only | None = None
    """Of a table only some rows are handed out; None: all."""
    redo: Collection[str] = ()
    """Stages that are asked for again: they take nothing over from before."""
    commits: dict[str, dict[str, Commit]] = field(default_factory=dict)
    """By stage and unit: committed under this run's fingerprints, files present."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    _settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    _counted: dict[tuple[str | None, ...], int] = field(default_factory=dict)
    """What `rows` has counted by a Spark job: asked for the progress line, and again for the plan."""
    _counted_by_unit: dict[tuple[str | None, ...], dict[str, int]] = field(default_factory=dict)

    @property
    def spark(self) -> SparkSession:
        return self.tables.spark

    @property
    def settings(self) -> Any:
        """The reading stage's own settings, validated."""
        assert self.reader is not None
        if self.reader.Settings is None:
            raise StageError(f"stage {self.reader.name} reads its own settings and declares none: give it `Settings`")
        return getattr(self.config, self.reader.name)

    def handed_to(self, stage: Stage) -> Run:
        """The same run as this stage may see it: its own sections of the config, tables as the stages before it left
        them."""
        return replace(self, reader=stage, config=cast(Config, _OwnSections(self._whole_config(), stage)))

    def settings_of(self, stage: Stage) -> dict[str, Any]:
        """A stage's settings as its fingerprint holds them; models and files are looked at once a run."""
        if stage.name not in self._settings:
            config = self.handed_to(stage).config
            place = stage.shared_in(config)
            if place and stage.takes_what_is_there(config):
                self._settings |= {n: c.components["settings"] for n, c in self.base(stage, place).commits.items()}
            else:
                self._settings[stage.name] = stage.settings(config)
        return self._settings[stage.name]

    def base(self, stage: Stage, place: str) -> sharing.Base:
        """What lies in a folder that outputs share, of this stage and those that share it, too. Raises StageError."""
        handed = [(s, self.handed_to(s).config) for s in self.stages]
        try:
            return sharing.base(place, [(s, config) for s, config in handed if s.shared_in(config) == place])
        except sharing.NoBase as error:
            raise StageError(f"{stage.name} takes what other outputs have made: {error}") from None

    def unit(self, name: str) -> Unit:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Unit]:
        return {u.name: u for u in self.units}

    def stage(self, name: str) -> Stage:
        return next(s for s in self.stages if s.name == name)

    def writer(self, table: str) -> Stage:
        """The stage that writes a table."""
        return self.stage(self.tables.catalogue.writers[table])

    # Which commits count

    def committed(self, stage: str, units: WhichUnits = None) -> list[Commit]:
        """Commits of a stage that count, of these units or of all."""
        made = self.commits.get(stage, {})
        return [made[u] for u in (sorted(made) if units is None else _names(units))]

    def commits_of(self, table: str, units: WhichUnits = None) -> list[Commit]:
        """Commits that count of the stage that writes a table; the units' own where it is written by unit."""
        writer = self.writer(table)
        return self.committed(writer.name, units if writer.scope == "unit" else None)

    # Tables as the stages before the reader left them

    def narrowing(self, table: str, reader: Stage | None) -> list[Stage]:
        """Stages before a reader that leave rows of a table out for it; one that writes it again has seen to those
        before it."""
        found: list[Stage] = []
        for stage in self._before(reader):
            found = [] if stage.replaces == table else [*found, stage] if stage.narrows == table else found
        return found

    def replacing(self, table: str, reader: Stage | None) -> list[Stage]:
        """Stages before a reader that write a table's rows again for it; it reads the last one's."""
        return [s for s in self._before(reader) if s.replaces == table]

    def standing(self, table: str) -> str:
        """The table whose rows the reader gets when it asks for one."""
        replacing = self.replacing(table, self.reader)
        return cast(Passed, replacing[-1].passes).table if replacing else table

    def _before(self, reader: Stage | None) -> list[Stage]:
        names = [s.name for s in self.stages]
        end = names.index(reader.name) if reader is not None and reader.name in names else len(names)
        return list(self.stages[:end])

    def read(self, table: str, units: WhichUnits = None, columns: Sequence[str] | None = None) -> DataFrame:
        """Rows of a table, of one unit, some or all, without those that a stage between has left out.

        units     those asked for: then `unit` is the last column, except of a table whose rows belong to no unit (the
                  knowledge base's), which is read whole
        columns   None: all of the schema; `unit` is one more that may be named
        """
        self._declared(table)
        asked, table = table, self.standing(table)
        known = list(self.tables.catalogue.schema(table).names)
        names = list(columns) if columns is not None else list(self.tables.catalogue.schema(asked).names)
        if unknown := [name for name in names if name not in (*known, "unit")]:
            raise StageError(f"{table} has no column {', '.join(unknown)}; it has {', '.join(known)}")
        writer = self.writer(table)
        by_unit = writer.scope == "unit" or self._lies_by_unit(writer, table)
        if units is not None and by_unit and "unit" not in names:
            names.append("unit")
        narrowing = self.narrowing(asked, self.reader)
        # Rows that the writer itself did not pass on are there for the statistics, and stay.
        mark = writer.passes.where_null if writer.passes is not None and writer.passes.table == table else None
        needed = [c for stage in narrowing for c in (*cast(Passed, stage.passes).narrows_by, *_unit_of(stage))]
        needed += [mark] if narrowing and mark is not None else []
        if self.only is not None and self.only.table == asked:
            needed += [*self.tables.catalogue.tables[table].key, "unit"]
        frame = self.tables.read(
            table,
            self.commits_of(table, units),
            [*names, *dict.fromkeys(c for c in needed if c not in names)],
            only_units=_names(units) if units is not None and writer.scope == "whole" and by_unit else None,
        )
        for stage in narrowing:
            key = [*cast(Passed, stage.passes).narrows_by, *_unit_of(stage)]
            if mark is None:
                frame = frame.join(self._passed_on(stage, units), key, how="left_semi")
            else:
                standing, others = frame.where(frame[mark].isNull()), frame.where(frame[mark].isNotNull())
                frame = standing.join(self._passed_on(stage, units), key, how="left_semi").unionByName(others)
        if self.only is not None and self.only.table == asked:
            on = [*self.tables.catalogue.tables[table].key, "unit"]
            return frame.join(self.only.keys, on, how="left_semi").select(*names)
        return frame.select(*names)

    def _passed_on(self, stage: Stage, units: WhichUnits, columns: Sequence[str] = ()) -> DataFrame:
        """Keys, of a stage by unit with `unit`, and further columns, of the rows that a stage passed on."""
        passed = cast(Passed, stage.passes)
        extra = [passed.where_null] if passed.where_null else []
        frame = self.tables.read(
            passed.table,
            self.committed(stage.name, units if stage.scope == "unit" else None),
            [*passed.narrows_by, *_unit_of(stage), *columns, *extra],
            only_units=(
                _names(units)
                if units is not None and stage.scope == "whole" and self._lies_by_unit(stage, passed.table)
                else None
            ),
        )
        if passed.where_null:
            frame = frame.where(frame[passed.where_null].isNull())
        return frame.select(*passed.narrows_by, *_unit_of(stage), *columns)

    def rows(self, table: str, units: WhichUnits = None, by: Sequence[str] = ()) -> int:
        """How many rows of a table the reader gets, counted by these columns (none: by the table's key)."""
        if units is not None:
            return sum(self.rows_by_unit(table, _names(units), by).values())
        self._declared(table)
        key = tuple(by) or self.tables.catalogue.tables[table].key
        known = self._rows_known(table, key)
        if known is not None:
            return sum(known.values())
        asked = (self.reader.name if self.reader is not None else None, table, *key)
        if asked not in self._counted:
            columns = [*key, *(("unit",) if self.writer(table).scope == "unit" else ())]
            self._counted[asked] = self.read(table, columns=columns).distinct().count()
        return self._counted[asked]

    def rows_by_unit(self, table: str, units: Sequence[str], by: Sequence[str] = ()) -> dict[str, int]:
        """The same for each of these units.

        Read from the commit records. Only where a stage narrowed the table by other columns, a Spark job counts.
        """
        self._declared(table)
        if self.only is not None and self.only.table == table:
            return {unit: self.only.rows.get(unit, 0) for unit in units}
        key = tuple(by) or self.tables.catalogue.tables[table].key
        known = self._rows_known(table, key)
        if known is not None:
            return (
                {unit: known.get(unit, 0) for unit in units}
                if WHOLE not in known
                else dict.fromkeys(units, known[WHOLE])
            )
        asked = (self.reader.name if self.reader is not None else None, table, *key)
        counted = self._counted_by_unit.setdefault(asked, {})
        if left := [unit for unit in units if unit not in counted]:
            rows = self.read(table, left, list(key)).distinct().groupBy("unit").count().collect()
            counted.update(dict.fromkeys(left, 0) | {row["unit"]: row["count"] for row in rows})
        return {unit: counted[unit] for unit in units}

    def _rows_known(self, table: str, key: Sequence[str]) -> dict[str, int] | None:
        """Rows by unit (WHOLE: those of no unit) as the commit records have them; None where they do not tell."""
        narrowing = self.narrowing(table, self.reader)
        last = narrowing[-1] if narrowing else None
        table = self.standing(table)
        writer, table_key = self.writer(table), self.tables.catalogue.tables[table].key
        if last is not None:
            passed = cast(Passed, last.passes)
            return self._rows_passed_on(last) if set(passed.key) == set(key) else None
        if set(key) == set(table_key):
            if writer.scope == "unit":
                return {u: c.rows(table) for u, c in self.commits.get(writer.name, {}).items()}
            return self._rows_of_folders(writer, table)
        passed_here = writer.passes is not None and (writer.passes.table, {*writer.passes.key}) == (table, {*key})
        if passed_here and (writer.scope == "unit" or not self._lies_by_unit(writer, table)):
            return self._rows_passed_on(writer)
        return None

    def _rows_passed_on(self, stage: Stage) -> dict[str, int] | None:
        """From the commit records; None where they do not tell: a stage over everything counts no units by themselves,
        and its files do so only where each key is a row and each row lies in its unit's folder."""
        made = self.commits.get(stage.name, {})
        if stage.scope == "unit":
            return {u: c.rows_out for u, c in made.items()}
        passed = cast(Passed, stage.passes)
        by_file = not passed.where_null and set(stage.tables[passed.table].key) == set(passed.key)
        if by_file and self._lies_by_unit(stage, passed.table):
            return self._rows_of_folders(stage, passed.table)
        return {WHOLE: sum(c.rows_out for c in made.values())}

    def _rows_of_folders(self, writer: Stage, table: str) -> dict[str, int]:
        """Rows of a table of a stage over everything by the unit in whose folder they lie."""
        found: dict[str, int] = {}
        for commit in self.committed(writer.name):
            for file in commit.files.get(table, []):
                unit = file.path.partition("/")[0].removeprefix("unit=")
                # A segment's rows belong to no unit of input.
                unit = unit if writer.scope == "whole" else WHOLE
                found[unit] = found.get(unit, 0) + file.rows
        if len(found) > 1:
            found = {unit: rows for unit, rows in found.items() if rows or unit != WHOLE}
        return found

    def _lies_by_unit(self, writer: Stage, table: str) -> bool:
        """Whether each row that a stage over everything wrote is in its unit's folder, and none in that of all."""
        written = (f for c in self.committed(writer.name) for f in c.files.get(table, []))
        return not any(f.rows for f in written if f.path.startswith(f"unit={WHOLE}/"))

    def with_features(self, frame: DataFrame, units: WhichUnits = None) -> DataFrame:
        """The rows, which name their `unit`, with the feature columns that stages before the reader give; null where
        a stage has no row."""
        for stage in self.feature_givers():
            key = [*cast(Passed, stage.passes).key, *_unit_of(stage)]
            frame = frame.join(self._passed_on(stage, units, stage.features), key, how="left")
        return frame

    def feature_givers(self) -> list[Stage]:
        """Stages before the reader that give features."""
        return [stage for stage in self._before(self.reader) if stage.features]

    def feature_names(self) -> list[str]:
        """The columns that they give."""
        return [name for stage in self.feature_givers() for name in stage.features]

    def _declared(self, table: str) -> None:
        if self.reader is not None and table not in self.reader.reads:
            raise StageError(
                f"stage {self.reader.name} reads {table} and does not declare it: put it into `reads`, which now holds "
                f"{', '.join(self.reader.reads) or 'nothing'}"
            )

    # Input shards and files for the workers

    def open_shards(self, units: str | Iterable[str]) -> Callable[[int], Images]:
        """Opens a shard of these units by its number, in a worker, for its images."""
        if self.reader is not None and not self.reader.sees_images:
            raise StageError(f"stage {self.reader.name} opens images and does not declare it: set `sees_images = True`")
        return partial(_open_shard, self.shards(units))

    def shards(self, units: str | Iterable[str]) -> dict[int, Shard]:
        """The shards of these units by their numbers, as workers open them (inputs/formats.py)."""
        pairs, registry = self._whole_config().pairs, Units(self.tables.root)
        return {f.shard: registry.shard(f, pairs) for unit in _names(units) for f in self.unit(unit).files}

    def shard_columns(self, of_files: Iterable[InputFile]) -> dict[str, pa.Array]:
        """SHARD_COLUMNS of these files, for the rows that a worker opens them by."""
        pairs, registry = self._whole_config().pairs, Units(self.tables.root)
        shards = [registry.shard(file, pairs) for file in of_files]
        return {f.name: pa.array([getattr(s, f.name) for s in shards], f.type) for f in SHARD_COLUMNS}

    def in_shard_order(
        self, rows: DataFrame, units: str | Iterable[str], rows_per_task: int = _ROWS_PER_TASK
    ) -> DataFrame:
        """Rows dealt to tasks as they lie in the units' shards: a task reads its part of a file, once and forward.

        rows   with the columns shard and row, each shard's rows numbered as in its file
        """
        shards = [f for unit in _names(units) for f in self.unit(unit).files]
        size = dealing.task_size(sum(f.taken for f in shards), rows_per_task, self.spark)
        # Of a file of which few rows were taken, so many lie further apart.
        return dealing.Blocks([(f.shard, f.rows, max(1, size * f.rows // max(1, f.taken))) for f in shards]).by_row(
            rows
        )

    def in_unit_order(
        self, rows: DataFrame, sizes: Mapping[str, int], by: Sequence[str], rows_per_task: int = _ROWS_PER_TASK
    ) -> DataFrame:
        """Rows dealt to tasks by unit: a small unit's all to one task, a large one's by a hash of the columns `by`.

        sizes   unit to its rows, as `rows_by_unit` counts them
        """
        return dealing.by_unit(self.spark, sizes, rows_per_task).by_hash(rows, by)

    def ship(self, path: str) -> Shipped:
        """A file or folder that every worker needs; `.local()` in the worker says where it lies there."""
        seen = (*self.config.session.shared_folders, *self.tables.shared_roots())
        return ship(self.spark, path, self.tables.root, seen)

    def ship_model(self, config: ModelConfig | VerifyConfig) -> Shipped | None:
        """The folder of a local model for `shipping.model_here`; None of one that has a name."""
        folder = parse(config.model).folder if config.model else None
        return None if folder is None else self.ship(folder)

    @contextmanager
    def laying_out(self, path: str) -> Iterator[None]:
        """For files for workers that are laid out at `path` (`Tables.local_path`): another output that lays out beside
        the same tables is waited for."""
        with waiting(os.path.dirname(path), path):
            yield

    def _whole_config(self) -> Config:
        return self.config._whole if isinstance(self.config, _OwnSections) else self.config


WhichUnits = str | Iterable[str] | None
"""A unit, some, or (None) all."""


def _names(units: str | Iterable[str]) -> list[str]:
    return [units] if isinstance(units, str) else list(units)


def _unit_of(stage: Stage) -> tuple[str, ...]:
    """`unit`, where a stage's keys hold within a unit alone."""
    return ("unit",) if stage.scope == "unit" else ()


def _open_shard(shards: Mapping[int, Shard], shard: int) -> Images:
    return formats.images(shards[shard])


class _OwnSections:
    """The config as one stage sees it. So all that a stage reads is in its fingerprint, or left out of it by name."""

    def __init__(self, config: Config, stage: Stage) -> None:
        self._whole, self._stage = config, stage

    def __getattr__(self, section: str) -> Any:
        if section.startswith("_"):
            raise AttributeError(section)
        allowed = {*OF_NO_STAGE, *self._stage.all_sections(), *(["pairs"] if self._stage.sees_images else [])}
        if section in allowed:
            return getattr(self._whole, section)
        raise StageError(
            f"stage {self._stage.name} reads the settings {section} and does not declare them: put {section!r} into "
            "`sections`, so that a change of them is seen"
        )

    def __reduce__(self) -> Any:
        raise TypeError(
            f"stage {self._stage.name}: a kernel holds the whole config, which does not travel to workers: take the "
            "section or the value out of it before (`settings = run.settings`)"
        )


def catalogue(stages: Sequence[Stage]) -> Catalogue:
    """What these stages declare."""
    return Catalogue(
        tables={name: table for stage in stages for name, table in {**stage.tables, **stage.scratch}.items()},
        writers={name: stage.name for stage in stages for name in stage.tables},
        reasons={stage.name: {reason_name(reason): why for reason, why in stage.reasons.items()} for stage in stages},
    )


def behind(stage: Stage, stages: Sequence[Stage]) -> set[str]:
    """Names of the stages that it depends on, and of those that these depend on."""
    by_name = {s.name: s for s in stages}
    found: set[str] = set()
    left = list(stage.after)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += by_name[name].after
    return found


def check_rows(
    stage: str,
    unit: str,
    rows_in: int,
    rows_out: int,
    rejected: Mapping[str, int],
    expected: int | None,
    narrowing: Sequence[str] = (),
) -> None:
    """Raise RowsLost unless in = out + rejected, and in = what the stage before passed on.

    narrowing   stages that left rows out before: one that passes a key on twice, and loses another, is found only here
    """
    if expected is not None and rows_in != expected:
        culprits = (
            f": do {', '.join(narrowing)} pass each key on once? After the mend, `i2e run --redo` makes them again"
            if narrowing
            else ""
        )
        raise RowsLost(f"{stage}, unit {unit}: {expected} rows were passed to it and {rows_in} arrived{culprits}")
    if rows_in != rows_out + sum(rejected.values()):
        raise RowsLost(f"{stage}, unit {unit}: {rows_in} rows in, {rows_out} out, rejected {dict(rejected)}")


def _is_digest(text: str) -> bool:
    """Whether it is one, with or without an edition."""
    return len(without_edition(text)) == _DIGEST


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], path: str = "", names: Mapping[str, str] | None = None
) -> list[str]:
    """What differs between the components of two fingerprints, in words: `settings.max_mentions: 32, now 16`.

    names   what is stored under an older name (`settings.bar`), and its name today
    """
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, where = old.get(key), new.get(key), (names or {}).get(f"{path}{key}", f"{path}{key}")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += difference(a, b, f"{where}.", names)
        elif a != b:
            digests = isinstance(a, str) and isinstance(b, str) and _is_digest(a) and _is_digest(b)
            if path == "after." and key not in old:
                found.append(f"{key} is new")
            elif path == "after." and key not in new:
                found.append(f"{key} is no longer there")
            else:
                found.append(where if digests or isinstance(a, list) else f"{where}: {a}, now {b}")
    return found
