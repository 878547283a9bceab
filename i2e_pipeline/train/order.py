"""The order of training: which sample stands at each position of an endless stream of epochs.

    position p  =  epoch · n + i,  0 ≤ i < n          step s takes the positions [s · B, (s + 1) · B)

An epoch is a permutation of the n samples, by hash of (seed, epoch). How many ranks, decode workers or micro-batches
there are is no part of it, so that a training goes on from one integer on any other number of them.

A row group is read as a whole, so an epoch mixes without jumping about: row groups in the order of a hash form one
sequence, which is cut into lanes of equal length; the rows of a lane are shuffled within windows; position i belongs
to lane i mod L. A batch thus has rows of every lane. Its slots are ordered by lane, and a rank, which takes a
contiguous part of the slots, reads its own lanes. Small datasets are one lane and one window: shuffled as a whole.

A row group is read once in an epoch: windows end where row groups end, and every other lane runs backwards, so that
the two lanes that share a row group come to it together, at the epoch's start or at its end.

    sequence    g7 g7 g7 g2 g2 | g2 g4 g4 g4 g1 | g1 g1 g3 g3 g3 | …
                lane 0 →         ← lane 1         lane 2 →

Legend: G row groups, L lanes, B batch, W ranks, A micro-batches per step.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from i2e_pipeline.core.draws import hashed
from i2e_pipeline.core.errors import I2EError

WHOLE = 16_384
"""Up to so many samples an epoch is one shuffle."""
HELD = 2
"""The row groups of all open windows together may have so many times lanes x window rows."""
WINDOWS_AHEAD = 4
"""So many windows of a lane may be planned beyond the open one (windows.py)."""


class OrderError(I2EError, ValueError):
    """A batch that cannot be cut as asked; the message names the numbers and the setting."""


@dataclass(frozen=True)
class Places:
    """Where positions lead; arrays of one length."""

    position: np.ndarray
    epoch: np.ndarray
    lane: np.ndarray
    window: np.ndarray
    """number of the window within epoch and lane"""
    sample: np.ndarray
    """0 … n − 1"""

    def __len__(self) -> int:
        return len(self.position)


class Order:
    """The stream of samples. All integers are int64; nothing is stored but the row groups' sizes and open windows."""

    def __init__(
        self, sizes_G: np.ndarray, *, batch_size: int, lanes: int, window: int, seed: int = 0, shuffle: bool = True
    ) -> None:
        """sizes_G: samples in each row group; samples are numbered through, row group after row group.

        Raises OrderError where there is no sample.
        """
        self._sizes_G = np.asarray(sizes_G, dtype=np.int64)
        self._starts_G = np.cumsum(self._sizes_G) - self._sizes_G
        self.samples = int(self._sizes_G.sum())
        if not self.samples:
            raise OrderError("there is no sample to order")
        self.seed, self.shuffle = seed, shuffle
        # A dataset that fits into the lanes' windows is shuffled along the whole lane.
        fits = self.samples <= max(lanes * window, WHOLE)
        wanted = min(lanes, -(-self.samples // max(window, WHOLE))) if shuffle else 1
        if not fits:
            # A lane holds a row group at least: fewer lanes where these are large, or memory would grow with them.
            of_a_row = int((self._sizes_G**2).sum()) // self.samples
            wanted = min(wanted, max(1, HELD * lanes * window // max(window, of_a_row)))
        # A divisor of the batch: every batch then has equally many rows of each lane, and ranks keep their lanes.
        self.lanes = max(d for d in range(1, min(wanted, batch_size) + 1) if batch_size % d == 0)
        self.window = -(-self.samples // self.lanes) if shuffle and fits else window
        # Lanes change windows one after the other, not all in the same step: reading is spread evenly.
        self._stagger = 0 if fits else self.window // self.lanes
        self._ends: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._groups: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def at(self, positions: np.ndarray) -> Places:
        """Where each position leads."""
        positions = np.asarray(positions, dtype=np.int64)
        epoch, i = np.divmod(positions, self.samples)
        offset, lane = np.divmod(i, self.lanes)
        window, sample = np.empty_like(positions), np.empty_like(positions)
        keys = epoch * self.lanes + lane
        for key in np.unique(keys).tolist():
            in_lane = np.flatnonzero(keys == key)
            in_epoch, of_lane = divmod(key, self.lanes)
            ends = self._window_ends(in_epoch, of_lane)
            window[in_lane] = np.searchsorted(ends, offset[in_lane], side="right")
            for number in np.unique(window[in_lane]).tolist():
                here = in_lane[window[in_lane] == number]
                first = int(ends[number - 1]) if number else 0
                sample[here] = self.window_samples(in_epoch, of_lane, number)[offset[here] - first]
        return Places(positions, epoch, lane, window, sample)

    def share(self, start: int, size: int, rank: int = 0, world_size: int = 1) -> Places:
        """What a rank takes of the micro-batch at the positions [start, start + size): size / W slots, by lane.

        Raises OrderError where the ranks do not divide the micro-batch.
        """
        if size % world_size:
            raise OrderError(f"a micro-batch of {size} cannot be cut over {world_size} ranks")
        positions = np.arange(start, start + size, dtype=np.int64)
        slots = positions[np.argsort(positions % self.samples % self.lanes, kind="stable")]
        part = size // world_size
        return self.at(slots[rank * part : (rank + 1) * part])

    def window_samples(self, epoch: int, lane: int, window: int) -> np.ndarray:
        """The samples of a window, in the order in which they come."""
        key = (epoch, lane, window)
        if key not in self._windows:
            ends = self._window_ends(epoch, lane)
            first, last = int(ends[window - 1]) if window else 0, int(ends[window])
            lane_first, lane_last = self._extent(lane)
            start = lane_last - last if lane % 2 else lane_first + first
            samples = self._in_sequence(epoch, np.arange(start, start + last - first))
            if self.shuffle:
                samples = samples[np.argsort(hashed(samples, "window", self.seed, epoch), kind="stable")]
            self._windows[key] = samples
            while len(self._windows) > (2 + WINDOWS_AHEAD) * self.lanes + 2:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def window_end(self, epoch: int, lane: int, window: int) -> int:
        """The position after the last one that leads into a window."""
        last = int(self._window_ends(epoch, lane)[window])
        return epoch * self.samples + (last - 1) * self.lanes + lane + 1

    def window_start(self, epoch: int, lane: int, window: int) -> int:
        """The first position that leads into a window."""
        first = int(self._window_ends(epoch, lane)[window - 1]) if window else 0
        return epoch * self.samples + first * self.lanes + lane

    def window_after(self, epoch: int, lane: int, window: int) -> tuple[int, int, int]:
        """Epoch, lane and number of the window that opens in a lane when this one is past."""
        if window + 1 < len(self._window_ends(epoch, lane)):
            return epoch, lane, window + 1
        return epoch + 1, lane, 0

    def _extent(self, lane: int) -> tuple[int, int]:
        """Where a lane begins and ends in the sequence of row groups."""
        length, longer = divmod(self.samples, self.lanes)
        return lane * length + min(lane, longer), (lane + 1) * length + min(lane + 1, longer)

    def _window_ends(self, epoch: int, lane: int) -> np.ndarray:
        """Ends of a lane's windows, counted along the lane: those ends of row groups nearest to every `window` rows."""
        key = (epoch, lane)
        if key not in self._ends:
            first, last = self._extent(lane)
            wanted = np.arange(self.window - lane * self._stagger, last - first, self.window)
            _, ends_G = self._sequence(epoch)
            inside = ends_G[np.searchsorted(ends_G, first, side="right") : np.searchsorted(ends_G, last)]
            if len(wanted) and len(inside):
                groups = (last - inside)[::-1] if lane % 2 else inside - first
                above = np.searchsorted(groups, wanted)
                low, high = groups[np.maximum(above - 1, 0)], groups[np.minimum(above, len(groups) - 1)]
                wanted = np.where(wanted - low <= high - wanted, low, high)
            else:
                wanted = wanted[:0]
            self._ends[key] = np.unique(np.append(wanted, last - first))
            while len(self._ends) > (2 + WINDOWS_AHEAD) * self.lanes + 2:
                self._ends.popitem(last=False)
        self._ends.move_to_end(key)
        return self._ends[key]

    def _sequence(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's sequence of row groups, and where each ends in it."""
        if epoch not in self._groups:
            order_G = np.arange(len(self._sizes_G))
            if self.shuffle:
                order_G = np.argsort(hashed(order_G, "group", self.seed, epoch), kind="stable")
            self._groups[epoch] = (order_G, np.cumsum(self._sizes_G[order_G]))
            while len(self._groups) > 2 + WINDOWS_AHEAD:
                self._groups.popitem(last=False)
        return self._groups[epoch]

    def _in_sequence(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Samples at places of the epoch's sequence of row groups."""
        order_G, ends_G = self._sequence(epoch)
        turn = np.searchsorted(ends_G, places, side="right")
        group = order_G[turn]
        return self._starts_G[group] + places - (ends_G[turn] - self._sizes_G[group])


def micro_batch_size(batch_size: int, world_size: int, accumulate: int) -> int:
    """Global size of a micro-batch, B / A. Raises OrderError where ranks and parts do not divide the batch."""
    if batch_size % (world_size * accumulate):
        fits = max(1, batch_size // (world_size * accumulate)) * world_size * accumulate
        raise OrderError(
            f"train.data.batch_size is {batch_size}, which {world_size} ranks of {accumulate} micro-batches "
            f"(train.accumulate) do not divide: {fits} would do"
        )
    return batch_size // accumulate
