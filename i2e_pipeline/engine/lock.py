"""One writer at a time in a folder: a file `_lock` that says who it is, and beats while it lives.

A lock whose process is gone does not hold. On this machine that is seen at once; one of another machine, such as the
driver's last in a cluster, counts as gone when it has been silent for long.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import AlreadyThere, I2EError

log = logging.getLogger(__name__)

_BEAT, _SILENT = 60.0, 600.0
"""Seconds between two signs of life of the process that holds a folder, and without one until it counts as gone."""
_ASKED_AGAIN = 2.0
"""Seconds until who waits for a lock asks again."""


class Held(I2EError, RuntimeError):
    """Another process writes the folder; the message says which, and the way out."""


@contextmanager
def exclusive(folder: str) -> Iterator[None]:
    """One process at a time in a folder. Raises Held while another one writes it."""
    with _held(folder, _free(folder)):
        yield


@contextmanager
def waiting(folder: str, what: str) -> Iterator[None]:
    """The same; while another process writes the folder, this one waits.

    what   is said to be written there meanwhile
    """
    said = False
    while True:
        try:
            me = _free(folder)
            break
        except (Held, AlreadyThere) as error:
            if not said:
                log.info("waiting for %s: %s", what, error)
                said = True
            time.sleep(_ASKED_AGAIN)
    with _held(folder, me):
        yield


def _free(folder: str) -> dict[str, Any]:
    """Take the lock. Returns what it says of its holder."""
    path = files.join(folder, "_lock")
    me = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    if files.exists(path):
        holder = refuse_held(folder)
        if holder.get("host") != me["host"]:
            log.warning("process %s on %s is silent: its lock holds no more", holder.get("process"), holder.get("host"))
        files.remove(path)
    files.create_json(path, me | {"beat": time.time()})
    return me


def refuse_held(folder: str) -> dict[str, Any]:
    """Raise Held where another process writes the folder now. Returns what a lock says that holds no more, or {}."""
    path = files.join(folder, "_lock")
    if not files.exists(path):
        return {}
    holder = _holder(path)
    silent = time.time() - holder.get("beat", time.time())
    here = holder.get("host") == socket.gethostname()
    if _alive(holder.get("process", 0)) if here else silent < _SILENT:
        when = "" if here else f", or until it has been silent for {_SILENT / 60:.0f} minutes"
        raise Held(
            f"{folder} is being written by process {holder.get('process')} on {holder.get('host')} since "
            f"{holder.get('since')}: wait for it{when}, or remove {path} if that process is gone"
        )
    return holder


@contextmanager
def _held(folder: str, me: dict[str, Any]) -> Iterator[None]:
    path = files.join(folder, "_lock")
    ended = Event()
    beating = Thread(target=_beat, args=(path, me, ended), name="i2e-lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        if _holds(path, me):
            files.remove(path)


def _holder(path: str) -> dict[str, Any]:
    """What a lock says; nothing where it was removed since, or its writer is about to fill it."""
    try:
        found: dict[str, Any] = json.loads(files.read_bytes(path) or b"{}")
        return found
    except FileNotFoundError:
        return {}


def _holds(path: str, me: Mapping[str, Any]) -> bool:
    held = _holder(path)
    return {key: held.get(key) for key in me} == me


def _beat(path: str, me: dict[str, Any], ended: Event) -> None:
    """Say that the holder lives, until it has ended; stop the run whose lock somebody else has taken."""
    while not ended.wait(_BEAT):
        try:
            if not _holds(path, me):
                log.error("%s is somebody else's now: this run was silent for too long, and stops", path)
                os.kill(os.getpid(), signal.SIGINT)  # which ends a wait, too
                return
            files.write_json(path, me | {"beat": time.time()})
        except OSError as error:
            log.warning("%s: %s", path, error)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
