"""Small files of a unit put together, so that readers open fewer of them.

A large unit is dealt to many tasks, and each leaves a file in every table. Merging changes no row, and no order of
rows. What is about to be put in place is written down first, in `_commits/merging.json`; whoever next locks the output
after a kill goes on from there, so no unit loses its commit. Other programs that list a folder of a Parquet table
meanwhile may see rows twice; Delta's readers do not.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.engine.records import Commit, WrittenFile, commit_of, is_name
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.tasks import OpenFile, TableError, conform

log = logging.getLogger(__name__)

_FULL = 128 << 20
"""Bytes up to which files are put together."""
_FILES_AT_ONCE = 1024
"""Files that one step takes the place of: what a kill may leave to be finished."""
_ROWS_AT_ONCE = 1024
"""Rows of images are large."""
_REMEDY = "a change of files was cut off; remove the file, and `i2e run` makes again what is missing"

Group = tuple[str, list[WrittenFile]]
"""A table, and files of one of its folders that follow each other."""


@dataclass(frozen=True)
class Merged:
    """Files of a table that were put together, or would be."""

    table: str
    before: int
    after: int
    bytes_saved: int
    """0 before it is done"""


def merge(
    tables: Tables, commits: Mapping[str, Iterable[Commit]], dry_run: bool = False, full: int = _FULL
) -> list[Merged]:
    """Put together, folder by folder, what was written in files of less than `full` bytes. The output must be locked
    (Pipeline.exclusive).

    commits   by stage those that count and whose files are there
    """
    counts: dict[str, list[int]] = {}
    for stage, of_stage in commits.items():
        for step in _steps(of_stage, full):
            new = {} if dry_run else _carry_out(tables, stage, step)
            for commit, groups in step:
                for n, (table, old) in enumerate(groups):
                    saved = sum(f.bytes for f in old) - new[commit.unit][n].bytes if new else 0
                    count = counts.setdefault(table, [0, 0, 0])
                    count[:] = count[0] + len(old), count[1] + 1, count[2] + saved
    return [Merged(table, *count) for table, count in sorted(counts.items())]


def _steps(commits: Iterable[Commit], full: int) -> Iterator[list[tuple[Commit, list[Group]]]]:
    """Commits with something to merge, so many that they have a step's files."""
    step: list[tuple[Commit, list[Group]]] = []
    for commit in commits:
        if groups := list(_groups(commit, full)):
            step.append((commit, groups))
        if sum(len(old) for _, groups in step for _, old in groups) >= _FILES_AT_ONCE:
            yield step
            step = []
    if step:
        yield step


def _groups(commit: Commit, full: int) -> Iterator[Group]:
    for table, made in commit.files.items():
        by_folder: dict[str, list[WrittenFile]] = {}
        for file in sorted(made, key=lambda f: f.path):
            by_folder.setdefault(file.path.rpartition("/")[0], []).append(file)
        for found in by_folder.values():
            group: list[WrittenFile] = []
            for file in found:
                if group and sum(f.bytes for f in group) + file.bytes > full:
                    if len(group) > 1:
                        yield table, group
                    group = []
                group.append(file)
            if len(group) > 1:
                yield table, group


def _carry_out(tables: Tables, stage: str, step: Sequence[tuple[Commit, list[Group]]]) -> dict[str, list[WrittenFile]]:
    """One step. Returns the new files of each unit, in the order of its groups."""
    place = f"_staging/merging-{uuid.uuid4().hex[:12]}"
    staging = tables.path(place)
    tasks = [(commit.unit, n, *group) for commit, groups in step for n, group in enumerate(groups)]
    try:
        with ThreadPoolExecutor() as pool:
            written = list(pool.map(lambda task: _write(tables, staging, *task[1:]), tasks))
    except BaseException:
        files.remove(staging)
        raise
    new: dict[str, list[WrittenFile]] = {}
    for (unit, *_), file in zip(tasks, written, strict=True):
        new.setdefault(unit, []).append(file)
    replace_files(tables, place, {stage: [_merged(commit, groups, new[commit.unit]) for commit, groups in step]})
    return new


def add(tables: Tables, stage: str, staging: str, commits: Sequence[Commit]) -> None:
    """Put what lies in a staging folder beside files that units of a stage keep, and record both. Files that the
    commits no longer name are removed. The output must be locked; a kill leaves the old commits, or what `finish` ends.

    staging   relative to the output; it is removed
    commits   with all files that count from now on, those in place already too
    """
    replace_files(tables, staging, {stage: commits}, same_rows=False, same_columns=False)


def replace_files(
    tables: Tables,
    place: str,
    made: Mapping[str, Sequence[Commit]],
    same_rows: bool = True,
    same_columns: bool = True,
) -> None:
    """Put files of committed units in the place of those that these have, and record it. A kill on the way is ended by
    whoever next locks the output (`finish`). The output must be locked.

    place          the folder below the output, in `_staging`, in which the new files lie as they will in their tables
    made           by stage the units as they will be; files that they keep stay where they are
    same_rows      the rows are what they were
    same_columns   so are the columns, and the tables are there
    """
    # Relative to the output, which may be moved, or mounted elsewhere, before somebody finishes this.
    stages = {stage: [asdict(c) for c in commits] for stage, commits in made.items()}
    intent = {"staging": place, "stages": stages, "same_rows": same_rows, "same_columns": same_columns}
    files.write_json(_intent(tables), intent)
    finish(tables)


