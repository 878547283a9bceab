"""Clean: what keeps images out of the dataset that lists cannot name. Stages between `label` and `select`, each there
where the config asks for it.

people            Reads   labels · kb/entities             Writes  without_people
                  Rejects person_entity
policy            Reads   labels · pairs · image_vectors · the input shards' images
                  Writes  permitted
                  Rejects other_domain · person_photo · unsafe · watermark · low_aesthetic · unwanted · those of
                          images/decode.py
decontaminate     Reads   labels · scores                  Writes  decontaminated
                  Rejects evaluation_image
near_duplicates   Reads   labels · scores · image_vectors  Writes  standing
                  Rejects near_duplicate

All leave rows of `labels` out for the stages behind them, as a stage from outside would (docs/extending.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.clean import evaluation_sets, heads, near_duplicates, policy
from i2e_pipeline.clean.policy import LOOKED_AT
from i2e_pipeline.core.config import CleanConfig, Config, ModelConfig, ScoreConfig
from i2e_pipeline.core.domains import Domains
from i2e_pipeline.core.rejects import part, reject
from i2e_pipeline.core.schemas import ID, Reason
from i2e_pipeline.engine import cluster
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.shipping import Shipped, model_here
from i2e_pipeline.engine.stage import Made, Plan, Run, Stage, StageError
from i2e_pipeline.engine.tables import Commit, Counting, Kernel
from i2e_pipeline.engine.tasks import notes
from i2e_pipeline.images import encoder, models
from i2e_pipeline.images.decode import REASONS as IMAGE_REASONS
from i2e_pipeline.images.kept import KeptVectors

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

KEPT = pa.schema([pa.field("pair_id", ID, nullable=False)])
WITHOUT_PEOPLE = pa.schema([*KEPT, pa.field("entity_id", pa.int64(), nullable=False)])
PERMITTED = pa.schema([*KEPT, pa.field("scores", pa.list_(pa.float32()))])
OF_PEOPLE = "labels of people"
_OF_PAIR = ("unit", "pair_id")
_PAIRS_PER_TASK = 100_000
SETS = "evaluation_sets"
OF = "pairs with an image of "


def labelled_pairs(run: Run, units: Sequence[str] | None = None, *further: str) -> DataFrame:
    """unit, pair_id, image_id, shard, row, and further columns of labels, of each pair that has a label."""
    from pyspark.sql import functions as F

    columns = ["image_id", "shard", "row", *further]
    labels = run.read("labels", units, ["pair_id", *columns, "reason", "unit"]).where(F.col("reason").isNull())
    return labels.groupBy(*_OF_PAIR).agg(*(F.first(name).alias(name) for name in columns))


_OF_POLICY = {
    f"clean.{key}": "it is about other reasons to leave images out" for key in ("people", "heads", "only_domains")
}


class People(Stage):
    name, job, rows_are = "people", "build_dataset", "pairs"
    does = "leave out labels of people"
    after = ("label", "knowledge_base")
    reads = ("labels", "kb/entities")
    narrows = "labels"
    tables = {
        "without_people": Table(
            WITHOUT_PEOPLE,
            key=("pair_id", "entity_id"),
            holds="with `clean.people=drop_labels` or `drop`, the labels of pairs that are of no human",
        )
    }
    passes = Passed("without_people", ("pair_id",), within=("entity_id",))
    reasons = {Reason.PERSON_ENTITY: "All its labels are people, and the config leaves people out."}
    asked_for = (Reason.PERSON_ENTITY,)
    counts = (OF_PEOPLE,)

    def told(self, commits: Sequence[Commit]) -> dict[str, int]:
        return {OF_PEOPLE: sum(commit.facts.get("notes", {}).get(OF_PEOPLE, 0) for commit in commits)}

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("labels", units, by=("pair_id",))

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from pyspark.sql import functions as F

        labels = run.read("labels", units, ["pair_id", "entity_id", "shard", "row", "reason"])
        labels = labels.where(F.col("reason").isNull())
        humans = run.read("kb/entities", columns=["entity_id", "is_human"]).where("is_human").select("entity_id")
        # What is known of entities goes to the labels: those that some label names are few.
        named = humans.join(labels.select("entity_id").distinct(), "entity_id", how="left_semi")
        marked = labels.join(F.broadcast(named.withColumn("human", F.lit(True))), "entity_id", how="left")
        of_pair = F.sort_array(F.collect_list(F.struct("entity_id", F.col("human").isNotNull().alias("human"))))
        pairs = marked.groupBy("unit", "pair_id", "shard", "row").agg(of_pair.alias("labels"))
        expected = self.rows_to_do(run, units)
        return Plan(run.in_unit_order(pairs, expected, ["pair_id"], _PAIRS_PER_TASK), lambda: without_people, expected)


def without_people(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Labels that stay, and rejects: person_entity, a row for each pair that no label is left of.

    batches   pair_id, shard, row, labels: list<struct<entity_id, human>> of those that were chosen
    yields    notes, too: labels of people, of pairs that stay and of those that go
    """
    gone = 0
    for batch in batches:
        flat, parent = pc.list_flatten(batch.column("labels")), pc.list_parent_indices(batch.column("labels"))
        human = pc.struct_field(flat, "human").to_numpy(zero_copy_only=False).astype(bool)
        gone += int(human.sum())
        stay = pa.array(~human)
        of = parent.filter(stay)
        yield (
            "without_people",
            pa.RecordBatch.from_arrays(
                [batch.column("pair_id").take(of), pc.struct_field(flat, "entity_id").filter(stay)],
                names=WITHOUT_PEOPLE.names,
            ),
        )
        bare = np.ones(batch.num_rows, bool)
        bare[of.to_numpy()] = False
        if bare.any():
            lists = batch.column("labels").filter(pa.array(bare)).to_pylist()
            said = [", ".join(f"Q{label['entity_id']}" for label in of_pair) for of_pair in lists]
            yield "rejects", reject(batch, bare, Reason.PERSON_ENTITY, said, key="pair_id")
    yield from notes({OF_PEOPLE: gone})


