"""The small world that runs are disturbed on, and how much of that is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from i2e_pipeline.sample import compose
from tests.faults import injector
from tests.faults.cluster import LightCluster

LONG = os.environ.get("LONG") == "1"
"""All faults, an hour of them; else a part, in minutes."""


@pytest.fixture(scope="session")
def still(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> injector.World:
    """Two small shards, and a run over them that nobody disturbed."""
    if not Path("/proc/self/task").exists():
        pytest.skip("Linux's /proc says which process is whose")
    if given := os.environ.get("I2E_DISTURBED"):
        return injector.undisturbed(Path(given))
    if worker_id == "master":
        place = tmp_path_factory.mktemp("disturbed")
    else:  # processes side by side share it
        place = tmp_path_factory.getbasetemp().parent / "disturbed"
        place.mkdir(exist_ok=True)
    with FileLock(place / "input.lock"):
        compose.compose(place / "input", rows=80, shards=2)
    return injector.undisturbed(place)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightCluster]:
    started = LightCluster(tmp_path_factory.mktemp("workers"))
    try:
        started.start_master()
        for name in ("a", "b"):
            started.add(name)
        yield started
    finally:
        for process in reversed(started.processes):
            started.stop(process)
