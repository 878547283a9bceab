"""Publish: which images are published, with which class indices, and the dataset itself.

select   Reads    labels · kb/entities · pairs · scores ·      Writes  selection · entity_statistics
                  candidates · texts                           Rejects duplicate_image · rare_entity · over_cap ·
                                                                       unbalanced, and by list (exclusion.py)
publish  Reads    selection · pairs · scores · the shards      Writes  i2e/images
finish   Reads    entity_statistics · every stage's commits    Writes  i2e/entities · i2e/statistics/* · manifest,
                                                                       card, croissant

`select` decides over all units, by shuffles of ids alone. `publish` writes again only the units whose selection
changed. The manifest stays for as long as every file that it stands for is there as it was: until the first of its
units is replaced, or the entities. A run that fails before leaves the old dataset whole, and units that are new do not
touch it. From there on there is none, and it is written last. A dataset without a manifest is not whole, and no command
reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, PairsConfig, PublishConfig, digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.schemas import (
    BUCKETS,
    ENTITY_DETAILS,
    ENTITY_STATISTICS,
    FUNNEL,
    I2E_ENTITIES,
    IMAGES,
    LABELS,
    SELECTION,
    Reason,
)
from i2e_pipeline.core.splits import TEST, TRAIN, held_out_entities
from i2e_pipeline.dataset.published import manifest_of
from i2e_pipeline.engine import merging
from i2e_pipeline.engine.catalogue import Passed, Table
from i2e_pipeline.engine.dealing import Blocks, task_size
from i2e_pipeline.engine.stage import Made, Plan, Run, Stage
from i2e_pipeline.engine.tables import Commit, Counting, Kernel, pass_on
from i2e_pipeline.engine.tasks import notes
from i2e_pipeline.engine.units import Unit, kept_columns
from i2e_pipeline.publish import exclusion, frequent, selection, statistics
from i2e_pipeline.publish.card import card
from i2e_pipeline.publish.croissant import croissant
from i2e_pipeline.publish.exclusion import Exclusions
from i2e_pipeline.publish.images import BYTES_PER_TASK, Columns, image_rows, rows_of_shards
from i2e_pipeline.publish.manifest import funnel, funnel_rows, manifest, purged, thresholds
from i2e_pipeline.publish.purging import PURGED

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Select(Stage):
    name, job, rows_are = "select", "build_dataset", "pairs"
    does = "merge duplicates, drop rare entities, cap frequent ones, number classes"
    scope = "whole"
    after = ("label",)
    reads = ("labels", "kb/entities", "pairs", "scores", "candidates", "texts")
    version = 4
    """3: datasets of format 2. 4: the split is drawn by labels that are not published, too."""
    tables = {
        "selection": Table(
            SELECTION,
            key=("image_id",),
            holds="the images to publish, with their class indices; `hides_held_out` of those that lie in `test` by a "
            "label that is not published",
        ),
        "entity_statistics": Table(
            ENTITY_STATISTICS, key=("entity_id",), holds="what is counted of every entity that any text proposed"
        ),
    }
    passes = Passed("selection", ("pair_id",))
    reasons = {
        Reason.DUPLICATE_IMAGE: (
            "The same image came with another pair, which stands for both; their labels were merged."
        ),
        Reason.RARE_ENTITY: "Its only entities have too few images to be a class.",
        Reason.OVER_CAP: "Its entities have more images than the cap, and the draw by hash left this one out.",
        Reason.UNBALANCED: "Its entities are frequent, and no draw by hash for any of them kept it.",
        Reason.EXCLUDED_URL: "Its address is on a list of what is left out.",
        Reason.EXCLUDED_DOMAIN: "Its domain is on a list of what is left out.",
        Reason.EXCLUDED_IMAGE: "The image is on a list of what is left out.",
        Reason.EXCLUDED_HASH: "The image looks like one on a list of what is left out.",
        Reason.EXCLUDED_ENTITY: "All entities that it shows are on a list of what is left out.",
        Reason.EXCLUDED_LABEL: "All its labels were marked as wrong, or are of entities on a list of what is left out.",
    }
    sections = ("select", "label")
    leaves_out = {
        "label.calibration": "labels are read as the stage `label` chose them",
        "label.threshold": "labels are read as the stage `label` chose them",
        "select.exclude": "what the lists hold is in the fingerprint, not where they lie",
    }

    def settings(self, config: Config) -> dict[str, Any]:
        lists = exclusion.fingerprints(config.select.exclude)
        return {**super().settings(config), **({"excluded": digest(sorted(lists))} if lists else {})}

    def check(self, run: Run) -> None:
        Exclusions.read(run.config.select.exclude)

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made], None, None]:
        from pyspark.sql import functions as F

        (unit,) = units
        tables, config = run.tables, run.config
        further = ["wider_of"] if config.label.wider else []
        all_labels = run.read("labels", columns=[*LABELS.names, *further, "unit"])
        chosen = all_labels.where(F.col("reason").isNull())
        lists = Exclusions.read(config.select.exclude)
        excluded = None
        if lists:
            # Few, and asked for by each of the jobs below; to find them takes all addresses and hashes.
            excluded = exclusion.excluded_pairs(run, chosen, lists).persist()
            left_out = selection.left_out(chosen, excluded)
            # Of pairs whose labels are wrong, the dataset still counts what their texts proposed.
            gone = excluded.where(F.col("reason") != str(Reason.EXCLUDED_LABEL))
            all_labels = exclusion.struck(run, exclusion.without_entities(run, all_labels, lists), lists)
            all_labels = all_labels.join(gone, ["unit", "pair_id"], how="left_anti")
            chosen = all_labels.where(F.col("reason").isNull())
        of_images = selection.without_wider(chosen) if config.label.wider else chosen
        labels = selection.image_labels(of_images, config.label.max_labels_per_image, config.select)
        wider = {"wider": selection.published_wider(of_images, labels)} if config.label.wider else {}
        places = run.spark.createDataFrame([(u.name, n) for n, u in enumerate(run.units)], "unit string, place int")
        before = self._before(run)
        classes = selection.class_indices(labels.where(F.col("dropped").isNull()), of_images, places, before)
        texts = run.read("pairs", columns=["pair_id", "url", "text_id", "unit"])
        pairs = selection.pairs_to_publish(chosen, labels, classes, texts, self._shown(run))
        pairs = pairs.unionByName(left_out) if excluded is not None else pairs
        counting = Counting(passed=self.passes)
        # The rows of a unit together: a file or two per unit, however many partitions the joins left.
        by_unit = pairs.repartition("unit").sortWithinPartitions("unit", "image_id", "pair_id")
        selected = tables.write(by_unit, lambda: selection.select_images, self.name, unit, ("selection",), counting)
        entities = run.read("kb/entities")
        details = self._details(run, all_labels) if config.select.statistics == "full" else None
        per_entity = statistics.per_entity(all_labels, labels, classes, entities, before, details)
        hidden = (*statistics.OF_KNOWLEDGE_BASE, *ENTITY_DETAILS.names)
        per_entity = exclusion.nameless(run, per_entity, lists, hidden)
        stats = tables.write(
            per_entity, lambda: partial(pass_on, "entity_statistics"), self.name, unit, ("entity_statistics",)
        )
        written = tables.read_files(
            "selection",
            files.join(selected.staging, "selection"),
            [f.path for f in selected.files["selection"] if f.rows],
            ["image_id", "pair_id", "shard", "row", "labels", "hides_held_out", "unit"],
        )
        digests = selection.unit_digests(written)
        if excluded is not None:
            excluded.unpersist()
        yield [
            self.conclude(
                run,
                unit,
                [selected, stats.only("entity_statistics")],
                expected=run.rows("labels", by=("pair_id",)),
                facts={"units": digests, **wider},
            )
        ]

    def _shown(self, run: Run) -> DataFrame:
        """image_id and entity_id of all labels that the stage `label` chose. What stages and lists have left out since
        is shown still: where they come and go, images stay on their side of the split."""
        from pyspark.sql import functions as F

        standing = run.standing("labels")
        labels = run.tables.read(standing, run.commits_of(standing), ["image_id", "entity_id", "reason"])
        return labels.where(F.col("reason").isNull()).select("image_id", "entity_id")

    def _details(self, run: Run, all_labels: DataFrame) -> tuple[DataFrame, DataFrame]:
        """What texts, words and sources tell of entities, beside the labels' counts."""
        candidates = run.read("candidates", columns=["text_id", "entity_id", "rank", "unit"])
        texts = run.read("texts", columns=["text_id", "pairs", "script", "unit"])
        pairs = run.read("pairs", columns=["pair_id", "url", "unit"])
        return statistics.of_texts(candidates, texts), frequent.most_frequent(all_labels, pairs)

    def _before(self, run: Run) -> DataFrame | None:
        """The entities that had a class in the last build, whatever config made it; None where there was none.

        They stand in three tables. Whichever is whole is read: after a kill or a repair that took one away, a class
        index is still its entity's."""
        from pyspark.sql import functions as F

        wanted = ["entity_id", "class_index", *statistics.OF_KNOWLEDGE_BASE]
        for table in ("entity_statistics", "i2e/entities", "i2e/statistics/entities"):
            made = run.tables.commits_of(table).values()
            # Of a commit whose other tables are damaged, too.
            last = [replace(commit, files={table: commit.files.get(table, [])}) for commit in made]
            if last and not run.tables.missing_files(last):
                return run.tables.read(table, last, wanted).where(F.col("class_index").isNotNull())
        return None


