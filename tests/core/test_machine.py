from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from i2e_pipeline.core.machine import DeviceError, ScratchError, choose_device, scratch


def test_a_device_that_is_not_here_is_said_of_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: messages of torch's, which name no setting, when the model has long been read."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [choose_device(one, "x") for one in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    with pytest.raises(DeviceError, match=r"evaluate\.device=cuda:7: torch finds cuda:0 to cuda:1 here: name one"):
        choose_device("cuda:7", "evaluate.device")
    with pytest.raises(DeviceError, match=r"score\.device: 'tpu' is no device: name auto, cpu, cuda"):
        choose_device("tpu", "score.device")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert choose_device("auto", "x") == "cpu"
    for wanted, says in (("cuda", "finds no card here: set x=auto or cpu"), ("mps", "no GPU of a Mac here")):
        with pytest.raises(DeviceError, match=f"x={wanted}: .*{says}"):
            choose_device(wanted, "x")


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
