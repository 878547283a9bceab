"""Extract: from input rows to distinct texts, and from texts to mentions.

pairs    Reads   the input shards' key, url and text columns   Writes  pairs · texts   Rejects  null_text · empty_text ·
                                                                                                no_letters
extract  Reads   texts · kb/surfaces                           Writes  mentions        Rejects  no_mention

A unit's tables are self-contained: each distinct text of a unit is worked on once, and no stage looks at another
unit's texts to spare work. That would cost a scan of up to 10^10 text ids per unit. What it could save is very little
beside the scoring of images (docs/architecture.md).
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
from i2e_pipeline.core.schemas import MENTIONS, PAIRS, TEXTS, Reason
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.stage import Plan, Run, Stage
from i2e_pipeline.engine.tables import Commit, Counting, Kernel, pass_on
from i2e_pipeline.extract import gazetteer, recognizer
from i2e_pipeline.extract.mentions import find_mentions
from i2e_pipeline.extract.text import read_texts
from i2e_pipeline.inputs.shards import text_columns

_INPUT_ROWS_PER_TASK = 200_000
_TEXTS_PER_TASK = 20_000


class Pairs(Stage):
    name, job, does, rows_are = "pairs", "extract_entities", "read the input, clean the alt-texts", "pairs"
    tables = {
        "pairs": Table(
            PAIRS, key=("pair_id",), holds="where a pair lies (shard, row) and which text it has", narrowable=True
        ),
        "texts": Table(
            TEXTS,
            key=("text_id",),
            holds="each distinct cleaned text, its script, and how many pairs of the unit have it",
            narrowable=True,
        ),
    }
    passes = Passed("pairs", ("pair_id",))
    reasons = {
        Reason.NULL_TEXT: "The row has no alt-text at all, so nothing proposes an entity.",
        Reason.EMPTY_TEXT: (
            "Nothing is left of the alt-text once markup, white space and control characters are gone."
        ),
        Reason.NO_LETTERS: "The alt-text has no letter in any script: only digits, prices or punctuation.",
    }
    sections = ("pairs", "extract")
    leaves_out = {
        "pairs.path": "units are named by the content of their files",
        "pairs.files_per_unit": "units are named by the content of their files",
        "pairs.image_column": "stages that see images read it",
        "pairs.truth_column": "it is for precision and recall alone",
        "pairs.mentioned_column": "it is for precision and recall alone",
        "pairs.slice_columns": "they are for precision and recall alone",
        **{
            f"extract.{key}": "the stage `extract` applies it"
            for key in ("recognizer", "gazetteer", "batch_size", "min_link_probability", "max_mentions")
        },
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
        max_characters = config.extract.max_characters

        def make_kernel() -> Kernel:
            def kernel(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
                return read_texts(read_shards(batches, *columns), max_characters)

            return kernel

        counting = Counting(_rows_of_files, self.passes)
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
    name, job, does, rows_are = "extract", "extract_entities", "find what the texts name", "texts"
    after = ("surfaces", "pairs")
    reads = ("texts", "kb/surfaces")
    tables = {
        "mentions": Table(
            MENTIONS,
            key=("text_id", "start", "end"),
            holds="spans that may name an entity, and who found them: ner, gazetteer or both",
            narrowable=True,
        )
    }
    passes = Passed("mentions", ("text_id",))
    reasons = {Reason.NO_MENTION: "Neither the recogniser nor the gazetteer finds a name in the text."}
    sections = ("extract",)
    leaves_out = {
        "extract.max_characters": "the stage `pairs` cuts the texts",
        "extract.batch_size": "a text's mentions do not depend on its neighbours",
    }

    def settings(self, config: Config) -> dict[str, Any]:
        return {**super().settings(config), "recognizer": recognizer.fingerprint(config.extract.recognizer)}

    def prepare(self, run: Run) -> None:
        """Compile the gazetteer, once per knowledge base and gate."""
        if run.config.extract.gazetteer and not os.path.exists(self._gazetteer(run)):
            columns = ["normal_form", "candidates", "forms", "link_probability", "gazetteer"]
            surfaces = run.tables.batches("kb/surfaces", run.commits_of("kb/surfaces"), columns)
            gazetteer.build(surfaces, self._gazetteer(run), run.config.extract.min_link_probability)

    def _gazetteer(self, run: Run) -> str:
        gate = f"{run.config.extract.min_link_probability:g}"
        name = f"{run.fingerprints[run.writer('kb/surfaces').name][:16]}-{gate}-format{gazetteer.FORMAT}"
        return run.tables.local_path("kb", "gazetteer", name)

    def rows_to_do(self, run: Run, unit: str) -> int:
        return run.rows("texts", unit)

    def plan(self, run: Run, unit: str) -> Plan:
        config = run.config.extract
        expected = self.rows_to_do(run, unit)
        texts = run.read("texts", unit, ["text_id", "text"])
        model = None
        if config.recognizer != recognizer.BLANK:
            model = run.ship(str(recognizer.model_folder(config.recognizer)))
        names = run.ship(self._gazetteer(run)) if config.gazetteer else None

        def make_kernel() -> Kernel:
            return partial(
                find_mentions,
                recognizer=recognizer.load(model.local() if model else recognizer.BLANK, config.batch_size),
                gazetteer=gazetteer.Gazetteer(names.local()) if names else None,
                max_mentions=config.max_mentions,
            )

        tasks = max(1, math.ceil(expected / _TEXTS_PER_TASK))
        return Plan(texts.repartition(tasks), make_kernel, rows_expected=expected)
