"""Knowledge base: which entities are there, what are they called, and how likely does a name mean each?

knowledge_base  Reads  the Wikidata dump · popularity   Writes  kb/entities · kb/names   Rejects  reasons of
                                                                                          wikidata/reasons.py
surfaces        Reads  kb/names · kb/entities · anchors Writes  kb/surfaces
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.stage import Made, Plan, Run, Stage, StageError
from i2e_pipeline.engine.tables import WHOLE, Failed, Kernel, Written, pass_on
from wikidata import source_files
from wikidata.filters import FILTERS
from wikidata.items import read_items
from wikidata.priors import WEIGHTS, SurfaceLimits
from wikidata.reasons import SENTENCES
from wikidata.schemas import BRACKETS, ENTITIES, NAMES, RAW_ENTITIES, RAW_NAMES, SURFACES
from wikidata.types import TYPES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger(__name__)


@contextmanager
def said_of(setting: str, remedy: str = "") -> Iterator[None]:
    """Names the setting where a source is at fault: `wikidata` knows no settings. It raises as Python and Spark do."""
    try:
        yield
    except (FileNotFoundError, source_files.SourceError) as error:
        raise StageError(f"{setting}: {error}{remedy}") from None
    except Exception as error:
        said = source_files.fault(error)
        if said is None:
            raise
        raise StageError(f"{setting}: {said}{remedy}") from None


def files_of(path: str) -> list[str]:
    """The files that a setting names, as every process of this machine finds them."""
    found = [f.path for f in files.find((path,), "")]
    return [files.open_filesystem(path)[1] if files.is_local(path) else path for path in found]


PARTIAL = ", or set knowledge_base.allow_partial=true to take what there is"
"""The way out of a source that is not whole."""
_AGAIN = f"Download it again{PARTIAL}"


class KnowledgeBase(Stage):
    name, job, does, rows_are = "knowledge_base", "build_knowledge_base", "read the Wikidata dump", "dump lines"
    scope, version = "whole", 5
    tables = {
        "kb/entities": Table(ENTITIES, key=("entity_id",), holds="the items of the dump that can be labels"),
        "kb/names": Table(NAMES, holds="what each entity is called, and where that was found"),
    }
    scratch = {
        "kb/raw_entities": Table(RAW_ENTITIES),
        "kb/raw_names": Table(RAW_NAMES),
        "kb/raw_brackets": Table(BRACKETS),
    }
    passes = Passed("kb/entities", ("entity_id",))
    reasons = SENTENCES
    in_funnel = per_pair = False
    sections = ("knowledge_base",)
    leaves_out = {
        "knowledge_base.anchors": "the stage `surfaces` makes something of them; here their rows are only looked at",
        "knowledge_base.max_candidates": "the stage `surfaces` applies it",
    }

    def settings(self, config: Config) -> dict[str, Any]:
        if config.knowledge_base.dump is None:
            raise StageError("knowledge_base.dump is not set: name a Wikidata JSON dump (.json, .json.bz2)")
        return super().settings(config)

    def weighs(self, config: Config) -> dict[str, Any]:
        return {"types": TYPES.fingerprint, "priors": asdict(WEIGHTS)}

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made], None, None]:
        from wikidata import knowledge_base as wikidata
        from wikidata.sources import read_anchors, read_popularity

        (unit,) = units
        tables, kb = run.tables, run.config.knowledge_base
        opened = files.open_filesystem
        assert kb.dump is not None
        with said_of("knowledge_base.dump"):
            dump = source_files.recognised(files_of(kb.dump), source_files.DUMP, opened)
        if not kb.allow_partial and (doubt := source_files.unclosed(dump)):
            raise StageError(f"knowledge_base.dump: {kb.dump}: {doubt}. {_AGAIN}")
        # A fault of theirs is found before the hours that the dump takes.
        popularity = None
        if kb.popularity is not None:
            with said_of("knowledge_base.popularity"):
                popularity = read_popularity(run.spark, files_of(kb.popularity), opened)
        if kb.anchors is not None:
            with said_of("knowledge_base.anchors"):
                read_anchors(run.spark, files_of(kb.anchors), lambda said: None, opened)
        lines = wikidata.read_dump(run.spark, dump, allow_partial=kb.allow_partial, for_spark=files.for_spark)
        languages, filters = tuple(kb.languages), {k: r for k, r in FILTERS.items() if r.value in kb.skip}
        with said_of("knowledge_base.dump", "" if kb.allow_partial else PARTIAL):
            raw = tables.write(
                lines,
                lambda: partial(_raw_tables, languages=languages, filters=filters),
                self.name,
                unit,
                tuple(self.scratch),
            )
        read = {t: self._staged(run, raw, t) for t in self.scratch}
        try:
            self._refuse_doubtful(run, raw, read["kb/raw_brackets"], dump)
            if popularity is not None and not kb.allow_partial:
                _refuse_strangers("popularity", str(kb.popularity), popularity, read["kb/raw_entities"])
        except StageError:
            files.remove(raw.staging)
            raise
        entities, names = read["kb/raw_entities"], read["kb/raw_names"]
        settled = []
        if _has_duplicates(entities):
            entities, names, duplicates = wikidata.without_duplicates(entities, names)
            settled = [self._write(run, "rejects", duplicates)]
        if popularity is not None:
            entities = wikidata.with_popularity(entities, popularity)
        # In the order of entity_id, part after part: link lays the context out in one pass.
        in_order = wikidata.with_types(wikidata.with_fame(entities))
        written = [
            self._write(run, "kb/entities", in_order),
            self._write(run, "kb/names", names.select(*NAMES.names)),
            *settled,
        ]
        rows = sum(f.rows for f in written[0].files["kb/entities"])
        yield [self.conclude(run, unit, [replace(raw.only("rejects"), rows_out=rows), *written])]

    def _staged(self, run: Run, raw: Written, table: str) -> DataFrame:
        folder = files.for_spark(files.join(raw.staging, table))
        reader = run.spark.read.schema(run.tables.spark_schema(table)).option(*files.AS_NAMED)
        return reader.parquet(folder)

    def _refuse_doubtful(
        self, run: Run, raw: Written, brackets: DataFrame, dump: Sequence[source_files.Source]
    ) -> None:
        """Raise StageError where what was read can hardly be a whole dump."""
        from pyspark.sql import functions as F

        counted = brackets.agg(F.count_if("opens").alias("opens"), F.count_if("closes").alias("closes")).first()
        assert counted is not None
        entities = sum(f.rows for f in raw.files["kb/raw_entities"])
        read = source_files.Read(entities, dict(raw.rejected), counted["opens"], counted["closes"])
        doubt = source_files.doubt(read, dump)
        setting = run.config.knowledge_base
        if doubt is None:
            if some := source_files.invalid(read):
                log.warning("knowledge_base.dump: %s: %s; they are in the table `rejects`", setting.dump, some)
            return
        if not entities:
            raise StageError(f"knowledge_base.dump: {setting.dump}: {doubt}")
        if not setting.allow_partial:
            raise StageError(f"knowledge_base.dump: {setting.dump}: {doubt}. {_AGAIN}")
        log.warning(
            "knowledge_base.dump: %s: %s; what there is was taken (knowledge_base.allow_partial)", setting.dump, doubt
        )

    def _write(self, run: Run, table: str, rows: DataFrame) -> Written:
        tables = () if table == "rejects" else (table,)
        made = run.tables.write(rows, lambda: partial(pass_on, table), self.name, WHOLE, tables)
        return made.only(table)


def _refuse_strangers(
    setting: Literal["popularity", "anchors"], path: str, rows: DataFrame, entities: DataFrame
) -> None:
    """Raise StageError where a source knows none of the entities. Its first rows show it otherwise, at no cost.

    rows   of the source, with `entity_id`
    """
    from pyspark.sql import functions as F

    from wikidata.sources import first_ids

    first = first_ids(files_of(path), setting, files.open_filesystem)
    if not entities.where(F.col("entity_id").isin(first)).isEmpty():
        return
    if rows.join(entities.select("entity_id"), "entity_id", "leftsemi").isEmpty():
        raise StageError(
            f"knowledge_base.{setting}: {path} knows none of the dump's entities, such as Q{first[0]} of its first "
            f"row: it is of another dump or no file of Wikidata's ids{PARTIAL}"
        )


def _has_duplicates(entities: DataFrame) -> bool:
    """Whether any id stands twice. A dump that was written whole has no such id, and nothing must be settled."""
    from pyspark.sql import functions as F

    counts = entities.agg(F.count("entity_id").alias("rows"), F.countDistinct("entity_id").alias("ids")).first()
    return counts is not None and counts["rows"] != counts["ids"]


def _raw_tables(batches: Iterator[pa.RecordBatch], **options: Any) -> Iterator[tuple[str, pa.RecordBatch]]:
    for table, batch in read_items(batches, **options):
        yield table if table == "rejects" else f"kb/raw_{table}", batch


class Surfaces(Stage):
    name, job, rows_are = "surfaces", "build_knowledge_base", "surface forms"
    does = "give every name its entities, with priors"
    scope, version = "whole", 5
    after = ("knowledge_base",)
    reads = ("kb/names", "kb/entities")
    tables = {
        "kb/surfaces": Table(
            SURFACES,
            key=("normal_form",),
            holds="each name with the entities that it may mean, their priors, and whether the gazetteer takes it",
        )
    }
    passes = Passed("kb/surfaces", ("normal_form",))
    in_funnel = per_pair = False
    sections = ("knowledge_base",)
    leaves_out = {
        f"knowledge_base.{key}": "the stage `knowledge_base` applies it"
        for key in ("dump", "popularity", "allow_partial", "languages", "skip")
    }

    def weighs(self, config: Config) -> dict[str, Any]:
        return asdict(WEIGHTS)

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made | Failed], None, None]:
        with said_of("knowledge_base.anchors"):
            yield from super().carry_out(run, units)

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from wikidata import knowledge_base as wikidata
        from wikidata.sources import read_anchors

        kb = run.config.knowledge_base
        anchors, entities = None, run.read("kb/entities")
        if kb.anchors is not None:
            anchors = read_anchors(
                run.spark,
                files_of(kb.anchors),
                lambda said: log.warning("knowledge_base.anchors: %s", said),
                files.open_filesystem,
            )
            if not kb.allow_partial:
                _refuse_strangers("anchors", kb.anchors, anchors, entities)
        surfaces = wikidata.surfaces(
            run.read("kb/names"),
            entities,
            anchors=anchors,
            limits=SurfaceLimits(max_candidates=kb.max_candidates),
        )

        def make_kernel() -> Kernel:
            return partial(pass_on, "kb/surfaces")

        return Plan(surfaces, make_kernel)
