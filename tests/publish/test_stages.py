"""A published dataset stays whole until the next one takes its place; a kill leaves it, none, or the next one."""

from __future__ import annotations

import itertools
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from i2e_pipeline import stages
from i2e_pipeline.core import files
from i2e_pipeline.core.schemas import IMAGES
from i2e_pipeline.dataset.published import NotPublished, open_published
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.engine.units import InputError, Units
from i2e_pipeline.report import quality
from tests.engine.test_laws import Killed, changes
from tests.engine.toys import worked
from tests.test_stored_output import STORED, as_then


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished output of two units."""
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    as_then(monkeypatch)
    return tmp_path / "out"


def built(threshold: float, spark: Any = None) -> Pipeline:
    here = Path.cwd()  # Spark's workers are elsewhere
    paths = [f"output={here}/out", f"pairs.path={here}/in/*.parquet"]
    config = stages.load("config.yaml", [f"label.threshold={threshold}", "label.calibration=then.json", *paths])
    return stages.pipeline(config, (lambda: spark) if spark is not None else lambda: pytest.fail("Spark was started"))


def dataset(output: Path) -> tuple[dict[str, Any], dict[bytes, Any]]:
    """The manifest's words on what is in it, and what is. Raises NotPublished where there is none."""
    published = open_published(str(output / "i2e"))
    images = ds.dataset([str(output / "i2e" / f.path) for f in published.files]).to_table(["image_id", "labels"])
    rows = {row["image_id"]: row["labels"] for row in images.to_pylist()}
    named = {key: published.manifest[key] for key in ("images", "labels", "entities", "units", "dataset")}
    assert named["images"] == len(rows)
    assert named["labels"] == sum(map(len, rows.values()))
    assert named["entities"] == published.entities.column("retired").to_pylist().count(False)
    retired = published.entities.column("retired").to_pylist()
    live = {index for index, gone in enumerate(retired) if not gone}
    assert {label["class_index"] for labels in rows.values() for label in labels} == live
    return named, rows


def test_a_file_that_is_gone_leaves_the_published_dataset_whole(output: Path, spark: Any) -> None:
    """Catches: a changed threshold, an input file that is gone, and yesterday's good dataset without its manifest."""
    before, labels = dataset(output), built(0.1).tables.commits("label")
    unit, gone = next((u.name, Path(u.files[0].path)) for u in Units(str(output)).known())
    gone.rename("elsewhere.parquet")
    said = (
        rf"stage publish needs input files again \(label: changed: label\.threshold: 0\.001, now 0\.1\).*unit {unit}: "
    )
    with pytest.raises(StageError, match=rf"{said}.*{gone.name} is gone.*`i2e run --forget {unit}`"):
        built(0.1).run()
    assert dataset(output) == before
    assert built(0.1).tables.commits("label") == labels
    assert not any(worked(built(0.001).run()[1]).values())
    assert worked(built(0.1, spark).run(["label", "select"])[1])["label"] == 2
    assert dataset(output) == before

    Path("elsewhere.parquet").rename(gone)
    built(0.1, spark).run()
    assert dataset(output)[0]["images"] < before[0]["images"]


def test_a_stage_that_fails_before_it_replaces_a_file_leaves_the_published_dataset_whole(
    output: Path, spark: Any
) -> None:
    before = dataset(output)
    built(0.001).run()  # it notes where the files lie now
    for file in Path("in").iterdir():  # as long and as old as before, with a footer; the pages are damaged
        data, times = file.read_bytes(), file.stat().st_mtime_ns
        footer = int.from_bytes(data[-8:-4], "little") + 8
        file.write_bytes(data[:4] + bytes(len(data) - 4 - footer) + data[-footer:])
        os.utime(file, ns=(times, times))
    with pytest.raises(StageError, match="stage publish: 2 units failed"):
        built(0.1, spark).run()
    assert dataset(output) == before


