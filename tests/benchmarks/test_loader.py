"""The loader's benchmark runs, on the sample's images and on files that are named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import loader
from tests.small_models import picture, stored


def test_stored_images_are_repeated_and_broken_ones_left_out(tmp_path: Path) -> None:
    images = [stored(picture(0)), b"<html>", None, stored(picture(1))]
    pq.write_table(pa.table({"photo": pa.array(images, pa.binary())}), tmp_path / "a.parquet")
    found = loader.read_stored([str(tmp_path)], "photo", 5)
    assert found == [images[0], images[3], images[0], images[3], images[0]]


@pytest.mark.slow
def test_every_way_loads_all_images(tmp_path: Path) -> None:
    images = [stored(picture(i), "JPEG") for i in range(70)]
    pq.write_table(pa.table({"photo": pa.array(images, pa.binary())}), tmp_path / "a.parquet")
    out = tmp_path / "figures.json"
    sources = ["--parquet", str(tmp_path / "a.parquet"), "--image-column", "photo", "--json", str(out)]
    sizes = ["--images", "128", "--side", "32", "--pixels", "48", "--kilobytes", "1"]
    figures = loader.main([*sources, *sizes, "--repeats", "1", "--workers", "1", "--store", "1"])
    assert json.loads(out.read_text(encoding="utf-8")) == figures
    assert figures["images"] == 128
    assert 0.5 < figures["kilobytes_per_image"] < 2
    assert figures["store_times_bare"] > 0
    for unit in ("images_per_second", "images_per_cpu_second"):
        assert set(figures[unit]) == {"webdataset", "bare", "loader", "text", "one", "store", "connection"}
        assert all(rate > 0 for rate in figures[unit].values())
