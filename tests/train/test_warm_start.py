"""A new training that begins with what another one has learnt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import Config, ConfigError, TrainConfig
from i2e_pipeline.train import checkpoint, warm_start
from i2e_pipeline.train.encoders import build
from i2e_pipeline.train.journal import rows
from i2e_pipeline.train.order import OrderError
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.trainer import TrainError, _Training
from i2e_pipeline.train.warm_start import StartError
from tests.small_models import MODELS
from tests.train import ranks
from tests.train.small_dataset import entity_row, image_row, write_dataset
from tests.train.test_trainer import far, head, tree, weights

CLASSES = 12
STILL = ("train.steps=1", "train.optimizer.learning_rate=1e-12", "train.head.learning_rate=1e-12")
"""A step that moves nothing: what is saved is what was begun with."""


def dataset_of(folder: Path, classes: int = CLASSES, moved: int = 0) -> str:
    """`moved`: entity 100 has class index 1 instead of 0, and so on."""
    of = [(c + moved) % classes for c in range(classes)]
    images = [image_row(i, labels=[(of[i % classes], 0.9)]) for i in range(64)]
    entities = [entity_row(c, entity_id=100 + (c - moved) % classes) for c in range(classes)]
    for row in images:
        row["labels"][0]["entity_id"] = 100 + (row["labels"][0]["class_index"] - moved) % classes
    return write_dataset(folder, images, classes=classes, entities=entities)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dataset_of(tmp_path_factory.mktemp("i2e") / "i2e")


def config_of(dataset: str, model: str, folder: Path, *overrides: str) -> Config:
    return configuration.from_tree(configuration.merge(tree(dataset, model, folder), overrides), "a test")


@pytest.fixture(scope="module")
def settings(dataset: str, models: Callable[[str], str]) -> Callable[..., Config]:
    return lambda folder, *overrides: config_of(dataset, models("vit"), folder, *overrides)


@pytest.fixture(scope="module")
def supervised(settings: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervised")
    pretrain(settings(folder, "train.recipe=supervised", "train.optimizer.ema=0.5", "train.checkpoint_every=4"))
    return folder


@pytest.fixture(scope="module")
def multi_task(settings: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multi_task")
    pretrain(settings(folder))
    return folder


def of_image(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("model.visual.")}


def of_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("model.visual.")}


def test_multi_task_begins_from_supervised_with_its_head(
    settings: Callable[..., Config],
    supervised: Path,
    models: Callable[[str], str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Catches: a head that begins anew; the random text tower of a recipe without texts, taken for a trained one;
    weights of the last step where a mean of them was kept; moments, schedule or steps of the other training."""
    pretrain(settings(tmp_path, f"train.start_from=train:{supervised}@4", *STILL, "train.seed=7"))
    assert caplog.messages.count(f"begins from {supervised}/checkpoints/step-00000004") == 1
    assert "not of the checkpoint, so begins at random: text tower, scale" in caplog.messages
    assert any(line.startswith(f"entity head: {CLASSES} classes from the checkpoint") for line in caplog.messages)
    mean = load_file(supervised / "checkpoints" / "step-00000004" / "ema.safetensors")
    assert far(of_image(weights(tmp_path)), of_image(mean)) < 1e-6
    fresh = build(settings(tmp_path).train.encoder, settings(tmp_path).train.loss, seed=7).state_dict()
    assert far(of_text(weights(tmp_path)), of_text(fresh)) < 1e-6
    (part,) = (supervised / "checkpoints" / "step-00000004").glob("head-*")
    assert torch.allclose(head(tmp_path), load_file(part)["weights_CD"], atol=1e-6)
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "step"] == [1]
    assert rows(tmp_path)[0]["start_from"] == f"{supervised}/checkpoints/step-00000004"
    last = checkpoint.latest(tmp_path)
    assert last is not None
    state = checkpoint.load(last).state
    assert (state.step, state.position, state.text_trained) == (1, 16, True)


