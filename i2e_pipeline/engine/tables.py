"""Tables on disk: written by tasks, committed by the driver, read only where committed. Parquet or Delta.

    <output>/<table>/unit=<unit>/part-*.parquet     rows, schema-checked when they are written
    <output>/rejects/stage=<stage>/unit=<unit>/     what a stage did not pass on, with a reason
    <output>/_commits/<stage>/                      what a stage made of each unit (engine/records.py)
    <output>/_staging/                              files of attempts that are not committed; never read

What a stage makes for many outputs lies in a folder of its own that looks like an output (engine/sharing.py).

A Spark task writes its own files, all tables of a stage in one pass, and returns a report that names them
(engine/tasks.py). The driver moves the files that reports of successful attempts name into place and writes the commit
record last. What a failed, repeated or speculative attempt left behind is named by no report and dropped with the
staging folder; what has no commit record is not read. Counts come from the reports and the files' own footers:
`observe` and accumulators over-count after a lost executor.

Many units are written by one Spark job. Each of them is whole, and can be committed, as soon as as many of its rows
were reported as were expected, while the job goes on with the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import StorageConfig
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.engine.catalogue import Catalogue
from i2e_pipeline.engine.delta import DeltaLog
from i2e_pipeline.engine.records import Commit, Records, WrittenFile
from i2e_pipeline.engine.tasks import Counting, Kernel, Part, TableError, Task, TaskPlan, TaskWriter, notes, pass_on

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

__all__ = [
    "WHOLE",
    "Commit",
    "Counting",
    "Kernel",
    "TableError",
    "Tables",
    "Written",
    "WrittenFile",
    "notes",
    "pass_on",
]

WHOLE = "all"
"""The name of the unit of stages that work on all rows at once."""
_FILE = "__filename"
"""pyarrow's name for the column that says which file a row is in."""
_STORE_CALLS = 32
"""Calls to a store that wait side by side."""


@dataclass(frozen=True)
class Written:
    """Files of one unit in staging, and what the tasks counted while writing them."""

    staging: str
    files: dict[str, list[WrittenFile]]
    rows_in: int
    rows_out: int
    rejected: dict[str, int]
    task_seconds: float = 0.0
    notes: dict[str, int] = field(default_factory=dict)
    """What was mended, and in how many rows."""
    own: bool = False
    """Whether nobody else's files are in that folder: then it is removed with the commit."""

    def only(self, *tables: str) -> Written:
        """The same job with the files of these tables alone."""
        rejected = self.rejected if "rejects" in tables else {}
        return replace(self, files={t: self.files[t] for t in tables}, rejected=rejected)


@dataclass(frozen=True)
class Failed:
    """A unit whose rows could not be worked on, and why."""

    unit: str
    why: str


@dataclass
class _Growing:
    """A unit of which some tasks have reported."""

    files: dict[str, list[WrittenFile]] = field(default_factory=dict)
    rows_in: int = 0
    rows_out: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failed: str | None = None

    def add(self, part: Part) -> None:
        for table, made in part.files.items():
            self.files.setdefault(table, []).extend(made)
        self.rows_in += part.rows_in
        self.rows_out += part.rows_out
        self.rejected.update(part.rejected)
        self.notes.update(part.notes)
        self.seconds += part.seconds
        self.failed = self.failed or part.failed

    def written(self, staging: str, tables: Iterable[str]) -> Written:
        made = {t: sorted(self.files.get(t, []), key=lambda f: f.path) for t in tables}
        return Written(
            staging,
            made,
            self.rows_in,
            self.rows_out,
            dict(sorted(self.rejected.items())),
            round(self.seconds, 4),
            dict(sorted(self.notes.items())),
        )


