"""Folders that every worker needs as files: models, the gazetteer, vectors. Shipped once per machine, never pickled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from i2e_pipeline.core.config import digest
from i2e_pipeline.core.machine import scratch

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Shipped:
    """A folder as a worker finds it."""

    path: str
    shipped: bool

    def local(self) -> str:
        """The folder's path on this machine; called in the worker."""
        if not self.shipped:
            return self.path
        from pyspark import SparkFiles

        return SparkFiles.get(self.path)


def ship(spark: SparkSession, folder: str, name: str | None = None) -> Shipped:
    """Make a local folder or file readable by every worker. In local mode workers read it where it lies."""
    folder = os.path.abspath(folder)
    master = spark.sparkContext.master or "local"
    if master == "local" or master.startswith("local["):
        return Shipped(folder, shipped=False)
    name = name or os.path.basename(folder)
    # Two models may be called the same: Spark tells files apart by their last name alone.
    link = os.path.join(scratch("shipped"), f"{name}-{digest(folder)[:8]}")
    if not os.path.islink(link):
        os.symlink(folder, link)
    spark.sparkContext.addFile(link, recursive=os.path.isdir(folder))
    return Shipped(os.path.basename(link), shipped=True)
