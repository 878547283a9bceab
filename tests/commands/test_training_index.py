"""A run keeps the index that a training starts from, and the workers of a cluster make the one that a process makes."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands import training_index
from i2e_pipeline.core.config import Config
from i2e_pipeline.stages import pipeline
from i2e_pipeline.train.indexed import FOLDER, open_indexed
from i2e_pipeline.train.parallel import World


def of(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (output / "i2e" / FOLDER).glob("*")}


@pytest.fixture
def copied(reported: Config, tmp_path: Path) -> Config:
    shutil.copytree(reported.output, tmp_path / "out")
    return reported.model_copy(update={"output": str(tmp_path / "out")})


def test_a_training_starts_from_what_the_run_kept(
    reported: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: an index of other settings or another state than the training asks for."""
    caplog.set_level(logging.INFO, "i2e_pipeline")
    before = of(Path(reported.output))
    assert len(before) == 1
    dataset, index = open_indexed(f"{reported.output}/i2e", reported.train, World(), str(tmp_path))
    assert "index of" not in caplog.text
    assert before == of(Path(reported.output))
    assert index.images == dataset.rows > 0


def test_workers_make_what_one_process_makes(
    copied: Config, spark: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "i2e_pipeline")
    output = Path(copied.output)
    alone = of(output)
    shutil.rmtree(output / "i2e" / FOLDER)
    monkeypatch.setattr(training_index, "_MANY_FILES", 0)
    place = training_index.keep_training_index(pipeline(copied, lambda: spark))
    assert place == f"{output}/i2e/{FOLDER}/{next(iter(alone))}"
    assert of(output) == alone
    assert "made in" in caplog.text

    shutil.rmtree(output / "i2e" / FOLDER)
    damaged = next((output / "i2e" / "images").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-8])
    assert training_index.keep_training_index(pipeline(copied, lambda: spark)) is None
    assert "no index for trainings was made, the first one will make it" in caplog.text
    assert damaged.name in caplog.text
    monkeypatch.setattr(training_index, "_MANY_FILES", 10_000)
    assert training_index.keep_training_index(pipeline(copied, lambda: spark)) is None
    assert of(output) == {}


def test_a_run_that_wants_none_keeps_none(copied: Config, spark: Any) -> None:
    from i2e_pipeline.commands.run import run

    shutil.rmtree(Path(copied.output, "i2e", FOLDER))
    without = copied.model_copy(update={"publish": copied.publish.model_copy(update={"training_index": False})})
    outcome = run(pipeline(without, lambda: spark))
    assert not outcome.run.config.publish.training_index
    assert of(Path(copied.output)) == {}
    assert not any(state.worked for state in outcome.states), "it changes no fingerprint"
