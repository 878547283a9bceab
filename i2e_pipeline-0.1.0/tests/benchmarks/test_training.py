"""The cost of a step is measured for each recipe, the head's share of it where there is a head."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_each_recipe_is_measured(models: Callable[[str], str]) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/training.py", "--device", "cpu", "--model", models("vit"), "--batch", "8",
         "--micro-batches", "2", "--classes", "50", "--steps", "1",
         "--peak-tflops", "0.001", "--recipes", "contrastive", "multi_task"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    contrastive, both = (json.loads(line) for line in done.stdout.splitlines())
    assert contrastive["head_share"] is None
    assert 0 < both["head_share"] < 1
    assert both["images_per_second"] > 0 < both["mfu"]
