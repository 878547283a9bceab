"""Beside each figure stands whether the training has seen the images that it is of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from i2e_pipeline.clean.evaluation_sets import digest_of
from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.dataset import training_data
from i2e_pipeline.dataset.training_data import TrainingData
from i2e_pipeline.evaluate import suite
from i2e_pipeline.evaluate.datasets import open_dataset
from i2e_pipeline.evaluate.overlap import notes
from i2e_pipeline.train.card import DECONTAMINATED, Card
from i2e_pipeline.train.encoders import build
from i2e_pipeline.train.export import export
from tests.evaluate.small_sets import coloured, settings
from tests.small_models import write_model
from tests.train.small_dataset import entity_row, image_row, write_dataset

LEFT_OUT = "images of this set, and what looks like them, were left out of the training"
MAY_HAVE = "images of this set were not left out of the training: it may have been seen"


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (None, []),
        ({}, [MAY_HAVE]),
        ({"gpr": "0" * 32}, [MAY_HAVE]),
        (
            {"colours": "0" * 32},
            ["a set called colours was left out of the training, and this one has other files: it may have been seen"],
        ),
    ],
)
def test_what_is_known_of_a_set(tmp_path: Path, sets: dict[str, str] | None, words: list[str]) -> None:
    place = coloured(tmp_path / "colours")
    assert notes(TrainingData(sets), open_dataset("colours", str(place)), str(place)) == words


def test_a_set_is_known_by_its_files_wherever_they_lie(tmp_path: Path) -> None:
    place = coloured(tmp_path / "colours")
    shutil.copytree(place, tmp_path / "elsewhere")
    sets = {"another name": digest_of("x", (str(place),))}
    here = str(tmp_path / "elsewhere")
    assert notes(TrainingData(sets), open_dataset("colours", here), here) == [LEFT_OUT]
    next((tmp_path / "elsewhere").rglob("*.png")).unlink()
    assert notes(TrainingData(sets), open_dataset("colours", here), f"{here}/") == [MAY_HAVE]


def test_a_training_that_split_the_dataset_otherwise_may_have_seen_its_test_images(tmp_path: Path) -> None:
    """Catches: figures of a model on images that it was trained on, beside those of one that was not."""
    rows = [image_row(i, labels=[(i % 4, 0.9)], split=("train", "validation")[i // 4 % 2]) for i in range(40)]
    rows = [row | ({"split": "test"} if i % 4 < 2 else {}) for i, row in enumerate(rows)]
    entities = [entity_row(c, split="test" if c < 2 else "train") for c in range(4)]
    path = write_dataset(tmp_path / "i2e", rows, entities=entities)
    towers = build(
        TrainConfig(encoder={"model": write_model(tmp_path / "model", "vit")}).encoder, TrainConfig().loss, 0
    )
    said = {}
    written_out = {"hold_out_entities": 0.1, "hold_out_images": 0.05}
    ways = {"by the column": {}, "written out": written_out, "salted": {"hold_out_salt": "b", "hold_out_images": 0.2}}
    for name, data in ways.items():
        export(towers, None, tmp_path / name, card=Card(TrainConfig(data=data), data={DECONTAMINATED: {}}))
        known = training_data.read(str(tmp_path / name / "open_clip"))
        said[name] = notes(known, open_dataset("mine", path), path)
    assert said["by the column"] == said["written out"] == []
    assert said["salted"] == [
        "the training held out other images than this split does (train.data.hold_out_images=0.2, "
        "train.data.hold_out_salt=b): it may have seen these"
    ]


def test_a_dataset_too_small_for_its_own_split_says_what_trainings_on_it_see(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: figures of a model on the images that it was trained on, which look like any others."""
    caplog.set_level("INFO", "i2e_pipeline")
    rows = [image_row(i, labels=[(i % 4, 0.9)], split="validation" if i < 4 else "train") for i in range(40)]
    rows = [row | ({"split": "test"} if i % 4 == 0 else {}) for i, row in enumerate(rows)]
    entities = [entity_row(c, split="train" if c else "test") for c in range(4)]
    path = write_dataset(tmp_path / "i2e", rows, entities=entities)
    data = open_dataset("mine", path)
    by_bytes = {row["image"]["bytes"]: row for row in rows}
    asked = [by_bytes[stored] for stored in data.images.read(data.splits["test"].tolist())]
    seen = sum(row["split"] == "train" for row in asked)
    assert 0 < seen < len(asked)
    note = (
        "the dataset's own split holds too little out to measure on (validation images: 3, held-out entities: 1): "
        f"halves of each class are compared, and of the {len(asked)} images that are asked about a training on it sees "
        f"{seen}"
    )
    assert notes(TrainingData(), data, path) == [note]
    assert notes(TrainingData({}), data, path) == [note, MAY_HAVE]
    model = f"vit={write_model(tmp_path / 'model', 'vit')}"
    measured, _ = suite.measure(settings(tmp_path, models=[model], data={"mine": path}, suite=("knn",)))
    assert [result.notes[-1] for result in measured.results] == [note]
    assert any(line.startswith("vit ") and line.endswith(note) for line in caplog.messages)


def test_from_the_export_of_a_training_to_the_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "i2e_pipeline")
    place = coloured(tmp_path / "colours")
    model = write_model(tmp_path / "model", "vit")
    towers = build(TrainConfig(encoder={"model": model}).encoder, TrainConfig().loss, 0)
    sets = {"colours": digest_of("colours", (str(place),))}
    for name, data in (("cleared", {DECONTAMINATED: sets}), ("not", {DECONTAMINATED: {}}), ("of before", {})):
        export(towers, None, tmp_path / name, card=Card(TrainConfig(), data=data))
    (tmp_path / "of before" / "open_clip" / training_data.FILE).unlink()
    card = (tmp_path / "cleared" / "README.md").read_text()
    assert "| evaluation sets whose images were left out | colours |" in card
    models = [f"{name}=local-dir:{tmp_path}/{name}/open_clip" for name in ("cleared", "not", "of before")]
    measured, _ = suite.measure(settings(tmp_path, models=models, data={"colours": str(place)}, suite=("gpr",)))
    said = {result.model: [n for n in result.notes if "training" in n] for result in measured.results}
    assert said == {"cleared": [LEFT_OUT], "not": [MAY_HAVE], "of before": []}
    assert any(line.startswith("cleared ") and line.endswith(LEFT_OUT) for line in caplog.messages)
