"""Windows: which row groups a rank holds in memory, and when it reads them.

Reads    columns of the images that are trained on, row group by row group
Writes   Group: a row group's columns in Arrow's memory; a row becomes a Python object only when it is decoded

A window is the part of a lane whose rows are shuffled among each other (order.py). When a window opens, the row groups
that have rows in it are read. A row group is dropped when the last open window with rows of it is past.

So a row group is read once in an epoch. Where the lanes of two ranks meet inside a row group, both ranks read it. A row
group that is still held when the next epoch begins is not read again: a dataset that fits into the open windows is read
once for all epochs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from i2e_pipeline.train.order import Order, Places
from i2e_pipeline.train.samples import GroupReader, Samples


@dataclass(frozen=True)
class Group:
    """The images of a row group that are trained on."""

    number: int
    first: int
    """Their first sample; they are numbered through."""
    columns: list[pa.Array]

    def __len__(self) -> int:
        return len(self.columns[0])

    def value(self, column: int, sample: int) -> bytes | str | None:
        """None where the dataset holds a null."""
        value: bytes | str | None = self.columns[column][sample - self.first].as_py()
        return value


class Groups:
    """Reads row groups; for one thread at a time."""

    def __init__(self, samples: Samples, columns: list[str]) -> None:
        self._samples, self._columns = samples, columns
        self._reader = GroupReader(samples)
        self._ends_G = np.cumsum(samples.sizes_G)
        self.reads = 0
        """Row groups read so far."""

    def __len__(self) -> int:
        return len(self._ends_G)

    def of(self, samples: np.ndarray) -> np.ndarray:
        """The number of each sample's row group."""
        return np.searchsorted(self._ends_G, samples, side="right")

    def read(self, number: int) -> Group:
        first = int(self._ends_G[number - 1]) if number else 0
        rows = self._samples.training[first : self._ends_G[number]]
        within = rows - self._samples.group_start_G[number]
        self.reads += 1
        return Group(number, first, self._reader.read(number, within, self._columns))


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


class Windows:
    """Row groups of the samples at positions that grow; for one thread at a time.

    Held at a time: the row groups of the window that is open in each lane that the rank reads. Per lane these are about
    `window` images, or a row group where that is larger; never more than `window` and two row groups.
    """

    def __init__(self, order: Order, groups: Groups) -> None:
        self._order, self._groups = order, groups
        self._open: dict[tuple[int, int, int], tuple[int, frozenset[int]]] = {}
        """The position after the last one that leads into the window, and its row groups."""
        self.held: dict[int, Group] = {}
        """By number."""

    def read(self, places: Places) -> list[Group]:
        """The row group of the sample at each place."""
        first = int(places.position.min())
        self._open = {key: window for key, window in self._open.items() if window[0] > first}
        for key in np.unique(np.stack([places.epoch, places.lane, places.window]), axis=1).T.tolist():
            which = (key[0], key[1], key[2])
            if which not in self._open:
                numbers = np.unique(self._groups.of(self._order.window_samples(*which)))
                self._open[which] = (self._order.window_end(*which), frozenset(numbers.tolist()))
        wanted = frozenset[int]().union(*(numbers for _, numbers in self._open.values()))
        # Past ones go before new ones are read, but not those that a new window shares.
        self.held = {number: group for number, group in self.held.items() if number in wanted}
        for number in sorted(wanted - self.held.keys()):
            self.held[number] = self._groups.read(number)
        return [self.held[number] for number in self._groups.of(places.sample).tolist()]
