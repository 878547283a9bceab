"""Tables on disk: written by tasks, committed by the driver, read only where committed. Parquet or Delta.

    <output>/<table>/unit=<unit>/part-*.parquet     rows, schema-checked when they are written
    <output>/rejects/stage=<stage>/unit=<unit>/     what a stage did not pass on, with a reason
    <output>/_commits/<stage>/<unit>.json           what a stage made of a unit: files, rows, fingerprint, seconds
    <output>/_staging/                              files of attempts that are not committed; never read

A Spark task writes its own files, all tables of a stage in one pass, and returns a report that names them. The driver
takes the files of successful attempts from staging, moves them into place and writes the commit record last. What a
failed, repeated or speculative attempt left behind is named by no report and dropped with the staging folder; what has
no commit record is not read. Counts come from the reports and the files' own footers: `observe` and accumulators
over-count after a lost executor.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import StorageConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.engine.catalogue import Catalogue, Passed

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

Kernel = Callable[[Iterator[pa.RecordBatch]], Iterator[tuple[str, pa.RecordBatch]]]
"""Batches in; (table, batch) out: what a stage passes on and what it rejects leave in the same pass."""

WHOLE = "all"
"""The name of the unit of stages that work on all rows at once."""
_MAX_DETAIL = 500
_REMEDY = "remove it, and `i2e run` makes that unit again"


class TableError(I2EError, RuntimeError):
    """A table that is missing, half-written or not what its schema says."""


@dataclass(frozen=True)
class WrittenFile:
    path: str
    """relative to the table's folder: unit=<unit>/part-….parquet"""
    rows: int
    bytes: int


@dataclass(frozen=True)
class Commit:
    """What a stage made of a unit."""

    stage: str
    unit: str
    fingerprint: str
    components: dict[str, Any]
    """What the fingerprint is made of, so that a difference can be named."""
    files: dict[str, list[WrittenFile]]
    rows_in: int
    rows_out: int
    rejected: dict[str, int]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)

    def rows(self, table: str) -> int:
        return sum(f.rows for f in self.files.get(table, []))


@dataclass(frozen=True)
class Written:
    """Files in staging and what the tasks counted while writing them."""

    staging: str
    files: dict[str, list[WrittenFile]]
    rows_in: int
    rows_out: int
    rejected: dict[str, int]

    def only(self, *tables: str) -> Written:
        """The same job with the files of these tables alone."""
        rejected = self.rejected if "rejects" in tables else {}
        return Written(self.staging, {t: self.files[t] for t in tables}, self.rows_in, self.rows_out, rejected)


def _commit(record: dict[str, Any]) -> Commit:
    """A commit as its record holds it."""
    written = {t: [WrittenFile(**f) for f in fs] for t, fs in record["files"].items()}
    return Commit(**{**record, "files": written})


