"""Rerank: what do the mentions mean that linking is unsure of?

Reads    candidates · texts · kb/entities
Writes   reranked, which the stages behind read in the place of candidates

A mention is unsure whose two most probable candidates are less than `link.reranker.margin` apart. Of these the ones of
the smallest margins are looked at again, `link.reranker.budget` of a unit's mentions at most. All others pass as they
are.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core.config import Config
from i2e_pipeline.core.schemas import RERANKED
from i2e_pipeline.engine import cluster
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.shipping import Shipped
from i2e_pipeline.engine.stage import Plan, Run, Stage, StageError
from i2e_pipeline.engine.tables import Commit, Kernel
from i2e_pipeline.rerank import reranker
from i2e_pipeline.rerank.again import ASKED, CHANGED, UNSURE, look_again

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger(__name__)

_SPAN = ("unit", "text_id", "start", "end")
_MENTIONS_PER_TASK = 50_000
_HOW = {
    "device": "scores are the same on every device, up to rounding",
}


class Rerank(Stage):
    name, job, rows_are = "rerank", "link_entities", "mentions"
    does = "look again at the names that linking is unsure of"
    after = ("link",)
    reads = ("candidates", "texts", "kb/entities")
    tables = {
        "reranked": Table(
            RERANKED,
            key=("text_id", "start", "end", "entity_id"),
            holds="the candidates after a second look; `first_probability` is that of linking, `score` the reranker's, "
            "null where it was not asked",
        )
    }
    passes = Passed("reranked", ("text_id", "start", "end"))
    replaces = "candidates"
    sections = ("link",)
    counts = (UNSURE, ASKED, CHANGED)

    def settings(self, config: Config) -> dict[str, Any]:
        try:
            return {"code": reranker.SCORES, **config.link.reranker.fingerprint(leave_out=_HOW)}
        except FileNotFoundError as error:
            raise StageError(f"link.reranker.{error}") from None

    def check(self, run: Run) -> None:
        try:
            reranker.about(_folder(run))
        except reranker.NoReranker as error:
            raise StageError(f"link.reranker.model: {error}") from None

    def told(self, commits: Sequence[Commit]) -> dict[str, int]:
        found: Counter[str] = Counter()
        for commit in commits:
            found.update(commit.facts.get("notes", {}))
        return {what: found[what] for what in self.counts} if commits else {}

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("candidates", units, by=_SPAN[1:])

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from pyspark.sql import functions as F

        settings = run.config.link.reranker
        expected = self.rows_to_do(run, units)
        mentions = _mentions(run, units)
        asked = _to_ask(run, mentions, expected)
        candidate = F.explode("candidates").alias("candidate")
        told = (
            asked.select(*_SPAN, candidate)
            .select(*_SPAN, F.col("candidate.entity_id").alias("entity_id"))
            .join(
                run.read("kb/entities", columns=["entity_id", "name", "description", "coarse_type"]),
                "entity_id",
                "left",
            )
            .groupBy(*_SPAN)
            .agg(F.collect_list(F.struct("entity_id", "name", "description", "coarse_type")).alias("told"))
        )
        texts = run.read("texts", units, ["text_id", "text"])
        questions = told.join(texts, ["unit", "text_id"], "inner")
        rows = mentions.join(questions, [*_SPAN], "left").select(
            *_SPAN[1:], "candidates", "unsure", "told", "text", "unit"
        )
        folder, content = run.ship(_folder(run)), run.settings_of(self)["model"]
        options = {"bfloat16": settings.dtype == "bfloat16", "batch": settings.batch_size}

        def make_kernel() -> Kernel:
            return partial(look_again, reranker=_loaded(folder, content, settings.device, options))

        in_order = run.in_unit_order(rows, expected, ["text_id"], _MENTIONS_PER_TASK)
        return Plan(in_order, make_kernel, expected, profile=cluster.profile(run.spark, run.config))


def _folder(run: Run) -> str:
    return str(run.config.link.reranker.model)


def _loaded(folder: Shipped, content: str, device: str, options: Mapping[str, Any]) -> reranker.Reranker:
    """In a worker: the model, kept for its life."""
    import torch

    from i2e_pipeline.images.encoder import choose_device

    torch.set_num_threads(cluster.task_cores(1))
    where = choose_device(cluster.task_device(device))
    return reranker.load_once(folder.local(), content, device=where, **options)


def _mentions(run: Run, units: Sequence[str]) -> DataFrame:
    """A row per mention: its candidates by rank, their margin, and whether that is unsure."""
    from pyspark.sql import functions as F

    candidates = run.read("candidates", units, [*_SPAN[1:], "entity_id", "prior", "probability", "rank"])
    by_rank = F.sort_array(F.collect_list(F.struct("rank", "entity_id", "prior", "probability")))
    by_probability = F.sort_array(F.collect_list("probability"), asc=False)
    margin = F.when(F.size("likely") > 1, F.col("likely")[0] - F.col("likely")[1])
    unsure = F.coalesce(F.col("margin") < F.lit(run.config.link.reranker.margin), F.lit(False))
    return (
        candidates.groupBy(*_SPAN)
        .agg(by_rank.alias("candidates"), by_probability.alias("likely"))
        .withColumn("margin", margin)
        .withColumn("unsure", unsure)
        .drop("likely")
    )


def _to_ask(run: Run, mentions: DataFrame, expected: Mapping[str, int]) -> DataFrame:
    """Those of the mentions that are asked: a unit's unsure ones of the smallest margins, as many as the budget allows.

    Says before how many these are.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    settings = run.config.link.reranker
    least_first = Window.partitionBy("unit").orderBy("margin", "text_id", "start", "end")
    limits = run.spark.createDataFrame(
        [(unit, int(settings.budget * rows + 1e-9)) for unit, rows in expected.items()], "unit string, limit long"
    )
    # Sorted are spans and margins alone: a unit's unsure ones stand in one task.
    places = mentions.where("unsure").select(*_SPAN, "margin").withColumn("place", F.row_number().over(least_first))
    chosen = places.join(F.broadcast(limits), "unit").where("place <= limit").select(*_SPAN)
    within = mentions.join(chosen, [*_SPAN], "left_semi")
    counted = within.select(F.size("candidates").alias("candidates")).agg(F.count("*"), F.sum("candidates")).first()
    asked, candidates = (int(n or 0) for n in (counted or (0, 0)))
    total = sum(expected.values())
    log.info(
        "rerank: %s of %s mentions (%.1f %%), with %s candidates, are looked at again; the budget allows %.1f %%",
        f"{asked:,}", f"{total:,}", 100 * asked / max(total, 1), f"{candidates:,}", 100 * settings.budget,
    )  # fmt: skip
    return within
