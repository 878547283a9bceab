"""`i2e clean --purge`: what `select.exclude` lists goes out of the run's own tables, too.

Units are looked through one after the other. The files that hold a row of what is listed are written again without it,
in `_staging`, and take the place of the old ones together with the commit records (engine/merging.py), some units at a
time, all stages of a unit in one step: a kill leaves a unit as it was, or without. Nothing is worked on again: what
stages count becomes what they would have counted, had `pairs` rejected those pairs. Of each a reject without id and
place is left, so that rows in = rows out + rejected, and the manifest says how many they were.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.schemas import ID
from i2e_pipeline.engine import kept, merging
from i2e_pipeline.engine.pipeline import Pipeline, inspect
from i2e_pipeline.engine.records import Commit
from i2e_pipeline.engine.stage import Run, Stage, StageError
from i2e_pipeline.engine.units import Unit, Units
from i2e_pipeline.explore import index
from i2e_pipeline.inputs import formats, marks
from i2e_pipeline.inputs.shard import ShardError
from i2e_pipeline.publish import purging
from i2e_pipeline.publish.exclusion import Exclusions
from i2e_pipeline.publish.purging import PURGED, REJECTS, Leaving, Rewritten
from i2e_pipeline.publish.stages import tell_again
from i2e_pipeline.report.page import write_page

log = logging.getLogger(__name__)

_FILES_AT_ONCE = 1024
"""Files that one step takes the place of: what a kill may leave to be finished."""
_BYTES_AT_ONCE = 16 << 30
"""Of files that lie twice until then."""


PENDING = "_purge_again.json"
"""Lies in an output while units are made again of input that still holds what was purged."""


@dataclass
class Purged:
    """What was taken away, or would be."""

    pairs: Counter[str] = field(default_factory=Counter)
    """by reason"""
    rows: Counter[str] = field(default_factory=Counter)
    """by table"""
    files: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    """saved, by table; 0 before it is done"""
    input_below: int = 0
    """Input files below the output: they are as they were."""

    def add(self, made: Sequence[Rewritten]) -> None:
        for one in made:
            self.rows[one.table] += one.rows
            self.files[one.table] += 1
            self.bytes[one.table] += one.old.bytes - one.new.bytes if one.new else 0


def note_purge(pipeline: Pipeline) -> None:
    """From here on `purge_noted` purges again, in this process or after a kill in the next."""
    files.write_json(pipeline.tables.path(PENDING), {})


def purge_noted(pipeline: Pipeline) -> None:
    """Purge once more what units hold again that were made anew, where that was noted and the dataset is whole."""
    if not files.exists(note := pipeline.tables.path(PENDING)):
        return
    try:
        purge(pipeline)
    except StageError as error:
        log.warning("units were purged before, and hold again what was purged: %s", error)
        return
    files.remove(note)


def purge(pipeline: Pipeline, dry_run: bool = False) -> Purged:
    """Purge the output, which must be locked. Raises StageError where its dataset is not the one of today's lists."""
    lists = Exclusions.read(pipeline.config.select.exclude)
    if not any(items for kind, items in lists.items.items() if kind != "entity_id"):
        raise StageError("select.exclude lists no address, domain, image or hash: there is nothing to purge")
    run, stages = _up_to_date(pipeline)
    units = {unit.name: unit for unit in run.units}
    commits = {stage.name: pipeline.tables.commits(stage.name) for stage in stages}
    names = list(commits[stages[0].name])
    with ThreadPoolExecutor() as pool:
        leaving = dict(
            zip(names, pool.map(lambda n: _find(run, stages, commits, n, units.get(n), lists), names), strict=True)
        )
    purged = Purged(pairs=sum((Counter(one.counts()) for one in leaving.values()), Counter()))
    purged.input_below = sum(
        f.path.startswith(f"{run.tables.root.rstrip('/')}/") for unit in run.units for f in unit.files
    )
    touched = {name: one for name, one in leaving.items() if one}
    if not dry_run:
        _empty_indexes(run, units, touched)
        _purge_kept(run, touched)
    for step in _steps(run, stages, commits, touched, purged, dry_run):
        merging.replace_files(run.tables, *step, same_rows=False)
    if not dry_run:
        _forget_images(run, touched)
        run, _ = _up_to_date(pipeline)
        tell_again(run)
        if files.exists(run.tables.path("report.html")):
            write_page(pipeline)
    return purged


