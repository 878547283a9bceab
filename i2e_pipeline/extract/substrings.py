"""Hashes of all substrings of a text from one pass over it: a polynomial hash modulo 2^64."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from i2e_pipeline.core.draws import GOLDEN, mixed

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_BASE = np.uint64(GOLDEN)
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


@lru_cache(maxsize=2)
def _powers(size: int) -> tuple[U64, U64]:
    up, down = np.full(size, _BASE), np.full(size, _INVERSE)
    up[0] = down[0] = 1
    return np.multiply.accumulate(up), np.multiply.accumulate(down)


class Substrings:
    """Hashes of all substrings of an array of code points."""

    def __init__(self, points: npt.NDArray[np.uint32]) -> None:
        size = 1 << max(12, len(points).bit_length())
        self.up, self.down = _powers(size)
        self.sums = np.zeros(len(points) + 1, dtype=np.uint64)
        np.cumsum(_values(points) * self.up[: len(points)], out=self.sums[1:])

    def __call__(self, starts: I64, ends: I64) -> U64:
        return mixed((self.sums[ends] - self.sums[starts]) * self.down[starts])

    def followed(self, starts: I64, ends: I64, by: U64) -> U64:
        """The hashes of the substrings with another string behind each, given as `continuation`."""
        return mixed((self.sums[ends] - self.sums[starts]) * self.down[starts] + by * self.up[ends - starts])


def _values(points: npt.NDArray[np.uint32]) -> U64:
    return mixed(points.astype(np.uint64) + np.uint64(0x632BE59BD9B4E019))


def continuation(string: str) -> np.uint64:
    """What a string adds to the hash of the one before it."""
    return np.uint64(int((_values(code_points([string])) * _powers(1 << 12)[0][: len(string)]).sum(dtype=np.uint64)))


def code_points(strings: list[str], separator: str = "") -> npt.NDArray[np.uint32]:
    return np.frombuffer(separator.join(strings).encode("utf-32-le", "replace"), dtype=np.uint32)


def hashes(strings: list[str]) -> U64:
    """The hash of each string."""
    lengths = np.fromiter(map(len, strings), dtype=np.int64, count=len(strings))
    ends = np.cumsum(lengths)
    return Substrings(code_points(strings))(ends - lengths, ends)


def places_among(keys: U64, values: U64) -> tuple[npt.NDArray[np.bool_], I64]:
    """Which values are among the sorted keys, and where."""
    if not len(keys):
        return np.zeros(len(values), dtype=bool), np.zeros(len(values), dtype=np.int64)
    places = np.searchsorted(keys, values)
    places = np.minimum(places, len(keys) - 1)
    return keys[places] == values, places
