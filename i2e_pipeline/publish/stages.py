"""Build: which images are published with which labels, and the dataset itself.

label    Reads    scores · candidates · pairs                  Writes  labels       Rejects  below_bar
select   Reads    labels · kb/entities                         Writes  selection · entity_statistics
                                                               Rejects duplicate_image · rare_entity · over_cap
publish  Reads    selection · the input shards                 Writes  i2e/images
finish   Reads    entity_statistics · every stage's commits    Writes  i2e/entities · i2e/statistics/* · manifest, card

`label` works unit by unit. `select` decides over all units, by shuffles of ids alone. `publish` writes again only the
units whose selection changed. The manifest goes away before the first of them is put in place and comes back last: a
dataset without a manifest is not whole, and nothing of ours reads it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, digest
from i2e_pipeline.core.schemas import TABLES
from i2e_pipeline.engine.stage import Plan, Run, Stage
from i2e_pipeline.engine.tables import WHOLE, Commit, Counting, Kernel, pass_on
from i2e_pipeline.inputs.shards import RowBlocks, selected_rows
from i2e_pipeline.publish import selection, statistics
from i2e_pipeline.publish.images import BYTES_PER_TASK, image_rows
from i2e_pipeline.publish.manifest import card, funnel, funnel_rows, manifest, thresholds

if TYPE_CHECKING:
    pass


class Select(Stage):
    name, job, rows_are = "select", "build_dataset", "pairs"
    does = "merge duplicates, drop rare entities, number classes"
    after = ("label",)
    writes = ("selection", "entity_statistics")
    scope = "whole"

    def settings(self, config: Config) -> dict[str, Any]:
        return config.build.fingerprint_of("max_labels_per_image", "min_images_per_entity", "max_images_per_entity")

    def carry_out(self, run: Run, unit: str) -> Commit:
        from pyspark.sql import functions as F

        started = time.monotonic()
        tables, labelled = run.tables, run.committed("label")
        all_labels = tables.read("labels", labelled, [*TABLES["labels"].names, "unit"])
        chosen = all_labels.where(F.col("reason").isNull())
        labels = selection.image_labels(chosen, run.config.build)
        classes = selection.class_indices(labels.where(F.col("dropped").isNull()))
        pairs = selection.pairs_to_publish(chosen, labels, classes)
        counting = Counting(passed_table="selection", passed_key=("pair_id",))
        # The rows of a unit together: a file or two per unit, however many partitions the joins left.
        by_unit = pairs.repartition("unit").sortWithinPartitions("unit", "image_id", "pair_id")
        selected = tables.write(by_unit, lambda: selection.select_images, self.name, unit, ("selection",), counting)
        entities = tables.read("kb/entities", run.committed("knowledge_base"))
        per_entity = statistics.per_entity(all_labels, labels, classes, entities)
        stats = tables.write(
            per_entity, lambda: partial(pass_on, "entity_statistics"), self.name, unit, ("entity_statistics",)
        )
        schema = tables.spark_schema("selection", ["image_id", "pair_id", "shard", "row", "labels", "unit"])
        written = tables.spark.read.schema(schema).parquet(files.join(selected.staging, "selection"))
        return self.conclude(
            run,
            unit,
            [selected, stats.only("entity_statistics")],
            started,
            expected=sum(c.rows_out for c in labelled),
            facts={"units": selection.unit_digests(written)},
        )


class Publish(Stage):
    name, job, does, rows_are = "publish", "build_dataset", "write images", "images"
    after = ()
    writes = ("i2e/images",)

    def settings(self, config: Config) -> dict[str, Any]:
        return {
            **config.pairs.fingerprint_of("image_column", "url_column", "text_column"),
            **config.storage.fingerprint_of("row_group_mb", "compression", "format"),
        }

    def components(self, run: Run, unit: str) -> dict[str, Any]:
        digests = run.whole("select").facts["units"] if WHOLE in run.commits.get("select", {}) else {}
        return {"version": self.version, "settings": self.settings(run.config), "selection": digests.get(unit, "none")}

    def rows_to_do(self, run: Run, unit: str) -> int:
        return int(run.whole("select").facts["units"].get(unit, "0").partition("-")[0])

    def prepare(self, run: Run) -> None:
        files.remove(run.tables.path("i2e", "manifest.json"))

    def plan(self, run: Run, unit: str) -> Plan:
        shards = run.unit(unit).files
        paths = {f.shard: f.path for f in shards}
        tasks = RowBlocks([(f.shard, f.rows, max(1, BYTES_PER_TASK * f.rows // max(1, f.size))) for f in shards])
        rows = (
            run.tables.read("selection", run.committed("select"), only_unit=unit)
            .select("image_id", "shard", "row", "width", "height", "labels")
            .repartitionById(tasks.count, tasks.column())
        )
        pairs = run.config.pairs

        def read_rows(shard: int, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
            return selected_rows(paths[shard], rows, columns)

        def make_kernel() -> Kernel:
            return partial(
                image_rows,
                read_rows=read_rows,
                image_column=pairs.image_column,
                url_column=pairs.url_column,
                text_column=pairs.text_column,
            )

        counting = Counting(passed_table="i2e/images", passed_key=("image_id",))
        return Plan(rows, make_kernel, ("i2e/images",), counting, rows_expected=self.rows_to_do(run, unit))


class Finish(Stage):
    name, job, does, rows_are = "finish", "build_dataset", "entities, statistics, manifest", "entities"
    after = ("select",)
    writes = ("i2e/entities", "i2e/statistics/entities", "i2e/statistics/buckets", "i2e/statistics/funnel")
    scope = "whole"

    def settings(self, config: Config) -> dict[str, Any]:
        return thresholds(config)

    def components(self, run: Run, unit: str) -> dict[str, Any]:
        published = {u: c.fingerprint for u, c in run.commits.get("publish", {}).items()}
        return {**super().components(run, unit), "published": digest(published)}

    def prepare(self, run: Run) -> None:
        """Without a manifest until it is right: a kill from here on leaves none, and the next run writes it."""
        files.remove(run.tables.path("i2e", "manifest.json"))

    def missing(self, run: Run, commit: Commit) -> list[str]:
        path = run.tables.path("i2e", "manifest.json")
        return super().missing(run, commit) or ([] if files.exists(path) else ["i2e/manifest.json"])

    def carry_out(self, run: Run, unit: str) -> Commit:
        from pyspark.sql import functions as F

        started = time.monotonic()
        tables = run.tables
        stats = tables.read("entity_statistics", run.committed("select"))
        in_order = stats.orderBy(F.col("class_index").asc_nulls_last(), "entity_id")
        entities = tables.write(
            in_order, lambda: entity_rows, self.name, unit, ("i2e/entities", "i2e/statistics/entities")
        )
        by_images = stats.where(F.col("class_index").isNotNull()).groupBy("images").count().collect()
        walk = funnel(run)
        small = tables.write_local(
            iter(
                [
                    ("i2e/statistics/buckets", statistics.buckets({r["images"]: r["count"] for r in by_images})),
                    ("i2e/statistics/funnel", funnel_rows(walk)),
                ]
            ),
            self.name,
            unit,
            ("i2e/statistics/buckets", "i2e/statistics/funnel"),
        )
        self._remove_other_units(run)
        staged = [entities.only(*self.writes[:2]), small.only(*self.writes[2:])]
        made = Commit(
            stage=self.name,
            unit=unit,
            fingerprint=self.fingerprint(run, unit),
            components=self.components(run, unit),
            files={t: f for w in staged for t, f in w.files.items()},
            rows_in=entities.rows_in,
            rows_out=entities.rows_in,
            rejected={},
            seconds=round(time.monotonic() - started, 3),
        )
        tables.commit(made, staged)
        classes = made.rows("i2e/entities")
        facts = manifest(run, walk, classes, labels=sum(r["images"] * r["count"] for r in by_images))
        top = in_order.where("class_index is not null").orderBy(F.desc("images"), "entity_id").limit(20).collect()
        files.write_bytes(tables.path("i2e", "README.md"), card(facts, [r.asDict() for r in top]).encode())
        files.write_json(tables.path("i2e", "manifest.json"), facts)
        return made

    def _remove_other_units(self, run: Run) -> None:
        """Images of units that are no longer part of the dataset."""
        for unit in set(run.tables.commits("publish")) - {u.name for u in run.units}:
            run.tables.discard("publish", unit)


def entity_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """i2e/entities of the entities that have a class, i2e/statistics/entities of all that any text proposed."""
    for batch in batches:
        yield "i2e/statistics/entities", batch
        classes = batch.filter(pc.is_valid(batch.column("class_index")))
        classes = classes.drop_columns(["mean_clip_score"])
        names = ["mean_clip_score" if n == "mean_clip_score_labelled" else n for n in classes.schema.names]
        yield "i2e/entities", classes.rename_columns(names)
