"""Knowledge base: which entities are there, what are they called, and how likely does a name mean each?

knowledge_base  Reads  the Wikidata dump · popularity · importance   Writes  kb/entities · kb/names · kb/redirects ·
                       · redirects · kb/entities of before                   kb/changes
                                                                     Rejects  reasons of wikidata/reasons.py
surfaces        Reads  kb/names · kb/entities · kb/redirects · anchors   Writes  kb/surfaces

Made anew over an older one, `knowledge_base` says what has changed (kb/changes). Ids are Wikidata's and stay; those of
merged items lead to their targets (kb/redirects), and so do the rows of other files that name them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, KnowledgeBaseConfig
from i2e_pipeline.engine import sharing
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.stage import Made, Plan, Run, Stage, StageError
from i2e_pipeline.engine.tables import WHOLE, Counting, Failed, Kernel, Written, pass_on
from wikidata import source_files
from wikidata.filters import FILTERS
from wikidata.items import read_items
from wikidata.priors import WEIGHTS, PriorWeights, SurfaceLimits
from wikidata.reasons import SENTENCES
from wikidata.schemas import BRACKETS, CHANGES, ENTITIES, NAMES, RAW_ENTITIES, RAW_NAMES, REDIRECTS, SURFACES
from wikidata.types import TYPES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from wikidata.sources import SourceName

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


def weights_of(kb: KnowledgeBaseConfig) -> PriorWeights:
    """Those that were fitted, but for what the settings say."""
    return replace(WEIGHTS, **kb.priors.model_dump(exclude_none=True))


def with_weights(found: dict[str, Any], kb: KnowledgeBaseConfig, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """The settings of a fingerprint with those weights of the priors that are not as fitted, whether or not the others
    are written out: `Stage.weighs` holds the fitted ones."""
    own = asdict(weights_of(kb))
    kept = (n for n in own if f"knowledge_base.priors.{n}" not in leave_out)
    changed = {n: own[n] for n in kept if own[n] != getattr(WEIGHTS, n)}
    others = {name: value for name, value in found.items() if name != "priors"}
    return others | ({"priors": changed} if changed else {})


_KEPT = "_refresh"
"""Folder of the changes of a knowledge base that takes the place of another one, until it has taken it."""
PARTIAL = ", or set knowledge_base.allow_partial=true to take what there is"
"""The way out of a source that is not whole."""
_AGAIN = f"Download it again{PARTIAL}"


class KnowledgeBase(Stage):
    name, job, does, rows_are = "knowledge_base", "build_knowledge_base", "read the Wikidata dump", "dump lines"
    scope, version = "whole", 5
    tables = {
        "kb/entities": Table(ENTITIES, key=("entity_id",), holds="the items of the dump that can be labels"),
        "kb/names": Table(NAMES, holds="what each entity is called, and where that was found"),
        "kb/redirects": Table(
            REDIRECTS, key=("entity_id",), holds="ids of items that were merged, and the entities that they are now"
        ),
        "kb/changes": Table(
            CHANGES,
            key=("entity_id",),
            holds="entities that were added, changed, removed or merged since the knowledge base that this one "
            "replaced; none where there was none",
        ),
    }
    scratch = {
        "kb/raw_entities": Table(RAW_ENTITIES),
        "kb/raw_names": Table(RAW_NAMES),
        "kb/raw_brackets": Table(BRACKETS),
        "kb/raw_redirects": Table(REDIRECTS),
    }
    passes = Passed("kb/entities", ("entity_id",))
    reasons = SENTENCES
    in_funnel = per_pair = False
    sections = ("knowledge_base",)
    leaves_out = {
        "knowledge_base.path": "where it lies says nothing of what is in it",
        "knowledge_base.anchors": "the stage `surfaces` makes something of them; here their rows are only looked at",
        **{
            f"knowledge_base.{key}": "the stage `surfaces` applies it"
            for key in ("max_candidates", "priors.links", "priors.smoothing")
        },
    }

    def settings(self, config: Config) -> dict[str, Any]:
        if config.knowledge_base.dump is None and config.knowledge_base.path is None:
            raise StageError(
                "knowledge_base.dump is not set: name a Wikidata JSON dump (.json, .json.bz2), or knowledge_base.path, "
                "where another output has left what it made of one"
            )
        return with_weights(super().settings(config), config.knowledge_base, self.leaves_out)

    def weighs(self, config: Config) -> dict[str, Any]:
        return {"types": TYPES.fingerprint, "priors": asdict(WEIGHTS)}

    def shared_in(self, config: Config) -> str | None:
        return config.knowledge_base.path

    def takes_what_is_there(self, config: Config) -> bool:
        return config.knowledge_base.dump is None

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made], None, None]:
        from wikidata import knowledge_base as wikidata
        from wikidata import merges
        from wikidata.sources import read_anchors, read_importance, read_popularity, read_redirects

        (unit,) = units
        tables, kb = run.tables, run.config.knowledge_base
        opened = files.open_filesystem
        assert kb.dump is not None
        with said_of("knowledge_base.dump"):
            dump = source_files.recognised(files_of(kb.dump), source_files.DUMP, opened)
        if not kb.allow_partial and (doubt := source_files.unclosed(dump)):
            raise StageError(f"knowledge_base.dump: {kb.dump}: {doubt}. {_AGAIN}")
        # A fault of theirs is found before the hours that the dump takes.
        popularity: dict[SourceName, DataFrame] = {}
        titles = None
        if kb.popularity is not None:
            with said_of("knowledge_base.popularity"):
                popularity["popularity"] = read_popularity(run.spark, files_of(kb.popularity), opened)
        if kb.importance is not None:
            with said_of("knowledge_base.importance"):
                popularity["importance"], titles = read_importance(
                    run.spark,
                    files_of(kb.importance),
                    kb.languages,
                    lambda said: log.warning("knowledge_base.importance: %s", said),
                    opened,
                )
        if kb.anchors is not None:
            with said_of("knowledge_base.anchors"):
                read_anchors(run.spark, files_of(kb.anchors), lambda said: None, opened)
        of_file = None
        if kb.redirects is not None:
            with said_of("knowledge_base.redirects"):
                of_file = read_redirects(run.spark, files_of(kb.redirects), opened)
                merges.refuse_contradictions(of_file, f"{merges.OF_A_FILE} of {kb.redirects}")
        lines, counting = None, Counting()
        if in_tasks := wikidata.read_in_tasks(run.spark, dump, kb.allow_partial):
            lines, counting = in_tasks[0], Counting(unfold=in_tasks[1])
        else:
            lines = wikidata.read_dump(run.spark, dump, allow_partial=kb.allow_partial, for_spark=files.for_spark)
        languages, filters = tuple(kb.languages), {k: r for k, r in FILTERS.items() if r.value in kb.skip}
        with said_of("knowledge_base.dump", "" if kb.allow_partial else PARTIAL):
            raw = tables.write(
                lines,
                lambda: partial(_raw_tables, languages=languages, filters=filters),
                self.name,
                unit,
                tuple(self.scratch),
                counting,
            )
        read = {t: self._staged(run, raw, t) for t in self.scratch}
        try:
            self._refuse_doubtful(run, raw, read["kb/raw_brackets"], dump)
            redirects, led = self._redirects(run, raw, read, of_file)
            if led is not None:
                popularity = {setting: merges.followed(rows, led) for setting, rows in popularity.items()}
                titles = merges.followed(titles, led) if titles is not None else None
            for setting, rows in {} if kb.allow_partial else popularity.items():
                _refuse_strangers(setting, str(getattr(kb, setting)), rows, read["kb/raw_entities"])
        except StageError:
            files.remove(raw.staging)
            raise
        entities, names = read["kb/raw_entities"], read["kb/raw_names"]
        settled = []
        if _has_duplicates(entities):
            entities, names, duplicates = wikidata.without_duplicates(entities, names)
            settled = [self._write(run, "rejects", duplicates)]
        if popularity:
            entities = wikidata.with_popularity(entities, *popularity.values())
        if titles is not None:
            names = wikidata.with_names(names, titles, entities)
        # In the order of entity_id, part after part: link lays the context out in one pass.
        in_order = wikidata.with_types(wikidata.with_fame(entities, weights_of(kb)))
        made = self._write(run, "kb/entities", in_order)
        changes, counts = self._changes(run, self._staged(run, made, "kb/entities"), led)
        written = [made, self._write(run, "kb/names", names.select(*NAMES.names)), *settled, redirects, changes]
        rows_out = sum(f.rows for f in made.files["kb/entities"])
        facts = {"changes": counts} if counts is not None else {}
        yield [self.conclude(run, unit, [replace(raw.only("rejects"), rows_out=rows_out), *written], facts=facts)]
        files.remove(run.tables.path(_KEPT))

    def _redirects(
        self, run: Run, raw: Written, read: Mapping[str, DataFrame], of_file: DataFrame | None
    ) -> tuple[Written, DataFrame | None]:
        """kb/redirects, and its rows; None where it has none."""
        from wikidata import merges

        if of_file is None and not sum(f.rows for f in raw.files["kb/raw_redirects"]):
            return self._empty(run, "kb/redirects"), None
        of_dump, entities = read["kb/raw_redirects"], read["kb/raw_entities"]
        if of_file is None:
            setting, rows = "knowledge_base.dump", merges.led(of_dump, entities, merges.OF_A_DUMP)
        else:
            with said_of("knowledge_base.dump"):
                merges.led(of_dump, entities, merges.OF_A_DUMP).count()
            # Neither contradicts itself, so that a row of the file less mends what they say together.
            path = run.config.knowledge_base.redirects
            remedy = f"lines of the dump say a part of it, and rows of {path} the rest: {merges.OF_A_FILE} there"
            setting, rows = "knowledge_base.redirects", merges.led(merges.together(of_dump, of_file), entities, remedy)
        with said_of(setting):
            written = self._write(run, "kb/redirects", rows)
        some = any(f.rows for f in written.files["kb/redirects"])
        return written, self._staged(run, written, "kb/redirects") if some else None

    def _changes(
        self, run: Run, entities: DataFrame, redirects: DataFrame | None
    ) -> tuple[Written, dict[str, int] | None]:
        """kb/changes against the knowledge base that lies there, and the number of each; None where there is none.

        Its files go before those of the new one take their place. So the changes are kept beside them until these
        count: a run that was killed between has nothing left to compare with.
        """
        from wikidata import merges

        older = self._older(run)
        kept = run.tables.path(_KEPT, self.fingerprint(run, WHOLE))
        if older is not None:
            columns = [name for name in merges.COMPARED if name in older.columns]
            rows = merges.changes(older, entities, redirects, columns).sortWithinPartitions("entity_id")
        elif files.exists(kept):
            schema = run.tables.spark_schema("kb/changes")
            rows = run.spark.read.schema(schema).option(*files.AS_NAMED).parquet(files.for_spark(kept))
        else:
            return self._empty(run, "kb/changes"), None
        written = self._write(run, "kb/changes", rows)
        if older is not None:
            files.remove(run.tables.path(_KEPT))
            for n, file in enumerate(written.files["kb/changes"]):
                files.copy(files.join(written.staging, "kb/changes", file.path), files.join(kept, f"{n}.parquet"))
        counts = merges.counted(self._staged(run, written, "kb/changes"))
        log.info(
            "%-15s against the one before: %s", self.name, ", ".join(f"{n:,} {change}" for change, n in counts.items())
        )
        return written, counts

    def _older(self, run: Run) -> DataFrame | None:
        """The entities that lie there now, with those columns of today's that they have and that are compared; None
        where there are none, or not all."""
        from wikidata import merges

        tables, commit = run.tables, run.tables.commits(self.name).get(WHOLE)
        if commit is None and (earlier := sharing.earlier(run.tables, self.name)):
            tables, commit = earlier
        if commit is None or not (lying := commit.files.get("kb/entities")):
            return None
        entities = replace(commit, files={"kb/entities": lying})
        if tables.missing_files([entities]):
            return None
        filesystem, path = files.open_filesystem(tables.path("kb/entities", lying[0].path))
        held = pq.read_schema(path, filesystem=filesystem)
        # Of another type is what older code held there.
        columns = [n for n in merges.COMPARED if n in held.names and held.field(n).type == ENTITIES.field(n).type]
        return tables.read("kb/entities", [entities], ["entity_id", *columns])

    def _empty(self, run: Run, table: str) -> Written:
        return run.tables.write_local(iter(()), self.name, WHOLE, (table,)).only(table)

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


def _refuse_strangers(setting: SourceName, path: str, rows: DataFrame, entities: DataFrame) -> None:
    """Raise StageError where a source knows none of the entities. Its first rows show it otherwise, at no cost.

    rows   of the source, with `entity_id`
    """
    from pyspark.sql import functions as F

    from wikidata.sources import first_ids

    first = first_ids(files_of(path), setting, files.open_filesystem)
    if not entities.where(F.col("entity_id").isin(first)).isEmpty():
        return
    if rows.join(entities.select("entity_id"), "entity_id", "leftsemi").isEmpty():
        such = f", such as Q{first[0]} of its first row" if first else ""
        raise StageError(
            f"knowledge_base.{setting}: {path} knows none of the dump's entities{such}: it is of another dump or no "
            f"file of Wikidata's ids{PARTIAL}"
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
    scope, version = "whole", 6
    after = ("knowledge_base",)
    reads = ("kb/names", "kb/entities", "kb/redirects")
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
        for key in ("dump", "popularity", "importance", "redirects", "allow_partial", "languages", "skip")
    } | {"knowledge_base.path": "where it lies says nothing of what is in it"}

    def settings(self, config: Config) -> dict[str, Any]:
        return with_weights(super().settings(config), config.knowledge_base)

    def weighs(self, config: Config) -> dict[str, Any]:
        return asdict(WEIGHTS)

    def shared_in(self, config: Config) -> str | None:
        return config.knowledge_base.path

    def takes_what_is_there(self, config: Config) -> bool:
        return config.knowledge_base.dump is None

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made | Failed], None, None]:
        with said_of("knowledge_base.anchors"):
            yield from super().carry_out(run, units)

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from wikidata import knowledge_base as wikidata
        from wikidata import merges
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
            if run.rows("kb/redirects"):
                anchors = merges.followed(anchors, run.read("kb/redirects"))
            if not kb.allow_partial:
                _refuse_strangers("anchors", kb.anchors, anchors, entities)
        surfaces = wikidata.surfaces(
            run.read("kb/names"),
            entities,
            anchors=anchors,
            settings=weights_of(kb),
            limits=SurfaceLimits(max_candidates=kb.max_candidates),
        )

        def make_kernel() -> Kernel:
            return partial(pass_on, "kb/surfaces")

        return Plan(surfaces, make_kernel)
