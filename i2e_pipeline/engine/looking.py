"""Looks at input files that are too many, or too large, for the driver: Spark's workers plan them.

A plan reads a footer of each Parquet file and every header of a tar, which in an object store is all of the tar. What a
look finds is small; the index of a tar is written where it belongs by whoever looked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from i2e_pipeline.core import files
from i2e_pipeline.engine.workers import on_workers, tasks_for
from i2e_pipeline.inputs.formats import FORMATS
from i2e_pipeline.inputs.shard import Source

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MANY_FILES = 50_000
"""Files that the driver looks at by itself: some half a minute on a disk, some minutes in a store."""
MANY_BYTES = 20 << 30
"""Bytes that it reads for that by itself: some minutes."""
_READ_AT_ONCE = 64
_FILES_PER_TASK = 64

Found = TypeVar("Found")
Looks = Callable[[Callable[[Source, bool], Found], Sequence[Source], Sequence[bool]], list[Found]]
"""(what looks at one file and, where asked, at its first images; files; which have their images looked at) to what was
found of each, in their order. Raises the first error that a look raises."""


def by_threads(look: Callable[[Source, bool], Found], sources: Sequence[Source], images: Sequence[bool]) -> list[Found]:
    """All by this process."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return list(pool.map(look, sources, images))


def by_workers(start_spark: Callable[[], SparkSession]) -> Looks[Found]:
    """By the workers where it is much, else by this process; Spark is started only then."""

    def looks(look: Callable[[Source, bool], Found], sources: Sequence[Source], images: Sequence[bool]) -> list[Found]:
        if len(sources) < MANY_FILES and _bytes_read(sources) < MANY_BYTES:
            return by_threads(look, sources, images)
        return _by_spark(start_spark(), look, sources, images)

    return looks


def _bytes_read(sources: Sequence[Source]) -> int:
    whole = (s for s in sources if FORMATS[s.format].looks_at_all and not files.is_local(s.path))
    return sum(s.info.size for s in whole)


def _by_spark(
    spark: SparkSession,
    look: Callable[[Source, bool], Found],
    sources: Sequence[Source],
    images: Sequence[bool],
) -> list[Found]:
    def of(one: tuple[Source, bool]) -> Found:
        return look(*one)

    given = list(zip(sources, images, strict=True))
    return on_workers(spark, of, given, tasks_for(spark, len(given), _FILES_PER_TASK))
