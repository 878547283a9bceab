"""Two outputs merged into a third: the rows of one that was built from both inputs at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import yaml
from deltalake import DeltaTable

from i2e_pipeline.commands import merge as merging
from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.config import merge as with_overrides
from i2e_pipeline.engine import joining
from i2e_pipeline.engine.joining import JoinError
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.engine.units import Units
from i2e_pipeline.stages import from_tree, pipeline
from tests.chain import commits, content, rows, run, settings

BY_UNIT = ("pairs", "extract", "link", "score", "label")


@pytest.fixture(scope="module")
def halves(world: Path, spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Two outputs in a form of tables: of the first two shards, and of the last two."""
    made: dict[str, tuple[Path, Path]] = {}

    def in_form(form: str = "parquet") -> tuple[Path, Path]:
        if form not in made:
            folder = tmp_path_factory.mktemp(form)
            for name, shards in (("a", "*[01]"), ("b", "*[12]")):
                config = settings(world, folder / name, f"storage.format={form}", shards=shards)
                run(config, spark)
                (folder / name / "config.yaml").write_text(yaml.safe_dump(config.shown()))
            made[form] = folder / "a", folder / "b"
        return made[form]

    return in_form


def config_of(first: Path, second: Path, to: Path, *overrides: str) -> Config:
    tree = merging.settings_of(str(first), str(second), str(to))
    return from_tree(with_overrides(tree, overrides), "a test")


def merge(first: Path, second: Path, config: Config) -> joining.Joined:
    return merging.merge(str(first), str(second), pipeline(config))


def merged(first: Path, second: Path, to: Path, *overrides: str) -> Config:
    config = config_of(first, second, to, *overrides)
    merge(first, second, config)
    return config


def indices(output: Path) -> dict[int, int]:
    entities = ds.dataset(f"{output}/i2e/entities", format="parquet").to_table().to_pylist()
    return {e["entity_id"]: e["class_index"] for e in entities}


def test_a_merged_output_is_one_of_both_inputs(halves: Any, whole: Path, tmp_path: Path, spark: Any) -> None:
    """Work is done for what is decided over all alone; classes of the first keep their indices."""
    a, b = halves()
    config = merged(a, b, tmp_path / "c")
    assert len(config.pairs.path) == 2
    done = run(config, spark)
    assert done == {stage: int(stage in ("select", "finish", "publish")) * max(1, done[stage]) for stage in done}
    assert content(tmp_path / "c") == content(whole)
    before, now = indices(a), indices(tmp_path / "c")
    assert {entity: now[entity] for entity in before} == before
    assert not any(run(config, spark).values())
    # As numbers of shards go, later stages find their files.
    assert run(config, spark, redo=("score",))["score"] == 3
    assert content(tmp_path / "c") == content(whole)


def test_a_merge_that_is_done_is_done(halves: Any, tmp_path: Path) -> None:
    """Catches: one that was killed when all was there, and that is refused when it is called again."""
    a, b = halves()
    config = merged(a, b, tmp_path / "c")
    before = commits(tmp_path / "c", *BY_UNIT)
    assert merge(a, b, config).units == 3
    assert commits(tmp_path / "c", *BY_UNIT) == before
    with pytest.raises(JoinError, match="holds something already"):
        merge(b, a, config_of(b, a, tmp_path / "c"))


def test_units_whose_selection_stays_are_not_written_again(halves: Any, tmp_path: Path, spark: Any) -> None:
    a, _ = halves()
    shutil.copytree(a, tmp_path / "b")
    again = merged(a, tmp_path / "b", tmp_path / "c")
    done = run(again, spark)
    assert (done["publish"], content(tmp_path / "c")) == (0, content(a))