def test_figures_of_a_dataset_whose_input_is_gone_are_passed_over(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a run that was killed before its report, and the next one that dies over a dataset which is whole."""
    run, _ = built(0.001).run()
    files.write_json(str(output / "quality.json"), [{"of": "a dataset before"}])
    files.write_table(str(output / "judged.parquet"), quality.JUDGED.empty_table())
    Path("in/00000.parquet").unlink()
    quality.measure(run)
    assert quality.read(run.tables) == []
    assert not (output / "judged.parquet").exists()
    assert "1 input files are gone" in caplog.text


def test_units_that_are_new_leave_the_manifest_and_those_that_it_names_do_not(output: Path) -> None:
    pipeline = built(0.001)
    run = pipeline.open(Units(str(output)).known())
    publish = run.writer("i2e/images")
    before = dataset(output)
    publish.before_commit(run.handed_to(publish), ["u-new"])
    assert dataset(output) == before
    publish.before_commit(run.handed_to(publish), ["u-new", run.units[0].name])
    with pytest.raises(NotPublished):
        dataset(output)
    publish.before_commit(run.handed_to(publish), [run.units[0].name])
    files.write_bytes(str(output / "i2e" / "manifest.json"), b"{")
    publish.before_commit(run.handed_to(publish), ["u-new"])
    assert not (output / "i2e" / "manifest.json").exists()


def test_images_of_a_unit_that_was_forgotten_before_it_was_part_of_a_dataset_are_removed(
    output: Path, spark: Any
) -> None:
    """Catches: rows of somebody who opted out that stay beside a dataset which is whole without them."""
    before, tables = dataset(output), built(0.001).tables
    commit = next(iter(tables.commits("publish").values()))
    other = [replace(f, path=f.path.replace(commit.unit, "u-other")) for f in commit.files["i2e/images"]]
    for old, new in zip(commit.files["i2e/images"], other, strict=True):
        (output / "i2e" / "images" / new.path).parent.mkdir(exist_ok=True)
        shutil.copy(output / "i2e" / "images" / old.path, output / "i2e" / "images" / new.path)
    tables.records.add("publish", [replace(commit, unit="u-other", files={**commit.files, "i2e/images": other})])
    assert dataset(output) == before
    assert {s for s, n in worked(built(0.001, spark).run()[1]).items() if n} == {"finish"}
    assert not (output / "i2e" / "images" / "unit=u-other").exists()
    assert dataset(output) == before


@pytest.mark.slow
def test_a_kill_at_any_change_of_the_files_leaves_the_old_dataset_or_none_or_the_new_one(
    output: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a manifest that says of other files that they are whole."""
    old = dataset(output)
    built(0.1, spark).run(["label", "select"])
    shutil.copytree(output, "base")
    built(0.1, spark).run()
    new = dataset(output)
    assert new != old
    seen = []
    for kill_at in itertools.count(1, 2):
        shutil.rmtree(output)
        shutil.copytree("base", output)
        survived = False
        with monkeypatch.context() as patched:
            changes(kill_at, patched)
            try:
                built(0.1, spark).run()
                survived = True
            except Killed:
                pass
        try:
            found = dataset(output)
            assert found in (old, new), f"killed at change {kill_at}"
            seen.append("old" if found == old else "new")
        except NotPublished:
            seen.append("none")
        if survived:
            break
        assert kill_at < 200
    assert list(dict.fromkeys(seen)) == ["old", "none", "new"]  # in this order, each of them
    (output / "_lock").unlink(missing_ok=True)
    assert not any(worked(built(0.1, spark).run()[1]).values())


def test_columns_that_are_kept_later_are_published_without_scoring_again(output: Path, spark: Any) -> None:
    """Catches: a column more that costs a day of a GPU; a dataset half of which has it."""

    def columns(*keep: str) -> tuple[dict[str, int], pa.Table]:
        here = Path.cwd()
        paths = [
            f"output={here}/out",
            f"pairs.path={here}/in/*.parquet",
            "label.threshold=0.001",
            "label.calibration=then.json",
        ]
        config = stages.load("config.yaml", [*paths, f"pairs.keep_columns=[{', '.join(keep)}]"])
        states = stages.pipeline(config, lambda: spark).run()[1]
        published = open_published(str(output / "i2e"))
        assert published.manifest["columns"] == [*IMAGES.names, *keep]
        table = ds.dataset([str(output / "i2e" / f.path) for f in published.files]).to_table()
        assert table.schema.names == [*IMAGES.names, *keep]
        return {name: units for name, units in worked(states).items() if units}, table

    before = ds.dataset(output / "i2e" / "images", format="parquet").to_table(["image_id", "labels"])
    done, table = columns("truth_qid")
    assert done == {"publish": 2, "finish": 1}
    source = ds.dataset("in", format="parquet").to_table(["url", "caption", "truth_qid", "key"]).to_pylist()
    keys = {(row["url"], row["caption"]): (row["truth_qid"], row["key"]) for row in source}
    assert table.num_rows
    assert list(zip(table["truth_qid"].to_pylist(), table["key"].to_pylist(), strict=True)) == [
        keys[url, text] for url, text in zip(table["url"].to_pylist(), table["alt_text"].to_pylist(), strict=True)
    ]
    # The stored dataset is of format 1, and what it is made of knows no more: ids are in hex, mentions unknown.
    labels = [
        [{**x, "clip_score": None, "mention": None} for x in of_image] for of_image in before["labels"].to_pylist()
    ]
    assert table["image_id"].to_pylist() == [image_id.hex() for image_id in before["image_id"].to_pylist()]
    assert table["labels"].to_pylist() == labels
    assert table["perceptual_hash"].null_count == table.num_rows
    assert ", truth_qid |" in (output / "i2e" / "README.md").read_text()
    assert columns("truth_qid")[0] == {}
    assert columns()[0] == {"publish": 2, "finish": 1}
    with pytest.raises(InputError, match="no input file has a column 'licence'"):
        columns("licence")
