"""The benchmarks of what finds entities run, and ask what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("duckdb", reason="i2e explore is not installed: the extra [explore]")

from benchmarks import explore, search


@pytest.mark.slow
def test_explore_is_built_opened_and_asked(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    size = ["--entities", "300", "--images", "1200", "--questions", "5"]
    figures = explore.main([*size, "--into", str(tmp_path / "made"), "--json", str(out)])
    assert json.loads(out.read_text()) == figures
    assert figures["built_seconds"] > 0
    assert figures["ms"].keys() >= explore.BOUNDS.keys()
    assert figures["without_index"].keys() == {"hits while typing", "an entity's page"}
    again = explore.main([*size, "--into", str(tmp_path / "made")])
    assert "built_seconds" not in again


def test_the_search_of_a_report_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    made = search.main(["--entities", "500"])
    assert made.entities == 500
    assert "500 entities" in capsys.readouterr().out
