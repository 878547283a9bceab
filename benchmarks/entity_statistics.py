"""Statistics of entities: what `select.statistics=full` costs beside `basic`, by Spark's own log.

    python benchmarks/entity_statistics.py [--pairs 200000] [--rounds 3] [--json FILE]

The pairs are made: each has two readings of its words, of which one is its label; three in ten are of one entity, the
others of entities whose frequencies fall, 400 pairs each on the mean; so do their hosts. Both ways read the same tables
from disk, interleaved, and write the rows of every entity. Printed for each: seconds of a round and of processors, of
all processes, Java's and the Python workers' (medians), and of one round the bytes that a pair shuffles, the jobs, the
rows of the largest task over those of the median one, and the bytes spilled. What `full` adds is part of what
costs.json says of `select`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.costs import cpu_seconds
from i2e_pipeline.core.config import load
from i2e_pipeline.engine import eventlog
from i2e_pipeline.engine.progress import job_group
from i2e_pipeline.engine.session import build
from i2e_pipeline.publish import frequent, statistics

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

PAIRS_PER_ENTITY = 400
"""And per host. The paper's corpus has some 2,800 an entity (8.4e9 pairs, 3e6 entities)."""
PARTITIONS = 8
HUB_SHARE = 0.3
TEXTS_PER_PAIR = 0.83


def _fallen(name: str, of: int) -> Column:
    """0 to `of`, small numbers most often, drawn by hash of the pair."""
    from pyspark.sql import functions as F

    share = F.shiftrightunsigned(F.xxhash64("id", F.lit(name)), 11).cast("double") / F.lit(float(1 << 53))
    return F.floor(F.pow(share, 3) * of).cast("long")


def tables(spark: SparkSession, pairs: int, folder: Path) -> dict[str, DataFrame]:
    """labels, pairs, texts and candidates of made pairs, as files."""
    from pyspark.sql import functions as F

    entities = hosts = max(2, pairs // PAIRS_PER_ENTITY)
    share = F.shiftrightunsigned(F.xxhash64("id", F.lit("hub")), 11).cast("double") / F.lit(float(1 << 53))
    made = spark.range(0, pairs, 1, PARTITIONS).select(
        F.lit("u-1").alias("unit"),
        F.col("id").alias("pair_id"),
        (F.col("id") % int(pairs * TEXTS_PER_PAIR)).alias("text_id"),
        F.when(share < HUB_SHARE, 0).otherwise(1 + _fallen("entity", entities)).alias("entity_id"),
        F.concat(F.lit("https://host"), _fallen("host", hosts), F.lit(".org/"), "id", F.lit(".jpg")).alias("url"),
        ((F.xxhash64("id", F.lit("score")) % 300 + 300) / 1_000).cast("float").alias("clip_score"),
    )
    mention = F.concat(F.lit("Name "), "entity_id")
    chosen = made.withColumns({"mention": mention, "reason": F.lit(None).cast("string"), "rank": F.lit(1)})
    other = chosen.withColumns(
        {"entity_id": F.col("entity_id") + entities + 1, "reason": F.lit("other_entity"), "rank": F.lit(2)}
    )
    both = chosen.unionByName(other).withColumn("probability", F.lit(0.9).cast("float"))
    found = {
        "labels": both.select("unit", "pair_id", "entity_id", "clip_score", "probability", "mention", "reason"),
        "pairs": made.select("unit", "pair_id", "text_id", "url"),
        "texts": made.groupBy("unit", "text_id").agg(F.count("*").alias("pairs"), F.lit("Latin").alias("script")),
        "candidates": both.select("unit", "text_id", "entity_id", "rank").distinct(),
    }
    for name, frame in found.items():
        frame.write.parquet(str(folder / name))
    return {name: spark.read.parquet(str(folder / name)) for name in found}


def ways(read: dict[str, DataFrame]) -> dict[str, Callable[[], DataFrame]]:
    labels, pairs, texts = read["labels"], read["pairs"], read["texts"]

    def full() -> DataFrame:
        counted = statistics.of_texts(read["candidates"], texts)
        told = frequent.most_frequent(labels, pairs)
        found = statistics.of_labels(labels, quantiles=True)
        return found.join(counted, "entity_id", how="left").join(told, "entity_id", how="left")

    return {"basic": lambda: statistics.of_labels(labels, quantiles=False), "full": full}


def measure(pairs: int, rounds: int, folder: Path) -> dict[str, Any]:
    (folder / "log").mkdir()
    conf = {
        "spark.eventLog.enabled": "true", "spark.eventLog.dir": (folder / "log").as_uri(),
        "spark.eventLog.compress": "false", "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
    }  # fmt: skip
    session = ["session.master=local[2]", f"session.shuffle_partitions={PARTITIONS}", "session.driver_memory=2g"]
    spark = build(load(None, [*session, f"session.conf={json.dumps(conf)}"]), "entity_statistics")
    spent: dict[str, list[float]] = {"basic": [], "full": []}
    worked: dict[str, list[float]] = {"basic": [], "full": []}
    try:
        does = ways(tables(spark, pairs, folder / "tables"))
        for round_ in range(rounds + 1):  # the first warms up
            for name, way in does.items():
                spark.sparkContext.setJobGroup(job_group(name, "measured") if round_ == 1 else "warm", name)
                start, cpu = time.perf_counter(), cpu_seconds(os.getpid())
                way().write.mode("overwrite").parquet(str(folder / "out" / name))
                if round_:
                    spent[name].append(time.perf_counter() - start)
                    worked[name].append(cpu_seconds(os.getpid()) - cpu)
    finally:
        spark.stop()
    audit = eventlog.audit(str(folder / "log"))
    return {
        name: {
            "seconds": round(median(spent[name]), 2),
            "cpu_microseconds_per_pair": round(median(worked[name]) / pairs * 1e6, 1),
            "shuffled_bytes_per_pair": round(audit.stages[name].shuffle_bytes / pairs, 1),
            "jobs": audit.stages[name].jobs,
            "skew_records": round(audit.stages[name].skew_records, 2),
            "spilled_bytes": audit.stages[name].spilled_bytes,
        }
        for name in spent
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the figures there, too")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(chosen.pairs, chosen.rounds, Path(folder))
    for name, of in figures.items():
        print(f"{name:6}", ", ".join(f"{what} {value:,}" for what, value in of.items()))
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
