"""A run that dies at a commit point: after staging, between moves, before a record and after it, within Delta's commit.

The deaths of a chain follow each other on one output, in the order in which a run comes by their places.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from i2e_pipeline.engine.records import Commit
from i2e_pipeline.engine.tables import Tables
from tests.cluster.tables import tables
from tests.faults import injector
from tests.faults.conftest import LONG
from tests.faults.injector import World

pytestmark = [pytest.mark.faults, pytest.mark.delta]

FIRST = {
    "parquet": [
        "1: write_bytes .*/units/",  # a unit is known, the next is not
        r"1: move_file .*/kb/",  # after staging, between two of its moves
        "write_bytes .*/_commits/extract/",  # all is in place, and no record
        "replace .*/_commits/score/",  # the record is written, and has no name yet
        "remove .*/_staging/label",  # the record counts, what it was made in lies there
        "write_bytes .*/i2e/manifest.json",
    ],
    "delta": [
        "1: write_transaction ",  # the table of rejects is there, and another stage's rows are to come
        r"DeltaLog\.replace .*/mentions",  # moved, and not in the log
        "after the transaction .*/scores",  # in the log, and no record
        "create_table .*/i2e/images",
    ],
}
"""Of runs that make everything for the first time."""
AGAIN = [
    "1: remove .*/labels/",  # one of two units' old files are gone
    "move_file .*/i2e/images/",  # the manifest is gone, too
    "1: DeltaLog|1: move_file .*/i2e/images/",
    "write_bytes .*/i2e/manifest.json",  # all is made, and the manifest is not written again
]
"""Of runs that make over again what is there."""
OTHER = "label.threshold=0.4"


def died(config: Path, at: str, *overrides: str) -> bool:
    """Whether a run came by that place, and died there; it has ended well else."""
    listed = config.with_suffix(".changes")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.dying", "run", "--config", str(config), "--set", "run.wave_units=1",
         *overrides],
        cwd=injector.ROOT, env={**os.environ, "I2E_DIES_AT": at, "I2E_CHANGES": str(listed)},
        capture_output=True, text=True, timeout=injector.RUNS,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode != 0


def chain(config: Path, output: Path, places: Sequence[str], outcome: injector.Outcome, *overrides: str) -> None:
    """Deaths at these places, each in a run of its own, and a run to the end."""
    before: dict[str, Commit] = {}
    for place in places:
        if died(config, place, *overrides):
            last = config.with_suffix(".changes").read_text().splitlines()[-1]
            outcome.faults.append(injector.Fault("death at a change", last.replace(str(output), ""), 0.0, code=-9))
        else:
            outcome.too_late += 1
        outcome.runs += 1
        before = injector.kept(output, before if not overrides else {}, outcome)
    code, said = injector.ran(config, "--set", "run.wave_units=1", *overrides)
    assert code == 0, said
    injector.kept(output, before, outcome)


def checked(outcome: injector.Outcome, faults: int, config: Path, output: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "i2e_pipeline.cli", "clean", "--config", str(config)],
        cwd=injector.ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(output.rglob(".*.tmp"))
    assert not Tables(str(output)).orphans()
    print(json.dumps(outcome.as_json()))
    assert outcome.survived, outcome
    assert len(outcome.faults) >= faults, outcome
    assert outcome.rows > 5000


@pytest.fixture(scope="session")
def otherwise(still: World) -> World:
    """What the world's run makes when labels are chosen by another threshold."""
    output = still.place / "otherwise"
    shutil.copytree(still.place / "whole", output)
    config = injector.configured(still.place, output, OTHER)
    code, said = injector.ran(config)
    assert code == 0, said
    found = tables(output)
    assert found["i2e/images"] != still.whole["i2e/images"]
    return World(still.place, found, still.pace)


@pytest.mark.parametrize("storage", ["parquet", "delta"] if LONG else ["delta"])
def test_a_first_run(storage: str, still: World) -> None:
    output = still.place / f"first-{storage}"
    config = injector.configured(still.place, output, f"storage.format={storage}")
    outcome = injector.Outcome(0, "local", storage)
    places = FIRST[storage] if LONG else FIRST[storage][1::2]
    chain(config, output, places, outcome)
    injector.judge(still.whole, output, storage, outcome)
    checked(outcome, len(places), config, output)


@pytest.mark.parametrize("storage", ["parquet", "delta"] if LONG else ["parquet"])
def test_a_run_that_replaces_what_is_there(storage: str, still: World, otherwise: World) -> None:
    output = still.place / f"again-{storage}"
    config = injector.configured(still.place, output, f"storage.format={storage}")
    if storage == "parquet":
        shutil.copytree(still.place / "whole", output)
    else:
        code, said = injector.ran(config)
        assert code == 0, said
    outcome = injector.Outcome(0, "local", storage)
    places = AGAIN if LONG else AGAIN[1::2]
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
