"""One grammar to name a model: what it reads, and that both spellings of a setting are one setting."""

from __future__ import annotations

import json
from typing import Any

import pytest

from i2e_pipeline.core import config
from i2e_pipeline.core.config import ConfigError, EncoderConfig, ScoreConfig
from i2e_pipeline.core.model_name import ModelName, ModelNameError, parse, split_label


@pytest.mark.parametrize(
    ("text", "kind", "model", "weights"),
    [
        ("ViT-B-32@laion2b_s34b_b79k", "name", "ViT-B-32", "laion2b_s34b_b79k"),
        ("ViT-B-32@out/run@2/weights.pt", "name", "ViT-B-32", "out/run@2/weights.pt"),
        ("ViT-B-32@random", "name", "ViT-B-32", "random"),
        ("ViT-B-32", "name", "ViT-B-32", None),
        ("local-dir:/a/b", "local-dir", "local-dir:/a/b", None),
        ("local-dir:/a/run@2", "local-dir", "local-dir:/a/run@2", None),
        ("local-dir:/a/b@folder", "local-dir", "local-dir:/a/b", "folder"),
        ("local-dir:/a/b@random", "local-dir", "local-dir:/a/b", "random"),
        ("hf-hub:apple/MOFI", "hf-hub", "hf-hub:apple/MOFI", None),
        ("hf-hub:apple/MOFI@random", "hf-hub", "hf-hub:apple/MOFI", "random"),
        ("hf:openai/clip-vit-base-patch32", "hf", "openai/clip-vit-base-patch32", None),
        ("vectors:out/v@random", "vectors", "out/v@random", None),
        ("train:out/train/a", "train", "out/train/a", None),
        ("train:out/a@b@1200", "train", "out/a@b", "1200"),
        ("train:out/a@best", "train", "out/a", "best"),
        ("train:out/a@beta", "train", "out/a@beta", None),
    ],
)
def test_names_are_taken_apart(text: str, kind: Any, model: str, weights: str | None) -> None:
    """Catches: a folder with an @ in its name that is cut there."""
    assert parse(text) == ModelName(kind, model, weights)


def test_only_a_local_dir_is_a_folder_of_open_clips() -> None:
    assert parse("local-dir:/a/b@folder").folder == "/a/b"
    assert [parse(text).folder for text in ("ViT-B-32", "hf-hub:a/b", "hf:/a/b", "vectors:/a/b")] == [None] * 4


@pytest.mark.parametrize("text", ["", "@random", "ViT-B-32@", "local-dir:", "hf-hub:", "hf:", "vectors:"])
def test_what_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(ModelNameError, match="names no model"):
        parse(text)


@pytest.mark.parametrize(
    ("spec", "label", "model"),
    [
        ("local-dir:/a/b/scorer", "scorer", "local-dir:/a/b/scorer"),
        ("ours=local-dir:/a/b=c/scorer", "ours", "local-dir:/a/b=c/scorer"),
        ("local-dir:/a/b=c/scorer/", "scorer", "local-dir:/a/b=c/scorer/"),
        ("ViT-B-16@openai", "ViT-B-16@openai", "ViT-B-16@openai"),
        ("ViT-B-16@random", "ViT-B-16 (untrained)", "ViT-B-16@random"),
        ("hf-hub:apple/MOFI", "apple/MOFI", "hf-hub:apple/MOFI"),
        ("vectors:out/v", "v", "vectors:out/v"),
    ],
)
def test_labels_of_encoders(spec: str, label: str, model: str) -> None:
    assert split_label(spec) == (label, model)


@pytest.mark.parametrize(
    ("section", "new", "old"),
    [
        (ScoreConfig, {"model": "ViT-B-32@openai"}, {"model": "ViT-B-32", "pretrained": "openai"}),
        (ScoreConfig, {"model": "local-dir:m@folder"}, {"model": "local-dir:m"}),
        (EncoderConfig, {"model": "ViT-B-32@openai"}, {"model": "ViT-B-32", "pretrained": "openai"}),
        (EncoderConfig, {"model": "local-dir:m@folder"}, {"model": "local-dir:m", "pretrained": "folder"}),
        (EncoderConfig, {"model": "local-dir:m@random"}, {"model": "local-dir:m"}),
        (EncoderConfig, {"model": "ViT-B-32@random"}, {"model": "ViT-B-32"}),
    ],
)
def test_both_spellings_are_one_setting(section: Any, new: dict[str, str], old: dict[str, str]) -> None:
    """Catches: a checkpoint or a table that is refused because its model was spelt otherwise."""
    assert section(**new) == section(**old)
    assert section(**new).model_dump() == section(**old).model_dump()
    assert section(**{**new, "pretrained": section(**old).pretrained}) == section(**old), "both may say the same"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "score={model: ViT-B-32@openai, pretrained: laion400m_e32}",
            "score: model: ViT-B-32@openai names its weights",
        ),
        ("score.model=ViT-B-32@random", "score: model: ViT-B-32@random has random weights"),
        ("score.model=hf:folder", "score: model: hf:folder is for `i2e evaluate` alone"),
        ("train.encoder.model=vectors:v", "train.encoder: model: vectors:v is for `i2e evaluate` alone"),
        ("train.encoder.model=ViT-B-32@", "train.encoder: 'ViT-B-32@' names no model"),
    ],
)
def test_a_name_that_a_section_cannot_use_is_refused_with_its_place(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(None, [override])
    assert said in str(error.value)


def test_a_config_that_is_dumped_and_read_again_is_the_same() -> None:
    made = config.load(None, ["score.model=ViT-B-32@openai", "train.encoder.model=local-dir:m@folder"])
    assert config.from_tree(json.loads(made.model_dump_json()), "a dump") == made
