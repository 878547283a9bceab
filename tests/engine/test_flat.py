"""What a driver holds does not grow with the waves and runs that it has seen: a week of them is one process.

Counts of what is held, and never bytes or seconds.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.engine.toys import Read, config, content, toys, write_shard


def held(spark: Any) -> dict[str, int]:
    """What this process and its Java hold that somebody must give back."""
    from py4j.finalizer import ThreadSafeFinalizerCollection
    from pyspark.accumulators import _accumulatorRegistry

    gc.collect()
    java = spark.sparkContext._jvm.java.lang.management.ManagementFactory
    found = {
        "threads": threading.active_count(),
        "accumulators": len(_accumulatorRegistry),
        "Java objects": len(ThreadSafeFinalizerCollection.finalizers),
        "Java threads": int(java.getThreadMXBean().getThreadCount()),
    }
    return found | ({"files": len(os.listdir("/proc/self/fd"))} if Path("/proc/self/fd").exists() else {})


ALLOWED = {"threads": 0, "accumulators": 0, "Java objects": 10, "Java threads": 20, "files": 4}
"""How many more there may be after 90 waves than after 10. Java's pools take threads as they like, up to a limit, and
garbage is collected when Python likes; a thing that is left of each wave is 80."""


@pytest.mark.slow
def test_nothing_is_left_of_a_wave(tmp_path: Path, spark: Any) -> None:
    """Catches: a connection, a listener, an accumulator or a handle that each wave leaves behind."""
    settings = config(tmp_path, pairs={"path": f"{tmp_path}/in/*.parquet", "files_per_unit": 1}, run={"wave_units": 1})
    for n in range(10):
        write_shard(tmp_path / "in" / f"{n:03}.parquet", 2 * n, 2 * n + 1)
    toys(settings, spark).run()
    before = held(spark)
    for n in range(10, 90):
        write_shard(tmp_path / "in" / f"{n:03}.parquet", 2 * n, 2 * n + 1)
    toys(settings, spark).run()
    after = held(spark)
    assert {name: after[name] - before[name] for name in before if after[name] - before[name] > ALLOWED[name]} == {}
    assert os.listdir(tmp_path / "out" / "_commits" / "read")
    assert not (tmp_path / "out" / "_staging").exists() or not os.listdir(tmp_path / "out" / "_staging")


@pytest.mark.slow
def test_nothing_is_left_of_a_run(tmp_path: Path, spark: Any) -> None:
    """Catches: a pipeline, its tables or its records that something of the process holds for ever."""
    settings = config(tmp_path)
    gone: list[weakref.ref[Any]] = []

    def grown(n: int) -> None:
        write_shard(tmp_path / "in" / f"{n:03}.parquet", n, n + 1)
        pipeline = toys(settings, spark, read=Read())
        run, _ = pipeline.run()
        gone.extend(map(weakref.ref, (pipeline, pipeline.tables, run)))

    grown(0)
    before = held(spark)
    for n in range(1, 12):
        grown(2 * n)
    after = held(spark)
    assert [ref() for ref in gone if ref() is not None] == []
    assert {name: after[name] - before[name] for name in before if after[name] - before[name] > ALLOWED[name]} == {}
    assert len(content(toys(settings, spark))["numbers"]) == 12
