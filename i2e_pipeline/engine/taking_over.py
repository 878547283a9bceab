"""What a unit takes over from the one whose place it took (`i2e run --replace`): of rows that are equal in both, what
the stage had made of them. Only the other rows are worked on.

For stages that make the same of a row whatever stands beside it and whatever file it comes from (`Stage.same_by`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from i2e_pipeline.engine.stage import Made, Only, Plan, Run, Stage
from i2e_pipeline.engine.tables import Commit, Counting, Failed, Kernel, Written, WrittenFile, pass_on

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

TAKEN_OVER = "taken_over"
"""In a commit's facts: how many of its rows were."""


def carry_out(stage: Stage, run: Run, units: Sequence[str]) -> Generator[Sequence[Made | Failed], None, None]:
    """`stage.carry_out`, but for units that took another's place what that had is taken over."""
    before = _before(stage, run, units)
    if rest := [unit for unit in units if unit not in before]:
        with closing(stage.carry_out(run, rest)) as groups:
            yield from groups
    if before:
        with run.tables.staging(stage.name) as staging:
            yield _take_over(stage, run, before, staging)


@dataclass(frozen=True)
class _Before:
    """What the unit of before has: of this stage, and the rows that it was made of."""

    made: Commit
    rows: Commit


def _before(stage: Stage, run: Run, units: Sequence[str]) -> dict[str, _Before]:
    """Those of the units that can take something over: what was there was made under the same settings, and lies
    there whole."""
    if stage.same_by is None or stage.name in run.redo:
        return {}
    made, rows = (run.tables.records.known(name) for name in (stage.name, run.writer(stage.same_by).name))
    found = {}
    for unit in units:
        older = run.unit(unit).replaces or ""
        if older in made and older in rows and made[older].fingerprint == stage.fingerprint(run, unit):
            found[unit] = _Before(made[older], rows[older])
    gone = run.tables.missing_files([c for one in found.values() for c in (one.made, one.rows)], by_folder=True)
    return {unit: one for unit, one in found.items() if one.made.unit not in gone}


def _take_over(stage: Stage, run: Run, before: Mapping[str, _Before], staging: str) -> list[Made | Failed]:
    table = str(stage.same_by)
    key, units = list(run.tables.catalogue.tables[table].key), list(before)
    names = {one.made.unit: unit for unit, one in before.items()}

    def of_before(table: str, commits: Sequence[Commit], columns: Sequence[str]) -> DataFrame:
        """Rows of the units of before, with the names of those that take their places."""
        rows = run.tables.read(table, commits, [*columns, "unit"]).withColumnRenamed("unit", "_before")
        renamed = run.spark.createDataFrame(list(names.items()), "_before string, unit string")
        return rows.join(renamed, "_before").drop("_before")

    now = run.read(table, units, key)
    then = of_before(table, [one.rows for one in before.values()], key)
    same = now.join(then, [*key, "unit"], how="left_semi").select(*key, "unit")
    counted = {row["unit"]: row["count"] for row in same.groupBy("unit").count().collect()}
    taken = {unit: counted.get(unit, 0) for unit in units}
    whole = run.rows_by_unit(table, units)
    left = {unit: whole[unit] - taken[unit] for unit in units}
    others = now.join(then, [*key, "unit"], how="left_anti").select(*key, "unit")
    handed = replace(run, only=Only(table, others, left), _counted={}, _counted_by_unit={})
    plans = [(tuple(stage.tables), left, stage.plan(handed, units))]
    for made in (*stage.tables, "rejects"):
        columns = list(run.tables.catalogue.schema(made).names)
        by = ["id", *key[1:]] if made == "rejects" else key
        rows = of_before(made, [one.made for one in before.values()], columns)
        wanted = same.select(*(same[name].alias(as_here) for name, as_here in zip(key, by, strict=True)), "unit")
        kept = rows.join(wanted, [*by, "unit"], how="left_semi").select(*columns, "unit")
        size = {unit: one.made.rows_in for unit, one in before.items()}
        ordered = run.in_unit_order(kept, size, by).sortWithinPartitions("unit", *by)
        plans.append(((made,), dict.fromkeys(units), Plan(ordered, partial(_passing, made))))
    parts: dict[str, list[Written]] = {unit: [] for unit in units}
    failed: dict[str, Failed] = {}
    for tables, expected, plan in plans:
        jobs = run.tables.write_units(
            plan.rows,
            plan.make_kernel,
            stage.name,
            expected,
            tuple(t for t in tables if t != "rejects"),
            staging,
            Counting(plan.rows_of, stage.passes),
            plan.profile,
        )
        with closing(jobs):
            for one in (one for group in jobs for one in group):
                if isinstance(one, Failed):
                    failed[one.unit] = one
                else:
                    parts[one[0]].append(one[1])
    whole_units = [unit for unit in units if unit not in failed]
    concluded: list[Made | Failed] = [*failed.values()]
    together = [(unit, _together(parts[unit], left[unit] + taken[unit])) for unit in whole_units]
    for unit_made in stage.conclude_units(run, together, whole):
        if isinstance(unit_made, Made):
            commit = unit_made.commit
            commit = replace(commit, facts={**commit.facts, TAKEN_OVER: taken[commit.unit]})
            unit_made = replace(unit_made, commit=commit)
        concluded.append(unit_made)
    return concluded


def _passing(table: str) -> Kernel:
    return partial(pass_on, table)


def _together(parts: Sequence[Written], rows: int) -> Written:
    """What was made of new rows and what was taken over, as if one job had written it.

    rows   those that were worked on and those that were taken over; each of these is in a table or among the rejects
    """
    rejected: Counter[str] = Counter()
    held: dict[str, list[WrittenFile]] = {}
    notes: Counter[str] = Counter()
    for part in parts:
        rejected.update(part.rejected)
        notes.update(part.notes)
        for table, made in part.files.items():
            held.setdefault(table, []).extend(made)
    return replace(
        parts[0],
        files={table: sorted(made, key=lambda f: f.path) for table, made in held.items()},
        rows_in=rows,
        rows_out=sum(part.rows_out for part in parts),
        rejected=dict(sorted(rejected.items())),
        task_seconds=round(sum(part.task_seconds for part in parts), 4),
        notes=dict(sorted(notes.items())),
    )
