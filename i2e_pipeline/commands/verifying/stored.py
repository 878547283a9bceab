"""Is what a run wrote still what it wrote? Commit records, files of tables, Delta's logs, and what was sealed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.commands.verifying.faults import Mend, Verified
from i2e_pipeline.core import digests, files, stores
from i2e_pipeline.core.errors import I2EError, first_line
from i2e_pipeline.dataset.published import manifest_of
from i2e_pipeline.engine import digest_list, looking, seal
from i2e_pipeline.engine.pipeline import STORAGE, Pipeline, stored_as
from i2e_pipeline.engine.records import Commit, WrittenFile
from i2e_pipeline.engine.stage import RowsLost, Stage, check_rows
from i2e_pipeline.engine.tables import WHOLE, Tables
from i2e_pipeline.engine.units import Gone, Unit, Units
from i2e_pipeline.engine.workers import on_workers, tasks_for

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_READ_AT_ONCE = 32
_MANY_BYTES = 20 << 30
"""Bytes that this process reads by itself where a cluster could: some minutes."""
_FILES_PER_TASK = 16
_OURS_ALONE = ("_commits/", "units/", "forgotten_units/")
"""Folders in which nobody else writes."""
_DAMAGED = (I2EError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, OSError)
"""What reading a record, a footer or a log raises whose bytes are not what was written."""


@dataclass(frozen=True)
class Stored:
    """A file of a table, as its commit record names it."""

    stage: str
    unit: str
    root: str
    table: str
    file: WrittenFile

    @property
    def below(self) -> str:
        return files.join(self.table, self.file.path)

    @property
    def path(self) -> str:
        return files.join(self.root, self.below)


Commits = Mapping[str, Mapping[str, Commit]]
"""By stage and unit."""


def registered(pipeline: Pipeline, commits: Commits, found: Verified) -> list[Unit]:
    """The units of the registry whose records can be read. Commits of units that it does not know are a fault: planned
    anew, they would stand for other files."""
    registry = Units(pipeline.tables.root)
    broken: dict[str, str] = {}
    left_out: dict[str, str] = {}
    lying = registry.lying(broken)
    for unit, said in broken.items():
        found.fault("records", _record_of(unit), said, Mend.UNIT, unit=unit)
    forgotten = {unit.name for unit in registry.left_out(left_out)}
    for unit, said in left_out.items():
        found.fault("records", f"forgotten_units/{unit}.json", said, Mend.NOTHING, unit=unit)
    found.add("records", len(lying) + len(broken) + len(forgotten) + len(left_out))
    known = {unit.name for unit in lying} | broken.keys()
    stages_of: dict[str, list[str]] = {}
    for stage in pipeline.stages:
        if stage.scope != "unit":
            continue
        # What is kept of a unit that was forgotten, until there is a dataset without it, is no fault.
        whole = known | forgotten if type(stage).forget is not Stage.forget else known
        for unit in commits[stage.name].keys() - whole:
            stages_of.setdefault(unit, []).append(stage.name)
    for unit, stages in sorted(stages_of.items()):
        said = "was forgotten" if unit in forgotten else "is not there"
        found.fault("records", _record_of(unit), f"{said}, and {', '.join(stages)} recorded it", Mend.UNIT, unit=unit)
    taken = {unit.replaces for unit in lying}
    units = [unit for unit in lying if unit.name not in taken]
    for of, file in registry.indexes_missing(units):
        found.fault("records", f"units/index/{file.digest}.parquet", "is not there", Mend.INDEX, unit=of.name)
    return units


def _record_of(unit: str) -> str:
    return f"units/{unit}.json"


def recorded(pipeline: Pipeline, found: Verified) -> dict[str, dict[str, Commit]]:
    """All commit records that can be read."""
    commits: dict[str, dict[str, Commit]] = {}
    tables = pipeline.tables
    for stage in (*pipeline.names, *(s for s in tables.committed_stages() if s not in pipeline.names)):
        broken: dict[str, str] = {}
        commits[stage] = tables.commits(stage, broken)
        for name, said in broken.items():
            path = f"_commits/{stage}/{name}.json"
            found.fault("records", path, said, Mend.REMOVE, stage, root=_root(tables, stage))
        found.add("records", len(commits[stage]) + len(broken))
    return commits


def described(pipeline: Pipeline, found: Verified) -> None:
    """What says how the tables are stored is whole."""
    if stored_as(pipeline.tables) is None:
        return
    try:
        whole = files.read_json(pipeline.tables.path(STORAGE))["format"] == pipeline.config.storage.format
    except _DAMAGED:
        whole = False
    if not whole:
        said = f"does not say that tables are {pipeline.config.storage.format}"
        found.fault("records", STORAGE, said, Mend.REMOVE)


def rows_add_up(pipeline: Pipeline, commits: Commits, units: Sequence[Unit], found: Verified) -> None:
    """rows in = rows out + rejected in every record; as many rejects lie there, and as many rows as units have."""
    rows = {unit.name: unit.rows for unit in units}
    first = next((s.name for s in pipeline.stages if s.scope == "unit" and not s.reads), None)
    by_unit = {s.name for s in pipeline.stages if s.scope == "unit"}
    for stage, of_stage in commits.items():
        for unit, commit in of_stage.items():
            wrong = None
            try:
                expected = rows.get(unit) if stage == first else None
                check_rows(stage, unit, commit.rows_in, commit.rows_out, commit.rejected, expected)
            except RowsLost as error:
                wrong = str(error)
            rejected = sum(commit.rejected.values())
            if wrong is None and stage in by_unit and (other := _other_unit(commit)):
                wrong = f"what it names is of unit {other}"
            if wrong is None and "rejects" in commit.files and commit.rows("rejects") != rejected:
                wrong = f"{rejected} rows were rejected, and {commit.rows('rejects')} rejects were written"
            if wrong is not None:
                found.fault(
                    "records", f"_commits/{stage}", wrong, Mend.REDO, stage, unit, _root(pipeline.tables, stage)
                )


def _other_unit(commit: Commit) -> str | None:
    """A unit other than its own in whose folder a file of the record lies."""
    folders = (f.path.rpartition("/")[0].rpartition("unit=")[2] for made in commit.files.values() for f in made)
    return next((unit for unit in folders if unit not in ("", commit.unit)), None)


def none_is_missing(pipeline: Pipeline, commits: Commits, units: Sequence[Unit], found: Verified) -> None:
    """Whatever a record or the manifest stands on was recorded: of a unit in the dataset, every stage; of one that is
    still on its way, those before the last that has worked on it."""
    try:
        published = manifest_of(pipeline.tables.path("i2e"))["units"].keys()
    except I2EError:
        published = {}.keys()
    for stage in pipeline.stages:
        if stage.spares:
            continue
        behind = [other for other in pipeline.stages if stage.name in _before(pipeline, other)]
        for unit in [unit.name for unit in units] if stage.scope == "unit" else [WHOLE]:
            # What is made of all units at once may lie in segments of other names.
            if unit in commits[stage.name] or (unit == WHOLE and commits[stage.name]):
                continue
            if stage.scope == "unit":
                needed = [other.name for other in behind if other.scope == "unit" and unit in commits[other.name]]
                needed += ["the manifest"] * (unit in published)
            else:
                needed = [other.name for other in behind if commits[other.name]]
            if needed:
                said = f"holds no record of it, and {needed[-1]} needs one"
                root = _root(pipeline.tables, stage.name)
                found.fault("records", f"_commits/{stage.name}", said, Mend.REDO, stage.name, unit, root)


def _before(pipeline: Pipeline, stage: Stage) -> set[str]:
    """Names of the stages whose tables or records it needs, and of those that these need."""
    by_name = {one.name: one for one in pipeline.stages}
    found: set[str] = set()
    left = [stage]
    while left:
        one = left.pop()
        new = {*one.after, *(pipeline.writer(table) for table in one.reads)} - found
        found |= new
        left += [by_name[name] for name in new if name in by_name]
    return found


def stored_in(tables: Tables, commits: Commits) -> list[Stored]:
    return [
        Stored(stage, unit, tables.of(stage).root, table, file)
        for stage, of_stage in commits.items()
        for unit, commit in of_stage.items()
        for table, made in commit.files.items()
        for file in made
    ]


def lie_there(stored: Sequence[Stored], found: Verified) -> list[Stored]:
    """Files that are there, and as long as they were. A listing a folder of tables."""
    roots = sorted({(one.root, one.table) for one in stored})
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        listings = pool.map(lambda place: files.list_files(files.join(*place)), roots)
        sizes = {
            files.join(*place, info.path): info.size
            for place, listed in zip(roots, listings, strict=True)
            for info in listed
        }
    whole = []
    for one in stored:
        size = sizes.get(one.path)
        if size == one.file.bytes:
            whole.append(one)
            continue
        what = "is not there" if size is None else f"has {size:,} bytes, and {one.file.bytes:,} were written"
        found.fault("files", one.below, what, Mend.REDO, one.stage, one.unit, one.root)
    found.add("files", len(stored))
    return whole


def footers(pipeline: Pipeline, stored: Sequence[Stored], units: Sequence[Unit], found: Verified) -> list[Stored]:
    """Files with a footer of their table's columns, and the rows that were recorded; the input files whose numbers it
    bears are those of its unit. Reads the footers alone."""
    schemas = {one.table: _schema(pipeline, one.table) for one in stored}
    shards = {unit.name: {file.shard for file in unit.files} for unit in units}
    others: dict[str, str] = {}

    def fault(one: Stored) -> str | None:
        filesystem, inner = files.open_filesystem(one.path)
        try:
            with filesystem.open_input_file(inner) as stream:
                footer = pq.ParquetFile(stream, pre_buffer=False)
                said = _footer_fault(one, footer, schemas[one.table])
                if said is None and one.unit in shards and not _shards(footer.metadata) <= shards[one.unit]:
                    others.setdefault(one.unit, one.below)
        except _DAMAGED as error:
            return f"its footer cannot be read ({first_line(error)})"
        return said

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        whole = _whole("footers", stored, pool.map(fault, stored), found)
    for unit, path in sorted(others.items()):
        said = f"its input files have other numbers than {path} says: a record of it was lost, and it was planned anew"
        found.fault("records", _record_of(unit), said, Mend.UNIT, unit=unit)
    return whole


def _shards(footer: pq.FileMetaData) -> set[int]:
    """The least and the greatest number of an input file in each row group, as far as its statistics say."""
    column = next((n for n in range(footer.num_columns) if footer.schema.column(n).path == "shard"), None)
    if column is None:
        return set()
    known = [footer.row_group(group).column(column).statistics for group in range(footer.num_row_groups)]
    return {number for one in known if one is not None and one.has_min_max for number in (one.min, one.max)}


def _schema(pipeline: Pipeline, table: str) -> pa.Schema | None:
    try:
        return pipeline.tables.catalogue.schema(table)
    except KeyError:  # of a stage that the config no longer names
        return None


def _footer_fault(one: Stored, file: pq.ParquetFile, schema: pa.Schema | None) -> str | None:
    rows, columns = file.metadata.num_rows, file.schema_arrow
    if rows != one.file.rows:
        return f"its footer says {rows:,} rows, and {one.file.rows:,} were written"
    # An older version's tables have fewer columns, and ids of another form.
    missing = [n for n in columns.names if schema is not None and n not in schema.names]
    return f"it has columns that its table has not: {', '.join(missing)}" if missing else None


def every_byte(pipeline: Pipeline, stored: Sequence[Stored], found: Verified) -> list[Stored]:
    """Files whose content is what was written. Those of an earlier version bear no digest: their pages are read."""
    named = [one for one in stored if one.file.digest]
    unnamed = [one for one in stored if not one.file.digest]
    said = _digests(pipeline, named)
    wrong = (
        None if now == one.file.digest else "its content is not what was written"
        for one, now in zip(named, said, strict=True)
    )
    whole = _whole("digests", named, wrong, found)
    found.bytes += sum(one.file.bytes for one in named)
    if unnamed:
        with ThreadPoolExecutor() as pool:
            whole += _whole("digests", unnamed, pool.map(_pages_fault, unnamed), found)
        found.notes.append(
            f"{len(unnamed):,} files were written by an earlier version, and bear no digest: their pages can be read, "
            "and whether they hold what was written is not known"
        )
    return whole


def _digests(pipeline: Pipeline, stored: Sequence[Stored]) -> list[str | None]:
    """What names each file's content today; None where it cannot be read. By the workers of a cluster where it is
    much."""
    from i2e_pipeline.engine.session import is_local

    paths = [one.path for one in stored]
    master = pipeline.config.session.master
    if sum(one.file.bytes for one in stored) > _MANY_BYTES and master is not None and not is_local(master):
        return digests_by_workers(pipeline.tables.spark, paths)
    with ThreadPoolExecutor(None if files.is_local(pipeline.tables.root) else _READ_AT_ONCE) as pool:
        return list(pool.map(digests.of_readable, paths))


def digests_by_workers(spark: SparkSession, paths: Sequence[str]) -> list[str | None]:
    """The same by Spark's workers."""
    return on_workers(spark, digests.of_readable, paths, tasks_for(spark, len(paths), _FILES_PER_TASK))


