"""One Spark session for the whole run, tuned for many tiny jobs; where the real data lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline import config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """Two cores, so that order and partitions can go wrong; Delta's jars are there for the tests that need them."""
    from i2e_pipeline.session import build

    settings = config.load(None, [
        "session.master=local[2]", "session.driver_memory=1g", "session.shuffle_partitions=2", "storage.format=delta",
    ])
    session = build(settings, "tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data to run on; tests that use it are skipped where it is absent."""
    folder = Path(os.environ.get("I2E_REAL_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set I2E_REAL_DATA")
    return folder