def pass_on(table: str, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The kernel of a job in which Spark does everything: each row goes to one table."""
    for batch in batches:
        yield table, batch


@dataclass(frozen=True)
class Counting:
    """How a stage's rows are counted, on their way in and on their way out."""

    rows_of: Callable[[pa.RecordBatch], int] | None = None
    """Rows that an input batch stands for; None: its length."""
    passed: Passed | None = None
    """Which rows count as passed on; None: none do."""


class Tables:
    """The tables below one output folder."""

    def __init__(
        self,
        root: str,
        storage: StorageConfig | None = None,
        start_spark: Callable[[], SparkSession] | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        """`start_spark` is called when Spark is first needed: a run with nothing to do starts none.

        catalogue   what the stages declare; without it commit records can be read, and no table
        """
        self.root = root
        self.storage = storage or StorageConfig()
        self.catalogue = catalogue or Catalogue()
        self._start_spark = start_spark
        self._spark: SparkSession | None = None
        self._delta_lock = threading.Lock()

    def path(self, *parts: str) -> str:
        return files.join(self.root, *parts)

    @property
    def spark(self) -> SparkSession:
        if self._spark is None:
            if self._start_spark is None:
                raise TableError("these tables were opened without a Spark session")
            self._spark = self._start_spark()
        return self._spark

    # Reading

    def _known_schema(self, table: str) -> pa.Schema | None:
        known = table == "rejects" or table in self.catalogue.tables
        return self.catalogue.schema(table) if known else None

    def commits(self, stage: str) -> dict[str, Commit]:
        """Commit records of a stage by unit."""
        found = files.records(self.path("_commits", stage), _REMEDY)
        return {unit: _commit(record) for unit, record in found.items()}

    def commit_of(self, stage: str, unit: str) -> Commit:
        """The commit record of one unit."""
        return _commit(files.record(self.path("_commits", stage, f"{unit}.json"), _REMEDY))

    def committed_stages(self) -> list[str]:
        """Names of all stages that have left commit records, those that the config no longer names among them."""
        return files.list_folders(self.path("_commits"))

    def commits_of(self, table: str) -> dict[str, Commit]:
        """Commit records, by unit, of the stage that writes a table."""
        return self.commits(self.catalogue.writers[table])

    def missing_files(self, commit: Commit) -> list[str]:
        """Committed files that are no longer there, or not as long as they were."""
        missing = []
        for table, written in commit.files.items():
            folders: dict[str, dict[str, int]] = {}
            for file in written:
                folder, _, name = file.path.rpartition("/")
                if folder not in folders:
                    folders[folder] = {i.path: i.size for i in files.list_files(self.path(table, folder))}
                if folders[folder].get(name) != file.bytes:
                    missing.append(files.join(table, file.path))
        return missing

    def spark_schema(self, table: str, columns: Sequence[str] | None = None) -> StructType:
        """Spark's form of a table's schema, or of some columns; `unit` is the folder's."""
        from pyspark.sql.pandas.types import from_arrow_schema
        from pyspark.sql.types import StringType, StructType

        schema = self.catalogue.schema(table)
        names = schema.names if columns is None else list(columns)
        fields = from_arrow_schema(pa.schema([schema.field(c) for c in names if c != "unit"])).fields
        result = StructType(list(fields))
        return result.add("unit", StringType()) if "unit" in names else result

    def read(
        self,
        table: str,
        commits: Iterable[Commit],
        columns: Sequence[str] | None = None,
        only_unit: str | None = None,
    ) -> DataFrame:
        """Rows of a table that these commits wrote; columns and types as the schema says, `unit` where it is named.

        only_unit   of a table that one commit wrote for many units, the rows of one unit
        """
        names = list(columns) if columns is not None else self.catalogue.schema(table).names
        paths = [f.path for c in commits for f in c.files.get(table, [])]
        if only_unit is not None:
            paths = [p for p in paths if p.startswith(f"unit={only_unit}/")]
        if not paths:
            empty = self.spark.createDataFrame([], self.spark_schema(table, names))
            return empty.select(*names)
        if self.storage.format == "delta":
            frame = self.spark.read.format("delta").load(self.path(table))
            units = sorted({p.split("/")[0].removeprefix("unit=") for p in paths})
            return frame.where(frame["unit"].isin(units)).select(*names)
        reader = self.spark.read.schema(self.spark_schema(table, [*(n for n in names if n != "unit"), "unit"]))
        folders = sorted({self.path(table, p.rpartition("/")[0]) for p in paths})
        return reader.option("basePath", self.path(table)).parquet(*folders).select(*names)

    def load(self, table: str, commits: Iterable[Commit], columns: Sequence[str] | None = None) -> pa.Table:
        """The same in this process, without Spark: for tables that are small by nature."""
        filesystem, _ = files.open_filesystem(self.root)
        schema = self.catalogue.schema(table)
        names = list(columns) if columns is not None else schema.names
        parts = [
            pq.read_table(
                files.open_filesystem(self.path(table, f.path))[1],
                columns=names,
                filesystem=filesystem,
                partitioning=None,
            )
            for c in commits
            for f in c.files.get(table, [])
        ]
        return pa.concat_tables([pa.schema([schema.field(n) for n in names]).empty_table(), *parts])

    def batches(self, table: str, commits: Iterable[Commit], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The same in bounded memory, batch by batch."""
        filesystem, _ = files.open_filesystem(self.root)
        for commit in commits:
            for file in commit.files.get(table, []):
                inner = files.open_filesystem(self.path(table, file.path))[1]
                with filesystem.open_input_file(inner) as stream:
                    yield from pq.ParquetFile(stream).iter_batches(65_536, columns=list(columns))

    def local_path(self, *parts: str) -> str:
        """Where files that are memory-mapped lie: in the output folder; for a remote one, in this machine's cache of
        it."""
        if files.is_local(self.root):
            return self.path(*parts)
        name = hashlib.blake2b(self.root.encode(), digest_size=8).hexdigest()
        return str(scratch("outputs", name, *parts[:-1]).joinpath(*parts[-1:]))

    # Writing

    def write(
        self,
        frame: DataFrame,
        make_kernel: Callable[[], Kernel],
        stage: str,
        unit: str,
        tables: Sequence[str],
        counting: Counting | None = None,
        profile: ResourceProfile | None = None,
    ) -> Written:
        """Run a kernel over a DataFrame; its tasks write `tables` and `rejects` to staging. One Spark job.

        make_kernel is called in the worker, once per task. Rows of a table that has a `unit` column go to that unit's
        folder, all others to `unit`'s.
        """
        staging = self.path("_staging", f"{stage}-{unit}-{uuid.uuid4().hex[:12]}")
        schemas = {t: self.catalogue.schema(t) for t in (*tables, "rejects")}
        for table in schemas:
            files.make_folder(files.join(staging, table))
        task = _Task(make_kernel, self._task_plan(staging, stage, unit, schemas, counting))
        reports = [json.loads(row.report) for row in frame.mapInArrow(task, "report string", profile=profile).collect()]
        written = Written(
            staging=staging,
            files={
                table: sorted((WrittenFile(**f) for r in reports for f in r["files"][table]), key=lambda f: f.path)
                for table in schemas
            },
            rows_in=sum(r["rows_in"] for r in reports),
            rows_out=sum(r["rows_out"] for r in reports),
            rejected=dict(sorted(sum((Counter(r["rejected"]) for r in reports), Counter[str]()).items())),
        )
        self._drop_orphans(written)
        return written

    def write_local(
        self,
        batches: Iterator[tuple[str, pa.RecordBatch]],
        stage: str,
        unit: str,
        tables: Sequence[str],
        counting: Counting | None = None,
    ) -> Written:
        """The same from this process: small tables that need no Spark job."""
        staging = self.path("_staging", f"{stage}-{unit}-{uuid.uuid4().hex[:12]}")
        schemas = {t: self.catalogue.schema(t) for t in (*tables, "rejects")}
        plan = self._task_plan(staging, stage, unit, schemas, counting)
        for table in schemas:
            files.make_folder(files.join(staging, table))
        with _TaskWriter(plan, "part-driver") as writer:
            for table, batch in batches:
                writer.write(table, batch)
        return Written(
            staging,
            {t: writer.closed[t] for t in schemas},
            writer.rows_out + sum(writer.rejected.values()),
            writer.rows_out,
            dict(writer.rejected),
        )

    def _task_plan(
        self, staging: str, stage: str, unit: str, schemas: Mapping[str, pa.Schema], counting: Counting | None
    ) -> _TaskPlan:
        reasons = self.catalogue.reasons.get(stage)
        return _TaskPlan(
            staging, stage, unit, schemas, self.storage, counting or Counting(), None if reasons is None else {*reasons}
        )

    def commit(self, commit: Commit, staged: Sequence[Written]) -> Commit:
        """Put staged files in the place of what the unit held before, and write the record that makes them count."""
        record = self.path("_commits", commit.stage, f"{commit.unit}.json")
        previous = self.commit_of(commit.stage, commit.unit) if files.exists(record) else None
        files.remove(record)
        for table in sorted({t for w in staged for t in w.files}):
            self._publish(table, [w for w in staged if table in w.files], previous)
        files.write_json(record, asdict(commit))
        for written in staged:
            files.remove(written.staging)
        return commit

    def _publish(self, table: str, staged: Sequence[Written], previous: Commit | None) -> None:
        """Move a table's staged files to where they are read, in the place of the folders they replace."""
        old = previous.files.get(table, []) if previous else []
        new = [f for w in staged for f in w.files[table]]
        folders = {f.path.rpartition("/")[0] for f in (*old, *new)}
        if self.storage.format == "parquet":
            for folder in sorted(folders):
                files.remove(self.path(table, folder))
        for written in staged:
            self._move(table, written)
        if self.storage.format == "delta":
            with self._delta_lock:
                _commit_delta(self.path(table), self.catalogue.schema(table), new, folders)

    def _move(self, table: str, written: Written) -> None:
        by_folder: dict[str, list[str]] = {}
        for file in written.files[table]:
            folder, _, name = file.path.rpartition("/")
            by_folder.setdefault(folder, []).append(name)
        for folder, names in by_folder.items():
            source, target = files.join(written.staging, table, folder), self.path(table, folder)
            if not files.exists(target):
                files.move(source, target)
                continue
            for name in names:
                files.move_file(files.join(source, name), files.join(target, name))

    def _drop_orphans(self, written: Written) -> None:
        """Remove what failed or repeated attempts wrote."""
        for table, kept in written.files.items():
            folder = files.join(written.staging, table)
            named = {f.path for f in kept}
            for info in files.list_files(folder):
                if info.path not in named:
                    files.remove(files.join(folder, info.path))

    def discard_staging(self) -> None:
        """Drop what a killed run left half-written."""
        files.remove(self.path("_staging"))

    def discard(self, stage: str, unit: str) -> None:
        """Forget a unit of a stage: its record first, then its files."""
        record = self.path("_commits", stage, f"{unit}.json")
        if not files.exists(record):
            return
        commit = self.commit_of(stage, unit)
        files.remove(record)
        for table, old in commit.files.items():
            folders = {f.path.rpartition("/")[0] for f in old}
            if self.storage.format == "delta":
                with self._delta_lock:
                    _commit_delta(self.path(table), self._known_schema(table), [], folders)
            else:
                for folder in folders:
                    files.remove(self.path(table, folder))


# What runs in a task


@dataclass(frozen=True)
class _TaskPlan:
    staging: str
    stage: str
    unit: str
    schemas: Mapping[str, pa.Schema]
    storage: StorageConfig
    counting: Counting
    reasons: set[str] | None
    """Reject reasons that the stage declares; None: it is not known."""


class _Task:
    """Runs a kernel in a Spark worker and writes what it yields; returns one row, the report."""

    def __init__(self, make_kernel: Callable[[], Kernel], plan: _TaskPlan) -> None:
        self.make_kernel = make_kernel
        self.plan = plan

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        name = f"part-{context.partitionId():05d}-{context.taskAttemptId()}"
        rows_in = 0
        rows_of = self.plan.counting.rows_of

        def counted() -> Iterator[pa.RecordBatch]:
            nonlocal rows_in
            for batch in batches:
                rows_in += rows_of(batch) if rows_of else batch.num_rows
                yield batch

        with _TaskWriter(self.plan, name, empty_files=context.partitionId() == 0) as writer:
            for table, batch in self.make_kernel()(counted()):
                writer.write(table, batch)
        report = {
            "files": {t: [asdict(f) for f in fs] for t, fs in writer.closed.items()},
            "rows_in": rows_in,
            "rows_out": writer.rows_out,
            "rejected": writer.rejected,
        }
        yield pa.RecordBatch.from_pydict({"report": [json.dumps(report)]})


class _TaskWriter:
    """Parquet files of one task, a file per table and unit, closed only when the task has succeeded."""

    def __init__(self, plan: _TaskPlan, name: str, empty_files: bool = True) -> None:
        self.plan = plan
        self.name = name
        self.empty_files = empty_files
        self.open: dict[tuple[str, str], _OpenFile] = {}
        self.closed: dict[str, list[WrittenFile]] = {t: [] for t in plan.schemas}
        self.rows_out = 0
        self.rejected: Counter[str] = Counter()
        self._last_key: tuple[Any, ...] | None = None

    def __enter__(self) -> _TaskWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # The first task leaves a file in every table: an empty result is a table without rows and not a missing one.
        if kind is None and self.empty_files:
            for table, schema in self.plan.schemas.items():
                if not self.closed[table] and not any(t == table for t, _ in self.open):
                    self._file(table, self.plan.unit).add(pa.RecordBatch.from_pylist([], schema=schema))
        for (table, _), file in self.open.items():
            if kind is None:
                self.closed[table].append(file.close())
            else:
                file.abandon()

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        if table not in self.plan.schemas:
            raise TableError(f"stage {self.plan.stage} yields {table}, which it does not declare")
        if batch.num_rows == 0:
            return
        if (passed := self.plan.counting.passed) is not None and table == passed.table:
            self._count_passed(batch, passed)
        if table == "rejects":
            batch = _bound_detail(batch)
            for entry in pc.value_counts(batch.column("reason")):
                self._count_rejected(entry["values"].as_py(), entry["counts"].as_py())
        for unit, rows in _by_unit(batch, self.plan.unit):
            if "unit" in batch.schema.names:
                self._close_other_units(table, unit)
            self._file(table, unit).add(conform(rows, self.plan.schemas[table], table))

    def _close_other_units(self, table: str, unit: str) -> None:
        """Rows come unit after unit, so the files of other units are complete. Thousands of open files would be too
        many."""
        for key in [k for k in self.open if k[0] == table and k[1] != unit]:
            self.closed[table].append(self.open.pop(key).close())

    def _file(self, table: str, unit: str) -> _OpenFile:
        if (table, unit) not in self.open:
            folder = f"unit={unit}"
            if table == "rejects":
                folder = f"stage={self.plan.stage}/{folder}"
            path = f"{folder}/{self.name}.parquet"
            if any(f.path == path for f in self.closed[table]):
                path = f"{folder}/{self.name}-{len(self.closed[table])}.parquet"
            self.open[table, unit] = _OpenFile(
                files.join(self.plan.staging, table), path, self.plan.schemas[table], self.plan.storage
            )
        return self.open[table, unit]

    def _count_rejected(self, reason: str | None, rows: int) -> None:
        if self.plan.reasons is not None and reason not in self.plan.reasons:
            raise TableError(
                f"stage {self.plan.stage} rejects rows as {reason!r}, which it does not declare in `reasons`: "
                f"{', '.join(sorted(self.plan.reasons)) or 'none'}"
            )
        self.rejected[str(reason)] += rows

    def _count_passed(self, batch: pa.RecordBatch, passed: Passed) -> None:
        if (column := passed.where_null) is not None:
            batch = batch.filter(pc.is_null(batch.column(column)))
            if batch.num_rows == 0:
                return
        columns = [batch.column(c) for c in passed.key]
        first = tuple(c[0].as_py() for c in columns)
        changed = None
        for column in columns:
            if column.type == pa.binary(16):
                column = column.cast(pa.binary())
            differs = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))
            changed = differs if changed is None else pc.or_(changed, differs)
        self.rows_out += (pc.sum(changed).as_py() or 0) + (first != self._last_key)
        self._last_key = tuple(c[-1].as_py() for c in columns)


class _OpenFile:
    def __init__(self, base: str, path: str, schema: pa.Schema, storage: StorageConfig) -> None:
        filesystem, inner = files.open_filesystem(files.join(base, path))
        filesystem.create_dir(inner.rpartition("/")[0], recursive=True)
        self.path, self.inner, self.filesystem, self.schema = path, inner, filesystem, schema
        self.target = storage.row_group_mb << 20
        self.writer = pq.ParquetWriter(inner, schema, filesystem=filesystem, compression=storage.compression)
        self.waiting: list[pa.RecordBatch] = []
        self.waiting_bytes = 0
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self.waiting.append(batch)
        self.waiting_bytes += batch.nbytes
        self.rows += batch.num_rows
        if self.waiting_bytes >= self.target:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self.waiting, self.schema)
        if table.num_rows:
            self.writer.write_table(table, row_group_size=table.num_rows)
        self.waiting, self.waiting_bytes = [], 0

    def close(self) -> WrittenFile:
        self._flush()
        self.writer.close()
        return WrittenFile(self.path, self.rows, self.filesystem.get_file_info(self.inner).size)

    def abandon(self) -> None:
        self.writer.close()


