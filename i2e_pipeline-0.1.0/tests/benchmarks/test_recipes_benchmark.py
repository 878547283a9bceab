"""The comparison of recipes trains each one, from the same towers, and says what it gained on the control."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.small_dataset import image_row, write_dataset


def test_gains_are_those_on_the_control_of_the_same_seed() -> None:
    import recipes

    found = {
        ("untrained", 0): {"mAP": 0.1, "knn": 0.2}, ("untrained", 1): {"mAP": 0.1, "knn": 0.2},
        ("supervised", 0): {"mAP": 0.5, "knn": 0.6}, ("supervised", 1): {"mAP": 0.3, "knn": 0.8},
        ("clip_alt_text", 0): {"mAP": 0.2, "knn": 0.3}, ("clip_alt_text", 1): {"mAP": 0.4, "knn": 0.3},
    }  # fmt: skip
    _, _, untrained, supervised, control = recipes.table(found).splitlines()
    assert supervised == "| supervised | 0.400 ± 0.100 | 0.700 ± 0.100 |  | +0.300 -0.100 |"
    assert all(line.endswith("|  |") for line in (untrained, control))


@pytest.mark.slow
def test_a_recipe_is_trained_once_and_then_found(
    tmp_path: Path, models: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    import recipes

    rows = [image_row(i, labels=[(i % 8, 0.9)]) for i in range(64)]
    dataset = write_dataset(tmp_path / "i2e", rows, classes=8)
    arguments = [
        "--recipes", "supervised", "--seeds", "0", "--folder", str(tmp_path / "trained"), "--set",
        f"train.dataset={dataset}", f"train.encoder.model={models('vit')}", "train.device=cpu",
        "train.data.batch_size=8", "train.data.hold_out_entities=0.4", "train.data.hold_out_images=0.1",
    ]  # fmt: skip
    found = recipes.main([*arguments, "train.steps=2"])
    assert set(found) == {("untrained", 0), ("supervised", 0)}
    assert all(0 <= figures["mAP"] <= 1 for figures in found.values())
    assert "| supervised |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was trained with other settings"):
        recipes.main([*arguments, "train.steps=3"])
