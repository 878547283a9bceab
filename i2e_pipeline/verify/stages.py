"""Verify: which of its candidates does an image show, as a model says that is shown both?

Reads    scores · candidates · pairs · mentions · texts · kb/entities · the feature columns of stages from outside
         · the input shards' images · answers kept of before
Writes   verdicts; answers, as they come (engine/kept.py)

Stands between `score` and `label` where the config names a model or a server, and gives a feature, as a stage from
outside would. Two jobs: the first computes what `label` would say without a verdict, and finds the pairs in the band;
then it is known, and said, how many these are and how many the budget lets ask; the second asks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core import digests, files
from i2e_pipeline.core.config import Config, LabelConfig, VerifyConfig
from i2e_pipeline.engine import cluster, kept
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.shipping import Shipped, model_here
from i2e_pipeline.engine.stage import Made, RowsLost, Run, Stage, check_rows
from i2e_pipeline.engine.tables import Commit, Counting, Failed, Kernel, Written
from i2e_pipeline.label.calibration import FEATURES, OPTIONAL, VERDICT, Calibration
from i2e_pipeline.label.stages import calibration_of, scored_candidates
from i2e_pipeline.verify import asking, server
from i2e_pipeline.verify.answers import Answers
from i2e_pipeline.verify.asking import COUNTS, FAILED, NO_IMAGE, UNREADABLE, VERDICTS, Verifier, VerifierError
from i2e_pipeline.verify.first_pass import IN_BAND, QUESTIONS, first_pass, of_budget
from i2e_pipeline.verify.question import Template

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger(__name__)

_PAIRS_PER_TASK = 100_000
QUESTIONED = "questions"
"""In a commit's facts: pairs, in_band, asked."""
_TOLD = {"pairs": "pairs looked at", "in_band": "pairs in the band", "asked": "pairs asked about"}


