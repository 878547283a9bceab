"""The small world, scored once, and what a verifier that knows its truth must know."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from benchmarks.planted import Planted, shown
from i2e_pipeline.core.config import Config, VerifyConfig
from tests.chain import run, settings


@pytest.fixture(scope="session")
def scored(world: Path, tmp_path_factory: pytest.TempPathFactory, spark: Any) -> Path:
    """An output that was run up to the scores."""
    output = tmp_path_factory.mktemp("scored") / "out"
    run(settings(world, output), spark, *_UP_TO_SCORE)
    return output


_UP_TO_SCORE = ("knowledge_base", "surfaces", "pairs", "extract", "link", "entity_vectors", "score")


@pytest.fixture
def configured(world: Path, scored: Path, tmp_path: Path) -> Callable[..., Config]:
    """A config over a copy of that output, which is this test's own."""
    shutil.copytree(scored, tmp_path / "out")
    return lambda *overrides, output="out": settings(world, tmp_path / output, *overrides)


@pytest.fixture(scope="session")
def truth(world: Path) -> dict[str, int | None]:
    """What images show, by what a verifier is sent of them."""
    found: dict[str, int | None] = {}
    for path in sorted((world / "pairs").glob("*.parquet")):
        for row in pq.read_table(path, columns=["jpg", "truth_qid"]).to_pylist():
            name = shown(row["jpg"], VerifyConfig()) if row["jpg"] else None
            if name is not None and row["truth_qid"] is not None:
                is_entity = row["truth_qid"].startswith("Q")
                found[name] = int(row["truth_qid"][1:]) if is_entity else None
    return found


@pytest.fixture(scope="session")
def planted(scored: Path, truth: dict[str, int | None]) -> Callable[[float], Planted]:
    rows = ds.dataset(f"{scored}/kb/entities", format="parquet").to_table(columns=["entity_id", "name", "description"])
    entities = {row["entity_id"]: (row["name"], row["description"]) for row in rows.to_pylist()}
    return lambda noise: Planted(truth, entities, noise)
