"""What is most frequent of each entity: the words that name it, the domains of its images, and the entities that it was
weighed against.

One count tells all three: a row per (entity, kind, value) with its number of labelled pairs. Rows are counted where
they lie before they are shuffled by all three, so that an entity of 10^7 pairs is as many rows as it has distinct
values in a partition, and those are spread over all tasks. The first TOP are then taken of the whole counts, by entity
and kind: a task holds the distinct values of an entity, of which a million domains are 50 MB, and Spark can spill them.
Equal counts are ordered by value, so that the lists depend on no partition, unit or order.

What is shuffled beside the counts are ids and domains: labels and pairs by pair, and all labels by pair and words.
benchmarks/entity_statistics.py counts the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from i2e_pipeline.core.domains import bare_hosts
from i2e_pipeline.publish.statistics import TOP
from wikidata.surface import normal_forms

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def most_frequent(all_labels: DataFrame, pairs: DataFrame) -> DataFrame:
    """entity_id, surfaces, domains, distinct_domains, confusions (columns of ENTITY_DETAILS), of entities that
    have a labelled pair or stood against a label.

    all_labels   unit, pair_id, entity_id, mention (null: not known), reason (null: chosen); with wider labels, wider_of
    pairs        unit, pair_id, url
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    chosen = all_labels.where(F.col("reason").isNull())
    counted = (
        _surfaces(chosen)
        .unionByName(_domains(chosen, pairs))
        .unionByName(_confusions(all_labels))
        .groupBy("entity_id", "kind", "other", "value")
        .agg(F.sum("won").alias("won"), F.sum("lost").alias("lost"))
        .repartition("entity_id")  # once, for all that follows
    )
    of_kind = Window.partitionBy("entity_id", "kind")
    first = of_kind.orderBy(F.desc(F.col("won") + F.col("lost")), "other", "value")
    top = (
        counted.withColumn("distinct", F.count("*").over(of_kind))
        .withColumn("place", F.row_number().over(first))
        .where(F.col("place") <= TOP)
    )

    def listed(kind: str, *fields: Column) -> Column:
        rows = F.collect_list(F.when(F.col("kind") == kind, F.struct("place", F.struct(*fields).alias("told"))))
        return F.transform(F.sort_array(rows), lambda row: row["told"])

    value, labelled = F.col("value"), F.col("won").alias("pairs")
    return top.groupBy("entity_id").agg(
        listed(_SURFACE, value.alias("surface"), labelled).alias("surfaces"),
        listed(_DOMAIN, value.alias("domain"), labelled).alias("domains"),
        F.coalesce(F.max(F.when(F.col("kind") == _DOMAIN, F.col("distinct"))), F.lit(0)).alias("distinct_domains"),
        listed(_CONFUSION, F.col("other").alias("entity_id"), F.col("won"), F.col("lost")).alias("confusions"),
    )


_SURFACE, _DOMAIN, _CONFUSION = "surface", "domain", "confusion"
_COUNTS = "entity_id long, kind string, other long, value string, won long, lost long"


def _surfaces(chosen: DataFrame) -> DataFrame:
    """Counts of the normal forms of the words that proposed each label. Few distinct words are normalised, not all."""
    from pyspark.sql import functions as F

    words = chosen.where(F.col("mention").isNotNull()).groupBy("entity_id", "mention").agg(F.count("*").alias("won"))
    return words.mapInArrow(_normalised, _COUNTS)


def _normalised(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = batch.num_rows
        yield pa.RecordBatch.from_pydict(
            {
                "entity_id": batch.column("entity_id"),
                "kind": pa.array([_SURFACE] * rows, pa.string()),
                "other": pa.nulls(rows, pa.int64()),
                "value": normal_forms(batch.column("mention")),
                "won": batch.column("won"),
                "lost": pa.array([0] * rows, pa.int64()),
            }
        )


def _domains(chosen: DataFrame, pairs: DataFrame) -> DataFrame:
    """Of each label the domain of its pair's address."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import StringType, StructField, StructType

    of_pair = pairs.select("unit", "pair_id", "url")
    schema = StructType([*of_pair.schema.fields[:2], StructField("domain", StringType())])
    sources = of_pair.mapInArrow(_hosts, schema).where(F.col("domain").isNotNull())
    found = chosen.select("unit", "pair_id", "entity_id").join(sources, ["unit", "pair_id"], how="inner")
    return found.select(F.inline(F.array(_row("entity_id", _DOMAIN, value=F.col("domain"), won=1))))


def _hosts(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        *of_pair, urls = batch.columns
        yield pa.RecordBatch.from_arrays([*of_pair, bare_hosts(urls)], names=["unit", "pair_id", "domain"])


def _confusions(all_labels: DataFrame) -> DataFrame:
    """Of each two entities that the same words of a pair's text could mean, and of which one became the label: that the
    first won, and that the second lost. What stands above a candidate is no other reading."""
    from pyspark.sql import functions as F

    read = all_labels.where(F.col("mention").isNotNull())
    read = read.where(F.col("wider_of").isNull()) if "wider_of" in read.columns else read
    is_label = F.col("reason").isNull()
    readings = (
        read.groupBy("pair_id", F.xxhash64("mention"))  # a pair has few mentions: their hashes differ, and are short
        .agg(
            F.collect_list(F.when(is_label, F.col("entity_id"))).alias("winners"),
            F.collect_list(F.when(~is_label, F.col("entity_id"))).alias("losers"),
        )
        .where((F.size("winners") > 0) & (F.size("losers") > 0))
        .select(F.explode("winners").alias("winner"), "losers")
        .select("winner", F.explode("losers").alias("loser"))
    )
    both = (_row("winner", _CONFUSION, F.col("loser"), won=1), _row("loser", _CONFUSION, F.col("winner"), lost=1))
    return readings.select(F.inline(F.array(*both)))


def _row(
    entity: str, kind: str, other: Column | None = None, value: Column | None = None, won: int = 0, lost: int = 0
) -> Column:
    """A struct of the columns _COUNTS."""
    from pyspark.sql import functions as F

    none = F.lit(None)
    return F.struct(
        F.col(entity).alias("entity_id"),
        F.lit(kind).alias("kind"),
        (none if other is None else other).cast("long").alias("other"),
        (none if value is None else value).cast("string").alias("value"),
        F.lit(won).cast("long").alias("won"),
        F.lit(lost).cast("long").alias("lost"),
    )
