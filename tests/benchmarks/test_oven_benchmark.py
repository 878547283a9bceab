"""The benchmark of OVEN's nearest entities runs, and its ways answer alike."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_ways_find_the_same_entities(tmp_path: Path) -> None:
    import oven

    oven.write(tmp_path, candidates=oven.PART + 900, width=16)
    found = {way: oven.one(way, tmp_path, queries=40, width=16, block_mb=8)["ids"] for way in oven.WAYS}
    assert found["top_one"] == found["exact"]
    assert sum(a == b for a, b in zip(found["product"], found["exact"], strict=True)) > 30


@pytest.mark.slow
def test_the_benchmark_prints_ratios_and_memory_of_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    import oven

    figures = oven.main(
        ["--candidates", "3000", "--queries", "50", "--width", "16", "--block-mb", "4", "--rounds", "1"]
    )
    assert set(figures["times_the_product_in_cpu_seconds"]) == {"top_one", "exact"}
    assert figures["answers_as_top_one"]["exact"] == 50
    assert "gallery_mb" in capsys.readouterr().out
