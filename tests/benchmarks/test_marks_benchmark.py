"""What benchmarks/marks.py prints is of the draw and the intervals that `i2e explore` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import marks


def test_every_setting_is_simulated_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "marks.json"
    rows = marks.main(["--rounds", "2", "--labels", "6000", "--json", str(path)])
    assert json.loads(path.read_text()) == rows
    assert len(rows) == 10 * len(marks.MARKS)
    for row in rows:
        assert 0 <= row["precision"]["covers"] <= 1
        assert 0 < row["precision"]["width"] < 0.6
        assert {"Kish", "Jeffreys", "gamma"} <= row.keys()
    few, many = (
        [r["precision"]["width"] for r in rows if (r["marks"], r["published"]) == (n, 0.3)] for n in (30, 1000)
    )
    assert max(many) < min(few)
    printed = capsys.readouterr().out
    assert printed.count("\n|") + 1 == len(rows) + 2
    assert "30 marks: the precision is covered" in printed


def test_a_simulated_run_has_the_precision_that_it_was_asked_for() -> None:
    for calibrated in (True, False):
        table, is_right = marks.run(0.9, calibrated, 20_000, 0.3, seed=3)
        published = table["reason"].is_null().to_numpy()
        assert is_right[published].mean() == pytest.approx(0.9, abs=0.015)
        said = table["probability"].to_numpy()[published].mean()
        assert said == pytest.approx(0.9 if calibrated else marks.SAID, abs=0.01)
