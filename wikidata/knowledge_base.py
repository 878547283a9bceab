"""The knowledge base on Spark: read a dump, settle duplicates, join popularity, group names to surfaces.

Reads    a Wikidata JSON dump · what `items.read_items` made of it · popularity, importance and anchors (sources.py)
Writes   entities (ENTITIES) · names (NAMES) · surfaces (SURFACES) · rejects (REJECTS)
Rejects  duplicate_id

No function builds a session, collects rows or depends on partitions: ids decide, and sums are of integers.

    lines               = read_dump(spark, recognised(paths, DUMP))
    raw (three tables)  = lines, mapInArrow with items.read_items           lines = raw entities + rejects
    settled             = without_duplicates(raw entities, raw names)       raw entities = entities + rejects
    entities            = with_types(with_fame(with_popularity(entities, popularity, importance)))
    names               = with_names(names, titles and redirects, entities)
    surfaces            = surfaces(names, entities, anchors=anchors)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from wikidata import priors, types
from wikidata.priors import KINDS, LIMITS, NAME_ROWS, WEIGHTS, PriorWeights, SurfaceLimits
from wikidata.reasons import Reason
from wikidata.schemas import ENTITIES, NAMES, REJECTS, SURFACES
from wikidata.source_files import Source, lines, lines_of_pieces, pieces

SMALL_DUMP = 512 * 2**20
"""Bytes on disk up to which the lines are dealt to all cores by a shuffle; Spark cuts no file below 4 MB."""
PIECE = 128 << 20
"""Bytes of a plain file for one task, at most."""
LEAST_PIECE = 1 << 20


def read_dump(
    spark: SparkSession,
    sources: Sequence[Source],
    partitions: int | None = None,
    allow_partial: bool = False,
    for_spark: Callable[[str], str] = str,
    separator: str = "\n",
) -> DataFrame:
    """The lines of a dump's files (`source_files.recognised`) as `value: binary`, blank ones too.

    partitions     deals the lines to that many; None: small dumps are dealt to the session's parallelism
    allow_partial  of a file that is damaged or cut short, what can be read is taken; without it the job fails, and
                   `source_files.fault` says why
    for_spark      spells a path as Spark is to be told of it
    separator      what ends a line
    Bytes are not validated. bz2 and plain files are read by many tasks. gz, xz and zst, and files whose names say
    something else than their bytes, are read by one task each, which is an hour for a small dump and days for
    Wikidata's; use bz2.
    """
    cut = [for_spark(s.path) for s in sources if s.splittable]
    whole = [s for s in sources if not s.splittable]
    frames = []
    if cut:
        # The files that were listed and no others: nothing in a folder's name is a column.
        reader = spark.read.option("recursiveFileLookup", True).option("ignoreCorruptFiles", allow_partial)
        # Nor is anything in it a wildcard: Spark's own option, since Hadoop's globs take no name with a colon.
        reader = reader.option("__globPaths__", False)
        frames.append(reader.text(cut, lineSep=separator).select(F.col("value").cast("binary").alias("value")))
    if whole:
        numbers = spark.range(0, len(whole), 1, len(whole))
        frames.append(
            numbers.mapInArrow(
                partial(lines, sources=whole, partial=allow_partial, separator=separator.encode()), "value binary"
            )
        )
    read = reduce(DataFrame.unionByName, frames)
    if partitions is None and sum(s.size for s in sources) <= SMALL_DUMP:
        partitions = spark.sparkContext.defaultParallelism
    return read if partitions is None else read.repartition(partitions)


def read_in_tasks(
    spark: SparkSession, sources: Sequence[Source], allow_partial: bool = False
) -> tuple[DataFrame, Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]] | None:
    """Plain files in pieces, a row each, and what makes of such rows the lines of a dump, as `value: binary`; None
    where a file is compressed.

    A task that reads its piece by itself spares its lines the way through Java. There are as many pieces as tasks run
    at once, or more, of at most PIECE bytes.
    """
    if any(source.compression for source in sources):
        return None
    share = -(-sum(source.size for source in sources) // spark.sparkContext.defaultParallelism)
    cut = pieces(sources, min(PIECE, max(share, LEAST_PIECE)))
    return spark.range(0, len(cut), 1, len(cut)), partial(lines_of_pieces, cut=cut, partial=allow_partial)


def without_duplicates(entities: DataFrame, names: DataFrame) -> tuple[DataFrame, DataFrame, DataFrame]:
    """Each id once: of several lines the one of the highest revision, then of the greatest line hash.

    entities  RAW_ENTITIES     names  RAW_NAMES
    Returns   ENTITIES, NAMES of the lines that won, and REJECTS with reason duplicate_id, one for each line that lost:
              rows of `entities` in = entities out + rejects.
    Ids that stand once, all but a handful, take part in one narrow count and an anti-join with that handful.
    """
    twice = entities.groupBy("entity_id").agg(F.count(F.lit(1)).alias("n")).where("n > 1").select("entity_id")
    contested = entities.join(twice, on="entity_id", how="left_semi")
    order = Window.partitionBy("entity_id").orderBy(F.desc("revision"), F.desc("line_id"))
    ranked = contested.withColumn("rank", F.row_number().over(order))
    winners, losers = ranked.where("rank = 1"), ranked.where("rank > 1")
    once = entities.join(twice, on="entity_id", how="left_anti")

    kept = once.select(*ENTITIES.names).unionByName(winners.select(*ENTITIES.names))
    # A line that stands twice to the letter wins and loses: its names stay, once.
    lost = losers.select("line_id").distinct().join(winners.select("line_id"), on="line_id", how="left_anti")
    kept_names = names.join(lost, on="line_id", how="left_anti").select(*NAMES.names)
    detail = F.concat(F.lit("Q"), F.col("entity_id").cast("string"))
    rejects = losers.select(
        F.lit(Reason.DUPLICATE_ID.value).alias("reason"), F.col("line_id").alias("id"), detail.alias("detail")
    )
    return kept, kept_names, rejects.select(*REJECTS.names)


def with_popularity(entities: DataFrame, *sources: DataFrame) -> DataFrame:
    """ENTITIES with `popularity` from each source's POPULARITY; null, unknown, where no source has a row.

    Of one source the number stays as it is. The scales of several have nothing in common, so each is divided by the
    geometric mean of what it knows of these entities, and 1 + popularity becomes the geometric mean of the sources'
    1 + popularity: as if each had its share of the exponent in `priors.weights`. A source that does not know an entity
    is no part of its mean.
    """
    columns = [f"popularity_{n}" for n in range(len(sources))]
    known = entities.drop("popularity")
    for column, source in zip(columns, sources, strict=True):
        best = source.groupBy("entity_id").agg(F.max("popularity").alias(column))
        known = known.join(best, on="entity_id", how="left")
    if len(sources) == 1:
        return known.withColumnRenamed(columns[0], "popularity").select(*ENTITIES.names)
    references = known.agg(*(_geometric_mean(column).alias(f"reference_{column}") for column in columns))
    # 0, too, where a source knows no number above 0.
    logs = (F.coalesce(F.log1p(F.col(c) / F.col(f"reference_{c}")), F.lit(0.0)) for c in columns)
    count = reduce(Column.__add__, (F.col(column).isNotNull().cast("int") for column in columns))
    combined = F.when(count > 0, F.expm1(reduce(Column.__add__, logs) / count))
    return known.crossJoin(F.broadcast(references)).withColumn("popularity", combined).select(*ENTITIES.names)


def with_names(names: DataFrame, more: DataFrame, entities: DataFrame) -> DataFrame:
    """NAMES, and those of `more` that no entity's own names spell, of these entities alone, each once.

    more   NAMES of another source; of two that spell alike the better kind stays (KINDS)
    """
    spelled = ["entity_id", "normal_form", "surface"]
    kind = reduce(lambda rank, k: rank.when(F.col("kind") == k[1], k[0]), enumerate(KINDS), F.when(F.lit(False), -1))
    first = Window.partitionBy(*spelled).orderBy(kind.asc_nulls_last(), "language")
    known = more.join(entities.select("entity_id"), on="entity_id", how="left_semi")
    once = known.withColumn("place", F.row_number().over(first)).where("place = 1")
    new = once.join(names.select(*spelled), on=spelled, how="left_anti")
    return names.select(*NAMES.names).unionByName(new.select(*NAMES.names))


KNOWN = 0.1
"""Share of items with a sitelink below which a dump is taken not to know sitelinks: an extract that left them out. A
third of Wikidata's items have one. Likewise for statements beside the classes of an item, which nearly all have."""


