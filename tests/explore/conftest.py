"""Datasets to explore: one by itself that is made up, and an output of an earlier version with its run's tables."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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


QUANTILES = {"p05": 0.11, "p25": 0.21, "p50": 0.26, "p75": 0.31, "p95": 0.355}


@pytest.fixture(scope="session")
def detailed(made_up: str, tmp_path_factory: pytest.TempPathFactory) -> Explored:
    """The same with `select.statistics=full` of its first entity with an image: what is told of texts, words and
    sources is long, and would like to be markup."""
    folder = tmp_path_factory.mktemp("detailed")
    shutil.copytree(made_up, folder / "i2e")
    (path,) = (folder / "i2e" / "statistics" / "entities").rglob("*.parquet")
    table = pq.read_table(path, partitioning=None)
    rows = table.to_pylist()
    first, *others = sorted((row for row in rows if row["images"]), key=lambda row: -row["images"])
    first |= {
        "texts": 12_345, "mentions": 20_000, "mentions_first": 15_000, "distinct_domains": 678,
        "scripts": [{"script": "Latin", "mentions": 19_000}, {"script": "Han", "mentions": 1_000}],
        "clip_scores": QUANTILES, "clip_scores_labelled": {name: value + 0.01 for name, value in QUANTILES.items()},
        "surfaces": [{"surface": f"<b>word {n}</b>" + "w" * 60 * (n == 1), "pairs": 90 - n} for n in range(10)],
        "domains": [{"domain": f"host{n}.example.org", "pairs": 80 - n} for n in range(10)],
        "confusions": [{"entity_id": row["entity_id"], "won": 9 - n, "lost": n} for n, row in enumerate(others[:8])],
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    return explored(Place.of(str(folder / "i2e")), None, str(folder / "marks.jsonl"), str(folder / "index"))


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
