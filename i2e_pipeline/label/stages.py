"""Label: which candidates does each image get as labels, by what text and image say together?

Reads    scores · candidates · wider · pairs · mentions · the feature columns of stages from outside
Writes   labels
Rejects  below_bar
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from i2e_pipeline.core.config import Config, VerifyConfig
from i2e_pipeline.core.schemas import LABELS, Reason
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.stage import Plan, Run, Stage, StageError, WhichUnits
from i2e_pipeline.engine.tables import Kernel
from i2e_pipeline.engine.units import Unit
from i2e_pipeline.label.calibration import DEFAULT, FEATURES, OPTIONAL, Calibration
from i2e_pipeline.label.labels import choose_labels
from i2e_pipeline.label.wider import GAP, STEPS, WIDER_OF

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_PAIRS_PER_TASK = 100_000


class Label(Stage):
    name, job, rows_are = "label", "build_dataset", "pairs"
    version = 3  # each label says which words proposed it
    does = "choose labels by text and image together"
    after = ("score",)
    reads = ("scores", "candidates", "wider", "pairs", "mentions")
    tables = {
        "labels": Table(
            LABELS,
            key=("pair_id", "entity_id"),
            holds="every scored candidate with its probability; `reason`: why it is no label, null: chosen",
            narrowable=True,
        )
    }
    passes = Passed("labels", ("pair_id",), where_null="reason")
    reasons = {
        Reason.BELOW_BAR: "No candidate is likely enough to be right, with what text and image say taken together.",
    }
    sections = ("label", "verify")
    leaves_out = {
        "label.calibration": "its features, weights and bias are in the fingerprint, not where it lies",
        **{
            f"verify.{key}": "verdicts, and their weight among the features, hold what it changes"
            for key in VerifyConfig.model_fields
        },
    }
    stored_as = {"label.threshold": "bar"}

    def settings(self, config: Config) -> dict[str, Any]:
        calibration = calibration_of(config)
        other = calibration.without_vocabulary
        return {
            **super().settings(config),
            "bar": calibration.threshold if config.label.threshold is None else config.label.threshold,
            "features": list(calibration.features),
            "weights": list(calibration.weights),
            "bias": calibration.bias,
            **({"without_vocabulary": [*other.features, *other.weights, other.bias]} if other is not None else {}),
        }

    def weighs(self, config: Config) -> dict[str, Any]:
        return {"wider_gap": GAP} if config.label.wider else {}

    def further_columns(self, config: Config, units: Sequence[Unit]) -> Mapping[str, pa.Schema]:
        return {"labels": pa.schema([pa.field(WIDER_OF, pa.int64())])} if config.label.wider else {}

    def check(self, run: Run) -> None:
        known = [*FEATURES, *run.feature_names()]
        if unknown := [f for f in calibration_of(run.config).features if f not in known]:
            raise StageError(
                f"label.calibration={run.config.label.calibration} weighs {', '.join(unknown)}, which no stage gives; "
                f"known are {', '.join(known)}. Name the stage in `stages`, or fit anew with `i2e calibrate`"
            )

    def depends_on(self, run: Run) -> tuple[str, ...]:
        """Also on the stages that give features which the calibration weighs."""
        weighed = set(calibration_of(run.config).features)
        givers = [s.name for s in run.feature_givers() if weighed & set(s.features)]
        return tuple(dict.fromkeys((*super().depends_on(run), *givers)))

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("scores", units, by=("pair_id",))

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from pyspark.sql import functions as F

        weighed = [f for f in calibration_of(run.config).features if f not in FEATURES]
        option = F.struct(
            "start",
            "end",
            "entity_id",
            "clip_score",
            "background_z",
            "described",
            *OPTIONAL,
            F.col("probability").alias("text_probability"),
            "surface",
            *weighed,
            *([WIDER_OF, STEPS] if run.config.label.wider else []),
        )
        words = run.read("mentions", units, [*_SPAN[1:], "surface"])
        pairs = (
            (_with_wider(run, units, words) if run.config.label.wider else scored_candidates(run, units, words))
            .groupBy("unit", "pair_id", "image_id", "shard", "row", "width", "height")
            .agg(F.sort_array(F.collect_list(option)).alias("options"))
        )
        calibration, settings = calibration_of(run.config), run.config.label

        def make_kernel() -> Kernel:
            return partial(
                choose_labels,
                calibration=calibration,
                threshold=settings.threshold,
                max_labels=settings.max_labels_per_image,
            )

        expected = run.rows_by_unit("scores", units, by=("pair_id",))
        return Plan(run.in_unit_order(pairs, expected, ["pair_id"], _PAIRS_PER_TASK), make_kernel, expected)


def calibration_of(config: Config) -> Calibration:
    """The one that the config names, or the default; with a verifier, one that weighs verdicts."""
    own = DEFAULT if config.label.calibration is None else Calibration.load(config.label.calibration)
    return own.with_verdicts(config.verify.reliability) if config.verify.on else own


_SPAN = ("unit", "text_id", "start", "end")


def scored_candidates(run: Run, units: WhichUnits = None, words: DataFrame | None = None) -> DataFrame:
    """A row per scored pair, mention and entity of units (None: of all): what text and image say, and the features
    that stages from outside give.

    words   further columns of mentions, by text_id, start, end
    """
    return _scored(run, _with_words(run.read("candidates", units, [*_SPAN, "entity_id", "probability"]), words), units)


def _with_words(candidates: DataFrame, words: DataFrame | None) -> DataFrame:
    # Before the pairs come, of which a text has many: so rows stay narrow while they are shuffled by text.
    return candidates if words is None else candidates.join(words, [*_SPAN], how="inner")


def _with_wider(run: Run, units: WhichUnits, words: DataFrame) -> DataFrame:
    """The same, and a row per scored pair, candidate and entity above it, with the candidate's probability by the text;
    `wider_of` and `steps` are null of the candidates themselves."""
    from pyspark.sql import functions as F

    span = [*_SPAN]
    own = run.read("candidates", units, [*span, "entity_id", "probability"])
    below = own.withColumnRenamed("entity_id", WIDER_OF)
    # Without those whose candidate the stages between have left out.
    wider = run.read("wider", units, [*span, "entity_id", WIDER_OF, STEPS]).join(below, [*span, WIDER_OF], how="inner")
    neither = {name: F.lit(None).cast(kind) for name, kind in ((WIDER_OF, "long"), (STEPS, "int"))}
    return _scored(run, _with_words(own.withColumns(neither).unionByName(wider), words), units)


def _scored(run: Run, candidates: DataFrame, units: WhichUnits) -> DataFrame:
    """Candidates by text, brought to the pairs that were scored with them."""
    scores = run.read(
        "scores",
        units,
        [
            "unit",
            "pair_id",
            "entity_id",
            "image_id",
            "shard",
            "row",
            "clip_score",
            "background_z",
            "described",
            *OPTIONAL,
            "width",
            "height",
        ],
    )
    texts = run.read("pairs", units, ["unit", "pair_id", "text_id"])
    joined = scores.join(texts, ["unit", "pair_id"], how="inner").join(
        candidates, ["unit", "text_id", "entity_id"], how="inner"
    )
    return run.with_features(joined, units)
