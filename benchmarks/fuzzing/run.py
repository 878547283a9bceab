"""Tries a target again and again, in a process that may die, and says what became of it."""

from __future__ import annotations

import mmap
import os
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.contained import Say, contained
from fuzzing.targets import READ, REFUSED, TARGETS, RowsLost

from i2e_pipeline.core.errors import I2EError
from wikidata.source_files import SourceError

MEMORY_MB = 1500
"""That a target may ask for beyond what the process has when it begins; the explorer's index and torch ask for more."""
MORE_MEMORY = {"the explorer's addresses": 6000, "checkpoints": 20_000}
HANG = 10.0
"""Seconds that an input may take."""
_SETUP = 60.0


@dataclass
class Tried:
    """What became of a target's inputs."""

    name: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    lost: int = 0
    """Inputs of which rows were lost."""
    crashes: int = 0
    """Inputs that ended the process, or whose error is not said to users."""
    hangs: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Of each kind of failure: the number of its first input, what it was, and how often."""

    @property
    def whole(self) -> bool:
        return not (self.lost or self.crashes or self.hangs)


def tried(name: str, seed: int, count: int, seconds: float = float("inf"), first: int = 0) -> Tried:
    """Try `count` inputs of a target, or as many as the seconds allow; the same seed and number make the same input."""
    found, began, number, stuck = Tried(name), time.monotonic(), first, 0
    kinds: dict[str, dict[str, Any]] = {}
    current = mmap.mmap(-1, 8)  # shared with the child: which input it works on
    while number < first + count and time.monotonic() - began < seconds and stuck < 20:
        left = seconds - (time.monotonic() - began)
        current[:] = number.to_bytes(8, "big")
        until = first + count

        def work(say: Say, number: int = number, left: float = left, until: int = until) -> None:
            _try(say, name, seed, number, until, left, current)

        most = min(left, count * HANG) + _SETUP + 2 * HANG
        ended = contained(work, most, MORE_MEMORY.get(name, MEMORY_MB))
        at = int.from_bytes(current[:], "big")
        for one in ended.said:
            found.inputs += one.get("inputs", 0)
            found.read += one.get(READ, 0)
            found.refused += one.get(REFUSED, 0)
            for failure in one.get("failures", ()):
                _note(kinds, failure)
        found.peak_mb = max(found.peak_mb, ended.peak_mb)
        if ended.how == "returned":
            break
        hung = ended.how in ("hung", "killed by SIGALRM")
        trace = ended.trace or "no trace"
        _note(
            kinds,
            {"kind": "hang" if hung else "crash", "said": ended.how, "at": at, "where": _where(trace), "trace": trace},
        )
        number, stuck = at + 1, stuck + 1
    found.failures = sorted(kinds.values(), key=lambda k: (k["kind"], k["at"]))
    found.lost = sum(k["times"] for k in found.failures if k["kind"] == "rows lost")
    found.hangs = sum(k["times"] for k in found.failures if k["kind"] == "hang")
    found.crashes = sum(k["times"] for k in found.failures) - found.lost - found.hangs
    found.seconds = time.monotonic() - began
    return found


def _note(kinds: dict[str, dict[str, Any]], failure: dict[str, Any]) -> None:
    known = kinds.setdefault(f"{failure['kind']} {failure['where']}", {**failure, "times": 0})
    known["times"] += failure.get("times", 1)


def _where(trace: str) -> str:
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    ours = [line for line in lines if "/i2e_pipeline/" in line or "/wikidata/" in line]
    return (ours or lines or ["nowhere"])[-1 if "Traceback" in trace else 0]


def _try(say: Say, name: str, seed: int, number: int, until: int, seconds: float, current: mmap.mmap) -> None:
    """In the child. Says counts every second, and failures as they come."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libtiff speaks to it by itself
        os.dup2(nowhere, stream)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        once = TARGETS[name](Path(place))
        began = told = time.monotonic()
        counts: Counter[str] = Counter()
        while number < until and time.monotonic() - began < seconds:
            current[:] = number.to_bytes(8, "big")
            signal.setitimer(signal.ITIMER_REAL, HANG)
            failures = []
            try:
                counts[once(random.Random(f"{seed}/{name}/{number}"))] += 1
            except (I2EError, SourceError):
                counts[REFUSED] += 1
            except Exception as error:
                trace = "".join(traceback.format_exception(error))[-3000:]
                kind = "rows lost" if isinstance(error, RowsLost) else type(error).__name__
                failures = [
                    {"kind": kind, "said": str(error)[:300], "at": number, "where": _where(trace), "trace": trace}
                ]
            signal.setitimer(signal.ITIMER_REAL, 0)
            counts["inputs"] += 1
            number += 1
            if failures or time.monotonic() - told > 1:
                say({**counts, "failures": failures})
                counts.clear()
                told = time.monotonic()
        say(dict(counts))
