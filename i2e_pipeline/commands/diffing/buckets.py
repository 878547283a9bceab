"""Rows dealt to buckets on disk, so that more rows can be compared than memory holds. Numpy alone.

An id is two uint64 here, most significant first: their order is that of its bytes and of its hex digits. A bucket is a
range of ids, so that buckets one after the other are all rows in the order of ids, however many buckets there are. Ids
are hashes: buckets are about equally large.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from i2e_pipeline.core.draws import mixed
from i2e_pipeline.core.ids import id_halves

_BITS_PER_ID = 16
_MOST_BITS = 1 << 31
"""Of a sieve: 256 MB."""


def ids_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """uint64 (N, 2) of a column of ids, in bytes or hex digits."""
    return id_halves(column).byteswap()


def hex_of(ids_N2: np.ndarray) -> pa.Array:
    """32 hex digits of each."""
    digits = np.ascontiguousarray(ids_N2).byteswap().tobytes().hex()
    return pa.array([digits[place : place + 32] for place in range(0, len(digits), 32)], pa.string())


def numbered(*parts: np.ndarray) -> list[np.ndarray]:
    """Ids of several arrays as numbers from 0 on, in the order of ids: equal ones where the ids are equal."""
    ids = np.concatenate([part.reshape(-1, 2) for part in parts])
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    in_order = ids[order]
    differs = (in_order[1:] != in_order[:-1]).any(axis=1)
    numbers = np.empty(len(ids), dtype=np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(differs)])[: len(ids)]
    return np.split(numbers, np.cumsum([len(part) for part in parts])[:-1])


class Spill:
    """Records of one kind, by bucket of the id that one of their fields holds. Threads may add to it."""

    def __init__(self, folder: Path, name: str, kind: npt.DTypeLike, buckets: int, by: str = "id") -> None:
        self.kind, self.buckets, self.rows = np.dtype(kind), buckets, 0
        self._at, self._by, self._lock = folder / name, by, threading.Lock()

    def add(self, records: np.ndarray) -> None:
        if not len(records):
            return
        bucket = (records[self._by][:, 0] >> np.uint64(32)) * np.uint64(self.buckets) >> np.uint64(32)
        order = np.argsort(bucket, kind="stable")
        records, ends = records[order], np.searchsorted(bucket[order], np.arange(1, self.buckets + 1))
        starts = np.concatenate([[0], ends[:-1]])
        with self._lock:
            self.rows += len(records)
            for n in np.flatnonzero(ends > starts):
                # Opened anew each time: there may be more buckets than a process may hold files open.
                with self._file(int(n)).open("ab") as file:
                    records[starts[n] : ends[n]].tofile(file)

    def take(self, bucket: int) -> np.ndarray:
        """The records of a bucket, in no order."""
        file = self._file(bucket)
        return np.fromfile(file, dtype=self.kind) if file.exists() else np.empty(0, dtype=self.kind)

    def drop(self) -> None:
        for bucket in range(self.buckets):
            self._file(bucket).unlink(missing_ok=True)

    def _file(self, bucket: int) -> Path:
        return self._at.with_name(f"{self._at.name}-{bucket}")


class Sieve:
    """Which ids may be among those that are looked for: all of these, and of others one in sixteen or so. Bits that a
    hash of the id picks, two bytes an id and at most 256 MB."""

    def __init__(self, ids: Iterable[np.ndarray], count: int) -> None:
        bits = 1 << 10
        while bits < min(_MOST_BITS, count * _BITS_PER_ID):
            bits <<= 1
        self._mask = np.uint64(bits - 1)
        self._bits = np.zeros(bits >> 3, dtype=np.uint8)
        for some in ids:
            place = self._place(some)
            np.bitwise_or.at(self._bits, place >> np.uint64(3), np.uint8(1) << (place & np.uint64(7)).astype(np.uint8))

    def lets(self, ids_N2: np.ndarray) -> np.ndarray:
        place = self._place(ids_N2)
        found = self._bits[place >> np.uint64(3)] >> (place & np.uint64(7)).astype(np.uint8)
        return np.asarray(found & np.uint8(1), dtype=bool)

    def _place(self, ids_N2: np.ndarray) -> np.ndarray:
        return np.asarray(mixed(ids_N2[:, 0] ^ mixed(ids_N2[:, 1])) & self._mask)
