"""Real runs, killed at seeded moments: nothing is lost or there twice, and what was committed is not done again.

LONG=1 adds chains of other seeds.
"""

from __future__ import annotations

import json

import pytest

from tests.faults import injector
from tests.faults.cluster import LightCluster
from tests.faults.conftest import LONG

pytestmark = pytest.mark.faults

LOCAL = [
    (1, "parquet", ("driver's JVM", "worker", "SIGTERM", "Ctrl-C")),
    (2, "delta", ("driver and JVM", "daemon", "SIGTERM to all")),
]
MORE_LOCAL = [
    (seed, storage, ("driver", "driver's JVM", "driver and JVM", "worker", "daemon", signal))
    for seed, storage, signal in (
        (3, "parquet", "SIGINT"), (4, "delta", "Ctrl-C"), (5, "parquet", "SIGTERM to all"), (6, "delta", "SIGTERM"),
    )
]  # fmt: skip
ON_CLUSTER = [(1, "parquet", ("executor's worker", "driver"))]
MORE_ON_CLUSTER = [
    (2, "parquet", ("Worker", "executor's daemon", "driver's JVM", "SIGTERM")),
    (3, "delta", ("executor", "Worker", "driver and JVM", "Ctrl-C")),
    (4, "parquet", ("executor's worker", "executor", "SIGTERM to all", "driver")),
]


def checked(outcome: injector.Outcome) -> None:
    print(json.dumps(outcome.as_json()))
    assert outcome.survived, outcome
    assert outcome.rows > 5000
    assert outcome.faults
    assert outcome.too_late <= 1


@pytest.mark.long
@pytest.mark.delta
@pytest.mark.parametrize(("seed", "storage", "kinds"), LOCAL + (MORE_LOCAL if LONG else []))
def test_local(seed: int, storage: str, kinds: tuple[str, ...], still: injector.World) -> None:
    checked(injector.chain(still, still.place / f"local-{seed}", seed, kinds, storage))


@pytest.mark.long
@pytest.mark.xdist_group("cluster")
@pytest.mark.delta
@pytest.mark.parametrize(("seed", "storage", "kinds"), ON_CLUSTER + (MORE_ON_CLUSTER if LONG else []))
def test_on_a_cluster(
    seed: int, storage: str, kinds: tuple[str, ...], still: injector.World, cluster: LightCluster
) -> None:
    output = still.place / f"cluster-{seed}"
    checked(injector.chain(still, output, seed, kinds, storage, cluster, cluster.overrides()))
