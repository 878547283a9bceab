"""The benchmarks of reinforcement run, do the same work in each way, and compare trainings of the same seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import reinforced, reinforcement
from i2e_pipeline.train.journal import rows
from tests.small_models import picture, stored
from tests.train.small_dataset import image_row, write_dataset


@pytest.mark.slow
def test_reinforcement(tmp_path: Path, models: Callable[[str], str]) -> None:
    images = pa.table({"jpg": [stored(picture(n), "JPEG") for n in range(24)]})
    pq.write_table(images, tmp_path / "images.parquet")
    out = tmp_path / "figures.json"
    teacher = ["--teacher", models("vit"), models("resnet"), "--model", models("vit")]
    small = ["--images", "24", "--augmentations", "2", "--batch", "8", "--steps", "2", "--repeats", "1"]
    figures = reinforcement.main(["--parquet", str(tmp_path / "images.parquet"), *teacher, *small, "--json", str(out)])
    assert json.loads(out.read_text()) == figures
    assert figures["vector_bytes"] == 2 * 48 * 3
    assert figures["bytes_per_image"] > figures["vector_bytes"]
    assert figures["times_plain"]["plain"] == 1
    assert set(figures["times_plain"]) == {"plain", "stored", "teacher"}
    assert figures["times_forward"] > 1  # it does all of the forward passes, and reads, cuts and writes besides


def test_differences_are_to_the_plain_training_of_the_same_seed() -> None:
    found = {
        "untrained": {0: {"mAP": 0.1}, 1: {"mAP": 0.1}, 2: {"mAP": 0.1}},
        "plain": {0: {"mAP": 0.2}, 1: {"mAP": 0.4}, 2: {"mAP": 0.3}},
        "affinity=0.7": {0: {"mAP": 0.3}, 1: {"mAP": 0.5}, 2: {"mAP": 0.4}},
    }
    _, _, untrained, plain, arm = reinforced.table(found).splitlines()
    assert arm.startswith("| affinity=0.7 | 0.400 ± 0.100 | +0.100 [+0.100, +0.100] |")
    assert plain.startswith("| plain | 0.300 ± 0.100 |  |")
    assert untrained.startswith("| untrained | 0.100 ± 0.000 |  |")
    found["affinity=0.7"][2]["mAP"] = 0.7  # gains .1, .1, .4: mean .2, deviation .173, 4.303 · .173 / √3 = .430
    assert "+0.200 [-0.230, +0.630]" in reinforced.table(found)


def taken(folder: Path) -> dict[str, list[dict[str, float]]]:
    """The losses of each training's steps that were logged."""
    return {
        str(path): [row["losses"] for row in rows(path.parent) if row["kind"] == "step"]
        for path in folder.rglob("journal.jsonl")
    }


@pytest.mark.slow
def test_what_was_trained_and_reinforced_is_found_again(
    tmp_path: Path, models: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    images = [image_row(i, labels=[(i % 8, 0.9)]) for i in range(64)]
    dataset = write_dataset(tmp_path / "out" / "i2e", images, classes=8)
    arguments = [
        "--dataset", dataset, "--teacher", models("resnet"), "--augmentations", "2", "--folder", str(tmp_path / "made"),
        "--seeds", "0,1", "--recipe", "clip_alt_text", "--at-once", "1",
        "--set", f"train.encoder.model={models('vit')}",
        "train.device=cpu", "train.data.batch_size=8", "train.data.hold_out_entities=0.4", "train.steps=2",
    ]  # fmt: skip
    found = reinforced.main(arguments)
    assert list(found) == ["untrained", "plain", "affinity=0.7"]
    assert all(set(by_seed) == {0, 1} for by_seed in found.values())
    steps = taken(tmp_path / "made")
    assert len(steps) == 4
    assert sorted("affinity" in losses for (losses,) in steps.values()) == [False, False, True, True]
    assert reinforced.main(arguments) == found
    assert taken(tmp_path / "made") == steps
    assert "| affinity=0.7 |" in capsys.readouterr().out
