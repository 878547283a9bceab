"""benchmarks/damage.py damages an output, and says what was found."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import damage
from i2e_pipeline.core.config import Config


@pytest.mark.slow
def test_damage(reported: Config, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    damage.main(["--output", reported.output, "--draws", "12", "--repairs", "0", "--json", str(told)])
    figures = json.loads(told.read_text(encoding="utf-8"))
    assert figures["found_and_named"] == figures["draws"] == 12
    assert sum(count for _, count in figures["by_kind"].values()) == 12


def test_a_file_is_never_what_it_was(tmp_path: Path) -> None:
    """Catches: zeros over zeros, counted as a damage that nobody found."""
    paths = [tmp_path / name for name in "abc"]
    kinds = set()
    for seed in range(300):
        for path, content in zip(paths, (b"", bytes(5000), random.Random(1).randbytes(3000)), strict=True):
            path.write_bytes(content)
        path = paths[seed % 3]
        before = path.read_bytes()
        kinds.add(damage.damage(path, paths, random.Random(seed)))
        assert not path.exists() or path.read_bytes() != before
    assert kinds == set(damage.KINDS)
