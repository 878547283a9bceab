"""The whole chain on a small world: growth, change, partitions, Delta. Real engines, shipped models.

What the engine promises of any stage is tested on toys (tests/engine/test_laws.py), a kill -9 of a real run with the
examples (tests/test_examples.py).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from i2e_pipeline.commands.export import export
from i2e_pipeline.core import files
from i2e_pipeline.dataset.commits import NotPublished
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.engine.units import Units
from i2e_pipeline.stages import pipeline
from tests.chain import commits, content, explained_as_stored, run, settings

pytestmark = pytest.mark.slow

PER_UNIT = ("pairs", "extract", "link", "score", "label")


def test_no_row_is_lost(world: Path, whole: Path) -> None:
    """Catches: rows that vanish silently (data-juicer, clip-retrieval). The world holds null, empty and broken rows."""
    manifest = files.read_json(str(whole / "i2e" / "manifest.json"))
    funnel = manifest["funnel"]
    assert funnel[0]["rows_in"] == ds.dataset(world / "pairs", format="parquet").count_rows()
    rejected = ds.dataset(whole / "rejects", format="parquet", partitioning="hive")
    rejects = rejected.to_table(["stage", "reason"]).to_pylist()
    for step in funnel:
        assert step["rows_in"] == step["rows_out"] + sum(step["rejected"].values())
        for reason, rows in step["rejected"].items():
            assert sum(r == {"stage": step["stage"], "reason": reason} for r in rejects) == rows
    reasons = {r["reason"] for r in rejects}
    assert {"null_text", "truncated_image", "empty_image", "not_an_image", "duplicate_image"} <= reasons
    pairs = [s for s in funnel if s["stage"] in ("pairs", "score", "label", "select")]
    for before, after in itertools.pairwise(pairs):
        assert before["rows_out"] == after["rows_in"]
    assert manifest["images"] == pairs[-1]["rows_out"] == len(content(whole)[0])


def test_published_images_are_the_stored_bytes_in_hash_order(world: Path, whole: Path) -> None:
    stored = {
        hashlib.sha256(r["jpg"]).hexdigest()
        for r in ds.dataset(world / "pairs", format="parquet").to_table(["jpg"]).to_pylist()
        if r["jpg"]
    }
    assert {sha for sha, *_ in content(whole)[0].values()} <= stored
    for path in (whole / "i2e" / "images").rglob("*.parquet"):
        order = ds.dataset(path, format="parquet").to_table(["image_id"]).column(0).to_pylist()
        assert order == sorted(order)


def test_growth_resume_and_change(world: Path, whole: Path, tmp_path: Path, spark: Any) -> None:
    """One output through its life: each step does what it must and no more, and ends where one run over all does."""
    output = tmp_path / "out"
    first = settings(world, output, shards="0000[01]")
    worked = run(first, spark)
    assert worked == {s: 2 if s in (*PER_UNIT, "publish") else 1 for s in worked}

    # A second run does nothing, and needs no Spark.
    _, states = pipeline(first, lambda: pytest.fail("Spark was started")).run()
    assert not any(s.worked for s in states)

    # One unit's output deleted: that unit is made again, and what comes of it is the same.
    before = content(output)
    unit = Units(str(output)).known()[0].name
    shutil.rmtree(output / "scores" / f"unit={unit}")
    worked = run(first, spark)
    assert {s for s, n in worked.items() if n} == {"score"}
    assert worked["score"] == 1
    assert content(output) == before

    # A third shard is a new unit; the old ones stay as they are, to the byte.
    old = commits(output, *PER_UNIT)
    worked = run(settings(world, output), spark)
    assert all(worked[s] == 1 for s in PER_UNIT)
    assert {k: v for k, v in commits(output, *PER_UNIT).items() if k in old} == old
    assert content(output) == content(whole)

    # A threshold of the build makes the build again and nothing before it; back again, the same dataset.
    worked = run(settings(world, output, "label.threshold=0.6"), spark)
    assert {s for s, n in worked.items() if n} == {"label", "select", "publish", "finish"}
    assert len(content(output)[0]) < len(content(whole)[0])
    run(settings(world, output), spark)
    assert content(output) == content(whole)

    # A lost manifest means that the dataset is not whole; it is written again.
    os.remove(output / "i2e" / "manifest.json")
    with pytest.raises(NotPublished, match=r"has no manifest\.json"):
        export(f"{output}/i2e", str(tmp_path / "exported"))
    assert {s for s, n in run(settings(world, output), spark).items() if n} == {"finish"}

    # Another model is refused instead of spending hours of scoring by surprise.
    model = tmp_path / "model"
    shutil.copytree(settings(world, output).score.model.removeprefix("local-dir:"), model)
    config_file = model / "open_clip_config.json"
    config_file.write_text(config_file.read_text() + "\n")
    with pytest.raises(StageError, match=r"was written with another model .*use another output, or `i2e run --redo"):
        run(settings(world, output, f"score.model=local-dir:{model}"), spark)

    # A stage asked for without the ones before it says which job to run.
    fresh = settings(world, tmp_path / "fresh")
    with pytest.raises(StageError, match=r"link needs the table `kb/entities`.*run jobs/build_knowledge_base\.py"):
        run(fresh, spark, "link")

    units, stood = pipeline(settings(world, output)).status()
    assert len(units) == 3
    assert not any(s.to_do for s in stood)


@pytest.mark.delta
def test_the_result_does_not_depend_on_partitions_order_or_format(
    world: Path, whole: Path, tmp_path: Path, spark: Any
) -> None:
    """As Delta, other units, other partitions: the same rows.

    Catches: samples, classes or labels that follow the partitioning (MetaCLIP, cc2dataset: unseeded).
    """
    renamed = tmp_path / "world"
    shutil.copytree(world, renamed)
    for n, path in enumerate(sorted((renamed / "pairs").iterdir(), reverse=True)):
        path.rename(renamed / "pairs" / f"z{n}.parquet")
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "7")
    spark.conf.set("spark.sql.adaptive.coalescePartitions.enabled", "false")
    config = settings(
        renamed,
        tmp_path / "out",
        "storage.format=delta",
        "pairs.files_per_unit=3",
        "score.rows_per_task=40",
        "score.batch_size=3",
    )
    try:
        run(config, spark)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
        spark.conf.set("spark.sql.adaptive.coalescePartitions.enabled", "true")
    export(f"{config.output}/i2e", str(tmp_path / "exported"))
    assert content(tmp_path / "exported") == content(whole)
    assert explained_as_stored(pipeline(config, lambda: pytest.fail("Spark was started"))) > 50
    images = spark.read.format("delta").load(str(tmp_path / "out" / "i2e" / "images"))
    assert images.count() == len(content(whole)[0])
    assert not any(run(config, spark).values())


@pytest.mark.long
def test_a_pilot_grows_into_the_whole_and_nothing_is_done_twice(
    world: Path, whole: Path, tmp_path: Path, spark: Any
) -> None:
    """A share of the rows first, then all: the rows that one run over everything makes."""
    output = tmp_path / "out"
    assert run(settings(world, output, "pairs.sample=0.3"), spark)["score"] == 3
    pilot = commits(output, *PER_UNIT)
    rows = sum(c.rows_in for name, c in pilot.items() if name.startswith("pairs/"))
    assert 0 < rows < 0.6 * ds.dataset(world / "pairs", format="parquet").count_rows()
    assert run(settings(world, output), spark)["score"] == 3
    grown = commits(output, *PER_UNIT)
    assert {name: grown[name] for name in pilot} == pilot
    assert content(output) == content(whole)
