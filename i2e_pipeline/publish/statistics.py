"""Statistics of the dataset: per entity, and how many entities have how many images.

Most of the paper's two million classes are small. The buckets show how long that tail is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

BUCKET_EDGES = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000)
"""Lowest number of images of each bucket."""


def per_entity(
    all_labels: DataFrame,
    image_labels: DataFrame,
    classes: DataFrame,
    entities: DataFrame,
    before: DataFrame | None = None,
) -> DataFrame:
    """A row for each entity that any pair's text proposed, published or not, or that ever had a class; columns as
    ENTITY_STATISTICS.

    all_labels     pair_id, entity_id, clip_score, probability, reason (null: chosen)
    image_labels   image_id, entity_id, dropped (null: published)
    classes        entity_id, class_index, retired
    entities       kb/entities
    before         rows of the last build; of what the knowledge base no longer holds, they say what it was
    """
    from pyspark.sql import functions as F

    chosen = F.col("reason").isNull()
    proposed = all_labels.groupBy("entity_id").agg(
        F.count("*").alias("pairs_proposed"),
        F.sum(chosen.cast("long")).alias("pairs_labelled"),
        _mean(F.col("clip_score")).alias("mean_clip_score"),
        _mean(F.when(chosen, F.col("clip_score"))).alias("mean_clip_score_labelled"),
        _mean(F.when(chosen, F.col("probability"))).alias("mean_probability"),
    )
    published = image_labels.where(F.col("dropped").isNull()).groupBy("entity_id").agg(F.count("*").alias("images"))
    counted = proposed.join(published, "entity_id", how="left").join(classes, "entity_id", how="full")
    known = counted.join(of_knowledge_base(entities, counted.select("entity_id")), "entity_id", how="left")
    if before is not None:
        was = before.select("entity_id", *(F.col(name).alias(f"was_{name}") for name in OF_KNOWLEDGE_BASE))
        known = known.join(was, "entity_id", how="left")
        gone = F.col("name").isNull()
        known = known.withColumns(
            {name: F.when(gone, F.col(f"was_{name}")).otherwise(F.col(name)) for name in OF_KNOWLEDGE_BASE}
        )
    zero = F.lit(0).cast("long")
    return known.where(F.col("name").isNotNull()).select(
        "entity_id",
        "class_index",
        "name",
        "description",
        "aliases",
        F.coalesce("images", zero).alias("images"),
        F.coalesce("pairs_proposed", zero).alias("pairs_proposed"),
        F.coalesce("pairs_labelled", zero).alias("pairs_labelled"),
        "mean_clip_score",
        "mean_clip_score_labelled",
        "mean_probability",
        *OF_KNOWLEDGE_BASE[3:],
        F.coalesce("retired", F.lit(False)).alias("retired"),
    )


OF_KNOWLEDGE_BASE = (
    "name", "description", "aliases", "types", "coarse_type", "sitelinks", "popularity", "is_human", "wikipedia_title",
)  # fmt: skip


def of_knowledge_base(entities: DataFrame, wanted: DataFrame) -> DataFrame:
    """entity_id and OF_KNOWLEDGE_BASE of the wanted entities (entity_id) that the knowledge base holds."""
    from pyspark.sql import functions as F

    rows = entities.join(wanted.distinct(), "entity_id", how="left_semi")
    classes = rows.select("entity_id", F.posexplode("types").alias("place", "class"))
    called = entities.select(F.col("entity_id").alias("class"), F.col("name").alias("class_name"))
    # Classes are few, and nearly all entities are of some hundred of them: their names go to the entities.
    called = F.broadcast(called.join(classes.select("class").distinct(), "class", how="left_semi"))
    named = (
        classes.join(called, "class", how="inner")
        .groupBy("entity_id")
        .agg(F.sort_array(F.collect_list(F.struct("place", "class_name"))).alias("named"))
        .select("entity_id", F.transform("named", lambda one: one["class_name"]).alias("type_names"))
    )
    return rows.join(named, "entity_id", how="left").select(
        "entity_id",
        *OF_KNOWLEDGE_BASE[:3],
        F.coalesce("type_names", F.array().cast("array<string>")).alias("types"),
        *OF_KNOWLEDGE_BASE[4:],
    )


def _mean(value):  # type: ignore[no-untyped-def]
    """Mean of a score to 1e-6. Whole millionths are summed, since a sum of floats depends on the order of rows."""
    from pyspark.sql import functions as F

    millionths = F.round(value.cast("double") * 1_000_000).cast("long")
    return (F.sum(millionths) / F.count(value) / 1_000_000).cast("float")


def buckets(entities_by_images: Mapping[int, int]) -> pa.RecordBatch:
    """Entities and images by number of images per entity; columns as BUCKETS.

    entities_by_images   number of images to the number of entities that have as many
    """
    rows = []
    for low, following in zip(BUCKET_EDGES, (*BUCKET_EDGES[1:], 1 << 62), strict=True):
        inside = {n: count for n, count in entities_by_images.items() if low <= n < following}
        rows.append(
            {
                "images_from": low,
                "images_to": following - 1,
                "entities": sum(inside.values()),
                "images": sum(n * count for n, count in inside.items()),
            }
        )
    while len(rows) > 1 and rows[-1]["entities"] == 0:
        rows.pop()
    return pa.RecordBatch.from_pylist(rows)
