"""The benchmark of decoders runs, says what is missing, and compares the same crops."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import decoders
from tests.small_models import picture, stored


def test_every_decoder_that_is_there_is_measured_on_the_same_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a way that decodes or crops something else than the others; one that is missing without a word."""
    images = [stored(picture(i, (96, 72)), "JPEG") for i in range(6)]
    pq.write_table(pa.table({"photo": pa.array(images, pa.binary())}), tmp_path / "a.parquet")

    def missing() -> decoders.Decode:
        raise ImportError("not here")

    monkeypatch.setattr(decoders, "_simplejpeg", missing)
    out = tmp_path / "figures.json"
    sources = ["--parquet", str(tmp_path / "a.parquet"), "--image-column", "photo", "--json", str(out)]
    figures = decoders.main(
        [*sources, "--images", "6", "--pixels", "96", "--kilobytes", "4", "--side", "48", "--repeats", "1"]
    )
    assert json.loads(out.read_text(encoding="utf-8")) == figures
    assert figures["left_out"]["simplejpeg"] == "ImportError: not here"
    assert "simplejpeg" in capsys.readouterr().out
    ways = figures["ways"]
    assert set(ways) >= {"pillow", "loader", "pillow, scaled", "torchvision"}
    assert ways["pillow"]["times_pillow"] == ways["pillow"]["decoding_times_pillow"] == 1
    assert ways["pillow"]["largest_difference"] == 0
    for name in ("loader", "torchvision"):
        assert ways[name]["mean_difference"] < 1
        assert ways[name]["times_pillow"] > 0
    for kinds in figures["refused"].values():
        assert kinds["cut in half"] == {"refused": 6, "refused_by_the_loader_alone": 0}
