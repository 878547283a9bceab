"""Two stages of a few lines, and one that narrows, on which the engine's laws are tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from i2e_pipeline.core.config import Config, Section, from_tree
from i2e_pipeline.core.rejects import part
from i2e_pipeline.engine.arrange import arrange
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.pipeline import Pipeline, StageState
from i2e_pipeline.engine.stage import Plan, Run, Stage
from i2e_pipeline.engine.tables import pass_on
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import Shard

NUMBERS = pa.schema([pa.field("id", pa.binary(16), nullable=False), pa.field("number", pa.int64(), nullable=False)])
TOTALS = pa.schema([pa.field("rest", pa.int64(), nullable=False), pa.field("total", pa.int64(), nullable=False)])


class Read(Stage):
    """By unit: numbers of the shards; those that do not divide by `modulus` go no further."""

    name, does, rows_are, job = "read", "read numbers", "numbers", "toys"
    tables = {"numbers": Table(NUMBERS, key=("id",), holds="numbers", narrowable=True)}
    passes = Passed("numbers", ("id",))
    reasons = {"odd": "It does not divide by the modulus."}
    sections = ("pairs", "extract")
    leaves_out = {"pairs.path": "units are named by their content", "pairs.files_per_unit": "likewise"}

    modulus = 2
    loses = False
    """A fault: the last row of each shard neither passes nor is rejected."""

    def settings(self, config: Config) -> dict[str, Any]:
        return {**super().settings(config), "modulus": self.modulus}

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        files = [(unit, f.shard, f.path) for unit in units for f in run.unit(unit).files]
        rows = run.spark.createDataFrame(files, "unit string, shard int, path string")
        kernel = partial(read_numbers, modulus=self.modulus, loses=self.loses)
        return Plan(rows, lambda: kernel, self.rows_to_do(run, units), rows_of=rows_of)


def rows_of(batch: pa.RecordBatch) -> int:
    return sum(pq.read_metadata(path).num_rows for path in batch.column("path").to_pylist())


def read_numbers(batches: Iterator[pa.RecordBatch], modulus: int, loses: bool) -> Iterator[tuple[str, pa.RecordBatch]]:
    for batch in batches:
        for path in batch.column("path").to_pylist():
            numbers = [
                int(n) for _, b in formats.columns(Shard(path), ["caption"]) for n in b.column("caption").to_pylist()
            ]
            numbers = numbers[:-1] if loses else numbers
            ids = pa.array([n.to_bytes(16, "big") for n in numbers], pa.binary(16))
            rows = pa.RecordBatch.from_arrays([ids, pa.array(numbers, pa.int64())], schema=NUMBERS)
            reasons = [None if n % modulus == 0 else "odd" for n in numbers]
            yield from part("numbers", rows, reasons, [None if r is None else "a detail" for r in reasons], key="id")


class Total(Stage):
    """Over all units: the sum of the numbers by their rest."""

    name, does, rows_are, job, scope = "total", "add numbers up", "rests", "toys", "whole"
    after = ("read",)
    reads = ("numbers",)
    tables = {"totals": Table(TOTALS, key=("rest",), holds="sums")}
    passes = Passed("totals", ("rest",))

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from pyspark.sql import functions as F

        numbers = run.read("numbers", columns=["number"])
        sums = numbers.groupBy((F.col("number") % 4).alias("rest")).agg(F.sum("number").alias("total"))
        return Plan(sums.orderBy("rest").coalesce(1), lambda: partial(pass_on, "totals"))


class Small(Stage):
    """From outside: leaves large numbers out for those behind it, and gives a feature."""

    name, does, rows_are = "small", "leave large numbers out", "numbers"
    after = ("numbers",)
    reads = ("numbers",)
    tables = {"smalls": Table(pa.schema([*NUMBERS, pa.field("weight", pa.float32())]), key=("id",), holds="small ones")}
    passes = Passed("smalls", ("id",))
    reasons = {"large": "It is larger than the limit."}
    narrows = "numbers"
    features = ("weight",)

    class Settings(Section):
        limit: int = 100
        """Larger numbers are left out."""

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("numbers", units)

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        kernel, expected = partial(judge, limit=run.settings.limit), run.rows_by_unit("numbers", units)
        rows = run.in_unit_order(run.read("numbers", units), expected, ["id"], rows_per_task=7)
        return Plan(rows, lambda: kernel, expected)


def judge(batches: Iterator[pa.RecordBatch], limit: int) -> Iterator[tuple[str, pa.RecordBatch]]:
    for batch in batches:
        numbers = batch.column("number").to_pylist()
        rows = batch.append_column("weight", pa.array([n / 2 for n in numbers], pa.float32()))
        yield from part("smalls", rows, [None if n <= limit else "large" for n in numbers], key="id")


def write_shard(path: Path, *numbers: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    none = pa.nulls(len(numbers), pa.string())
    columns = {"key": none, "url": none, "caption": [str(n) for n in numbers], "jpg": none.cast(pa.binary())}
    pq.write_table(pa.table(columns), path)


def config(folder: Path, *, storage: str = "parquet", **settings: Any) -> Config:
    tree = {"output": f"{folder}/out", "pairs": {"path": f"{folder}/in/*.parquet"}, "storage": {"format": storage}}
    return from_tree({**tree, **settings}, "a test", sections_of=lambda names: {"small": Small.Settings})


def toys(settings: Config, spark: Any, *outside: Stage, read: Read | None = None) -> Pipeline:
    return Pipeline(settings, arrange([read or Read(), Total()], outside), lambda: spark)


def worked(states: list[StageState]) -> dict[str, int]:
    """Units that each stage worked on."""
    return {s.stage.name: len(s.to_do) for s in states}


def content(pipeline: Pipeline) -> dict[str, list[Any]]:
    """Rows of every table as a reader without Spark finds them, sorted; rejects with stage and unit."""
    found: dict[str, list[Any]] = {}
    for table in (*pipeline.tables.catalogue.tables, "rejects"):
        path = pipeline.tables.path(table)
        if pipeline.tables.storage.format == "delta":
            from deltalake import DeltaTable

            rows = pa.table(DeltaTable(path).to_pyarrow_table()).to_pylist()
        else:
            rows = ds.dataset(path, format="parquet", partitioning="hive").to_table().to_pylist()
        found[table] = sorted((sorted(r.items()) for r in rows), key=repr)
    return found