class Tables:
    """The tables below one output folder."""

    def __init__(
        self,
        root: str,
        storage: StorageConfig | None = None,
        start_spark: Callable[[], SparkSession] | None = None,
        catalogue: Catalogue | None = None,
        shared: Collection[str] = (),
        settle: Callable[[], None] | None = None,
    ) -> None:
        """`start_spark` is called when Spark is first needed: a run with nothing to do starts none.

        catalogue   what the stages declare; without it commit records can be read, and no table
        shared      stages whose tables lie elsewhere, where other outputs read them, too
        settle      calls `share` for each of them; called when it is first asked where their tables lie
        """
        self.root = root
        self.storage = storage or StorageConfig()
        self.catalogue = catalogue or Catalogue()
        self._start_spark = start_spark
        self._spark: SparkSession | None = None
        self.records = Records(files.join(root, "_commits"))
        self._delta: dict[str, DeltaLog] = {}
        self._lock = Lock()
        self._shared = frozenset(shared)
        self._settle = settle
        self._homes: dict[str, Tables] = {}
        """Of each shared stage, the tables where it leaves its own."""

    def path(self, *parts: str) -> str:
        """A path below the output; of a table that lies elsewhere, where it does."""
        below = files.join(*parts) if parts else ""
        for stage in self._shared if parts else ():
            of_stage = (
                f"rejects/stage={stage}",
                *(t for t, writer in self.catalogue.writers.items() if writer == stage),
            )
            if any(below == one or below.startswith(f"{one}/") for one in of_stage):
                return files.join(self.of(stage).root, *parts)
        return files.join(self.root, *parts)

    # Tables that lie elsewhere

    @property
    def own(self) -> Tables:
        """What lies in the output itself, whatever is shared now."""
        return Tables(self.root, self.storage, self._start_spark, self.catalogue) if self._shared else self

    def share(self, stage: str, root: str) -> None:
        """From now on a stage's tables are those below `root`. They are Parquet, whatever the output's are: each is
        written once, and other outputs read it."""
        if stage not in self._homes or self._homes[stage].root != root:
            storage = self.storage.model_copy(update={"format": "parquet"})
            self._homes[stage] = Tables(root, storage, lambda: self.spark)

    def of(self, stage: str) -> Tables:
        """The tables among which a stage leaves its own: these, or those of a folder that outputs share."""
        if stage not in self._shared:
            return self
        if stage not in self._homes and self._settle is not None:
            self._settle()
        home = self._homes.get(stage, self)
        home.catalogue, home._spark = self.catalogue, self._spark
        return home

    def of_table(self, table: str) -> Tables:
        """The same for the stage that writes a table."""
        writer = self.catalogue.writers.get(table)
        return self if writer is None else self.of(writer)

    def shared_roots(self) -> list[str]:
        """Folders beside the output that its workers read."""
        return [self.of(stage).root for stage in sorted(self._shared)]

    def known_homes(self) -> list[str]:
        """Those of them that were asked for."""
        return sorted({home.root for home in self._homes.values()})

    @property
    def spark(self) -> SparkSession:
        if self._spark is None:
            if self._start_spark is None:
                raise TableError("these tables were opened without a Spark session")
            self._spark = self._start_spark()
        return self._spark

    # Reading

    def commits(self, stage: str, broken: dict[str, str] | None = None) -> dict[str, Commit]:
        """Commits of a stage by unit, as they lie there now. `broken` as of `Records.read`."""
        return self.of(stage).records.read(stage, broken)

    def committed_stages(self) -> list[str]:
        """Names of all stages that have left commit records in the output, those that the config no longer names among
        them."""
        return self.records.stages()

    def commits_of(self, table: str) -> dict[str, Commit]:
        """Commits, by unit, of the stage that writes a table."""
        return self.commits(self.catalogue.writers[table])

    def missing_files(self, commits: Iterable[Commit], by_folder: bool = False) -> dict[str, list[str]]:
        """Unit to those of its committed files that are no longer there, or not as long as they were. One listing a
        table.

        by_folder   one listing a folder of files: for few units of many
        """
        commits = list(commits)
        listed_from = _folder if by_folder else _listed_from
        roots = {listed_from(table, f) for c in commits for table, made in c.files.items() for f in made}
        with ThreadPoolExecutor(_STORE_CALLS) as pool:
            listed = dict(zip(roots, pool.map(lambda r: files.list_files(self.path(r)), roots), strict=True))
        present = {files.join(root, info.path): info.size for root, found in listed.items() for info in found}
        missing: dict[str, list[str]] = {}
        for commit in commits:
            for table, made in commit.files.items():
                for file in made:
                    if present.get(path := files.join(table, file.path)) != file.bytes:
                        missing.setdefault(commit.unit, []).append(path)
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
        only_units: Iterable[str] | None = None,
    ) -> DataFrame:
        """Rows of a table that these commits wrote; columns and types as the schema says, `unit` where it is named.

        only_units   of a table that one commit wrote for many units, the rows of these
        """
        names = list(columns) if columns is not None else self.catalogue.schema(table).names
        paths = [f.path for c in commits for f in c.files.get(table, []) if f.rows]
        if only_units is not None:
            folders = {f"unit={unit}" for unit in only_units}
            paths = [p for p in paths if p.partition("/")[0] in folders]
        return self.read_files(table, self.path(table), paths, names)

    def read_files(self, table: str, root: str, paths: Sequence[str], names: Sequence[str]) -> DataFrame:
        """Rows of Parquet files of a table, by their paths below `root`; `unit` is their folder's."""
        spark = self.spark
        if not paths:
            return spark.createDataFrame([], self.spark_schema(table, names)).select(*names)
        # Records say which files count, so no log is read for it. Folders are fewer than files, but a Delta table's
        # hold what was replaced, too.
        whole_folders = self.of_table(table).storage.format == "parquet" and root == self.path(table)
        named = sorted({files.join(root, p.rpartition("/")[0] if whole_folders else p) for p in paths})
        schema = self.spark_schema(table, [*(n for n in names if n != "unit"), "unit"])
        named = [files.for_spark(path) for path in named]
        reader = spark.read.schema(schema).option("basePath", files.for_spark(root)).option(*files.AS_NAMED)
        return reader.parquet(*named).select(*names)

    def load(self, table: str, commits: Iterable[Commit], columns: Sequence[str] | None = None) -> pa.Table:
        """The same in this process, without Spark: for tables that are small by nature."""
        filesystem, _ = files.open_filesystem(self.path(table))
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

    def where(
        self,
        table: str,
        commits: Iterable[Commit],
        wanted: pa.compute.Expression,
        columns: Sequence[str] | None = None,
        only_units: Iterable[str] | None = None,
        most: int | None = None,
    ) -> pa.Table:
        """The few rows that an expression picks, in this process, without Spark, in the order of the files.

        columns      as of `read`
        only_units   as of `read`
        most         no more rows than that are looked for
        Row groups whose statistics rule the expression out are not read, of the others first the columns that it asks
        for. Memory holds some row groups and the rows found. Raises TableError for a file that is gone.
        """
        commits = list(commits)
        schema = self.as_stored(table, commits)
        names = list(columns) if columns is not None else schema.names
        lying = next((f.path for c in commits for f in c.files.get(table, [])), "")
        filesystem, _ = files.open_filesystem(self.path(table, lying))
        unit_of = {
            files.open_filesystem(self.path(table, f.path))[1]: _unit_in(f.path) or c.unit
            for c in commits
            for f in c.files.get(table, [])
            if f.rows
        }
        if only_units is not None:
            units = set(only_units)
            unit_of = {path: unit for path, unit in unit_of.items() if unit in units}
        result = pa.schema([pa.field("unit", pa.string()) if n == "unit" else schema.field(n) for n in names])
        if not unit_of:
            return result.empty_table()
        asked = [_FILE if n == "unit" else n for n in names]
        try:
            scanner = ds.dataset(list(unit_of), schema=schema, format="parquet", filesystem=filesystem).scanner(
                columns=asked, filter=wanted, batch_readahead=2
            )
            rows = scanner.to_table() if most is None else scanner.head(most)
        except FileNotFoundError as error:
            raise TableError(f"{self.path(table)}: a file is gone ({error}): `i2e run` makes it again") from None
        places = {n: rows.column(asked[i]) for i, n in enumerate(names)}
        if "unit" in places:
            places["unit"] = pa.array([unit_of[path] for path in places["unit"].to_pylist()], pa.string())
        return pa.table(places, schema=result)

    def as_stored(self, table: str, commits: Iterable[Commit]) -> pa.Schema:
        """The table's schema with ids as its files have them: until format 2 of datasets they were bytes there, too."""
        schema = self.catalogue.schema(table)
        path = next((f.path for c in commits for f in c.files.get(table, []) if f.rows), None)
        if path is None or not any(pa.types.is_string(f.type) for f in schema if f.name.endswith("_id")):
            return schema
        filesystem, inner = files.open_filesystem(self.path(table, path))
        try:
            stored = pq.read_schema(inner, filesystem=filesystem)
        except FileNotFoundError:
            return schema
        for place, column in enumerate(schema):
            if column.name in stored.names and pa.types.is_fixed_size_binary(stored.field(column.name).type):
                schema = schema.set(place, column.with_type(stored.field(column.name).type))
        return schema

    def batches(self, table: str, commits: Iterable[Commit], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The same in bounded memory, batch by batch."""
        for commit in commits:
            for file in commit.files.get(table, []):
                filesystem, inner = files.open_filesystem(self.path(table, file.path))
                with filesystem.open_input_file(inner) as stream:
                    yield from pq.ParquetFile(stream).iter_batches(65_536, columns=list(columns))

    def local_path(self, *parts: str, of: str | None = None) -> str:
        """Where files that are memory-mapped lie: in the output folder; for a remote one, in this machine's cache of
        it.

        of   the table that they are made of: what is made of one that lies elsewhere lies beside it, unless nobody may
             write there
        """
        root = self.root if of is None else self.of_table(of).root
        if files.is_local(root):
            path = files.join(root, *parts)
            closed = root != self.root and not os.path.exists(path) and os.path.isdir(root) and not _open(root)
            return self.own.local_path(*parts) if closed else path
        name = hashlib.blake2b(root.encode(), digest_size=8).hexdigest()
        return str(scratch("outputs", name, *parts[:-1]).joinpath(*parts[-1:]))

    # Writing

    @contextmanager
    def staging(self, stage: str) -> Iterator[str]:
        """A folder for files that are not committed; at the end of the block it is gone with all that was left in
        it."""
        folder = self.of(stage).path("_staging", f"{stage}-{uuid.uuid4().hex[:12]}")
        try:
            yield folder
        finally:
            files.remove(folder)

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
        staging = self._own_staging(stage, unit)
        plan = self._task_plan(staging, stage, unit, tables, counting)
        told = frame.mapInArrow(Task(make_kernel, plan), "report string", profile=profile).collect()
        whole = _Growing()
        for row in told:
            for part in json.loads(row.report)["parts"]:
                whole.add(Part.of(part))
        written = replace(whole.written(staging, plan.schemas), own=True)
        self._drop_orphans(written)
        return written

    def write_units(
        self,
        frame: DataFrame,
        make_kernel: Callable[[], Kernel],
        stage: str,
        expected: Mapping[str, int | None],
        tables: Sequence[str],
        staging: str,
        counting: Counting | None = None,
        profile: ResourceProfile | None = None,
    ) -> Generator[list[tuple[str, Written] | Failed], None, None]:
        """The same for many units in one Spark job: yields those that have become whole, while it runs.

        frame      each row's column `unit` names its unit; in a partition the rows of a unit stand together
        expected   unit to the rows that will arrive; None: it is known when the job is done. A unit of which more came
                   when it was whole already is yielded again, as Failed
        staging    the folder for the files (`staging`)
        make_kernel is called once per task, and the kernel for each unit of which the task has rows. Each table gets a
        file, though it may be without rows, of the first of the units at least.
        """
        plan = self._task_plan(staging, stage, None, tables, counting)
        growing = {unit: _Growing() for unit in expected}
        made_of: dict[str, int] = {}
        first = True

        def whole(units: Iterable[str]) -> list[tuple[str, Written] | Failed]:
            nonlocal first
            made: list[tuple[str, Written] | Failed] = []
            for unit in units:
                grown = growing.pop(unit)
                made_of[unit] = grown.rows_in
                if grown.failed is not None:
                    made.append(Failed(unit, grown.failed))
                    continue
                if first:
                    first = False
                    self._add_empty_files(grown, plan, unit)
                made.append((unit, grown.written(staging, plan.schemas)))
            return made

        seen: set[int] = set()
        with closing(_reports(frame, make_kernel, plan, profile)) as told_at_once:
            for reports in told_at_once:
                touched: dict[str, None] = {}
                surplus: dict[str, Failed] = {}
                for report in map(json.loads, reports):
                    if report["task"] in seen:  # another attempt of it, or what was told at once and is told again
                        continue
                    seen.add(report["task"])
                    for part in map(Part.of, report["parts"]):
                        if part.unit in growing:
                            growing[part.unit].add(part)
                            touched[part.unit] = None
                        elif part.rows_in and part.unit in made_of:
                            why = f"RowsLost: {made_of[part.unit]} rows were expected, and {part.rows_in} more came"
                            surplus[part.unit] = Failed(part.unit, why)
                # A unit of which no row is expected is whole when no more can come.
                ready = [u for u in touched if growing[u].failed or (expected[u] and growing[u].rows_in == expected[u])]
                if made := [*whole(ready), *surplus.values()]:
                    yield made
        if growing:
            yield whole(list(growing))

    def _add_empty_files(self, grown: _Growing, plan: TaskPlan, unit: str) -> None:
        with TaskWriter(plan, unit, "part-driver", empty_files=True) as writer:
            writer.closed |= {t: made for t, made in grown.files.items() if made}
        for table, made in writer.closed.items():
            grown.files[table] = made

    def write_local(
        self,
        batches: Iterator[tuple[str, pa.RecordBatch]],
        stage: str,
        unit: str,
        tables: Sequence[str],
        counting: Counting | None = None,
    ) -> Written:
        """What `write` does, from this process: small tables that need no Spark job."""
        staging = self._own_staging(stage, unit)
        plan = self._task_plan(staging, stage, unit, tables, counting)
        with TaskWriter(plan, unit, "part-driver", empty_files=True) as writer:
            for table, batch in batches:
                writer.write(table, batch)
        return Written(
            staging,
            {t: writer.closed[t] for t in plan.schemas},
            writer.rows_out + sum(writer.rejected.values()),
            writer.rows_out,
            dict(writer.rejected),
            own=True,
        )

    def _own_staging(self, stage: str, unit: str) -> str:
        return self.of(stage).path("_staging", f"{stage}-{unit}-{uuid.uuid4().hex[:12]}")

    def _task_plan(
        self, staging: str, stage: str, unit: str | None, tables: Sequence[str], counting: Counting | None
    ) -> TaskPlan:
        schemas = {t: self.catalogue.schema(t) for t in (*tables, "rejects")}
        for table in schemas:
            files.make_folder(files.join(staging, table))
        reasons = self.catalogue.reasons.get(stage)
        return TaskPlan(
            staging,
            stage,
            unit,
            schemas,
            self.storage,
            counting or Counting(),
            None if reasons is None else {*reasons},
            _attempts(self.spark) if self._spark is not None else 1,
        )

    def commit(self, commits: Sequence[tuple[Commit, Sequence[Written]]]) -> list[Commit]:
        """Put the staged files of units of one stage in the place of what these held before, and write the records
        that make them count. One Delta transaction a table, and one journal file, however many units."""
        made = [commit for commit, _ in commits]
        if not made:
            return made
        stage = made[0].stage
        if (home := self.of(stage)) is not self:
            return home.commit(commits)
        known = self.records.known(stage)
        previous = {c.unit: known[c.unit] for c in made if c.unit in known}
        self.records.drop(stage, previous)
        for table in sorted({t for _, staged in commits for w in staged for t in w.files}):
            self._publish(table, commits, previous)
        self.records.add(stage, made)
        for folder in sorted({w.staging for _, staged in commits for w in staged if w.own}):
            files.remove(folder)
        return made

    def _publish(
        self, table: str, commits: Sequence[tuple[Commit, Sequence[Written]]], previous: Mapping[str, Commit]
    ) -> None:
        """Move a table's staged files to where they are read, in the place of the folders they replace."""
        new = [(w, f) for _, staged in commits for w in staged for f in w.files.get(table, [])]
        old = [f for commit in previous.values() for f in commit.files.get(table, [])]
        folders = {f.path.rpartition("/")[0] for f in (*old, *(f for _, f in new))}
        sources = [files.join(w.staging, table, f.path) for w, f in new]
        targets = [self.path(table, f.path) for _, f in new]
        self._refuse_outside(table, {*(f.path for f in old), *(f.path for _, f in new if old)})
        if self.storage.format == "parquet":
            self._each(lambda folder: files.remove(self.path(table, folder)), sorted(folders))
        self._each(files.move_file, sources, targets)
        if self.storage.format == "delta":
            self._log(table).replace(self.catalogue.schema(table), [f for _, f in new], folders)

    def put_merged(
        self,
        table: str,
        staging: str,
        new: Sequence[WrittenFile],
        old: Sequence[WrittenFile],
        same_rows: bool = True,
        same_columns: bool = True,
    ) -> None:
        """Put files in the place of old ones. A call after one that was cut off ends it.

        new            all files that the folders are to hold, those in place already too
        same_rows      they hold the rows of the old ones
        same_columns   the table is there, and has their columns
        """
        self._refuse_outside(table, {f.path for f in (*new, *old)})
        staged = {info.path for info in files.list_files(files.join(staging, table))}
        moving = [f.path for f in new if f.path in staged]
        self._each(
            files.move_file,
            [files.join(staging, table, path) for path in moving],
            [self.path(table, path) for path in moving],
        )
        if self.storage.format == "delta":
            folders = {f.path.rpartition("/")[0] for f in (*new, *old)}
            schema = None if same_columns else self.catalogue.schema(table)
            self._log(table).replace(schema, new, folders, same_rows)
        else:
            self._each(files.remove, [self.path(table, f.path) for f in old])

    def _refuse_outside(self, table: str, named: Iterable[str]) -> None:
        """Raise LedOutside where files that records name lie behind a link that leads out of these tables."""
        for folder in sorted({path.rpartition("/")[0] for path in named}):
            place = self.path(table, folder)
            roots = (root for root in self.known_homes() if place.startswith(f"{root.rstrip('/')}/"))
            files.refuse_outside(next(roots, self.root), files.join(place, "part"))

    def _each(self, call: Callable[..., None], *arguments: Sequence[str]) -> None:
        """Side by side where each call waits for a store."""
        if files.is_local(self.root):
            for each in zip(*arguments, strict=True):
                call(*each)
            return
        with ThreadPoolExecutor(_STORE_CALLS) as pool:
            list(pool.map(call, *arguments))

    def _log(self, table: str) -> DeltaLog:
        with self._lock:
            return self._delta.setdefault(table, DeltaLog(self.path(table)))

    def _drop_orphans(self, written: Written) -> None:
        """Remove what failed or repeated attempts wrote."""
        for table, kept in written.files.items():
            folder = files.join(written.staging, table)
            named = {f.path for f in kept}
            for info in files.list_files(folder):
                if info.path not in named:
                    files.remove(files.join(folder, info.path))

    def orphans(self) -> list[tuple[str, int]]:
        """Parquet files in tables' unit folders that no commit record names, with their bytes: what a kill left
        between the move of a unit's files and its record."""
        if self._shared:
            return self.own.orphans()
        named: dict[str, set[str]] = {}
        for stage in self.committed_stages():
            for commit in self.commits(stage).values():
                for table, made in commit.files.items():
                    named.setdefault(table, set()).update(f.path for f in made)
        found = []
        for table, paths in sorted(named.items()):
            for info in files.list_files(self.path(table)):
                below = info.path.partition("/")[0]
                if below.startswith(("unit=", "stage=")) and info.path not in paths:
                    found.append((files.join(table, info.path), info.size))
        return found

    def vacuum(self, dry_run: bool = False) -> list[tuple[str, tuple[int, int]]]:
        """Of each Delta table the files, and their bytes, that its log no longer names; they are removed, and the log
        gets a checkpoint."""
        if self._shared:
            return self.own.vacuum(dry_run)
        tables = {t for s in self.committed_stages() for c in self.commits(s).values() for t in c.files}
        for table in sorted(tables) if not dry_run else ():
            self._refuse_outside(table, [""])
        freed = ((table, self._log(table).vacuum(dry_run)) for table in sorted(tables))
        return [(table, size) for table, size in freed if size[0]]

    def discard_staging(self) -> None:
        """Drop what a killed run left half-written."""
        files.remove_below(self.root, "_staging")

    def discard(self, stage: str, units: Sequence[str]) -> None:
        """Forget units of a stage: their records first, then their files."""
        if (home := self.of(stage)) is not self:
            home.discard(stage, units)
            return
        known = self.records.known(stage)
        gone = [known[unit] for unit in units if unit in known]
        for table in sorted({t for c in gone for t in c.files}):
            self._refuse_outside(table, {f.path for c in gone for f in c.files.get(table, [])})
        self.records.drop(stage, [c.unit for c in gone])
        for table in sorted({t for c in gone for t in c.files}):
            folders = {f.path.rpartition("/")[0] for c in gone for f in c.files.get(table, [])}
            if self.storage.format == "delta":
                self._log(table).replace(None, [], folders)
            else:
                self._each(lambda folder, table=table: files.remove(self.path(table, folder)), sorted(folders))

    def outdate(self, stage: str, what: str, why: str) -> None:
        """Let what a stage made count as made under another config, and keep it until it is made again."""
        records = self.of(stage).records
        outdated = [
            replace(commit, fingerprint="outdated", components={**commit.components, what: why})
            for commit in records.read(stage).values()
        ]
        if outdated:
            records.add(stage, outdated)


def _open(folder: str) -> bool:
    """May files be made there?"""
    return os.access(folder.removeprefix("file://"), os.W_OK)


def _unit_in(path: str) -> str | None:
    """The unit in whose folder a file of a table lies."""
    found = [part for part in path.split("/")[:-1] if part.startswith("unit=")]
    return found[-1].removeprefix("unit=") if found else None


def _folder(table: str, file: WrittenFile) -> str:
    return files.join(table, file.path.rpartition("/")[0])


def _listed_from(table: str, file: WrittenFile) -> str:
    """The folder whose listing shows a file and the others of its stage."""
    first = file.path.partition("/")[0]
    return files.join(table, first) if first.startswith("stage=") else table


def _attempts(spark: SparkSession) -> int:
    """How often Spark tries a task. In local mode the master says it: local[cores, attempts]."""
    master = spark.sparkContext.master or ""
    if master.startswith("local-cluster") or not master.startswith("local"):
        return int(spark.sparkContext.getConf().get("spark.task.maxFailures", "4") or 4)
    said = master.partition("[")[2].rstrip("]").partition(",")[2].strip()
    return int(said) if said.isdigit() else 1


def _reports(
    frame: DataFrame, make_kernel: Callable[[], Kernel], plan: TaskPlan, profile: ResourceProfile | None
) -> Generator[list[str], None, None]:
    """Runs the job in a thread and yields its tasks' reports as they come, all of them at least once."""
    from pyspark import InheritableThread

    from i2e_pipeline.engine.reports import listening

    context = frame.sparkSession.sparkContext
    job = uuid.uuid4().hex
    inbox: queue.SimpleQueue[str | list[str] | BaseException] = queue.SimpleQueue()
    group = context.getLocalProperty("spark.jobGroup.id")

    def collect() -> None:
        try:
            rows = frame.mapInArrow(Task(make_kernel, plan, report), "report string", profile=profile).collect()
            inbox.put([row.report for row in rows])
        except BaseException as error:
            inbox.put(error)

    with listening(context, job, inbox.put) as report:
        thread = InheritableThread(target=collect, name=f"i2e-{plan.stage}", daemon=True)
        thread.start()
        try:
            while True:
                said = [inbox.get()]
                while not inbox.empty():
                    said.append(inbox.get())
                yield [one for one in said if isinstance(one, str)]
                for last in said:
                    if isinstance(last, BaseException):
                        raise last
                    if isinstance(last, list):
                        yield last
                        return
        finally:
            if thread.is_alive() and group:
                with suppress(Exception):  # the JVM may be gone, which ends the job, too
                    context.cancelJobGroup(group)
            thread.join()
