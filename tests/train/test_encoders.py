from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from i2e_pipeline.core.config import EncoderConfig, LossConfig
from i2e_pipeline.train.encoders import EncoderError, Towers, build
from tests.small_models import MODELS

KINDS = ["vit", "resnet", "bidirectional", "custom"]
TEXTS = ["Mars", "Mars, fourth planet from the Sun", "x " * 60, ""]
CONVNEXT = {
    "embed_dim": 24,
    "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
    "text_cfg": MODELS["vit"]["text_cfg"],
}


def built(name: str, seed: int = 0, loss: LossConfig | None = None, **settings: Any) -> Towers:
    more = {key: settings.pop(key) for key in ("teacher_width", "uses_text") if key in settings}
    return build(EncoderConfig(model=name, **settings), loss or LossConfig(), seed, **more)


def pixels(side: int = 32, count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def folder_of(tmp_path: Path, architecture: dict[str, Any]) -> str:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture}))
    return f"local-dir:{tmp_path}"


@pytest.mark.parametrize(
    ("name", "width", "layers", "projection"),
    [("ViT-B-16", 512, 12, 512), ("ViT-L-14", 768, 12, 768), ("ViT-H-14", 1024, 24, 1024)],
)
def test_the_papers_towers_are_open_clips(name: str, width: int, layers: int, projection: int) -> None:
    architecture = open_clip.get_model_config(name)
    assert (architecture["text_cfg"]["width"], architecture["text_cfg"]["layers"]) == (width, layers)
    assert architecture["embed_dim"] == projection
    assert architecture["vision_cfg"]["image_size"] == 224


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_open_clip(kind: str, models: Callable[[str], str]) -> None:
    towers = built(models(kind), pretrained="folder").eval()
    model, _, _ = open_clip.create_model_and_transforms(models(kind))
    model.eval()
    mean, std = (torch.tensor(getattr(model.visual, k)).view(-1, 1, 1) for k in ("image_mean", "image_std"))
    tokens_BL = open_clip.get_tokenizer(models(kind))(TEXTS)
    with torch.no_grad():
        encoded = towers(pixels(), tokens_BL)
        image_BD = model.encode_image((pixels() / 255 - mean) / std, normalize=True)
        text_BD = model.encode_text(tokens_BL, normalize=True)
    assert torch.allclose(encoded.image_BD, image_BD, atol=1e-5)
    assert encoded.text_BD is not None
    assert torch.allclose(encoded.text_BD, text_BD, atol=1e-5)
    assert encoded.scale.shape == ()
    assert (towers.width, towers.image_size) == (24, 32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [TEXTS[:2], ["", "a b c"], TEXTS])
def test_trimmed_texts_give_the_same_vectors_and_gradients(
    kind: str, texts: list[str], models: Callable[[str], str]
) -> None:
    """Catches: a position table cut off from its gradient, or padding that a bidirectional tower looks at."""
    towers = built(models(kind), pretrained="folder")
    whole_BL = towers.tokenizer(texts)
    found = []
    for tokens_BL in (whole_BL, towers.trim(whole_BL)):
        towers.zero_grad()
        text_BD = towers.texts(tokens_BL)
        (text_BD * torch.linspace(-1, 1, 24)).sum().backward()
        gradients = {n: p.grad.clone() for n, p in towers.named_parameters() if p.grad is not None}
        assert any(name.endswith("positional_embedding") for name in gradients)
        found.append({"texts": text_BD.detach()} | gradients)
    for name in found[0].keys() | found[1].keys():
        assert torch.allclose(found[0][name], found[1][name], atol=1e-5), name
    shorter = towers.trim(whole_BL).shape[1] < whole_BL.shape[1]
    assert shorter == (kind != "bidirectional" and texts != TEXTS)


def test_texts_read_at_their_first_end_token_are_trimmed_to_it(tmp_path: Path) -> None:
    architecture = json.loads(json.dumps(MODELS["custom"]))
    architecture["text_cfg"] |= {"pool_type": "eos", "eos_id": 49407}
    towers = built(folder_of(tmp_path, architecture))
    tokens_BL = towers.tokenizer(["a cat", "b"])
    assert towers.trim(tokens_BL).shape[1] == 4
    assert torch.allclose(towers.texts(towers.trim(tokens_BL)), towers.texts(tokens_BL), atol=1e-5)


def test_random_weights_come_from_the_seed_and_nothing_else(models: Callable[[str], str]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one = built(models("vit"), seed=1, teacher_width=5)
    assert torch.equal(torch.rand(1), expected)  # and no later draw is disturbed
    same, other = built(models("vit"), seed=1, teacher_width=5).state_dict(), built(models("vit"), seed=2).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.state_dict()["model.visual.proj"], other["model.visual.proj"])
    pretrained = built(models("vit"), pretrained="folder")
    assert not torch.equal(one.model.visual.proj, pretrained.model.visual.proj)


