"""The start of a training on a simulated store: what is read with an index there and without."""

from __future__ import annotations

import time

import pytest

from benchmarks import starting
from benchmarks.slow_store import SlowStore
from i2e_pipeline.core import files


@pytest.mark.slow
def test_a_start_from_the_index_asks_for_no_file_of_images() -> None:
    found = starting.main(["--images", "1e5", "1e6", "--rows", "2000", "12000", "--latency", "0.001"])
    (small, large), (first, second) = found["stored"], found["made"]
    assert (small["files"], large["files"]) == (10, 100)
    assert large["requests"] < small["requests"] + 20  # names alone: a request per thousand
    assert second["requests"] > first["requests"] + 10
    assert large["images"] == 1_000_000
    assert second["images"] == 12_000


def test_the_store_waits_and_counts() -> None:
    with SlowStore({"a/b": b"x" * 1000, "a/c": 7}, latency=0.01, bandwidth=100_000) as store:
        began = time.perf_counter()
        assert files.read_bytes("slow://bucket/a/b") == b"x" * 1000
        assert time.perf_counter() - began >= 0.02  # two requests at least, and the bytes take as long as one
        assert [(i.path, i.size) for i in files.list_files("slow://bucket/a")] == [("b", 1000), ("c", 7)]
        files.write_bytes("slow://bucket/a/d", b"new")
        assert store.objects["a/d"] == b"new"
        assert not files.exists("slow://bucket/e")
        assert store.requests >= 5
    with pytest.raises(files.StoreError):
        files.read_bytes("slow://bucket/a/b")
