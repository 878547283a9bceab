"""Statistics of the dataset: per entity, and how many entities have how many images.

Most of the paper's two million classes are small. The buckets show how long that tail is.

All is counted in whole numbers, so that it is the same whatever the partitions, the units and the order of rows, and no
step gathers the rows of an entity: they are counted where they lie, by entity and thousandth of a score, and at most
2,001 counts of an entity meet. Each step is a part of one Spark job; the driver holds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from i2e_pipeline.core.schemas import ENTITY_DETAILS

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

BUCKET_EDGES = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000)
"""Lowest number of images of each bucket."""


def per_entity(
    all_labels: DataFrame,
    image_labels: DataFrame,
    classes: DataFrame,
    entities: DataFrame,
    before: DataFrame | None = None,
    details: Sequence[DataFrame] | None = None,
) -> DataFrame:
    """A row for each entity that any pair's text proposed, published or not, or that ever had a class; columns as
    ENTITY_STATISTICS.

    all_labels     pair_id, entity_id, clip_score, probability, reason (null: chosen)
    image_labels   image_id, entity_id, dropped (null: published)
    classes        entity_id, class_index, retired
    entities       kb/entities
    before         rows of the last build; of what the knowledge base no longer holds, they say what it was
    details        what `of_texts` and `most_frequent` (frequent.py) tell of entities; None: all of ENTITY_DETAILS is
                   null, quantiles too
    """
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_type

    proposed = of_labels(all_labels, quantiles=details is not None)
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
    for told in details or ():  # last: `counted` is read twice
        known = known.join(told, "entity_id", how="left")
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
        *(
            (F.lit(None) if details is None else F.coalesce(field.name, *_none_of(field)))
            .cast(from_arrow_type(field.type))
            .alias(field.name)
            for field in ENTITY_DETAILS
        ),
    )


def _none_of(field: pa.Field) -> tuple[Column, ...]:
    """What a column of ENTITY_DETAILS holds of an entity that no row told of. There are no quantiles of no scores."""
    from pyspark.sql import functions as F

    if pa.types.is_list(field.type):
        return (F.array(),)
    return (F.lit(0),) if pa.types.is_integer(field.type) else ()


QUANTILES = {"p05": 1, "p25": 5, "p50": 10, "p75": 15, "p95": 19}
"""Twentieths of the scores that lie at or below each."""


def of_labels(all_labels: DataFrame, quantiles: bool) -> DataFrame:
    """entity_id, pairs_proposed, pairs_labelled, means of scores, and with `quantiles` those of clip_score
    (`clip_scores`, of all rows, and `clip_scores_labelled`).

    all_labels   entity_id, clip_score, probability, reason (null: chosen)
    A quantile is the least thousandth that its share of the scores, each to the nearest thousandth, does not exceed.
    One pass over the rows with quantiles as without; what is shuffled grows from a row per entity and partition to one
    per entity, thousandth and partition, 56 bytes each.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    chosen = F.col("reason").isNull()
    # Whole millionths are summed, since a sum of floats depends on the order of rows.
    clip, probability = (F.round(F.col(c).cast("double") * 1_000_000).cast("long") for c in _SCORES)
    sums = {
        "pairs_proposed": F.lit(1),
        "pairs_labelled": chosen.cast("long"),
        "clip": clip,
        "clip_labelled": F.when(chosen, clip).otherwise(0),
        "probability_labelled": F.when(chosen, probability).otherwise(0),
    }
    by = [F.round(F.col("clip_score").cast("double") * 1_000).cast("int").alias("thousandth")] if quantiles else []
    added = all_labels.groupBy("entity_id", *by).agg(*(F.sum(of).alias(name) for name, of in sums.items()))
    found = []
    if quantiles:
        whole = Window.partitionBy("entity_id")
        so_far = whole.orderBy("thousandth")
        for name, count in (("clip_scores", "pairs_proposed"), ("clip_scores_labelled", "pairs_labelled")):
            counts = {f"{name}_of": F.sum(count).over(whole), f"{name}_so_far": F.sum(count).over(so_far)}
            added = added.withColumns(counts)
            reached = {
                p: (F.col(count) > 0) & (F.col(f"{name}_so_far") * 20 >= F.col(f"{name}_of") * twentieths)
                for p, twentieths in QUANTILES.items()
            }
            least = [(F.min(F.when(at, F.col("thousandth"))) / 1_000).alias(p) for p, at in reached.items()]
            found.append(F.when(F.sum(count) > 0, F.struct(*least)).alias(name))
    proposed, labelled = F.sum("pairs_proposed"), F.sum("pairs_labelled")
    return added.groupBy("entity_id").agg(
        proposed.alias("pairs_proposed"),
        labelled.alias("pairs_labelled"),
        _mean(F.sum("clip"), proposed).alias("mean_clip_score"),
        _mean(F.sum("clip_labelled"), labelled).alias("mean_clip_score_labelled"),
        _mean(F.sum("probability_labelled"), labelled).alias("mean_probability"),
        *found,
    )


_SCORES = ("clip_score", "probability")


TOP = 10
"""Values of a list of the most frequent ones."""


def of_texts(candidates: DataFrame, texts: DataFrame) -> DataFrame:
    """entity_id, texts, mentions, mentions_first, scripts: in how many distinct texts a mention can mean the entity;
    how many mentions of pairs that is, a text of n pairs counted n times; in how many of those it is the likeliest
    reading by the text; and the scripts that most letters of the texts are in, by mentions.

    candidates   unit, text_id, entity_id, rank (1: the likeliest), a row per mention and entity
    texts        unit, text_id, pairs, script
    Of all texts of the input, whatever came of their pairs. A text that two units have is one. Candidates are shuffled
    by text, to meet it, and then by entity and text, to tell texts apart: entities of many texts are shared out.
    """
    from pyspark.sql import functions as F

    of_script = (
        candidates.join(texts, ["unit", "text_id"], how="inner")
        .groupBy("entity_id", "script")
        .agg(
            F.countDistinct("text_id").alias("texts"),
            F.sum("pairs").alias("mentions"),
            F.sum(F.when(F.col("rank") == 1, F.col("pairs")).otherwise(0)).alias("mentions_first"),
        )
    )
    # Scripts are some thirty.
    scripts = F.sort_array(F.collect_list(F.struct((-F.col("mentions")).alias("least"), "script", "mentions")))
    counts = (F.sum(name).alias(name) for name in ("texts", "mentions", "mentions_first"))
    return of_script.groupBy("entity_id").agg(
        *counts,
        F.transform(F.slice(scripts, 1, TOP), lambda row: F.struct(row["script"], row["mentions"])).alias("scripts"),
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


def _mean(millionths: Column, count: Column) -> Column:
    """Mean of scores to 1e-6, of none null."""
    from pyspark.sql import functions as F

    return F.when(count > 0, millionths / count / 1_000_000).cast("float")


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
