"""Rerank: what do the mentions mean that linking is unsure of?

candidate_vectors  Reads   candidates · kb/entities   Writes  candidate_vectors, where the reranker is a bi-encoder
rerank             Reads   candidates · texts · kb/entities · candidate_vectors
                   Writes  reranked, which the stages behind read in the place of candidates

A mention is unsure whose two most probable candidates are less than `link.reranker.margin` apart. Of these the ones of
the smallest margins are looked at again, `link.reranker.budget` of a unit's mentions at most. All others pass as they
are.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core.config import Config, digest
from i2e_pipeline.core.schemas import CANDIDATE_VECTORS, RERANKED
from i2e_pipeline.engine import cluster
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.shipping import Shipped
from i2e_pipeline.engine.stage import Made, Plan, Run, Stage, StageError
from i2e_pipeline.engine.tables import Commit, Counting, Kernel
from i2e_pipeline.rerank import reranker
from i2e_pipeline.rerank.again import ASKED, CHANGED, UNSURE, look_again
from i2e_pipeline.rerank.encode import OF_CANDIDATES, encode_candidates
from i2e_pipeline.rerank.vectors import CandidateVectors

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger(__name__)

_SPAN = ("unit", "text_id", "start", "end")
_MENTIONS_PER_TASK = 50_000
_HOW = {
    "device": "scores are the same on every device, up to rounding",
}
_OF_WHOM = {
    "margin": "a vector does not depend on who is asked about it",
    "budget": "a vector does not depend on who is asked about it",
    "batch_size": "entities are encoded in batches of their own",
}


def stages_of(config: Config) -> list[Stage]:
    """The stages of the reranker that the config names; none where it names none."""
    model = config.link.reranker.model
    if model is None:
        return []
    try:
        by_vectors = reranker.about(str(model)).kind == "bi"
    except reranker.NoReranker:  # the stages themselves will say so, when they are to run
        by_vectors = True
    return [EncodeCandidates(), RerankByVectors()] if by_vectors else [Rerank()]


class EncodeCandidates(Stage):
    """Each run adds a segment of the entities that no earlier segment holds, as the stage entity_vectors does."""

    name, job, rows_are = "candidate_vectors", "link_entities", "entities"
    does = "encode what a reranker is told of entities"
    scope = "segments"
    after = ("knowledge_base",)
    reads = ("candidates", "kb/entities", "candidate_vectors")
    tables = {
        "candidate_vectors": Table(
            CANDIDATE_VECTORS,
            key=("entity_id",),
            holds="the bi-encoder's vector of what it is told of each entity that some mention may mean of which it is "
            "asked",
        )
    }
    passes = Passed("candidate_vectors", ("entity_id",))
    in_funnel = per_pair = False
    spares = True
    sections = ("link",)
    leaves_out = {
        **{f"link.reranker.{key}": why for key, why in {**_HOW, **_OF_WHOM}.items()},
        **{
            f"link.{key}": "what is known of an entity does not depend on who links it"
            for key in ("max_candidates", "min_probability", "context_weight", "nil_weight", "weights")
        },
    }

    def settings(self, config: Config) -> dict[str, Any]:
        return _settings(config, {**_HOW, **_OF_WHOM})

    def check(self, run: Run) -> None:
        _check(run)

    def all_units(self, run: Run) -> list[str]:
        """The segments that are there, and a new one if the mentions of some unit are in none of them."""
        made = [c for c in run.tables.commits(self.name).values() if c.fingerprint == run.fingerprints[self.name]]
        missing = sorted(_links(run).keys() - _covered(made))
        return sorted(c.unit for c in made) + ([f"s-{digest(missing)[:12]}"] if missing else [])

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(units, 0)

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made], None, None]:
        from pyspark.sql import functions as F

        (unit,) = units
        links, others = _links(run), [c for c in run.committed(self.name) if c.unit != unit]
        asking = sorted({of for link, of in links.items() if link not in _covered(others)})
        asked = _to_ask(run, _mentions(run, asking), run.rows_by_unit("candidates", asking, by=_SPAN[1:]))
        candidate = asked.select(F.explode("candidates").alias("candidate"))
        wanted = candidate.select(F.col("candidate.entity_id").alias("entity_id")).distinct()
        if others:
            wanted = wanted.join(run.read("candidate_vectors", columns=["entity_id"]), "entity_id", "left_anti")
        rows = run.read("kb/entities", columns=[*OF_CANDIDATES]).join(wanted, "entity_id")
        load = _loader(run, self)

        def make_kernel() -> Kernel:
            return partial(encode_candidates, reranker=load())

        written = run.tables.write(
            rows.orderBy("entity_id"), make_kernel, self.name, unit, tuple(self.tables), Counting(passed=self.passes),
            cluster.profile(run.spark, run.config),
        )  # fmt: skip
        yield [self.conclude(run, unit, [written], facts={"links": sorted(links)})]


class Rerank(Stage):
    name, job, rows_are = "rerank", "link_entities", "mentions"
    does = "look again at the names that linking is unsure of"
    after = ("link",)
    reads: tuple[str, ...] = ("candidates", "texts", "kb/entities")
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
    leaves_out = {f"link.reranker.{key}": why for key, why in _HOW.items()}
    counts = (UNSURE, ASKED, CHANGED)

    def settings(self, config: Config) -> dict[str, Any]:
        return _settings(config, _HOW)

    def check(self, run: Run) -> None:
        _check(run)

    def told(self, commits: Sequence[Commit]) -> dict[str, int]:
        found: Counter[str] = Counter()
        for commit in commits:
            found.update(commit.facts.get("notes", {}))
        return {what: found[what] for what in self.counts} if commits else {}

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("candidates", units, by=_SPAN[1:])

    def known(self, run: Run) -> Callable[[], CandidateVectors | None]:
        """In a worker: vectors of candidates that are known already."""
        return lambda: None

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from pyspark.sql import functions as F

        expected = self.rows_to_do(run, units)
        mentions = _mentions(run, units)
        asked = _to_ask(run, mentions, expected)
        _say(asked, expected, run.config.link.reranker.budget)
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
        load, known = _loader(run, self), self.known(run)

        def make_kernel() -> Kernel:
            return partial(look_again, reranker=load(), known=known())

        in_order = run.in_unit_order(rows, expected, ["text_id"], _MENTIONS_PER_TASK)
        return Plan(in_order, make_kernel, expected, profile=cluster.profile(run.spark, run.config))


class RerankByVectors(Rerank):
    """The same by a bi-encoder, with the vectors that are kept; what has none is encoded, so it does not wait for
    candidate_vectors where that takes no part (`i2e link`)."""

    reads = (*Rerank.reads, "candidate_vectors")

    def known(self, run: Run) -> Callable[[], CandidateVectors | None]:
        takes_part = any(EncodeCandidates.name == stage.name for stage in run.stages)
        segments = run.commits_of("candidate_vectors") if takes_part else []
        paths = [run.tables.path("candidate_vectors", f.path) for c in segments for f in c.files["candidate_vectors"]]
        key = digest([f"{c.fingerprint} {c.unit} {c.edition}" for c in segments])
        return lambda: CandidateVectors.from_files(paths, key) if paths else None


def _settings(config: Config, leave_out: Mapping[str, str]) -> dict[str, Any]:
    try:
        return {"code": reranker.SCORES, **config.link.reranker.fingerprint(leave_out=leave_out)}
    except FileNotFoundError as error:
        raise StageError(f"link.reranker.{error}") from None


def _check(run: Run) -> None:
    try:
        reranker.about(_folder(run))
    except reranker.NoReranker as error:
        raise StageError(f"link.reranker.model: {error}") from None


def _links(run: Run) -> Mapping[str, str]:
    """The units' links that the run counts, each by unit, fingerprint and who of them is asked; to the unit."""
    settings = run.config.link.reranker
    who = f"{settings.margin}:{settings.budget}"
    return {f"{c.unit}:{c.fingerprint}:{who}": c.unit for c in run.commits_of("candidates")}


