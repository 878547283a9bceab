"""Popularity and anchor counts from files, as Spark reads them.

popularity   `qid,number`, any header: in-degrees, QRank page views, importances; the scale does not matter
anchors      `surface<TAB>qid<TAB>count`, any header: how often a link with this text led to this entity
importance   osm-search's wikimedia_importance: `language<TAB>type<TAB>title<TAB>importance<TAB>wikidata_id`

Fields are split at the separator alone: anchors have quotation marks in them that quote nothing. A row that does not
parse stops the job with the file and the row, since a wrong column would otherwise bend every prior in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from wikidata.schemas import ANCHORS, NAMES
from wikidata.surface import inadmissible, normal_forms, without_qualifier


def read_popularity(spark: SparkSession, path: str) -> DataFrame:
    """Popularity of entities from a file of `qid,number` with a header line (plain, .gz or .bz2).

    Returns POPULARITY, the larger number where an id stands twice.
    Raises  FileNotFoundError now, a Spark error that names file and row when a bad row is read.
    """
    rows = _columns(spark, path, ["qid", "number"], "\t" if ".tsv" in path.rpartition("/")[2] else ",")
    number = F.col("number").try_cast("double")
    good = _is_id("qid") & number.isNotNull() & ~F.isnan(number) & (number >= 0)
    checked = _or_error(good, path, "`qid,number`", ["qid", "number"])
    return rows.select(_entity_id("qid", checked), number.alias("popularity")).groupBy("entity_id").agg(
        F.max("popularity").alias("popularity")
    )  # fmt: skip


def read_anchors(spark: SparkSession, path: str) -> DataFrame:
    """Anchor counts from a file of `surface<TAB>qid<TAB>count` with a header line (plain, .gz or .bz2).

    Returns ANCHORS, one row per (surface, entity); surfaces that are no admissible names (numbers, signs) are left out.
    Raises  FileNotFoundError now, a Spark error that names file and row when a bad row is read.
    """
    rows = _columns(spark, path, ["surface", "qid", "count"], "\t")
    count = F.col("count").try_cast("bigint")
    good = F.col("surface").isNotNull() & _is_id("qid") & count.isNotNull() & (count >= 0)
    checked = _or_error(good, path, "`surface<TAB>qid<TAB>count`", ["surface", "qid", "count"])
    counted = rows.select("surface", _entity_id("qid", checked), count.alias("count"))
    summed = counted.groupBy("surface", "entity_id").agg(F.sum("count").alias("count"))
    return summed.mapInArrow(_with_normal_form, from_arrow_schema(ANCHORS))


def read_importance(spark: SparkSession, path: str, languages: Sequence[str] = ("en",)) -> tuple[DataFrame, DataFrame]:
    """Popularity, and titles and redirects as names, from a file of wikimedia_importance.tsv's five columns with a
    header.

    Returns POPULARITY (the greatest importance of any language) and NAMES (kinds "title" and "redirect", of
    `languages`). Rows without a Wikidata id are left out: the file has them.
    """
    rows = _columns(spark, path, ["language", "type", "title", "importance", "qid"], "\t").where(_is_id("qid"))
    entity_id = F.substring("qid", 2, 20).cast("bigint").alias("entity_id")
    importance = F.col("importance").try_cast("double")
    popularity = rows.where(importance.isNotNull()).groupBy(entity_id).agg(F.max(importance).alias("popularity"))
    kind = F.when(F.col("type") == "r", "redirect").otherwise("title").alias("kind")
    titled = rows.where(F.col("language").isin(*languages) & F.col("title").isNotNull())
    titled = titled.select(F.translate("title", "_", " ").alias("surface"), entity_id, kind, "language")
    return popularity, titled.mapInArrow(_titles, from_arrow_schema(NAMES))


def _with_normal_form(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """surface, entity_id, count -> ANCHORS."""
    for batch in batches:
        forms = normal_forms(batch.column("surface"))
        table = pa.table([forms, *(batch.column(n) for n in ("surface", "entity_id", "count"))], names=ANCHORS.names)
        yield from _admissible(table).cast(ANCHORS).to_batches()


def _titles(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """surface, entity_id, kind, language -> NAMES."""
    for batch in batches:
        surfaces = pa.array([without_qualifier(s) for s in batch.column("surface").to_pylist()], pa.string())
        rest = [batch.column(n) for n in ("entity_id", "kind", "language")]
        table = pa.table([normal_forms(surfaces), surfaces, *rest], names=NAMES.names)
        yield from _admissible(table).cast(NAMES).to_batches()


def _admissible(table: pa.Table) -> pa.Table:
    forms = table.column("normal_form").combine_chunks()
    return table.filter(pa.array([inadmissible(f) is None for f in forms.to_pylist()], pa.bool_()))


def _columns(spark: SparkSession, path: str, names: Sequence[str], separator: str) -> DataFrame:
    require(spark, path)
    schema = ", ".join(f"`{name}` string" for name in names)
    return spark.read.csv(path, schema=schema, sep=separator, header=True, quote="", escape="", mode="PERMISSIVE")


def require(spark: SparkSession, path: str) -> int:
    """Bytes behind a path or glob of any file system that Spark knows; FileNotFoundError, with the path, where there is
    none."""
    jvm, conf = spark._jvm, spark._jsc.hadoopConfiguration()
    hadoop = jvm.org.apache.hadoop.fs.Path(path)  # type: ignore[union-attr]
    system = hadoop.getFileSystem(conf)
    found = system.globStatus(hadoop)
    if not found:
        raise FileNotFoundError(f"{path} does not exist (looked for in {system.getUri()})")
    return sum(int(system.getContentSummary(status.getPath()).getLength()) for status in found)


def _is_id(column: str) -> Column:
    return F.coalesce(F.col(column).rlike("^Q[1-9][0-9]{0,17}$"), F.lit(False))


def _entity_id(column: str, good: Column) -> Column:
    return F.when(good, F.substring(column, 2, 20).cast("bigint")).alias("entity_id")


def _or_error(good: Column, path: str, form: str, columns: Sequence[str]) -> Column:
    row = F.concat_ws(" | ", *(F.coalesce(F.col(c), F.lit("nothing")) for c in columns))
    return good | F.raise_error(F.concat(F.lit(f"{path}: a row is not {form}: "), row)).cast("boolean")