def _write(tables: Tables, staging: str, number: int, table: str, old: Sequence[WrittenFile]) -> WrittenFile:
    folder, _, name = old[0].path.rpartition("/")
    # It stands where the first of them stood in the order of names.
    task = re.match(r"part-[^-.]*", name)
    path = f"{folder}/{task.group() if task else 'part'}-{number:05}-{uuid.uuid4().hex[:8]}.parquet"
    # As its files have it: a table may have got other columns since.
    filesystem, inner = files.open_filesystem(tables.path(table, old[0].path))
    schema = pq.read_schema(inner, filesystem=filesystem).remove_metadata()
    out = OpenFile(files.join(staging, table), path, schema, tables.storage)
    try:
        for file in old:
            filesystem, inner = files.open_filesystem(tables.path(table, file.path))
            with filesystem.open_input_file(inner) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE):
                    out.add(conform(batch, out.schema, table))
    except BaseException:
        out.abandon()
        raise
    made = out.close()
    if made.rows != sum(f.rows for f in old):
        raise TableError(f"{tables.path(table, folder)}: {made.rows} rows in place of {sum(f.rows for f in old)}")
    return made


def _merged(commit: Commit, groups: Sequence[Group], new: Sequence[WrittenFile]) -> Commit:
    made = {table: list(of_table) for table, of_table in commit.files.items()}
    for (table, old), file in zip(groups, new, strict=True):
        gone = {f.path for f in old}
        made[table] = sorted([*(f for f in made[table] if f.path not in gone), file], key=lambda f: f.path)
    return replace(commit, files=made)


def _intent(tables: Tables) -> str:
    return tables.path("_commits", "merging.json")


def finish(tables: Tables) -> None:
    """Put in place what a step has written, and record it; what of that was done before a kill is passed over.

    Where some of what it has written is nowhere to be found, nothing is put in place, and the old files stay.
    """
    if not files.exists(_intent(tables)):
        return
    place, by_stage, how = _read(_intent(tables))
    staging = tables.path(place)
    files.refuse_outside(tables.root, files.join(staging, "part"))
    if lost := _lost(tables, staging, [c for made in by_stage.values() for c in made]):
        log.warning("%s: files were about to be replaced, and what was to come is gone: the old ones stay", lost)
        files.remove(_intent(tables))
        return
    for stage, made in by_stage.items():
        before = tables.records.known(stage)
        for table in sorted({t for c in made for t in c.files}):
            new = [f for c in made for f in c.files.get(table, [])]
            kept = {f.path for f in new}
            was = [f for c in made if c.unit in before for f in before[c.unit].files.get(table, [])]
            old = [f for f in was if f.path not in kept]
            tables.put_merged(table, staging, new, old, *how)
        tables.records.add(stage, made)
    files.remove_below(tables.root, place)
    files.remove(_intent(tables))


def pending(tables: Tables) -> bool:
    """Was such a step cut off, and not ended yet?"""
    return files.exists(_intent(tables))


def _read(path: str) -> tuple[str, dict[str, list[Commit]], tuple[bool, bool]]:
    """What a step was about to do: the folder of staging, units by stage, and whether rows and columns are the same.

    Raises RecordError where that is anything else than `replace_files` writes: the output may be somebody else's, and
    the folder is removed in the end.
    """
    intent = files.record(path, _REMEDY)
    try:
        # Earlier versions wrote it for one stage.
        stages = intent["stages"] if "stages" in intent else {intent["stage"]: intent["commits"]}
        place, how = intent["staging"], (intent.get("same_rows", True), intent.get("same_columns", True))
        by_stage = {stage: [commit_of(record) for record in records] for stage, records in stages.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise files.RecordError(f"{path} says of no change of files what is needed ({error!r}): {_REMEDY}") from None
    except files.RecordError as error:
        raise files.RecordError(f"{path}: {error}") from None
    above, _, name = place.partition("/") if isinstance(place, str) else ("", "", "")
    if above != "_staging" or not is_name(name):
        raise files.RecordError(f"{path}: {place!r} is no folder directly below _staging: {_REMEDY}")
    if not all(isinstance(said, bool) for said in how):
        raise files.RecordError(f"{path}: same_rows and same_columns are true or false: {_REMEDY}")
    for stage, made in by_stage.items():
        if any(commit.stage != stage for commit in made):
            raise files.RecordError(f"{path}: units of another stage stand under {stage!r}: {_REMEDY}")
    return place, by_stage, (how[0], how[1])


def _lost(tables: Tables, staging: str, made: Sequence[Commit]) -> str | None:
    """A file that these units are to have, and that is whole neither at its place nor in staging."""
    for table in sorted({t for c in made for t in c.files}):
        staged = {i.path: i.size for i in files.list_files(files.join(staging, table))}
        named = [f for c in made for f in c.files.get(table, []) if staged.get(f.path) != f.bytes]
        folders = {f.path.rpartition("/")[0] for f in named}
        there = {
            files.join(folder, i.path): i.size
            for folder in folders
            for i in files.list_files(tables.path(table, folder))
        }
        for file in named:
            if there.get(file.path) != file.bytes:
                return tables.path(table, file.path)
    return None
