"""Score: how well does the image of a pair fit each entity that its text may mean?

entity_vectors  Reads   candidates · wider · kb/entities   Writes  entity_vectors
score           Reads   pairs · candidates · wider · entity_vectors · the input shards' images
                · image_vectors of before
                Writes  scores · image_vectors   Rejects  no_linked_mention and the reasons of images/decode.py

An entity's text is encoded once per model, however many units name it: each run adds a segment of the entities that no
earlier segment holds.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from i2e_pipeline.core.config import Config, digest
from i2e_pipeline.core.schemas import ENTITY_VECTORS, IMAGE_VECTORS, SCORES, Reason
from i2e_pipeline.engine import cluster
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.shipping import model_here
from i2e_pipeline.engine.stage import Made, Plan, Run, Stage
from i2e_pipeline.engine.tables import Counting, Kernel
from i2e_pipeline.images import encoder
from i2e_pipeline.images.decode import REASONS as IMAGE_REASONS
from i2e_pipeline.images.kept import KeptVectors
from i2e_pipeline.score.entity_vectors import OF_ENTITIES, EntityVectors, Templates, encode_entities, most_famous
from i2e_pipeline.score.scoring import IMAGES_ENCODED, VECTORS_THERE, score

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_ENTITIES_PER_TASK = 8192
_VECTORS = 1
"""To be raised when the code makes another vector, size or perceptual hash of the same image."""
_OF_THE_MODEL = {
    "score.pretrained": "the model's name and content say it",
    "score.dtype": "the model's name and content say it",
    "score.device": "vectors are the same on every device, up to rounding",
    "score.batch_size": "a vector does not depend on the others of its batch",
    "score.rows_per_task": "a score does not depend on the others of its task",
    "score.decode_threads": "a score does not depend on who decoded the image",
}


class EncodeEntities(Stage):
    name, job, does, rows_are = "entity_vectors", "score_images", "encode the entities' texts", "entities"
    scope, version = "segments", 2
    after = ("knowledge_base",)
    reads = ("candidates", "wider", "kb/entities", "entity_vectors")
    tables = {
        "entity_vectors": Table(
            ENTITY_VECTORS,
            key=("entity_id",),
            holds="the vector of each entity's text; whether that had a description",
        )
    }
    passes = Passed("entity_vectors", ("entity_id",))
    in_funnel = per_pair = False
    sections = ("score",)
    leaves_out = {
        **_OF_THE_MODEL,
        **{
            f"score.{key}": "it is about images"
            for key in ("max_pixels", "min_side", "max_aspect", "max_bytes", "keep_vectors")
        },
    }
    stored_as = {
        "score.text_template": "template",
        "score.background_entities": "background",
        "score.type_exemplars": "exemplars",
    }

    def settings(self, config: Config) -> dict[str, Any]:
        return {**super().settings(config), "model": model_name(config)}

    def check(self, run: Run) -> None:
        # Weights are looked for before the first run has spent hours; a dataset that is whole needs them no more.
        encoder.check(run.config.score, at_hand=not run.tables.commits(self.name))

    def prepare(self, run: Run) -> None:
        encoder.check(run.config.score, at_hand=True)

    def all_units(self, run: Run) -> list[str]:
        """The segments that are there, and a new one if the links of some unit are in none of them."""
        made = [c for c in run.tables.commits(self.name).values() if c.fingerprint == run.fingerprints[self.name]]
        covered = {link for c in made for link in c.facts["links"]}
        missing = sorted(_links(run) - covered)
        return sorted(c.unit for c in made) + ([f"s-{digest(missing)[:12]}"] if missing else [])

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(units, 0)

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made], None, None]:
        from pyspark.sql import functions as F

        (unit,) = units
        tables, config = run.tables, run.config.score
        segments = run.committed(self.name)
        candidates = run.read("candidates", columns=["entity_id"])
        if run.rows("wider"):
            candidates = candidates.union(run.read("wider", columns=["entity_id"]))
        entities = run.read("kb/entities", columns=[*OF_ENTITIES])
        if segments:  # they are of the knowledge base, and so the same in each segment
            background, exemplars = (segments[0].facts[fact] for fact in ("background", "exemplars"))
        else:
            described = entities.where(F.col("description").isNotNull())
            exemplars = _exemplars(described, max(config.type_exemplars, config.vocabulary))
            by_hash = described.orderBy(F.xxhash64("entity_id"), "entity_id")
            background = sorted(r["entity_id"] for r in by_hash.limit(config.background_entities).collect())
        further = [(e,) for e in {*background, *(e for of_type in exemplars.values() for e in of_type)}]
        wanted = candidates.union(run.spark.createDataFrame(further, "entity_id long")).distinct()
        if segments:
            known = run.read("entity_vectors", columns=["entity_id"])
            wanted = wanted.join(known, "entity_id", how="left_anti")
        rows = entities.join(wanted, "entity_id", how="inner").select(*OF_ENTITIES)
        model = run.ship_model(config)

        def make_kernel() -> Kernel:
            return partial(
                encode_entities,
                encoder=encoder.load_once(
                    model_here(config, model), threads=1, device=cluster.task_device(config.device)
                ),
                templates=Templates(config.text_template, config.name_template, config.description_template),
            )

        counting = Counting(passed=self.passes)
        profile = cluster.profile(run.spark, run.config)
        written = tables.write(
            rows.orderBy("entity_id"), make_kernel, self.name, unit, tuple(self.tables), counting, profile
        )
        facts = {"links": sorted(_links(run)), "background": background, "exemplars": exemplars}
        yield [self.conclude(run, unit, [written], facts=facts)]


def _exemplars(described: DataFrame, count: int) -> dict[str, list[int]]:
    """By coarse type the most famous entities with a description: part by part, then of what the parts gave."""
    from pyspark.sql import functions as F

    if not count:
        return {}
    schema = "coarse_type string, entity_id long, fame float"
    kernel = partial(most_famous, count=count)
    fame = F.coalesce("fame", F.lit(0.0)).cast("float").alias("fame")
    rows = described.where("coarse_type is not null").select("coarse_type", "entity_id", fame)
    found = rows.mapInArrow(kernel, schema).repartition(1).mapInArrow(kernel, schema).toArrow()
    by_type: dict[str, list[int]] = {}
    for name, entity in zip(
        found.column("coarse_type").to_pylist(), found.column("entity_id").to_pylist(), strict=True
    ):
        by_type.setdefault(name, []).append(entity)
    return by_type


def _links(run: Run) -> set[str]:
    """The unit's links that the run counts, each by unit and fingerprint."""
    return {f"{c.unit}:{c.fingerprint}" for c in run.commits_of("candidates")}


