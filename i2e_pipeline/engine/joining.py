"""Two outputs of one config joined into a third: the first, as if it had grown by the second's units.

    by unit              copied from both; the second's shards are numbered on behind the first's, in every table that
                         has a column `shard`
    segments             copied from both, rows of a key that is there already left out
    over no unit         copied from the first; the second's were made under the same fingerprint
    over all units, and  copied from the first, as what was before: the next run decides over all units, keeps what the
    what needs them      first has numbered, and makes again what is not as it was

Input is not read. What is copied is staged and committed as a run commits it, so a kill leaves whole units alone; a
file says until the end that the others are still to come, no run works on the output meanwhile, and the same join goes
on where it was. Memory holds some batches, and the keys of segments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.pipeline import JOINING, Pipeline
from i2e_pipeline.engine.records import Commit, WrittenFile
from i2e_pipeline.engine.stage import Stage, difference, without_edition
from i2e_pipeline.engine.tables import Tables, Written
from i2e_pipeline.engine.tasks import OpenFile
from i2e_pipeline.engine.units import Unit, Units

log = logging.getLogger(__name__)

_SHARD = "shard"
_FILES_AT_ONCE = 512
"""Files that are committed together."""
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Change:
    """What becomes of the rows of the tables that have a column; files of others are copied as they are."""

    column: str
    rows: Callable[[pa.RecordBatch], pa.RecordBatch]


class JoinError(I2EError, RuntimeError):
    """Outputs that cannot be joined; the message says the way out."""


@dataclass(frozen=True)
class Joined:
    """What a join came to."""

    units: int
    twice: int
    """Units of the second that the first has, too."""
    forgotten: int
    """Units that one of them has and the other has forgotten; they are left out."""


_REMEDY = "remove the output, and join again"


def join(into: Pipeline, first: Pipeline, second: Pipeline) -> Joined:
    """Fill the output of `into`. Each of the three must be held by this process, and none be written by another.

    Raises JoinError where `into` holds something else, or where the two were made otherwise or hold the same file.
    """
    tables, a, b = into.tables, first.tables, second.tables
    one, other = Units(a.root), Units(b.root)
    mark = tables.path(JOINING)
    begun = files.exists(mark)
    lying = {u.name: [f.shard for f in u.files] for u in Units(tables.root).known()}
    if not begun and (tables.committed_stages() or lying):
        units, added, _, joined = _units(one, other)
        if lying == {u.name: [f.shard for f in u.files] for u in [*units, *added]}:
            # A merge that was killed at its very end is called again.
            log.info("%s holds the units of both already", tables.root)
            return joined
        raise JoinError(f"{tables.root} holds something already: name an output that is not there yet")
    units, added, offset, joined = _units(one, other)
    plan = {
        "from": [_whole_path(a.root), _whole_path(b.root)],
        "units": {u.name: [f.shard for f in u.files] for u in [*units, *added]},
    }
    if begun and files.record(mark, _REMEDY) != plan:
        raise JoinError(f"{tables.root} was begun as another join, or {a.root} or {b.root} has grown since: {_REMEDY}")
    over_all = _over_all(into.stages, tables.catalogue.writers)
    both = [stage for stage in into.stages if stage.name not in over_all]
    for stage in both:
        if not stage.spares:
            _refuse_unlike(stage, a, b)
    files.write_json(mark, plan)
    into.mark_storage()
    tables.discard_staging()
    into.open([*units, *added])  # tables have the columns that either's input has
    registry = Units(tables.root)
    for unit in units:
        registry.take_over(one, unit)
    for unit in added:
        registry.take_over(other, unit)
    for of in (one, other):
        for unit in of.left_out():
            registry.take_over(of, unit, forgotten=True)
    names_a, names_b = {u.name for u in units}, {u.name for u in added}
    for stage in into.stages:
        if tables.of(stage.name) is not tables:
            continue  # it lies where all of them read it
        if stage.spares and len(_kinds(stage, a, b)) > 1:
            log.info("%-15s was made in several ways, and is made anew by the next run", stage.name)
            continue
        made = a.commits(stage.name)
        by_unit = stage.scope == "unit"
        _copy(tables, a, stage, [c for u, c in made.items() if not by_unit or u in names_a])
        further = [c for u, c in b.commits(stage.name).items() if u not in made]
        if stage.name in over_all:
            continue
        if by_unit:
            _copy(tables, b, stage, [c for c in further if c.unit in names_b], _numbered_on(offset))
        elif stage.scope == "segments":
            for commit in further:
                _copy(tables, b, stage, [commit], _unless_there(tables, stage))
        log.info("%-15s copied", stage.name)
    return joined


def finish(into: Pipeline) -> None:
    """From now on runs work on the output."""
    files.remove(into.tables.path(JOINING))


def _whole_path(folder: str) -> str:
    return files.open_filesystem(folder)[1] if files.is_local(folder) else folder


def _units(one: Units, other: Units) -> tuple[list[Unit], list[Unit], int, Joined]:
    """Units of the first, those that the second adds, numbered on, the number that is added to its shards', and what is
    told of them. Raises JoinError."""
    gone = {u.name for registry in (one, other) for u in registry.left_out()}
    units, theirs = one.known(), other.known()
    kept = [u for u in units if u.name not in gone]
    names = {u.name: u for u in kept}
    added = [u for u in theirs if u.name not in gone and u.name not in names]
    if not kept and not added:
        raise JoinError(f"neither {one.folder} nor {other.folder} holds a unit: `i2e run` both first")
    shares: dict[str, list[Unit]] = {}
    at: dict[str, str] = {}
    for unit in kept:
        for file in unit.files:
            shares.setdefault(file.digest, []).append(unit)
            at[file.path] = file.digest
    for unit in added:
        for file in unit.files:
            for mine in shares.get(file.digest, ()):
                if mine.share[0] < unit.share[1] and unit.share[0] < mine.share[1]:
                    raise JoinError(
                        f"{file.path} is in unit {mine.name} of {one.folder} and in unit {unit.name} of "
                        f"{other.folder}, which hold other files, too, or another share of its rows: leave one of them "
                        f"out, `i2e run --forget {unit.name}`"
                    )
            if at.get(file.path, file.digest) != file.digest:
                raise JoinError(
                    f"{file.path} has changed between unit {unit.name} of {other.folder} and the run that made "
                    f"{one.folder}: `i2e run --replace` in the one that has the older content, or `i2e run --forget "
                    f"{unit.name}`"
                )
    for unit in theirs:
        if unit.name in names:
            for file, same in zip(names[unit.name].files, unit.files, strict=True):
                if file.path != same.path:
                    log.warning("%s and %s hold the same rows: name one in pairs.path", file.path, same.path)
    offset = 1 + max((f.shard for u in units for f in u.files), default=-1)
    numbered = [replace(u, files=tuple(replace(f, shard=f.shard + offset) for f in u.files)) for u in added]
    twice = sum(u.name in names for u in theirs)
    left_out = len({u.name for u in (*units, *theirs)} & gone)
    return kept, numbered, offset, Joined(len(kept) + len(added), twice, left_out)


def _over_all(stages: Sequence[Stage], writers: Mapping[str, str]) -> set[str]:
    """Names of the stages that decide over all units, and of those that need them."""
    by_unit, found = set[str](), set[str]()
    for stage in stages:
        before = {*stage.after, *(writers[table] for table in stage.reads)}
        if before & found or (stage.scope == "whole" and before & by_unit):
            found.add(stage.name)
        if stage.scope == "unit" or before & by_unit:
            by_unit.add(stage.name)
    return found


def _kinds(stage: Stage, first: Tables, second: Tables) -> list[tuple[str, dict[str, Any]]]:
    """The ways in which the stage has worked in the two outputs, each with one of them."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for tables in (first, second):
        for commit in tables.commits(stage.name).values():
            made = _alike(commit.components)
            found.setdefault(digest(made), (tables.root, made))
    return list(found.values())


