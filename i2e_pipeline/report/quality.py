"""Precision and recall of each stage, where the input says what its images show.

The input files may have two more columns: the entity that the image shows (`pairs.truth_column`, "Q42" or null) and
those that its text names (`pairs.mentioned_column`). Only pairs whose truth is known are counted. Recall is over
those whose text names it: what a text does not name, no stage can find.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.ids import row_ids, rows_in_share
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import Shard, of_row, shard_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from i2e_pipeline.engine.stage import Run

log = logging.getLogger(__name__)

_FILE = "quality.json"
_STEPS = {
    "extract": "P: mentions that can mean an entity that the text names; R: named entities that a mention can mean",
    "link": "P: top candidates that the text names; R: named entities that are a top candidate",
    "label": "P: labels that are right; R: of pairs whose text names the truth, those that got it as a label",
    "published": "the same for published images, with duplicates merged",
}


def read(tables: Tables) -> list[dict[str, Any]]:
    """Figures of the last run; none where no truth is known."""
    path = tables.path(_FILE)
    return list(files.read_json(path)) if files.exists(path) else []


def measure(run: Run) -> None:
    """Measure a published dataset and keep the figures, where the input is there and has the columns."""
    sizes = files.sizes([file.path for unit in run.units for file in unit.files])
    if gone := [path for path, size in sizes.items() if size is None]:
        log.warning("precision and recall are not measured: %d input files are gone, %s first", len(gone), gone[0])
    columns = None if gone else truth_columns(run)
    if columns is None:
        files.remove(run.tables.path(_FILE))
        return
    figures = _measure(run, columns)
    files.write_json(run.tables.path(_FILE), figures)


def truth_columns(run: Run) -> list[str] | None:
    """Names of the slice columns that the input has; None where it has no truth."""
    pairs = run.config.pairs
    names: set[str] = set()
    shards = run.shards([unit.name for unit in run.units])
    # A unit's files come from one source, so one file of each unit is looked at.
    for unit in run.units:
        here = formats.names(shards[unit.files[0].shard])
        if pairs.truth_column in here and pairs.mentioned_column in here:
            names |= here
    return [c for c in pairs.slice_columns if c in names] if names else None


def truth_rows(
    batches: Iterator[pa.RecordBatch],
    settings: Shard,
    truth_column: str,
    mentioned_column: str,
    slice_columns: Sequence[str],
) -> Iterator[pa.RecordBatch]:
    """What the input says of each pair whose truth is known.

    batches   shard: int32, SHARD_COLUMNS, digest: binary, share_from, share_to: float64
    yields    pair_id: binary, shard: int32, truth: int64, mentioned: list<int64>, slices: list<string>: "all" and
              "column: value" for each slice column
    """
    import numpy as np

    for batch in batches:
        for file in batch.to_pylist():
            here = formats.names(shard := of_row(file, settings))
            if truth_column not in here or mentioned_column not in here:
                continue
            slices_here = [c for c in slice_columns if c in here]
            names = [truth_column, mentioned_column, *slices_here]
            for start, rows in formats.columns(shard, names):
                numbers = np.arange(start, start + rows.num_rows)
                taken = rows_in_share(file["digest"], numbers, (file["share_from"], file["share_to"]))
                known = pc.and_(pc.is_valid(rows.column(truth_column)), pa.array(taken))
                ids = row_ids(file["digest"], numbers).cast(pa.binary())
                rows = rows.filter(known)
                slices = (
                    [
                        ["all", *(f"{c}: {_plain(v)}" for c, v in row.items() if v is not None)]
                        for row in rows.select(slices_here).to_pylist()
                    ]
                    if slices_here
                    else [["all"]] * rows.num_rows
                )
                mentioned = [
                    [n for q in qids or [] if (n := _number(q)) is not None]
                    for qids in rows.column(mentioned_column).to_pylist()
                ]
                yield pa.RecordBatch.from_pydict(
                    {
                        "pair_id": ids.filter(known),
                        "shard": pa.array([file["shard"]] * rows.num_rows, pa.int32()),
                        "truth": pa.array([_number(q) for q in rows.column(truth_column).to_pylist()], pa.int64()),
                        "mentioned": pa.array(mentioned, pa.list_(pa.int64())),
                        "slices": pa.array(slices, pa.list_(pa.string())),
                    }
                )


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _number(qid: Any) -> int | None:
    """42 for "Q42" or 42; None for what is no id, which makes the truth unknown."""
    digits = str(qid).strip().lstrip("Qq")
    return int(digits) if digits.isascii() and digits.isdigit() else None


def truth(run: Run, slice_columns: Sequence[str]) -> DataFrame:
    """`truth_rows` of all input files."""
    pairs = run.config.pairs
    of_units = [(unit.share, f) for unit in run.units for f in unit.files]
    columns = {
        "shard": pa.array([f.shard for _, f in of_units], pa.int32()),
        **run.shard_columns(f for _, f in of_units),
        "digest": pa.array([bytes.fromhex(f.digest) for _, f in of_units], pa.binary()),
        "share_from": pa.array([share[0] for share, _ in of_units], pa.float64()),
        "share_to": pa.array([share[1] for share, _ in of_units], pa.float64()),
    }
    files_of = run.spark.createDataFrame(pa.table(columns)).repartition(run.spark.sparkContext.defaultParallelism)
    settings = shard_of("", "parquet", None, pairs)
    names = (pairs.truth_column, pairs.mentioned_column, list(slice_columns))
    return files_of.mapInArrow(
        lambda batches: truth_rows(iter(batches), settings, *names),
        "pair_id binary, shard int, truth long, mentioned array<long>, slices array<string>",
    )


def _measure(run: Run, slice_columns: Sequence[str]) -> list[dict[str, Any]]:
    from pyspark.sql import functions as F

    empty = F.array().cast("array<bigint>")
    texts = run.read("pairs", columns=["pair_id", "text_id", "unit"])
    candidates = run.read("candidates", columns=["text_id", "start", "end", "entity_id", "rank", "unit"])
    linked = (
        candidates.groupBy("unit", "text_id", "start", "end")
        .agg(
            F.collect_set("entity_id").alias("candidates"),
            F.min_by("entity_id", "rank").alias("top"),
        )
        .groupBy("unit", "text_id")
        .agg(F.collect_list("candidates").alias("mentions"), F.collect_set("top").alias("top"))
        .join(texts, ["unit", "text_id"], how="inner")
        .select("pair_id", "mentions", F.array_distinct(F.flatten("mentions")).alias("candidates"), "top")
    )
    labels = run.read("labels")
    labelled = labels.groupBy("pair_id").agg(
        F.first("image_id").alias("image_id"),
        F.collect_set(F.when(F.col("reason").isNull(), F.col("entity_id"))).alias("labels"),
    )
    selection = run.read("selection")
    published = selection.select(
        "image_id", F.col("pair_id").alias("standing"), F.col("labels.entity_id").alias("published")
    )
    rows = (
        truth(run, slice_columns)
        .join(linked, "pair_id", how="left")
        .join(labelled, "pair_id", how="left")
        .join(published, "image_id", how="left")
        .select(
            "truth",
            "mentioned",
            "slices",
            F.coalesce("mentions", F.array(empty)).alias("mentions"),
            *(F.coalesce(c, empty).alias(c) for c in ("candidates", "top", "labels", "published")),
            (F.col("standing").isNull() | (F.col("standing") == F.col("pair_id"))).alias("stands"),
        )
        .withColumn("named", F.array_contains("mentioned", F.col("truth")))
    )

    def count(condition: Any) -> Any:
        return F.sum(F.coalesce(condition.cast("long"), F.lit(0)))

    def size(column: Any) -> Any:
        return F.sum(F.size(column))

    def right(column: str) -> Any:
        return F.array_contains(column, F.col("truth"))

    stands = F.col("stands")
    sums = (
        rows.withColumn("slice", F.explode("slices"))
        .groupBy("slice")
        .agg(
            F.count("*").alias("pairs"),
            count(F.col("named")).alias("named"),
            size(F.filter("mentions", lambda m: F.arrays_overlap(m, F.col("mentioned")))).alias("mentions_right"),
            size(F.filter("mentions", lambda m: F.size(m) > 0)).alias("mentions_all"),
            size(F.array_intersect("top", "mentioned")).alias("top_right"),
            size("top").alias("top_all"),
            size(F.array_intersect("candidates", "mentioned")).alias("mentioned_found"),
            size("mentioned").alias("mentioned_all"),
            count(right("labels")).alias("labels_right"),
            size("labels").alias("labels_all"),
            count(F.col("named") & right("labels")).alias("labels_found"),
            count(stands & right("published")).alias("published_right"),
            F.sum(F.when(stands, F.size("published")).otherwise(0)).alias("published_all"),
            count(stands & F.col("named") & right("published")).alias("published_found"),
            count(stands & F.col("named")).alias("published_named"),
        )
    )
    found = sorted((r.asDict() for r in sums.collect()), key=lambda r: (r["slice"] != "all", r["slice"]))
    steps = {
        "extract": ("mentions_right", "mentions_all", "mentioned_found", "mentioned_all"),
        "link": ("top_right", "top_all", "top_right", "mentioned_all"),
        "label": ("labels_right", "labels_all", "labels_found", "named"),
        "published": ("published_right", "published_all", "published_found", "published_named"),
    }
    return [
        {
            "stage": step,
            "slice": row["slice"],
            "pairs": row["pairs"],
            "precision": _ratio(row[keys[0]], row[keys[1]]),
            "recall": _ratio(row[keys[2]], row[keys[3]]),
            "counted": _STEPS[step],
        }
        for step, keys in steps.items()
        for row in found
    ]


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
