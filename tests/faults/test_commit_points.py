"""A run that dies at a commit point: after staging, between moves, before a record and after it, within Delta's commit.

The deaths of a chain follow each other on one output, in the order in which a run comes by their places.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from i2e_pipeline.engine.tables import Tables
from tests.cluster.tables import tables
from tests.faults import injector
from tests.faults.conftest import LONG
from tests.faults.deaths import AGAIN, FIRST, OTHER, chain
from tests.faults.injector import World

pytestmark = [pytest.mark.faults, pytest.mark.delta]


def checked(outcome: injector.Outcome, faults: int, config: Path, output: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "i2e_pipeline.cli", "clean", "--config", str(config)],
        cwd=injector.ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # What a writer that died left is taken away when it is a minute old.
    assert not [path for path in output.rglob(".*.tmp") if time.time() - path.stat().st_mtime > 90]
    assert not Tables(str(output)).orphans()
    print(json.dumps(outcome.as_json()))
    assert outcome.survived, outcome
    assert len(outcome.faults) >= faults, outcome
    assert outcome.rows > 5000


@pytest.fixture(scope="session")
def otherwise(still: World) -> World:
    """What the world's run makes when labels are chosen by another threshold."""
    found = tables(injector.made(still.place, "otherwise", OTHER, of=still.place / "whole"))
    assert found["i2e/images"] != still.whole["i2e/images"]
    return World(still.place, found, still.pace)


@pytest.mark.long
@pytest.mark.parametrize("storage", ["parquet", "delta"])
def test_a_first_run(storage: str, still: World) -> None:
    output = still.place / f"first-{storage}"
    config = injector.configured(still.place, output, f"storage.format={storage}")
    outcome = injector.Outcome(0, "local", storage)
    places = FIRST[storage] if LONG else {"parquet": FIRST[storage][:4:3], "delta": FIRST[storage][1::2]}[storage]
    chain(config, output, places, outcome)
    injector.judge(still.whole, output, storage, outcome)
    checked(outcome, len(places), config, output)


@pytest.mark.long
@pytest.mark.parametrize("storage", ["parquet", "delta"])
def test_a_run_that_replaces_what_is_there(storage: str, still: World, otherwise: World) -> None:
    output = still.place / f"again-{storage}"
    config = injector.configured(still.place, output, f"storage.format={storage}")
    shutil.copytree(injector.whole_as(still, storage), output)
    outcome = injector.Outcome(0, "local", storage)
    # The last is when all is made: from there nothing is made again.
    places = AGAIN[storage] if LONG else {"parquet": AGAIN[storage][1::2], "delta": AGAIN[storage][::3]}[storage]
    chain(config, output, places, outcome, OTHER)
    injector.judge(otherwise.whole, output, storage, outcome)
    checked(outcome, len(places), config, output)


if LONG:

    @pytest.mark.parametrize(("seed", "storage"), [(1, "parquet"), (2, "delta")])
    def test_a_run_that_dies_again_and_again(seed: int, storage: str, still: World) -> None:
        output = still.place / f"again-and-again-{seed}"
        config = injector.configured(still.place, output, f"storage.format={storage}")
        drawn, outcome = random.Random(seed), injector.Outcome(seed, "local", storage)
        chain(config, output, [f"{drawn.randint(24, 60)}:" for _ in range(16)], outcome)
        injector.judge(still.whole, output, storage, outcome)
        checked(outcome, 6, config, output)
