"""Clean: what keeps images out of the dataset that lists cannot name. Two stages between `label` and `select`, each
there where the config asks for it.

decontaminate     Reads   labels · scores                  Writes  decontaminated
                  Rejects evaluation_image
near_duplicates   Reads   labels · scores · image_vectors  Writes  standing
                  Rejects near_duplicate

Both leave rows of `labels` out for the stages behind them, as a stage from outside would (docs/extending.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from i2e_pipeline.clean import evaluation_sets, near_duplicates
from i2e_pipeline.core.config import CleanConfig, Config
from i2e_pipeline.core.rejects import part
from i2e_pipeline.core.schemas import ID, Reason
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.stage import Made, Plan, Run, Stage, StageError
from i2e_pipeline.engine.tables import Commit, Counting, Kernel
from i2e_pipeline.engine.tasks import notes

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

KEPT = pa.schema([pa.field("pair_id", ID, nullable=False)])
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
    leaves_out = {"clean.evaluation_sets": "it is about evaluation sets"}

    def settings(self, config: Config) -> dict[str, Any]:
        return config.clean.fingerprint(leave_out=("evaluation_sets", "near_duplicates"))

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
