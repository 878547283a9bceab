"""What a stage is: its name, what it reads and writes, its settings, and how one unit is worked on.

A stage's module holds its kernel and its joins. Everything that all stages share is here: which units are still to
do, whether what was found belongs to this config, counting, the check that no row was lost, timing and the commit.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from i2e_pipeline.core.config import Config, digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.tables import WHOLE, Commit, Counting, Kernel, Tables, Written
from i2e_pipeline.engine.units import Unit

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


_DIGEST = 32


class StageError(I2EError, RuntimeError):
    """A stage cannot run or must not; the message says why and the way out."""


class RowsLost(StageError):
    """A stage passed on and rejected other than what it was given. Nothing was committed."""


@dataclass
class Run:
    """What stages are handed: config, tables, units, and which commits count."""

    config: Config
    tables: Tables
    units: Sequence[Unit]
    commits: dict[str, dict[str, Commit]] = field(default_factory=dict)
    """By stage and unit: committed under this run's fingerprints, files present."""
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def spark(self) -> SparkSession:
        return self.tables.spark

    def unit(self, name: str) -> Unit:
        return next(u for u in self.units if u.name == name)

    def committed(self, stage: str, unit: str | None = None) -> list[Commit]:
        """Commits of a stage that count, of one unit or of all."""
        made = self.commits.get(stage, {})
        return [made[unit]] if unit is not None else [made[u] for u in sorted(made)]

    def whole(self, stage: str) -> Commit:
        return self.commits[stage][WHOLE]


@dataclass(frozen=True)
class Plan:
    """One Spark job: the rows, the kernel that works on them, the tables that it yields and how rows are counted."""

    rows: DataFrame
    make_kernel: Callable[[], Kernel]
    tables: tuple[str, ...]
    counting: Counting = field(default_factory=Counting)
    rows_expected: int | None = None
    """Rows that the tables before hold for this unit."""


class Stage(ABC):
    """A stage of the walk. Subclasses say what it is; the pipeline runs it."""

    name: ClassVar[str]
    job: ClassVar[str]
    """The jobs/ script that runs it."""
    does: ClassVar[str]
    """What it does, in a few words for the progress line."""
    rows_are: ClassVar[str]
    after: ClassVar[tuple[str, ...]]
    """Stages whose tables it reads."""
    writes: ClassVar[tuple[str, ...]]
    scope: ClassVar[Literal["unit", "whole"]] = "unit"
    version: ClassVar[int] = 1
    """Raised when the code makes something else of the same input; what older code wrote is then made again."""
    guarded: ClassVar[tuple[str, ...]] = ()
    """Settings whose change is refused instead of making everything again: what they made cost hours of GPU."""

    @abstractmethod
    def settings(self, config: Config) -> dict[str, Any]:
        """What of the config, models and files changes this stage's output."""

    def plan(self, run: Run, unit: str) -> Plan:
        """The job that makes one unit. Stages of several jobs override `carry_out` instead."""
        raise NotImplementedError

    def prepare(self, run: Run) -> None:  # noqa: B027 - most stages have nothing to prepare
        """Done once before the first unit of a run."""

    def facts(self, run: Run, unit: str) -> dict[str, Any]:
        """Further facts for the commit record."""
        return {}

    # What all stages share

    def components(self, run: Run, unit: str) -> dict[str, Any]:
        """What a unit's fingerprint is made of."""
        before: dict[str, Any] = {s: run.fingerprints[s] for s in self.after}
        if self.scope == "whole":
            before["units"] = {s: sorted(run.commits.get(s, {})) for s in self.after}
        return {"version": self.version, "settings": self.settings(run.config), "after": before}

    def fingerprint(self, run: Run, unit: str) -> str:
        return digest(self.components(run, unit))

    def missing(self, run: Run, commit: Commit) -> list[str]:
        """Files that the commit made and that are gone."""
        return run.tables.missing_files(commit)

    def all_units(self, run: Run) -> list[str]:
        return [WHOLE] if self.scope == "whole" else [u.name for u in run.units]

    def rows_to_do(self, run: Run, unit: str) -> int:
        """Rows of a unit, for the progress line; 0 where it cannot be known before."""
        return run.unit(unit).rows if self.scope == "unit" else 0

    def carry_out(self, run: Run, unit: str) -> Commit:
        """Work on one unit and commit it."""
        started = time.monotonic()
        plan = self.plan(run, unit)
        written = run.tables.write(plan.rows, plan.make_kernel, self.name, unit, plan.tables, plan.counting)
        return self.conclude(run, unit, [written], started, plan.rows_expected)

    def conclude(
        self,
        run: Run,
        unit: str,
        staged: Sequence[Written],
        started: float,
        expected: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Commit:
        """Check that no row was lost, and commit. The first job of `staged` is the one that is counted."""
        counted = staged[0]
        files: dict[str, list[Any]] = {}
        rejected: dict[str, int] = {}
        for written in staged:
            for table, made in written.files.items():
                files.setdefault(table, []).extend(made)
            for reason, rows in written.rejected.items():
                rejected[reason] = rejected.get(reason, 0) + rows
        check_rows(self.name, unit, counted.rows_in, counted.rows_out, rejected, expected)
        commit = Commit(
            stage=self.name,
            unit=unit,
            fingerprint=self.fingerprint(run, unit),
            components=self.components(run, unit),
            files=files,
            rows_in=counted.rows_in,
            rows_out=counted.rows_out,
            rejected=dict(sorted(rejected.items())),
            seconds=round(time.monotonic() - started, 3),
            facts={**self.facts(run, unit), **(facts or {})},
        )
        return run.tables.commit(commit, staged)


def check_rows(
    stage: str, unit: str, rows_in: int, rows_out: int, rejected: Mapping[str, int], expected: int | None
) -> None:
    """Raise RowsLost unless in = out + rejected, and in = what the stage before passed on."""
    if expected is not None and rows_in != expected:
        raise RowsLost(f"{stage}, unit {unit}: {expected} rows were passed to it and {rows_in} arrived")
    if rows_in != rows_out + sum(rejected.values()):
        raise RowsLost(f"{stage}, unit {unit}: {rows_in} rows in, {rows_out} out, rejected {dict(rejected)}")


def difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between the components of two fingerprints, in words: `settings.bar: 0.5, now 0.6`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, where = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += difference(a, b, f"{where}.")
        elif a != b:
            digests = isinstance(a, str) and isinstance(b, str) and len(a) == len(b) == _DIGEST
            found.append(where if digests or isinstance(a, list) else f"{where}: {a}, now {b}")
    return found
