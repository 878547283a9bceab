"""The contrastive benchmark runs, and its baseline does the same work.

Catches: a baseline of another loss, or of other weights, next to which anything looks fast.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import contrastive


@pytest.mark.slow
def test_contrastive(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    small = ["--pairs", str(tiny / "pairs" / "*.parquet"), "--batch", "6", "--steps", "2", "--rounds", "1"]
    figures = contrastive.main([*small, "--json", str(out)])
    assert json.loads(out.read_text()) == figures
    assert set(figures["times_open_clip"]) == {"open_clip", "whole", "step", "entities"}
    assert figures["times_open_clip"]["open_clip"] == 1
    assert figures["tokens"]["step"] < figures["tokens"]["whole"] == 77
    # Four steps from the same weights: the same loss, or they were not the same steps.
    losses = figures["loss"]
    assert losses["whole"] == pytest.approx(losses["open_clip"], abs=2e-3)
    assert losses["step"] == pytest.approx(losses["open_clip"], abs=2e-3)
    assert losses["entities"] <= losses["step"] + 2e-3
