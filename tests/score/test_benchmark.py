from __future__ import annotations

import json
from pathlib import Path

from benchmarks import scoring
from tests.small_models import picture, stored, write_shard


def test_the_benchmark_runs(tmp_path: Path, models) -> None:
    """Catches: published entry points that no test ever ran (MetaCLIP, cc2dataset)."""
    shard = write_shard(tmp_path / "a.parquet", [stored(picture(i), "JPEG") for i in range(8)])
    out = tmp_path / "figures.json"
    model = models("vit")
    figures = scoring.main(["--model", model, "--pairs", shard, "--images", "8", "--repeats", "1", "--json", str(out)])
    assert json.loads(out.read_text()) == figures
    assert figures["images"] == 8
    assert set(figures["images_per_second"]) == {"pair", "batch", "cached", "kernel"}
    assert set(figures["milliseconds_per_image"]) == {"read", "decode", "preprocess", "encode", "dot"}
