"""Windows: which row groups a rank holds in memory, and when it reads them.

Reads    row groups of the training (groups.py)
Writes   for each sample that is asked for its row group

A window is the part of a lane whose rows are shuffled among each other (order.py). When a window opens, the row groups
that have rows in it are needed. A row group is dropped when the last open window with rows of it is past.

So a row group is read once in an epoch. Where the lanes of two ranks meet inside a row group, both ranks read it. A row
group that is still held when the next epoch begins is not read again: a dataset that fits into the open windows is read
once for all epochs.

Behind a slow store the windows that open next are read ahead, several row groups at a time, up to a number of bytes.
"""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from i2e_pipeline.train.groups import Group, Groups
from i2e_pipeline.train.order import WINDOWS_AHEAD, Order, Places

_Key = tuple[int, int, int]
"""epoch, lane, window"""


def _failed(reading: Future[Group]) -> bool:
    return reading.done() and reading.exception() is not None


class LastGroups:
    """Any row group, the `keep` last used ones held; for any number of threads."""

    def __init__(self, groups: Groups, keep: int) -> None:
        self._groups, self._keep = groups, keep
        self._held: OrderedDict[int, Group] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> Group:
        with self._lock:
            if number not in self._held:
                while len(self._held) >= self._keep:
                    self._held.popitem(last=False)
                self._held[number] = self._groups.read(number)
            self._held.move_to_end(number)
            return self._held[number]


@dataclass(frozen=True)
class _Window:
    key: _Key
    end: int
    """The position after the last one that leads into it."""
    groups: frozenset[int]


class Windows:
    """Row groups of the samples at positions that grow; for one thread at a time.

    Held at a time: the row groups of the window that is open in each lane that the rank reads. Per lane these are about
    `window` images, or a row group where that is larger; never more than `window` and two row groups. Beside them those
    that were read ahead.
    """

    def __init__(
        self, order: Order, groups: Groups, readers: int = 0, ahead_bytes: int = 0, stop: int | None = None
    ) -> None:
        """readers       threads that read, each a row group at a time; 0: it is read when it is needed
        ahead_bytes   of row groups that no open window needs; one of them may be larger than that
        stop          the position where the training ends
        """
        self._order, self._groups, self._ahead_bytes, self._stop = order, groups, ahead_bytes, stop
        self._pool = ThreadPoolExecutor(readers, "read") if readers else None
        self._open: dict[_Key, _Window] = {}
        self._planned: dict[_Key, _Window] = {}
        """Windows that nobody has asked for yet."""
        self._reading: dict[int, Future[Group]] = {}
        """By number; whole or under way."""

    @property
    def held(self) -> dict[int, Group]:
        """Row groups in memory, by number."""
        return {n: r.result() for n, r in self._reading.items() if r.done() and r.exception() is None}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, places: Places) -> list[Group]:
        """The row group of the sample at each place."""
        first = int(places.position.min())
        self._open = {key: window for key, window in self._open.items() if window.end > first}
        self._planned = {key: window for key, window in self._planned.items() if window.end > first}
        for key in np.unique(np.stack([places.epoch, places.lane, places.window]), axis=1).T.tolist():
            which = (key[0], key[1], key[2])
            if which not in self._open:
                planned = self._planned.pop(which) if which in self._planned else None
                self._open[which] = planned or self._window(which)
        needed = frozenset[int]().union(*(window.groups for window in self._open.values()))
        wanted = needed.union(*(window.groups for window in self._planned.values()))
        # Past ones go before new ones are read, but not those that a new window shares. What failed while it was read
        # ahead is asked for once more: that may be minutes ago.
        self._reading = {
            number: reading
            for number, reading in self._reading.items()
            if number in wanted and not (number in needed and _failed(reading))
        }
        numbers = self._groups.of(places.sample).tolist()
        self._start([*dict.fromkeys(numbers), *sorted(needed)])
        if self._pool is not None and self._ahead_bytes:
            self._plan_ahead(set(places.lane.tolist()), needed)
        return [self._reading[number].result() for number in numbers]

    def _window(self, key: _Key) -> _Window:
        groups = np.unique(self._groups.of(self._order.window_samples(*key)))
        return _Window(key, self._order.window_end(*key), frozenset(groups.tolist()))

    def _start(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if number in self._reading:
                continue
            if self._pool is not None:
                self._reading[number] = self._pool.submit(self._groups.read, number)
            else:
                read: Future[Group] = Future()
                read.set_result(self._groups.read(number))
                self._reading[number] = read

    def _plan_ahead(self, lanes: set[int], needed: frozenset[int]) -> None:
        """Begins to read what opens next in these lanes, the earliest first."""
        ahead = sum(self._groups.bytes_of(number) for number in self._reading.keys() - needed)
        for window in self._next_windows(lanes):
            for number in sorted(window.groups - self._reading.keys()):
                size = self._groups.bytes_of(number)
                if ahead and ahead + size > self._ahead_bytes:
                    return
                self._start([number])
                ahead += size

    def _next_windows(self, lanes: set[int]) -> Iterator[_Window]:
        """The windows that open next, in their order; they are planned as they are asked for."""
        last = {lane: max(key for key in self._open if key[1] == lane) for lane in lanes}
        following = [self._order.window_after(*key) for key in last.values()]
        opening = [(self._order.window_start(*key), key, 0) for key in following]
        heapq.heapify(opening)
        while opening:
            position, key, beyond = heapq.heappop(opening)
            if self._stop is not None and position >= self._stop:
                return
            self._planned[key] = window = self._planned.get(key) or self._window(key)
            yield window
            if beyond + 1 < WINDOWS_AHEAD:
                after_it = self._order.window_after(*key)
                heapq.heappush(opening, (self._order.window_start(*after_it), after_it, beyond + 1))
