"""The two small models that ship load without a hub, are small, and know the world."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from i2e_pipeline.sample.draws import draw, picture
from i2e_pipeline.sample.judge import text_of
from i2e_pipeline.sample.world import HERE, load_world

SCORER, RECOGNIZER = HERE / "models" / "scorer", HERE / "models" / "recognizer"
LIMIT = 8_000_000


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_models_are_small() -> None:
    assert 0 < size(SCORER) <= LIMIT
    assert 0 < size(RECOGNIZER) <= LIMIT


def test_the_scorer_prefers_the_truth_to_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a name and a description, as the pipeline asks; no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    open_clip = pytest.importorskip("open_clip")
    import torch
    from PIL import Image

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{SCORER}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{SCORER}")
    model.eval()
    rows = [draw(3, "heldout", n) for n in range(24)]
    images = torch.stack([preprocess(Image.open(io.BytesIO(picture(r)[0])).convert("RGB")) for r in rows])
    world = load_world()
    strangers = [world.depicted[(world.depicted.index(r.truth) + 50) % len(world.depicted)] for r in rows]
    with torch.no_grad():
        x = model.encode_image(images, normalize=True)
        truth = model.encode_text(tokenizer([text_of(r.truth) for r in rows]), normalize=True)
        other = model.encode_text(tokenizer([text_of(e) for e in strangers]), normalize=True)
    above = ((x * truth).sum(1) > (x * other).sum(1)).float().mean().item()
    assert above > 0.85


def test_the_recognizer_finds_names() -> None:
    spacy = pytest.importorskip("spacy")
    nlp = spacy.load(RECOGNIZER)
    assert nlp.pipe_names == ["ner"]
    found = {e.text for e in nlp("Flag of Turkey | Etsy").ents} | {e.text for e in nlp("Fresh banana, organic").ents}
    assert {"Turkey", "banana"} <= found