def test_the_optimizer_is_new(settings: Callable[..., Config], multi_task: Path, tmp_path: Path) -> None:
    """Catches: moments, or the head's accumulators, that hold the new training back."""
    pretrain(settings(tmp_path, f"train.start_from={multi_task}", *STILL))
    (before,), (after,) = ((f / "checkpoints").glob("step-*/head-*") for f in (multi_task, tmp_path))
    accumulators = [load_file(part)["accumulators_C"] for part in (before, after)]
    assert 0 < accumulators[1].sum() < 0.6 * accumulators[0].sum()  # one step against six
    moments = load_file(next((tmp_path / "checkpoints").glob("step-*/optimizer.safetensors")))
    gradient = moments["model.visual.proj/exp_avg"] / 0.1  # of one step: (1 - 0.9) of its gradient
    assert torch.allclose(moments["model.visual.proj/exp_avg_sq"], 0.02 * gradient**2, rtol=1e-3)


def test_another_image_size_resizes_the_positions(
    settings: Callable[..., Config], multi_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(settings(tmp_path, f"train.start_from={multi_task}@6", "train.encoder.image_size=48", *STILL))
    name = "model.visual.positional_embedding"
    before, after = weights(multi_task), weights(tmp_path)
    assert "visual.positional_embedding resized from 17 places to 37" in caplog.messages
    state = {"visual.positional_embedding": before[name]}
    model = open_clip.create_model(f"local-dir:{tmp_path}/export/open_clip")
    open_clip.model.resize_pos_embed(state, model)
    assert torch.allclose(after.pop(name), state["visual.positional_embedding"], atol=1e-6)
    before.pop(name)
    assert far(before, after) < 1e-6
    assert torch.allclose(head(multi_task), head(tmp_path), atol=1e-6)


def test_another_dataset_takes_the_rows_of_the_entities_that_it_shares(
    models: Callable[[str], str], multi_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: rows that go by class index, so that every entity begins as another one."""
    more = dataset_of(tmp_path / "i2e", CLASSES + 2, moved=1)
    pretrain(config_of(more, models("vit"), tmp_path / "run", f"train.start_from={multi_task}@best", *STILL))
    said = f"entity head: {CLASSES} classes from the checkpoint ({CLASSES} under another index), 2 new ones start fresh"
    assert any(line.startswith(said) for line in caplog.messages)
    assert len(head(tmp_path / "run")) == CLASSES + 2
    marked = checkpoint.find(multi_task, "best")
    (part,) = marked.glob("head-*")
    assert torch.allclose(head(tmp_path / "run")[1 : CLASSES + 1], load_file(part)["weights_CD"], atol=1e-6)


def test_a_training_that_goes_on_does_not_read_it_again(
    settings: Callable[..., Config], multi_task: Path, tmp_path: Path
) -> None:
    """Catches: a resume that begins anew, or that needs a training which was removed since."""
    shutil.copytree(multi_task, tmp_path / "old")
    begun = ("train.recipe=supervised", f"train.start_from={tmp_path}/old@6", "train.checkpoint_every=3")
    pretrain(settings(tmp_path / "whole", *begun))
    pretrain(settings(tmp_path / "cut", *begun))
    checkpoint.drop_beyond(tmp_path / "cut", 3)
    shutil.rmtree(tmp_path / "old")
    pretrain(settings(tmp_path / "cut", *begun))
    assert far(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0
    assert torch.equal(head(tmp_path / "whole"), head(tmp_path / "cut"))
    assert "was not trained" not in (tmp_path / "cut" / "export" / "README.md").read_text()
    with pytest.raises(TrainError, match=r"train\.start_from \(None → .*old@6\)|train\.start_from \(.* → None\)"):
        pretrain(settings(tmp_path / "cut", "train.recipe=supervised"))


def test_a_chain_of_trainings_without_texts_has_no_text_tower(
    settings: Callable[..., Config], supervised: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(settings(tmp_path / "two", f"train.start_from={supervised}", "train.recipe=supervised", *STILL))
    assert "was not trained" in (tmp_path / "two" / "export" / "README.md").read_text()
    caplog.clear()
    pretrain(settings(tmp_path / "three", f"train.start_from={tmp_path}/two", *STILL))
    assert "not of the checkpoint, so begins at random: text tower, scale" in caplog.messages


@pytest.mark.slow
def test_ranks_and_shards_begin_alike(settings: Callable[..., Config], multi_task: Path, tmp_path: Path) -> None:
    """Catches: shards that take a whole tensor's first rows; ranks whose head rows begin anew."""
    begun = (f"train.start_from={multi_task}", "train.optimizer.ema=0.9", "train.encoder.image_size=48")
    pretrain(settings(tmp_path / "one", *begun))
    place = tmp_path / "fsdp.yaml"
    place.write_text(configuration.dump(settings(tmp_path / "fsdp", *begun, "train.strategy=fsdp")))
    said = ranks.finish(ranks.start(place, 2))
    assert said.count("begins from") == 1
    assert far(weights(tmp_path / "one"), weights(tmp_path / "fsdp")) < 1e-3
    assert torch.allclose(head(tmp_path / "one"), head(tmp_path / "fsdp"), atol=1e-2)
    first, other = ([r["figures"] for r in rows(tmp_path / n) if r["kind"] == "evaluation"] for n in ("one", "fsdp"))
    assert first[0] == pytest.approx(other[0], abs=0.02)


def test_another_loss_begins_with_its_own_bias(
    settings: Callable[..., Config], multi_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(settings(tmp_path, f"train.start_from={multi_task}", "train.loss.contrastive=siglip", *STILL))
    assert "not of the checkpoint, so begins at random: bias" in caplog.messages
    assert weights(tmp_path)["model.logit_bias"].item() == pytest.approx(-10)


# -- what does not fit ------------------------------------------------------------------------------------------


def model_like(folder: Path, vision: dict[str, Any] | None = None, **changed: Any) -> str:
    """The architecture of the small ViT with other settings."""
    architecture = json.loads(json.dumps(MODELS["vit"])) | changed
    architecture["vision_cfg"] |= vision or {}
    folder.mkdir()
    mean = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "size": 32}
    text = json.dumps({"model_cfg": architecture, "preprocess_cfg": mean})
    (folder / "open_clip_config.json").write_text(text)
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"vision": {"width": 48}}, r"is \(32.*\) there and \(48.*\) in local-dir:.*take the train\.encoder"),
        ({"embed_dim": 16}, r"is \(16, 24\) there and \(16, 16\) in"),
        ({"vision": {"layers": 3}}, r"has no model\.visual\.transformer\.resblocks\.2\.\S+, which local-dir"),
        ({"vision": {"layers": 1}}, r"has model\.visual\.transformer\.resblocks\.1\.\S+, which the towers of .* lack"),
        ({"vision": {"patch_size": 16}}, r"model\.visual\.conv1\.weight is"),
        ({"quick_gelu": True}, "was trained with the activation GELU .* has QuickGELU"),
    ],
)
def test_towers_that_do_not_fit_are_refused(
    changed: dict[str, Any], says: str, dataset: str, multi_task: Path, tmp_path: Path
) -> None:
    model = model_like(tmp_path / "model", **changed)
    with pytest.raises(StartError, match=rf"train\.start_from: .*{says}"):
        pretrain(config_of(dataset, model, tmp_path / "run", f"train.start_from={multi_task}"))


