"""The benchmark of growth, small: it counts what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import growth


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.spark
def test_a_unit_is_written_again_where_its_rows_changed(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    small = ["--rows", "400", "--units", "5", "--more", "1", "--rules", "2", "--json", str(out)]
    figures = growth.main(small)
    assert json.loads(out.read_text()) == figures
    plain, floor = figures["no floor"], figures["floor of 5"]
    assert plain["units"] == 5
    assert plain["changed"] == plain["written again"] == 0
    assert floor["changed"] == floor["written again"] > 0
    assert floor["needlessly"] == floor["missed"] == 0
    assert floor["moved"] == 0
    assert 0 < floor["rows that differ"] <= floor["rows of these"]
    assert plain["rows of all"] > 50
