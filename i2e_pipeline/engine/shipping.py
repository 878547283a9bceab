"""Folders that every worker needs as files: models, the gazetteer, the context. Never pickled, once on each machine.

There is one way for every cluster manager, and for executors that join late, die and come back: what lies where every
machine sees it is read there, anything else is packed into `<output>/_shipped/`, which all of them can read, and each
machine lays it out below its scratch when a worker first asks. `SparkContext.addFile` takes no folder outside local
mode, and hands every file to every executor, whether a task asks for it or not.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Section
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.machine import laid_out
from i2e_pipeline.engine.master import is_local

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FOLDER = "_shipped"
"""Where packed folders lie in the output."""


class ShippingError(I2EError, RuntimeError):
    """What a worker needs as a file is not what the driver packed; the message says the remedy."""


@dataclass(frozen=True)
class Shipped:
    """A file or folder as a worker finds it."""

    path: str
    """Where it lies for every machine; of what is packed, its archive."""
    name: str = ""
    digest: str | None = None
    """Of the content; None: it is read where it lies."""

    def local(self) -> str:
        """Its path on this machine; called in the worker. Raises ShippingError."""
        if self.digest is None:
            return self.path
        if self not in _checked or not os.path.exists(_checked[self]):
            _checked[self] = self._lay_out()
        return _checked[self]

    def _lay_out(self) -> str:
        def unpack(folder: Path) -> None:
            filesystem, inner = files.open_filesystem(self.path)
            with filesystem.open_input_stream(inner) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                archive.extractall(folder, filter="data")
            if not whole(folder):
                raise ShippingError(f"{self.path} does not hold what it was packed of: remove it, and run again")

        def whole(folder: Path) -> bool:
            return files.exists(str(folder / self.name)) and files.fingerprint(str(folder / self.name)) == self.digest

        return str(laid_out("shipped", f"{self.name}-{self.digest}", unpack, whole) / self.name)


OfModel = TypeVar("OfModel", bound=Section)

_checked: dict[Shipped, str] = {}
"""What this process has compared with its digest."""


def ship(spark: SparkSession, path: str, output: str, shared: Sequence[str] = ()) -> Shipped:
    """Make a local file or folder readable by every worker.

    output   the run's output, which every worker reads and writes
    shared   folders that every machine sees under the same path; what lies below one is read there
    """
    path = os.path.abspath(path)
    if is_local(spark.sparkContext.master) or any(_below(path, folder) for folder in (output, *shared)):
        return Shipped(path)
    digest = _digest(path, _stamps(path))
    name = os.path.basename(path)
    archive = files.join(output, FOLDER, f"{name}-{digest[:16]}.tar")
    if not files.exists(archive):
        with (
            files.fresh_stream(archive) as stream,
            tarfile.open(fileobj=stream, mode="w|", dereference=True) as packed,
        ):
            packed.add(path, name)
    return Shipped(archive, name, digest)


def model_here(config: OfModel, model: Shipped | None) -> OfModel:
    """A model's settings as a worker must read them: with its folder where this machine has it.

    model   the folder, shipped; None: the name says enough
    """
    return config.model_copy(update={"model": f"local-dir:{model.local()}"}) if model else config


def _below(path: str, folder: str) -> bool:
    if not files.is_local(folder):
        return False
    folder = os.path.abspath(folder.removeprefix("file://"))
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _stamps(path: str) -> tuple[tuple[str, int, int], ...]:
    """By what a change is seen without reading: names, sizes and times of the files."""
    found = files.list_files(path) if os.path.isdir(path) else files.find((path,), "")
    return tuple((f.path, f.size, f.modified) for f in found)


@lru_cache(maxsize=64)
def _digest(path: str, stamps: tuple[tuple[str, int, int], ...]) -> str:
    return files.fingerprint(path)
