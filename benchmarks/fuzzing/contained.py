"""Runs a call in a process of its own, of bounded memory and time: what it does to that process is what is asked.

A call that bounds a part of its own time by an alarm is ended by it, with a word of where it was.

The process is forked, so that all that is imported is there at once. What it says travels through a pipe, line by line,
so that what was said before a crash is known.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Say = Callable[[Any], None]
"""Tells the caller something that JSON can hold."""


@dataclass
class Ended:
    """How a contained call came to its end."""

    said: list[Any] = field(default_factory=list)
    how: str = "returned"
    """`returned`, `raised`, `hung` (it took longer than it may), or `killed by SIGSEGV`, say."""
    trace: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0
    """Of resident memory, what it had at its beginning left out."""


def contained(call: Callable[[Say], None], seconds: float, memory_mb: int) -> Ended:
    """What became of a call.

    seconds     after which it is ended
    memory_mb   that it may ask for beyond what the process has
    """
    read, write = os.pipe()
    with tempfile.TemporaryFile() as faults:
        sys.stdout.flush()
        sys.stderr.flush()
        begun = time.monotonic()
        child = os.fork()
        if not child:
            os.close(read)
            _work(call, write, faults, memory_mb)
        os.close(write)
        ended = Ended()
        timed_out = False
        for line in _lines(read, begun + seconds):
            if line is None:
                timed_out = True
                os.kill(child, signal.SIGABRT)  # faulthandler says where it was
                break
            ended.said.append(json.loads(line))
        os.close(read)
        _, status, _ = os.wait4(child, 0) if not timed_out else _waited(child)
        ended.seconds = time.monotonic() - begun
        faults.seek(0)
        ended.trace = faults.read().decode(errors="replace")[:4000]  # the last call comes first
    last = ended.said.pop() if ended.said and isinstance(ended.said[-1], dict) and "peak_mb" in ended.said[-1] else {}
    ended.peak_mb = last.get("peak_mb", 0.0)
    if timed_out:
        ended.how = "hung"
    elif os.WIFSIGNALED(status):
        ended.how = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    elif "raised" in last:
        ended.how, ended.trace = "raised", last["raised"]
    elif os.WEXITSTATUS(status):
        ended.how = f"ended with {os.WEXITSTATUS(status)}"
    return ended


def _waited(child: int) -> tuple[int, int, Any]:
    for _ in range(50):
        found = os.wait4(child, os.WNOHANG)
        if found[0]:
            return found
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    return os.wait4(child, 0)


def _lines(read: int, deadline: float) -> Iterator[bytes | None]:
    """Lines of a pipe until it closes; None when the time is over."""
    import select

    rest = b""
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            yield None
            return
        piece = os.read(read, 1 << 16)
        if not piece:
            return
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole


def _work(call: Callable[[Say], None], write: int, faults: Any, memory_mb: int) -> None:
    """In the child; does not return."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.enable(faults, all_threads=False)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not a test runner's, which would raise what a target may catch
        faulthandler.register(signal.SIGALRM, faults, all_threads=False, chain=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limit = _size() + (memory_mb << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        def say(what: Any) -> None:
            line = json.dumps(what).encode() + b"\n"
            while line:
                line = line[os.write(write, line) :]

        told: dict[str, Any] = {}
        try:
            call(say)
            code = 0
        except BaseException as error:
            told["raised"] = "".join(traceback.format_exception(error))[-4000:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        say({"peak_mb": (peak - before) / 1024, **told})
    finally:
        os._exit(code)


def _size() -> int:
    """Bytes of this process' address space."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