def _pages_fault(one: Stored) -> str | None:
    filesystem, inner = files.open_filesystem(one.path)
    try:
        with filesystem.open_input_file(inner) as stream:
            for _ in pq.ParquetFile(stream).iter_batches(1024):
                pass
    except _DAMAGED as error:
        return f"its pages cannot be read ({first_line(error)})"
    return None


def _whole(check: str, stored: Sequence[Stored], wrong: Iterable[str | None], found: Verified) -> list[Stored]:
    whole = []
    for one, what in zip(stored, wrong, strict=True):
        if what is None:
            whole.append(one)
        else:
            found.fault(check, one.below, what, Mend.REDO, one.stage, one.unit, one.root)
    found.add(check, len(stored))
    return whole


def logs(pipeline: Pipeline, stored: Sequence[Stored], found: Verified) -> None:
    """The logs of Delta tables name the files that commit records name, with their sizes and rows."""
    if pipeline.config.storage.format != "delta":
        return
    by_table: dict[str, dict[str, WrittenFile]] = {}
    for one in stored:
        if one.root == pipeline.tables.root:
            by_table.setdefault(one.table, {})[one.file.path] = one.file
    for table, recorded_files in sorted(by_table.items()):
        found.add("logs")
        try:
            named = _named_by_log(pipeline.tables.path(table))
        except _DAMAGED as error:
            what = f"the log cannot be read ({first_line(error)})"
            for path in _others_of_log(pipeline.tables, table) or [f"{table}/_delta_log"]:
                found.fault("logs", path, what, Mend.LOG)
            continue
        wanted = {path: (f.bytes, f.rows) for path, f in recorded_files.items()}
        wrong = sorted(path for path in named.keys() | wanted.keys() if named.get(path) != wanted.get(path))
        if wrong:
            what = f"of {len(wrong)} files it says something else than the commit records: {wrong[0]}"
            found.fault("logs", f"{table}/_delta_log", what, Mend.LOG, pipeline.tables.catalogue.writers.get(table, ""))


