"""A model has the activation of its weights, in every room that makes one; what cannot be had is said at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip import pretrained as tables
from safetensors.torch import save_file

from i2e_pipeline.core.config import EncoderConfig, EvaluateConfig, LossConfig, ScoreConfig
from i2e_pipeline.evaluate.encoders import open_encoder
from i2e_pipeline.images import models
from i2e_pipeline.images.encoder import check, fingerprint, load
from i2e_pipeline.images.models import ModelError
from i2e_pipeline.train.encoders import build
from tests.small_models import MODELS, picture

QUICK = "quick_tag"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An architecture of open_clip's with GELU, and a tag for it whose weights want QuickGELU, on this machine."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, more in (("Tiny", {}), ("Tiny-quickgelu", {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps({**MODELS["vit"], **more}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model("Tiny", load_weights=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that the activation is seen
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "weights.safetensors")
    for name in ("Tiny", "Tiny-quickgelu"):
        tables._PRETRAINED[name] = {QUICK: {"file": str(folder / "weights.safetensors"), "quick_gelu": True}}
    yield "Tiny"
    for name in ("Tiny", "Tiny-quickgelu"):
        del tables._PRETRAINED[name]


def vectors(made: Any) -> np.ndarray:
    image = made.prepare(picture(3))
    return np.concatenate([made.images(np.stack([image])), made.texts(["a dog"])])


def test_weights_that_want_quick_gelu_have_it_in_scorer_trainer_and_evaluation_alike(tiny: str) -> None:
    """Catches: open_clip builds the model with GELU and warns; every score is a little wrong."""
    right = vectors(load(ScoreConfig(model=f"{tiny}-quickgelu@{QUICK}", device="cpu")))
    wrong = open_clip.create_model_and_transforms(tiny, pretrained=QUICK)[0]
    assert not wrong.visual.transformer.resblocks[0].mlp.gelu.__class__.__name__.startswith("Quick")

    assert np.array_equal(vectors(load(ScoreConfig(model=f"{tiny}@{QUICK}", device="cpu"))), right)
    measured = open_encoder(f"clip={tiny}@{QUICK}", EvaluateConfig(device="cpu"))
    assert np.array_equal(vectors(measured), right)
    towers = build(EncoderConfig(model=tiny, pretrained=QUICK), LossConfig(), seed=0)
    assert type(towers.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert type(towers.model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert towers.architecture["quick_gelu"] is True, "an export says which activation it has"
    with torch.no_grad():
        other = wrong.encode_text(open_clip.get_tokenizer(tiny)(["a dog"]))
    assert np.abs(torch.nn.functional.normalize(other, dim=-1).numpy()[0] - right[1]).max() > 1e-4


def test_what_was_scored_with_the_wrong_activation_is_another_model(tiny: str) -> None:
    plain = {"dtype": "float32", "preprocessing": 1, "model": tiny, "pretrained": QUICK}
    from i2e_pipeline.core.config import digest

    assert fingerprint(ScoreConfig(model=f"{tiny}@{QUICK}")) != digest(plain)
    known = {"dtype": "float32", "preprocessing": 1, "model": "ViT-B-32", "pretrained": "laion2b_e16"}
    assert fingerprint(ScoreConfig(model="ViT-B-32@laion2b_e16")) == digest(known), "all others are what they were"


def test_every_tag_of_open_clip_is_built_with_its_own_activation() -> None:
    """Of all pairs in open_clip's tables; readme's own `clip=ViT-B-16@openai` is one of them."""
    quick = 0
    for name, tag in open_clip.list_pretrained():
        wanted = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
        has = bool(open_clip.get_model_config(name).get("quick_gelu"))
        models.check(name, tag, "score")
        assert models.wants_quick_gelu(name, tag) == (wanted and not has)
        if models.wants_quick_gelu(name, tag):
            quick += 1
            twin = open_clip.get_model_config(f"{name}-quickgelu")
            if twin is not None:
                assert twin == {**open_clip.get_model_config(name), "quick_gelu": True}
    assert quick > 20
    for name, tag in (("ViT-B-16", "openai"), ("ViT-B-32", "metaclip_400m"), ("ViT-B-32", "laion400m_e32")):
        assert models.wants_quick_gelu(name, tag)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("ViT-B-32@laion2b_e17", r"score\.pretrained=laion2b_e17: neither a file nor .*, which are laion2b_e16, "),
        ("ViT-B-33@openai", r"score\.model=ViT-B-33: open_clip knows no such architecture; near to it are ViT-B-32"),
        ("ViT-B-32-quickgelu@laion2b_e16", r"take score\.model=ViT-B-32@laion2b_e16"),
        ("ViT-B-32@/no/weights.pt", r"score\.pretrained=/no/weights\.pt: neither a file"),
        ("", r"score\.model is empty"),
        ("ViT-B-32", r"names an architecture and no weights: write ViT-B-32@TAG; known are .*\bopenai\b"),
    ],
)
def test_an_unknown_model_or_tag_names_the_known_ones_nearest_first(model: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        check(ScoreConfig(model=model))
    with pytest.raises(ModelError, match=says):
        load(ScoreConfig(model=model, device="cpu"))


@pytest.mark.parametrize("model", ["ViT-B-32@laion2b_e16", "hf-hub:org/no-such-model", "RN50@yfcc15m"])
def test_a_hub_that_cannot_be_reached_is_asked_once(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches: five retries for each file of a model, in every worker, before an error that names no way out."""
    from huggingface_hub import constants

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    models._unreachable.cache_clear()
    try:
        for ask in (
            lambda: check(ScoreConfig(model=model), at_hand=True),
            lambda: load(ScoreConfig(model=model, device="cpu")),
        ):
            began = time.monotonic()
            with pytest.raises(
                ModelError, match=r"cannot be reached \(ProxyError\).*Fetch them where it can.*local-dir:"
            ):
                ask()
            assert time.monotonic() - began < 10
        assert "Retrying" not in capfd.readouterr().err
        check(ScoreConfig(model="local-dir:anywhere"), at_hand=True)
        assert not constants.HF_HUB_OFFLINE
    finally:
        models._unreachable.cache_clear()
