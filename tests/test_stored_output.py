"""An output that an earlier version made has nothing to do: renamed settings and new ones redo nothing.

tests/engine/stored/output-2bf44cd.tar.xz holds two shards of the sample world, a dump of their entities, a small model
with made-up weights, a config in the spelling of its day, and what the code at that commit made of them.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import get_args

import pytest
import yaml

from i2e_pipeline import stages
from i2e_pipeline.commands import reference
from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, PriorsConfig, RerankerConfig, Section
from i2e_pipeline.label.calibration import Calibration

STORED = Path(__file__).parent / "engine" / "stored" / "output-2bf44cd.tar.xz"


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


RAISED = {
    "knowledge_base": "version: 1, now 5", "surfaces": "version: 1, now 6", "extract": "version: 1, now 5",
    **dict.fromkeys(("link", "score", "label"), "version: 1, now 3"), "select": "version: 1, now 4",
    "publish": "version: 1, now 2",
}  # fmt: skip
"""Stages whose code makes something else of the same input than it did then."""


DEFAULT_THEN = Calibration(
    (
        "background_z", "background_z_up_to_3", "share_against_best_other", "log_text_probability",
        "log_readings_of_mention", "log_mentions_of_text", "described",
    ),
    (0.6968, -0.1002, 6.0326, 0.8907, 0.2766, 0.0721, 4.0694), -10.8089, 0.8113,
)  # fmt: skip
"""The calibration that was the default when the output was made."""


def as_then(monkeypatch: pytest.MonkeyPatch) -> str:
    """So that nothing is to do because of what the code has become since. A setting, for the calibration of then."""
    for stage in stages.built_in():
        monkeypatch.setattr(type(stage), "version", 1)
        monkeypatch.setattr(type(stage), "weighs", lambda self, config: {})
    DEFAULT_THEN.save("then.json")
    return "label.calibration=then.json"


@pytest.fixture
def then(stored: Path) -> str:
    DEFAULT_THEN.save("then.json")
    return "label.calibration=then.json"


def test_an_output_from_before_has_nothing_to_do(
    then: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what raised versions ask for. Catches: a renamed setting, or another way of making fingerprints, that
    costs its users every image again."""
    config = stages.load("config.yaml", [then])
    assert config.label.threshold == 0.001
    assert config.select.min_images_per_entity == 1
    assert "build.bar is now label.threshold: the old spelling is still read" in caplog.text
    pipeline = stages.pipeline(config, lambda: pytest.fail("Spark was started"))
    _, states = pipeline.status()
    parts = {
        (s.stage.name, p) for s in states for r in s.to_do.values() for p in r.removeprefix("changed: ").split("; ")
    }
    assert {stage: part for stage, part in parts if part.startswith(("version", "settings"))} == RAISED

    for stage in pipeline.stages:
        monkeypatch.setattr(stage, "version", 1)
        monkeypatch.setattr(stage, "weighs", lambda config: {})
    _, states = pipeline.run()
    assert {s.stage.name: s.to_do for s in states} == {name: {} for name in pipeline.names}
    assert all(s.done for s in states)


def test_a_changed_setting_is_named_as_it_is_called_today(then: str) -> None:
    config = stages.load("config.yaml", [then, "label.threshold=0.5", "score.text_template=a {name}"])
    _, states = stages.pipeline(config).status()
    reasons = {s.stage.name: set(s.to_do.values()) for s in states if s.to_do}
    assert reasons["label"] >= {"changed: after.score; label.threshold: 0.001, now 0.5; version: 1, now 3"}
    assert all("score.text_template: {name}, {description}, now a {name}" in r for r in reasons["score"])
    assert "label.threshold" not in str([reasons.get(s) for s in ("knowledge_base", "surfaces", "extract", "link")])


def test_a_setting_that_is_younger_than_the_output_counts_only_where_it_is_used(stored: Path) -> None:
    files.write_bytes("weights.json", b'{"weights": {"prior": 0.9}}')
    _, states = stages.pipeline(stages.load("config.yaml", ["link.weights=weights.json"])).status()
    assert "link" in {s.stage.name for s in states if s.to_do}


