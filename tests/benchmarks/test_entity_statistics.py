"""The benchmark of statistics of entities runs as it is documented, and a famous entity is no task of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.spark
@pytest.mark.slow
def test_a_famous_entity_is_shared_out(tmp_path: Path) -> None:
    """In a process of its own: a session that runs already cannot be given a log."""
    command = [sys.executable, "benchmarks/entity_statistics.py", "--pairs", "20000", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "figures.json")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures.keys() == {"basic", "full"}
    assert figures["basic"]["cpu_microseconds_per_pair"] < figures["full"]["cpu_microseconds_per_pair"]
    for of in figures.values():
        assert of["spilled_bytes"] == 0
        assert of["skew_records"] < 2  # three in ten pairs are of one entity; gathered, its task had 4 times the median
    assert 0 < figures["basic"]["shuffled_bytes_per_pair"] < figures["full"]["shuffled_bytes_per_pair"] < 2_000
