"""`i2e repair`: what `i2e verify` finds is mended. Damage is taken away, and a run makes what is missing.

Records that the seal holds are put back first, since they say what belongs to what; then it is looked again. Whatever
else is damaged goes, with the commit record that names it, and the run makes it again from what lies before it: a stage
of a unit, the card, the report. All of it is deterministic, so the dataset is what it was. What only the input can make
again stays where that is not what was read.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import pyarrow as pa

from i2e_pipeline.commands.purge import note_purge
from i2e_pipeline.commands.run import run
from i2e_pipeline.commands.verify import SAMPLE, WrittenMeanwhile, look_through, verify
from i2e_pipeline.commands.verifying.faults import BY_HAND, Fault, Mend, Verified
from i2e_pipeline.commands.verifying.stored import input_changed
from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.lock import Held, waiting
from i2e_pipeline.dataset.published import manifest_of
from i2e_pipeline.engine import seal
from i2e_pipeline.engine.delta import DeltaLog
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.records import Commit
from i2e_pipeline.engine.tables import WHOLE, Tables
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
    settings: Callable[[], Config] | None = None,
) -> Repaired:
    """Mend the output. Raises what a run raises, where one cannot make what is missing.

    compose    makes the input anew, where it is the embedded sample's; None: it is not
    settings   those of the last command that wrote the output, once nobody else does; None: the pipeline's
    """
    done = Repaired()
    notes: dict[str, None] = {}
    others: list[Fault] = []
    with pipeline.exclusive():
        if settings is not None:
            pipeline = pipeline.with_config(settings())
        for _ in range(_ROUNDS):
            done.left = look_through(pipeline, deep, sample)
            mendable = [f for f in done.left.faults if f.mend not in BY_HAND]
            mendable = [f for f in mendable if f.mend is not Mend.INPUT or compose is not None]
            mendable = _with_input(pipeline, mendable, notes)
            mendable = [f for f in mendable if f.mend is not Mend.SEAL or f not in done.mended]  # which is at the end
            if any(f.check == "records" and f.mend is Mend.NOTHING for f in done.left.faults):
                # Nothing runs without a record that somebody must put back: nothing is taken away that a run makes.
                mendable = [f for f in mendable if f.mend in (Mend.RESTORE, Mend.REMOVE)]
            if not mendable:
                break
            # First what says what belongs to what: the rest may be whole then.
            restoring = [f for f in mendable if f.mend in (Mend.RESTORE, Mend.REMOVE)]
            done.mended += restoring or mendable
            witnesses = {} if restoring else _witnesses(pipeline, done.left.faults, mendable)
            purged = _purged_units(pipeline, mendable)
            lost = [] if restoring else _laid_out(pipeline, mendable)
            _mend(pipeline, restoring or mendable, purged, compose)
            pipeline = pipeline.with_config(pipeline.config)  # what it knows of journals and logs is not so any more
            if not restoring:
                run(pipeline)
                _lay_out(pipeline, lost)
                others += _other_rows(pipeline, witnesses)
            pipeline = pipeline.with_config(pipeline.config)
    try:
        done.left = verify(pipeline, deep, sample)
    except (Held, WrittenMeanwhile) as error:
        done.left.notes.append(f"{error}; as it was found before that")
    done.left.faults += others
    done.left.notes += notes
    return done


def _with_input(pipeline: Pipeline, faults: Sequence[Fault], notes: dict[str, None]) -> list[Fault]:
    """Faults without those that only the input mends, where that is not what was read: nothing is taken away that
    cannot be made again."""
    opening = _opening(pipeline)
    wanted = {f.unit for f in faults if f.mend is Mend.UNIT or (f.mend is Mend.REDO and f.stage in opening)}
    broken: dict[str, str] = {}
    units = [unit for unit in Units(pipeline.tables.root).known(broken) if unit.name in wanted]
    gone = {one.unit: one for one in input_changed(pipeline, units)}
    for one in gone.values():
        notes[f"unit {one.unit} is left as it is, since {one}: put it back as it was, and `i2e repair` again"] = None
    return [f for f in faults if not (f.unit in gone and (f.mend is Mend.UNIT or f.stage in opening))]


def _opening(pipeline: Pipeline) -> set[str]:
    """Names of the stages that read a unit's input."""
    return {stage.name for stage in pipeline.stages if stage.opens_input() and stage.scope == "unit"}


Witnesses = dict[tuple[str, str, str], str]
"""By stage, unit and table what names the ids of its rows."""


