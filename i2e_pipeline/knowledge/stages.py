"""Knowledge base: which entities are there, what are they called, and how likely does a name mean each?

knowledge_base  Reads  the Wikidata dump · popularity   Writes  kb/entities · kb/names   Rejects  reasons of
                                                                                          wikidata/reasons.py
surfaces        Reads  kb/names · kb/entities · anchors Writes  kb/surfaces
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.schemas import TABLES
from i2e_pipeline.engine.stage import Plan, Run, Stage, StageError
from i2e_pipeline.engine.tables import WHOLE, Commit, Counting, Kernel, Written, pass_on
from wikidata import knowledge_base as wikidata
from wikidata.filters import FILTERS
from wikidata.items import read_items
from wikidata.priors import SurfaceLimits
from wikidata.sources import read_anchors, read_popularity

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def _content(path: str | None, setting: str) -> str | None:
    """What a source file holds, in one word."""
    if path is None:
        return None
    try:
        return digest([files.fingerprint(f.path) for f in files.find((path,), "")])
    except I2EError as error:
        raise StageError(f"knowledge_base.{setting}: {error}") from None


@contextmanager
def _said_of(setting: str) -> Iterator[None]:
    """`wikidata` knows no setting, and raises what Python has for a file that is missing."""
    try:
        yield
    except FileNotFoundError as error:
        raise StageError(f"knowledge_base.{setting}: {error}") from None


class KnowledgeBase(Stage):
    name, job, does, rows_are = "knowledge_base", "build_knowledge_base", "read the dump", "dump lines"
    after = ()
    writes = ("kb/entities", "kb/names")
    scope = "whole"

    def settings(self, config: Config) -> dict[str, Any]:
        kb = config.knowledge_base
        if kb.dump is None:
            raise StageError("knowledge_base.dump is not set: name a Wikidata JSON dump (.json, .json.bz2)")
        return {
            "dump": _content(kb.dump, "dump"),
            "popularity": _content(kb.popularity, "popularity"),
            **kb.fingerprint_of("languages", "skip"),
        }

    def carry_out(self, run: Run, unit: str) -> Commit:
        started = time.monotonic()
        tables, kb = run.tables, run.config.knowledge_base
        assert kb.dump is not None
        with _said_of("dump"):
            lines = wikidata.read_dump(run.spark, kb.dump)
        languages, filters = tuple(kb.languages), {k: r for k, r in FILTERS.items() if r.value in kb.skip}
        raw = tables.write(
            lines,
            lambda: partial(_raw_tables, languages=languages, filters=filters),
            self.name,
            unit,
            ("kb/raw_entities", "kb/raw_names"),
        )
        read = {
            t: run.spark.read.schema(tables.spark_schema(t)).parquet(files.join(raw.staging, t))
            for t in ("kb/raw_entities", "kb/raw_names")
        }
        entities, names = read["kb/raw_entities"], read["kb/raw_names"]
        settled = []
        if _has_duplicates(entities):
            entities, names, duplicates = wikidata.without_duplicates(entities, names)
            settled = [self._write(run, "rejects", duplicates)]
        if kb.popularity is not None:
            with _said_of("popularity"):
                entities = wikidata.with_popularity(entities, read_popularity(run.spark, kb.popularity))
        # In the order of entity_id, part after part: link lays the context out in one pass.
        in_order = entities.select(*TABLES["kb/entities"].names).orderBy("entity_id")
        written = [
            self._write(run, "kb/entities", in_order),
            self._write(run, "kb/names", names.select(*TABLES["kb/names"].names)),
            *settled,
        ]
        rows = sum(f.rows for f in written[0].files["kb/entities"])
        counted = Written(raw.staging, {"rejects": raw.files["rejects"]}, raw.rows_in, rows, raw.rejected)
        return self.conclude(run, unit, [counted, *written], started)

    def _write(self, run: Run, table: str, rows: DataFrame) -> Written:
        tables = () if table == "rejects" else (table,)
        made = run.tables.write(rows, lambda: partial(pass_on, table), self.name, WHOLE, tables)
        return made.only(table)


def _has_duplicates(entities: DataFrame) -> bool:
    """Does any id stand twice? A dump that was written whole has none, and needs no settling."""
    from pyspark.sql import functions as F

    counts = entities.agg(F.count("entity_id").alias("rows"), F.countDistinct("entity_id").alias("ids")).first()
    return counts is not None and counts["rows"] != counts["ids"]


def _raw_tables(batches: Iterator[pa.RecordBatch], **options: Any) -> Iterator[tuple[str, pa.RecordBatch]]:
    names = {"entities": "kb/raw_entities", "names": "kb/raw_names", "rejects": "rejects"}
    for table, batch in read_items(batches, **options):
        yield names[table], batch


class Surfaces(Stage):
    name, job, does, rows_are = "surfaces", "build_knowledge_base", "group names, compute priors", "surface forms"
    after = ("knowledge_base",)
    writes = ("kb/surfaces",)
    scope = "whole"

    def settings(self, config: Config) -> dict[str, Any]:
        kb = config.knowledge_base
        return {"anchors": _content(kb.anchors, "anchors"), **kb.fingerprint_of("max_candidates")}

    def plan(self, run: Run, unit: str) -> Plan:
        kb = run.config.knowledge_base
        made = run.committed("knowledge_base")
        with _said_of("anchors"):
            anchors = None if kb.anchors is None else read_anchors(run.spark, kb.anchors)
        surfaces = wikidata.surfaces(
            run.tables.read("kb/names", made),
            run.tables.read("kb/entities", made),
            anchors=anchors,
            limits=SurfaceLimits(max_candidates=kb.max_candidates),
        )

        def make_kernel() -> Kernel:
            return partial(pass_on, "kb/surfaces")

        return Plan(
            surfaces, make_kernel, ("kb/surfaces",), Counting(passed_table="kb/surfaces", passed_key=("normal_form",))
        )