# Fingerprints are opt-out


def sections() -> dict[str, type[Section]]:
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


OUTSIDE = {
    "session": "starts Spark",
    "run": "how a run is carried out",
    "fetch": "makes input, which is known by its content",
    "train": "a training has a fingerprint of its own (train/trainer.py)",
    "evaluate": "results name what they were measured with",
}
"""Sections that no stage's fingerprint holds, and why."""


def test_every_section_is_in_a_fingerprint_or_named_as_outside() -> None:
    """Catches: a new section whose change nobody would notice."""
    used = {section for stage in stages.every() for section in stage.sections}
    assert used | OUTSIDE.keys() == sections().keys()
    assert not used & OUTSIDE.keys()


def test_every_setting_is_in_a_fingerprint_or_left_out_with_a_reason() -> None:
    """Catches: a new setting that changes an output which then stays as it was."""
    known = {f"{s}.{name}" for s, kind in sections().items() for name in kind.model_fields}
    for stage in stages.built_in():
        mine = {f"{s}.{name}" for s in stage.sections for name in sections()[s].model_fields}
        below = [one for s in stage.sections for one in reference.settings(sections()[s], s)]
        mine |= {one.path for one in below if isinstance(one, reference.Setting)}
        assert stage.leaves_out.keys() <= mine, f"{stage.name} leaves out what its sections do not have"
        assert all(len(why) > 10 for why in stage.leaves_out.values())
        assert stage.stored_as.keys() <= known


@pytest.mark.parametrize("stage", [s.name for s in stages.built_in()])
def test_a_change_of_a_setting_changes_the_fingerprint(stage: str, stored: Path) -> None:
    """Of every setting that the stage does not leave out by name: another value, another fingerprint."""
    one = next(s for s in stages.built_in() if s.name == stage)
    tree = yaml.safe_load(Path("config.yaml").read_text())
    before = one.settings(stages.from_tree(tree, "test"))
    changed = {
        "text": "{name} {name}", "int": 7, "float": 0.37, "bool": None, "tuple": ("en",),
    }  # fmt: skip
    for section in one.sections:
        for name, field in sections()[section].model_fields.items():
            if f"{section}.{name}" in one.leaves_out:
                continue
            kind, config = str(field.annotation), stages.from_tree(tree, "test")
            value = getattr(getattr(config, section), name)
            if isinstance(value, PriorsConfig):
                other: object = PriorsConfig(image=0.37)
            elif isinstance(value, RerankerConfig):
                Path("reranker.txt").write_text("another")
                other = RerankerConfig(model="reranker.txt")
            elif name in ("dump", "popularity", "importance", "anchors", "redirects", "weights"):
                Path("other.txt").write_text('{"weights": {}}')
                other = "other.txt"
            elif name == "model":
                continue  # its content is tested with the encoder
            elif name == "recognizer":
                continue  # likewise with the recognizer
            elif isinstance(value, bool):
                other = not value
            elif name == "skip":
                other = ("name",)
            elif isinstance(value, dict):
                other = {"license": "string"}
            elif "Literal" in kind:
                allowed = [x for v in get_args(field.annotation) for x in (get_args(v) or (v,)) if x is not type(None)]
                other = next(v for v in allowed if v != value)
            elif isinstance(value, tuple):
                other = (*value, *changed["tuple"]) if "en" not in value else value[:-1]  # type: ignore[misc]
            elif isinstance(value, int) or "int" in kind:
                other = (value or 0) + 3
            elif isinstance(value, float) or "float" in kind:
                other = changed["float"]
            else:
                other = changed["text"]
            part = getattr(config, section).model_copy(update={name: other})
            after = one.settings(config.model_copy(update={section: part}))
            assert after != before, f"{section}.{name} changes nothing in the fingerprint of {stage}"
