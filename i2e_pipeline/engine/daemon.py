"""Spark's Python daemon with what every worker imports already imported: workers fork from it and start at once.

Without it each worker spends seconds on pandas, pyarrow and pydantic before its first row. Nothing here may start a
thread or touch a GPU: neither survives a fork.
"""

import gc

import numpy
import pandas
import pyarrow.compute
import pyarrow.parquet
from pyspark import daemon
from pyspark.sql import types

from i2e_pipeline.core import config, ids, schemas
from i2e_pipeline.engine import tables, tasks
from i2e_pipeline.inputs import formats
from wikidata import surface

_IMPORTED = (numpy, pandas, pyarrow.compute, pyarrow.parquet, types, config, ids, schemas, formats, tables, surface)


if __name__ == "__main__":
    tasks.keep_zips()
    gc.freeze()
    daemon.manager()
