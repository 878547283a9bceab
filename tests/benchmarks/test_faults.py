"""benchmarks/faults.py counts what it injects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import faults


@pytest.mark.faults
def test_faults(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    figures = faults.main(["--seeds", "1", "--where", "local", "--kinds", "driver", "--json", str(file)])
    assert figures["injected"] == figures["survived"] == figures["faults"]["local: driver"]["injected"] == 1
    assert figures["rows lost"] == figures["rows twice"] == 0
    assert json.loads(file.read_text())["outcomes"][0]["faults"][0]["code"] == -9
