"""Exports are loaded by the libraries that they are for, and give the vectors of the towers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from i2e_pipeline.core.config import EncoderConfig, LossConfig, TrainConfig
from i2e_pipeline.train import export as export_module
from i2e_pipeline.train.card import Card
from i2e_pipeline.train.encoders import Towers, build
from i2e_pipeline.train.export import export, unfit_for_huggingface
from tests.small_models import picture, write_model

TEXTS = ["Mars", "Mars, fourth planet from the Sun", "a  cat's\t12 kittens & Ünïcode", "Köln, city", "", "x " * 60]
PICTURES = [picture(i, size) for i, size in enumerate([(64, 48), (40, 90), (32, 32)])]


def towers_of(name: str, contrastive: str = "infonce", **settings: Any) -> Towers:
    """Towers after a step, so that every weight differs from how it began."""
    loss = LossConfig(contrastive=contrastive)
    towers = build(EncoderConfig(model=name, **settings), loss, seed=3, teacher_width=5)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for parameter in towers.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return towers.eval()


def exported(towers: Towers, folder: Path, **settings: Any) -> None:
    export(towers, settings.pop("weights", None), folder, card=Card(TrainConfig(), **settings))


def vectors(towers: Towers) -> tuple[Tensor, Tensor]:
    """Of PICTURES, as open_clip prepares them, and of TEXTS."""
    settings = open_clip.transform.PreprocessCfg(**towers.preprocessing)
    prepare = open_clip.transform.image_transform_v2(settings, is_train=False)
    mean, std = (torch.tensor(towers.preprocessing[k]).view(-1, 1, 1) for k in ("mean", "std"))
    pixels = torch.stack([((prepare(p) * std + mean) * 255).round().to(torch.uint8) for p in PICTURES])
    with torch.no_grad():
        return towers.images(pixels), towers.texts(towers.tokenizer(TEXTS))


@pytest.mark.parametrize("kind", ["vit", "resnet", "bidirectional", "custom"])
@pytest.mark.parametrize("contrastive", ["infonce", "siglip"])
def test_open_clip_loads_it_in_one_line(
    kind: str, contrastive: str, models: Callable[[str], str], tmp_path: Path
) -> None:
    towers = towers_of(models(kind), contrastive, pretrained="folder")
    exported(towers, tmp_path / "export")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/export/open_clip")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}/export/open_clip")
    model.eval()
    images, texts = vectors(towers)
    with torch.no_grad():
        ours = model.encode_image(torch.stack([preprocess(p) for p in PICTURES]), normalize=True)
        assert torch.allclose(ours, images, atol=1e-5)
        assert torch.allclose(model.encode_text(tokenizer(TEXTS), normalize=True), texts, atol=1e-5)
    assert model.logit_scale.item() == pytest.approx(towers.model.logit_scale.item())
    assert (model.logit_bias is None) == (contrastive == "infonce")
    if contrastive == "siglip":
        assert model.logit_bias.item() == pytest.approx(towers.model.logit_bias.item())


@pytest.mark.parametrize("kind", ["vit", "custom", "quick_gelu", "squash"])
def test_transformers_loads_it_in_one_line(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    transformers = pytest.importorskip("transformers")
    name = write_model(tmp_path / "start", kind if kind in ("vit", "custom") else "vit")
    settings = tmp_path / "start" / "open_clip_config.json"
    changed = json.loads(settings.read_text())
    changed["model_cfg"]["quick_gelu"] = kind == "quick_gelu"
    changed["model_cfg"]["text_cfg"]["norm_kwargs"] = {"eps": 1e-3}
    changed["preprocess_cfg"] |= {"resize_mode": "squash", "interpolation": "bilinear"} if kind == "squash" else {}
    settings.write_text(json.dumps(changed))
    towers = towers_of(name)
    exported(towers, tmp_path / "export")
    assert not any("no Hugging Face export" in line for line in caplog.messages)

    model, report = transformers.CLIPModel.from_pretrained(tmp_path / "export/huggingface", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "export/huggingface", backend="pil")
    inputs = processor(text=TEXTS, images=PICTURES, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        out = model.eval()(**inputs)
    images, texts = vectors(towers)
    assert torch.allclose(out.text_embeds, texts, atol=1e-5)
    assert torch.allclose(out.image_embeds, images, atol=1e-5)
    scale = towers.model.logit_scale.exp()
    assert torch.allclose(out.logits_per_image, scale * images @ texts.T, atol=1e-3)


def test_its_tokens_are_those_of_open_clip(models: Callable[[str], str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    towers = towers_of(models("vit"))
    exported(towers, tmp_path / "export")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export/huggingface")
    theirs = tokenizer(TEXTS, truncation=True)["input_ids"]
    for text, ids, ours in zip(TEXTS, theirs, towers.tokenizer(TEXTS).tolist(), strict=True):
        assert ids == ours[: len(ids)], text
        assert not any(ours[len(ids) :]), text


def test_towers_that_transformers_has_no_class_for_are_left_out_with_a_reason(
    models: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {kind: unfit_for_huggingface(towers_of(models(kind))) for kind in ("vit", "resnet", "bidirectional")}
    assert reasons["vit"] is None
    assert "ModifiedResNet" in str(reasons["resnet"])
    assert "causal" in str(reasons["bidirectional"])
    exported(towers_of(models("resnet")), tmp_path / "export")
    assert f"no Hugging Face export: {reasons['resnet']}" in caplog.messages
    assert not (tmp_path / "export" / "huggingface").exists()
    assert str(reasons["resnet"]) in (tmp_path / "export" / "README.md").read_text()


def test_given_weights_are_exported_not_those_of_the_towers(models: Callable[[str], str], tmp_path: Path) -> None:
    """Catches: a running mean that was kept all through training and then not exported."""
    towers = towers_of(models("vit"))
    doubled = {name: 2 * value for name, value in towers.state_dict().items()}
    exported(towers, tmp_path / "export", weights=doubled)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/export/open_clip")
    assert torch.equal(model.visual.proj, 2 * towers.model.visual.proj)


def test_another_image_size_is_kept(models: Callable[[str], str], tmp_path: Path) -> None:
    towers = towers_of(models("vit"), image_size=48)
    exported(towers, tmp_path / "export")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/export/open_clip")
    assert preprocess(PICTURES[0]).shape == (3, 48, 48)
    assert np.ravel(model.visual.image_size).tolist() in ([48], [48, 48])


def test_an_older_export_is_replaced_whole_or_not_at_all(
    models: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: new weights beside an old config, or the leftovers of a Hugging Face folder that is no more."""
    towers = towers_of(models("vit"))
    exported(towers, tmp_path / "export", figures={"mAP": 0.5})
    before = {p: p.read_bytes() for p in (tmp_path / "export").rglob("*") if p.is_file()}

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "_write_tokenizer", fail)
        with pytest.raises(OSError, match="disk full"):
            exported(towers_of(models("vit"), "siglip"), tmp_path / "export")
    assert {p: p.read_bytes() for p in (tmp_path / "export").rglob("*") if p.is_file()} == before
    exported(towers_of(models("resnet")), tmp_path / "export")
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == ["README.md", "open_clip"]
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
