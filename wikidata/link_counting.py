"""Wikipedia's links on Spark: pages to links, redirects to their ends, titles to items, counts by surface and item.

Reads    pages-articles.xml.bz2 of any Wikipedias · a Wikidata JSON dump · page.sql.gz and redirect.sql.gz, which may
         take the place of the XML's redirects
Writes   pages (PAGES) · titles (TITLES) · links (surface, entity_id, count)

    pages      = read_pages(spark, sources, site)          a row per page; its links, its text, or why not
    titles     = the Wikidata dump's sitelinks, without disambiguation pages and what else no link means
    redirects  = followed(redirects of the pages or of the SQL tables)
    links      = linked(links_of(pages), targets(titles, redirects, pages))

No function collects a page or a group, and nothing depends on partitions: sums are of integers, of what is equal the
smaller wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from wikidata import anchors, wiki_sql
from wikidata.anchors import LINES, PAGES, SEPARATOR, TITLES, PageReason, Site
from wikidata.knowledge_base import read_dump
from wikidata.source_files import Source

Kept = Callable[[DataFrame, str], DataFrame]
"""Writes a frame under a name and gives it back as it was written, so that nothing is worked out twice."""

MAX_HOPS = 8
"""Redirects that are followed one after the other. MediaWiki follows one, and its robots mend the others."""


def read_pages(
    spark: SparkSession,
    sources: Sequence[Source],
    site: Site,
    partitions: int | None = None,
    allow_partial: bool = False,
    for_spark: Callable[[str], str] = str,
) -> DataFrame:
    """PAGES of the dump files of one wiki; the arguments are `knowledge_base.read_dump`'s."""
    records = read_dump(spark, sources, partitions, allow_partial, for_spark, SEPARATOR)
    return records.mapInArrow(partial(anchors.read_pages, site=site), from_arrow_schema(PAGES))


def read_titles(lines: DataFrame, sites: Sequence[str]) -> DataFrame:
    """TITLES of these wikis with the columns of LINES behind: rows of the one kind are null in the other's columns."""
    return lines.mapInArrow(partial(_titles, sites=tuple(sites)), from_arrow_schema(TITLES_AND_LINES))


TITLES_AND_LINES = pa.schema([f.with_nullable(True) for f in (*TITLES, *LINES)])


def _titles(batches: Iterable[pa.RecordBatch], sites: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for _, batch in anchors.read_titles(batches, sites):
        held = set(batch.schema.names)
        columns = [batch.column(f.name) if f.name in held else pa.nulls(len(batch), f.type) for f in TITLES_AND_LINES]
        yield pa.RecordBatch.from_arrays(columns, schema=TITLES_AND_LINES)


def redirects_of_pages(pages: DataFrame) -> DataFrame:
    """REDIRECTS that the pages themselves say."""
    return pages.where(F.col("redirect").isNotNull()).select("site", "title", "redirect")


def redirects_of_tables(spark: SparkSession, sources: Sequence[tuple[Source, str]]) -> DataFrame:
    """REDIRECTS of SQL dumps of the tables `page` and `redirect`, each with the name of its wiki; a task reads one."""
    rows = [
        spark.range(0, 1, 1, 1).mapInArrow(partial(wiki_sql.read, source=source, site=site), wiki_sql.SPARK_ROWS)
        for source, site in sources
    ]
    both = reduce(DataFrame.unionByName, rows)
    pages = both.where("table = 'page' AND namespace = 0").select("site", "id", "title")
    led = both.where("table = 'redirect' AND namespace = 0").select("site", "id", F.col("title").alias("redirect"))
    return pages.join(led, on=["site", "id"], how="inner").select("site", "title", "redirect")


def followed(redirects: DataFrame, kept: Kept) -> DataFrame:
    """Where redirects lead, one after the other: site, title, redirect, and `hop`, the number of those that were
    followed. Circles lead nowhere, and chains are followed for `MAX_HOPS`."""
    by_title = redirects.where("title != redirect").groupBy("site", "title").agg(F.min("redirect").alias("redirect"))
    first = kept(by_title, "redirects")
    onwards = first.select("site", F.col("title").alias("redirect"), F.col("redirect").alias("further"))
    hops = [first.withColumn("hop", F.lit(1))]
    for hop in range(2, MAX_HOPS + 1):
        further = hops[-1].join(onwards, on=["site", "redirect"], how="inner").where("title != further")
        led = kept(further.select("site", "title", F.col("further").alias("redirect")), f"redirects_{hop}")
        if led.isEmpty():
            break
        hops.append(led.withColumn("hop", F.lit(hop)))
    return reduce(DataFrame.unionByName, hops)


def targets(titles: DataFrame, redirects: DataFrame, pages: DataFrame) -> DataFrame:
    """site, target, entity_id: what a link to a title means.

    A redirect that has an item of its own means that; another one means the first item on its way.
    """
    disambiguations = pages.where(F.col("reason") == PageReason.DISAMBIGUATION.value).select("site", "title").distinct()
    named = titles.select("site", "title", "entity_id").join(disambiguations, on=["site", "title"], how="left_anti")
    own = named.select("site", F.col("title").alias("target"), "entity_id", F.lit(0).alias("hop"))
    led = redirects.select("site", F.col("title").alias("target"), F.col("redirect").alias("title"), "hop")
    led = led.join(named, on=["site", "title"], how="inner").select("site", "target", "entity_id", "hop")
    nearest = F.min(F.struct("hop", "entity_id")).alias("nearest")
    found = own.unionByName(led).groupBy("site", "target").agg(nearest)
    return found.select("site", "target", F.col("nearest.entity_id").alias("entity_id"))


def links_of(pages: DataFrame) -> DataFrame:
    """site, surface, target, count: each distinct link of a wiki."""
    each = pages.where(F.col("reason").isNull()).select("site", F.explode("links").alias("link"))
    return each.groupBy("site", "link.surface", "link.target").agg(F.count(F.lit(1)).alias("count"))


def linked(links: DataFrame, meant: DataFrame) -> DataFrame:
    """surface, entity_id, count: how often a link with this text leads to this item, over all wikis.

    links   of `links_of`      meant   of `targets`
    Links to pages without an item are left out.
    """
    found = links.join(meant, on=["site", "target"], how="inner")
    return found.groupBy("surface", "entity_id").agg(F.sum("count").alias("count"))
