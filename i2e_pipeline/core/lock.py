"""One writer at a time in a folder: a file `_lock` that says who it is, and beats while it lives.

A lock whose process is gone does not hold. On this machine that is seen at once; one of another machine (or container),
such as the driver's last in a cluster, counts as gone when it has been silent for long. Clocks may be set, and two
machines' may differ: so who finds it silent, or from the future, first listens for longer than a beat.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, NoReturn

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import AlreadyThere, ExitCode, I2EError

log = logging.getLogger(__name__)

_BEAT, _SILENT = 60.0, 600.0
"""Seconds between two signs of life of the process that holds a folder, and without one until it counts as gone."""
_LOOKED = 5.0
"""Seconds between two looks of the holder at its own lock on a disk; in a store it looks when it beats."""
_LISTENED = 1.5
"""So many beats are waited for, of a holder that seems to be gone."""
_FILLED, _SETTLED = 5.0, 2.0
"""Seconds until a lock that is no whole record is nobody's, and until a store shows who wrote last."""
_LARGEST, _LAST_BEAT = 64 << 10, 1e12
"""Bytes that a lock may have, and a time (some 30,000 years from now) that no clock says."""
_ASKED_AGAIN = 2.0
"""Seconds until who waits for a lock asks again."""


class Held(I2EError, RuntimeError):
    """Another process writes the folder; the message says which, and the way out."""


class LostLock(I2EError, RuntimeError):
    """The folder, or its lock, was taken from under a run; the message says how."""

    exit_code = ExitCode.FAULT


@contextmanager
def exclusive(folder: str, patient: bool = False) -> Iterator[Callable[[], None]]:
    """One writer at a time in a folder. Raises Held while another process, or thread of this one, writes it.

    patient   a holder on another machine is listened to until it beats or has been silent for long: a job that a
              scheduler starts again elsewhere gets its folder back
    Yields what raises LostLock when the folder, or its lock, was taken from under the holder.
    """
    with _claimed(folder):
        if patient:
            _listen_to_others(files.join(folder, "_lock"), _me())
        with _held(folder, me := _free(folder)):
            yield partial(_refuse_lost, files.join(folder, "_lock"), me)


@contextmanager
def waiting(folder: str, what: str) -> Iterator[None]:
    """The same; while another one writes the folder, this one waits.

    what   is said to be written there meanwhile
    """
    said = False
    while True:
        with ExitStack() as mine:
            try:
                mine.enter_context(_claimed(folder))
                me = _free(folder)
            except (Held, AlreadyThere) as error:
                if not said:
                    log.info("waiting for %s: %s", what, error)
                    said = True
            else:
                with _held(folder, me):
                    yield
                return
        time.sleep(_ASKED_AGAIN)


_claims: dict[str, int] = {}
"""Folders that threads of this process hold, or are about to, with the thread: a lock on disk names processes alone."""
_claiming = Lock()


def _forget_claims() -> None:
    """A child that was forked holds nothing of what its parent holds."""
    global _claiming
    _claims.clear()
    _claiming = Lock()  # which another thread may have held


os.register_at_fork(after_in_child=_forget_claims)


def _place_of(folder: str) -> str:
    """One name for all spellings of a folder."""
    return os.path.realpath(files.open_filesystem(folder)[1]) if files.is_local(folder) else folder.rstrip("/")


@contextmanager
def _claimed(folder: str) -> Iterator[None]:
    """Within the block no other thread of this process gets the folder, nor this one a second time."""
    place, mine = _place_of(folder), os.getpid()
    with _claiming:
        if place in _claims:
            raise Held(_said_claimed(folder))
        _claims[place] = threading.get_ident()
    try:
        yield
    finally:
        if os.getpid() == mine:
            with _claiming:
                _claims.pop(place, None)


def _said_claimed(folder: str) -> str:
    return (
        f"{folder} is being written by this process already ({os.getpid()}), by another thread or further up: wait for "
        "it, or use another output"
    )


