"""How somebody ends a command: Ctrl-C, SIGTERM, and SIGHUP of a terminal or ssh session that is closed.

The first of them is a KeyboardInterrupt where the command stands, so that what is open is closed. Another one would
come in the middle of that closing, and is passed over; a third, or one after half a minute, ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_PATIENCE = 30.0
"""Seconds in which a command closes what is open; from then on the next signal ends it at once."""
_SAME = 0.1
"""Seconds between two signals that are one: a terminal and spark-submit may both pass on a Ctrl-C."""

Handler = Callable[[int, Any], object]


class Ended(KeyboardInterrupt):
    """Somebody ended the process by a signal other than Ctrl-C's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Ending:
    """The signal handlers of one command. Children that were forked end at once."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        self._then: Any = signal.default_int_handler
        self._came: list[float] = []
        self.by: int | None = None
        """The first signal that came."""

    def install(self) -> None:
        """Handle each signal that would end the process; one that is ignored (nohup), or that somebody else handles,
        stays as it is."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if before in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = signal.signal(number, self._handle)

    def keep(self) -> None:
        """Take Ctrl-C back from Spark, whose context takes it when it starts. What it does then is still done, once."""
        if signal.SIGINT in self._before and (now := signal.getsignal(signal.SIGINT)) != self._handle:
            self._then = now
            signal.signal(signal.SIGINT, self._handle)

    def restore(self) -> None:
        """Leave the handlers as they were found. Where the command was ended they stay: the process is at its end."""
        if not self._came:
            for number, before in self._before.items():
                signal.signal(number, before)
            self._before.clear()  # a session that is built afterwards is no command's

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            _end_at_once(number)
        now, first = time.monotonic(), not self._came
        if not first and now - self._came[-1] < _SAME:
            return
        self._came.append(now)
        self.by = self.by or number
        if not first:
            if len(self._came) > 2 or now - self._came[0] > _PATIENCE:
                _end_at_once(number)
            with suppress(OSError):  # not by print, in whose middle the signal may have come
                os.write(2, b"i2e: ending; one more ends it at once\n")
            return
        if number != signal.SIGINT:
            raise Ended(number)
        with suppress(Exception):  # Spark cancels its jobs, if its JVM still listens, and raises KeyboardInterrupt
            if callable(self._then):
                self._then(number, frame)
        raise KeyboardInterrupt


def _end_at_once(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


_now: Ending | None = None


def begin() -> Ending | None:
    """From now on a signal ends the command as this module says. None in a thread that is told of no signals."""
    global _now
    if threading.current_thread() is not threading.main_thread():
        return None
    _now = Ending()
    _now.install()
    return _now


def by() -> int | None:
    """The signal that has ended this command; None: none has yet."""
    return _now.by if _now is not None else None


def keep() -> None:
    """To be called when Spark has been started."""
    if _now is not None and threading.current_thread() is threading.main_thread():
        _now.keep()