class Publish(Stage):
    name, job, does, rows_are = "publish", "build_dataset", "write the kept images", "images"
    reads = ("selection", "pairs", "scores")
    version = 2  # format 2 of datasets
    reads_input = True
    tables = {
        "i2e/images": Table(
            IMAGES,
            key=("image_id",),
            holds="`image` (stored bytes, unchanged), the pair's text and key, `labels`, `split`, and the columns that "
            "`pairs.keep_columns` names; ids and hashes in hex; a file in the order of image_id",
        )
    }
    passes = Passed("i2e/images", ("image_id",))
    in_funnel = False
    sections = ("pairs", "storage", "publish")
    leaves_out = (
        {f"publish.{key}": "it is about the card" for key in PublishConfig.model_fields if key != "mask"}
        | {
            f"pairs.{key}": "the selection of a unit holds what it changes"
            for key in PairsConfig.model_fields
            if key not in ("url_column", "text_column", "image_column", "keep_columns")
        }
        | {"storage.options": "how a store is reached changes no row"}
    )

    def further_columns(self, config: Config, units: Sequence[Unit]) -> Mapping[str, pa.Schema]:
        return {"i2e/images": kept_columns(units, config.pairs)}

    def components(self, run: Run, unit: str) -> dict[str, Any]:
        selected = run.commits_of("selection")
        digests = selected[0].facts["units"] if selected else {}
        settings = run.settings_of(self)
        kept = {field.name: str(field.type) for field in _kept(run)}
        further = {"kept": kept} if kept else {}  # older outputs do not know it
        return {"version": self.version, "settings": settings, "selection": digests.get(unit, "none"), **further}

    def rows_to_do(self, run: Run, units: Sequence[str]) -> Mapping[str, int]:
        digests = run.commits_of("selection")[0].facts["units"]
        return {unit: int(digests.get(unit, "0").partition("-")[0]) for unit in units}

    def forget(self, run: Run, unit: str) -> None:
        """Keep its images until the dataset without them is ready. The last stage removes them then."""

    def before_commit(self, run: Run, units: Sequence[str]) -> None:
        """Remove the manifest if it stands for one of these units."""
        folder = run.tables.path("i2e")
        try:
            untouched = manifest_of(folder)["units"].keys().isdisjoint(units)
        except I2EError:  # there is none, or it is damaged
            untouched = False
        if not untouched:
            files.remove(files.join(folder, "manifest.json"))

    def plan(self, run: Run, units: Sequence[str]) -> Plan:
        from pyspark.sql import functions as F

        shards = [f for unit in units for f in run.unit(unit).files]
        full = task_size(sum(f.size for f in shards), BYTES_PER_TASK, run.spark)
        tasks = Blocks([(f.shard, f.rows, max(1, full * f.rows // max(1, f.size))) for f in shards])
        own = ["image_id", "pair_id", "shard", "row", "width", "height", "labels", "hides_held_out"]
        of_pair = ["unit", "pair_id"]
        keys = run.read("pairs", units, ["pair_id", "key"])
        hashes = run.read("scores", units, ["pair_id", "image_hash"]).groupBy(*of_pair)
        selected = (
            run.read("selection", units, own)
            .join(keys, of_pair, how="inner")
            .join(hashes.agg(F.first("image_hash").alias("perceptual_hash")), of_pair, how="inner")
        )
        rows = tasks.by_row(selected)
        pairs, opened = run.config.pairs, run.shards(units)
        columns = Columns(pairs.url_column, pairs.text_column, _kept(run), run.config.publish.mask)

        def make_kernel() -> Kernel:
            def kernel(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
                lost: Counter[str] = Counter()
                yield from image_rows(batches, partial(rows_of_shards, opened, columns, lost))
                yield from notes(lost)

            return kernel

        return Plan(rows, make_kernel, rows_expected=self.rows_to_do(run, units))


def _kept(run: Run) -> pa.Schema:
    """The columns of the images that are the input's own."""
    return pa.schema([field for field in run.tables.catalogue.schema("i2e/images") if field.name not in IMAGES.names])


class Finish(Stage):
    name, job, does, rows_are = "finish", "build_dataset", "write entities, statistics and manifest", "entities"
    scope = "whole"
    after = ("select",)
    reads = ("entity_statistics",)
    tables = {
        "i2e/entities": Table(I2E_ENTITIES, key=("class_index",), holds="the classes, and what is known of each"),
        "i2e/statistics/entities": Table(
            ENTITY_STATISTICS,
            key=("entity_id",),
            holds="every entity that any text proposed; class_index is null where it got no image",
        ),
        "i2e/statistics/buckets": Table(BUCKETS, key=("images_from",), holds="how many entities have so many images"),
        "i2e/statistics/funnel": Table(
            FUNNEL,
            key=("position", "reason"),
            holds="rows in and out of each stage, and why the others stay behind",
        ),
    }
    in_funnel = per_pair = False
    sections = ("link", "label", "select", "storage", "publish")
    leaves_out = {
        "label.calibration": "the manifest holds what it says, not where it lies",
        "label.wider": "the manifest holds it as the stage `label` does",
        "select.exclude": "what it leaves out is counted in the funnel",
        **{f"storage.{key}": "the images say it" for key in ("format", "compression", "row_group_mb")},
        "storage.options": "how a store is reached changes no row",
        "publish.training_index": "it is read of the finished dataset",
    }

    def settings(self, config: Config) -> dict[str, Any]:
        card = config.publish.fingerprint(leave_out=("training_index",))
        return {**thresholds(config), **({"card": card} if card else {})}

    def components(self, run: Run, unit: str) -> dict[str, Any]:
        published = {c.unit: c.fingerprint for c in run.commits_of("i2e/images")}
        return {**super().components(run, unit), "published": digest(published)}

    def before_commit(self, run: Run, units: Sequence[str]) -> None:
        """Remove the manifest. A kill from here on leaves none, and the next run writes it."""
        files.remove(run.tables.path("i2e", "manifest.json"))

    def missing(self, run: Run, commit: Commit) -> list[str]:
        if gone := super().missing(run, commit):
            return gone
        if not files.exists(run.tables.path("i2e", "manifest.json")):
            return ["i2e/manifest.json"]
        return ["i2e/images"] if self._other_units(run) else []

    def carry_out(self, run: Run, units: Sequence[str]) -> Generator[Sequence[Made], None, None]:
        from pyspark.sql import functions as F

        (unit,) = units
        tables = run.tables
        stats = run.read("entity_statistics")
        in_order = stats.orderBy(F.col("class_index").asc_nulls_last(), "entity_id")
        entities = tables.write(
            in_order, lambda: entity_rows, self.name, unit, ("i2e/entities", "i2e/statistics/entities")
        )
        by_images = (
            stats.where("class_index is not null and not coalesce(retired, false)").groupBy("images").count().collect()
        )
        entities_by_images = {r["images"]: r["count"] for r in by_images}
        steps = funnel(run)
        small = tables.write_local(
            iter(
                [
                    ("i2e/statistics/buckets", statistics.buckets(entities_by_images)),
                    ("i2e/statistics/funnel", funnel_rows(steps)),
                ]
            ),
            self.name,
            unit,
            ("i2e/statistics/buckets", "i2e/statistics/funnel"),
        )
        written = tuple(self.tables)
        staged = [entities.only(*written[:2]), small.only(*written[2:])]
        made = Commit(
            stage=self.name,
            unit=unit,
            fingerprint=self.fingerprint(run, unit),
            components=self.components(run, unit),
            files={t: f for w in staged for t, f in w.files.items()},
            rows_in=entities.rows_in,
            rows_out=entities.rows_in,
            rejected={},
        )
        facts = manifest(run, steps, entities_by_images)
        top = (
            in_order.where("class_index is not null and not coalesce(retired, false)")
            .orderBy(F.desc("images"), "entity_id")
            .limit(20)
            .collect()
        )
        # Committed by whoever iterates, before the manifest says that all is whole.
        yield [Made(made, staged)]
        self._remove_other_units(run)
        _describe(run, facts, [r.asDict() for r in top], made)

    def _remove_other_units(self, run: Run) -> None:
        """Images of units that are no longer part of the dataset."""
        run.tables.discard(run.writer("i2e/images").name, self._other_units(run))

    def _other_units(self, run: Run) -> list[str]:
        return sorted(set(run.tables.commits_of("i2e/images")) - {u.name for u in run.units})


def _describe(run: Run, facts: Mapping[str, Any], top: Sequence[Mapping[str, Any]], entities: Commit) -> None:
    """Write what tells of the dataset, the manifest last."""
    tables = run.tables
    columns = tables.catalogue.schema("i2e/images")
    listed = _listed(run, entities) if run.config.storage.format == "delta" else None
    told = card(facts, top, run.config.publish, columns, listed)
    files.write_bytes(tables.path("i2e", "README.md"), told.encode())
    described = croissant(facts, run.config.publish, columns, listed)
    files.write_json(tables.path("i2e", "croissant.json"), described)
    files.write_json(tables.path("i2e", "manifest.json"), facts)


def tell_again(run: Run) -> None:
    """Let funnel, card and manifest count what the commit records count now; images and entities stay as they are."""
    facts = manifest_of(run.tables.path("i2e"))
    told: dict[str, Any] = {}
    for part, value in facts.items():  # in the order in which `manifest` writes them
        if part == "funnel":
            told |= {part: funnel(run), **purged(run)}
        elif part != PURGED:
            told[part] = value
    if told == facts:
        return
    table = "i2e/statistics/funnel"
    (made,) = run.commits_of(table)
    handed = run.handed_to(run.writer(table))
    written = run.tables.write_local(iter([(table, funnel_rows(told["funnel"]))]), made.stage, made.unit, (table,))
    place = written.staging.removeprefix(run.tables.path("")).lstrip("/")
    again = replace(made, files={**made.files, table: written.files[table]})
    merging.replace_files(run.tables, place, {made.stage: [again]}, same_rows=False)
    _describe(handed, told, _most_images(run, 20), made)


def _most_images(run: Run, count: int) -> list[dict[str, Any]]:
    """The classes with the most images, as `finish` orders them."""
    columns = ["entity_id", "class_index", "name", "description", "images", "mean_clip_score_labelled", "retired"]
    found: list[dict[str, Any]] = []
    for batch in run.tables.batches("entity_statistics", run.commits_of("entity_statistics"), columns):
        classes = batch.filter(
            pc.and_(pc.is_valid(batch.column("class_index")), pc.invert(pc.fill_null(batch.column("retired"), False)))
        )
        order = [("images", "descending"), ("entity_id", "ascending")]
        found += pa.Table.from_batches([classes]).sort_by(order).slice(0, count).to_pylist()
        found = sorted(found, key=lambda e: (-e["images"], e["entity_id"]))[:count]
    return found


def _listed(run: Run, entities: Commit) -> dict[str, list[str]]:
    """The files that count of the tables that the card tells how to load, below the dataset's folder."""
    images = [f"images/{f.path}" for c in run.commits_of("i2e/images") for f in c.files["i2e/images"]]
    return {"images": images, "entities": [f"entities/{f.path}" for f in entities.files["i2e/entities"]]}


def entity_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of i2e/entities, for entities that have a class, and of i2e/statistics/entities, for all that any text
    proposed."""
    for batch in batches:
        retired = pc.fill_null(batch.column("retired"), False)
        batch = batch.set_column(batch.schema.get_field_index("retired"), "retired", retired)
        yield "i2e/statistics/entities", batch
        classes = batch.filter(pc.is_valid(batch.column("class_index")))
        held_out = held_out_entities(classes.column("entity_id").to_numpy())
        classes = classes.append_column("split", pa.array(np.where(held_out, TEST, TRAIN), pa.string()))
        classes = classes.drop_columns(["mean_clip_score"])
        names = ["mean_clip_score" if n == "mean_clip_score_labelled" else n for n in classes.schema.names]
        yield "i2e/entities", classes.rename_columns(names).select(I2E_ENTITIES.names)