def test_weights_start_from_a_file(models: Callable[[str], str]) -> None:
    folder = models("vit").removeprefix("local-dir:")
    from_file = built(models("vit"), pretrained=f"{folder}/open_clip_model.safetensors")
    assert torch.equal(from_file.model.visual.proj, built(models("vit"), pretrained="folder").model.visual.proj)


def test_weights_are_named_behind_the_model_or_beside_it(models: Callable[[str], str]) -> None:
    beside, behind = built(models("vit"), pretrained="folder"), built(f"{models('vit')}@folder")
    assert torch.equal(behind.model.visual.proj, beside.model.visual.proj)
    fresh = built(f"{models('vit')}@random")
    assert torch.equal(fresh.model.visual.proj, built(models("vit")).model.visual.proj)


@pytest.mark.parametrize("before", [logging.NOTSET, logging.ERROR])
def test_building_leaves_what_a_caller_disabled_in_logging(models: Callable[[str], str], before: int) -> None:
    """Catches: a caller's own logging.disable that is gone once towers were built, or building failed."""
    logging.disable(before)
    try:
        built(models("vit"))
        with pytest.raises(EncoderError):
            built("ViT-B-32", pretrained="no-such-tag")
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)


def test_a_pretrained_position_table_is_fitted_to_another_image_size(models: Callable[[str], str]) -> None:
    towers = built(models("vit"), pretrained="folder", image_size=48)
    assert towers.image_size == 48
    assert towers.architecture["vision_cfg"]["image_size"] == 48
    assert towers(pixels(48)).image_BD.shape == (4, 24)


def test_without_texts_only_the_image_tower_is_trained(models: Callable[[str], str]) -> None:
    """Catches: DDP waiting for gradients of a text tower that the supervised recipe never asks."""
    for kind in KINDS:
        towers = built(models(kind), uses_text=False, teacher_width=3)
        encoded = towers(pixels())
        assert encoded.text_BD is None
        (encoded.image_BD.sum() + encoded.distilled_BT.sum()).backward()
        trained = {name for name, p in towers.named_parameters() if p.requires_grad}
        assert trained == {name for name, p in towers.named_parameters() if p.grad is not None}
        assert {name.split(".")[1] for name in trained} == {"visual", "weight"}


def test_with_texts_every_parameter_gets_a_gradient(models: Callable[[str], str]) -> None:
    """Catches: a parameter that no loss reaches, at which DDP stops in the second step."""
    for kind in KINDS:
        for contrastive in ("infonce", "siglip"):
            towers = built(models(kind), loss=LossConfig(contrastive=contrastive))
            encoded = towers(pixels(), towers.trim(towers.tokenizer(TEXTS)))
            logits = encoded.scale * encoded.image_BD @ encoded.text_BD.T
            (logits if encoded.bias is None else logits + encoded.bias).square().sum().backward()
            assert [n for n, p in towers.named_parameters() if p.grad is None] == []


def test_the_scale_starts_where_asked_and_stays_within_1_and_100(models: Callable[[str], str]) -> None:
    towers = built(models("vit"), loss=LossConfig(initial_scale=20, contrastive="siglip", initial_bias=-3))
    encoded = towers(pixels())
    assert encoded.scale.item() == pytest.approx(20)
    assert encoded.bias.item() == pytest.approx(-3)
    for value, expected in ((9.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2))):
        nn.init.constant_(towers.model.logit_scale, value)
        towers.clamp()
        assert towers(pixels()).scale.item() == pytest.approx(expected, rel=1e-5)


def test_no_parameter_is_a_scalar(models: Callable[[str], str]) -> None:
    """Catches: FSDP2, which refuses to shard one."""
    towers = built(models("vit"), loss=LossConfig(contrastive="siglip"), teacher_width=3)
    assert min(p.ndim for p in towers.parameters()) == 1


def test_distilled_vectors_have_the_teachers_width(models: Callable[[str], str]) -> None:
    distilled_BT = built(models("vit"), teacher_width=7)(pixels()).distilled_BT
    assert distilled_BT.shape == (4, 7)
    assert torch.allclose(distilled_BT.norm(dim=1), torch.ones(4))
    assert built(models("vit"))(pixels()).distilled_BT is None


def test_vectors_are_float32_of_norm_1_under_autocast(models: Callable[[str], str]) -> None:
    towers = built(models("vit"), teacher_width=7)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = towers(pixels(), towers.tokenizer(TEXTS))
    for x_BD in (encoded.image_BD, encoded.text_BD, encoded.distilled_BT):
        assert x_BD.dtype == torch.float32
        assert torch.allclose(x_BD.norm(dim=1), torch.ones(4), atol=1e-5)


