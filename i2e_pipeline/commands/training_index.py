"""The index that a training starts from, made where its dataset was: by the workers of the cluster that published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.workers import on_workers, tasks_for
from i2e_pipeline.train import indexed
from i2e_pipeline.train.index_making import FILES_AT_ONCE, Together, alone

_MANY_FILES = 64
"""That this process reads by itself: seconds on a disk, some ten in a store."""


def keep_training_index(pipeline: Pipeline) -> str:
    """Where the index of the published dataset lies: made if it is not there for this state of it."""

    def by(files: int) -> Together:
        """The workers where it is much, else this process."""
        if files <= _MANY_FILES:
            return alone
        spark = pipeline.tables.spark
        shares = tasks_for(spark, files, 4 * FILES_AT_ONCE)

        def together(work: Callable[[int, int], Any]) -> list[Any]:
            return on_workers(spark, lambda number: work(number, shares), range(shares), shares)

        return together

    return indexed.keep(pipeline.tables.path("i2e"), pipeline.config.train, by)
