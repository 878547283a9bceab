"""A part of the faults that `make test` injects, on the world that its other tests share: a kill, and two deaths."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.tables import tables
from tests.faults import injector
from tests.faults.deaths import died

pytestmark = [pytest.mark.slow, pytest.mark.spark]


@pytest.fixture(scope="module")
def still(whole: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> injector.World:
    """The run over the shared world that nobody disturbed."""
    if not Path("/proc/self/task").exists():
        pytest.skip("Linux's /proc says which process is whose")
    place = tmp_path_factory.mktemp("bounded")
    (place / "input").symlink_to(world)
    return injector.World(place, tables(whole), injector.pace(whole))


def test_two_deaths_and_a_kill_on_one_output(still: injector.World) -> None:
    """Catches: rows that lie in their table and have no record, or whose staging is still there, counted twice; work
    that was done, done again."""
    output = still.place / "out"
    config = injector.configured(still.place, output)
    for place in ("1: write_bytes .*/_commits/pairs/", "remove .*/_staging/extract"):  # before a record, and after one
        before = injector.commits(output)
        assert died(config, place)
        now = injector.commits(output)
        assert before.items() <= now.items()
    outcome = injector.chain(still, output, 1, ["driver"])  # and from there to the end
    after = injector.commits(output)
    assert {name: after[name] for name in now} == now
    assert outcome.survived, outcome
    assert [fault.kind for fault in outcome.faults] == ["driver"]
    assert outcome.rows > 5000