def _covered(segments: Iterable[Commit]) -> set[str]:
    return {link for commit in segments for link in commit.facts["links"]}


def _folder(run: Run) -> str:
    return str(run.config.link.reranker.model)


def _loader(run: Run, stage: Stage) -> Callable[[], reranker.Reranker]:
    """What loads the reranker in a worker."""
    settings = run.config.link.reranker
    options = {"bfloat16": settings.dtype == "bfloat16", "batch": settings.batch_size}
    return partial(_loaded, run.ship(_folder(run)), run.settings_of(stage)["model"], settings.device, options)


def _loaded(folder: Shipped, content: str, device: str, options: Mapping[str, Any]) -> reranker.Reranker:
    """In a worker: the model, kept for its life."""
    import torch

    from i2e_pipeline.core.machine import choose_device

    torch.set_num_threads(cluster.task_cores(1))
    where = choose_device(cluster.task_device(device), "link.reranker.device")
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
    """Those of the mentions that are asked: a unit's unsure ones of the smallest margins, as many as the budget
    allows."""
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
    return mentions.join(chosen, [*_SPAN], "left_semi")


def _say(within: DataFrame, expected: Mapping[str, int], budget: float) -> None:
    """Say how many are asked, before they are."""
    from pyspark.sql import functions as F

    counted = within.select(F.size("candidates").alias("candidates")).agg(F.count("*"), F.sum("candidates")).first()
    asked, candidates = (int(n or 0) for n in (counted or (0, 0)))
    total = sum(expected.values())
    log.info(
        "rerank: %s of %s mentions (%.1f %%), with %s candidates, are looked at again; the budget allows %.1f %%",
        f"{asked:,}", f"{total:,}", 100 * asked / max(total, 1), f"{candidates:,}", 100 * budget,
    )  # fmt: skip
