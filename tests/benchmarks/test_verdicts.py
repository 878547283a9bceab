"""The benchmark of verdicts, small: benchmarks/planted.py is the verifier, which tests of the stage ask, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import verdicts


@pytest.mark.long
def test_a_verifier_that_knows_the_truth_brings_what_it_knows(
    tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "NOISE", (0.0,))
    found = verdicts.main(["--rows", "160", "--folder", str(tmp_path)])
    before, after = (found["labels"]["0"][by] for by in ("text and image", "and verdicts"))
    assert after["right"] - after["wrong"] >= before["right"] - before["wrong"] > 0
    told = found["labels"]["0"]["told"]
    assert told["pairs looked at"] >= told["pairs in the band"] >= told["pairs asked about"] > 0
    by = {(row["low"], row["high"], row["budget"]): row for row in found["questions"]}
    assert by[0.0, 1.0, 1.0]["per_million_pairs"] == 1e6
    of_default = by[0.2, 0.95, 0.25]
    assert of_default["per_million_pairs"] == pytest.approx(
        1e6 * told["pairs asked about"] / told["pairs looked at"], rel=0.1
    )
    assert of_default["in_band"] == pytest.approx(told["pairs in the band"] / told["pairs looked at"])
