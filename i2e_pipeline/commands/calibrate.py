"""`i2e calibrate`: fit the probability that a label is right, and the threshold, on pairs whose truth is known."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.units import InputError
from i2e_pipeline.label.calibration import FITTED, OPTIONAL
from i2e_pipeline.label.fit import fit, report, rounded
from i2e_pipeline.label.stages import scored_candidates
from i2e_pipeline.report import quality

log = logging.getLogger(__name__)

_MOST_PAIRS = 500_000
"""Pairs that a calibration looks at, drawn by hash of their id. More would not change it, and the driver holds them."""


def calibrate(pipeline: Pipeline, shards: set[int] | None, precision: float, write: str) -> dict[str, Any]:
    """Run the chain up to the scores, fit on these shards (None: all), write the calibration; returns the figures.

    Raises InputError where the pairs have no truth.
    """
    config = pipeline.config
    run, table = scored(pipeline)
    here = pa.array(sorted({f.shard for u in run.units for f in u.files} if shards is None else shards), pa.int64())
    fitting = pc.is_in(table.column("shard").cast(pa.int64()), here)
    fitted = table.filter(fitting)
    if fitted.num_rows == 0:
        raise InputError(f"no pairs of known truth in shards {sorted(here.to_pylist())}: nothing to calibrate on")
    on = f"{config.score.model.rpartition('/')[2]}, shards {', '.join(str(s) for s in here.to_pylist())}"
    options = {c: fitted.column(c) for c in fitted.column_names}
    calibration = rounded(
        fit(
            options_of(pa.table(options)),
            target_precision=precision,
            names=(*FITTED, *run.feature_names()),
            fitted_on=on,
            named_images=named_images(fitted),
        )
    )
    calibration.save(write)
    log.info("calibration written to %s: set label.calibration to it", write)
    held_out = table.filter(pc.invert(fitting))
    figures: dict[str, Any] = {
        "fitted_on": on,
        "threshold": calibration.threshold,
        "cross_validated": calibration.measured,
        "on_fitting_shards": report(options_of(fitted), calibration, named_images(fitted)),
    }
    if held_out.num_rows:
        figures["held_out_shards"] = report(options_of(held_out), calibration, named_images(held_out))
    return figures


def scored(pipeline: Pipeline) -> tuple[Run, pa.Table]:
    """Run the chain up to the scores; what a fit sees of the pairs of known truth (`_scored_with_truth`).

    Raises InputError where the pairs have no truth.
    """
    label = pipeline.writer("labels")
    with pipeline.exclusive():
        run, _ = pipeline.run(pipeline.before(label))
        # What the stage that chooses labels would see: without the rows that stages before it left out.
        run = replace(run, reader=run.stage(label))
        return run, _scored_with_truth(run)


def options_of(table: pa.Table) -> pa.Table:
    """Rows that have a candidate. Pairs without one are in the table only to be counted."""
    return table.filter(pc.is_valid(table.column("entity_id")))


def named_images(table: pa.Table) -> int:
    """Distinct images whose text names what they show; an image that could not be scored counts by its pair."""
    named = table.filter(table.column("named"))
    images = pc.if_else(pc.is_valid(named.column("image_id")), named.column("image_id"), named.column("pair_id"))
    return len(pc.unique(images))


def _scored_with_truth(run: Run) -> pa.Table:
    """pair_id, shard, what is known of the image (label/judged.py), named, and what text and image say: a row per
    candidate, or one with nulls for a pair that has none."""
    from pyspark.sql import functions as F

    columns, pairs = quality.truth_columns(run), run.config.pairs
    if columns is None:
        raise InputError(
            f"the pairs have no column {pairs.truth_column!r} (pairs.truth_column): calibration needs pairs of known "
            "truth"
        )
    truth = quality.truth(run, columns)
    unread = truth.where(F.col("unread").isNotNull()).agg(F.count("*"), F.min("unread")).collect()[0]
    if unread[0]:
        raise InputError(quality.unread_truths(unread[0], unread[1], pairs.truth_column))
    scored = scored_candidates(run).drop("unit", "shard", "row", "width", "height", "text_id")
    named = F.coalesce(F.array_contains("mentioned", F.col("truth")), F.lit(False)).alias("named")
    known = truth.select("pair_id", "truth", "nothing", "refuted", "wider", named, "shard")
    # Of a crawl, few pairs are known; they alone are counted and drawn from.
    known = known.where("truth is not null or nothing or size(refuted) > 0")
    everything = known.join(scored, "pair_id", how="left")
    total = known.count()
    if total > _MOST_PAIRS:
        share = F.pmod(F.xxhash64("pair_id"), F.lit(1 << 20)) < F.lit(int((1 << 20) * _MOST_PAIRS / total))
        everything = everything.where(share)
    return (
        quality.with_wider(everything, run, columns)
        .select(
            "pair_id",
            "image_id",
            "shard",
            "truth",
            "nothing",
            "refuted",
            "wider",
            "named",
            "start",
            "end",
            "entity_id",
            "clip_score",
            "background_z",
            "described",
            *OPTIONAL,
            F.col("probability").alias("text_probability"),
            *run.feature_names(),
        )
        .orderBy("pair_id", "start", "end", "entity_id")
        .toArrow()
    )