def test_other_normalisation_of_images_is_refused(dataset: str, multi_task: Path, tmp_path: Path) -> None:
    model = model_like(tmp_path / "model")
    file = tmp_path / "model" / "open_clip_config.json"
    file.write_text(file.read_text().replace("[0.5, 0.4, 0.3]", "[0.5, 0.5, 0.5]"))
    with pytest.raises(StartError, match="was trained with images' mean"):
        pretrain(config_of(dataset, model, tmp_path / "run", f"train.start_from={multi_task}"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def damaged(training: Path, part: str) -> Path:
    """A byte of the part's last tensor is another one."""
    (file,) = training.glob(f"checkpoints/*-00000006/{part}.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return training


def test_a_restart_that_is_refused_leaves_the_earlier_training_as_it_was(
    settings: Callable[..., Config], dataset: str, supervised: Path, multi_task: Path, tmp_path: Path
) -> None:
    """Catches: --restart that has dropped the checkpoints before it sees that it cannot begin."""
    folder = tmp_path / "run"
    shutil.copytree(multi_task, folder)
    before = contents(folder)
    (tmp_path / "link").symlink_to(folder)
    other_mean = model_like(tmp_path / "model")
    file = tmp_path / "model" / "open_clip_config.json"
    file.write_text(file.read_text().replace("[0.5, 0.4, 0.3]", "[0.5, 0.5, 0.5]"))

    def refused(error: type[Exception], says: str, *overrides: str, model: str | None = None) -> None:
        given = config_of(dataset, model, folder, *overrides) if model else settings(folder, *overrides)
        with pytest.raises(error, match=says):
            pretrain(given, restart=True)
        assert contents(folder) == before, overrides

    refused(checkpoint.CheckpointError, "has no checkpoint '5'", f"train.start_from={multi_task}@5")
    for own in (folder, f"file://{folder}", f"{tmp_path}/./run", f"{folder}/", tmp_path / "link"):
        refused(StartError, "is the folder of this training itself", f"train.start_from={own}@6")
    refused(OrderError, "do not divide", "train.accumulate=5")
    with pytest.raises(OrderError, match="3 ranks of 1 micro-batches"):
        _Training(settings(folder), World(0, 3), lambda *_: {}, restart=True)
    refused(StartError, "with images' mean", f"train.start_from={multi_task}", model=other_mean)
    refused(ValueError, "warm", "train.optimizer.warmup=99")
    for part in ("towers", "ema"):
        place = damaged(shutil.copytree(supervised, tmp_path / part), part)
        refused(checkpoint.CheckpointError, f"{part}.safetensors is damaged", f"train.start_from={place}")
    pretrain(settings(folder, "train.steps=2"), restart=True)
    assert checkpoint.steps(folder) == [2]


def test_a_start_is_spelt_in_one_way() -> None:
    spelt = [configuration.load(None, [f"train.start_from={t}"]).train.start_from for t in ("train:a/b@7", "a/b@7")]
    assert spelt == ["a/b@7", "a/b@7"]
    with pytest.raises(ConfigError, match=r"train\.start_from"):
        configuration.load(None, ["train.start_from=train:"])


# -- position tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resnet", "trunk", "text"])
def test_positions_of_other_towers_are_resized_too(kind: str, tmp_path: Path) -> None:
    """Catches: a table that is refused, or whose class token is taken for a place."""
    folder = tmp_path / "model"
    if kind == "trunk":
        trunk = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
        model = model_like(folder)
        (folder / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": {"embed_dim": 24, "vision_cfg": trunk, "text_cfg": MODELS["vit"]["text_cfg"]}})
        )
    else:
        model = model_like(folder, MODELS["resnet"]["vision_cfg"] if kind == "resnet" else None)  # type: ignore[arg-type]

    def towers(side: int) -> Any:
        config = TrainConfig.model_validate({"encoder": {"model": model, "image_size": side}})
        return config, build(config.encoder, config.loss, 0)

    config, old = towers(64)
    state = checkpoint.State(0, 0, 24, "multi_task", config.shown(), "", text_trained=True)
    part = checkpoint.Part(old.state_dict())
    saved = checkpoint.load(checkpoint.Save(tmp_path / "run", state, World(), towers=part).finish())
    if kind == "text":
        file = folder / "open_clip_config.json"
        file.write_text(file.read_text().replace('"context_length": 32', '"context_length": 16'))
    config, new = towers(64 if kind == "text" else 128)
    name = {
        "resnet": "visual.attnpool.positional_embedding", "trunk": "visual.trunk.pos_embed",
        "text": "positional_embedding",
    }[kind]  # fmt: skip
    (said,) = warm_start.take(new, saved, config)
    assert said.startswith(f"{name} resized from ")
    before, after = old.state_dict()[f"model.{name}"], new.state_dict()[f"model.{name}"]
    assert before.shape != after.shape
    if kind != "text":
        assert torch.allclose(before.reshape(-1, before.shape[-1])[0], after.reshape(-1, after.shape[-1])[0])
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=0.05)


@pytest.mark.parametrize("named", ["s3://bucket/run@2", "s3://bucket/run/@latest", "s3://bucket/run"])
def test_a_training_in_a_store_does_not_begin_from_itself(named: str) -> None:
    with pytest.raises(StartError, match="is the folder of this training itself"):
        warm_start.find(named, "s3://bucket/run/")
