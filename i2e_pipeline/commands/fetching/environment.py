"""An environment of its own for img2dataset, which pins packages older than those here."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from i2e_pipeline.core.errors import ExitCode, I2EError
from i2e_pipeline.core.packaged import folder

log = logging.getLogger(__name__)

_WHOLE = "installed"
"""A file of this name is written into an environment last."""


class FetchError(I2EError, RuntimeError):
    """Fetching cannot begin, or did not end well; the message says what to do."""


class FetchFailed(FetchError):
    """Fetching began and did not end well; the same command goes on."""

    exit_code = ExitCode.FAULT


def python_for(named: str | None) -> str:
    """A Python that has img2dataset: the named one, or that of this user's environment, which is made on first use.

    Raises FetchError with the remedy where there is none and none can be made.
    """
    if named is not None:
        _version(named, _remedy(named))
        return named
    place = _place()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{place.name}.lock")):
            if not (place / _WHOLE).exists():
                _make(place, _requirements())
    except OSError as error:
        raise FetchError(f"{place.parent} cannot be written ({error}): set XDG_CACHE_HOME, or fetch.python") from None
    return _python(place)


def said_of(named: str | None) -> str:
    """Which img2dataset there is and where, or that there is none yet; nothing is made.

    Raises FetchError where the named Python has none, or what was made is damaged.
    """
    if named is not None:
        return f"img2dataset {_version(named, _remedy(named))} of {named} (fetch.python)"
    place = _place()
    if not (place / _WHOLE).exists():
        return f"not there yet: `i2e fetch` installs img2dataset into {place}, once (650 MB)"
    return f"img2dataset {_version(_python(place), f'remove {place}: `i2e fetch` makes it anew')} in {place}"


def _place() -> Path:
    """The environment of this user, of these requirements and this Python."""
    about = hashlib.blake2b(_requirements().read_bytes() + sys.version.encode(), digest_size=8).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "i2e-pipeline" / "fetch" / about


def _python(place: Path) -> str:
    return str(place / "bin" / "python")


def _remedy(named: str) -> str:
    return f"fetch.python={named}: name a Python with `pip install -r {_requirements()}`, or leave it unset"


def _requirements() -> Path:
    return folder("i2e_pipeline.commands.fetching") / "requirements.txt"


def _make(place: Path, wanted: Path) -> None:
    log.info("fetch: installing img2dataset into %s, once (650 MB)", place)
    shutil.rmtree(place, ignore_errors=True)
    python, uv = _python(place), _uv()
    if uv is not None:
        steps: list[list[str]] = [
            [uv, "venv", "--quiet", "--python", sys.executable, str(place)],
            [uv, "pip", "install", "--quiet", "--python", python, "--requirement", str(wanted)],
        ]
    else:
        steps = [
            [sys.executable, "-m", "venv", str(place)],
            [python, "-m", "pip", "install", "--quiet", "--requirement", str(wanted)],
        ]
    remedy = f"make one where the registry can be reached (`pip install -r {wanted}`), and name it as fetch.python"
    for step in steps:
        _call(step, f"no environment for img2dataset at {place}: {remedy}", 1800)
    _version(python, f"{place}: {remedy}")
    (place / _WHOLE).touch()


def _uv() -> str | None:
    """Beside this Python, or on the path."""
    return shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")


def _version(python: str, remedy: str) -> str:
    """The version of img2dataset that a Python has; of its files, since to import it would take seconds."""
    asked = (
        "import sys, importlib.metadata as m\n"
        "try: print(m.version('img2dataset'))\n"
        "except m.PackageNotFoundError: sys.exit('no img2dataset')"
    )
    return _call([python, "-I", "-c", asked], remedy, 60).strip()


def _call(command: Sequence[str], remedy: str, seconds: float) -> str:
    """What a command says. Raises FetchError with the remedy where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{error}. {remedy}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        raise FetchError(f"{said or f'{command[0]} ended with {done.returncode}'}. {remedy}")
    return done.stdout
