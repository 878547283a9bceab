"""`i2e clean`: give back what no dataset of this config needs.

    staging      what killed runs and commands left unfinished, files that have no name yet among them
    laid out     gazetteers and contexts of other knowledge bases and settings
    moved        what lies in a folder that outputs share now (engine/sharing.py), and was made here before; that folder
                 itself stays as it is, since other outputs read it
    segments     vectors of other models and templates
    index        what `i2e explore` has built to look into the dataset
    orphans      files beside a table's that no commit record names, which other programs could take for rows
    removed      of stages that the config no longer names, with --removed-stages: their tables, rejects and records
    Delta logs   files that were replaced (VACUUM), and a checkpoint
    kept         what a stage keeps of its work of units that are no longer part of the dataset, or, with
                 --removed-stages, that the config no longer names
    merged       small files of a unit, with --merge: a table's become one, or as many as are full
    purged       rows of what `select.exclude` lists, with --purge (purge.py)

It runs nothing and needs no Spark. Whatever it removes can be made again, but for what is purged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from i2e_pipeline.core import files
from i2e_pipeline.engine import kept, merging
from i2e_pipeline.engine.pipeline import Pipeline, inspect
from i2e_pipeline.engine.tables import Commit, Tables
from i2e_pipeline.engine.units import Units
from i2e_pipeline.explore import index

log = logging.getLogger(__name__)

_UNFINISHED = ("_staging", "_texts", "_shipped")


@dataclass(frozen=True)
class Freed:
    """Something that was removed, or would be."""

    kind: str
    path: str
    """relative to the output"""
    files: int
    bytes: int


def clean(
    pipeline: Pipeline,
    dry_run: bool = False,
    removed_stages: bool = False,
    merge: bool = False,
    purged: bool = False,
) -> list[Freed]:
    """Remove it and say what it was. Raises StageError while a run writes the output, and where a dataset that is to
    be purged is not the one of today's lists."""
    with pipeline.exclusive(looking=dry_run):
        freed = []
        for found in _found(pipeline, dry_run, removed_stages):
            freed.append(found)
            if not dry_run and found.kind not in _DONE_ELSEWHERE:
                files.remove_below(pipeline.tables.root, found.path)
        changed = _purged(pipeline, dry_run) if purged else []
        changed += _merged(pipeline, dry_run) if merge else []
        if not dry_run and changed and pipeline.tables.storage.format == "delta":
            changed += [Freed("Delta log", table, *size) for table, size in pipeline.tables.vacuum()]
        freed += changed
        if not dry_run:
            for stage in pipeline.tables.committed_stages():
                pipeline.tables.records.fold(stage, files_left=1)
    return freed


def _purged(pipeline: Pipeline, dry_run: bool) -> list[Freed]:
    from i2e_pipeline.commands.purge import purge  # with all that a report needs

    done = purge(pipeline, dry_run)
    for reason, pairs in sorted(done.pairs.items()):
        log.info("%s: %s pairs", reason, f"{pairs:,}")
    if done.input_below:
        log.info("%d input files below the output are as they were: they are not the run's own", done.input_below)
    tables = sorted(done.files)
    return [Freed("purged", f"{t}, {done.rows[t]:,} rows", done.files[t], done.bytes[t]) for t in tables]


def _merged(pipeline: Pipeline, dry_run: bool) -> list[Freed]:
    """Of units that count, under today's settings, and whose files are there; the others are made again."""
    run = pipeline.open(Units(pipeline.tables.root).known())
    inspected = {stage.name: inspect(run, stage) for stage in pipeline.stages}
    # Other outputs read what they share, file by file.
    own = [name for name in inspected if pipeline.tables.of(name) is pipeline.tables]
    commits = {name: list(inspected[name].done.values()) for name in own}
    made = merging.merge(pipeline.tables, commits, dry_run)
    return [Freed("merged", one.table, one.before - one.after, one.bytes_saved) for one in made]


_DONE_ELSEWHERE = ("moved", "segments", "removed", "Delta log")


def _found(pipeline: Pipeline, dry_run: bool, removed_stages: bool) -> Iterator[Freed]:
    tables = pipeline.tables
    for folder in _UNFINISHED:
        yield from _of_folder(pipeline, "staging", folder)
    for info in files.left_unfinished(tables.root):
        if not info.path.startswith(tuple(f"{folder}/" for folder in _UNFINISHED)):
            yield Freed("staging", info.path, 1, info.size)
    yield from _of_folder(pipeline, "index", index.FOLDER)
    run = pipeline.open([])
    for stage in pipeline.stages:
        inspect(run, stage)
        handed = run.handed_to(stage)
        for folder, used in stage.lays_out(handed).items():
            here = files.join(tables.root, folder)
            for name in files.list_folders(here) if files.is_local(tables.root) else []:
                if (name != used or _beside(tables, folder, name)) and not files.is_hidden(name):
                    yield from _of_folder(pipeline, "laid out", files.join(folder, name))
        if tables.of(stage.name) is not tables and (old := list(tables.own.commits(stage.name).values())):
            yield from _of_commits(stage.name, "moved", old)
            if not dry_run:
                tables.own.discard(stage.name, [c.unit for c in old])
        if stage.scope == "segments":
            now = handed.fingerprints[stage.name]
            old = [c for c in tables.commits(stage.name).values() if c.fingerprint != now]
            yield from _of_commits(stage.name, "segments", old)
            if not dry_run:
                tables.discard(stage.name, [c.unit for c in old])
    units = {unit.name for unit in Units(tables.root).known()}
    for name in kept.stages(tables.root):
        gone = removed_stages and name not in pipeline.names
        for unit in files.list_folders(files.join(tables.root, kept.FOLDER, name)):
            if gone or unit not in units:
                yield from _of_folder(pipeline, "kept", files.join(kept.FOLDER, name, unit))
    for info in Units(tables.root).indexes_left():
        yield Freed("orphans", files.join("units", "index", info.path), 1, info.size)
    for name in set(tables.committed_stages()) - set(pipeline.names):
        if removed_stages:
            old = list(tables.commits(name).values())
            yield from _of_commits(name, "removed", old)
            if not dry_run:
                tables.discard(name, [c.unit for c in old])
                files.remove_below(tables.root, files.join("_commits", name))
    if tables.storage.format == "delta":
        for table, (count, size) in tables.vacuum(dry_run):
            yield Freed("Delta log", table, count, size)
    else:
        for path, bytes_ in tables.orphans():
            yield Freed("orphans", path, 1, bytes_)


def _beside(tables: Tables, folder: str, name: str) -> bool:
    """Whether what is used lies beside tables that outputs share, and here is an older one."""
    return any(files.exists(files.join(root, folder, name)) for root in tables.shared_roots())


def _of_folder(pipeline: Pipeline, kind: str, folder: str) -> Iterator[Freed]:
    found = files.list_files(files.join(pipeline.tables.root, folder))
    if found:
        yield Freed(kind, folder, len(found), sum(f.size for f in found))


def _of_commits(stage: str, kind: str, commits: list[Commit]) -> Iterator[Freed]:
    made = [f for c in commits for of_table in c.files.values() for f in of_table]
    if commits:
        yield Freed(kind, f"{stage}, {len(commits)} commits", len(made), sum(f.bytes for f in made))
