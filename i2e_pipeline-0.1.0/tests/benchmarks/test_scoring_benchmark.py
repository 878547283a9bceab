"""The benchmark of scoring runs, on its defaults' kind of input: one that holds damaged images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import scoring
from i2e_pipeline.core.config import ImageLimits
from tests.small_models import picture, stored, write_shard


def test_damaged_images_are_left_out_and_the_rows_are_those_of_the_whole_ones(tmp_path: Path) -> None:
    """Catches: baselines that die of the sample's damaged images ("cannot identify image file")."""
    whole = [stored(picture(i), "JPEG") for i in range(3)]
    damaged = [None, b"", b"<html>", whole[0][:40]]
    write_shard(tmp_path / "a.parquet", [*damaged, whole[0]])
    write_shard(tmp_path / "b.parquet", [damaged[2], whole[1], whole[2], whole[0]])
    work = scoring.read_work([f"{tmp_path}/*.parquet"], "jpg", 3, candidates=2, entities=5, limits=ImageLimits())
    assert work.stored == whole
    assert list(zip(*scoring.columns(work), strict=True)) == [(0, 4), (1, 1), (1, 2)]
    with pytest.raises(SystemExit, match="none of the images"):
        scoring.read_work([write_shard(tmp_path / "c.parquet", damaged)], "jpg", 3, 2, 5, ImageLimits())


@pytest.mark.slow
def test_every_way_scores_the_same_images(tmp_path: Path, models: Callable[[str], str]) -> None:
    """Catches: published entry points that no test ever ran (MetaCLIP, cc2dataset)."""
    images = [b"<html>", *(stored(picture(i), "JPEG") for i in range(8))]
    shard = write_shard(tmp_path / "a.parquet", images)
    out = tmp_path / "figures.json"
    model = models("vit")
    figures = scoring.main(["--model", model, "--pairs", shard, "--images", "8", "--repeats", "1", "--json", str(out)])
    assert json.loads(out.read_text()) == figures
    assert figures["images"] == 8
    assert set(figures["images_per_second"]) == {"pair", "batch", "cached", "kernel"}
    assert set(figures["milliseconds_per_image"]) == {"read", "decode", "preprocess", "encode", "dot"}
