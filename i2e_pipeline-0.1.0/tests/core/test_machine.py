from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from i2e_pipeline.core.machine import ScratchError, scratch


def test_scratch_lies_in_tmpdir_whatever_its_name_and_is_the_users_alone(tmp_path: Path) -> None:
    """Catches: a path cut at a blank, and a uid without a name (a container's) that getpass cannot resolve."""
    place = tmp_path / "with a blank"
    place.mkdir()
    script = (
        "import os, pwd\n"
        "def nobody(*_): raise KeyError('no such uid')\n"
        "pwd.getpwuid = nobody\n"
        "from i2e_pipeline.core.machine import scratch\n"
        "print(scratch('a', 'b'))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("USER", "LOGNAME", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**environment, "TMPDIR": str(place)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(place / f"i2e-{os.getuid()}" / "a" / "b")
    assert Path(done.stdout.strip()).is_dir()
    assert (place / f"i2e-{os.getuid()}").stat().st_mode & 0o077 == 0


def test_a_link_in_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: another user's link in /tmp decides where Java's wrapper, which is run, is written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"i2e-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ScratchError, match="is no folder of this user: remove it, or set TMPDIR"):
        scratch("java")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_temporary_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ScratchError, match="set TMPDIR to a folder of yours"):
        scratch("java")
