"""What a cluster's own ways of going on must not change: retries, speculation, lost shuffle files, decommissioning."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cluster import LightCluster
from tests.faults.injector import World
from tests.faults.tasks import FAULTS, all_at_once

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("cluster")]


@pytest.mark.long
def test_one_run_with_all_of_them(still: World, cluster: LightCluster, tmp_path: Path) -> None:
    """Catches: rows of failed or slow attempts that count, too (accumulators after a lost executor); rows of shuffle
    files that are gone, which nobody misses."""
    outcome = all_at_once(still, cluster, tmp_path / "faults")
    assert outcome.survived, outcome
    assert len(outcome.faults) == len(FAULTS)
