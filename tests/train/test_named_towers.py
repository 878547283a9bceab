"""Towers of others, by open_clip's name: built at their own size, and trained for a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from i2e_pipeline import cli
from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import EncoderConfig, LossConfig
from i2e_pipeline.train import journal
from i2e_pipeline.train.encoders import EncoderError, build
from tests.train.small_dataset import image_row, write_dataset

TOWERS = ("MobileCLIP2-S0", "MobileCLIP-S1", "convnext_tiny")
"""Those whose tokenizer lies on no hub."""
SIGLIP = "ViT-B-32-SigLIP2-256"


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_a_step_of_it_is_trained(name: str, tmp_path: Path) -> None:
    """Catches: what kills the process in a backward pass on processors (channels last, torch 2.15)."""
    trained(name, tmp_path)


def trained(name: str, tmp_path: Path, **train: Any) -> None:
    dataset = write_dataset(tmp_path / "i2e", [image_row(i, labels=[(i % 3, 0.9)]) for i in range(6)], classes=3)
    settings = {
        "output": str(tmp_path),
        "train": {
            "dataset": dataset, "folder": str(tmp_path / "run"), "steps": 1, "recipe": "multi_task", "device": "cpu",
            "encoder": {"model": name}, "head": {"sample": 1.0}, "loss": {"contrastive": "infonce"},
            "data": {"batch_size": 2, "workers": 0, "hold_out_entities": 0.0, "hold_out_images": 0.0}, **train,
        },
    }  # fmt: skip
    found = pretrain(configuration.from_tree(settings, "a test"))
    assert found is not None
    (step,) = [row for row in journal.rows(tmp_path / "run") if row["kind"] == "step"]
    assert step["norm"] > 0


@pytest.mark.slow
def test_a_tokenizer_that_lies_on_a_hub_is_not_asked_for_where_no_texts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: SigLIP 2 for a supervised training that cannot be built where no hub is reached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    towers = build(EncoderConfig(model=SIGLIP), LossConfig(), 0, uses_text=False)
    before = towers.model.visual.trunk.patch_embed.proj.weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in towers.parameters() if p.requires_grad], lr=1e-3)
    found = towers(torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8))
    assert found.image_BD.shape == (2, 768)
    found.image_BD[0, 0].backward()
    optimizer.step()
    assert not torch.equal(before, towers.model.visual.trunk.patch_embed.proj.weight)
    with pytest.raises(EncoderError, match=f"its tokenizer timm/{SIGLIP} cannot be had.*train.recipe=supervised"):
        build(EncoderConfig(model=SIGLIP), LossConfig(), 0)


@pytest.mark.slow
def test_siglip_2_from_a_folder_trains_with_texts_and_its_tokenizer_is_exported(tmp_path: Path) -> None:
    """Its architecture, with a small vocabulary of our own; the sigmoid loss."""
    words = ["<pad>", "<unk>", "<eos>", "a", "photo", "of", "entity"]
    vocabulary = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, **special).save_pretrained(tmp_path / "siglip")
    model = open_clip.get_model_config(SIGLIP)
    assert model is not None
    model["text_cfg"]["vocab_size"] = len(words)
    described = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "siglip" / "open_clip_config.json").write_text(json.dumps(described))

    trained(f"local-dir:{tmp_path}/siglip", tmp_path, recipe="contrastive", loss={"contrastive": "siglip"})
    exported = open_clip.get_tokenizer(f"local-dir:{tmp_path}/run/export/open_clip")
    assert exported(["a photo of x"])[0, :5].tolist() == [3, 4, 5, 1, 0]


@pytest.mark.parametrize("causal", [False, True], ids=["SigLIP's", "MetaCLIP 2's"])
def test_without_its_tokenizer_a_model_is_trained_exported_and_measured_on_images(
    causal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a training that ends in its export; an export that nothing can load. Of a folder that has no tokenizer,
    as a supervised training's export has none."""
    text = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1, "hf_tokenizer_name": "a/b"}
    text |= {} if causal else {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    described = {"model_cfg": {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    described["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 32}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(described))
    trained(f"local-dir:{tmp_path}/model", tmp_path, recipe="supervised")
    exported = tmp_path / "run" / "export" / "open_clip"
    assert (exported / "open_clip_model.safetensors").is_file()
    assert (tmp_path / "run" / "outcome.json").is_file()

    for n in range(4):
        (tmp_path / "photos" / f"{n % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (200 * (n % 2), 30 * n, 90)).save(tmp_path / "photos" / f"{n % 2}" / f"{n}.png")
    command = ["evaluate", f"--model=ours=local-dir:{exported}", f"--data=c={tmp_path}/photos"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--set", f"output={tmp_path}/out"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    assert "ours" in out
    with pytest.raises(EncoderError, match="its tokenizer cannot be had"):
        build(EncoderConfig(model=f"local-dir:{exported}"), LossConfig(), 0)
