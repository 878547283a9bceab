"""Work that is too much for the driver and whose results are small: done by Spark's workers, brought back in order."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from i2e_pipeline.core.errors import I2EError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_ANSWER = pa.schema([("n", pa.int64()), ("found", pa.binary()), ("wrong", pa.binary())])

Given = TypeVar("Given")
Found = TypeVar("Found")


def tasks_for(spark: SparkSession, count: int, at_once: int) -> int:
    """So many tasks that every core gets some and none has more than `at_once` of `count` pieces of work."""
    cores = spark.sparkContext.defaultParallelism
    return min(count, max(3 * cores, -(-count // at_once)))


def on_workers(spark: SparkSession, work: Callable[[Given], Found], given: Sequence[Given], tasks: int) -> list[Found]:
    """What `work` made of each, in their order. The first I2EError that it raised is raised here; other errors end the
    job. All that is given and found is pickled."""
    if not given:
        return []
    table = pa.table(
        {"n": pa.array(range(len(given)), pa.int64()), "given": pa.array(map(pickle.dumps, given), pa.binary())}
    )

    def kernel(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for n, one in zip(batch.column("n").to_pylist(), batch.column("given").to_pylist(), strict=True):
                found = wrong = None
                try:
                    found = pickle.dumps(work(pickle.loads(one)))
                except I2EError as error:
                    wrong = _carried(error)
                yield pa.RecordBatch.from_pylist([{"n": n, "found": found, "wrong": wrong}], _ANSWER)

    rows = spark.createDataFrame(table).repartition(tasks)  # in turn: by a hash of n some tasks would have none
    answers = rows.mapInArrow(kernel, "n long, found binary, wrong binary").toArrow().sort_by("n")
    if wrong := [one for one in answers.column("wrong").to_pylist() if one is not None]:
        raise pickle.loads(wrong[0])
    return [pickle.loads(one) for one in answers.column("found").to_pylist()]


def _carried(error: I2EError) -> bytes:
    """An error as bytes; of a class that does not come back from them, its message is all that is left."""
    try:
        carried = pickle.dumps(error)
        pickle.loads(carried)
    except Exception:
        return pickle.dumps(I2EError(str(error)))
    return carried
