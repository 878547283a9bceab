"""What is published: duplicates, rare entities, caps, class indices. Decided over all units, by shuffles of ids alone.

Sampling is by hash, so that the same images are kept whatever the order, the partitions and the number of units. An
entity of `n` images keeps an image if hash(image, entity), as a number from 0 to 1, is below cap / n. That keeps `cap`
images, up to the noise of a binomial draw, and needs no sort of an entity's images (2.8 CPU-s against 31 for
row_number on 17 M rows).

A cap drops labels one by one. Balancing (`balance_at`) keeps or drops images: one is kept whole if a draw for any of
its entities keeps it, at t / max(n, t), which is Algorithm 1 of MetaCLIP (Xu et al., ICLR 2024, arXiv:2309.16671) with
entities for its metadata and hashes for its draws. An image of two entities is kept with 1 - (1 - p1)(1 - p2), so a
frequent entity has more than t images where it comes with rarer ones. As a dataset grows, n grows and t / n falls while
the hash stays: of the images of before it keeps a part, and none comes back that was left out, as long as the image has
the same labels and none of its entities had been too rare for a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.config import SelectConfig
from i2e_pipeline.core.rejects import reject
from i2e_pipeline.core.schemas import IMAGE_LABELS, Reason
from i2e_pipeline.core.splits import any_held_out

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def image_labels(chosen: DataFrame, max_labels: int, settings: SelectConfig) -> DataFrame:
    """Labels of each distinct image, merged over the pairs that hold it: image_id, entity_id, of the most probable one
    score, clip_score and mention, images of the entity, and `dropped`, the reason where the label is not published.

    What is known of entities goes to the labels, here and in `pairs_to_publish`, and not the labels to their entities:
    one task would then have all images of "Christmas" (Spark splits no partition that is joined with an aggregate).
    Entities are few: 3 x 10^6 of two numbers at the paper's scale.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    # Pairs of one image differ in noise of the last digits, which must not choose the mention.
    best = F.max(F.struct(F.round("probability", 4), "mention", "clip_score"))
    merged = chosen.groupBy("image_id", "entity_id").agg(
        F.max("probability").alias("score"), best["clip_score"].alias("clip_score"), best["mention"].alias("mention")
    )
    best_first = Window.partitionBy("image_id").orderBy(F.desc("score"), F.asc("entity_id"))
    bounded = merged.withColumn("place", F.row_number().over(best_first)).where(F.col("place") <= max_labels)
    images = bounded.groupBy("entity_id").agg(F.count("*").alias("entity_images"))
    dropped = F.when(F.col("entity_images") < settings.min_images_per_entity, F.lit(str(Reason.RARE_ENTITY)))
    if settings.max_images_per_entity is not None:
        share = F.lit(settings.max_images_per_entity) / F.col("entity_images")
        dropped = dropped.when(_hash_share("image_id", "entity_id") >= share, F.lit(str(Reason.OVER_CAP)))
    labels = bounded.join(F.broadcast(images), "entity_id", how="inner").select(
        "image_id", "entity_id", "score", "clip_score", "mention", "entity_images", dropped.alias("dropped")
    )
    return labels if settings.balance_at is None else _balanced(labels, settings.balance_at)