class Score(Stage):
    name, job, does, rows_are = "score", "score_images", "look at each image beside its candidates", "pairs"
    version = 3
    after = ("link",)
    reads = ("pairs", "candidates", "wider", "entity_vectors")
    tables = {
        "scores": Table(
            SCORES,
            key=("pair_id", "entity_id"),
            holds="how well the image fits each entity; its size and perceptual hash",
            narrowable=True,
        ),
        "image_vectors": Table(
            IMAGE_VECTORS,
            key=("shard", "row"),
            holds="with `score.keep_vectors`, the vector of each image that was encoded (float16, little-endian), also "
            "where no name leads to an entity any more: then the row is there for links that find one again",
        ),
    }
    passes = Passed("scores", ("pair_id",))
    reasons = {
        Reason.NO_LINKED_MENTION: (
            "No name in the pair's text leads to an entity: nothing to score the image against."
        ),
        **IMAGE_REASONS,
        Reason.NAN_SCORE: "The model gave no number for this image.",
    }
    sections = ("score",)
    leaves_out = {**_OF_THE_MODEL, "score.keep_vectors": "scores are the same with and without"}
    stored_as = {"score.text_template": "template"}
    sees_images = True
    guarded = ("model",)
    retried_from = "pairs"
    limits = {
        "max_bytes": (Reason.TOO_MANY_BYTES, "more"),
        "max_pixels": (Reason.TOO_MANY_PIXELS, "more"),
        "min_side": (Reason.TOO_SMALL, "less"),
        "max_aspect": (Reason.TOO_LONG, "more"),
    }
    counts = (IMAGES_ENCODED, VECTORS_THERE)

    def settings(self, config: Config) -> dict[str, Any]:
        # Outputs of before have it in their fingerprints, most of them with its default of then.
        return {**super().settings(config), "model": model_name(config), "keep_vectors": False}

    def facts(self, run: Run, unit: str) -> dict[str, Any]:
        return {"vectors_of": _vectors_of(run.settings_of(self))}

    def prepare(self, run: Run) -> None:
        encoder.check(run.config.score, at_hand=True)

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        return run.rows_by_unit("pairs", units)

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from pyspark.sql import functions as F

        config = run.config.score
        pairs = run.read("pairs", units, ["pair_id", "text_id", "shard", "row"])
        candidates = run.read("candidates", units, ["text_id", "entity_id"])
        if any(run.rows_by_unit("wider", units).values()):
            candidates = candidates.union(_wider(run, units).select("text_id", "entity_id", "unit"))
        named = candidates.groupBy("unit", "text_id").agg(F.sort_array(F.collect_set("entity_id")).alias("entity_ids"))
        none = F.array().cast("array<bigint>")
        rows = pairs.join(named, ["unit", "text_id"], how="left").select(
            "unit", "shard", "row", "pair_id", F.coalesce("entity_ids", none).alias("entity_ids")
        )
        segments = run.commits_of("entity_vectors")
        vector_files = [run.tables.path("entity_vectors", f.path) for c in segments for f in c.files["entity_vectors"]]
        sizes = [sum(f.rows for f in c.files["entity_vectors"]) for c in segments]
        key = digest([f"{c.fingerprint} {c.unit} {n}" for c, n in zip(segments, sizes, strict=True)])
        background, exemplars = (segments[0].facts[fact] for fact in ("background", "exemplars"))
        open_shard = run.open_shards(units)
        kept, kept_stay = _kept(run, self, units), run.only is not None
        model = run.ship_model(config)
        threads = _threads_per_task(run)

        def make_kernel() -> Kernel:
            return partial(
                score,
                open_shard=open_shard,
                encoder=encoder.load_once(
                    model_here(config, model),
                    threads=cluster.task_cores(threads),
                    device=cluster.task_device(config.device),
                ),
                vectors=EntityVectors.from_files(vector_files, key=key),
                config=config,
                background=background,
                exemplars=exemplars,
                kept=kept.at(),
                same_content=kept.of(),
                kept_stay=kept_stay,
            )

        in_order = run.in_shard_order(rows, units, config.rows_per_task)
        return Plan(
            in_order,
            make_kernel,
            rows_expected=run.rows_by_unit("pairs", units),
            profile=cluster.profile(run.spark, run.config),
        )