def _witnesses(pipeline: Pipeline, found: Sequence[Fault], mendable: Sequence[Fault]) -> Witnesses:
    """Of what is made again of the input, the tables that are whole: they say whether that is what it was. A look at
    its digest cannot: of archives and large files it is not of every byte."""
    opening = _opening(pipeline)
    again = {(f.stage, f.unit) for f in mendable if f.mend is Mend.REDO and f.stage in opening}
    again -= {(f.stage, f.unit) for f in found if f.check == "records"}  # which names somebody else's files, it may be
    damaged = {(f.stage, f.unit, f.path.rpartition("/unit=")[0]) for f in found}
    witnesses: Witnesses = {}
    for stage, unit in sorted(again):
        commit = pipeline.tables.commits(stage, {}).get(unit)
        for table in commit.files if commit is not None else ():
            if table != "rejects" and (stage, unit, table) not in damaged:
                with suppress(OSError, pa.ArrowException):  # quickly looked at, it may be damaged all the same
                    witnesses[stage, unit, table] = _ids(pipeline, table, commit)
    return witnesses


def _ids(pipeline: Pipeline, table: str, commit: Commit | None) -> str:
    """Names the rows of a table of a unit by their ids and numbers, in whatever order they stand."""
    wanted = (pa.types.is_fixed_size_binary, pa.types.is_integer)
    names = [f.name for f in pipeline.tables.catalogue.schema(table) if any(is_one(f.type) for is_one in wanted)]
    rows = pipeline.tables.load(table, [commit] if commit is not None else [], names)
    in_order = rows.sort_by([(name, "ascending") for name in names]).combine_chunks()
    named = hashlib.blake2b(digest_size=16)
    for column in in_order.columns:
        named.update(repr(column.to_pylist()).encode())
    return named.hexdigest()


def _other_rows(pipeline: Pipeline, witnesses: Witnesses) -> list[Fault]:
    return [
        Fault(
            "input",
            files.join(table, f"unit={unit}"),
            "was made again, and holds other rows than before: the input is not what it was",
            Mend.NOTHING,
            stage,
            unit,
        )
        for (stage, unit, table), ids in witnesses.items()
        if _ids(pipeline, table, pipeline.tables.commits(stage).get(unit)) != ids
    ]


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
        files.remove_below(fault.root or tables.root, seal.FILE)
        if (fault.root or tables.root) == tables.root:
            _remove_unvouched(pipeline)
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
    redone = by_mend[Mend.REDO]
    # Class indices stand in tables of two stages: of those that are damaged at once, what is whole is not taken away.
    keeper = pipeline.writer("i2e/entities")
    damaged = [f for f in redone if f.stage == keeper]
    if all(f.check in ("files", "digests", "footers") for f in damaged):
        for fault in damaged:
            files.remove_below(tables.root, fault.path)
        redone = [f for f in redone if f.stage != keeper]
    for stage in dict.fromkeys(fault.stage for fault in redone):
        home = tables.of(stage)
        with waiting(home.root, f"stage {stage}") if home is not tables else nullcontext():
            tables.discard(stage, sorted({f.unit for f in redone if f.stage == stage}))
    _remove_laid_out(pipeline, by_mend[Mend.LAY_OUT])
    _drop(tables.root, by_mend[Mend.LIST])  # which is written at the end
    if by_mend[Mend.CARD]:
        _drop(tables.root, by_mend[Mend.CARD])
        files.remove(tables.path("i2e", "manifest.json"))
    if by_mend[Mend.REPORT]:
        _drop(tables.root, by_mend[Mend.REPORT])
        files.remove(tables.path("_reported.json"))


def _laid_out(pipeline: Pipeline, faults: Iterable[Fault]) -> list[str]:
    """Files for workers that these faults cost, or folders of them."""
    found = [f.path for f in faults if f.mend is Mend.LAY_OUT]
    if any(f.mend is Mend.SEAL for f in faults):
        places = [place for stage in pipeline.stages for place in stage.lays_out_in]
        found += [f"{place}/" for place in places if files.exists(pipeline.tables.path(place))]
    return found


def _remove_unvouched(pipeline: Pipeline) -> None:
    """Of an output whose seal is lost, whatever nothing else vouches for and can be made again: files for workers, card
    and report."""
    root = pipeline.tables.root
    places = [place for stage in pipeline.stages for place in stage.lays_out_in]
    for path in (*places, *seal.CARD, seal.LIST, *seal.REPORT, "_reported.json"):
        files.remove_below(root, path.rstrip("/"))


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
    """Units that were purged and are about to be made again of the input, where those rows stand still. From here on a
    run purges again, this one or, after a kill, the next."""
    broken: dict[str, str] = {}
    commits = pipeline.tables.commits(pipeline.writer("pairs"), broken)
    redone = {fault.unit for fault in faults if fault.mend in (Mend.REDO, Mend.UNIT, Mend.INDEX)}
    found = {unit for unit, commit in commits.items() if commit.facts.get(PURGED)}
    if broken or not redone <= commits.keys():
        # Whether one was is told by a record that is lost; the manifest says whether any was.
        with suppress(I2EError):
            if manifest_of(pipeline.tables.path("i2e")).get(PURGED):
                found |= redone - {WHOLE, ""}
                note_purge(pipeline)
    if found & redone:
        note_purge(pipeline)
    return sorted(found & redone)
