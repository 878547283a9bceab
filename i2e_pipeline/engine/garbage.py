"""Python's garbage, collected between waves, because it holds Java's.

An object of Java lives for as long as the one of Python that stands for it, and py4j's stand in cycles, which only
Python's collector finds. In a driver it seldom looks at the old ones: only when a quarter as many are new, of the
millions that its libraries made. So the plans of queries that are over stayed on Java's heap with what they had
broadcast, a page of 16 MB for each table however small: eight runs in one process went from 340 to 1,090 MB of
reachable heap (benchmarks/soak.py). Collected, there are 85 MB after each.
"""

from __future__ import annotations

import gc
import time
from threading import Lock

EVERY = 20.0
"""Seconds between two collections, each of which takes 0.4 s."""

_lock = Lock()
_last = time.monotonic()


def collect() -> None:
    """Collect, if it was not done lately. Threads may call it."""
    global _last
    with _lock:
        if time.monotonic() - _last < EVERY:
            return
        gc.collect()
        _last = time.monotonic()
