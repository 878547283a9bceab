"""Which parameters are trained, and at which rate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import Config, EncoderConfig, LossConfig, OptimizerConfig, TowerConfig
from i2e_pipeline.train.encoders import EncoderError, Towers, build
from i2e_pipeline.train.parameter_groups import comes_after_blocks, depths_of, groups_of
from i2e_pipeline.train.strategy import gathered, load_optimizer, optimizer_of, optimizer_state
from tests.small_models import MODELS
from tests.train import ranks
from tests.train.small_dataset import image_row, write_dataset
from tests.train.test_trainer import far, head, tree, weights

RATE = 1e-3
TIMM_VIT = {
    "embed_dim": 24,
    "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
    "text_cfg": MODELS["vit"]["text_cfg"],
}


def built(model: str, **how: Any) -> Towers:
    return build(EncoderConfig(model=model), LossConfig(), seed=0, **how)


def rates(towers: Towers, **settings: Any) -> dict[str, float]:
    """Peak learning rate of each parameter that is trained."""
    groups = groups_of(towers, OptimizerConfig(learning_rate=RATE, **settings))
    of = {id(p): group["lr_scale"] * RATE for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in towers.named_parameters() if id(p) in of}


def timm_vit(folder: Path) -> str:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TIMM_VIT}))
    return f"local-dir:{folder}"


def test_without_settings_there_is_one_rate_and_only_matrices_decay(models: Callable[[str], str]) -> None:
    towers = built(models("vit"))
    decayed, plain = sorted(groups_of(towers, OptimizerConfig()), key=lambda group: -group["weight_decay"])
    assert (decayed["lr_scale"], plain["lr_scale"]) == (1.0, 1.0)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert min(p.ndim for p in decayed["params"]) == 2
    assert len(decayed["params"]) + len(plain["params"]) == len(list(towers.parameters()))


def test_each_tower_has_its_rate_and_what_is_of_neither_the_optimizers(models: Callable[[str], str]) -> None:
    towers = built(models("custom"), teacher_width=5)
    found = rates(towers, image=TowerConfig(learning_rate=1e-5), text=TowerConfig(learning_rate=1e-4))
    for name, rate in found.items():
        expected = 1e-5 if ".visual." in name else 1e-4 if ".text." in name else RATE
        assert rate == pytest.approx(expected), name
    assert found["to_teacher.weight"] == found["model.logit_scale"] == RATE


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("model.text.transformer.embeddings.norm.weight", False),  # ModernBERT
        ("model.text.transformer.embeddings.LayerNorm.weight", False),
        ("model.text.transformer.final_norm.weight", True),
        ("model.text.transformer.norm.weight", True),
        ("model.visual.ln_pre.weight", False),
        ("model.visual.ln_post.weight", True),
        ("model.text.proj.0.weight", True),
    ],
)
def test_what_comes_after_the_blocks_is_known_by_its_name(name: str, after: bool) -> None:
    assert comes_after_blocks(name) is after


@pytest.mark.parametrize("kind", ["vit", "custom", "resnet"])
def test_deeper_layers_are_faster(kind: str, models: Callable[[str], str]) -> None:
    """Catches: a projection that lies before the blocks in open_clip's order of names, taken for a first layer."""
    towers = built(models(kind))
    image, text = depths_of(towers, "image"), depths_of(towers, "text")
    ends = {"resnet": ("conv1.weight", "attnpool.positional_embedding", "layer2.0.conv1.weight", 5)}
    first, last, block, top = ends.get(kind, ("class_embedding", "proj", "transformer.resblocks.1.ln_1.weight", 3))
    assert [image[f"model.visual.{name}"] for name in (first, block, last)] == [0, 2, top]
    of_text = "model.text." if kind == "custom" else "model."
    for name, depth in (
        ("token_embedding.weight", 0), ("positional_embedding", 0), ("transformer.resblocks.0.attn.in_proj_bias", 1),
        ("transformer.resblocks.1.mlp.c_fc.weight", 2), ("ln_final.weight", 3), ("text_projection", 3),
    ):  # fmt: skip
        assert text[of_text + name] == depth, name
    found = rates(towers, image=TowerConfig(layer_decay=0.5), text=TowerConfig(layer_decay=0.1, learning_rate=1.0))
    assert found[f"model.visual.{first}"] == pytest.approx(RATE * 0.5**top)
    assert found[f"model.visual.{last}"] == pytest.approx(RATE)
    assert found[of_text + "token_embedding.weight"] == pytest.approx(1e-3)
    assert found[of_text + "ln_final.bias"] == pytest.approx(1.0)


def test_depths_of_a_trunk_are_timms(tmp_path: Path) -> None:
    from timm.optim import param_groups_layer_decay

    towers = built(timm_vit(tmp_path))
    trunk = towers.model.visual.trunk
    theirs = param_groups_layer_decay(trunk, layer_decay=0.5)
    of = {id(p): group["lr_scale"] for group in theirs for p in group["params"]}
    found = rates(towers, image=TowerConfig(layer_decay=0.5))
    assert len(set(of.values())) > 3
    for name, parameter in trunk.named_parameters():
        assert found[f"model.visual.trunk.{name}"] == pytest.approx(RATE * of[id(parameter)]), name
    assert found["model.visual.head.proj.weight"] == RATE


