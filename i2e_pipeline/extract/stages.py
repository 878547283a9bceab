"""Extract: from input rows to distinct texts, and from texts to mentions.

pairs    Reads   the input shards' key, url and text columns   Writes  pairs · texts   Rejects  null_text · empty_text ·
                                                                                                no_letters
extract  Reads   texts · kb/surfaces                           Writes  mentions        Rejects  no_mention

A unit's tables are self-contained: each distinct text of a unit is worked on once, and no stage looks at another
unit's texts to spare work. Against all earlier units that would cost a scan of up to 10^10 text ids per unit to save
a share of what is, beside the scoring of images, nothing (docs/architecture.md).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.ids import row_ids
from i2e_pipeline.engine.shipping import ship
from i2e_pipeline.engine.stage import Plan, Run, Stage
from i2e_pipeline.engine.tables import Commit, Counting, Kernel, pass_on
from i2e_pipeline.extract import gazetteer, recognizer
from i2e_pipeline.extract.mentions import find_mentions
from i2e_pipeline.extract.text import read_texts
from i2e_pipeline.inputs.shards import text_columns

_INPUT_ROWS_PER_TASK = 200_000
_TEXTS_PER_TASK = 20_000


class Pairs(Stage):
    name, job, does, rows_are = "pairs", "extract_entities", "read alt-texts", "pairs"
    after = ()
    writes = ("pairs", "texts")

    def settings(self, config: Config) -> dict[str, Any]:
        return {
            **config.pairs.fingerprint_of("key_column", "url_column", "text_column"),
            **config.extract.fingerprint_of("max_characters"),
        }

    def carry_out(self, run: Run, unit: str) -> Commit:
        from pyspark.sql import functions as F

        started = time.monotonic()
        tables, config, shards = run.tables, run.config, run.unit(unit).files
        rows = run.spark.createDataFrame(
            [(f.shard, f.path, bytes.fromhex(f.digest), f.rows) for f in shards],
            "shard int, path string, digest binary, rows long",
        ).repartition(max(1, math.ceil(run.unit(unit).rows / _INPUT_ROWS_PER_TASK)))
        columns = config.pairs.key_column, config.pairs.url_column, config.pairs.text_column

        def make_kernel() -> Kernel:
            def kernel(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
                return read_texts(read_shards(batches, *columns), config.extract.max_characters)

            return kernel

        counting = Counting(rows_of=_rows_of_files, passed_table="pairs", passed_key=("pair_id",))
        read = tables.write(rows, make_kernel, self.name, unit, ("pairs", "texts"), counting)
        seen = run.spark.read.schema(tables.spark_schema("texts")).parquet(files.join(read.staging, "texts"))
        distinct = seen.groupBy("text_id").agg(
            F.first("text").alias("text"), F.first("script").alias("script"), F.sum("pairs").alias("pairs")
        )
        texts = tables.write(distinct, lambda: partial(pass_on, "texts"), self.name, unit, ("texts",))
        staged = [read.only("pairs", "rejects"), texts.only("texts")]
        return self.conclude(run, unit, staged, started, expected=run.unit(unit).rows)


def _rows_of_files(batch: pa.RecordBatch) -> int:
    return int(pc.sum(batch.column("rows")).as_py() or 0)


def read_shards(
    batches: Iterator[pa.RecordBatch], key_column: str | None, url_column: str, text_column: str
) -> Iterator[pa.RecordBatch]:
    """Every row of the files, without its image.

    batches   shard: int32, path: string, digest: binary
    yields    shard: int32, row: int64, pair_id: binary(16), key, url, caption: string or null
    """
    import numpy as np

    for batch in batches:
        for file in batch.to_pylist():
            names = [c for c in (key_column, url_column, text_column) if c]
            for start, columns in text_columns(file["path"], names):
                rows = np.arange(start, start + columns.num_rows)
                key = columns.column(key_column) if key_column else pa.nulls(len(rows))
                yield pa.RecordBatch.from_pydict(
                    {
                        "shard": pa.array(np.full(len(rows), file["shard"], dtype=np.int32)),
                        "row": pa.array(rows),
                        "pair_id": row_ids(file["digest"], rows),
                        "key": key.cast(pa.string()),
                        "url": columns.column(url_column).cast(pa.string()),
                        "caption": columns.column(text_column),
                    }
                )


class Extract(Stage):
    name, job, does, rows_are = "extract", "extract_entities", "find mentions", "texts"
    after = ("surfaces", "pairs")
    writes = ("mentions",)

    def settings(self, config: Config) -> dict[str, Any]:
        return {
            "recognizer": recognizer.fingerprint(config.extract.recognizer),
            **config.extract.fingerprint_of("gazetteer", "min_link_probability", "max_mentions"),
        }

    def prepare(self, run: Run) -> None:
        """Compile the gazetteer, once per knowledge base and gate."""
        if run.config.extract.gazetteer and not os.path.exists(self._gazetteer(run)):
            columns = ["normal_form", "candidates", "forms", "link_probability", "gazetteer"]
            surfaces = run.tables.batches("kb/surfaces", run.committed("surfaces"), columns)
            gazetteer.build(surfaces, self._gazetteer(run), run.config.extract.min_link_probability)

    def _gazetteer(self, run: Run) -> str:
        gate = f"{run.config.extract.min_link_probability:g}"
        name = f"{run.fingerprints['surfaces'][:16]}-{gate}-format{gazetteer.FORMAT}"
        return run.tables.local_path("kb", "gazetteer", name)

    def rows_to_do(self, run: Run, unit: str) -> int:
        return sum(c.rows("texts") for c in run.committed("pairs", unit))

    def plan(self, run: Run, unit: str) -> Plan:
        config = run.config.extract
        expected = self.rows_to_do(run, unit)
        texts = run.tables.read("texts", run.committed("pairs", unit), ["text_id", "text"])
        model = None
        if config.recognizer != recognizer.BLANK:
            model = ship(run.spark, str(recognizer.model_folder(config.recognizer)))
        names = ship(run.spark, self._gazetteer(run)) if config.gazetteer else None

        def make_kernel() -> Kernel:
            return partial(
                find_mentions,
                recognizer=recognizer.load(model.local() if model else recognizer.BLANK, config.batch_size),
                gazetteer=gazetteer.Gazetteer(names.local()) if names else None,
                max_mentions=config.max_mentions,
            )

        counting = Counting(passed_table="mentions", passed_key=("text_id",))
        tasks = max(1, math.ceil(expected / _TEXTS_PER_TASK))
        return Plan(texts.repartition(tasks), make_kernel, ("mentions",), counting, rows_expected=expected)
