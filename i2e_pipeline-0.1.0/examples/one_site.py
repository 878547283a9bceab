"""A stage over everything: no web site gives more than a few images of an entity.

    stages: [one_site.py:OneSite]     # or, once `pip install ./examples` was run, the name `one_site`
    one_site: {max_images: 20}

A shop that photographs its one product a thousand times would fill a class by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pydantic import Field

from i2e_pipeline import Passed, Plan, Run, Section, Stage, Table, part

KEPT = pa.schema([pa.field("pair_id", pa.binary(16), nullable=False), pa.field("site", pa.string())])


class OneSite(Stage):
    """Stands between `label` and `select`: what it rejects is not published, and counts for no class."""

    name = "one_site"
    does = "cap the images of an entity from one web site"
    rows_are = "pairs"
    scope = "whole"
    after = ("label",)
    reads = ("labels", "pairs")
    narrows = "labels"
    tables = {"site_kept": Table(KEPT, key=("pair_id",), holds="labelled pairs that stay, and their web site")}
    passes = Passed("site_kept", ("pair_id",))
    reasons = {"over_site_cap": "Its web site has given the entity as many images as it may."}

    class Settings(Section):
        max_images: int = Field(20, ge=1)
        """Images of one entity that are taken from one web site, by hash of the pair."""

    def plan(self, run: Run, unit: str) -> Plan:
        from pyspark.sql import Window
        from pyspark.sql import functions as F

        chosen = run.read("labels", columns=["pair_id", "entity_id", "shard", "row", "reason", "unit"])
        urls = run.read("pairs", columns=["pair_id", "url"])
        site = F.lower(F.regexp_extract(F.coalesce("url", F.lit("")), r"^\w+://([^/:?#]+)", 1))
        by_hash = Window.partitionBy("site", "entity_id").orderBy(F.xxhash64("pair_id"), "pair_id")
        pairs = (
            chosen.where(F.col("reason").isNull())
            .join(urls, "pair_id", how="inner")
            .withColumn("site", site)
            .withColumn("place", F.row_number().over(by_hash))
            .groupBy("pair_id", "shard", "row", "unit", "site")
            .agg(F.min("place").alias("place"))
        )
        limit = run.settings.max_images

        def kernel(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
            for rows in batches:
                # A pair without a url has no site, and is left alone.
                places = zip(rows.column("site").to_pylist(), rows.column("place").to_pylist(), strict=True)
                reasons = ["over_site_cap" if site and place > limit else None for site, place in places]
                sites = rows.column("site").to_pylist()
                yield from part("site_kept", rows, reasons, sites, key="pair_id", columns=["pair_id", "site", "unit"])

        in_order = pairs.repartition("unit").sortWithinPartitions("unit", "pair_id")
        return Plan(in_order, lambda: kernel, rows_expected=run.rows("labels", by=("pair_id",)))