def _others_of_log(tables: Tables, table: str) -> list[str]:
    """Files of a log that cannot be read which no command of ours has sealed."""
    log = f"{table}/_delta_log"
    try:
        known = seal.read(tables.root)
    except seal.SealError:
        return []
    lying = [files.join(log, info.path) for info in files.list_files(tables.path(log))]
    return [path for path in lying if path not in known] if any(path in known for path in lying) else []


def _named_by_log(table: str) -> dict[str, tuple[int, int | None]]:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        actions = DeltaTable(table, storage_options=stores.delta(table)).get_add_actions(flatten=True)
    except DeltaError as error:
        raise ValueError(str(error)) from None
    columns = pa.table(actions).select(["path", "size_bytes", "num_records"])
    return {
        unquote(path): (size, rows) for path, size, rows in zip(*(c.to_pylist() for c in columns.columns), strict=True)
    }


def sealed(pipeline: Pipeline, commits: Commits, units: Sequence[Unit], found: Verified, deep: bool) -> None:
    """What the seals name is what it was: sizes, and with `deep` every byte. Records, which are small, always; and
    there are no others."""
    tables = pipeline.tables
    # Who writes digests seals, too.
    by_us = any(one.root == tables.root and one.file.digest for one in stored_in(tables, commits))
    for root in (tables.root, *tables.known_homes()):
        try:
            known = seal.read(root)
        except seal.SealError as error:
            found.fault("sealed", seal.FILE, str(error), Mend.SEAL, root=root)
            continue
        others = seal.opened(root)
        if not known and by_us and (others is None or pipeline.held) and root == tables.root:
            found.fault("sealed", seal.FILE, "is not there: what lies beside the tables cannot be compared", Mend.SEAL)
            continue
        if not known:
            found.notes.append(
                f"{root} is not sealed (an earlier version wrote it): what lies beside its tables is not compared. The "
                "next `i2e run` seals it"
            )
            continue
        if others is not None and not pipeline.held:
            found.notes.append(
                f"a command that wrote {root} was cut off: what it wrote beside the tables is not compared. `i2e run` "
                "ends it"
            )
        _compare(root, units, known, others, tuple(pipeline.sealed_further()), found, deep)
        if root == tables.root and others is None:
            _listed(tables, found)