def _fame(entities: DataFrame, settings: PriorWeights) -> DataFrame:
    """entity_id, `fame` of priors.py as a double, and `known`, whether the dump knows sitelinks.

    Statements, of which an image is one, count as none throughout a dump that does not know them (KNOWN), whose classes
    may come from elsewhere.
    """
    further = F.col("statements") > F.size("types") + F.size("parents")
    share = {"sitelinked": F.col("sitelinks") > 0, "described": further}
    shares = [(F.count_if(has) / F.count(F.lit(1))).alias(name) for name, has in share.items()]
    # One row, so that the join broadcasts it.
    whole = F.broadcast(entities.agg(_geometric_mean("popularity").alias("reference"), *shares))
    relative = F.coalesce(F.col("popularity") / F.col("reference"), F.lit(settings.unknown))
    told = F.lit(settings.statements) * F.log1p("statements") + F.lit(settings.image) * F.col("has_image").cast("int")
    fame = (
        F.lit(settings.popularity) * F.log1p(relative)
        + F.lit(settings.sitelinks) * F.log1p("sitelinks")
        + F.when(F.col("described") >= KNOWN, told).otherwise(0.0)
    )
    joined = entities.select(*ENTITIES.names).crossJoin(whole)
    known = (F.col("sitelinked") >= KNOWN).alias("known")
    return joined.select(*(n for n in ENTITIES.names if n != "fame"), fame.alias("fame"), known)


