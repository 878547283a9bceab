"""The index that a training starts from, made where its dataset was: by the workers of the cluster that published."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from i2e_pipeline.core.errors import first_line
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.workers import on_workers, tasks_for
from i2e_pipeline.train import indexed
from i2e_pipeline.train.index_making import FILES_AT_ONCE, Together, alone

_MANY_FILES = 64
"""That this process reads by itself: seconds on a disk, some ten in a store."""
_MOST_SHARES = 256
"""Each answers with up to a bit a class and some thousand images: together 170 MB with 3 million classes, of which
Spark lets a driver take a gigabyte (spark.driver.maxResultSize)."""

log = logging.getLogger(__name__)


def keep_training_index(pipeline: Pipeline) -> str | None:
    """Where the index of the published dataset lies: made if it is not there for this state of it.

    None where that failed, with a warning: the dataset is whole without it, and the first training makes it.
    """

    def by(files: int) -> Together:
        """The workers where it is much, else this process."""
        if files <= _MANY_FILES:
            return alone
        spark = pipeline.tables.spark
        shares = min(_MOST_SHARES, tasks_for(spark, files, 4 * FILES_AT_ONCE))

        def together(work: Callable[[int, int], Any]) -> list[Any]:
            return on_workers(spark, lambda number: work(number, shares), range(shares), shares)

        return together

    try:
        return indexed.keep(pipeline.tables.path("i2e"), pipeline.config.train, by)
    except Exception as error:  # Spark's too
        log.warning("no index for trainings was made, the first one will make it: %s", first_line(error))
        return None