def _listed(tables: Tables, found: Verified) -> None:
    """The list of digests beside the dataset is what records and seal say; where one of these is damaged, that is said
    alone."""
    place = tables.path(seal.LIST)
    if any(fault.check in ("records", "sealed") for fault in found.faults) or not files.exists(place):
        return
    if files.read_bytes(place) != digest_list.content(tables):
        found.fault("sealed", seal.LIST, "does not say what the records say", Mend.LIST, "finish")


def _compare(
    root: str,
    units: Sequence[Unit],
    known: Mapping[str, seal.Sealed],
    others: seal.Others | None,
    further: Sequence[str],
    found: Verified,
    deep: bool,
) -> None:
    lying = {info.path: info for info in seal.lying(root, further)}
    to_read = []
    for path, one in known.items():
        info = lying.get(path)
        if others is not None and seal.written_since(path, info, one, others):
            continue
        found.add("sealed")
        if info is None:
            _sealed_fault(found, root, units, path, "is not there", one)
        elif info.size != one.size:
            _sealed_fault(found, root, units, path, f"has {info.size:,} bytes, and {one.size:,} were sealed", one)
        elif deep or one.text is not None:
            to_read.append(path)
    for path in sorted(lying.keys() - known.keys()):
        info = lying[path]
        if not (path.startswith(_OURS_ALONE) and path.endswith(".json") and seal.is_record(path)):
            continue
        if others is None or others.get(path) == (info.size, info.modified):
            found.fault("sealed", path, "no command wrote it", Mend.REMOVE, *_of_record(path), root)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for path, now in zip(
            to_read, pool.map(lambda p: digests.of_readable(files.join(root, p)), to_read), strict=True
        ):
            found.bytes += known[path].size
            if now != known[path].digest:
                _sealed_fault(found, root, units, path, "its content is not what was sealed", known[path])


