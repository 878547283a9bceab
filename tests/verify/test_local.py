"""A model in the worker: what it says of a question depends on nothing but the question."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from i2e_pipeline import stages
from i2e_pipeline.core.config import Config, VerifyConfig
from i2e_pipeline.images import hugging_face
from i2e_pipeline.verify import local
from i2e_pipeline.verify.asking import Question, VerifierError
from tests.chain import run
from tests.verify import tiny
from tests.verify.test_stage import ALL, verdicts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny") / "model")


def config(folder: Path, **settings: object) -> VerifyConfig:
    of_test = {"dtype": "float32", "device": "cpu", "max_tokens": 1, "batch_size": 3}
    return VerifyConfig(model=f"local-dir:{folder}", **{**of_test, **settings})  # type: ignore[arg-type]


def questions(count: int) -> list[Question]:
    drawn = random.Random(0)
    made = []
    for n in range(count):
        colour = tuple(drawn.randrange(256) for _ in range(3))
        image = Image.effect_noise((20 + 7 * n, 40), 80).convert("RGB") if n % 2 else Image.new("RGB", (40, 30), colour)
        made.append(Question(bytes([n]), "which? " + "ab" * drawn.randrange(90), image))
    return made


def said(model: local.Local, asked: list[Question]) -> dict[bytes, object]:
    return {asked[number].key: text for group in model.answers(asked) for number, text in group}


def test_an_answer_depends_on_the_question_alone(folder: Path) -> None:
    """Catches: padding, or a kernel chosen by the batch's shape, that turns an answer round."""
    model, asked = local.load(config(folder, max_tokens=4)), questions(8)
    whole = said(model, asked)
    assert len(whole) == 8
    assert len(set(whole.values())) > 1
    assert all(set(str(text)) <= {"0", "1", "2"} for text in whole.values())
    assert said(model, asked[::-1]) == whole
    assert {k: v for one in asked for k, v in said(model, [one]).items()} == whole
    assert said(local.load(config(folder, max_tokens=4)), asked) == whole, "drawn, and not greedy"


def test_a_device_without_room_gets_smaller_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = local.load(config(folder, batch_size=8)), questions(6)
    sizes: list[int] = []
    generate = model._model.generate

    def bounded(**batch: Any) -> torch.Tensor:
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return generate(**batch)

    monkeypatch.setattr(model._model, "generate", bounded)
    assert len(said(model, asked)) == 6
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[3:]) == {2}


def test_its_fingerprint_is_its_content(folder: Path, tmp_path: Path) -> None:
    other = tiny.write(tmp_path / "other", seed=1)
    assert local.fingerprint(config(folder)) == local.fingerprint(config(folder, batch_size=9, device="auto"))
    found = {local.fingerprint(c) for c in (config(folder), config(other), config(folder, dtype="bfloat16"))}
    assert len(found) == 3
    hub = [VerifyConfig(model=f"hf-hub:a/b{at}") for at in ("", "@main", "@1f2e")]
    assert len({local.fingerprint(c) for c in hub}) == 3
    assert hugging_face.place("hf-hub:a/b@1f2e") == ("a/b", "1f2e")
    assert hugging_face.place("hf-hub:a/b") == ("a/b", None)


def test_it_is_loaded_once(folder: Path) -> None:
    first = local.load_once(config(folder), "x")
    assert local.load_once(config(folder, retries=0), "x") is first
    assert local.load_once(config(folder), "y") is not first


def test_what_is_no_such_model_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerifierError, match="no such folder, or nothing in it"):
        local.fingerprint(config(tmp_path / "none"))
    with pytest.raises(VerifierError, match=r"config\.json does not exist"):
        local.check(config(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(VerifierError, match=r"no weights \(\*\.safetensors\)"):
        local.check(config(tmp_path))
    with pytest.raises(VerifierError, match=r"local-dir:.* does not load: .*image-text-to-text"):
        local.load(config(tmp_path))
    mute = tiny.write(tmp_path / "mute", template=None)
    with pytest.raises(VerifierError, match="has no chat template"):
        local.load(config(mute))
    for wrong in ("ViT-B-32@x", "hf:folder", "vectors:x", "just/a/path"):
        with pytest.raises(ValueError, match="none that transformers loads"):
            VerifyConfig(model=wrong)
    with pytest.raises(ValueError, match="model and server are both set"):
        VerifyConfig(model="hf-hub:a/b", server="http://x")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(
        VerifierError, match=r"transformers is not installed: pip install 'i2e-pipeline\[second-look\]'"
    ):
        local.check(config(folder))


@pytest.mark.slow
def test_a_model_in_the_chain(configured: Callable[..., Config], folder: Path, spark: Any) -> None:
    """Through the whole stage, twice: in other tasks it says the same."""
    settings = (f"verify.model=local-dir:{folder}", "verify.dtype=float32", "verify.device=cpu", "verify.max_tokens=1",
                *ALL)  # fmt: skip
    first = configured(*settings, "verify.batch_size=4")
    run(first, spark, "verify")
    found = {key: (row["verdict"], row["state"]) for key, row in verdicts(first).items()}
    assert {state for _, state in found.values()} >= {"chosen", "none"}
    (stage,) = (s for s in stages.stages(first) if s.name == "verify")
    assert stage.settings(first)["asks"].startswith("model@")
    again = configured(*settings, "verify.batch_size=4", "verify.rows_per_task=9", "run.wave_units=1")
    run(again, spark, "verify", redo=("verify",))
    assert {key: (row["verdict"], row["state"]) for key, row in verdicts(again).items()} == found