def _geometric_mean(column: str) -> Column:
    """Of the numbers above 0; null where there is none."""
    # As a mean of integers: equal whatever the order of the sum.
    logs = F.when(F.col(column) > 0, F.round(F.ln(column) * 1e6).cast("bigint"))
    return F.exp(F.sum(logs) / F.count(logs) / 1e6)


def with_fame(entities: DataFrame, settings: PriorWeights = WEIGHTS) -> DataFrame:
    """ENTITIES with `fame`: ln of the part of w(e, s) (priors.py) that an entity has by itself, without anchors.

    Null, unknown, throughout a dump that does not know sitelinks (KNOWN): there, having none says nothing.
    """
    known = F.when(F.col("known"), F.col("fame").cast("float"))
    return _fame(entities, settings).withColumn("fame", known).select(*ENTITIES.names)


def with_types(entities: DataFrame) -> DataFrame:
    """ENTITIES with `coarse_type`, `visual` and `name_case` (types.py), in the order of entity_id.

    entities   ENTITIES whose three columns are not yet filled in; read three times
    The classes that other items have, some hundred thousand, go to one task, which walks their graph. What it finds, 9
    bytes a class, goes to the tasks that type the items.
    """
    above = entities.select(F.explode(F.concat("types", "parents")).alias("entity_id")).distinct()
    classes = entities.select("entity_id", "name", "parents").join(above, on="entity_id", how="left_semi")
    found = classes.repartition(1).mapInArrow(types.class_types, from_arrow_schema(types.CLASS_TYPES)).toArrow()
    ids, codes = found.column("class_id").to_numpy(), found.column("code").to_numpy()
    kernel = partial(types.typed, class_ids=ids, codes=codes)
    # Sorted first: a sort samples what it sorts, and would run the kernel twice.
    in_order = entities.select(*ENTITIES.names).orderBy("entity_id")
    return in_order.mapInArrow(kernel, from_arrow_schema(ENTITIES))


def surfaces(
    names: DataFrame,
    entities: DataFrame,
    popularity: DataFrame | None = None,
    anchors: DataFrame | None = None,
    settings: PriorWeights = WEIGHTS,
    limits: SurfaceLimits = LIMITS,
) -> DataFrame:
    """SURFACES: every normal form with its candidates.

    names       NAMES, from the dump or elsewhere; duplicates do no harm
    entities    ENTITIES; names of other entities are left out
    popularity  POPULARITY, instead of the column of `entities`
    anchors     ANCHORS; a surface that no name of the entity spells becomes a name of kind "anchor"
    One join brings to each name what is known of its entity, one shuffle brings the names of a normal form together and
    sorts them, one pass of `priors.surfaces` over the sorted rows does the rest.
    """
    if popularity is not None:
        entities = with_popularity(entities, popularity)
    rows = names.select("normal_form", "surface", "entity_id", "kind", F.lit(0).cast("bigint").alias("count"))
    known = _fame(entities, settings).select("entity_id", "fame")
    unknown = F.lit(None).cast("bigint").alias("unlinked")
    rows = rows.select("*", unknown)
    if anchors is not None:
        unlinked = "unlinked" if "unlinked" in anchors.columns else unknown
        linked = anchors.select("normal_form", "surface", "entity_id", F.lit("anchor").alias("kind"), "count", unlinked)
        rows = rows.unionByName(linked)
    # Links of an entity are its rows' counts together. Asking the anchors a second time would work out their normal
    # forms a second time, which no plan saves: what a kernel puts out cannot be pruned.
    links = F.lit(0).cast("bigint") if anchors is None else F.sum("count").over(Window.partitionBy("entity_id"))
    joined = rows.join(known, on="entity_id", how="inner").withColumn("links", links).select(*NAME_ROWS.names)
    grouped = joined.repartition("normal_form").sortWithinPartitions("normal_form", "entity_id")

    def kernel(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        return priors.surfaces(batches, settings, limits)

    return grouped.mapInArrow(kernel, from_arrow_schema(SURFACES))