def _sealed_fault(found: Verified, root: str, units: Sequence[Unit], path: str, what: str, known: seal.Sealed) -> None:
    stage, named = _of_record(path)
    mend = mend_of(path, known)
    of = [named]
    if mend is Mend.INDEX:
        digest = path.rpartition("/")[2].partition(".")[0]
        of = [unit.name for unit in units if any(file.digest == digest for file in unit.files)]
        of, mend = (of, mend) if of else ([""], Mend.REMOVE)
    for unit in of:
        found.fault("sealed", path, what, mend, stage or _maker(path), unit, root)


def _of_record(path: str) -> tuple[str, str]:
    """Stage and unit of a record; empty where it is of none."""
    parts = path.split("/")
    stage = parts[1] if parts[0] == "_commits" and len(parts) > 2 else ""
    unit = parts[-1].removesuffix(".json") if parts[0] in ("units", "forgotten_units") and len(parts) == 2 else ""
    return stage, unit


def mend_of(path: str, known: seal.Sealed) -> Mend:
    """How a file that was sealed is mended."""
    if known.text is not None and seal.is_record(path):
        return Mend.RESTORE
    if "/_delta_log/" in f"/{path}":
        return Mend.LOG
    for mend, places in (
        (Mend.CARD, seal.CARD),
        (Mend.LIST, (seal.LIST,)),
        (Mend.REPORT, seal.REPORT),
        (Mend.INDEX, ("units/index/",)),
        (Mend.INPUT, ("input/",)),
    ):
        if any(seal.is_of(path, place) for place in places):
            return mend
    return Mend.LAY_OUT