def _balanced(labels: DataFrame, most: int) -> DataFrame:
    """The labels that are left, dropped where no draw for any entity of their image keeps it; `most` is MetaCLIP's t.

    An entity of up to t images keeps each with certainty. Labels come by image, so nothing is shuffled for it.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    draw, left = _hash_share("image_id", "entity_id"), F.col("dropped").isNull()
    keeps = left & (draw < F.lit(most) / F.greatest("entity_images", F.lit(most)))
    kept = F.max(keeps).over(Window.partitionBy("image_id"))
    dropped = F.when(left & ~F.col("kept"), F.lit(str(Reason.UNBALANCED))).otherwise(F.col("dropped"))
    return labels.withColumn("kept", kept).withColumn("dropped", dropped).drop("kept")


def without_wider(chosen: DataFrame) -> DataFrame:
    """Without the wider labels of images that another pair gives a label by name: what a husky is, needs no "dog"
    beside it, and two texts of one image may be of one thing.

    chosen   image_id, wider_of (null: a label by name) and further columns
    """
    from pyspark.sql import functions as F

    by_name = chosen.where(F.col("wider_of").isNull()).select("image_id").distinct()
    wider = chosen.where(F.col("wider_of").isNotNull()).join(by_name, "image_id", how="left_anti")
    return chosen.where(F.col("wider_of").isNull()).unionByName(wider)


def published_wider(chosen: DataFrame, labels: DataFrame) -> int:
    """How many labels of images are wider ones.

    chosen   what `without_wider` leaves
    labels   `image_labels` of it
    """
    from pyspark.sql import functions as F

    wider = chosen.where(F.col("wider_of").isNotNull()).select("image_id", "entity_id").distinct()
    return labels.where(F.col("dropped").isNull()).join(wider, ["image_id", "entity_id"], how="left_semi").count()


def _hash_share(*columns: str) -> Column:
    """xxHash64 of the columns as a number from 0 to 1."""
    from pyspark.sql import functions as F

    return (F.shiftrightunsigned(F.xxhash64(*columns), 11)).cast("double") / F.lit(float(1 << 53))


def class_indices(kept: DataFrame, chosen: DataFrame, places: DataFrame, before: DataFrame | None = None) -> DataFrame:
    """entity_id, class_index, retired: of each entity that has a published label, or ever had one.

    kept     the labels that are published: entity_id
    chosen   all labels: entity_id, unit
    places   unit, place: the units in the order in which the output came to know them
    before   entity_id, class_index of the last build; an index once given stays its entity's, and where no image
             has it any more it is retired

    New entities are numbered on by the place of the first unit that has a label of theirs, then by id, whatever the
    order in which units ended. Units built one by one give them other indices than all at once only where they were too
    rare for a class at first.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    first = (
        chosen.join(F.broadcast(places), "unit", how="inner").groupBy("entity_id").agg(F.min("place").alias("place"))
    )
    entities = kept.select("entity_id").distinct().join(first, "entity_id", how="left")
    # One partition sorts all new classes: 3 x 10^6 of two numbers at the paper's scale.
    in_order = Window.partitionBy(F.lit(0)).orderBy("place", "entity_id")
    index = F.row_number().over(in_order) - 1
    if before is None:
        return entities.select("entity_id", index.cast("int").alias("class_index"), F.lit(False).alias("retired"))
    known = before.select("entity_id", "class_index")
    top = known.agg((F.coalesce(F.max("class_index"), F.lit(-1)) + 1).alias("top"))
    new = entities.join(known, "entity_id", how="left_anti").crossJoin(F.broadcast(top))
    added = new.select(
        "entity_id", (index + F.col("top")).cast("int").alias("class_index"), F.lit(False).alias("retired")
    )
    live = entities.select("entity_id", F.lit(True).alias("live"))
    old = known.join(live, "entity_id", how="left").select(
        "entity_id", F.col("class_index").cast("int").alias("class_index"), F.col("live").isNull().alias("retired")
    )
    return old.unionByName(added)


def pairs_to_publish(
    chosen: DataFrame, labels: DataFrame, classes: DataFrame, texts: DataFrame, shown: DataFrame
) -> DataFrame:
    """A row per labelled pair: where it lies, whether it stands for its image, the image's labels or why it has none,
    and the entities that it shows in labels which are not published.

    texts   url and text_id of all pairs
    shown   image_id, entity_id of each label that the stage `label` chose, whatever left it out since
    An image that several pairs hold is published once, from the pair of the first url and text, with the labels of all:
    then it has the same url and text however the input is stored. (Ids of pairs say where a row stood.)
    """
    from pyspark.sql import functions as F

    pairs = chosen.groupBy("pair_id").agg(
        *(F.first(c).alias(c) for c in ("image_id", "unit", "shard", "row", "width", "height"))
    )
    held = pairs.groupBy("image_id").agg(F.count("*").alias("pairs"), F.min("pair_id").alias("only_pair"))
    # Of few images: most are held by one pair.
    several = pairs.join(held.where(F.col("pairs") > 1), "image_id", how="inner").select("image_id", "pair_id", "unit")
    first = (
        texts.join(several, ["unit", "pair_id"], how="inner")
        .groupBy("image_id")
        .agg(F.min(F.struct("url", "text_id", "pair_id"))["pair_id"].alias("first_pair"))
    )
    standing = held.join(first, "image_id", how="left").select(
        "image_id", F.coalesce("first_pair", "only_pair").alias("standing_pair")
    )
    label = F.struct(
        "entity_id",
        "class_index",
        F.col("score").cast("float").alias("score"),
        F.col("clip_score").cast("float").alias("clip_score"),
        "mention",
    )
    per_image = (
        labels.join(F.broadcast(classes.select("entity_id", "class_index")), "entity_id", how="left")
        .groupBy("image_id")
        .agg(
            F.sort_array(F.collect_list(F.when(F.col("dropped").isNull(), label))).alias("labels"),
            F.max("dropped").alias("dropped"),
        )
    )
    entities = shown.groupBy("image_id").agg(F.collect_set("entity_id").alias("shown"))
    return (
        pairs.join(standing, "image_id", how="inner")
        .join(per_image, "image_id", how="inner")
        .join(entities, "image_id", how="inner")
        .select(
            "image_id",
            "pair_id",
            "unit",
            "shard",
            "row",
            "width",
            "height",
            (F.col("pair_id") == F.col("standing_pair")).alias("stands"),
            "standing_pair",
            "labels",
            "dropped",
            F.array_except("shown", F.coalesce(F.col("labels.entity_id"), F.array())).alias("unpublished"),
        )
    )