def _wider(run: Run, units: Sequence[str]) -> DataFrame:
    """Rows of the table wider whose candidate the stages between have left standing."""
    from pyspark.sql import functions as F

    span = ["unit", "text_id", "start", "end"]
    standing = run.read("candidates", units, [*span[1:], "entity_id"])
    standing = standing.select(*span, F.col("entity_id").alias("wider_of"))
    return run.read("wider", units).join(standing, [*span, "wider_of"], how="left_semi")


class _Kept(NamedTuple):
    """Files of image vectors that may be taken again."""

    by_shard: Mapping[int, Sequence[str]]
    same_content: Mapping[int, Sequence[str]]
    """Shard to those of the unit whose place its own has taken: the same images may stand at other places."""

    def at(self) -> KeptVectors | None:
        return KeptVectors(self.by_shard) if self.by_shard else None

    def of(self) -> KeptVectors | None:
        return KeptVectors(self.same_content) if self.same_content else None


def _kept(run: Run, stage: Stage, units: Sequence[str]) -> _Kept:
    """What these units have, and those whose place they took, of this model and of no larger images; nothing where they
    are asked to be made again."""
    if stage.name in run.redo:
        return _Kept({}, {})
    now = run.settings_of(stage)
    known = run.tables.records.known(stage.name)
    sources = {name for unit in units for name in (unit, run.unit(unit).replaces) if name is not None}
    found = [
        replace(commit, files={"image_vectors": commit.files.get("image_vectors", [])})
        for name in sorted(sources)
        if (commit := known.get(name)) is not None
        and commit.facts.get("vectors_of") == _vectors_of(now)
        and commit.components["settings"]["max_bytes"] <= now["max_bytes"]
    ]
    gone = run.tables.missing_files(found, by_folder=True)  # once a wave
    made = {
        commit.unit: tuple(run.tables.path("image_vectors", file.path) for file in commit.files["image_vectors"])
        for commit in found
        if commit.unit not in gone
    }
    by_shard: dict[int, tuple[str, ...]] = {}
    for unit in map(run.unit, units):
        paths = (*made.get(unit.name, ()), *made.get(unit.replaces or "", ()))
        for file in unit.files:
            by_shard[file.shard] = (*by_shard[file.shard], *paths) if file.shard in by_shard else paths
    same = {file.shard: made.get(unit.replaces or "", ()) for unit in map(run.unit, units) for file in unit.files}
    return _Kept(*({shard: paths for shard, paths in one.items() if paths} for one in (by_shard, same)))


def stored_vectors_of(config: Config) -> str:
    """What commits of `image_vectors` that this config would make say in their fact `vectors_of`."""
    return _vectors_of(Score().settings(config))


def _vectors_of(settings: Mapping[str, Any]) -> str:
    """Names what an image's vector, size and hash depend on beside its bytes."""
    return digest({"version": _VECTORS, "model": settings["model"], "images": settings["image_column"]})


def model_name(config: Config) -> str:
    """The model and the content of its files."""
    return f"{config.score.model.rstrip('/').rpartition('/')[2]}@{encoder.fingerprint(config.score)[:12]}"


def _threads_per_task(run: Run) -> int:
    """Cores of a task, as the application has them."""
    return int(run.spark.conf.get("spark.task.cpus", "1") or 1)