class Verify(Stage):
    name, rows_are = "verify", "candidates"
    does = "ask a verifier what images show"
    after = ("link", "score")
    reads = ("scores", "candidates", "pairs", "mentions", "texts", "kb/entities")
    tables = {
        "verdicts": Table(
            VERDICTS,
            key=("pair_id", "entity_id"),
            holds="with `verify.model` or `verify.server`, each candidate of the pairs that are unsure by text and "
            "image: whether the verifier chose it (1) or not (-1), null where there is no verdict; `state` says why",
        )
    }
    scratch = {"questions": Table(QUESTIONS, key=("pair_id",), holds="the pairs in the band")}
    passes = Passed("verdicts", ("pair_id", "entity_id"))
    features = (VERDICT,)
    tells = ("state", "explanation")
    sees_images = True
    in_funnel = False
    sections = ("verify", "label")
    leaves_out = {
        **{f"label.{key}": "of how labels are chosen, probabilities alone count" for key in LabelConfig.model_fields},
        "verify.model": "the model's content says it",
        "verify.dtype": "the model's content says it",
        "verify.server": "it is the model that answers, wherever it is served",
        "verify.api_key_env": "how a server is reached changes no answer",
        "verify.prompt": "its content is in the fingerprint, the package's own too",
        "verify.reliability": "the stage `label` weighs verdicts",
        "verify.batch_size": "an answer does not depend on the others of its batch",
        "verify.device": "where a model runs is no part of what it says",
        **{
            f"verify.{key}": "how often, and how many at a time, is asked changes no answer"
            for key in ("rows_per_task", "requests", "timeout_s", "retries", "backoff_s", "max_failed")
        },
    }
    counts = COUNTS

    def settings(self, config: Config) -> dict[str, Any]:
        weighing = first_calibration(config, None)
        return {
            **super().settings(config),
            "asks": _asked_of(config.verify),
            "prompt": _template(config.verify).digest,
            "calibration": digests.of_bytes(repr(_numbers(weighing)).encode()),
        }

    def check(self, run: Run) -> None:
        config = run.config.verify
        _template(config)
        if config.model:
            _local().check(config)
        if config.server and not config.served_model:
            raise VerifierError(
                "verify.served_model is empty: name the model as the server knows it (GET /v1/models lists them)"
            )
        if config.server and cluster.is_local(cluster.master_of(run.config)):
            server.key_of(config)

    def prepare(self, run: Run) -> None:
        if self.name in run.redo:
            kept.forget_stage(run.tables.root, self.name)

    def depends_on(self, run: Run) -> tuple[str, ...]:
        """Also on the stages before it that give features which the calibration weighs."""
        weighed = set(calibration_of(run.config).features)
        givers = [s.name for s in run.feature_givers() if weighed & set(s.features)]
        return tuple(dict.fromkeys((*super().depends_on(run), *givers)))

    def told(self, commits: Sequence[Commit]) -> dict[str, int]:
        found: Counter[str] = Counter()
        for commit in commits:
            said = {_TOLD[name]: count for name, count in commit.facts[QUESTIONED].items()}
            found.update(said | commit.facts.get("notes", {}))
        wanted = (*_TOLD.values(), *COUNTS, UNREADABLE, FAILED, NO_IMAGE)
        return {what: found[what] for what in wanted} if commits else {}

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("scores", units, by=("pair_id",))

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made | Failed], None, None]:
        pairs = run.rows_by_unit("scores", units, by=("pair_id",))
        with run.tables.staging(self.name) as first, run.tables.staging(self.name) as second:
            found: dict[str, Written] = {}
            with closing(self._look(run, units, pairs, first)) as groups:
                for group in groups:
                    found |= {one[0]: one[1] for one in group if not isinstance(one, Failed)}
                    if failed := [one for one in group if isinstance(one, Failed)]:
                        yield failed
            if not found:
                return
            facts = {unit: _counted(pairs[unit], made, run.config.verify) for unit, made in found.items()}
            _say(facts)
            expected = {unit: made.notes.get(IN_BAND, 0) for unit, made in found.items()}
            with closing(self._ask(run, found, facts, expected, second)) as groups:
                for group in groups:
                    yield [
                        one if isinstance(one, Failed) else self._concluded(run, one, expected, facts) for one in group
                    ]

    def _concluded(
        self,
        run: Run,
        one: tuple[str, Written],
        expected: Mapping[str, int],
        facts: Mapping[str, Mapping[str, int]],
    ) -> Made | Failed:
        unit, written = one
        try:
            return self.conclude(
                run, unit, [written.only("verdicts", "rejects")], expected[unit], facts={QUESTIONED: dict(facts[unit])}
            )
        except RowsLost as error:
            return Failed(unit, f"{RowsLost.__name__}: {error}")

    def _look(
        self, run: Run, units: Sequence[str], pairs: Mapping[str, int], staging: str
    ) -> Generator[list[tuple[str, Written] | Failed], None, None]:
        """The first job: the pairs in the band of each unit, all of whose pairs were looked at."""
        config, calibration = run.config.verify, first_calibration(run.config, run.feature_names())

        def make_kernel() -> Kernel:
            return partial(first_pass, calibration=calibration, low=config.low, high=config.high)

        rows = run.in_unit_order(options_of(run, units, calibration), pairs, ["pair_id"], _PAIRS_PER_TASK)
        jobs = run.tables.write_units(rows, make_kernel, self.name, pairs, ("questions",), staging, Counting())
        with closing(jobs):
            for group in jobs:
                made: list[tuple[str, Written] | Failed] = []
                for one in group:
                    if not isinstance(one, Failed):
                        unit, written = one
                        try:
                            check_rows(self.name, unit, written.rows_in, written.rows_in, {}, pairs[unit])
                        except RowsLost as error:
                            made.append(Failed(unit, f"{RowsLost.__name__}: {error}"))
                            continue
                    made.append(one)
                yield made

    def _ask(
        self,
        run: Run,
        found: Mapping[str, Written],
        facts: Mapping[str, Mapping[str, int]],
        expected: Mapping[str, int],
        staging: str,
    ) -> Generator[list[tuple[str, Written] | Failed], None, None]:
        """The second job: verdicts about the pairs in the band."""
        config, units = run.config.verify, list(found)
        rows = _questions(run, found, facts)
        in_order = run.in_shard_order(rows, units, config.rows_per_task)
        yield from run.tables.write_units(
            in_order,
            _make_asking(run, units),
            self.name,
            expected,
            ("verdicts",),
            staging,
            Counting(asking.candidates_of, self.passes),
            cluster.profile(run.spark, run.config),
        )


def _say(facts: Mapping[str, Mapping[str, int]]) -> None:
    pairs, in_band, asked = (sum(one[name] for one in facts.values()) for name in ("pairs", "in_band", "asked"))
    over = f", the other {in_band - asked:,} are over verify.budget" if asked < in_band else ""
    log.info("%-15s of %s pairs %s are in the band, %s of them are asked about%s", Verify.name, f"{pairs:,}",
             f"{in_band:,}", f"{asked:,}", over)  # fmt: skip


def _counted(pairs: int, made: Written, config: VerifyConfig) -> dict[str, int]:
    in_band = sum(file.rows for file in made.files["questions"])
    return {"pairs": pairs, "in_band": in_band, "asked": min(in_band, of_budget(pairs, config))}


def _numbers(calibration: Calibration) -> list[Any]:
    other = calibration.without_vocabulary
    own = [calibration.features, calibration.weights, calibration.bias]
    return own if other is None else [*own, *_numbers(other)]


def first_calibration(config: Config, given: Sequence[str] | None) -> Calibration:
    """The calibration in use, without the verdict among what it weighs, as where there is none.

    given   features that stages before this one give: others are not known yet. None: whichever it weighs
    """
    calibration = calibration_of(config)
    unknown = [f for f in calibration.features if f not in FEATURES and given is not None and f not in given]
    return calibration.without((VERDICT, *unknown))


