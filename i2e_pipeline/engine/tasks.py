"""What runs in a Spark worker: a task hands its rows to a kernel, writes what the kernel yields, and reports.

A task writes its own Parquet files, all tables of a stage in one pass, into the staging folder, and names them in its
report. Rows of a stage by unit come unit after unit: each unit's rows go through the kernel by themselves, so a kernel
never sees two units at once and a fault in one of them leaves the others alone.
"""

from __future__ import annotations

import json
import time
import traceback
import uuid
import zipimport
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import StorageConfig
from i2e_pipeline.core.digests import Digested
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.catalogue import Passed
from i2e_pipeline.engine.records import WrittenFile

if TYPE_CHECKING:
    from pyspark import TaskContext

    from i2e_pipeline.engine.reports import Report

Kernel = Callable[[Iterator[pa.RecordBatch]], Iterator[tuple[str, pa.RecordBatch]]]
"""Batches in; (table, batch) out: what a stage passes on and what it rejects leave in the same pass."""

_MAX_DETAIL = 500
_NOTES = "notes"


class TableError(I2EError, RuntimeError):
    """A table that is missing, half-written or not what its schema says."""


@dataclass(frozen=True)
class Counting:
    """How a stage's rows are counted, on their way in and on their way out."""

    rows_of: Callable[[pa.RecordBatch], int] | None = None
    """Rows that an input batch stands for; None: its length."""
    passed: Passed | None = None
    """Which rows count as passed on; None: none do."""
    unfold: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]] | None = None
    """Makes of what arrives the batches that are counted and go to the kernel: rows that the task itself reads from a
    part of a file do not cross from Java to Python. None: they are what arrives."""


@dataclass(frozen=True)
class TaskPlan:
    """What tasks of one Spark job must know to write."""

    staging: str
    stage: str
    unit: str | None
    """The unit of all rows; None: each row's column `unit` names it."""
    schemas: Mapping[str, pa.Schema]
    storage: StorageConfig
    counting: Counting
    reasons: set[str] | None
    """Reject reasons that the stage declares; None: it is not known."""
    attempts: int = 1
    """How often Spark tries a task. A fault is the unit's own when the last attempt meets it."""
    job: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """In the names of its files: no job ever writes another's, though Spark's numbers of attempts begin anew in each
    application. One Delta transaction cannot put a file in the place of itself."""


@dataclass
class Part:
    """What a task made of the rows of one unit that it had."""

    unit: str
    files: dict[str, list[WrittenFile]] = field(default_factory=dict)
    rows_in: int = 0
    rows_out: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: dict[str, int] = field(default_factory=dict)
    """What was mended, and in how many rows (`notes`)."""
    failed: str | None = None
    """Why the unit's rows could not be worked on: the exception, its trace last."""

    @classmethod
    def of(cls, told: dict[str, Any]) -> Part:
        """From its JSON form."""
        return cls(**{**told, "files": {t: [WrittenFile(**f) for f in fs] for t, fs in told["files"].items()}})


def keep_zips() -> None:
    """Let Python pass zips over when it looks for files that were added.

    Spark's worker makes it look before each task, and then it reads the names in Spark's own zip again, once for each
    package that was imported from there, which costs more than a small task. Zips do not change under a running
    application, and one that is added is new to the importer.
    """
    zipimport.zipimporter.invalidate_caches = lambda self: None  # type: ignore[method-assign]


