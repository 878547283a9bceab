"""The benchmark of heads runs on the sample's images, and measures entities that heads were not fitted to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import heads
from i2e_pipeline.sample import watermark


@pytest.mark.slow
def test_planted_watermarks(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    figures = heads.main(["--parquet", str(world / "pairs"), "--images", "140", "--json", str(out)])
    assert json.loads(out.read_text()) == figures
    for kind in ("watermark, banner", "watermark, across", "watermark, tiled", "blown up"):
        assert 0.3 <= figures[kind]["auc"] <= 1


@pytest.mark.parametrize("kind", watermark.KINDS)
@pytest.mark.parametrize("size", [(64, 200), (300, 90), (16, 16)])
def test_a_watermark_is_there_and_covers_no_more_than_it_should(kind: str, size: tuple[int, int]) -> None:
    plain = Image.new("RGB", size, (90, 120, 150))
    for seed in range(5):
        marked = watermark.watermarked(plain, np.random.default_rng(seed), kind)
        again = watermark.watermarked(plain, np.random.default_rng(seed), kind)
        assert marked.size == size
        assert marked.tobytes() == again.tobytes()
        changed = (np.asarray(marked) != np.asarray(plain)).any(axis=2)
        assert 0 < changed.mean() < 0.9