def _maker(path: str) -> str:
    """The last stage writes the card; of what a stage did not make, the command that did."""
    if any(seal.is_of(path, place) for place in (*seal.CARD, seal.LIST)):
        return "finish"
    return "report" if any(seal.is_of(path, place) for place in seal.REPORT) else ""


def left_over(pipeline: Pipeline, stored: Sequence[Stored], found: Verified) -> None:
    """What lies there and counts for nothing. In the folders of the published dataset other programs take it for
    rows."""
    tables = pipeline.tables
    if any(fault.check == "records" for fault in found.faults):
        return  # whose files are named by no record that can be read
    orphans = tables.orphans() if tables.storage.format != "delta" else []
    named = {one.below for one in stored}
    published = {
        path
        for info in files.list_files(tables.path("i2e"))
        if info.path.endswith(".parquet")
        and not files.is_hidden(info.path)
        and (path := files.join("i2e", info.path)) not in named
        and not _of_delta(tables, path)
    }
    for path in sorted(published):
        found.fault("files", path, "no commit record names it, and who reads the folder takes it for rows", Mend.REMOVE)
    if others := [size for path, size in orphans if path not in published]:
        found.notes.append(
            f"{len(others):,} files of {sum(others) / 1e6:,.1f} MB are named by no commit record: `i2e clean` removes "
            "them"
        )
    staged = files.list_files(tables.path("_staging"))
    if staged:
        found.notes.append(f"{len(staged):,} unfinished files of a command that was cut off: `i2e run` removes them")


def _of_delta(tables: Tables, path: str) -> bool:
    """Whether it lies in a unit's folder of a Delta table, whose readers take what the log names."""
    return tables.storage.format == "delta" and "/unit=" in path


def input_files(pipeline: Pipeline, units: Sequence[Unit], found: Verified) -> None:
    """Input files by the digests of the registry. That they are others now is no fault of the output, but then nothing
    can be made again of them."""
    others = [str(one) for one in input_changed(pipeline, units)]
    found.add("input", sum(len(unit.files) for unit in units))
    found.changed["input"] += len(others)
    if others:
        more = f", and {len(others) - 5:,} more" if len(others) > 5 else ""
        found.notes.append(
            f"input that is not what was read, and of which nothing can be made again: {'; '.join(others[:5])}{more}"
        )


def input_changed(pipeline: Pipeline, units: Sequence[Unit]) -> list[Gone]:
    """Files of units that are gone, or are others than were read: as a plan finds it, by looking at each."""
    if not units:
        return []
    looks: looking.Looks = looking.by_workers(lambda: pipeline.tables.spark)
    return Units(pipeline.tables.root).changed(units, pipeline.config.pairs, looks)


def _root(tables: Tables, stage: str) -> str:
    return tables.of(stage).root
