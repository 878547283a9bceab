"""Files that come with a package, as paths, also where the package is imported from a zip (`--py-files`)."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from i2e_pipeline.core.files import fingerprint
from i2e_pipeline.core.machine import laid_out


@lru_cache(maxsize=64)
def folder(package: str) -> Path:
    """The folder of a package's files. Of a package in a zip: this machine's copy, laid out once and named by content.

    `importlib.resources.as_file` would do for one file; a model is a folder, and what it lays out is gone after the
    block that asked.
    """
    place = Path(next(iter(import_module(package).__path__)))
    archive = next((p for p in place.parents if p.is_file()), None)
    if archive is None:
        return place

    def unpack(fresh: Path) -> None:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(fresh)

    copy = laid_out("packages", f"{archive.stem}-{fingerprint(str(archive))[:16]}", unpack)
    return copy / place.relative_to(archive)
