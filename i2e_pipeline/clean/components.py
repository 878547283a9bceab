"""Connected components on Spark: which nodes of a graph hang together.

Reads    edges (a, b)
Writes   node, root: the smallest node of its component

Alternating large-star and small-star (Kiveris, Lattanzi, Mirrokni, Rastogi & Vassilvitskii, "Connected Components in
MapReduce and Beyond", SoCC 2014): each star links a node's neighbours to the smallest of them, until every component
is one star. Some log²(nodes) rounds at the most, mostly three to five, and never more edges than there were. No node's
neighbours are gathered in one place, however many it has.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger(__name__)

ROUNDS = 100
ATTEMPTS = 3


def components(edges: DataFrame) -> DataFrame:
    """node, root of every node that has an edge and is not its component's root.

    edges   a, b: of one type that has an order; either way round, as often as it may be

    What a round makes is kept by the executors without what it was made of: a plan that held all rounds before it would
    double with each. So a round is lost with an executor, and then all are carried out again.
    """
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    stars = _as_stars(edges).persist()
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _settled(stars)
            except (Py4JJavaError, PySparkException) as error:
                if attempt == ATTEMPTS or "heckpoint block" not in str(error):
                    raise
                log.warning("components: an executor was lost with a round of them; they are looked for again")
    finally:
        stars.unpersist()
    raise AssertionError


def _settled(stars: DataFrame) -> DataFrame:
    """The components, once a round changes nothing."""
    from pyspark.sql import functions as F

    known = _checksum(stars)
    for _ in range(ROUNDS):
        stars = _small_star(_large_star(stars).localCheckpoint()).localCheckpoint()
        now = _checksum(stars)
        if now == known:
            return stars.select(F.col("u").alias("node"), F.col("v").alias("root"))
        known = now
    raise RuntimeError(f"components have not settled in {ROUNDS} rounds")


def _as_stars(edges: DataFrame) -> DataFrame:
    """u, v of each edge once, u > v."""
    from pyspark.sql import functions as F

    edges = edges.where(F.col("a") != F.col("b"))
    return edges.select(F.greatest("a", "b").alias("u"), F.least("a", "b").alias("v")).distinct()


def _large_star(stars: DataFrame) -> DataFrame:
    """Links the larger neighbours of each node to the smallest of its neighbours and itself."""
    from pyspark.sql import functions as F

    both = stars.unionByName(stars.select(F.col("v").alias("u"), F.col("u").alias("v")))
    least = both.groupBy("u").agg(F.least(F.col("u"), F.min("v")).alias("least"))
    larger = both.where(F.col("v") > F.col("u")).join(least, "u", how="inner")
    return larger.select(F.col("v").alias("u"), F.col("least").alias("v")).distinct()


def _small_star(stars: DataFrame) -> DataFrame:
    """Links each node and its smaller neighbours to the smallest of these."""
    from pyspark.sql import functions as F

    least = stars.groupBy("u").agg(F.min("v").alias("least"))
    smaller = stars.join(least, "u", how="inner").where(F.col("v") != F.col("least"))
    moved = smaller.select(F.col("v").alias("u"), F.col("least").alias("v"))
    return moved.unionByName(least.select("u", F.col("least").alias("v"))).distinct()


def _checksum(stars: DataFrame) -> tuple[int, int, int]:
    from pyspark.sql import functions as F

    edge = F.xxhash64("u", "v")
    found = stars.agg(F.count("*"), F.bit_xor(edge), F.sum(edge.cast("decimal(38,0)"))).first()
    assert found is not None
    return int(found[0]), int(found[1] or 0), int(found[2] or 0)