@pytest.mark.parametrize("died", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (4, 7)), 10])
def test_a_merge_that_was_killed_goes_on(
    halves: Any, whole: Path, tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch, died: int
) -> None:
    """Nothing works on a half of one, and what was copied is not copied again."""
    a, b = halves()
    copied = joining._copy_file
    count = 0

    def dies(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > died:
            raise KeyboardInterrupt
        return copied(*arguments)

    monkeypatch.setattr(joining, "_copy_file", dies)
    config = config_of(a, b, tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        merge(a, b, config)
    with pytest.raises(StageError, match=r"that was cut off: `i2e merge .*a .*b --to .*c` goes on with it"):
        run(config, spark)
    with pytest.raises(JoinError, match="was begun as another join"):
        merge(b, a, config_of(b, a, tmp_path / "c"))
    before = commits(tmp_path / "c", "knowledge_base", "surfaces", *BY_UNIT)
    monkeypatch.setattr(joining, "_copy_file", copied)
    merge(a, b, config)
    assert before.items() <= commits(tmp_path / "c", "knowledge_base", "surfaces", *BY_UNIT).items()
    if died == 1:
        run(config, spark)
        assert content(tmp_path / "c") == content(whole)


@pytest.mark.long
@pytest.mark.delta
def test_tables_of_delta(halves: Any, whole: Path, tmp_path: Path, spark: Any) -> None:
    """Also where the second's are Parquet: the merged output is stored as the first."""
    a, b = halves("delta")
    mixed = merged(a, halves()[1], tmp_path / "mixed")
    assert mixed.storage.format == "delta"
    for config, output in ((merged(a, b, tmp_path / "c"), tmp_path / "c"), (mixed, tmp_path / "mixed")):
        done = run(config, spark)
        assert (done["score"], done["label"]) == (0, 0)
        opened: Pipeline = pipeline(config, lambda: spark)
        there = {row["image_id"] for row in rows(opened, "i2e/images")}
        assert there == set(content(whole)[0])
        for table in ("pairs", "scores", "labels"):
            logged = DeltaTable(str(output / table)).to_pyarrow_table().num_rows
            assert logged == len(rows(opened, table))


def test_outputs_that_were_made_otherwise_are_refused(world: Path, halves: Any, tmp_path: Path, spark: Any) -> None:
    a, _ = halves()
    config = settings(world, tmp_path / "b", "link.max_candidates=7", shards="*2")
    run(config, spark, "knowledge_base", "surfaces", "pairs", "extract", "link")
    with pytest.raises(
        JoinError, match=r"link was made otherwise in .*a and in .*b \(settings.max_candidates: \d+, now"
    ):
        merged(a, tmp_path / "b", tmp_path / "c")
    assert not (tmp_path / "c" / "units").exists()


def test_a_file_in_two_units_is_refused(world: Path, halves: Any, tmp_path: Path, spark: Any) -> None:
    """Catches: pairs that count twice."""
    a, _ = halves()
    config = settings(world, tmp_path / "b", "pairs.files_per_unit=2", shards="*[12]")
    run(config, spark, "knowledge_base", "surfaces", "pairs")
    with pytest.raises(JoinError, match=r"1\.parquet is in unit u-\w+ of .* and in unit u-\w+ .* --forget u-"):
        merged(a, tmp_path / "b", tmp_path / "c")


def test_what_one_has_forgotten_stays_forgotten(halves: Any, tmp_path: Path, spark: Any) -> None:
    a, b = halves()
    shutil.copytree(b, tmp_path / "b")
    both = {u.name for u in Units(str(a)).known()} & {u.name for u in Units(str(b)).known()}
    (unit,) = both
    pipeline(settings(tmp_path, tmp_path / "b"), lambda: spark).forget(unit)
    config = config_of(a, tmp_path / "b", tmp_path / "c")
    joined = merge(a, tmp_path / "b", config)
    assert (joined.units, joined.twice, joined.forgotten) == (2, 0, 1)
    run(config, spark)
    assert unit not in {u.name for u in Units(str(tmp_path / "c")).known()}
    assert unit not in files.read_json(str(tmp_path / "c" / "i2e" / "manifest.json"))["units"]


def test_it_takes_three_folders(halves: Any, tmp_path: Path) -> None:
    a, b = halves()
    with pytest.raises(JoinError, match="are not three folders"):
        merged(a, b, a)
    with pytest.raises(JoinError, match="is no output of a run"):
        merged(a, tmp_path, tmp_path / "c")
    with pytest.raises(JoinError, match="holds something already"):
        merge(
            a,
            b,
            config_of(a, b, b).model_copy(update={"output": str(copy(b, tmp_path))}),
        )


def copy(output: Path, folder: Path) -> Path:
    return Path(shutil.copytree(output, folder / "full"))
