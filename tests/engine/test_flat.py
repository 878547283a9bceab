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

from i2e_pipeline.engine import garbage
from tests.engine.toys import Read, config, content, toys, write_shard


def held(spark: Any) -> dict[str, int]:
    """What this process and its Java hold that somebody must give back."""
    from py4j.finalizer import ThreadSafeFinalizer
    from pyspark.accumulators import _accumulatorRegistry

    gc.collect()
    java = spark.sparkContext._jvm.java.lang.Thread.getAllStackTraces().keySet()
    found = {
        "threads": threading.active_count(),
        "accumulators": len(_accumulatorRegistry),
        "Java objects": len(ThreadSafeFinalizer.finalizers),
        # Those without a name serve a thread of Python each. Spark's have one, and its pools have a limit.
        "Java threads": sum(thread.getName().startswith("Thread-") for thread in java),
    }
    return found | ({"files": len(os.listdir("/proc/self/fd"))} if Path("/proc/self/fd").exists() else {})


ALLOWED = {"threads": 0, "accumulators": 0, "Java objects": 10, "Java threads": 4, "files": 4}
"""How many more there may be after 90 waves than after 10: a thing that is left of each wave is 80."""


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


def test_what_queries_left_in_java_is_given_back_between_waves(
    tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: plans and broadcast tables of queries that are over, held by Python's garbage until it is collected."""
    monkeypatch.setattr(garbage, "EVERY", 0.0)
    settings = config(tmp_path, pairs={"path": f"{tmp_path}/in/*.parquet", "files_per_unit": 1}, run={"wave_units": 1})
    for n in range(8):
        write_shard(tmp_path / "in" / f"{n:03}.parquet", 2 * n, 2 * n + 1)
    before = held(spark)["Java objects"]
    gc.disable()
    try:
        toys(settings, spark).run()
        from py4j.finalizer import ThreadSafeFinalizer

        left = len(ThreadSafeFinalizer.finalizers) - before
    finally:
        gc.enable()
    assert left < 60  # of the last wave alone; all of them leave hundreds


def test_garbage_is_collected_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[int] = []
    monkeypatch.setattr(garbage.gc, "collect", lambda: collected.append(1))
    monkeypatch.setattr(garbage, "_last", -1e9)
    garbage.collect()
    garbage.collect()
    assert len(collected) == 1
    monkeypatch.setattr(garbage, "EVERY", 0.0)
    garbage.collect()
    assert len(collected) == 2