def _free(folder: str) -> dict[str, Any]:
    """Take the lock. Returns what it says of its holder."""
    path = files.join(folder, "_lock")
    me = _me()
    silent: dict[str, Any] | None = None
    while True:
        with _alone(folder):
            found = _holder(path)
            if found is None or found == silent or not _may_live(path, found, me):
                if found is not None:
                    files.remove(path)
                files.create_json(path, _beating(me))
                break
        now = _listened(path, found)
        if now is not None and now != found:
            _refuse(folder, now)
        if now == found:
            who = f"process {found['process']} on {found.get('host')}" if found.get("process") else "its writer"
            log.warning("%s: %s gives no sign of life: it holds no more", path, who)
        silent = now
    if not files.is_local(folder):
        # Two that found none each wrote one: the later is there.
        time.sleep(_SETTLED)
        if not _holds(path, me):
            _refuse(folder, _holder(path) or {})
    return me


def refuse_held(folder: str) -> None:
    """Raise Held where another process, or thread of this one, surely writes the folder. Takes no lock, and does not
    listen."""
    with _claiming:
        thread = _claims.get(_place_of(folder))
    if thread not in (None, threading.get_ident()):
        raise Held(_said_claimed(folder))
    path = files.join(folder, "_lock")
    if found := _holder(path):
        _may_live(path, found, _me())


def _listen_to_others(path: str, me: Mapping[str, Any]) -> None:
    """Wait for the next beat of a holder on another machine, or until it has been silent for long."""
    found = _holder(path)
    if not found or _is_here(found, me):
        return
    log.info(
        "%s is held by process %s on %s: waiting until it gives a sign of life (%.0f s), or has given none for %.0f "
        "minutes", path, found.get("process"), found.get("host"), _BEAT, _SILENT / 60,
    )  # fmt: skip
    until = time.monotonic() + _SILENT
    while _holder(path) == found and _beats(found) and time.monotonic() < until:
        time.sleep(min(_ASKED_AGAIN, _BEAT / 10))


def _refuse_lost(path: str, me: Mapping[str, Any]) -> None:
    if not _holds(path, me):
        raise LostLock(_said_taken(path))


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "began": _began(os.getpid()),
        "namespace": _namespace(),
    }


def _beating(me: Mapping[str, Any]) -> dict[str, Any]:
    return {**me, "beat": round(time.time(), 3)}


def _may_live(path: str, found: Mapping[str, Any], me: Mapping[str, Any]) -> bool:
    """May the holder be alive, as far as can be told without listening? Raises Held where it surely is."""
    if not found:
        return True  # its writer may be about to fill it
    if _is_here(found, me):
        if _alive(found):
            _refuse(path.rpartition("/")[0], found)
        return False
    if _beats(found):
        _refuse(path.rpartition("/")[0], found)
    return True


def _is_here(found: Mapping[str, Any], me: Mapping[str, Any]) -> bool:
    return found.get("host") == me["host"] and found.get("namespace", me["namespace"]) == me["namespace"]


def _beats(found: Mapping[str, Any]) -> bool:
    """Has it given a sign of life of late?"""
    return bool(-_BEAT < time.time() - found.get("beat", 0.0) < _SILENT)


def _refuse(folder: str, holder: Mapping[str, Any]) -> NoReturn:
    here = _is_here(holder, {"host": socket.gethostname(), "namespace": _namespace()})
    when = "" if here else f", or until it has been silent for {_SILENT / 60:.0f} minutes"
    raise Held(
        f"{folder} is being written by process {holder.get('process')} on {holder.get('host')} since "
        f"{holder.get('since')}: wait for it{when}, or remove {files.join(folder, '_lock')} if that process is gone"
    )


def _patience(found: Mapping[str, Any]) -> float:
    return _LISTENED * _BEAT if found else _FILLED