class Policy(Stage):
    name, job, rows_are = "policy", "build_dataset", "pairs"
    does = "leave out what heads and domains say"
    after = ("label", "score")
    reads = ("labels", "pairs", "image_vectors")
    narrows = "labels"
    tables = {
        "permitted": Table(
            PERMITTED,
            key=("pair_id",),
            holds="with `clean.heads` or `clean.only_domains`, the labelled pairs that stay; what each head gives them",
        )
    }
    passes = Passed("permitted", ("pair_id",))
    reasons = {
        Reason.OTHER_DOMAIN: "Its address is in none of the domains that the config takes images from.",
        Reason.PERSON_PHOTO: "A head finds people on the image, and the config leaves photos of people out.",
        Reason.UNSAFE: "A head calls the image unsafe.",
        Reason.WATERMARK: "A head finds a watermark on the image.",
        Reason.LOW_AESTHETIC: "A head gives the image less than the config asks for.",
        Reason.UNWANTED: "A head finds on the image what the config leaves out.",
        **IMAGE_REASONS,
    }
    asked_for = (
        Reason.OTHER_DOMAIN, Reason.PERSON_PHOTO, Reason.UNSAFE, Reason.WATERMARK, Reason.LOW_AESTHETIC,
        Reason.UNWANTED,
    )  # fmt: skip
    sections = ("clean", "score")
    sees_images = True
    counts = (LOOKED_AT,)
    leaves_out = {
        "clean.heads": "what the heads and their models are is in the fingerprint, not where they lie",
        "clean.people": "it says whether heads are wanted, which stand for themselves",
        **{
            f"clean.{key}": "it is about images that others leave out"
            for key in CleanConfig.model_fields
            if key not in ("heads", "people", "only_domains")
        },
        **{f"score.{key}": "the model's content says it" for key in ScoreConfig.model_fields},
    }

    def settings(self, config: Config) -> dict[str, Any]:
        made_of = []
        for number, head in enumerate(config.clean.heads):
            try:
                content = heads.content_of(head, number)
            except FileNotFoundError as error:
                raise StageError(f"clean.heads.{number}.head: {error}") from None
            model = heads.vectors_of(head.encoder(config.score))
            made_of.append({"reason": head.reason, "head": content, "threshold": head.threshold, "vectors_of": model})
        return {**super().settings(config), **({"heads": made_of} if made_of else {})}

    def check(self, run: Run) -> None:
        for number, (judge, model) in enumerate(self._judges(run)):
            width = models.width(model.model)
            if width is not None:
                policy.fits(judge, width)
            if run.config.clean.heads[number].model:
                encoder.check(model)

    def prepare(self, run: Run) -> None:
        for _, model in self._judges(run):
            if heads.vectors_of(model) != heads.vectors_of(run.config.score):
                encoder.check(model, at_hand=True)

    @staticmethod
    def _judges(run: Run) -> list[tuple[heads.Judge, ModelConfig]]:
        score = run.config.score
        return [
            (heads.judge(head, number, score), head.encoder(score))
            for number, head in enumerate(run.config.clean.heads)
        ]

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("labels", units, by=("pair_id",))

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        config, score = run.config.clean, run.config.score
        pairs = labelled_pairs(run, units).select("unit", "pair_id", "shard", "row")
        if config.only_domains:
            pairs = pairs.join(run.read("pairs", units, ["pair_id", "url"]), [*_OF_PAIR], how="inner")
        by_model: dict[str, tuple[ModelConfig, list[tuple[int, heads.Judge]]]] = {}
        for number, (judge, model) in enumerate(self._judges(run)):
            by_model.setdefault(heads.vectors_of(model), (model, []))[1].append((number, judge))
        looking = [(model, run.ship_model(model), judges) for model, judges in by_model.values()]
        stored = heads.vectors_of(score)
        of_score = [name == stored for name in by_model]
        vectors = {
            file.shard: [run.tables.path("image_vectors", made.path) for made in commit.files.get("image_vectors", [])]
            for commit in run.commits_of("image_vectors", units)
            for file in run.unit(commit.unit).files
        }
        open_shard = run.open_shards(units)
        cores = int(run.spark.conf.get("spark.task.cpus", "1") or 1)

        def make_kernel() -> Kernel:
            def load(model: ModelConfig, shipped: Shipped | None) -> encoder.Encoder:
                return encoder.load_once(
                    model_here(model, shipped),
                    threads=cluster.task_cores(cores),
                    device=cluster.task_device(score.device),
                )

            made, looked = [], []
            for (model, shipped, judges), is_stored in zip(looking, of_score, strict=True):
                made.append(policy.Encoded(open_shard, partial(load, model, shipped), score))
                source = policy.Kept(KeptVectors(vectors), made[-1]) if is_stored else made[-1]
                looked.append(policy.Looked(source, judges))
            return partial(policy.permitted, domains=Domains(config.only_domains), looked=looked, encoded=made)

        expected = self.rows_to_do(run, units)
        in_order = run.in_shard_order(pairs, units, score.rows_per_task)
        other = not all(of_score)
        return Plan(in_order, make_kernel, expected, profile=cluster.profile(run.spark, run.config) if other else None)


