"""The benchmark of growth, small: it counts what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import growth


@pytest.mark.slow
@pytest.mark.spark
def test_a_unit_is_written_again_where_its_rows_changed(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    small = ["--rows", "160", "--units", "4", "--more", "1", "--rules", "1", "--json", str(out)]
    figures = growth.main(small)
    assert json.loads(out.read_text()) == figures
    found = figures["no floor"]
    assert found["units"] == 4
    assert found["needlessly"] == found["missed"] == 0
    assert found["rows of all"] > 20