def options_of(run: Run, units: Sequence[str], calibration: Calibration) -> DataFrame:
    """A row per scored pair with its options: what the first pass weighs."""
    from pyspark.sql import functions as F

    weighed = [f for f in calibration.features if f not in FEATURES]
    words = run.read("mentions", units, ["text_id", "start", "end", "surface"])
    option = F.struct(
        "start",
        "end",
        "entity_id",
        "background_z",
        "described",
        *OPTIONAL,
        F.col("probability").alias("text_probability"),
        "surface",
        *weighed,
    )
    return (
        scored_candidates(run, units, words)
        .groupBy("unit", "pair_id", "image_id", "shard", "row", "text_id")
        .agg(F.sort_array(F.collect_list(option)).alias("options"))
    )


def _questions(run: Run, found: Mapping[str, Written], facts: Mapping[str, Mapping[str, int]]) -> DataFrame:
    """A row per pair of the band: its options, and where it is asked about, the text and what is shown."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    units = list(found)
    (staging,) = {written.staging for written in found.values()}
    paths = [file.path for written in found.values() for file in written.files["questions"] if file.rows]
    columns = [*QUESTIONS.names, "unit"]
    pairs = run.tables.read_files("questions", files.join(staging, "questions"), paths, columns)
    if any(of["asked"] < of["in_band"] for of in facts.values()):
        most = F.broadcast(
            run.spark.createDataFrame([(u, of["asked"]) for u, of in facts.items()], "unit string, _most long")
        )
        # Ids and numbers alone are sorted, a unit's in one task.
        order = Window.partitionBy("unit").orderBy("unsure", "pair_id")
        ranked = pairs.select("unit", "pair_id", "unsure").withColumn("_rank", F.row_number().over(order))
        first = ranked.join(most, "unit").where("_rank <= _most").select("unit", "pair_id", F.lit(True).alias("_asked"))
        pairs = pairs.join(first, ["unit", "pair_id"], how="left")
    else:
        pairs = pairs.withColumn("_asked", F.lit(True))
    shown = F.slice("options", 1, run.config.verify.candidates)
    candidates = pairs.where("_asked").select("unit", "pair_id", F.posexplode(shown).alias("_at", "_option"))
    entities = run.read("kb/entities", columns=["entity_id", "name", "description"])
    described = (
        candidates.select("unit", "pair_id", "_at", "_option.entity_id", "_option.surface")
        .join(entities, "entity_id", how="left")
        .groupBy("unit", "pair_id")
        .agg(F.sort_array(F.collect_list(F.struct("_at", "entity_id", "surface", "name", "description"))).alias("_all"))
        .select(
            "unit",
            "pair_id",
            F.transform(
                "_all", lambda one: F.struct(one["entity_id"].alias("entity_id"), one["surface"].alias("surface"),
                                             one["name"].alias("name"), one["description"].alias("description"))
            ).alias("shown"),
        )
    )  # fmt: skip
    texts = run.read("texts", units, ["text_id", "text"])
    return (
        pairs.join(described, ["unit", "pair_id"], how="left")
        .join(texts, ["unit", "text_id"], how="left")
        .select(
            "unit", "pair_id", "image_id", "shard", "row", F.col("unit").alias("of_unit"), "text", "options", "shown"
        )
    )


def _make_asking(run: Run, units: Sequence[str]) -> Callable[[], Kernel]:
    config, template = run.config.verify, _template(run.config.verify)
    identity = asking.identity(_asked_of(config), config)
    open_shard, root, name = run.open_shards(units), run.tables.root, Verify.name
    before = {u: [kept.folder(root, name, run.unit(u).replaces or "")] for u in units if run.unit(u).replaces}
    model = run.ship_model(config)
    threads = int(run.spark.conf.get("spark.task.cpus", "1") or 1)

    def make_kernel() -> Kernel:
        return partial(
            asking.ask,
            open_shard=open_shard,
            verifier=_verifier(config, model, identity, threads),
            template=template,
            identity=identity,
            answers_of=lambda unit: Answers(kept.folder(root, name, unit), before.get(unit, ())),
            config=config,
        )

    return make_kernel


def _verifier(config: VerifyConfig, model: Shipped | None, identity: str, threads: int) -> Verifier:
    """In a worker: who is asked."""
    if config.server:
        return server.Server(config)
    return _local().load_once(
        model_here(config, model),
        identity,
        threads=cluster.task_cores(threads),
        device=cluster.task_device(config.device),
    )


def _asked_of(config: VerifyConfig) -> str:
    """The model and the content of its files, or the name by which a server knows it."""
    if config.server:
        return f"{config.served_model} of a server"
    return f"{config.model.rstrip('/').rpartition('/')[2]}@{_local().fingerprint(config)}"


def _template(config: VerifyConfig) -> Template:
    return Template.read(config.prompt, config.reason)


def _local() -> Any:
    """The module that needs torch, and transformers, where a model runs in the workers."""
    from i2e_pipeline.verify import local

    return local
