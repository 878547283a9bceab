"""`i2e count-anchors`: from Wikipedia's pages and Wikidata's dump to the file that `knowledge_base.anchors` reads.

Reads    --pages, pages-articles.xml.bz2 of one Wikipedia or more · knowledge_base.dump · --redirects, SQL tables
Writes   --output: surface, qid, count, unlinked · beside it `_<name>.rejects.tsv`: pages that could not be read

Texts are gone through twice: once as XML, of which links and running text stay in a folder beside the output, and once
for the names that links have. That folder is about 0.35 of the unpacked XML's size, and goes at the end.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files, machine
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine import cluster
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.shipping import Shipped, ship
from i2e_pipeline.extract.gazetteer import Gazetteer, build_of, findable
from i2e_pipeline.extract.occurrences import occurrences
from i2e_pipeline.knowledge.stages import PARTIAL, files_of, said_of
from wikidata import source_files
from wikidata.anchors import PageReason, Site, site_of
from wikidata.source_files import Source, recognised
from wikidata.surface import inadmissible, normal_forms

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

_FEW = 0.05
"""Share of malformed pages from which on a dump is hardly whole."""


class AnchorsError(I2EError, ValueError):
    """No anchors can be counted; the message says why, and the remedy."""


@dataclass(frozen=True)
class Counted:
    """What was made of the pages."""

    pages: dict[str, dict[str, int]]
    """By wiki, how many pages were what: "article", or a `PageReason`."""
    links: int
    """In running text, to articles."""
    to_items: int
    """Of these, those that lead to an item."""
    rows: int
    """Of the file."""
    looked_for: int
    """Normal forms of names whose occurrences without a link were counted."""
    rejects: str | None
    """The file of malformed pages, where there is one."""

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def count_anchors(
    pipeline: Pipeline,
    pages: Sequence[str],
    output: str,
    languages: Sequence[str] = (),
    redirects: Sequence[str] = (),
    min_links: int = 1,
) -> Counted:
    """Write the anchors of Wikipedia's pages to `output`, whole or not at all.

    pages      files, folders or globs
    languages  of the Wikipedias whose files are read; (): all
    redirects  SQL dumps of `page` and `redirect` of these Wikipedias, in place of what their pages say
    min_links  surfaces with fewer links are not looked for in the texts, and their `unlinked` is empty
    Raises AnchorsError where no link leads to an item, StageError for a source that is not what it should be.
    """
    config = pipeline.config
    if config.knowledge_base.dump is None:
        raise AnchorsError(
            "knowledge_base.dump is not set: name the Wikidata dump that says which page is which item, "
            "--set knowledge_base.dump=latest-all.json.bz2"
        )
    if min_links < 1:
        raise AnchorsError(f"--min-links {min_links} is not allowed (a whole number ≥ 1)")
    if output.lower().endswith((".xz", ".lz4", ".zip", ".7z")):
        raise AnchorsError(f"--output {output}: of compressed files .gz, .bz2 and .zst are written: take one of them")
    if files.is_folder(output):
        raise AnchorsError(f"--output {output} is a folder: name a file")
    wikis = wikis_of(pages, languages)
    with said_of("knowledge_base.dump"):
        dump = recognised(files_of(config.knowledge_base.dump), source_files.DUMP, files.open_filesystem)
    tables = _tables(redirects, [site.name for site, _ in wikis])
    name = output.rpartition("/")[2]
    staging = files.join(files.folder_of(output) or ".", f"_{name}.{uuid.uuid4().hex[:12]}")
    spark = pipeline.tables.spark
    reads = [("--pages", wikis[0][1][0].path), ("knowledge_base.dump", dump[0].path)]
    cluster.check(spark, config, [("--output", files.folder_of(output) or ".")], reads)
    counting = _Counting(spark, config, staging)
    try:
        return counting.count(wikis, dump, tables, output, min_links)
    finally:
        files.remove(staging)
        files.remove(counting.names)


def wikis_of(pages: Sequence[str], languages: Sequence[str]) -> list[tuple[Site, list[Source]]]:
    """The files of each Wikipedia, in the order of their names."""
    with said_of("--pages"):
        found = recognised([f for path in pages for f in files_of(path)], source_files.PAGES, files.open_filesystem)
    by_site: dict[str, tuple[Site, list[Source]]] = {}
    for source in found:
        site = site_of(source_files.head_of(source), source.path)
        if site is None:
            raise AnchorsError(
                f"--pages: {source.path} does not say of which Wikipedia it is: take it whole from "
                "dumps.wikimedia.org, or call it as there, enwiki-….xml.bz2"
            )
        by_site.setdefault(site.name, (site, []))[1].append(source)
    wanted = {name: both for name, both in by_site.items() if not languages or both[0].language in languages}
    there = ", ".join(sorted(site.language for site, _ in by_site.values()))
    for language in languages:
        if language not in {site.language for site, _ in wanted.values()}:
            raise AnchorsError(f"--languages: no file of --pages is in {language}; they are in {there}")
    for name in sorted(by_site.keys() - wanted.keys()):
        log.info("%s is left out: --languages does not name it", name)
    return [wanted[name] for name in sorted(wanted)]


def _tables(paths: Sequence[str], sites: Sequence[str]) -> list[tuple[Source, str]]:
    """SQL dumps with the wikis that they are of. Each wiki has both tables, or none."""
    from wikidata.wiki_sql import table_and_site

    if not paths:
        return []
    with said_of("--redirects"):
        sources = recognised([f for path in paths for f in files_of(path)], source_files.SQL, files.open_filesystem)
    found: list[tuple[Source, str]] = []
    held: set[tuple[str, str]] = set()
    for source in sources:
        told = table_and_site(source_files.head_of(source), source.path)
        if told is None:
            raise AnchorsError(
                f"--redirects: {source.path} is no table `page` or `redirect`, or does not say of which Wikipedia: "
                "call it as on dumps.wikimedia.org, enwiki-…-redirect.sql.gz"
            )
        if told[1] in sites:
            held.add(told)
            found.append((source, told[1]))
    for site in sites:
        for table in ("page", "redirect"):
            if (table, site) not in held:
                raise AnchorsError(f"--redirects: the table `{table}` of {site} is not among them: name it, too")
    return found


class _Counting:
    """The steps of a count, and the folder in which each leaves what it made."""

    def __init__(self, spark: SparkSession, config: Config, staging: str) -> None:
        self.spark, self.config, self.staging = spark, config, staging
        self.partial = config.knowledge_base.allow_partial
        # Mapped by the workers of this machine: beside what else is staged, or where that is remote, on this machine.
        self.names = (
            files.open_filesystem(staging)[1] + "/gazetteer"
            if files.is_local(staging)
            else str(machine.scratch("anchors") / uuid.uuid4().hex)
        )

    def kept(self, frame: DataFrame, name: str) -> DataFrame:
        folder = files.for_spark(files.join(self.staging, name))
        frame.write.mode("overwrite").parquet(folder)
        return self.spark.read.schema(frame.schema).option(*files.AS_NAMED).parquet(folder)

    def batches(self, name: str) -> Iterator[pa.RecordBatch]:
        """The rows of what was kept, on the driver, some at a time."""
        folder = files.join(self.staging, name)
        for file in sorted(f.path for f in files.list_files(folder) if f.path.endswith(".parquet")):
            filesystem, inner = files.open_filesystem(files.join(folder, file))
            with filesystem.open_input_file(inner) as stream:
                yield from pq.ParquetFile(stream).iter_batches(65_536)

    def count(
        self,
        wikis: Sequence[tuple[Site, list[Source]]],
        dump: Sequence[Source],
        tables: Sequence[tuple[Source, str]],
        output: str,
        min_links: int,
    ) -> Counted:
        from pyspark.sql import functions as F

        from wikidata import link_counting

        pages = self._pages(wikis)
        kinds = self._kinds(pages, wikis)
        rejects = self._write_rejects(pages, kinds, output)
        titles = self._titles(dump, [site.name for site, _ in wikis])
        with said_of("--redirects"):
            led = link_counting.redirects_of_tables(self.spark, tables) if tables else None
            found = link_counting.redirects_of_pages(pages) if led is None else led
            redirects = link_counting.followed(found, self.kept)
        links = self.kept(link_counting.links_of(pages), "links")
        linked = self.kept(link_counting.linked(links, link_counting.targets(titles, redirects, pages)), "linked")
        all_links, to_items = (_sum(frame, "count") for frame in (links, linked))
        if not to_items:
            named = ", ".join(site.name for site, _ in wikis)
            raise AnchorsError(
                f"none of the {all_links:,} links of {named} leads to an item: "
                + (
                    f"{self.config.knowledge_base.dump} has no sitelinks of {named}; name a Wikidata dump that has, "
                    "in knowledge_base.dump"
                    if titles.isEmpty()
                    else "the dump in knowledge_base.dump has pages of it, but none of those; is it a part of Wikidata?"
                )
            )
        names, looked_for = self._names(linked, min_links)
        unlinked = self._unlinked(pages, names)
        rows = linked.join(unlinked, on="surface", how="left").select("surface", "entity_id", "count", "unlinked")
        in_order = rows.orderBy("surface", F.desc("count"), "entity_id")
        written = self._write(in_order, output)
        return Counted(kinds, all_links, to_items, written, looked_for, rejects)

    def _pages(self, wikis: Sequence[tuple[Site, list[Source]]]) -> DataFrame:
        from pyspark.sql import DataFrame

        from wikidata.link_counting import read_pages

        read = [
            read_pages(self.spark, sources, site, allow_partial=self.partial, for_spark=files.for_spark)
            for site, sources in wikis
        ]
        with said_of("--pages", PARTIAL):
            return self.kept(reduce(DataFrame.unionByName, read), "pages")

    def _kinds(self, pages: DataFrame, wikis: Sequence[tuple[Site, list[Source]]]) -> dict[str, dict[str, int]]:
        """How many pages of each wiki are what; what looks wrong is said. Raises AnchorsError where none is an
        article."""
        from pyspark.sql import functions as F

        what = F.coalesce("reason", F.lit(_ARTICLE)).alias("what")
        ends = F.count_if(F.col("detail").contains("</mediawiki>")).alias("ends")
        told = pages.groupBy("site", what).agg(F.count(F.lit(1)).alias("pages"), ends).collect()
        kinds: dict[str, dict[str, int]] = {site.name: {} for site, _ in wikis}
        for row in sorted(told):
            kinds[row.site][row.what] = row.pages
        for site, sources in wikis:
            whole = sum(row.ends for row in told if row.site == site.name and row.what == PageReason.FRAME.value)
            if whole < len(sources):
                log.warning(
                    "--pages: %d of the %d files of %s do not end with </mediawiki>: they are cut short; download them "
                    "again", len(sources) - whole, len(sources), site.name,
                )  # fmt: skip
            _judge(site, sources, kinds[site.name])
        return kinds

    def _write_rejects(self, pages: DataFrame, kinds: Mapping[str, Mapping[str, int]], output: str) -> str | None:
        """The file of the malformed pages; None where there is none, and then no older one stays."""
        from pyspark.sql import functions as F

        path = files.join(files.folder_of(output) or ".", f"_{output.rpartition('/')[2]}.rejects.tsv")
        reasons = [r.value for r in PageReason if r.malformed]
        if not any(counts.get(reason) for counts in kinds.values() for reason in reasons):
            files.remove(path)
            return None
        malformed = pages.where(F.col("reason").isin(reasons))
        wanted = malformed.select("site", "reason", "title", "detail").orderBy("site", "reason", "title", "detail")
        self._write(wanted, path)
        return path

    def _titles(self, dump: Sequence[Source], sites: Sequence[str]) -> DataFrame:
        """TITLES of the dump. Raises StageError where what was read can hardly be a dump."""
        from pyspark.sql import functions as F

        from wikidata import knowledge_base, link_counting

        lines = knowledge_base.read_dump(self.spark, dump, allow_partial=self.partial, for_spark=files.for_spark)
        with said_of("knowledge_base.dump", PARTIAL):
            read = self.kept(link_counting.read_titles(lines, sites), "titles")
            told = read.where("reason is not null").groupBy("reason").agg(F.sum("lines").alias("lines")).collect()
            counts = {row.reason: row.lines for row in told}
            items = counts.pop("item", 0)
            # The brackets are the knowledge base's to weigh: what lacks here is a few titles.
            doubt = source_files.doubt(source_files.Read(items, counts, 0, 0), dump)
            if doubt and not (self.partial and items):
                raise source_files.SourceError(doubt)
        return read.where("reason is null").select("site", "title", "entity_id")

    def _names(self, linked: DataFrame, min_links: int) -> tuple[DataFrame, int]:
        """surface, normal_form, links of the names that are looked for, and how many normal forms these have."""
        from pyspark.sql import functions as F

        by_surface = linked.groupBy("surface").agg(F.sum("count").alias("links")).where(F.col("links") >= min_links)
        names = self.kept(
            by_surface.mapInArrow(_with_forms, "surface string, links bigint, normal_form string"), "names"
        )
        self.kept(names.select("normal_form").distinct(), "forms")
        about = build_of((batch.column(0).to_pylist() for batch in self.batches("forms")), self.names)
        return names, about["names"]

    def _unlinked(self, pages: DataFrame, names: DataFrame) -> DataFrame:
        """surface, unlinked: of each name that was looked for. A spelling that is no link's counts for the one of its
        normal form that most links have."""
        from pyspark.sql import functions as F

        shipped = ship(self.spark, self.names, self.staging, self.config.session.shared_folders)
        texts = pages.where(F.col("reason").isNull()).select("text")
        stands = texts.mapInArrow(partial(_occurrences, shipped=shipped), "spelled string, count bigint")
        spelled = self.kept(stands.groupBy("spelled").agg(F.sum("count").alias("count")), "spelled")
        formed = spelled.mapInArrow(_formed, "spelled string, count bigint, normal_form string")
        best = names.groupBy("normal_form").agg(F.min(F.struct(-F.col("links"), "surface")).alias("best"))
        own = names.select(F.col("surface").alias("spelled"), F.lit(True).alias("is_name"))
        meant = formed.join(own, on="spelled", how="left").join(best, on="normal_form", how="inner")
        surface = F.when(F.col("is_name"), F.col("spelled")).otherwise(F.col("best.surface")).alias("surface")
        counted = meant.select(surface, "count").groupBy("surface").agg(F.sum("count").alias("unlinked"))
        whole = names.select("surface").join(counted, on="surface", how="left")
        return whole.select("surface", F.coalesce("unlinked", F.lit(0)).cast("bigint").alias("unlinked"))

    def _write(self, in_order: DataFrame, path: str) -> int:
        """Write rows, as they stand, as a TSV with a header; returns their number. It is whole or not there."""
        blocks = in_order.mapInArrow(_as_lines, "rows bigint, block binary")
        header = "\t".join(_HEADERS.get(name, name) for name in in_order.columns)
        written = 0
        with files.fresh_stream(path) as raw, pa.output_stream(raw, compression=files.compression(path)) as stream:
            stream.write(f"{header}\n".encode())
            for row in blocks.toLocalIterator():
                stream.write(bytes(row.block))
                written += row.rows
        return written


_ARTICLE = "article"
_HEADERS = {"entity_id": "qid"}
_UNSPLIT = r"[\x00-\x1f\x7f]+"


def _judge(site: Site, sources: Sequence[Source], kinds: Mapping[str, int]) -> None:
    """Say what of a wiki's pages is malformed. Raises AnchorsError where it has no article."""
    malformed = {r.value: n for r in PageReason if r.malformed and (n := kinds.get(r.value, 0))}
    said = ", ".join(f"{n:,} {reason}" for reason, n in malformed.items())
    if not kinds.get(_ARTICLE):
        there = ", ".join(f"{n:,} {what}" for what, n in kinds.items()) or "nothing"
        raise AnchorsError(
            f"--pages: {sources[0].path} has no article ({there}): take pages-articles.xml.bz2 of {site.name}"
        )
    if malformed:
        pages = sum(n for what, n in kinds.items() if what != PageReason.FRAME.value)
        much = " Is the dump whole?" if sum(malformed.values()) > _FEW * pages else ""
        log.warning("--pages: of %d pages of %s some could not be read (%s).%s", pages, site.name, said, much)