def _refuse_unlike(stage: Stage, first: Tables, second: Tables) -> None:
    found = _kinds(stage, first, second)
    if len(found) > 1:
        (here, old), (there, new) = found[:2]
        names = {f"settings.{stored}": key for key, stored in stage.stored_as.items()}
        said = "; ".join(difference(old, new, names=names))
        raise JoinError(
            f"{stage.name} was made otherwise in {here} and in {there} ({said}): `i2e run` both under one config first"
        )


def _alike(components: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a fingerprint is made of, what does not depend on the units that there are."""
    after = {name: without_edition(value) for name, value in components.get("after", {}).items() if name != "units"}
    return {**{key: components.get(key) for key in ("version", "settings", "weighs")}, "after": after}


def _copy(into: Tables, source: Tables, stage: Stage, commits: Sequence[Commit], change: Change | None = None) -> None:
    """Copy what these commits made, and commit it; what is committed there already is passed over."""
    known = into.records.known(stage.name)
    there = {unit: (c.fingerprint, c.edition) for unit, c in known.items()}
    left = [c for c in commits if there.get(c.unit) != (c.fingerprint, c.edition)]
    for group in _groups(left):
        with into.staging(stage.name) as staging, ThreadPoolExecutor() as pool:
            copy = partial(_copy_file, into, source, staging, change)
            tasks = [(c, table, f) for c in group for table, made in c.files.items() for f in made]
            written = list(pool.map(copy, [table for _, table, _ in tasks], [file for _, _, file in tasks]))
            new: dict[str, dict[str, list[WrittenFile]]] = {c.unit: {t: [] for t in c.files} for c in group}
            for (commit, table, _), file in zip(tasks, written, strict=True):
                new[commit.unit][table].append(file)
            made = [_with_files(stage, c, new[c.unit]) for c in group]
            into.commit([(c, [Written(staging, c.files, c.rows_in, c.rows_out, c.rejected)]) for c in made])


def _with_files(stage: Stage, commit: Commit, made: dict[str, list[WrittenFile]]) -> Commit:
    commit = replace(commit, files=made)
    if stage.scope != "segments" or stage.passes is None:
        return commit
    rows = commit.rows(stage.passes.table)
    return replace(commit, rows_in=rows, rows_out=rows)


def _groups(commits: Sequence[Commit]) -> Iterator[list[Commit]]:
    group: list[Commit] = []
    for commit in commits:
        group.append(commit)
        if sum(len(made) for c in group for made in c.files.values()) >= _FILES_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _copy_file(
    into: Tables, source: Tables, staging: str, change: Change | None, table: str, file: WrittenFile
) -> WrittenFile:
    filesystem, inner = files.open_filesystem(source.path(table, file.path))
    schema = pq.read_schema(inner, filesystem=filesystem).remove_metadata() if change is not None else pa.schema([])
    if change is None or change.column not in schema.names:
        files.copy(source.path(table, file.path), files.join(staging, table, file.path))
        return file
    out = OpenFile(files.join(staging, table), file.path, schema, into.storage)
    try:
        with filesystem.open_input_file(inner) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE):
                rows = change.rows(batch)
                out.add(pa.RecordBatch.from_arrays(rows.columns, schema=schema))
    except BaseException:
        out.abandon()
        raise
    return out.close()


def _numbered_on(offset: int) -> Change:
    def rows(batch: pa.RecordBatch) -> pa.RecordBatch:
        place = batch.schema.get_field_index(_SHARD)
        shards = batch.column(place)
        return batch.set_column(place, batch.schema.field(place), pc.add(shards, pa.scalar(offset, shards.type)))

    return Change(_SHARD, rows)


def _unless_there(tables: Tables, stage: Stage) -> Change:
    """Leaves out the rows of a stage's table whose key is there already: its one column."""
    ((table, declared),) = stage.tables.items()
    (key,) = declared.key
    there = tables.load(table, tables.commits(stage.name).values(), [key]).column(key).combine_chunks()

    def rows(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.filter(pc.invert(pc.is_in(batch.column(key), value_set=there)))

    return Change(key, rows)
