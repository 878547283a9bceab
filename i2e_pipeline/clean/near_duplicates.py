"""Near-duplicates: which labelled images look the same, and which of them stands for the others. On Spark.

Reads    nodes: image_id, pixels, image_hash, entities of each labelled image; vectors: image_id, vector
Writes   image_id, standing_image_id of each image that another one stands for

Images are near that share an entity and whose perceptual hashes differ in few bits, mirrored or not, or whose vectors
have a high cosine. Near to near is near, too: a group is a connected component. For it stands the image of most pixels,
of several the smallest id: a rule of content alone, which neither order nor growth changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.clean import buckets, signatures
from i2e_pipeline.clean.components import components
from i2e_pipeline.core.ids import fixed_binary, fixed_bytes
from i2e_pipeline.images.decode import says_something
from i2e_pipeline.images.near_hashes import BYTES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_KEYED = "bucket long, image_id binary, signature binary"
_NEAR = "a binary, b binary"
_SIGNED = "image_id binary, signature binary, entities array<long>"


def near_by_hash(nodes: DataFrame, bits: int, mirrored: bool) -> DataFrame:
    """a, b: pairs of images whose hashes differ in so many bits or fewer."""
    from pyspark.sql import functions as F

    hashed = nodes.select("image_id", F.col("image_hash").alias("signature"), "entities")
    return _near(hashed.where(F.col("signature").isNotNull()).mapInArrow(_with_features, _SIGNED), bits, mirrored)


def near_by_vector(nodes: DataFrame, vectors: DataFrame, cosine: float) -> DataFrame:
    """The same of images whose vectors have such a cosine or a higher one.

    vectors   image_id, vector of each image that has one, once
    """
    from pyspark.sql import functions as F

    known = nodes.select("image_id", "entities").join(vectors, "image_id", how="inner")
    found = _near(known.mapInArrow(_signed, _SIGNED), signatures.bits_apart(cosine), mirrored=False)
    of_one = vectors.select(F.col("image_id").alias("a"), F.col("vector").alias("vector_a"))
    of_other = vectors.select(F.col("image_id").alias("b"), F.col("vector").alias("vector_b"))
    measured = found.join(of_one, "a", how="inner").join(of_other, "b", how="inner")
    return measured.select("a", "b", "vector_a", "vector_b").mapInArrow(partial(_alike, cosine=cosine), _NEAR)


def standing_images(nodes: DataFrame, pairs: DataFrame) -> DataFrame:
    """image_id, standing_image_id of each image that another one stands for.

    pairs   a, b: images that are near
    """
    from pyspark.sql import functions as F

    # Pixels before ids, as the root of a component is its smallest node: no join but this is wanted to choose.
    rank = nodes.select("image_id", F.struct((-F.col("pixels")).alias("less"), "image_id").alias("rank"))
    ends = {end: rank.select(F.col("image_id").alias(end), F.col("rank").alias(f"rank_{end}")) for end in ("a", "b")}
    edges = pairs.join(ends["a"], "a", how="inner").join(ends["b"], "b", how="inner")
    stars = components(edges.select(F.col("rank_a").alias("a"), F.col("rank_b").alias("b")))
    return stars.select(F.col("node.image_id").alias("image_id"), F.col("root.image_id").alias("standing_image_id"))


def _near(signed: DataFrame, bits: int, mirrored: bool) -> DataFrame:
    keyed = signed.mapInArrow(partial(buckets.keyed, mirrored=mirrored), _KEYED)
    in_order = keyed.repartition("bucket").sortWithinPartitions("bucket", "image_id")
    return in_order.mapInArrow(partial(buckets.near, bits=bits, mirrored=mirrored), _NEAR).distinct()


def _with_features(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Images without those whose hash says nothing."""
    for batch in batches:
        yield batch.filter(pa.array(says_something(fixed_bytes(batch.column("signature"), BYTES))))


def _signed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows:
            signed = signatures.of_vectors(signatures.vectors_of(batch.column("vector").to_pylist()))
            columns = [batch.column("image_id"), fixed_binary(signed), batch.column("entities")]
            yield pa.RecordBatch.from_arrays(columns, names=["image_id", "signature", "entities"])


def _alike(batches: Iterable[pa.RecordBatch], cosine: float) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows:
            one, other = (signatures.vectors_of(batch.column(name).to_pylist()) for name in ("vector_a", "vector_b"))
            yield batch.select(["a", "b"]).filter(pa.array(signatures.cosines(one, other) >= cosine))


def largest(standing: DataFrame) -> dict[str, int]:
    """Images that another one stands for, groups, and the images of the largest group, of `standing_images`."""
    from pyspark.sql import functions as F

    groups = standing.groupBy("standing_image_id").agg(F.count("*").alias("others"))
    found = groups.agg(F.sum("others"), F.count("*"), F.max("others")).first()
    assert found is not None
    others, count, most = (int(number or 0) for number in found)
    return {"images": others, "groups": count, "largest": most + 1 if count else 0}


def reasons(standing: pa.Array) -> list[str | None]:
    """What a reader of rejects needs to know of each row: which image stands for its own, if another does."""
    ids = pc.cast(standing, pa.binary()).to_pylist()
    return [None if one is None else f"image {one.hex()} stands for it" for one in ids]
