from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copied(world: Path, whole: Path, tmp_path: Path) -> Path:
    """The built output, to be changed."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"