def _up_to_date(pipeline: Pipeline) -> tuple[Run, list[Stage]]:
    """The run as it stands, and the stages from the first that knows pairs. Raises StageError where something is to
    do, or lies there that no stage of the config knows."""
    run = pipeline.open(Units(pipeline.tables.root).known())
    states = [inspect(run, stage) for stage in pipeline.stages]
    for state in states:
        for unit, why in state.to_do.items():
            raise StageError(
                f"stage {state.stage.name} is to do for {unit} ({why}), and so the dataset may still hold what "
                "select.exclude lists: `i2e run` first, with the same settings"
            )
    if left := sorted(set(pipeline.tables.committed_stages()) - set(pipeline.names)):
        raise StageError(
            f"{', '.join(left)}: no stage of this config, and what it wrote may hold what select.exclude lists: name "
            "it in `stages`, or remove it with --removed-stages"
        )
    names = [stage.name for stage in pipeline.stages]
    return run, pipeline.stages[names.index(pipeline.writer("pairs")) :]


# What goes


def _find(
    run: Run,
    stages: Sequence[Stage],
    commits: Mapping[str, Mapping[str, Commit]],
    name: str,
    unit: Unit | None,
    lists: Exclusions,
) -> Leaving:
    made = commits[stages[0].name][name].files
    found = purging.find(run.tables, made.get("pairs", []), _of_images(run, stages, commits, name), lists)
    if unit is not None and (places := _rejected(run, commits[stages[0].name][name], unit, lists)):
        return replace(found, places=found.places | places)
    return found


def _of_images(
    run: Run, stages: Sequence[Stage], commits: Mapping[str, Mapping[str, Commit]], unit: str
) -> dict[str, list[merging.WrittenFile]]:
    """The unit's files of the tables of the first stage that names images: who comes behind it has them from there."""
    for stage in stages:
        of_images = [t for t in stage.tables if "image_id" in run.tables.catalogue.schema(t).names]
        if of_images and stage.scope == "unit":
            made = commits[stage.name].get(unit)
            return {table: made.files.get(table, []) for table in of_images} if made else {}
    return {}


def _rejected(run: Run, commit: Commit, unit: Unit, lists: Exclusions) -> set[tuple[int, int]]:
    """Shard and row of listed rows that became no pairs. Their addresses stand in the input alone, and where that is
    gone they are as good as unknown."""
    column, pairs = run.config.pairs.url_column, run.config.pairs
    if not commit.rejected or column is None or not (lists.items["url"] or lists.items["domain"]):
        return set()
    registry = Units(run.tables.root)
    repeated = {f.shard for f in unit.files if registry.repeats(f)}
    rows: dict[int, set[int]] = {}
    for batch in run.tables.batches(REJECTS, [commit], ["shard", "row", "detail"]):
        for shard, row, detail in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            if row is not None and (detail is not None or shard in repeated):
                rows.setdefault(shard, set()).add(row)
    found = set()
    for file in unit.files:
        wanted = sorted(rows.get(file.shard, ()))
        shard = registry.shard(file, pairs)
        try:
            at = 0
            for batch in formats.rows(shard, wanted, [column]) if wanted else ():
                urls = formats.texts(shard, batch)[0].column(column)
                listed = lists.domains.hold(urls)
                listed |= np.array([url in lists.items["url"] for url in urls.to_pylist()], dtype=bool)
                found |= {(file.shard, wanted[at + n]) for n in np.flatnonzero(listed).tolist()}
                at += batch.num_rows
        except (OSError, ShardError, pa.ArrowException) as error:
            log.warning("%s: rows of it that were rejected are not looked at: %s", file.path, error)
    return found


def _empty_indexes(run: Run, units: Mapping[str, Unit], leaving: Mapping[str, Leaving]) -> None:
    """Of tables that are no Parquet, the registry of units holds every row once more. Before the tables, which say what
    goes: a kill in between leaves something to find."""
    registry = Units(run.tables.root)
    for name, one in leaving.items():
        for file in units[name].files if name in units else ():
            if rows := {row for shard, row in one.places if shard == file.shard}:
                registry.empty_rows(file, rows)


