"""Memory and the soak, at their smallest: the scripts run, and look at what they say they look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory, soak

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.spark
def test_memory(tmp_path: Path) -> None:
    said = run(
        "memory.py", "--rows", "40", "--files", "1", "--sizes", "1", "--units", "3", "6", "--live-every", "2",
        "--json", str(tmp_path / "memory.json"),
    )  # fmt: skip
    assert "live heap" in said
    found = json.loads((tmp_path / "memory.json").read_text())
    figures = found["rows"]["1"]
    assert figures["units"] == 1
    assert 10 < figures["jvm_kept"] <= figures["jvm_live_heap"] < figures["jvm"]
    assert figures["largest_worker"] > 10
    assert figures["worker_processes"] >= 2  # the daemon, and one that worked
    assert min(figures["threads"].values()) > 0
    assert list(found["units"]) == ["3", "6"]
    assert found["waves"]["1"]["rows"] == figures["rows"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.spark
def test_soak(tmp_path: Path) -> None:
    """What is asked for, once each (the last run changes the threshold), and the dataset is that of one run."""
    run(
        "soak.py", "--steps", "4", "--cycle", "grow", "retry", "exclude", "forget", "--rows", "20", "--window", "5",
        "--json", str(tmp_path / "soak.json"), "--plot", str(tmp_path / "soak.svg"),
    )  # fmt: skip
    found = json.loads((tmp_path / "soak.json").read_text())
    dataset = found["dataset against an undisturbed run"]
    assert dataset["alike"] > 20
    assert [dataset[wrong] for wrong in ("lost", "too many", "unlike")] == [0, 0, 0]
    assert (found["orphans"], found["files left in _staging"], found["exit code"]) == (0, 0, 0)
    assert found["tried again"] > 0
    assert min(found["units worked on"].values()) > 0
    assert found["units"] == 3  # one of four was forgotten
    assert found["left in the temporary folder"] == []
    assert {"driver MB", "kept heap MB", "jvm files", "workers threads", "temporary files"} <= found["samples"][
        -1
    ].keys()
    assert (tmp_path / "soak.svg").read_text().startswith("<svg")


def test_processes_are_told_by_their_role(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = memory.held(os.getpid())
        assert found["driver"].processes >= 2
        assert found["driver"].rss >= found["driver"].pss >= found["driver"].uss > 0
        assert found["jvm"].rss == 0 or found["jvm"].processes >= 1
        one = memory.Held()
        one.add(child.pid)
        assert one.threads == 1
        assert one.largest == one.rss
    finally:
        child.communicate(b"\n")
    assert memory._role("java", "driver") == "jvm"
    assert memory._role("python", "jvm") == memory._role("python", "workers") == "workers"
    assert memory._role("python", "driver") == "driver"


def test_what_is_kept_is_the_heap_without_pages_of_rows() -> None:
    said = (
        " num     #instances         #bytes  class name (module)\n"
        "-------------------------------------------------------\n"
        "   1:          8946      263895768  [J (java.base@17.0.15)\n"
        "   2:        187772       39904512  [B (java.base@17.0.15)\n"
        "Total       2362778      422685856\n"
    )
    assert memory.histogram(said) == memory.Heap(422685856, 422685856 - 263895768)
    assert memory.histogram("123:\njava.io.IOException: no such process\n") is None


def test_growth_compares_an_early_and_a_late_part() -> None:
    samples = [{"minute": float(n), "rows": 0.0, "flat": 5.0, "leak": float(n)} for n in range(50)]
    found = soak.grew(samples)
    assert found["flat"] == {"early": 5.0, "late": 5.0, "times": 1.0}
    assert found["leak"]["times"] > 2
    assert "rows" not in found


def test_a_plot_says_what_its_curves_are() -> None:
    samples = [{"minute": n / 6, "rows": 10.0 * n, "jvm MB": 900.0, "jvm files": 12.0} for n in range(12)]
    drawn = soak.plot(samples, "two minutes & more")
    assert "two minutes &amp; more" in drawn
    assert "Java, resident" in drawn
    assert "at most 110" in drawn
    assert drawn.count("<polyline") == sum(len(series) for _, _, series in soak._PANELS)
