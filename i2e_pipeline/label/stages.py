"""Label: which candidates does each image get as labels, by what text and image say together?

Reads    scores · candidates · pairs
Writes   labels
Rejects  below_bar
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core.config import Config
from i2e_pipeline.engine.stage import Plan, Run, Stage
from i2e_pipeline.engine.tables import Counting, Kernel
from i2e_pipeline.label.calibration import DEFAULT, Calibration
from i2e_pipeline.label.labels import choose_labels

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Label(Stage):
    name, job, does, rows_are = "label", "build_dataset", "choose labels", "pairs"
    after = ("score",)
    writes = ("labels",)

    def settings(self, config: Config) -> dict[str, Any]:
        calibration = calibration_of(config)
        return {
            "bar": calibration.bar if config.build.bar is None else config.build.bar,
            "max_labels_per_image": config.build.max_labels_per_image,
            "features": list(calibration.features),
            "weights": list(calibration.weights),
            "bias": calibration.bias,
        }

    def rows_to_do(self, run: Run, unit: str) -> int:
        return sum(c.rows_out for c in run.committed("score", unit))

    def plan(self, run: Run, unit: str) -> Plan:
        from pyspark.sql import functions as F

        option = F.struct(
            "start",
            "end",
            "entity_id",
            "clip_score",
            "background_z",
            "described",
            F.col("probability").alias("text_probability"),
        )
        pairs = (
            scored_candidates(run, unit)
            .groupBy("pair_id", "image_id", "shard", "row", "width", "height")
            .agg(F.sort_array(F.collect_list(option)).alias("options"))
        )
        calibration, build = calibration_of(run.config), run.config.build

        def make_kernel() -> Kernel:
            return partial(choose_labels, calibration=calibration, bar=build.bar, max_labels=build.max_labels_per_image)

        scored = self.rows_to_do(run, unit)
        counting = Counting(passed_table="labels", passed_key=("pair_id",), passed_where_null="reason")
        return Plan(pairs, make_kernel, ("labels",), counting, rows_expected=scored)


def calibration_of(config: Config) -> Calibration:
    """The one that the config names, or the default."""
    return DEFAULT if config.build.calibration is None else Calibration.load(config.build.calibration)


def scored_candidates(run: Run, unit: str) -> DataFrame:
    """A row per scored pair, mention and entity of a unit: what text and image say."""
    scores = run.tables.read(
        "scores",
        run.committed("score", unit),
        [
            "pair_id",
            "entity_id",
            "image_id",
            "shard",
            "row",
            "clip_score",
            "background_z",
            "described",
            "width",
            "height",
        ],
    )
    texts = run.tables.read("pairs", run.committed("pairs", unit), ["pair_id", "text_id"])
    candidates = run.tables.read(
        "candidates", run.committed("link", unit), ["text_id", "start", "end", "entity_id", "probability"]
    )
    return scores.join(texts, "pair_id", how="inner").join(candidates, ["text_id", "entity_id"], how="inner")
