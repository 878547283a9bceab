"""Windows: the stored images that a rank will need soon, read once per window of the order and let go when it is past.

A window's rows are few runs of neighbouring rows of row groups. They lie in Arrow's memory, and a row becomes a
Python object only when it is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from i2e_pipeline.train.order import Order, Places
from i2e_pipeline.train.samples import GroupReader, Samples


@dataclass(frozen=True)
class _Window:
    samples: np.ndarray
    """rising"""
    columns: list[pa.ChunkedArray]
    end: int
    """The position after the last one that leads here."""


class Windows:
    """Columns of the samples at positions that grow; for one thread at a time.

    Held at a time: the open window of each lane that the rank reads.
    """

    def __init__(self, samples: Samples, order: Order, columns: list[str]) -> None:
        self._samples, self._order, self._columns = samples, order, columns
        self._reader = GroupReader(samples)
        self._open: dict[tuple[int, int, int], _Window] = {}

    def read(self, places: Places) -> list[list[object]]:
        """Values of each column at each place: bytes, or None where the dataset holds a null, and texts."""
        first = int(places.position.min())
        self._open = {key: window for key, window in self._open.items() if window.end > first}
        values: list[list[object]] = [[None] * len(places) for _ in self._columns]
        keys = zip(places.epoch.tolist(), places.lane.tolist(), places.window.tolist(), strict=True)
        for slot, (key, sample) in enumerate(zip(keys, places.sample.tolist(), strict=True)):
            if key not in self._open:
                self._open[key] = self._load(*key)
            window = self._open[key]
            at = int(np.searchsorted(window.samples, sample))
            for column, out in zip(window.columns, values, strict=True):
                out[slot] = column[at].as_py()
        return values

    def _load(self, epoch: int, lane: int, window: int) -> _Window:
        wanted = np.sort(self._order.window_samples(epoch, lane, window))
        rows = self._samples.training[wanted]
        chunks: list[list[pa.Array]] = [[] for _ in self._columns]
        groups = np.searchsorted(self._samples.group_start_G, rows, side="right") - 1
        for group in np.unique(groups).tolist():
            within = rows[groups == group] - self._samples.group_start_G[group]
            for column, array in zip(chunks, self._reader.read(group, within, self._columns), strict=True):
                column.append(array)
        columns = [pa.chunked_array(column) for column in chunks]
        return _Window(wanted, columns, self._order.window_end(epoch, lane, window))
