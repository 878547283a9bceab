"""The benchmark of near-duplicates runs on the sample's images, and finds what it must."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import near_duplicates


@pytest.mark.slow
def test_planted_copies_and_growth(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    sizes = ["--images", "60", "--copies", "10", "--grow", "300", "--stock", "2000", "--cosine", "0.97"]
    figures = near_duplicates.main(["--parquet", str(world / "pairs"), *sizes, "--json", str(out)])
    assert json.loads(out.read_text()) == figures
    by_hash = figures["planted"]["hash"]["found"]
    assert min(by_hash[kind] for kind in ("re-encoded, quality 30", "scaled to 1/2", "mirrored")) >= 0.9
    assert by_hash["cropped by 20 %"] <= 0.1
    assert figures["planted"]["hash"]["merged"] == 0
    with_vectors = figures["planted"]["hash and cosine 0.97"]["found"]
    assert all(with_vectors[kind] >= share for kind, share in by_hash.items())
    growth = figures["growth"]
    assert growth["16x"]["images"] == 16 * growth["1x"]["images"]
    # One leader each, beside the few copies that are far from it.
    assert growth["stock"]["compared_per_image"] <= 16 * 8
    assert growth["stock"]["largest_bucket"] > 1000
