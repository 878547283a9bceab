"""Rows that a stage has rejected, tried again: the others stay as they were committed.

For a decoder that can more today, files that could not be read then, limits that are wider now. The stage is handed the
rejected rows alone; what becomes of them is put beside what its units hold, and their reject rows are replaced. Units
that got something by it are of another edition, which the stages behind them see. Where a limit was widened, what it
had let pass it lets pass still, so units are taken over under the new settings with nothing done.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core import files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.rejects import reason_name
from i2e_pipeline.engine import cluster, merging
from i2e_pipeline.engine.pipeline import Pipeline, inspect
from i2e_pipeline.engine.stage import Only, Plan, Run, Stage, StageError, check_rows, named
from i2e_pipeline.engine.tables import Commit, Counting, Failed, Written, pass_on

if TYPE_CHECKING:
    pass

_UNITS_AT_ONCE = 256
"""Units of one Spark job: so many are tried and put in place, and then the next."""


@dataclass
class Tried:
    """What came of the rows of a stage that were tried again."""

    stage: str
    rows: dict[str, int] = field(default_factory=dict)
    """By the reason for which they had been rejected."""
    passed: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """By the reason for which they are rejected now."""
    units: int = 0
    """Units that had such rows."""


def retry(pipeline: Pipeline, reasons: Sequence[str]) -> list[Tried]:
    """Try rows again that were rejected for these reasons, in all stages that have them; `Pipeline.run` does the rest.

    Raises StageError for a reason that no stage tries again, and where a unit is not as this config would make it but
    for limits that were widened: `i2e run` works on all its rows then.
    """
    asked = _by_stage(pipeline, reasons)
    with pipeline.exclusive():
        run = pipeline.planned()
        tried: list[Tried] = []
        then: dict[str, dict[str, Commit]] = {}
        for stage in pipeline.stages:
            state = inspect(run, stage)
            if stage.name in asked:
                stage.check(run.handed_to(stage))
                lying = run.tables.commits(stage.name)
                found = {u.name: lying[u.name] for u in run.units if u.name in lying}
                _refuse_changed(run, stage, found, asked[stage.name])
                tried.append(_try_again(run, stage, found, asked[stage.name]))
                then[stage.name] = found
                _restamp(run, stage, found)
            elif stage.scope == "unit" and then.keys() & set(stage.depends_on(run)):
                lying = run.tables.commits(stage.name)
                then[stage.name] = {unit: lying[unit] for unit in state.to_do if unit in lying}
                _take_over(run, stage, then)
            inspect(run, stage)
        return tried


def _by_stage(pipeline: Pipeline, reasons: Sequence[str]) -> dict[str, set[str]]:
    """Stages, and those of their reasons that are asked for."""
    able = {s.name: {reason_name(r) for r in s.reasons} for s in pipeline.stages if s.retried_from}
    known = {reason_name(r): s.name for s in pipeline.stages for r in s.reasons}
    for reason in reasons:
        if not any(reason in of_stage for of_stage in able.values()):
            some = ", ".join(sorted({r for of_stage in able.values() for r in of_stage}))
            why = f"stage {known[reason]} works on all its rows: `i2e run`" if reason in known else "no such reason"
            raise StageError(f"--reason {reason}: {why}. Rows are tried again that were rejected for {some}")
    return {name: found for name, of_stage in able.items() if (found := of_stage & set(reasons))}


def _refuse_changed(run: Run, stage: Stage, found: Mapping[str, Commit], reasons: Collection[str]) -> None:
    """Raise StageError where a unit would be made anew for another cause than limits that were widened."""
    handed = run.handed_to(stage)
    gone = run.tables.missing_files(found.values())
    for name in stage.depends_on(run):
        before = run.stage(name)
        if before.scope == "unit" and (left := found.keys() - run.commits[name].keys()):
            raise StageError(f"stage {name} has not made unit {min(left)} under this config: `i2e run`, then try again")
    for unit, commit in found.items():
        if unit in gone:
            raise StageError(f"{gone[unit][0]} is missing or was changed: `i2e run` makes it again, then try again")
        now = stage.components(handed, unit)
        same = _without(now, stage.limits) == _without(commit.components, stage.limits)
        if not same:
            differs = "; ".join(stage.changed(handed, commit))
            raise StageError(
                f"stage {stage.name}, unit {unit} is not as the settings are now ({differs}): `i2e run` works on all "
                "its rows again, those that were rejected among them"
            )
        for name, (reason, lets_pass) in stage.limits.items():
            then, today = (tree["settings"].get(name) for tree in (commit.components, now))
            if then == today:
                continue
            said = f"{stage.sections[0]}.{name} was {then} and is {today} now"
            if then is None or today is None or (today > then) != (lets_pass == "more"):
                raise StageError(f"{said}: rows that passed would be rejected; `i2e run` works on all of them again")
            if reason_name(reason) not in reasons:
                raise StageError(f"{said}: add --reason {reason_name(reason)}")


def _without(components: Mapping[str, Any], limits: Collection[str]) -> dict[str, Any]:
    settings = {name: value for name, value in components["settings"].items() if name not in limits}
    return {**components, "settings": settings}


def _try_again(run: Run, stage: Stage, found: Mapping[str, Commit], reasons: Collection[str]) -> Tried:
    """Works on the rejected rows and puts in place what came of them."""
    having = {u: rows for u, c in found.items() if (rows := sum(c.rejected.get(r, 0) for r in reasons))}
    tried = Tried(stage.name, units=len(having))
    for unit in having:
        for reason in reasons:
            if rows := found[unit].rejected.get(reason, 0):
                tried.rows[reason] = tried.rows.get(reason, 0) + rows
    failed: list[Failed] = []
    if having:
        cluster.check(run.spark, run.config)
        stage.prepare(run.handed_to(stage))
    units = list(having)
    for start in range(0, len(units), _UNITS_AT_ONCE):
        some = {unit: having[unit] for unit in units[start : start + _UNITS_AT_ONCE]}
        failed += _wave(run, stage, found, some, reasons, tried)
    if failed:
        named = "; ".join(f"{f.unit}: {f.why.strip().splitlines()[-1]}" for f in failed[:5])
        raise StageError(
            f"stage {stage.name}: {len(failed)} units could not be tried again and stay as they were. {named}"
        )
    return tried


def _wave(
    run: Run,
    stage: Stage,
    found: Mapping[str, Commit],
    rows: Mapping[str, int],
    reasons: Collection[str],
    tried: Tried,
) -> list[Failed]:
    """One Spark job for the rows, one for the reject rows that stay. Returns the units that failed."""
    table = str(stage.retried_from)
    place = f"_staging/retry-{uuid.uuid4().hex[:12]}"
    staging = run.tables.path(place)
    before = [found[unit] for unit in rows]
    rejects = run.tables.read("rejects", before, [*run.tables.catalogue.schema("rejects").names, "unit"])
    again = rejects.where(rejects["reason"].isin(sorted(reasons)))
    key = run.tables.catalogue.tables[table].key
    keys = again.select(again["id"].alias(key[0]), "unit")
    handed = replace(run.handed_to(stage), only=Only(table, keys, rows), _counted={}, _counted_by_unit={})
    plan = stage.plan(handed, list(rows))
    staying = {c.unit: sum(c.rejected.values()) - rows[c.unit] for c in before}
    kept = rejects.where(~rejects["reason"].isin(sorted(reasons)))
    try:
        made, failed = _written(run, stage, plan, rows, tuple(stage.tables), staging)
        pass_rejects = Plan(
            handed.in_unit_order(kept, staying, ["id"]), lambda: partial(pass_on, "rejects"), rows_expected=staying
        )
        beside, failed_too = _written(run, stage, pass_rejects, staying, (), staging)
        failed += failed_too
        whole = [c for c in before if c.unit in made and c.unit in beside]
        commits = [_together(stage, handed, c, made[c.unit], beside[c.unit], rows[c.unit], reasons) for c in whole]
    except BaseException:
        files.remove(staging)
        raise
    if commits:
        stage.before_commit(handed, [c.unit for c in commits])
        merging.add(run.tables, stage.name, place, commits)
    files.remove(staging)
    outcome: Counter[str] = Counter(tried.rejected)
    for commit in whole:
        outcome.update(made[commit.unit].rejected)
        tried.passed += made[commit.unit].rows_out
    tried.rejected = dict(sorted(outcome.items()))
    return failed


def _written(
    run: Run, stage: Stage, plan: Plan, expected: Mapping[str, int], tables: tuple[str, ...], staging: str
) -> tuple[dict[str, Written], list[Failed]]:
    """By unit what a job wrote of it, and the units that failed or lost rows."""
    made: dict[str, Written] = {}
    failed: list[Failed] = []
    counting = Counting(plan.rows_of, stage.passes if tables else None)
    with closing(
        run.tables.write_units(
            plan.rows, plan.make_kernel, stage.name, expected, tables, staging, counting, plan.profile
        )
    ) as groups:
        for one in (one for group in groups for one in group):
            if isinstance(one, Failed):
                failed.append(one)
                made.pop(one.unit, None)
                continue
            unit, written = one
            try:
                check_rows(stage.name, unit, written.rows_in, written.rows_out, written.rejected, expected[unit])
            except StageError as error:
                failed.append(Failed(unit, str(error)))
            else:
                made[unit] = written
    return made, failed


def _together(
    stage: Stage, run: Run, before: Commit, made: Written, staying: Written, rows: int, reasons: Collection[str]
) -> Commit:
    """The commit with what came of its rejected rows."""
    held = {table: list(of_table) for table, of_table in before.files.items() if table != "rejects"}
    for table, of_table in made.files.items():
        if table != "rejects":
            held[table] = sorted([*held.get(table, []), *of_table], key=lambda f: f.path)
    rejects = [*made.files.get("rejects", []), *staying.files.get("rejects", [])]
    rejected = Counter(staying.rejected) + Counter(made.rejected)
    then = Counter({r: n for r, n in before.rejected.items() if r in reasons})
    changed = made.rows_out or Counter(made.rejected) != then
    notes = Counter(before.facts.get("notes", {})) + Counter(made.notes)
    check_rows(stage.name, before.unit, before.rows_in, before.rows_out + made.rows_out, rejected, None)
    components = stage.components(run, before.unit)
    return replace(
        before,
        fingerprint=digest(components),
        components=components,
        files={**held, "rejects": sorted(rejects, key=lambda f: f.path)},
        rows_out=before.rows_out + made.rows_out,
        rejected=dict(sorted(rejected.items())),
        facts={**before.facts, **({"notes": dict(sorted(notes.items()))} if notes else {}), "tried_again": rows},
        task_seconds=round(before.task_seconds + made.task_seconds, 3),
        edition=digest([before.edition, made.rows_out, sorted(made.rejected.items())])[:8]
        if changed
        else before.edition,
    )


def _restamp(run: Run, stage: Stage, found: Mapping[str, Commit]) -> None:
    """Units that had no such row: what they hold is what today's limits make of them."""
    handed, lying = run.handed_to(stage), run.tables.commits(stage.name)
    others = [(lying[unit], stage.components(handed, unit)) for unit in found]
    _record(run, stage, [(c, components) for c, components in others if c.components != components])


def _take_over(run: Run, stage: Stage, then: Mapping[str, Mapping[str, Commit]]) -> None:
    """What a stage behind made of units in which no row came through: it is the same under today's limits.

    then   by stage and unit the commits that it was made of, and its own
    """
    handed, same = run.handed_to(stage), []
    for unit, commit in then[stage.name].items():
        now = stage.components(handed, unit)
        after = dict(commit.components.get("after", {}))
        for name in then.keys() & after.keys():
            older, newer = then[name].get(unit), run.commits.get(name, {}).get(unit)
            as_before = older is not None and newer is not None and older.edition == newer.edition
            if as_before and older is not None and after[name] == named(older.fingerprint, older.edition):
                after[name] = now["after"][name]
        if {**commit.components, "after": after} == now:
            same.append((commit, now))
    _record(run, stage, same)


def _record(run: Run, stage: Stage, made: Sequence[tuple[Commit, Mapping[str, Any]]]) -> None:
    if made:
        commits = [replace(c, fingerprint=digest(parts), components=dict(parts)) for c, parts in made]
        run.tables.records.add(stage.name, commits)