def left_out(chosen: DataFrame, excluded: DataFrame) -> DataFrame:
    """Rows as of `pairs_to_publish` of pairs that are left out: unit, pair_id, reason."""
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_type

    columns = ("image_id", "shard", "row", "width", "height")
    pairs = chosen.groupBy("unit", "pair_id").agg(*(F.first(c).alias(c) for c in columns))
    none = F.lit(None).cast(from_arrow_type(IMAGE_LABELS))
    return pairs.join(excluded, ["unit", "pair_id"], how="inner").select(
        "image_id", "pair_id", "unit", "shard", "row", "width", "height", F.lit(True).alias("stands"),
        F.col("pair_id").alias("standing_pair"), none.alias("labels"), F.col("reason").alias("dropped"),
        F.lit(None).cast("array<bigint>").alias("unpublished"),
    )  # fmt: skip


def select_images(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Part the rows of `pairs_to_publish` into the images to publish and rejects.

    yields    selection, each row to its unit; rejects: duplicate_image, rare_entity, over_cap, unbalanced
    """
    for batch in batches:
        has_labels = pc.greater(pc.fill_null(pc.list_value_length(batch.column("labels")), 0), 0)
        stands = batch.column("stands")
        kept = batch.filter(pc.and_(stands, has_labels))
        labels = pc.cast(kept.column("labels"), IMAGE_LABELS)
        published = pc.struct_field(pc.list_flatten(labels), "entity_id")
        shows = any_held_out(pc.list_parent_indices(labels), published, kept.num_rows)
        others = kept.column("unpublished")
        hides = ~shows & any_held_out(pc.list_parent_indices(others), pc.list_flatten(others), kept.num_rows)
        yield (
            "selection",
            pa.RecordBatch.from_arrays(
                [*(kept.column(c) for c in _OWN), labels, pa.array(hides)], names=[*_OWN, "labels", "hides_held_out"]
            ),
        )
        gone = pc.invert(pc.and_(stands, has_labels))
        rejected = batch.filter(gone)
        if rejected.num_rows:
            twin = pc.invert(rejected.column("stands"))
            why = pc.if_else(twin, str(Reason.DUPLICATE_IMAGE), rejected.column("dropped"))
            standing = zip(twin.to_pylist(), rejected.column("standing_pair").to_pylist(), strict=True)
            said = [f"published from pair {pair.hex()}" if is_twin else None for is_twin, pair in standing]
            yield "rejects", reject(batch, gone, why, said, key="pair_id")


_OWN = ("image_id", "pair_id", "unit", "shard", "row", "width", "height")


def unit_digests(selection: DataFrame) -> dict[str, str]:
    """Unit to a digest of its selection that does not depend on the order of rows."""
    from pyspark.sql import functions as F

    said: list[Column | str] = ["image_id", "pair_id", "shard", "row", F.to_json("labels")]
    # Of most images it is false, and units without another one have the digest of before there was the column.
    row = F.when(F.col("hides_held_out"), F.xxhash64(*said, F.lit("hides"))).otherwise(F.xxhash64(*said))
    sums = selection.groupBy("unit").agg(
        F.count("*").alias("rows"), F.bit_xor(row).alias("xor"), F.sum(row.cast("decimal(38,0)")).alias("sum")
    )
    return {
        r["unit"]: f"{r['rows']}-{r['xor'] & (2**64 - 1):016x}-{int(r['sum']) & (2**64 - 1):016x}"
        for r in sums.collect()
    }
