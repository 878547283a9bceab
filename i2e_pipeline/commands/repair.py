"""`i2e repair`: what `i2e verify` finds is mended. Damage is taken away, and a run makes what is missing.

Records that the seal holds are put back first, since they say what belongs to what; then it is looked again. Whatever
else is damaged goes, with the commit record that names it, and the run makes it again from what lies before it: a stage
of a unit, the card, the report. All of it is deterministic, so the dataset is what it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from i2e_pipeline.commands.purge import purge
from i2e_pipeline.commands.run import run
from i2e_pipeline.commands.verify import SAMPLE, verify
from i2e_pipeline.commands.verifying.faults import BY_HAND, Fault, Mend, Verified
from i2e_pipeline.core import files
from i2e_pipeline.engine import seal
from i2e_pipeline.engine.delta import DeltaLog
from i2e_pipeline.engine.lock import waiting
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.units import Units
from i2e_pipeline.publish.purging import PURGED

log = logging.getLogger(__name__)

_ROUNDS = 4
"""Each mends what the one before has brought to light: records, then what they name, then what was made of it."""


@dataclass
class Repaired:
    """What was mended, and what is left."""

    mended: list[Fault] = field(default_factory=list)
    left: Verified = field(default_factory=Verified)
    """As it was found at the end."""

    def mended_as_found(self) -> Verified:
        return Verified(self.mended)


def repair(
    pipeline: Pipeline,
    deep: bool = True,
    sample: int = SAMPLE,
    compose: Callable[[], object] | None = None,
) -> Repaired:
    """Mend the output. Raises what a run raises, where one cannot make what is missing.

    compose   makes the input anew, where it is the embedded sample's; None: it is not
    """
    done = Repaired()
    for _ in range(_ROUNDS):
        found = verify(pipeline, deep, sample)
        done.left = found
        mendable = [
            f for f in found.faults if f.mend not in BY_HAND and (f.mend is not Mend.INPUT or compose is not None)
        ]
        if not mendable:
            return done
        restoring = [f for f in mendable if f.mend in (Mend.RESTORE, Mend.SEAL)]
        done.mended += restoring or mendable
        with pipeline.exclusive():
            purged = _purged_units(pipeline, mendable)
            _mend(pipeline, restoring or mendable, purged, compose)
            pipeline = pipeline.with_config(pipeline.config)  # what it knows of journals and logs is not so any more
            if not restoring:
                run(pipeline)
                _lay_out(pipeline, [f.path for f in mendable if f.mend is Mend.LAY_OUT])
                _purge_again(pipeline, purged)
        pipeline = pipeline.with_config(pipeline.config)
    done.left = verify(pipeline, deep, sample)
    return done


def _mend(
    pipeline: Pipeline, faults: Sequence[Fault], purged: Collection[str], compose: Callable[[], object] | None
) -> None:
    """Take away what is damaged, or put it back.

    purged   units of which rows were purged that stand in the input still
    """
    tables = pipeline.tables
    for fault in faults:
        log.info("%s: %s", fault.path, fault.mend.value)
    by_mend = {mend: [f for f in faults if f.mend is mend] for mend in Mend}
    _restore(tables, by_mend[Mend.RESTORE])
    for fault in by_mend[Mend.SEAL]:
        files.remove(files.join(fault.root or tables.root, seal.FILE))
    _index_again(pipeline, [f for f in by_mend[Mend.INDEX] if f.unit not in purged])
    for fault in by_mend[Mend.REMOVE]:
        files.remove_below(fault.root or tables.root, fault.path)
    _forget_units(pipeline, [*by_mend[Mend.UNIT], *(f for f in by_mend[Mend.INDEX] if f.unit in purged)])
    if compose is not None and by_mend[Mend.INPUT]:
        _drop(tables.root, by_mend[Mend.INPUT])
        compose()  # all of it: a file more or less is another sample
    logs = {fault.path.partition("/_delta_log")[0] for fault in by_mend[Mend.LOG]}
    for table in sorted(logs):
        _write_log(tables, table)
    for stage in dict.fromkeys(fault.stage for fault in by_mend[Mend.REDO]):
        home = tables.of(stage)
        with waiting(home.root, f"stage {stage}") if home is not tables else nullcontext():
            tables.discard(stage, sorted({f.unit for f in by_mend[Mend.REDO] if f.stage == stage}))
    _remove_laid_out(pipeline, by_mend[Mend.LAY_OUT])
    if by_mend[Mend.CARD]:
        _drop(tables.root, by_mend[Mend.CARD])
        files.remove(tables.path("i2e", "manifest.json"))
    if by_mend[Mend.REPORT]:
        _drop(tables.root, by_mend[Mend.REPORT])
        files.remove(tables.path("_reported.json"))


def _restore(tables: Tables, faults: Iterable[Fault]) -> None:
    by_root: dict[str, list[str]] = {}
    for fault in faults:
        by_root.setdefault(fault.root or tables.root, []).append(fault.path)
    for root, paths in by_root.items():
        seal.restore(root, paths)


def _drop(root: str, faults: Iterable[Fault]) -> None:
    """Remove files, and what the seal says of them."""
    paths = [fault.path for fault in faults]
    for path in paths:
        files.remove_below(root, path)
    seal.forget(root, paths)


def _index_again(pipeline: Pipeline, faults: Sequence[Fault]) -> None:
    """Where the input file is what it was. Else the index stays as it is: what was made of the unit is whole."""
    digests = {fault.path.rpartition("/")[2].partition(".")[0] for fault in faults}
    if digests:
        made = Units(pipeline.tables.root).index_again(digests, pipeline.config.pairs)
        # Rows may be packed another way by another version: what is said of the file is what it is now.
        seal.forget(pipeline.tables.root, [f"units/index/{digest}.parquet" for digest in made])


def _forget_units(pipeline: Pipeline, faults: Sequence[Fault]) -> None:
    """Of units whose records are lost, or whose indexes would hold again what was purged, everything: their files are
    numbered anew."""
    root, units = pipeline.tables.root, sorted({fault.unit for fault in faults})
    pipeline.numbered_anew(units)
    gone = {fault.path for fault in faults} | {f"units/{unit}.json" for unit in units}
    for path in sorted(gone):
        files.remove_below(root, path)
    seal.forget(root, gone)


def _write_log(tables: Tables, table: str) -> None:
    """A Delta log of the files that commit records name, in place of one that is damaged. What it told of versions
    before is gone."""
    if table == "rejects":
        made = [
            f for s in tables.committed_stages() for c in tables.commits(s).values() for f in c.files.get(table, [])
        ]
    else:
        made = [f for c in tables.commits_of(table).values() for f in c.files.get(table, [])]
    place = tables.path(table)
    files.remove(files.join(place, "_delta_log"))
    folders = {f.path.rpartition("/")[0] for f in made}
    DeltaLog(place).replace(tables.catalogue.schema(table), made, folders)
    root = tables.root
    try:
        known = seal.read(root)
    except seal.SealError:
        return
    seal.forget(root, [path for path in known if path.startswith(f"{table}/_delta_log/")])


def _remove_laid_out(pipeline: Pipeline, faults: Sequence[Fault]) -> None:
    """Remove folders of files for workers of which some are damaged."""
    folders = {(fault.root or pipeline.tables.root, _folder_of(pipeline, fault.path)) for fault in faults}
    for root, folder in sorted(folders):
        files.remove_below(root, folder)
        seal.forget(root, [path for path in seal.read(root) if path.startswith(f"{folder}/")])


def _lay_out(pipeline: Pipeline, paths: Sequence[str]) -> None:
    """Let stages lay these out again, though they have nothing to work on: other commands read them, too."""
    run = pipeline.as_it_is()
    for stage in pipeline.stages:
        if any(path.startswith(f"{place}/") for path in paths for place in stage.lays_out_in):
            stage.prepare(run.handed_to(stage))


def _folder_of(pipeline: Pipeline, path: str) -> str:
    """kb/gazetteer/NAME of a file in it."""
    for stage in pipeline.stages:
        for place in stage.lays_out_in:
            if path.startswith(f"{place}/"):
                return files.join(place, path.removeprefix(f"{place}/").partition("/")[0])
    return path


def _purged_units(pipeline: Pipeline, faults: Iterable[Fault]) -> list[str]:
    """Units that were purged and are about to be made again of the input, where those rows stand still."""
    try:
        commits = pipeline.tables.commits_of("pairs")
    except files.RecordError:
        return []
    redone = {fault.unit for fault in faults if fault.mend in (Mend.REDO, Mend.UNIT, Mend.INDEX)}
    return sorted(unit for unit, commit in commits.items() if commit.facts.get(PURGED) and unit in redone)


def _purge_again(pipeline: Pipeline, units: Sequence[str]) -> None:
    if not units:
        return
    try:
        purge(pipeline)
    except StageError as error:
        log.warning("%d units were purged before, and hold again what was purged: %s", len(units), error)
