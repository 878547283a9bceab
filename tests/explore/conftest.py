"""Datasets to explore: one by itself that is made up, and an output of an earlier version with its run's tables."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("duckdb", reason="i2e explore is not installed: the extra [explore]")

from benchmarks import explore_dataset
from i2e_pipeline import stages
from i2e_pipeline.commands.explore import explored
from i2e_pipeline.dataset.place import Place
from i2e_pipeline.explore.app import Explored
from i2e_pipeline.explore.queries import Queries
from tests.test_stored_output import STORED


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a dataset of 800 entities and 3,000 images, which no run made."""
    into = tmp_path_factory.mktemp("made") / "i2e"
    return explore_dataset.main(["--entities", "800", "--images", "3000", "--units", "4", "--into", str(into)])


@pytest.fixture(scope="session")
def alone(made_up: str, tmp_path_factory: pytest.TempPathFactory) -> Explored:
    """It, explored; marks go to a file of the test run."""
    folder = tmp_path_factory.mktemp("alone")
    return explored(Place.of(made_up), None, str(folder / "marks.jsonl"), str(folder / "index"))


@pytest.fixture(scope="session")
def queries(alone: Explored) -> Queries:
    return alone.queries


@pytest.fixture
def with_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Explored]:
    """The stored output with its run's tables and its input; nothing starts Spark."""
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    monkeypatch.chdir(tmp_path / "run")
    config = stages.load("config.yaml")
    pipeline: Any = stages.pipeline(config, lambda: pytest.fail("Spark was started"))
    yield explored(Place.of(config.output), pipeline)
    shutil.rmtree(tmp_path / "run")