def _by_unit(batch: pa.RecordBatch, default: str) -> Iterator[tuple[str, pa.RecordBatch]]:
    if "unit" not in batch.schema.names:
        yield default, batch
        return
    units = batch.column("unit")
    for unit in sorted(pc.unique(units).to_pylist()):
        yield unit, batch.filter(pc.equal(units, unit)).drop_columns(["unit"])


def _bound_detail(batch: pa.RecordBatch) -> pa.RecordBatch:
    if "detail" not in batch.schema.names:
        return batch
    index = batch.schema.get_field_index("detail")
    short = pc.utf8_slice_codeunits(batch.column(index).cast(pa.string()), 0, _MAX_DETAIL)
    return batch.set_column(index, "detail", short)


def conform(batch: pa.RecordBatch, schema: pa.Schema, table: str) -> pa.RecordBatch:
    """The batch with exactly the schema's columns and types; what a batch of rejects lacks is null.

    Raises TableError where a column is missing or not in the schema, a key is null, or a type does not fit.
    """
    unknown = set(batch.schema.names) - set(schema.names)
    if unknown:
        raise TableError(f"{table}: columns {sorted(unknown)} are not in its schema")
    columns = []
    for column in schema:
        if column.name not in batch.schema.names:
            if not column.nullable or table != "rejects":
                raise TableError(f"{table}: column {column.name} is missing")
            columns.append(pa.nulls(batch.num_rows, column.type))
            continue
        values = batch.column(column.name)
        if not column.nullable and values.null_count:
            raise TableError(f"{table}: {values.null_count} rows have no {column.name}")
        try:
            columns.append(values if values.type == column.type else values.cast(column.type))
        except pa.ArrowException as error:
            raise TableError(f"{table}.{column.name}: {values.type} does not fit {column.type}: {error}") from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _commit_delta(path: str, schema: pa.Schema | None, new: list[WrittenFile], folders: set[str]) -> None:
    """One Delta transaction: the folders' old files out, the new ones in. Spark wrote the rows; this writes the log.

    schema   None: as the table has it
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError
    from deltalake.schema import Schema
    from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

    now = time.time_ns() // 1_000_000
    keys = [part.partition("=")[0] for part in next(iter(folders)).split("/")] if folders else ["unit"]
    adds = [AddAction(f.path, f.bytes, _partition(f.path), now, True, json.dumps({"numRecords": f.rows})) for f in new]
    written = None
    if schema is not None:
        written = Schema.from_arrow(pa.schema([*schema, *(pa.field(k, pa.string()) for k in keys)]))
    try:
        table = DeltaTable(path)
    except TableNotFoundError:
        if written is not None:
            create_table_with_add_actions(path, written, adds, mode="error", partition_by=keys)
        return
    present = pa.table(table.get_add_actions(flatten=True))
    removes = [
        RemoveAction(a["path"], True, now, a["size_bytes"], _partition(a["path"]))
        for a in present.select(["path", "size_bytes"]).to_pylist()
        if a["path"].rpartition("/")[0] in folders
    ]
    table.create_write_transaction(
        [*removes, *adds], mode="append", schema=written or table.schema(), partition_by=keys
    )


def _partition(path: str) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.split("/")[:-1])
    return {key: value for key, _, value in pairs}