def pass_on(table: str, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The kernel of a job in which Spark does everything: each row goes to one table."""
    for batch in batches:
        yield table, batch


def notes(counts: Mapping[str, int]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """What a kernel yields to say what it mended, and in how many rows; it goes to the commit record."""
    if any(counts.values()):
        yield _NOTES, pa.RecordBatch.from_pydict({"note": list(counts), "rows": list(counts.values())})


class Task:
    """Runs a kernel in a Spark worker and writes what it yields. Yields one row, the report, as JSON."""

    def __init__(self, make_kernel: Callable[[], Kernel], plan: TaskPlan, report: Report | None = None) -> None:
        """`report`: told of the task's end at once, beside the row that Spark brings when all tasks are done."""
        self.make_kernel = make_kernel
        self.plan = plan
        self.report = report

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        keep_zips()  # for the tasks that this worker has after this one
        parts = json.dumps({"task": context.partitionId(), "parts": [asdict(p) for p in self._parts(batches, context)]})
        if self.report is not None:
            self.report(parts)
        yield pa.RecordBatch.from_pydict({"report": [parts]})

    def _parts(self, batches: Iterable[pa.RecordBatch], context: TaskContext) -> Iterator[Part]:
        name = f"part-{context.partitionId():05d}-{context.taskAttemptId()}"
        last_attempt = context.attemptNumber() + 1 >= self.plan.attempts
        if self.plan.unit is not None:
            part = Part(self.plan.unit)
            self._work(self.make_kernel(), iter(batches), part, name, empty_files=context.partitionId() == 0)
            yield part
            return
        rows = _ByUnit(batches)
        kernel: Kernel | None = None
        while (unit := rows.next_unit()) is not None:
            # Not before the first row: a task without rows must not load a model.
            kernel = kernel or self.make_kernel()
            part = Part(unit)
            try:
                self._work(kernel, rows.of_unit(), part, name)
            except Exception as error:
                if not last_attempt and not isinstance(error, I2EError):
                    raise
                part = Part(unit, failed="".join(traceback.format_exception(error)))
            rows.skip_unit()
            yield part

    def _work(
        self, kernel: Kernel, batches: Iterator[pa.RecordBatch], part: Part, name: str, empty_files: bool = False
    ) -> None:
        rows_of, unfold, started = self.plan.counting.rows_of, self.plan.counting.unfold, time.monotonic()

        def counted() -> Iterator[pa.RecordBatch]:
            for batch in unfold(batches) if unfold else batches:
                part.rows_in += rows_of(batch) if rows_of else batch.num_rows
                yield batch

        arriving = counted()
        with TaskWriter(self.plan, part.unit, name, empty_files) as writer:
            for table, batch in kernel(arriving):
                writer.write(table, batch)
            for _ in arriving:  # what a kernel left unread counts as arrived, and is missed then
                pass
        part.files = writer.closed
        part.rows_out, part.rejected, part.notes = writer.rows_out, dict(writer.rejected), dict(writer.notes)
        part.seconds = round(time.monotonic() - started, 4)


class _ByUnit:
    """The batches of a task cut where the unit changes; the column `unit` is for the engine and goes no further."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._waiting: list[tuple[str, pa.RecordBatch]] = []
        self._unit: str | None = None

    def _fill(self) -> bool:
        while not self._waiting:
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._waiting = list(_runs(batch))
        return True

    def next_unit(self) -> str | None:
        """The unit that the next rows are of; None at the end."""
        self._unit = self._waiting[0][0] if self._fill() else None
        return self._unit

    def of_unit(self) -> Iterator[pa.RecordBatch]:
        """The batches up to the next unit."""
        while self._fill() and self._waiting[0][0] == self._unit:
            yield self._waiting.pop(0)[1]

    def skip_unit(self) -> None:
        """Pass over what is left of the unit."""
        for _ in self.of_unit():
            pass


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The batch cut into runs of rows of one unit, without that column."""
    if batch.num_rows == 0:
        return
    units = batch.column("unit")
    rows = batch.drop_columns(["unit"])
    changes = pc.indices_nonzero(pc.not_equal(units.slice(1), units.slice(0, len(units) - 1))).to_pylist()
    starts = [0, *(c + 1 for c in changes)]
    for start, end in zip(starts, [*starts[1:], batch.num_rows], strict=True):
        yield units[start].as_py(), rows.slice(start, end - start)


class TaskWriter:
    """Parquet files of one task and unit, a file per table, closed only when all its rows were worked on.

    A stage over all units names the unit of each row in a column `unit`; then it is a file per table and unit.
    """

    def __init__(self, plan: TaskPlan, unit: str, name: str, empty_files: bool = False) -> None:
        """`empty_files`: leave a file in every table: an empty result is a table without rows and not a missing one."""
        self.plan = plan
        self.unit = unit
        self.name = name
        self.empty_files = empty_files
        self.open: dict[tuple[str, str], OpenFile] = {}
        self.closed: dict[str, list[WrittenFile]] = {t: [] for t in plan.schemas}
        self.rows_out = 0
        self.rejected: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._last_key: tuple[Any, ...] | None = None

    def __enter__(self) -> TaskWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None and self.empty_files:
            for table, schema in self.plan.schemas.items():
                if not self.closed[table] and not any(t == table for t, _ in self.open):
                    self._file(table, self.unit).add(pa.RecordBatch.from_pylist([], schema=schema))
        for (table, _), file in self.open.items():
            if kind is None:
                self.closed[table].append(file.close())
            else:
                file.abandon()

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        if table == _NOTES:
            self.notes.update(dict(zip(*(c.to_pylist() for c in batch.columns), strict=True)))
            return
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
        for unit, rows in _by_unit(batch, self.unit):
            if "unit" in batch.schema.names:
                self._close_other_units(table, unit)
            self._file(table, unit).add(conform(rows, self.plan.schemas[table], table))

    def _close_other_units(self, table: str, unit: str) -> None:
        """Rows come unit after unit, so the files of other units are complete. Thousands of open files would be too
        many."""
        for key in [k for k in self.open if k[0] == table and k[1] != unit]:
            self.closed[table].append(self.open.pop(key).close())

    def _file(self, table: str, unit: str) -> OpenFile:
        if (table, unit) not in self.open:
            folder = f"unit={unit}"
            if table == "rejects":
                folder = f"stage={self.plan.stage}/{folder}"
            path = f"{folder}/{self.name}-{self.plan.job}.parquet"
            if any(f.path == path for f in self.closed[table]):
                path = f"{folder}/{self.name}-{self.plan.job}-{len(self.closed[table])}.parquet"
            self.open[table, unit] = OpenFile(
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


class OpenFile:
    """A Parquet file that is being written; rows wait until they fill a row group."""

    def __init__(self, base: str, path: str, schema: pa.Schema, storage: StorageConfig) -> None:
        filesystem, inner = files.open_filesystem(files.join(base, path))
        self.path, self.inner, self.schema = path, inner, schema
        self.target = storage.row_group_mb << 20
        with files.naming(inner):
            filesystem.create_dir(inner.rpartition("/")[0], recursive=True)
            self.stream = Digested(filesystem.open_output_stream(inner, compression=None))
        self.writer = pq.ParquetWriter(self.stream, schema, compression=storage.compression)
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
            with files.naming(self.inner):
                self.writer.write_table(table, row_group_size=table.num_rows)
        self.waiting, self.waiting_bytes = [], 0

    def close(self) -> WrittenFile:
        self._flush()
        with files.naming(self.inner):
            self.writer.close()
            self.stream.close()
        return WrittenFile(self.path, self.rows, self.stream.bytes, self.stream.digest)

    def abandon(self) -> None:
        with suppress(OSError):  # on a full disk no footer can be written either; what went wrong first is raised
            self.writer.close()
        with suppress(OSError):
            self.stream.close()


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