class Decontaminate(Stage):
    name, job, rows_are = "decontaminate", "build_dataset", "pairs"
    does = "leave out images of evaluation sets"
    after = ("label",)
    reads = ("labels", "scores")
    narrows = "labels"
    tables = {
        "decontaminated": Table(
            KEPT,
            key=("pair_id",),
            holds="with `clean.evaluation_sets`, the labelled pairs whose images are not those of evaluation sets",
        )
    }
    passes = Passed("decontaminated", ("pair_id",))
    reasons = {
        Reason.EVALUATION_IMAGE: (
            "The image, or one that looks the same, is in a set that models are evaluated on. The detail names the set."
        )
    }
    asked_for = (Reason.EVALUATION_IMAGE,)
    sections = ("clean",)
    leaves_out = {
        "clean.evaluation_sets": "what the sets hold is in the fingerprint, not where they lie",
        **{
            f"clean.{key}": "it is about near-duplicates" for key in CleanConfig.model_fields if key.startswith("near_")
        },
        **_OF_POLICY,
    }

    def settings(self, config: Config) -> dict[str, Any]:
        sets = config.clean.evaluation_sets
        digests = {name: evaluation_sets.digest_of(name, patterns) for name, patterns in sets.items()}
        return {**super().settings(config), SETS: digests}

    def prepare(self, run: Run) -> None:
        self._laid_out(run)

    def _laid_out(self, run: Run) -> str:
        return evaluation_sets.laid_out_sets(run.config.clean.evaluation_sets, run.settings_of(self)[SETS])

    def told(self, commits: Sequence[Commit]) -> dict[str, int]:
        sets = sorted({name for commit in commits for name in commit.components["settings"][SETS]})
        notes_of = [commit.facts.get("notes", {}) for commit in commits]
        return {f"{OF}{name}": sum(said.get(f"{OF}{name}", 0) for said in notes_of) for name in sets}

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("labels", units, by=("pair_id",))

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from pyspark.sql import functions as F

        scores = run.read("scores", units, ["pair_id", "image_hash", "unit"])
        hashes = scores.groupBy(*_OF_PAIR).agg(F.first("image_hash").alias("image_hash"))
        pairs = labelled_pairs(run, units).join(hashes, [*_OF_PAIR], how="left")
        listed = run.ship(self._laid_out(run))
        mirrored = run.config.clean.mirrored

        def make_kernel() -> Kernel:
            return partial(decontaminated, sets=evaluation_sets.read(listed.local(), mirrored))

        expected = self.rows_to_do(run, units)
        return Plan(run.in_unit_order(pairs, expected, ["pair_id"], _PAIRS_PER_TASK), make_kernel, expected)


