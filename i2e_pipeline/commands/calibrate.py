"""`i2e calibrate`: fit the probability that a label is right, and the threshold, on pairs whose truth is known.

Truth are columns of the input (inputs/truth.py), and marks that people made of single labels (inputs/marks.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.units import InputError
from i2e_pipeline.inputs import marks as marked
from i2e_pipeline.label import judged
from i2e_pipeline.label.calibration import FITTED, OPTIONAL, CalibrationError
from i2e_pipeline.label.fit import MARKS_OF_A_FIT, MARKS_OF_A_SHIFT, WEIGHT, fit, report, rounded, shifted
from i2e_pipeline.label.stages import calibration_of, scored_candidates
from i2e_pipeline.report import quality
from wikidata import merges

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger(__name__)

_MOST_PAIRS = 500_000
"""Pairs that a calibration looks at, drawn by hash of their id. More would not change it, and the driver holds them."""


@dataclass(frozen=True)
class Marks:
    """The marks that a calibration takes as truth, and how many there are of which kind."""

    path: str
    labels: pa.Table
    """image_id, entity_id, mark, other, weight: of each label one, none unsure, ids of merged items followed."""
    counts: dict[str, int] = field(default_factory=dict)
    """drawn and by_eye, decided ones; unsure; all of them, whether they count or not."""

    @classmethod
    def read(cls, path: str, all_marks: bool) -> Marks:
        """Those that were drawn, each with its weight; with all_marks all, each with the same.

        Raises MarkError for a file that holds none, NoSuchFile where there is none.
        """
        table = marked.read(path)
        unsure = pc.equal(table["mark"], marked.UNSURE)
        decided = table.filter(pc.invert(unsure))
        drawn = decided.filter(pc.is_valid(decided["weight"]))
        counts = {
            "drawn": drawn.num_rows,
            "by_eye": decided.num_rows - drawn.num_rows,
            "unsure": table.num_rows - decided.num_rows,
        }
        if all_marks:
            drawn = decided.set_column(decided.schema.get_field_index("weight"), "weight", _ones(decided.num_rows))
        return cls(path, drawn.select(["image_id", "entity_id", "mark", "other", "weight"]), counts)


def calibrate(
    pipeline: Pipeline,
    shards: set[int] | None,
    precision: float,
    write: str,
    marks: str | None = None,
    all_marks: bool = False,
) -> dict[str, Any]:
    """Run the chain up to the scores, fit on these shards (None: all), write the calibration; returns the figures.

    marks      a file of marks (inputs/marks.py): truth beside the input's own, or without it. Where they are too few
               to fit on, and the input has no truth, the calibration of the config is shifted
    all_marks  take those that nobody drew, too
    Raises InputError where the pairs have no truth, or marks are fewer than a shift needs.
    """
    config = pipeline.config
    said = None if marks is None else Marks.read(marks, all_marks)
    if said is not None:
        _refuse_few(said, said.labels.num_rows)  # before anything is run
    run, table = scored(pipeline, said)
    here = pa.array(sorted({f.shard for u in run.units for f in u.files} if shards is None else shards), pa.int64())
    fitting = pc.is_in(table.column("shard").cast(pa.int64()), here)
    fitted = table.filter(fitting)
    if fitted.num_rows == 0:
        raise InputError(f"no pairs of known truth in shards {sorted(here.to_pylist())}: nothing to calibrate on")
    on = f"{config.score.model.rpartition('/')[2]}, shards {', '.join(str(s) for s in here.to_pylist())}"
    options = options_of(fitted)
    figures: dict[str, Any] = {}
    few = ""
    if said is not None:
        used = _marked_labels(options)
        _refuse_few(said, used, in_shards=shards is not None)
        figures["marks"] = {"file": said.path, **said.counts, "used": used}
        of_truth = pc.any(fitted.column("of_truth")).as_py()
        on += f", {used} marks" + (" and the truth of the input" if of_truth else "")
        if not of_truth and used < MARKS_OF_A_FIT:
            few = f"{used} marks of labels that are scored; a fit of weights and threshold needs {MARKS_OF_A_FIT}"
    calibration = None
    if not few:
        try:
            calibration = fit(
                options,
                target_precision=precision,
                names=(*FITTED, *run.feature_names()),
                fitted_on=on,
                named_images=named_images(fitted),
            )
        except CalibrationError as error:
            if said is None or of_truth:
                raise
            few = str(error)
    if calibration is None:
        base = calibration_of(config)
        on = f"{on}: the bias alone; all else is of {base.fitted_on or config.label.calibration}"
        calibration = shifted(options, base, on, config.label.threshold)
        log.warning("%s. So nothing is fitted, and the calibration of label.calibration is shifted", few)
        figures["shifted"] = {"why": few, **calibration.measured}
    calibration = rounded(calibration)
    calibration.save(write)
    log.info("calibration written to %s: set label.calibration to it", write)
    held_out = table.filter(pc.invert(fitting))
    figures |= {"fitted_on": on, "threshold": calibration.threshold}
    if "shifted" not in figures:
        figures["cross_validated"] = calibration.measured
    figures["on_fitting_shards"] = report(options, calibration, named_images(fitted))
    if held_out.num_rows:
        figures["held_out_shards"] = report(options_of(held_out), calibration, named_images(held_out))
    return figures


def _refuse_few(marks: Marks, used: int, in_shards: bool = False) -> None:
    """Raise InputError where a calibration cannot even be shifted."""
    if used >= MARKS_OF_A_SHIFT:
        return
    where = "" if used == marks.labels.num_rows else " of labels that are scored" + (" in these shards" * in_shards)
    by_eye = marks.counts["by_eye"]
    eye = f"; {by_eye} of labels that nobody drew do not count without --all-marks" if by_eye else ""
    raise InputError(
        f"{marks.path}: {used} drawn marks{where}, and {MARKS_OF_A_SHIFT - used} are missing to shift a calibration"
        f"{eye}. Mark labels that `i2e explore` draws"
    )


def _marked_labels(options: pa.Table) -> int:
    """Distinct labels that were marked right or wrong, and count."""
    known = pc.and_(options.column("marked"), pc.is_valid(judged.right(options)))
    return options.filter(known).group_by(["image_id", "entity_id"]).aggregate([]).num_rows


def _ones(rows: int) -> pa.Array:
    return pa.array(np.ones(rows), pa.float64())


def scored(pipeline: Pipeline, marks: Marks | None = None) -> tuple[Run, pa.Table]:
    """Run the chain up to the scores; what a fit sees of the pairs of known truth (`_scored_with_truth`).

    Raises InputError where the pairs have no truth.
    """
    label = pipeline.writer("labels")
    with pipeline.exclusive():
        run, _ = pipeline.run(pipeline.before(label))
        # What the stage that chooses labels would see: without the rows that stages before it left out.
        run = replace(run, reader=run.stage(label))
        return run, _scored_with_truth(run, marks)


def options_of(table: pa.Table) -> pa.Table:
    """Rows that have a candidate. Pairs without one are in the table only to be counted."""
    return table.filter(pc.is_valid(table.column("entity_id")))


def named_images(table: pa.Table) -> int:
    """Distinct images whose text names what they show; an image that could not be scored counts by its pair."""
    named = table.filter(table.column("named"))
    images = pc.if_else(pc.is_valid(named.column("image_id")), named.column("image_id"), named.column("pair_id"))
    return len(pc.unique(images))


def _scored_with_truth(run: Run, marks: Marks | None = None) -> pa.Table:
    """pair_id, shard, what is known of the image (label/judged.py), named, and what text and image say: a row per
    candidate, or one with nulls for a pair that has none.

    With marks also of_truth (the input says something of the pair), marked, and weight: of a marked label its own,
    scaled so that they are 1 on average, 1 of a label that the input alone knows, null where nobody drew what is known.
    """
    from pyspark.sql import functions as F

    columns, pairs = quality.truth_columns(run), run.config.pairs
    if columns is None and marks is None:
        raise InputError(
            f"the pairs have no column {pairs.truth_column!r} (pairs.truth_column): calibration needs pairs of known "
            "truth, or marks (--marks)"
        )
    known = _of_truth(run, columns or quality.TruthColumns((), False), columns is not None)
    further: tuple[str, ...] = ()
    if marks is not None:
        marks = _followed(marks, run)
        known, further = _with_marks(run, known, marks), ("affirmed", "of_truth")
    scored = scored_candidates(run).drop("unit", "shard", "row", "width", "height", "text_id")
    # Of a crawl, few pairs are known; they alone are counted and drawn from.
    everything = known.join(scored, "pair_id", how="left")
    total = known.count()
    if total > _MOST_PAIRS:
        share = F.pmod(F.xxhash64("pair_id"), F.lit(1 << 20)) < F.lit(int((1 << 20) * _MOST_PAIRS / total))
        everything = everything.where(share | F.col("affirmed").isNotNull() if marks is not None else share)
    table = (
        quality.with_wider(everything, run, columns or quality.TruthColumns((), False))
        .select(
            "pair_id",
            "image_id",
            "shard",
            "truth",
            "nothing",
            "refuted",
            *further,
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
    return table if marks is None else _with_weights(table, marks)


def _of_truth(run: Run, columns: quality.TruthColumns, there: bool) -> DataFrame:
    """pair_id, truth, nothing, refuted, wider, named, shard of the pairs of which the input says anything."""
    from pyspark.sql import functions as F

    kinds = "pair_id binary, truth long, nothing boolean, refuted array<long>, wider array<string>, named boolean, "
    if not there:
        return run.spark.createDataFrame([], kinds + "shard int")
    truth = quality.truth(run, columns)
    unread = truth.where(F.col("unread").isNotNull()).agg(F.count("*"), F.min("unread")).collect()[0]
    if unread[0]:
        raise InputError(quality.unread_truths(unread[0], unread[1], run.config.pairs.truth_column))
    named = F.coalesce(F.array_contains("mentioned", F.col("truth")), F.lit(False)).alias("named")
    known = truth.select("pair_id", "truth", "nothing", "refuted", "wider", named, "shard")
    return known.where("truth is not null or nothing or size(refuted) > 0")


def _followed(marks: Marks, run: Run) -> Marks:
    """The marks under the ids that merged items have today; of a label that was marked under both, the later one."""
    ids = pa.concat_arrays([marks.labels[name].combine_chunks() for name in ("entity_id", "other")]).drop_null()
    old, into = quality.redirects_of(run, run.spark.createDataFrame(pa.table({"entity_id": ids})))
    labels = marks.labels
    for name in ("entity_id", "other") if len(old) else ():
        at = labels.schema.get_field_index(name)
        labels = labels.set_column(at, name, merges.followed_in(labels[name].combine_chunks(), old, into))
    last = {(r["image_id"], r["entity_id"]): r for r in labels.to_pylist()}
    return replace(marks, labels=pa.Table.from_pylist([*last.values()], labels.schema))


def _with_marks(run: Run, known: DataFrame, marks: Marks) -> DataFrame:
    """What is known of pairs, and of all pairs of the marked images what the marks say; what they say counts where the
    input says otherwise. Further columns: affirmed (null: not marked), of_truth."""
    from pyspark.sql import functions as F

    said: dict[bytes, tuple[list[int], list[int]]] = {}
    for row in marks.labels.to_pylist():
        yes, no = said.setdefault(row["image_id"], ([], []))
        (yes if row["mark"] == marked.RIGHT else no).append(row["entity_id"])
        if row["other"] is not None:
            yes.append(row["other"])
    by_image = run.spark.createDataFrame(
        # What was marked itself counts before what a mark of another label says beside.
        [(image, sorted(set(yes) - set(no)), no) for image, (yes, no) in said.items()],
        "image_id binary, affirmed array<long>, denied array<long>",
    )
    images = run.read("scores", columns=["pair_id", "image_id", "shard"]).distinct()
    of_marks = images.join(F.broadcast(by_image), "image_id", how="inner").drop("image_id")
    both = known.join(of_marks.withColumnRenamed("shard", "scored_shard"), "pair_id", how="full")
    denied = F.coalesce("denied", F.array().cast("array<long>"))
    affirmed = F.coalesce("affirmed", F.array().cast("array<long>"))
    refuted = F.array_except(F.array_union(F.coalesce("refuted", denied), denied), affirmed)
    return both.select(
        "pair_id",
        F.when(~F.array_contains(denied, F.col("truth")), F.col("truth")).alias("truth"),
        (F.coalesce("nothing", F.lit(False)) & (F.size(affirmed) == 0)).alias("nothing"),
        refuted.alias("refuted"),
        "affirmed",
        (F.col("truth").isNotNull() | F.coalesce("nothing", F.lit(False)) | F.col("refuted").isNotNull()).alias(
            "of_truth"
        ),
        "wider",
        F.coalesce("named", F.lit(False)).alias("named"),
        F.coalesce("shard", "scored_shard").alias("shard"),
    )


def _with_weights(table: pa.Table, marks: Marks) -> pa.Table:
    given = marks.labels["weight"].to_numpy()
    scale = 1 / given.mean() if len(given) else 1.0
    keys = zip(marks.labels["image_id"].to_pylist(), marks.labels["entity_id"].to_pylist(), strict=True)
    weight_of = dict(zip(keys, (given * scale).tolist(), strict=True))
    labels = zip(table["image_id"].to_pylist(), table["entity_id"].to_pylist(), strict=True)
    weight = pa.array([weight_of.get(label) for label in labels], pa.float64())
    table = table.append_column("marked", pc.is_valid(weight))
    return table.append_column(
        WEIGHT, pc.if_else(pc.and_(pc.is_null(weight), table["of_truth"].combine_chunks()), 1.0, weight)
    )
