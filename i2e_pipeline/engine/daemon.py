"""Spark's Python daemon with what every worker imports already imported: workers fork from it and start at once.

Without it each worker spends seconds on pandas, pyarrow and pydantic before its first row. Nothing here may start a
thread or touch a GPU: neither survives a fork.

Spark's worker forgets what it knows of folders before each task, for files that were added since. Of Spark's own zip it
would read the list of names again, once for each package that was imported from there: 0.3 s of CPU a task
(benchmarks/units.py). Zips do not change under a running application, and one that is added is new to the importer.
"""

import gc
import zipimport

import numpy
import pandas
import pyarrow.compute
import pyarrow.parquet
from pyspark import daemon
from pyspark.sql import types

from i2e_pipeline.core import config, ids, schemas
from i2e_pipeline.engine import tables
from i2e_pipeline.inputs import shards
from wikidata import surface

_IMPORTED = (numpy, pandas, pyarrow.compute, pyarrow.parquet, types, config, ids, schemas, shards, tables, surface)


def keep_zips() -> None:
    """Let `importlib.invalidate_caches` pass zips over."""
    zipimport.zipimporter.invalidate_caches = lambda self: None  # type: ignore[method-assign]


if __name__ == "__main__":
    keep_zips()
    gc.freeze()
    daemon.manager()
