"""Which process is whose, from Linux's /proc; and of a run, which of them is the driver, its JVM, a Python worker."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

DAEMONS = (b"i2e_pipeline.engine.daemon", b"pyspark.daemon")
EXECUTOR, WORKER_JVM = b"CoarseGrainedExecutorBackend", b"deploy.worker.Worker"


def alive(pid: int) -> bool:
    """Does it run? One that has ended and was not asked for its end yet (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children(pid: int) -> list[int]:
    """Of all its threads, the oldest first."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, file.read_text().split())
        except OSError:
            continue
    return sorted(child for child in found if alive(child))


def below(pid: int) -> list[int]:
    """A process's children, theirs, and so on."""
    found = children(pid)
    for child in found:  # which grows
        found += children(child)
    return found


def jvms(driver: int) -> list[int]:
    """The Java that a driver started; by way of a script, it is the script's own process."""
    return [pid for pid in children(driver) if b"java" in command_of(pid).split(b"\0")[0]]


def daemons(above: int) -> list[int]:
    """Spark's Python daemons below a process, which fork the workers."""
    found = []
    for pid in below(above):
        if any(name in command_of(pid) for name in DAEMONS) and b"java" in command_of(_parent(pid)):
            found.append(pid)
    return found


def workers(above: int) -> list[int]:
    """Python workers below a process."""
    return [pid for daemon in daemons(above) for pid in children(daemon)]


def executors(above: int) -> list[int]:
    """JVMs of executors below a process, such as a cluster's Worker."""
    return [pid for pid in below(above) if EXECUTOR in command_of(pid)]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def waited(until: Callable[[], bool], seconds: float) -> bool:
    """Whether that became true within so many seconds."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            return until()
        time.sleep(0.02)
    return True


def send(pid: int, signal: int) -> bool:
    """Whether there was still somebody to hear it."""
    try:
        os.kill(pid, signal)
    except ProcessLookupError:
        return False
    return True
