"""The small world that the whole chain is tested on: its settings, a run, and what a run made."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from i2e_pipeline import open_output
from i2e_pipeline.commands.explain import explain
from i2e_pipeline.commands.verify import verify
from i2e_pipeline.core.config import Config, merge
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.tables import Commit, Tables
from i2e_pipeline.sample import embedded
from i2e_pipeline.stages import from_tree, pipeline


def settings(world: Path | str, output: Path | str, *overrides: str, shards: str = "*") -> Config:
    tree = embedded.tree(
        [
            f"pairs.path={world}/pairs/{shards}.parquet",
            f"knowledge_base.dump={world}/dump.json.bz2",
            f"knowledge_base.popularity={world}/popularity.csv",
            f"knowledge_base.anchors={world}/anchors.tsv",
            f"output={output}",
            "select.min_images_per_entity=1",
            "label.threshold=0.2",
        ]
    )
    return from_tree(merge(tree, overrides), "test")


def run(config: Config, spark: Any, *wanted: str, redo: tuple[str, ...] = ()) -> dict[str, int]:
    """Units that each stage worked on. What a run to the end leaves must be whole, whatever was there before."""
    _, states = pipeline(config, lambda: spark).run(wanted or None, redo)
    if not wanted:
        assert_whole(config)
    return {s.stage.name: len(s.to_do) for s in states}


def content(output: Path | str) -> tuple[dict[str, Any], dict[int, Any]]:
    """Every image by id: its bytes, texts, labels and split; every entity that has an image. Without class indices,
    which alone depend on the history of a dataset; each label's must be its entity's."""
    entities = {
        e["entity_id"]: e for e in ds.dataset(f"{output}/i2e/entities", format="parquet").to_table().to_pylist()
    }
    index = {i: e.pop("class_index") for i, e in entities.items()}
    assert sorted(index.values()) == list(range(len(index)))
    images = {}
    for row in ds.dataset(f"{output}/i2e/images", format="parquet").to_table().to_pylist():
        assert row["image_id"] not in images
        assert all(index[label["entity_id"]] == label["class_index"] for label in row["labels"])
        labels = sorted((x["entity_id"], round(x["score"], 4), x["mention"]) for x in row["labels"])
        sha256 = hashlib.sha256(row["image"]["bytes"]).hexdigest()
        images[row["image_id"]] = (sha256, row["alt_text"], row["url"], row["split"], labels)
    return images, {i: e for i, e in entities.items() if not e["retired"]}


def statistics(output: Path | str) -> dict[str, Any]:
    """What is told of each entity, by id and without class indices; entities by images, in buckets and as a tail."""
    opened = open_output(str(output))
    entities = {e.pop("entity_id"): e for e in opened.arrow("i2e/statistics/entities").to_pylist()}
    for told in entities.values():
        del told["class_index"]
    buckets = opened.arrow("i2e/statistics/buckets").sort_by("images_from").to_pylist()
    return {"entities": entities, "buckets": buckets, "long_tail": opened.manifest["long_tail"]}


def commits(output: Path, *stages: str) -> dict[str, Commit]:
    """What each stage made of each unit, by `stage/unit`."""
    tables = Tables(str(output))
    return {f"{s}/{unit}": commit for s in stages for unit, commit in tables.commits(s).items()}


def rows(whole: Pipeline, table: str, **values: Any) -> list[dict[str, Any]]:
    """Rows of a table with their unit, where columns have these values; without images."""
    wanted = pc.scalar(True)
    for name, value in values.items():
        wanted = wanted & (pc.field(name).is_null() if value is None else pc.field(name) == value)
    columns = [*(n for n in whole.tables.catalogue.schema(table).names if n != "image"), "unit"]
    found: list[dict[str, Any]] = whole.tables.where(
        table, whole.tables.commits_of(table).values(), wanted, columns
    ).to_pylist()
    return found


def explained_as_stored(whole: Pipeline) -> int:
    """What is computed again equals what the run stored, of every scored pair. Returns their number."""
    with_labels = {row["pair_id"] for row in rows(whole, "labels")}
    pairs = {row["pair_id"]: row for row in rows(whole, "pairs")}
    assert with_labels
    for pair_id in sorted(with_labels):
        told = explain(whole, pair_id.hex())
        assert told["notes"] == [], pairs[pair_id]
        (pair,) = told["pairs"]
        stored = rows(whole, "labels", pair_id=pa.scalar(pair_id, pa.binary(16)))
        assert {(r["entity_id"], r["probability"], r["reason"]) for r in stored} == {
            (r["entity_id"], r["probability"], r["reason"]) for r in pair["labels"]
        }
    return len(with_labels)


def assert_whole(config: Config) -> None:
    """`i2e verify --deep` finds nothing wrong with an output."""
    found = verify(pipeline(config), deep=True)
    assert not found.faults, "\n".join(map(str, found.faults))
