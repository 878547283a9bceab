"""A part of the faults that `make test` injects, on the world that its other tests share: a kill, and two deaths."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.tables import tables
from tests.faults import injector
from tests.faults.deaths import chain

pytestmark = [pytest.mark.slow, pytest.mark.spark]


@pytest.fixture(scope="module")
def still(whole: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> injector.World:
    """The run over the shared world that nobody disturbed."""
    if not Path("/proc/self/task").exists():
        pytest.skip("Linux's /proc says which process is whose")
    place = tmp_path_factory.mktemp("bounded")
    (place / "input").symlink_to(world)
    return injector.World(place, tables(whole), injector.pace(whole))


def judged(still: injector.World, output: Path, outcome: injector.Outcome, faults: int) -> None:
    injector.judge(still.whole, output, "parquet", outcome)
    assert outcome.survived, outcome
    assert len(outcome.faults) == faults, outcome
    assert outcome.rows > 5000


def test_a_killed_driver(still: injector.World) -> None:
    outcome = injector.chain(still, still.place / "killed", 1, ["driver"])
    judged(still, still.place / "killed", outcome, 1)


def test_deaths_before_a_record_and_after_it(still: injector.World) -> None:
    """Catches: rows that lie in their table and have no record, or whose staging is still there, counted twice."""
    output = still.place / "died"
    outcome = injector.Outcome(0, "local", "parquet")
    places = ["write_bytes .*/_commits/link/", "remove .*/_staging/score"]
    chain(injector.configured(still.place, output), output, places, outcome)
    judged(still, output, outcome, 2)
