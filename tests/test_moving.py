"""An output that was moved goes on where it is (one that was copied to a store: tests/stores/test_s3.py)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands.explain import explain
from i2e_pipeline.core import files, lock
from i2e_pipeline.stages import pipeline
from tests.chain import content, run, settings

EARLY = ("knowledge_base", "surfaces", "pairs", "extract", "link")


def with_input(world: Path, output: Path, shards: str) -> None:
    """Puts shards where the output has its input within itself, as the sample and `i2e fetch` have it."""
    (output / "input" / "pairs").mkdir(parents=True, exist_ok=True)
    for path in sorted((world / "pairs").glob(f"{shards}.parquet")):
        shutil.copy2(path, output / "input" / "pairs")


def at(world: Path, output: Path, form: str) -> Any:
    return settings(world, output, f"pairs.path={output}/input/pairs/*.parquet", f"storage.format={form}")


@pytest.mark.parametrize("form", ["parquet", pytest.param("delta", marks=[pytest.mark.delta, pytest.mark.long])])
def test_a_moved_output_has_nothing_to_do_and_grows(
    world: Path, whole: Path, tmp_path: Path, spark: Any, form: str
) -> None:
    """With its input. Catches: a path of the old place in a record, a log or a laid-out file."""
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new {1} [a]"
    with_input(world, old, "*[01]")
    run(at(world, old, form), spark)
    new.parent.mkdir()
    shutil.move(old, new)
    config = at(world, new, form)
    assert not any(run(config, spark).values())
    with_input(world, new, "*2")
    done = run(config, spark)
    by_unit = {stage: n for stage, n in done.items() if stage not in ("select", "finish", "publish", "entity_vectors")}
    assert by_unit == {stage: int(stage not in ("knowledge_base", "surfaces")) for stage in by_unit}
    if form == "parquet":
        assert content(new) == content(whole)
        assert str(old) not in "".join(p.read_text() for p in new.rglob("*.json") if p.parts[-2] == "units")
        opened = pipeline(config, lambda: spark)
        assert explain(opened, min(content(new)[0]))["notes"] == []
    else:
        from deltalake import DeltaTable

        images = DeltaTable(str(new / "i2e" / "images")).to_pyarrow_table(columns=["image_id"])
        assert {row["image_id"] for row in images.to_pylist()} == set(content(whole)[0])
    assert not old.exists()


@pytest.mark.long
def test_a_half_finished_output_goes_on_where_it_is(
    world: Path, whole: Path, tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_LISTENED", 0.01)
    old, new = tmp_path / "old", tmp_path / "new"
    with_input(world, old, "*")
    run(at(world, old, "parquet"), spark, *EARLY)
    (old / "_staging" / "score-of-a-kill" / "scores").mkdir(parents=True)
    files.write_json(str(old / "_lock"), {"host": "of-a-kill", "process": 1, "since": "", "beat": 0})
    shutil.move(old, new)
    done = run(at(world, new, "parquet"), spark)
    assert [done[stage] for stage in EARLY] == [0] * len(EARLY)
    assert content(new) == content(whole)
    assert not list((new / "_staging").rglob("*"))
    assert not old.exists()