def _sum(frame: DataFrame, column: str) -> int:
    from pyspark.sql import functions as F

    row = frame.agg(F.coalesce(F.sum(column), F.lit(0)).alias("sum")).first()
    assert row is not None
    return int(row["sum"])


def _formed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Adds the normal form of the first column."""
    for batch in batches:
        names = [*batch.schema.names, "normal_form"]
        yield pa.RecordBatch.from_arrays([*batch.columns, normal_forms(batch.column(0))], names)


def _with_forms(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same of surfaces that can be found in texts."""
    for batch in _formed(batches):
        forms = batch.column("normal_form").to_pylist()
        admissible = [inadmissible(form) is None for form in forms]
        yield batch.filter(pc.and_(pa.array(admissible, pa.bool_()), pa.array(findable(forms))))


def _occurrences(batches: Iterator[pa.RecordBatch], shipped: Shipped) -> Iterator[pa.RecordBatch]:
    yield from occurrences(batches, Gazetteer(shipped.local()))


def _as_lines(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows as lines of a TSV; null is empty, and an `entity_id` is written as Wikidata does."""
    for batch in batches:
        if not batch.num_rows:
            continue
        columns = []
        for field, column in zip(batch.schema, batch.columns, strict=True):
            texts = pc.fill_null(column.cast(pa.string()), "")
            if field.name == "entity_id":
                texts = pc.binary_join_element_wise("Q", texts, "")
            columns.append(pc.replace_substring_regex(texts, _UNSPLIT, " ") if column.type == pa.string() else texts)
        lines = pc.binary_join_element_wise(*columns, "\t").to_pylist()
        block = "".join(f"{line}\n" for line in lines).encode()
        yield pa.record_batch({"rows": pa.array([len(lines)], pa.int64()), "block": pa.array([block], pa.binary())})
