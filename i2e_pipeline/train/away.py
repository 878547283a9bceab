"""A training's folder in a store (train.folder is a URI): what each machine keeps of it, and how it comes and goes.

Reads    checkpoints, journal: from the store to <temporary folder>/i2e-<uid>/train/…, one copy a machine
Writes   journal, pictures, exports: what changed here, to the store

The store has what counts. What lies on a machine is for the training that runs there, and is fetched again by the next.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from i2e_pipeline.core import files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.train.parallel import World

_AT_ONCE = 8
"""Files that are copied at the same time."""


def working_folder(folder: str) -> Path:
    """Where this machine works on a training's folder: that folder, if it is no URI."""
    if files.is_local(folder):
        return Path(folder.removeprefix("file://"))
    return scratch("train", digest(folder.rstrip("/"))[:16])


def fetched(place: str, last: str, world: World) -> tuple[Path, list[int]]:
    """A folder of the store as it lies on this machine, and the ranks that have this copy; every rank calls it, and one
    of each machine fetches.

    last   the file that makes the folder whole: a copy that has the store's is the store's
    The one that was fetched before it of the same training is removed.
    """
    parent, _, name = place.rstrip("/").rpartition("/")
    here = scratch("train", "fetched", digest(parent)[:16], name)
    machines = world.gather_objects((socket.gethostname(), str(here)))
    ranks = [rank for rank, machine in enumerate(machines) if machine == machines[world.rank]]
    world.on_each(lambda: _fetch(place, here, last) if world.rank == ranks[0] else None)
    return here, ranks


def _fetch(place: str, here: Path, last: str) -> None:
    wanted = files.patiently(lambda: files.read_bytes(files.join(place, last)), place)
    if (here / last).is_file() and (here / last).read_bytes() == wanted:
        return
    for other in here.parent.glob("step-*"):
        if other != here:
            shutil.rmtree(other, ignore_errors=True)
    (here / last).unlink(missing_ok=True)
    # Names in a store may be anybody's.
    below = [i.path for i in files.list_files(place) if i.path != last and files.is_below(i.path)]
    for path in here.rglob("*"):
        if path.is_file() and path.relative_to(here).as_posix() not in below:
            path.unlink()
    bring(place, str(here), below)
    files.write_bytes(str(here / last), wanted)


def bring(source: str, target: str, paths: Sequence[str]) -> None:
    """Copies files below one folder to another, several at a time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda path: bring_one(source, target, path), paths))


def bring_one(source: str, target: str, path: str) -> None:
    """The same of one file, in this thread: a process that ends waits for threads of a pool, whatever they wait for."""
    here, there = files.join(source, path), files.join(target, path)
    # The one of them that lies in a store may fail for a moment.
    files.patiently(lambda: files.copy(here, there), there if files.is_local(here) else here)


class Mirror:
    """Keeps a folder of the store as the working folder is, checkpoints apart; one process calls it."""

    def __init__(self, folder: str, working: Path) -> None:
        """folder   as it is configured; nothing is done for one that is no URI"""
        self._folder, self._working = folder, working
        self._there: dict[str, tuple[int, int]] = {}
        self._is_away = not files.is_local(folder)

    def fetch(self, *paths: str) -> None:
        """Has these files here as the store has them; those that it lacks are removed here."""
        if not self._is_away:
            return
        there = files.sizes([files.join(self._folder, path) for path in paths])
        for path in paths:
            (self._working / path).unlink(missing_ok=True)
        found = [path for path in paths if there[files.join(self._folder, path)] is not None]
        bring(self._folder, str(self._working), found)

    def push(self) -> None:
        """Brings what was written here since the last time."""
        if not self._is_away:
            return
        now = {}
        for path in sorted(self._working.rglob("*")):
            below = path.relative_to(self._working)
            if path.is_file() and below.parts[0] != "checkpoints" and not files.is_hidden(below.as_posix()):
                now[below.as_posix()] = (path.stat().st_mtime_ns, path.stat().st_size)
        changed = [path for path, stamp in now.items() if self._there.get(path) != stamp]
        bring(str(self._working), self._folder, changed)
        self._there |= {path: now[path] for path in changed}
