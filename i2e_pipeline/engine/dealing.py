"""How rows are dealt to tasks: so many to a task, a small unit or shard whole to one, a large one to several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_SMALLEST = 64
"""A task is never made smaller than this part of its full size, however few rows there are for the cores."""
_TASKS_PER_CORE = 3


class Blocks:
    """Tasks for parts (units, shards) of known sizes: several small ones to a task, in their order; a large one to
    several tasks."""

    def __init__(self, parts: Sequence[tuple[Any, int, int]]) -> None:
        """`parts`: of each its name, its rows, and how many of its rows one task may have."""
        self.first: dict[Any, int] = {}
        self.tasks: dict[Any, int] = {}
        self.size: dict[Any, int] = {}
        self.count = 0
        room = 0.0
        for part, rows, size in parts:
            share = rows / size
            if self.count and share <= room:
                self.first[part] = self.count - 1
                self.tasks[part] = 1
                room -= share
            else:
                self.first[part] = self.count
                self.tasks[part] = blocks = max(1, -(-rows // size))
                self.count += blocks
                room = 1 - share if blocks == 1 else 0.0
            self.size[part] = size

    def task(self, part: Any, row: int) -> int:
        """The task that has a row of a part whose rows are dealt in their order, from 0 to `count` - 1."""
        return self.first[part] + row // self.size[part]

    def by_row(self, rows: DataFrame, part: str = "shard", row: str = "row") -> DataFrame:
        """Rows dealt by their place: a task has rows that follow each other. In a task they are in the order of part
        and row."""
        from pyspark.sql import functions as F

        dealt = self._joined(rows, part).withColumn("_task", F.col("_first") + F.floor(F.col(row) / F.col("_size")))
        return self._repartitioned(dealt, rows.columns, [part, row])

    def by_hash(self, rows: DataFrame, columns: Sequence[str], part: str = "unit") -> DataFrame:
        """Rows dealt by a hash of these columns. In a task they are in the order of parts."""
        from pyspark.sql import functions as F

        drawn = F.pmod(F.xxhash64(*columns), F.col("_tasks")).cast("int")
        dealt = self._joined(rows, part).withColumn("_task", F.col("_first") + drawn)
        return self._repartitioned(dealt, rows.columns, [part])

    def _joined(self, rows: DataFrame, part: str) -> DataFrame:
        """With the numbers of each row's part. As a table and not in the plan: plans of all waves are alike then, and
        Spark compiles one of them."""
        import pyarrow as pa
        from pyspark.sql import functions as F

        names = list(self.first)
        kind = pa.string() if names and isinstance(names[0], str) else pa.int32()
        table = pa.table(
            {
                part: pa.array(names, kind),
                "_first": pa.array([self.first[n] for n in names], pa.int32()),
                "_tasks": pa.array([self.tasks[n] for n in names], pa.int32()),
                "_size": pa.array([self.size[n] for n in names], pa.int64()),
            }
        )
        return rows.join(F.broadcast(rows.sparkSession.createDataFrame(table)), part, how="inner")

    def _repartitioned(self, dealt: DataFrame, columns: Sequence[str], order: Sequence[str]) -> DataFrame:
        from pyspark.sql import functions as F

        by_task = dealt.repartitionById(max(1, self.count), F.col("_task").cast("int"))
        return by_task.select(*columns).sortWithinPartitions(*order)


def task_size(rows: int, full: int, spark: SparkSession) -> int:
    """Rows of a task, at most `full`: less where the rows would leave cores without work."""
    cores = spark.sparkContext.defaultParallelism
    fair = math.ceil(rows / (_TASKS_PER_CORE * cores))
    return max(1, min(full, max(fair, full // _SMALLEST)))


def by_unit(spark: SparkSession, sizes: Mapping[str, int], full: int) -> Blocks:
    """Tasks for units of these sizes."""
    size = task_size(sum(sizes.values()), full, spark)
    return Blocks([(unit, rows, size) for unit, rows in sizes.items()])