def _listened(path: str, found: dict[str, Any]) -> dict[str, Any] | None:
    """What the lock says when it has changed, or after longer than a beat."""
    if found:
        log.info("%s is silent, or a clock was set: listening for %.0f s", path, _patience(found))
    until = time.monotonic() + _patience(found)
    while (now := _holder(path)) == found and time.monotonic() < until:
        time.sleep(min(_ASKED_AGAIN, _patience(found) / 10))
    return now


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Within the block no other process of this machine judges the folder's lock: of two that find a dead one, the
    second would remove what the first has just written."""
    if not files.is_local(folder):
        yield
        return
    files.make_folder(folder)
    handle = os.open(folder.removeprefix("file://"), os.O_RDONLY)
    try:
        with suppress(OSError):  # some mounted file systems lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _held(folder: str, me: dict[str, Any]) -> Iterator[None]:
    path = files.join(folder, "_lock")
    ended = Event()
    lost: list[str] = []
    beating = Thread(target=_beat, args=(path, me, ended, lost), name="i2e-lock", daemon=True)
    beating.start()
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            if not lost and not files.exists(path):
                lost.append(_removed(path))
        if lost:  # whatever went wrong then, this is why
            raise LostLock(lost[0]) from error
        raise
    finally:
        if os.getpid() == me["process"]:  # a child that was forked in the block leaves its parent's lock alone
            ended.set()
            beating.join()
            if _holds(path, me):
                files.remove(path)


def _holder(path: str) -> dict[str, Any] | None:
    """What a lock says; None where there is none, nothing where it is no whole record: its writer is about to fill it,
    or was killed over it."""
    try:
        found = files.parsed_json(files.read_bytes(path, _LARGEST))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and _is_whole(found) else {}


def _is_whole(found: Mapping[str, Any]) -> bool:
    """Is all that it says of the kind that a holder writes? Anybody may have written it."""
    texts = (found.get(name, "") for name in ("host", "since", "began", "namespace"))
    process, beat = found.get("process"), found.get("beat", 0.0)
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in (process, beat))
    whole = numbers and isinstance(process, int) and 0 < process < 1 << 31 and abs(beat) < _LAST_BEAT
    return "host" in found and whole and all(isinstance(text, str) and len(text) < 1000 for text in texts)


def _holds(path: str, me: Mapping[str, Any]) -> bool:
    held = _holder(path) or {}
    return {key: held.get(key) for key in me} == me


def _beat(path: str, me: dict[str, Any], ended: Event, lost: list[str]) -> None:
    """Say that the holder lives, until it has ended; stop the run whose lock is gone, or somebody else's."""
    looked = min(_LOOKED, _BEAT) if files.is_local(path) else _BEAT
    since = 0.0  # by the clock that nobody sets
    while not ended.wait(looked):
        try:
            if not _holds(path, me):
                if ended.is_set():
                    return
                lost.append(_said_taken(path))
                os.kill(os.getpid(), signal.SIGINT)  # which ends a wait, too
                return
            since += looked
            if since >= _BEAT:
                since = 0.0
                files.overwrite_json(path, _beating(me))
        except OSError as error:
            log.warning("%s: %s", path, error)


def _said_taken(path: str) -> str:
    theirs = f"{path} is somebody else's now: this run was silent for too long, and stops"
    return theirs if files.exists(path) else _removed(path)


def _removed(path: str) -> str:
    return (
        f"{path} was removed, and maybe the folder with it, while this run wrote there: it stops. The same command "
        "goes on from what is left"
    )


def _alive(holder: Mapping[str, Any]) -> bool:
    """Does the process still run, and is it that one? Numbers of processes come again, after a restart soon."""
    process = holder.get("process", 0)
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    began = holder.get("began")
    return not began or not (now := _began(process)) or now == began


def _began(process: int) -> str:
    """When a process began, in ticks since this start of the machine; empty where Linux's /proc does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return ""


def _namespace() -> str:
    """Names the processes that this one sees: containers of one host name do not see each other's."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
