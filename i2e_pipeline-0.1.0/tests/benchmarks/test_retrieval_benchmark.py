"""The benchmark of retrieval runs, and measures what it says."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.slow
def test_retrieval_prints_ratios_and_memory_of_every_way_apart(capsys: pytest.CaptureFixture[str]) -> None:
    import retrieval

    figures: dict[str, Any] = retrieval.main([
        "--images", "1200", "--width", "32", "--block-mb", "4", "--ways", "product", "top_k",
    ])  # fmt: skip
    assert set(figures["times_the_baseline"]) == {"top_k"}
    assert all(way["mb_beside_vectors"] < 200 for way in figures["ways"].values())
    assert "times_the_baseline" in capsys.readouterr().out


def test_the_protocol_of_the_benchmark_scores_what_is_expected_of_random_vectors() -> None:
    import retrieval

    for way in ("gpr", "gallery", "gallery product", "exact"):
        found = retrieval.one(way, images=1200, width=32, queries=50, gallery=3000, block_mb=4)
        assert found["seconds"] > 0
        if way == "gpr":
            assert found["mAP"] == pytest.approx(found["mAP_expected_of_random_vectors"], abs=0.01)
