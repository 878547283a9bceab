"""One grammar to name a model: what it reads, and that both spellings of a setting are one setting."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core import config
from i2e_pipeline.core.config import ConfigError, EncoderConfig, ScoreConfig
from i2e_pipeline.core.model_name import ModelName, ModelNameError, checkpoint_of, labelled, parse, split_label


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
        ("train:/data/run@v2/train", "train", "/data/run@v2/train", None),
        ("train:/data/run@v2/train@latest", "train", "/data/run@v2/train", "latest"),
        ("train:/data/lr=0.1/run", "train", "/data/lr=0.1/run", None),
        ("train:/data/run@2/", "train", "/data/run@2/", None),
        ("train:/data/run@\u0663", "train", "/data/run@\u0663", None),
        ("local-dir:/x@y/model@folder", "local-dir", "local-dir:/x@y/model", "folder"),
        ("local-dir:/x@y/model@folder/", "local-dir", "local-dir:/x@y/model@folder/", None),
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
        ("vectors:out/v@random", "v@random", "vectors:out/v@random"),
        ("train:/a@b/c=d/run@4", "run@4", "train:/a@b/c=d/run@4"),
        ("train:/data/lr=0.1@4", "lr=0.1@4", "train:/data/lr=0.1@4"),
        ("local-dir:/a b/\u00fc:n", "\u00fc:n", "local-dir:/a b/\u00fc:n"),
    ],
)
def test_labels_of_encoders(spec: str, label: str, model: str) -> None:
    assert split_label(spec) == (label, model)


FOLDERS = st.text(st.sampled_from("ab/@=: 2é\n\u0663.#") | st.characters(exclude_categories=("Cs",)), min_size=1).map(
    lambda text: f"/{text}"
)
"""Paths of any signs; those on which a name could be cut are likely."""


@given(FOLDERS, st.sampled_from(["7", "1200", "best", "latest"]))
def test_any_folder_and_any_checkpoint_of_it_have_a_name(folder: str, which: str) -> None:
    """Catches: a folder that no spelling names, or one that is cut at a sign of its own."""
    assert parse(f"train:{folder}@{which}") == ModelName("train", folder, which)
    assert parse(f"train:{folder}/") == ModelName("train", f"{folder}/")
    assert checkpoint_of(f"{folder}@{which}") == checkpoint_of(f"train:{folder}@{which}") == (folder, which)
    assert parse(f"local-dir:{folder}@folder") == ModelName("local-dir", f"local-dir:{folder}", "folder")
    assert parse(f"local-dir:{folder}/") == ModelName("local-dir", f"local-dir:{folder}/")
    assert parse(f"vectors:{folder}") == ModelName("vectors", folder)
    assert parse(f"ViT-B-32@{folder}") == ModelName("name", "ViT-B-32", folder)


@given(st.text(min_size=1), FOLDERS)
def test_a_label_is_taken_off_as_it_was_put_on(label: str, folder: str) -> None:
    """Catches: a training in a folder like lr=0.1, whose name is cut at its own sign."""
    model = f"local-dir:{folder}"
    found, rest = split_label(labelled(label, model))
    assert rest == model
    assert found.strip()
    assert split_label(labelled(found, model)) == (found.strip(), model)
    if not set(label) & set("=:/@") and label.strip():
        assert found == label.strip()


@given(FOLDERS)
def test_without_a_label_the_model_is_the_whole_text(folder: str) -> None:
    for kind in ("local-dir", "train", "vectors", "hf"):
        assert split_label(f"{kind}:{folder}")[1] == f"{kind}:{folder}"


@given(FOLDERS.filter(lambda text: text.isprintable() and text.strip() == text))
def test_a_path_of_any_signs_is_a_setting_as_it_stands(folder: str) -> None:
    """Catches: --set train.folder=/a=b/c that is cut at its second =."""
    made = config.load(None, [f"train.folder={folder}", f"train.start_from={folder}@best"])
    assert (made.train.folder, made.train.start_from) == (folder, f"{folder}@best")


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
