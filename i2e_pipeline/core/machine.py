"""This machine: where files lie that every process of a user on it may share, and what torch may compute on."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import fresh_folder


class ScratchError(I2EError, OSError):
    """The user's temporary folder cannot be used; the message says the remedy."""


class DeviceError(I2EError, ValueError):
    """A device that there is not, or not on this machine; the message names the setting and those there are."""


_DEVICE = re.compile(r"auto|cpu|mps|cuda(?::([0-9]{1,3}))?")


def card_of(device: str) -> int | None:
    """The number of `cuda:NUMBER`; None of every other device. Raises DeviceError for a text that names none."""
    named = _DEVICE.fullmatch(device)
    if named is None:
        raise DeviceError(f"{device!r} is no device: name auto, cpu, cuda, cuda:0 (or another card's number), or mps")
    return None if named[1] is None else int(named[1])


def choose_device(wanted: str, setting: str) -> str:
    """What a device means here, for torch; auto: cuda where there is a card, else cpu.

    setting   what messages call it
    To be called after a fork, not before: CUDA that a process has started does not work in its children.
    Raises DeviceError for a device that is not there.
    """
    import torch

    try:
        number = card_of(wanted)
    except DeviceError as error:
        raise DeviceError(f"{setting}: {error}") from None
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"{setting}=mps: torch finds no GPU of a Mac here: set {setting}=auto")
    if wanted.startswith("cuda"):
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not cards:
            raise DeviceError(
                f"{setting}={wanted}: torch {torch.__version__} finds no card here: set {setting}=auto or cpu, or see "
                "to the driver (nvidia-smi) and to a build of torch with CUDA"
            )
        if number is not None and number >= cards:
            there = "cuda:0 alone" if cards == 1 else f"cuda:0 to cuda:{cards - 1}"
            raise DeviceError(f"{setting}={wanted}: torch finds {there} here: name one that there is, or cuda")
    return wanted


def scratch(*parts: str) -> Path:
    """A folder for what this machine keeps between processes: <temporary folder>/i2e-<uid>/<parts>, made if missing.

    The temporary folder is the system's, or TMPDIR's. It is the uid that tells users apart, since a container's user
    often has no name. Only the user can enter the folder. Raises ScratchError where another user made one of that name:
    anyone may write to the temporary folder, and what lies here is run (Java's wrapper) and read as data.
    """
    try:
        own = Path(tempfile.gettempdir()) / f"i2e-{os.getuid()}"
    except OSError as error:
        raise ScratchError(f"there is no folder for temporary files ({error}): set TMPDIR to one of yours") from None
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
    except OSError as error:
        raise ScratchError(f"{own} cannot be made ({error}): set TMPDIR to a folder of yours") from None
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise ScratchError(f"{own} is no folder of this user: remove it, or set TMPDIR to another place")
    folder = own.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def laid_out(room: str, name: str, fill: Callable[[Path], None], whole: Callable[[Path], bool] = Path.is_dir) -> Path:
    """The folder `name` of a room of the scratch: filled by the first process that asks, found by all others.

    fill    puts the content into an empty folder
    whole   is what lies there as it must be? If not, it is laid out again
    A folder that can be seen under its name was filled to the end.
    """
    folder = scratch(room)
    place = folder / name
    if not (place.is_dir() and whole(place)):
        with FileLock(f"{folder}/.{name}.lock"):
            if not (place.is_dir() and whole(place)):
                with fresh_folder(place, alone=True) as fresh:
                    fill(fresh)
    return place