def test_blocks_are_those_of_both_towers(models: Callable[[str], str], tmp_path: Path) -> None:
    def names(towers: Towers) -> list[str]:
        return [type(block).__name__ for block in towers.blocks()]

    assert names(built(models("vit"))) == ["ResidualAttentionBlock"] * 4
    assert names(built(models("custom"))) == ["ResidualAttentionBlock"] * 4
    assert names(built(models("resnet"))) == ["Bottleneck"] * 4 + ["ResidualAttentionBlock"] * 2
    stages = names(built(folder_of(tmp_path, CONVNEXT)))
    assert stages[-2:] == ["ResidualAttentionBlock"] * 2
    assert set(stages[:-2]) == {"ConvNeXtStage"}


def test_a_timm_trunk_is_trained(tmp_path: Path) -> None:
    towers = built(folder_of(tmp_path, CONVNEXT))
    towers(pixels(64)).image_BD.sum().backward()
    assert all(p.grad is not None for p in towers.model.visual.parameters())


def test_weight_decay_is_for_matrices(models: Callable[[str], str]) -> None:
    towers = built(models("vit"), loss=LossConfig(contrastive="siglip"))
    decayed = {name for name, p in towers.named_parameters() if towers.decayed(name, p)}
    assert "model.visual.conv1.weight" in decayed
    assert "model.token_embedding.weight" in decayed
    assert "model.transformer.resblocks.0.mlp.c_fc.weight" in decayed
    left = {name.rpartition(".")[2] for name, _ in towers.named_parameters() if name not in decayed}
    assert {"positional_embedding", "class_embedding", "logit_scale", "logit_bias", "bias", "in_proj_bias"} <= left
    assert not [name for name in decayed if "ln_" in name or "positional" in name]


def gradients(towers: Towers) -> dict[str, Tensor]:
    encoded = towers(pixels(), towers.trim(towers.tokenizer(TEXTS[:2] * 2)))
    (encoded.image_BD @ encoded.text_BD.T).square().sum().backward()
    return {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Within a ten-thousandth of the largest component of any gradient."""
    largest = max(float(x.abs().max()) for x in one.values())
    return one.keys() == other.keys() and all(torch.allclose(one[n], other[n], atol=1e-4 * largest) for n in one)


def test_checkpointed_activations_give_the_same_gradients(models: Callable[[str], str]) -> None:
    for kind in ("vit", "custom"):
        kept, recomputed = built(models(kind)), built(models(kind), checkpoint_activations=True)
        assert recomputed.model.visual.transformer.grad_checkpointing
        assert same(gradients(kept), gradients(recomputed))


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients(models: Callable[[str], str]) -> None:
    for settings in ({}, {"checkpoint_activations": True}):
        eager, compiled = built(models("vit")), built(models("vit"), compile=True, **settings)
        assert eager.state_dict().keys() == compiled.state_dict().keys()  # checkpoints go from one to the other
        assert same(gradients(eager), gradients(compiled))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "ViT-B-17"}, r"train\.encoder\.model=ViT-B-17: open_clip knows no such architecture"),
        ({"model": "local-dir:nowhere"}, r"nowhere/open_clip_config\.json does not exist"),
        ({"model": "hf-hub:org/name"}, "copy the model to a folder"),
        ({"model": "coca_ViT-B-32"}, "CoCa also generates text"),
        ({"model": "ViT-B-32", "pretrained": "no-such-tag"}, r"pretrained=no-such-tag: neither .* openai"),
        (
            {"model": "ViT-B-32-quickgelu", "pretrained": "laion2b_e16"},
            r"take train\.encoder\.model=ViT-B-32@laion2b_e16",
        ),
        ({"model": "VIT", "pretrained": "absent.pt"}, r"train\.encoder\.pretrained=absent\.pt: no such file; `folder`"),
        ({"model": "RESNET", "checkpoint_activations": True}, "open_clip's ResNets have none"),
        ({"model": "ViT-B-32", "image_size": 16}, r"train\.encoder\.image_size=16: ViT-B-32 wants 32 pixels"),
    ],
)
def test_towers_that_cannot_be_built_are_refused(
    settings: dict[str, Any], says: str, models: Callable[[str], str]
) -> None:
    named = {"VIT": models("vit"), "RESNET": models("resnet")}
    settings = {**settings, "model": named.get(settings["model"], settings["model"])}
    with pytest.raises(EncoderError, match=says):
        built(settings.pop("model"), **settings)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    name = folder_of(tmp_path, {"embed_dim": 8, "vision_cfg": {"no_such_key": 1}, "text_cfg": {}})
    with pytest.raises(EncoderError, match=r"cannot be built: .*no_such_key"):
        built(name)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(EncoderError, match="holds no model_cfg"):
        built(name)
    oblong = {**MODELS["vit"], "vision_cfg": {**MODELS["vit"]["vision_cfg"], "image_size": [32, 48]}}
    with pytest.raises(EncoderError, match="only square ones"):
        built(folder_of(tmp_path, oblong))