def _purge_kept(run: Run, leaving: Mapping[str, Leaving]) -> None:
    """What stages keep of their work beside the tables, before these, too."""
    for name, one in leaving.items():
        kept.purge(run.tables.root, [name], one.of_pairs)


def _forget_images(run: Run, leaving: Mapping[str, Leaving]) -> None:
    """What is known of them beside the tables: the index of `i2e explore`, and marks."""
    files.remove(run.tables.path(index.FOLDER))
    images = {image_id for one in leaving.values() for image_id in one.images}
    if not images or not files.exists(path := run.tables.path(marks.FILE)):
        return
    wanted = pc.field("image_id").isin(pa.array(sorted(images), ID))
    held = run.tables.where("scores", run.tables.commits_of("scores").values(), wanted, ["image_id"])
    marks.forget(path, {image_id.hex() for image_id in images.difference(held["image_id"].to_pylist())})


# Taking it away


def _steps(
    run: Run,
    stages: Sequence[Stage],
    commits: Mapping[str, Mapping[str, Commit]],
    leaving: Mapping[str, Leaving],
    purged: Purged,
    dry_run: bool,
) -> Iterator[tuple[str, dict[str, list[Commit]]]]:
    """What is to be put in place together: the folder of the new files, and by stage the units as they will be."""
    step: dict[str, list[Commit]] = {}
    place, count, size = _place(), 0, 0
    # Tables of stages over everything go with the first units: their rows are found by what the units still hold.
    todo = [(None, Leaving.of_all(leaving.values())), *leaving.items()] if leaving else []
    try:
        for unit, one in todo:
            for stage in stages:
                if (stage.scope == "unit") is (unit is None):
                    continue
                of_stage = commits[stage.name]
                for commit in of_stage.values() if unit is None else filter(None, [of_stage.get(unit)]):
                    staging = None if dry_run else run.tables.path(place)
                    made = _rewritten(run, stage, commit, one, staging)
                    purged.add(made)
                    if made and staging is not None:
                        new = purging.without(commit, made)
                        step.setdefault(stage.name, []).append(
                            _as_rejected(run, staging, new, commit, one) if stage is stages[0] else new
                        )
                    count, size = count + len(made), size + sum(m.old.bytes for m in made)
            if unit is not None and step and (count >= _FILES_AT_ONCE or size >= _BYTES_AT_ONCE):
                yield place, step
                step, place, count, size = {}, _place(), 0, 0
        if step:
            yield place, step
    except BaseException:
        if not files.exists(run.tables.path("_commits", "merging.json")):
            files.remove(run.tables.path(place))
        raise


def _place() -> str:
    return f"_staging/purging-{uuid.uuid4().hex[:12]}"


def _rewritten(run: Run, stage: Stage, commit: Commit, leaving: Leaving, staging: str | None) -> list[Rewritten]:
    tasks = [(table, file) for table, made in commit.files.items() for file in made if file.rows]
    keys = {table: run.tables.catalogue.tables[table].key for table in commit.files if table in stage.tables}
    with ThreadPoolExecutor() as pool:
        made = pool.map(
            lambda task: purging.rewrite(
                run.tables, staging, task[0], task[1], leaving, stage.passes, keys.get(task[0], ())
            ),
            tasks,
        )
        return [one for one in made if one is not None]


def _as_rejected(run: Run, staging: str, new: Commit, old: Commit, leaving: Leaving) -> Commit:
    """The first stage's record with the pairs that go among its rejects: as many rows came in as ever."""
    counts = Counter(leaving.counts())
    told = counts + (Counter(old.rejected) - Counter(new.rejected))
    name = f"part-99999-purged-{uuid.uuid4().hex[:8]}.parquet"
    file = purging.told_rejects(run.tables, staging, old.stage, old.unit, told, name)
    before = Counter(old.facts.get(PURGED, {}))
    return replace(
        new,
        files={**new.files, REJECTS: [*new.files.get(REJECTS, []), file]},
        rows_in=old.rows_in,
        rejected=dict(sorted((Counter(new.rejected) + told).items())),
        facts={**new.facts, **({PURGED: dict(sorted((before + counts).items()))} if before + counts else {})},
    )
