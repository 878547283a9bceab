"""The README of an export says what is known, and what it says to type works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import EncoderConfig, LossConfig, TrainConfig
from i2e_pipeline.train.card import Card, text
from i2e_pipeline.train.encoders import build
from i2e_pipeline.train.export import export_checkpoint
from i2e_pipeline.train.journal import rows
from tests.train.small_dataset import image_row, write_dataset
from tests.train.test_trainer import tree


@pytest.fixture(scope="module")
def trained(models: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    made = [image_row(i, labels=[(i % 12, 0.9)]) for i in range(96)]
    dataset = write_dataset(folder / "i2e", made, classes=12)
    overrides = ["train.evaluate_every=3", "train.checkpoint_every=3", "train.steps=6"]
    pretrain(configuration.from_tree(configuration.merge(tree(dataset, models("vit"), folder), overrides), "a test"))
    return folder


def cells(readme: str) -> dict[str, str]:
    """The first two cells of each line of its tables."""
    return {line.split("|")[1].strip(): line.split("|")[2].strip() for line in readme.splitlines() if line[:2] == "| "}


def test_it_names_data_training_and_figures(trained: Path) -> None:
    readme = (trained / "export" / "README.md").read_text()
    outcome = json.loads((trained / "outcome.json").read_text())
    found = cells(readme)
    for name, value in outcome["after"].items():
        assert found[name] == f"{value:.4g}"
        assert f"| {name} | {value:.4g} | {outcome['before'][name]:.4g} |" in readme
    assert len(outcome["after"]) == 3
    (start,) = (row for row in rows(trained) if row["kind"] == "start")
    assert found["fingerprint"] == f"`{start['data']['fingerprint']}`"
    assert (found["images"], found["dataset"]) == (f"{outcome['images']}", f"`{trained}/i2e`")
    assert int(found["entities"]) + int(found["held-out entities"]) == 12
    assert (found["steps"], found["images of a step"], found["learning rate"]) == ("6", "16", "0.0008")
    assert found["began"] == "at random"
    assert found["recipe"].startswith("multi_task: ")
    assert "batch_size: 16" in readme


def test_a_checkpoints_card_has_the_figures_of_its_step(trained: Path) -> None:
    """Catches: the figures of the last step on a card of an earlier one."""
    place = export_checkpoint(trained, "3")
    measured = {row["step"]: row["figures"] for row in rows(trained) if row["kind"] == "evaluation"}
    found = cells((place / "README.md").read_text())
    assert found["steps"] == "3"
    assert found["mAP"] == f"{measured[3]['mAP']:.4g}"


def test_its_code_runs_where_the_export_lies(trained: Path, tmp_path: Path) -> None:
    """Catches: a snippet that loads from the machine where it was written, or that lacks an import."""
    (trained / "export").rename(tmp_path / "moved")
    try:
        blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "moved" / "README.md").read_text(), re.DOTALL)
        assert len(blocks) == 2
        seen = 'import torch; print(tuple(model.encode_text(tokenizer(["a"])).shape))'
        for code in (f"{blocks[0]}{seen}\n", blocks[1]):
            ran = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path / "moved", capture_output=True, text=True, timeout=300
            )
            assert ran.returncode == 0, ran.stderr
            assert ran.stdout.strip() in ("(1, 24)", "")
    finally:
        (tmp_path / "moved").rename(trained / "export")


def test_what_is_not_known_is_not_said(models: Callable[[str], str]) -> None:
    towers = build(EncoderConfig(model=models("resnet")), LossConfig(), 0)
    readme = text(Card(TrainConfig(recipe="supervised"), text_trained=False), towers, "CLIPModel has no ResNet")
    assert "## Data" not in readme
    assert "## Figures" not in readme
    assert "| steps" not in readme
    assert "transformers" not in readme
    assert "contrastive loss" not in readme
    assert "- The text tower was not trained: its weights are random." in readme
    assert "- No Hugging Face folder: CLIPModel has no ResNet." in readme


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"optimizer": {"image": {"freeze": True}, "ema": 0.9}}, "frozen", "image"),
        ({"encoder": {"model": "ViT-B-16@openai"}}, "began", "weights `openai`"),
        ({"loss": {"contrastive": "siglip"}}, "contrastive loss", "siglip"),
    ],
)
def test_settings_that_matter_have_a_line(
    settings: dict[str, Any], name: str, value: str, models: Callable[[str], str]
) -> None:
    towers = build(EncoderConfig(model=models("vit")), LossConfig(), 0)
    card = Card(TrainConfig.model_validate(settings))
    assert cells(text(card, towers, None))[name] == value
    begun = Card(TrainConfig.model_validate(settings), start_from="other/checkpoints/step-00000007")
    assert cells(text(begun, towers, None))["began"] == "other/checkpoints/step-00000007"
