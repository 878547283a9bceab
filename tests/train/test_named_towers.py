"""Towers of others, by open_clip's name: built at their own size, and trained for a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.train import journal
from tests.train.small_dataset import image_row, write_dataset

TOWERS = ("MobileCLIP2-S0", "MobileCLIP-S1", "convnext_tiny")
"""Those whose tokenizer lies on no hub."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_a_step_of_it_is_trained(name: str, tmp_path: Path) -> None:
    """Catches: what kills the process in a backward pass on processors (channels last, torch 2.15)."""
    dataset = write_dataset(tmp_path / "i2e", [image_row(i, labels=[(i % 3, 0.9)]) for i in range(6)], classes=3)
    settings = {
        "output": str(tmp_path),
        "train": {
            "dataset": dataset, "folder": str(tmp_path / "run"), "steps": 1, "recipe": "multi_task", "device": "cpu",
            "encoder": {"model": name}, "head": {"sample": 1.0}, "loss": {"contrastive": "infonce"},
            "data": {"batch_size": 2, "workers": 0, "hold_out_entities": 0.0, "hold_out_images": 0.0},
        },
    }  # fmt: skip
    found = pretrain(configuration.from_tree(settings, "a test"))
    assert found is not None
    (step,) = [row for row in journal.rows(tmp_path / "run") if row["kind"] == "step"]
    assert step["norm"] > 0
