"""The scripts that say what a run costs, at their smallest: they run, and their figures hang together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import audit
from tests.engine.test_eventlog import ended, job, task

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_audit_of_a_log(tmp_path: Path) -> None:
    events: list[Any] = [job(1, "score/wave 1", 1, at=0), task(1, 1000, 3000, shuffle=(500, 5)), ended(1, 4000)]
    (tmp_path / "log").write_text("".join(json.dumps(event) + "\n" for event in events))
    figures = audit.main([str(tmp_path / "log"), "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert figures["stages"]["score"]["shuffle_bytes"] == 500
    assert figures["driver_only"] == 0.5


@pytest.mark.slow
def test_gpu_on_this_machine(tmp_path: Path) -> None:
    """The forward pass and decoding; what wants a card is left out."""
    run(
        "gpu.py", "--device", "cpu", "--models", "ViT-B-32", "--batches", "2", "--dtype", "float32",
        "--threads", "1", "--seconds", "0.2", "--parts", "forward", "decode", "--json", str(tmp_path / "gpu.json"),
    )  # fmt: skip
    assert json.loads((tmp_path / "gpu.json").read_text())["forward"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.spark
def test_units(tmp_path: Path) -> None:
    said = run("units.py", "--units", "6", "--waves", "3")
    assert "6 units of 10 rows, 3 in a wave" in said
    assert "ms a unit and stage" in said
    assert "accumulators" in said
