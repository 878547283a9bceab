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


def per_entity(all_labels: DataFrame, image_labels: DataFrame, classes: DataFrame, entities: DataFrame) -> DataFrame:
    """A row for each entity that any pair's text proposed, published or not; columns as ENTITY_STATISTICS.

    all_labels     pair_id, entity_id, clip_score, probability, reason (null: chosen)
    image_labels   image_id, entity_id, dropped (null: published)
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
    return (
        proposed.join(published, "entity_id", how="left")
        .join(classes, "entity_id", how="left")
        .join(entities.select("entity_id", "name", "description", "aliases"), "entity_id", how="inner")
        .select(
            "entity_id",
            "class_index",
            "name",
            "description",
            "aliases",
            F.coalesce("images", F.lit(0)).cast("long").alias("images"),
            "pairs_proposed",
            "pairs_labelled",
            "mean_clip_score",
            "mean_clip_score_labelled",
            "mean_probability",
        )
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