def decontaminated(
    batches: Iterator[pa.RecordBatch], sets: evaluation_sets.Listed
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Pairs that stay, and rejects: evaluation_image.

    batches   pair_id, image_id: binary(16), image_hash: binary(32) or null, shard, row
    """
    counts: Counter[str] = Counter()
    for batch in batches:
        named = sets.named(batch.column("image_id"), batch.column("image_hash"))
        counts.update(f"{OF}{name}" for of_row in named for name in of_row)
        reasons = [Reason.EVALUATION_IMAGE if of_row else None for of_row in named]
        said = [evaluation_sets.detail(of_row) for of_row in named]
        yield from part("decontaminated", batch, reasons, said, key="pair_id", columns=KEPT.names)
    yield from notes(counts)


class NearDuplicates(Stage):
    name, job, rows_are = "near_duplicates", "build_dataset", "pairs"
    does = "keep one of the images that look the same"
    scope = "whole"
    after = ("label",)
    reads = ("labels", "scores", "image_vectors")
    narrows = "labels"
    tables = {
        "standing": Table(
            KEPT,
            key=("pair_id",),
            holds="with `clean.near_duplicates`, the labelled pairs of images that stand for all that look the same",
        )
    }
    passes = Passed("standing", ("pair_id",))
    reasons = {
        Reason.NEAR_DUPLICATE: (
            "Another image of the same entity looks the same, and has more pixels. The detail names the one that "
            "stands for it."
        )
    }
    asked_for = (Reason.NEAR_DUPLICATE,)
    sections = ("clean", "score")
    leaves_out = {"clean.evaluation_sets": "it is about evaluation sets", **_OF_POLICY}

    def settings(self, config: Config) -> dict[str, Any]:
        others = ("evaluation_sets", "people", "heads", "only_domains")
        return config.clean.fingerprint(leave_out=(*others, "near_duplicates"))

    def check(self, run: Run) -> None:
        if run.config.clean.near_cosine is not None and not run.config.score.keep_vectors:
            raise StageError(
                "clean.near_cosine compares the vectors of images, and score.keep_vectors=false stores none: set that "
                "true, or clean.near_cosine=null"
            )

    def told(self, commits: Sequence[Commit]) -> dict[str, int]:
        if not commits:
            return {}
        told = commits[0].facts["alike"]
        return {
            "images that look like another": told["images"],
            "groups of images that look the same": told["groups"],
            "images in the largest group": told["largest"],
        }

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made], None, None]:
        from pyspark.sql import functions as F

        (unit,) = units
        config = run.config.clean
        labels = run.read("labels", columns=["image_id", "entity_id", "width", "height", "reason"])
        hashes = run.read("scores", columns=["image_id", "image_hash"]).groupBy("image_id").agg(F.min("image_hash"))
        pixels = F.max(F.col("width").cast("long") * F.col("height")).alias("pixels")
        entities = F.sort_array(F.collect_set("entity_id")).alias("entities")
        nodes = (
            labels.where(F.col("reason").isNull())
            .groupBy("image_id")
            .agg(pixels, entities)
            .join(hashes.withColumnRenamed("min(image_hash)", "image_hash"), "image_id", how="left")
            .persist()
        )
        pairs = near_duplicates.near_by_hash(nodes, config.near_bits, config.mirrored)
        if config.near_cosine is not None:
            stored = run.read("image_vectors", columns=["image_id", "vector"])
            vectors = stored.groupBy("image_id").agg(F.min("vector").alias("vector"))
            pairs = pairs.unionByName(near_duplicates.near_by_vector(nodes, vectors, config.near_cosine)).distinct()
        standing = near_duplicates.standing_images(nodes, pairs).persist()
        rows = labelled_pairs(run).join(standing, "image_id", how="left")
        columns = ["pair_id", "shard", "row", "standing_image_id", "unit"]
        in_order = rows.select(*columns).repartition("unit").sortWithinPartitions("unit", "pair_id")
        written = run.tables.write(
            in_order, lambda: standing_pairs, self.name, unit, tuple(self.tables), Counting(passed=self.passes)
        )
        facts = {"alike": near_duplicates.largest(standing)}
        for frame in (standing, nodes):
            frame.unpersist()
        yield [self.conclude(run, unit, [written], run.rows("labels", by=("pair_id",)), facts)]


def standing_pairs(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Pairs that stay, each to its unit, and rejects: near_duplicate.

    batches   pair_id, shard, row, standing_image_id (null: the image stands for itself), unit
    """
    for batch in batches:
        said = near_duplicates.reasons(batch.column("standing_image_id"))
        reasons = [None if one is None else Reason.NEAR_DUPLICATE for one in said]
        yield from part("standing", batch, reasons, said, key="pair_id", columns=[*KEPT.names, "unit"])
