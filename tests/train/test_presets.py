"""configs/: each preset builds towers of the published size, and trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.train.journal import rows
from tests.marks import but_one
from tests.train.small_dataset import image_row, write_dataset

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
MILLIONS = {"ViT-B-16": (86.19, 63.43), "ViT-L-14": (303.97, 123.65), "ViT-H-14": (632.08, 354.03)}
"""Parameters of the image and the text tower: open_clip, docs/model_profile.csv."""
RECIPES = {
    "mofi-b16": "multi_task", "mofi-l14": "multi_task", "mofi-h14": "multi_task", "supervised": "supervised",
    "clip-i2t": "clip_alt_text", "clip-i2e": "clip_entity_text",
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = [image_row(i, labels=[(i % 6, 0.9)]) for i in range(48)]
    return write_dataset(tmp_path_factory.mktemp("i2e") / "i2e", made, classes=6)


def test_there_is_a_preset_for_each_row_of_the_paper() -> None:
    assert sorted(RECIPES) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_every_value_says_where_it_is_from(preset: str) -> None:
    """Catches: a recollection that is taken for the paper's word."""
    text = (CONFIGS / f"{preset}.yaml").read_text(encoding="utf-8")
    values = [line for line in text.splitlines() if ": " in line and not line.startswith("#")]
    unsaid = [
        line
        for line in values
        if not any(f"# {source}" in line for source in ("paper: ", "ours", "[unverified]"))
        and not line.strip().startswith(("name: ", "name_and_description: "))  # said with the line above them
    ]
    assert unsaid == []
    assert yaml.safe_load(text)["train"]["recipe"] == RECIPES[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_towers_are_of_the_published_size(preset: str) -> None:
    """On the meta device: nothing is allocated."""
    from open_clip.factory import get_model_config
    from open_clip.model import CLIP

    name = configuration.load(str(CONFIGS / f"{preset}.yaml")).train.encoder.model
    with torch.device("meta"):
        model = CLIP(**get_model_config(name))
    counts = {part: sum(p.numel() for n, p in model.named_parameters() if of(n)) for part, of in PARTS.items()}
    image, text = MILLIONS[name]
    assert counts["image"] / 1e6 == pytest.approx(image, abs=0.006)
    assert counts["text"] / 1e6 == pytest.approx(text, abs=0.006)


PARTS: dict[str, Callable[[str], bool]] = {
    "image": lambda name: name.startswith("visual."),
    "text": lambda name: not name.startswith("visual.") and name != "logit_scale",
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", but_one("mofi-b16", PRESETS))
def test_each_trains_with_two_layers_of_its_towers(preset: str, dataset: str, tmp_path: Path) -> None:
    """All of its settings but those of size and place."""
    from open_clip.factory import get_model_config

    named = configuration.load(str(CONFIGS / f"{preset}.yaml")).train.encoder.model
    architecture: dict[str, Any] = get_model_config(named)
    for tower in ("vision_cfg", "text_cfg"):
        architecture[tower]["layers"] = 2
    (tmp_path / "model").mkdir()
    described = {
        "model_cfg": architecture,
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "size": [224, 224]},
    }
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(described))
    config = configuration.load(
        str(CONFIGS / f"{preset}.yaml"),
        [
            f"output={tmp_path}", f"train.dataset={dataset}", f"train.folder={tmp_path}/train", "train.steps=2",
            f"train.encoder.model=local-dir:{tmp_path}/model", "train.encoder.compile=false", "train.strategy=ddp",
            "train.data.batch_size=4", "train.data.workers=0", "train.optimizer.warmup=1", "train.log_every=1",
            "train.data.hold_out_entities=0.3", "train.device=cpu", "train.evaluate_images=4",
            "train.head.sample_min=2",
        ],
    )  # fmt: skip
    found = pretrain(config)
    assert found is not None
    losses = [row["losses"]["loss"] for row in rows(tmp_path / "train") if row["kind"] == "step"]
    assert len(losses) == 2
    assert all(isinstance(loss, float) for loss in losses)
