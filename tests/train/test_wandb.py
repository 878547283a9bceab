"""Weights & Biases gets what TensorBoard gets, where it is asked for and nowhere else."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core import extras
from i2e_pipeline.core.config import Config
from i2e_pipeline.train import checkpoint
from i2e_pipeline.train.journal import BadLoss, rows
from i2e_pipeline.train.wandb_board import WandbError
from tests.train.small_dataset import image_row, write_dataset
from tests.train.test_trainer import tree


@pytest.fixture(scope="module")
def settings(models: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    made = [image_row(i, labels=[(i % 12, 0.9)]) for i in range(64)]
    dataset = write_dataset(tmp_path_factory.mktemp("i2e") / "i2e", made, classes=12)

    def make(folder: Path, *overrides: str) -> Config:
        merged = configuration.merge(tree(dataset, models("vit"), folder), ["train.steps=2", *overrides])
        return configuration.from_tree(merged, "a test")

    return make


class Stub(types.ModuleType):
    """The library's names that are used here; runs are noted."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__("wandb")
        self.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.runs: list[Any] = []
        self.refuses = refuses

    def init(self, **how: Any) -> Any:
        if self.refuses:
            raise self.errors.Error(self.refuses)
        self.runs.append(types.SimpleNamespace(how=how, logged=[], ended=False))
        run = self.runs[-1]
        run.define_metric = lambda *_, **__: None
        run.log = run.logged.append
        run.finish = lambda exit_code: vars(run).update(ended=True, failed=bool(exit_code))
        return run


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def test_it_gets_steps_and_evaluations_under_the_step_of_each(
    settings: Callable[..., Config], stub: Stub, tmp_path: Path
) -> None:
    pretrain(settings(tmp_path, "train.wandb=mofi"))
    (run,) = stub.runs
    assert (run.how["project"], run.how["name"], run.ended) == ("mofi", tmp_path.name, True)
    assert run.how["config"]["recipe"] == "multi_task"
    told = {(row["step"], name): value for row in run.logged for name, value in row.items()}
    for row in rows(tmp_path):
        if row["kind"] == "step":
            assert told[row["step"], "loss/loss"] == row["losses"]["loss"]
            assert told[row["step"], "learning_rate"] == row["learning_rate"]
        if row["kind"] == "evaluation":
            assert told[row["step"], "evaluation/mAP"] == row["figures"]["mAP"]


def test_a_training_that_goes_on_is_the_same_run_and_one_that_begins_anew_another(
    settings: Callable[..., Config], stub: Stub, tmp_path: Path
) -> None:
    pretrain(settings(tmp_path, "train.wandb=mofi"))
    pretrain(settings(tmp_path, "train.wandb=mofi", "train.steps=3"))
    pretrain(settings(tmp_path, "train.wandb=mofi"), restart=True)
    first, second, third = (run.how["id"] for run in stub.runs)
    assert first == second != third


def test_a_training_that_ends_with_an_error_is_a_failed_run(
    settings: Callable[..., Config], stub: Stub, tmp_path: Path
) -> None:
    pretrain(settings(tmp_path / "good", "train.wandb=mofi"))
    bad = ("train.optimizer.learning_rate=1e30", "train.optimizer.clip_norm=null", "train.steps=6")
    with pytest.raises(BadLoss):
        pretrain(settings(tmp_path / "bad", "train.wandb=mofi", *bad))
    assert [(run.ended, run.failed) for run in stub.runs] == [(True, False), (True, True)]


def test_without_the_setting_nothing_goes_there(settings: Callable[..., Config], stub: Stub, tmp_path: Path) -> None:
    pretrain(settings(tmp_path))
    assert stub.runs == []
    assert not (tmp_path / "wandb.json").exists()


def test_a_missing_package_is_named_with_its_extra_and_costs_nothing(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: --restart that removes checkpoints and then stops for a package."""
    pretrain(settings(tmp_path))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        pretrain(settings(tmp_path, "train.wandb=mofi"), restart=True)
    said = extras.remedy(raised.value)
    assert said == ("wandb is not installed: pip install 'i2e-pipeline[wandb]' (Weights & Biases beside TensorBoard)")
    assert checkpoint.steps(tmp_path) == [2]


def test_a_refusal_says_the_way_out(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Stub(refuses="No API key configured"))
    with pytest.raises(WandbError, match=r"train\.wandb=mofi: No API key configured\. `wandb login`, or WANDB_MODE"):
        pretrain(settings(tmp_path, "train.wandb=mofi"))
