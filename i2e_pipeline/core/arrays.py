"""Named numpy arrays in a folder, with a JSON header; written whole or not at all, read as memory maps.

    <folder>/NAME.npy      an array that was in memory, or whose shape was known
    <folder>/NAME.bin      numbers alone, little-endian: an array that was streamed, its length not known before
    <folder>/<HEADER>.json `format`, and whatever else the owner says of the arrays

Processes of a machine that open the same folder share its pages. A folder that exists is whole: it gets its name last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import fresh_folder


class ArraysError(I2EError, ValueError):
    """A folder that holds no arrays of the wanted kind and format; the message names it and the remedy."""


class Writer:
    """What fills a new folder of arrays."""

    def __init__(self, folder: Path, streams: ExitStack) -> None:
        self.folder, self._streams = folder, streams
        self.header: dict[str, Any] = {}
        """To be set before the block ends; `format` must be in it. `folder` may hold further files."""

    def save(self, name: str, values: npt.ArrayLike) -> None:
        np.save(self.folder / f"{name}.npy", values)

    def create(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.memmap[Any, Any]:
        """An array on disk to be filled in any order. Raises OSError where there is no room for it."""
        path = self.folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a mapped page for which a disk has no room kills the process (SIGBUS)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array

    def stream(self, name: str) -> BinaryIO:
        """Where the numbers of an array are appended; it is closed with the block."""
        return self._streams.enter_context((self.folder / f"{name}.bin").open("wb"))


@contextmanager
def new(folder: str | os.PathLike[str], header: str, alone: bool = False) -> Iterator[Writer]:
    """A writer of the arrays of `folder`, which takes the place of an older one when the block has ended.

    header   name of the header's file, without `.json`
    alone    as for files.fresh_folder
    """
    with fresh_folder(Path(folder), alone) as fresh:
        with ExitStack() as streams:
            writer = Writer(fresh, streams)
            yield writer
        assert "format" in writer.header, f"{folder}: the writer said no format"
        (fresh / f"{header}.json").write_text(json.dumps(writer.header, indent=1), encoding="utf-8")


class Arrays:
    """A written folder. Opening it costs milliseconds, whatever its size."""

    def __init__(self, folder: str | os.PathLike[str], header: str, format: int) -> None:
        """Raises ArraysError where the folder has no such header, or one of another format."""
        self._folder = Path(folder)
        path = self._folder / f"{header}.json"
        try:
            self.header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = self.header["format"]
        except FileNotFoundError:
            raise ArraysError(f"{folder} holds no {header}: {path.name} is not there; build it again") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ArraysError(f"{path} is no header of a {header} ({error!r}): build it again") from None
        if found != format:
            raise ArraysError(f"{folder} holds a {header} of format {found}, not {format}: build it again")

    def __getitem__(self, name: str) -> np.ndarray:
        """The array of NAME.npy, mapped."""
        return np.asanyarray(np.load(self._folder / f"{name}.npy", mmap_mode="r"))

    def numbers(self, name: str, dtype: npt.DTypeLike, width: int | None = None) -> np.ndarray:
        """The numbers of NAME.bin, mapped; with `width`, as a table of rows of so many numbers."""
        path = self._folder / f"{name}.bin"
        # An empty file cannot be mapped.
        flat = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)
        return flat if width is None else flat.reshape(-1, width)


KEPT_STORES = 3
"""How many stores a cache folder keeps: those used last. A table that grows during a run is another store each time."""


def shared(
    root: Path, key: str, header: str, format: int, lay_out: Callable[[Writer], None], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Arrays that this machine's processes share, mapped; made by the first that asks for them, while the others wait.

    root    a folder of such stores on a local disk
    key     names the content
    names   of arrays that were saved or created; they are mapped before another process may drop the store
    """
    root.mkdir(parents=True, exist_ok=True)
    place = root / hashlib.blake2b(f"{format} {key}".encode(), digest_size=16).hexdigest()
    with FileLock(f"{root}/.lock"):
        if not place.is_dir():
            with new(place, header, alone=True) as store:
                lay_out(store)
            _drop_old(root, keep=place)
        os.utime(place)
        stored = Arrays(place, header, format)
        return {name: stored[name] for name in names if (place / f"{name}.npy").exists()}


def _drop_old(root: Path, keep: Path) -> None:
    stores = sorted((p for p in root.iterdir() if p.is_dir() and p != keep), key=lambda p: p.stat().st_mtime)
    for old in stores[: max(0, len(stores) - KEPT_STORES + 1)]:
        shutil.rmtree(old, ignore_errors=True)  # whoever has it mapped keeps its pages
