from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from i2e_pipeline.core.config import ScoreConfig
from i2e_pipeline.core.machine import choose_device
from i2e_pipeline.images import encoder as encoder_module
from i2e_pipeline.images.encoder import Encoder, ModelError, fingerprint, load, load_once
from tests.small_models import picture, write_model

TEXTS = ["Mars", "Mars, fourth planet from the Sun", "Turkey, country", "a " * 60, "", "Köln, city in Germany"]
PICTURES = [picture(i, size) for i, size in enumerate([(64, 48), (40, 90), (32, 32), (200, 150), (33, 31)])]
KINDS = ["vit", "resnet", "bidirectional", "custom"]


@pytest.fixture(scope="session")
def config(encoder_config: ScoreConfig) -> ScoreConfig:
    return encoder_config


def plain(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of PICTURES and TEXTS by open_clip's own functions, one image and one full-length text at a time."""
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    with torch.inference_mode():
        images = [model.encode_image(preprocess(p)[None], normalize=True) for p in PICTURES]
        texts = [model.encode_text(tokenizer([t]), normalize=True) for t in TEXTS]
    return torch.cat(images).numpy(), torch.cat(texts).numpy()


def prepared(encoder: Encoder) -> np.ndarray:
    return np.stack([encoder.prepare(p) for p in PICTURES])


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_equal_those_of_open_clip(kind: str, models: Callable[[str], str]) -> None:
    images, texts = plain(models(kind))
    encoder = load(ScoreConfig(model=models(kind), batch_size=2))
    assert np.abs(encoder.images(prepared(encoder)) - images).max() < 1e-4
    assert np.abs(encoder.texts(TEXTS) - texts).max() < 1e-4
    assert np.allclose(np.linalg.norm(encoder.texts(TEXTS), axis=1), 1)


def test_preprocessing_equals_that_of_open_clip(encoder: Encoder, config: ScoreConfig) -> None:
    _, preprocess = open_clip.create_model_from_pretrained(config.model)
    ours = encoder._normalised(prepared(encoder)).numpy()
    theirs = torch.stack([preprocess(p) for p in PICTURES]).numpy()
    assert np.abs(ours - theirs).max() < 1e-5


def test_texts_are_cut_only_where_the_text_tower_allows(models: Callable[[str], str]) -> None:
    """Catches: a tower that also looks at the padding (SigLIP's) gives other vectors for shorter texts."""
    trims = {kind: load(ScoreConfig(model=models(kind))).trims_text for kind in KINDS}
    assert trims == {"vit": True, "resnet": True, "bidirectional": False, "custom": True}


def test_short_texts_really_go_through_short(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    whole = Encoder._encode_tokens
    monkeypatch.setattr(Encoder, "_encode_tokens", lambda self, t: (lengths.append(t.shape[1]), whole(self, t))[1])
    encoder.texts(["a", "b"])
    assert max(lengths) <= 4


def test_batch_norms_are_folded(models: Callable[[str], str]) -> None:
    encoder = load(ScoreConfig(model=models("resnet")))
    assert not [m for m in encoder._visual.modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_batch_norm_whose_convolution_also_feeds_others_stays() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.norm.running_mean.fill_(1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return (self.norm(y) + y).mean(dim=(2, 3))

    tower = Tower().eval().requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    before = tower(x)
    encoder_module._fold_batch_norms(tower, lambda: tower(x), 1e-4)
    assert torch.equal(tower(x), before)
    assert isinstance(tower.norm, nn.BatchNorm2d)


def test_vectors_do_not_depend_on_the_batch_size(config: ScoreConfig) -> None:
    whole, single = (load(config.model_copy(update={"batch_size": size})) for size in (64, 1))
    assert np.abs(whole.images(prepared(whole)) - single.images(prepared(single))).max() < 1e-5


def test_a_vector_does_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    """Catches: last bits that change with the partitioning, and with them labels that stand at the threshold."""
    pixels = prepared(encoder)
    texts = [*TEXTS, "a much longer text than the others, of many words", "short"]
    vectors, text_vectors = encoder.images(pixels), encoder.texts(texts)
    for order in (np.arange(len(pixels))[::-1], np.array([2, 0]), np.array([1])):
        assert np.array_equal(encoder.images(pixels[order]), vectors[order])
    for order in (np.arange(len(texts))[::-1], np.array([1, 0]), np.array([len(texts) - 1])):
        assert np.array_equal(encoder.texts([texts[i] for i in order]), text_vectors[order])


def test_bfloat16_stays_within_two_hundredths(config: ScoreConfig, encoder: Encoder) -> None:
    narrow = load(config.model_copy(update={"dtype": "bfloat16"}))
    cosines = (narrow.images(prepared(narrow)) @ narrow.texts(TEXTS).T) - (
        encoder.images(prepared(encoder)) @ encoder.texts(TEXTS).T
    )
    assert np.abs(cosines).max() < 2e-2


class Small(nn.Module):
    """A model that fits `room` rows on its device."""

    def __init__(self, model: nn.Module, room: int) -> None:
        super().__init__()
        self.model, self.room, self.visual = model, room, model.visual
        self.sizes: list[int] = []

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(x))
        return self.model.encode_image(x)

    def encode_text(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(x)


def small(config: ScoreConfig, room: int) -> tuple[Encoder, Small]:
    model, preprocess = open_clip.create_model_from_pretrained(config.model)
    fake = Small(model.eval(), room)
    return Encoder(fake, preprocess, open_clip.get_tokenizer(config.model), batch_size=8), fake


def test_a_batch_too_large_for_the_device_is_halved_and_goes_on(config: ScoreConfig, encoder: Encoder) -> None:
    narrow, fake = small(config, room=2)
    fake.sizes.clear()
    vectors = narrow.images(prepared(narrow))
    assert np.abs(vectors - encoder.images(prepared(encoder))).max() < 1e-5
    assert fake.sizes == [2, 2, 2]  # the last is filled up: every batch has one shape
    assert narrow.batch_size == 2  # for good: the next batches do not fail first


def test_one_image_that_does_not_fit_is_an_error(config: ScoreConfig) -> None:
    narrow, fake = small(config, room=2)
    fake.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        narrow.images(prepared(narrow))


def test_towers_of_different_width_are_refused(config: ScoreConfig) -> None:
    model, preprocess = open_clip.create_model_from_pretrained(config.model)
    fake = Small(model.eval(), 8)
    fake.encode_text = lambda x: model.encode_text(x)[:, :5]  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="image vectors are 24 wide, text vectors 5"):
        Encoder(fake, preprocess, open_clip.get_tokenizer(config.model))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    name = write_model(tmp_path / "broken", "vit", break_weights=True)
    with pytest.raises(ModelError, match="the weights are damaged"):
        load(ScoreConfig(model=name))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"score\.model is empty"):
        load(ScoreConfig())
    with pytest.raises(ModelError, match=r"nowhere/open_clip_config\.json does not exist"):
        fingerprint(ScoreConfig(model="local-dir:nowhere"))
    with pytest.raises(ModelError, match="no-such-model"):
        load(ScoreConfig(model="no-such-model", pretrained="x"))
    with pytest.raises(ModelError, match="ViT-B-32"):
        load(ScoreConfig(model="ViT-B-32"))  # without weights it would score at random


def test_a_model_is_loaded_once_however_many_tasks_ask(config: ScoreConfig) -> None:
    """Catches: a load per partition (Daft #2878), two per partition (clip-retrieval)."""
    before = encoder_module.loads
    first = load_once(config.model_copy(update={"batch_size": 3}))
    assert load_once(config.model_copy(update={"batch_size": 3})) is first
    assert encoder_module.loads == before + 1
    assert load_once(config.model_copy(update={"batch_size": 3, "dtype": "bfloat16"})) is not first
    assert encoder_module.loads == before + 2


def test_the_fingerprint_names_content(tmp_path: Path, config: ScoreConfig) -> None:
    """Catches: a model folder whose weights were replaced passes for the old one."""
    folder = tmp_path / "model"
    shutil.copytree(config.model.removeprefix("local-dir:"), folder)
    same = config.model_copy(update={"model": f"local-dir:{folder}"})
    base = fingerprint(config)
    assert fingerprint(same) == base
    (folder / "README.md").write_text("notes")
    assert fingerprint(same) == base
    assert fingerprint(same.model_copy(update={"batch_size": 9, "device": "cuda"})) == base
    assert fingerprint(same.model_copy(update={"dtype": "bfloat16"})) != base
    write_model(folder, "vit", seed=1)
    assert fingerprint(same) != base
    assert fingerprint(ScoreConfig(model="ViT-B-32", pretrained="openai")) != fingerprint(
        ScoreConfig(model="ViT-B-32", pretrained="laion2b_s34b_b79k")
    )


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "4d2744c1dcd9397f6f53a171c70b2e14"),
        ({"model": "ViT-B-32@laion2b_s34b_b79k"}, "4d2744c1dcd9397f6f53a171c70b2e14"),
        ({"model": "hf-hub:org/name", "dtype": "bfloat16"}, "aa1b289b15c900fdcf88e153eeb869db"),
    ],
)
def test_fingerprints_of_scores_that_were_made_before_stay(settings: dict[str, Any], known: str) -> None:
    """Catches: hours of scoring that are done again because a model may be spelt otherwise now."""
    assert fingerprint(ScoreConfig(**settings)) == known


def test_the_driver_never_wakes_the_gpu(config: ScoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a driver without a card cannot plan GPU tasks (NeMo Curator PR 1724); a fork inherits a dead CUDA."""

    def fail() -> bool:
        raise AssertionError("CUDA was asked for")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    fingerprint(config)
    assert choose_device("cpu", "score.device") == "cpu"
    with pytest.raises(AssertionError):
        choose_device("auto", "score.device")


def test_the_real_scorer_tells_a_lion_from_a_film(real_data: Path) -> None:
    encoder = load(ScoreConfig(model=f"local-dir:{real_data}/models/scorer"))
    assert encoder.trims_text
    assert (encoder.width, encoder.side) == (256, 224)
    banana, boston, film = encoder.texts(["banana", "Banana, elongated edible fruit", "Boston, city in Massachusetts"])
    assert banana @ boston > banana @ film
