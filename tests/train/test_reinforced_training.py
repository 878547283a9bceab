"""Trainings on reinforced tables: they learn what teachers say, go on, and refuse what does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2e_pipeline.commands.reinforcing import Wanted, reinforce
from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import Config, DataConfig
from i2e_pipeline.dataset.published import DatasetError
from i2e_pipeline.train import checkpoint, losses
from i2e_pipeline.train.batch import TeacherSpace
from i2e_pipeline.train.journal import rows
from i2e_pipeline.train.recipes import RecipeError, recipe
from i2e_pipeline.train.reinforcing import Models, TeacherConfig
from i2e_pipeline.train.trainer import TrainError
from tests.small_models import write_model
from tests.train import ranks
from tests.train.small_dataset import image_row, write_dataset
from tests.train.test_recipes import batch_of, config_of, losses_of
from tests.train.test_trainer import far, tree, weights

IMAGES, CLASSES = 96, 12
TEMPLATE = "{name}, {description}"


@pytest.fixture(scope="module")
def teachers(models: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[TeacherConfig, ...]:
    other = write_model(tmp_path_factory.mktemp("teacher"), "vit", seed=9)
    return tuple(TeacherConfig(model=name, device="cpu") for name in (other, models("resnet")))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, teachers: tuple[TeacherConfig, ...]) -> str:
    rows = [image_row(i, labels=[(i % CLASSES, 0.9)]) for i in range(IMAGES)]
    folder = write_dataset(tmp_path_factory.mktemp("out") / "i2e", rows, classes=CLASSES)
    reinforce(folder, Wanted(Models(teachers), 4, DataConfig(), TEMPLATE))
    return folder


@pytest.fixture(scope="module")
def settings(dataset: str, models: Callable[[str], str]) -> Callable[..., Config]:
    def make(folder: Path, *overrides: str) -> Config:
        more = ("train.reinforce.affinity=0.7", *overrides)
        return configuration.from_tree(configuration.merge(tree(dataset, models("vit"), folder), more), "a test")

    return make


# The recipe


@pytest.mark.parametrize("name", ["contrastive", "multi_task", "clip_alt_text"])
def test_the_contrastive_part_is_mixed_with_affinity_by_lambda(name: str) -> None:
    encoded, batch = batch_of()
    draws = torch.Generator().manual_seed(5)
    batch = replace(
        batch,
        teacher_BT=torch.randn(6, 8, generator=draws),
        teacher_text_BT=torch.randn(6, 8, generator=draws),
        teachers=(TeacherSpace(5, 9.0), TeacherSpace(3, 30.0)),
    )
    plain = losses_of(config_of(name), encoded, batch)
    found = losses_of(config_of(name, reinforce={"affinity": 0.75}), encoded, batch)
    vectors = (batch.teacher_BT, batch.teacher_text_BT, batch.teachers)
    affinity = losses.affinity(encoded.image_BD, encoded.text_BD, encoded.scale, *vectors).item()
    mixed = 0.25 * plain["contrastive"].item() + 0.75 * affinity
    share = 0.5 if name == "multi_task" else 0.0
    classification = plain["classification"].item() if share else 0.0
    assert found["affinity"].item() == pytest.approx(affinity)
    assert found["contrastive"].item() == pytest.approx(plain["contrastive"].item())
    assert found["loss"].item() == pytest.approx(share * classification + (1 - share) * mixed)


@pytest.mark.parametrize(
    ("name", "sections", "said"),
    [
        ("supervised", {"reinforce": {"affinity": 0.5}}, r"reinforce\.affinity is about texts, .*supervised has none"),
        ("supervised", {"reinforce": {"captions": 0.5}}, r"reinforce\.captions is about texts"),
        ("contrastive", {"reinforce": {"vectors": 1}, "loss": {"distillation": 1}}, "both distil image vectors"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(config_of(name, **sections))


# Trainings


@pytest.mark.parametrize(
    ("name", "more"),
    [("multi_task", "vectors=1.0"), ("clip_alt_text", "temperature=0.05"), ("supervised", "affinity=0")],
)
def test_a_training_learns_what_the_teachers_say(
    settings: Callable[..., Config], tmp_path: Path, name: str, more: str
) -> None:
    steps = ("train.steps=30", "train.optimizer.learning_rate=3e-3", "train.optimizer.warmup=0.1")
    vectors = ("train.reinforce.vectors=2.0",) if name == "supervised" else ()
    config = settings(tmp_path, f"train.recipe={name}", f"train.reinforce.{more}", *steps, *vectors)
    assert pretrain(config) is not None
    told = [row["losses"] for row in rows(tmp_path) if row["kind"] == "step"]
    parts = {
        "multi_task": ("affinity", "distillation"),
        "clip_alt_text": ("affinity",),
        "supervised": ("distillation",),
    }
    for part in parts[name]:
        first, last = (sum(row[part] for row in some) / 5 for some in (told[:5], told[-5:]))
        assert last < 0.9 * first, part


def test_a_reinforced_training_cut_off_goes_on_as_if_nothing_had_happened(
    settings: Callable[..., Config], tmp_path: Path, dataset: str
) -> None:
    parts = ("train.recipe=contrastive", "train.reinforce.vectors=1.0")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(settings(whole, *parts, "train.checkpoint_every=3"))
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / checkpoint.name(6))
    (cut / "outcome.json").unlink()
    moved = tmp_path / "moved"
    shutil.copytree(Path(dataset).parent / "reinforced", moved)
    pretrain(settings(cut, *parts, "train.checkpoint_every=3", f"train.reinforce.folder={moved}"))
    assert far(weights(whole), weights(cut)) == 0
    assert checkpoint.load(checkpoint.find(cut)).state.reinforced is not None


def test_other_teachers_than_those_of_the_checkpoint_are_refused(
    settings: Callable[..., Config], tmp_path: Path, dataset: str, teachers: tuple[TeacherConfig, ...]
) -> None:
    """Catches: a training that goes on with another teacher's vectors of the same width, and nobody sees it."""
    pretrain(settings(tmp_path / "t", "train.recipe=contrastive", "train.steps=2"))
    reinforce(dataset, Wanted(Models(teachers[::-1]), 4, DataConfig(), TEMPLATE), str(tmp_path / "other"))
    other = settings(
        tmp_path / "t", "train.recipe=contrastive", "train.steps=4", f"train.reinforce.folder={tmp_path}/other"
    )
    with pytest.raises(TrainError, match=r"trained with other teachers, augmentations or captions .*--restart"):
        pretrain(other)
    assert pretrain(other, restart=True) is not None


def test_texts_that_were_put_together_otherwise_are_refused(settings: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"train\.text\.template is '\{name\}!', and the teachers of"):
        pretrain(settings(tmp_path, "train.recipe=contrastive", "train.text.template={name}!"))


@pytest.mark.slow
def test_ranks_and_parts_give_the_same_weights(settings: Callable[..., Config], tmp_path: Path) -> None:
    """Catches: similarities among a rank's own images alone, or a mean that forgets how many ranks there are."""
    parts = ("train.recipe=contrastive", "train.reinforce.vectors=1.0")
    alone = settings(tmp_path / "alone", *parts)
    pretrain(alone)
    file = tmp_path / "two.yaml"
    file.write_text(configuration.dump(settings(tmp_path / "two", *parts)))
    ranks.finish(ranks.start(file, ranks=2))
    assert far(weights(tmp_path / "alone"), weights(tmp_path / "two")) < 1e-3