@pytest.mark.parametrize("kind", ["vit", "custom", "resnet"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_stays_as_it_is(kind: str, tower: str, models: Callable[[str], str]) -> None:
    """Catches: a frozen tower whose weights decay, or whose batch norms go on counting."""
    towers = built(models(kind), frozen=(tower,))
    before = {name: value.clone() for name, value in towers.state_dict().items()}
    optimizer = optimizer_of(towers, OptimizerConfig(learning_rate=0.01))
    towers.train()
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    encoded = towers(pixels, towers.tokenizer(["a", "b", "c", "d"]))
    (encoded.scale * (encoded.image_BD @ encoded.text_BD.T)).diagonal().sum().backward()
    optimizer.step()
    changed = {name for name, value in towers.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith("model.visual.") == (tower == "text") for name in changed - {"model.logit_scale"})
    assert {"model.logit_scale", "model.visual.conv1.weight" if tower == "text" else "model.ln_final.weight"} <= {
        name.replace("model.text.", "model.") for name in changed
    }


def test_nothing_left_to_train_is_refused(models: Callable[[str], str]) -> None:
    both = r"train\.optimizer\.image\.freeze, train\.optimizer\.text\.freeze: no tower is left to train"
    with pytest.raises(EncoderError, match=both):
        built(models("vit"), frozen=("image", "text"))
    with pytest.raises(EncoderError, match="this recipe trains the image tower alone"):
        built(models("vit"), frozen=("image",), uses_text=False)


def test_moments_load_into_other_groups(models: Callable[[str], str]) -> None:
    """Catches: checkpoints that are bound to the groups of the optimizer that wrote them."""

    def stepped(towers: Towers, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        for p in towers.parameters():
            p.grad = torch.full_like(p, 0.1)
        optimizer.step()
        state = gathered(optimizer_state(towers, optimizer), True)
        assert state is not None
        return state

    towers = built(models("vit"))
    state = stepped(towers, optimizer_of(towers, OptimizerConfig()))
    grouped = optimizer_of(towers, OptimizerConfig(image=TowerConfig(layer_decay=0.5)))
    assert len(grouped.param_groups) > 4
    load_optimizer(towers, grouped, state, 1)
    again = gathered(optimizer_state(towers, grouped), True)
    assert again is not None
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.fixture(scope="module")
def settings(models: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    rows = [image_row(i, labels=[(i % 12, 0.9)]) for i in range(64)]
    dataset = write_dataset(tmp_path_factory.mktemp("i2e") / "i2e", rows, classes=12)

    def make(folder: Path, *overrides: str) -> Config:
        made = configuration.merge(tree(dataset, models("vit"), folder), ["train.steps=4", *overrides])
        return configuration.from_tree(made, "a test")

    return make


LIT = ("train.encoder.pretrained=folder", "train.optimizer.image.freeze=true", "train.optimizer.text.layer_decay=0.5")


@pytest.mark.slow
def test_a_frozen_tower_on_ranks_and_in_shards_gives_the_same_weights(
    settings: Callable[..., Config], models: Callable[[str], str], tmp_path: Path
) -> None:
    """Catches: DDP that waits for gradients which never come; shards that forget what is frozen."""
    pretrain(settings(tmp_path / "one", *LIT))
    started = {}
    for name, extra in {"ddp": (), "fsdp": ("train.strategy=fsdp",)}.items():
        place = tmp_path / f"{name}.yaml"
        place.write_text(configuration.dump(settings(tmp_path / name, *LIT, *extra)))
        started[name] = ranks.start(place, 2)
    begun = built(f"{models('vit')}@folder").state_dict()
    for name, processes in started.items():
        ranks.finish(processes)
        found = weights(tmp_path / name)
        assert far(weights(tmp_path / "one"), found) < 1e-3, name
        assert torch.allclose(head(tmp_path / "one"), head(tmp_path / name), atol=1e-2), name
        same = {key for key, value in begun.items() if torch.equal(value, found[key])}
        assert {key for key in begun if key.startswith("model.visual.")} <= same
        assert "model.ln_final.weight" not in same


def test_a_tower_is_frozen_and_thawed_between_two_parts_of_a_training(
    settings: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: moments of one tower that keep the other from going on."""
    pretrain(settings(tmp_path, *LIT))
    begun = weights(tmp_path)
    pretrain(settings(tmp_path, LIT[0], LIT[2], "train.steps=6"))
    assert any("train.optimizer.image.freeze (True → False)" in line for line in caplog.messages)
    assert not torch.equal(weights(tmp_path)["model.visual.proj"], begun["model.visual.proj"])
