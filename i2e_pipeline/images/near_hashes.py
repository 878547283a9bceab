"""Perceptual hashes that are near to listed ones, of many million.

Two hashes of 256 bits that differ in at most 31 agree in one of their 16 bands of 16 bits, up to one bit: else each
band would differ in two or more, 32 in all. So the list lies in a table for each band, a row asks each of them for its
own value and the 16 values beside it, and only what is found so is compared whole: one row in 241 of a list of random
hashes (multi-index hashing: Norouzi, Punjani & Fleet, CVPR 2012, §3).

Legend: N rows, K listed hashes, P probes, M pairs that are compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BYTES, BANDS = 32, 16
NEAR_BITS = 31
"""Hashes that differ in no more are of the same picture (images/decode.py)."""
MIRROR: npt.NDArray[np.uint8] = np.packbits(np.tile(np.arange(1, 17) % 2 == 1, (16, 1)))
"""uint8 (32,): the bits that differ between the hashes of an image and of its mirror image, but for those of
frequencies next to the median. A mirror turns over the sign of the odd frequencies across and of no other."""
_VALUES = 1 << 16
_BESIDE_P = np.array([0, *(1 << bit for bit in range(16))], dtype=np.uint16)
"""What a band's value is changed by: itself, and one bit each."""
_FEW = 256
"""Listed hashes that are compared with every row: the tables gain nothing."""
_ROWS_AT_ONCE = 4096
_PAIRS_AT_ONCE = 1 << 20
"""Pairs that are compared at the same time, 64 MB."""

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


class NearHashes:
    """A list of hashes, uint8 (K, 32), that is asked which of them are near."""

    def __init__(self, listed_K32: U8) -> None:
        self._words_K4 = _words(listed_K32)
        self._tables: list[tuple[I64, I64]] = []
        if len(listed_K32) > _FEW:
            for band_K in _bands(listed_K32).T:
                order_K = np.argsort(band_K, kind="stable")
                ends_V = np.cumsum(np.bincount(band_K, minlength=_VALUES))
                self._tables.append((order_K, np.concatenate([[0], ends_V])))

    def find(self, hashes_N32: U8) -> tuple[I64, I64]:
        """Rows and listed hashes that are near, each pair once, by row and then by place in the list."""
        parts = [self._compared(hashes_N32, row_M, listed_M) for row_M, listed_M in self._candidates(hashes_N32)]
        row_M = np.concatenate([np.empty(0, np.int64), *(row for row, _ in parts)])
        listed_M = np.concatenate([np.empty(0, np.int64), *(listed for _, listed in parts)])
        # A pair may agree in several bands.
        pair_M = np.unique(row_M * max(1, len(self._words_K4)) + listed_M)
        return np.divmod(pair_M, max(1, len(self._words_K4)))

    def _compared(self, hashes_N32: U8, row_M: I64, listed_M: I64) -> tuple[I64, I64]:
        differ_M4 = _words(hashes_N32)[row_M] ^ self._words_K4[listed_M]
        near_M = np.bitwise_count(differ_M4).sum(axis=1, dtype=np.int64) <= NEAR_BITS
        return row_M[near_M], listed_M[near_M]

    def _candidates(self, hashes_N32: U8) -> Iterator[tuple[I64, I64]]:
        """Rows and listed hashes to compare, _PAIRS_AT_ONCE of them at the most."""
        if not self._tables:
            count = len(self._words_K4)
            step = max(1, _PAIRS_AT_ONCE // max(1, count))
            for start in range(0, len(hashes_N32), step):
                row_N = np.arange(start, min(start + step, len(hashes_N32)))
                yield np.repeat(row_N, count), np.tile(np.arange(count), len(row_N))
            return
        for start in range(0, len(hashes_N32), _ROWS_AT_ONCE):
            bands_NB = _bands(hashes_N32[start : start + _ROWS_AT_ONCE])
            for (order_K, begins_V), band_N in zip(self._tables, bands_NB.T, strict=True):
                value_NP = (band_N[:, None] ^ _BESIDE_P).ravel()
                first_P, count_P = begins_V[value_NP], begins_V[value_NP.astype(np.int64) + 1] - begins_V[value_NP]
                row_P = start + np.repeat(np.arange(len(band_N)), len(_BESIDE_P))
                for some in _bounded(count_P):
                    counts = count_P[some]
                    places = np.repeat(first_P[some] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
                    yield np.repeat(row_P[some], counts), order_K[places]


def _bounded(count_P: I64) -> Iterator[slice]:
    """Parts of the probes that find _PAIRS_AT_ONCE or fewer, or are one probe."""
    ends_P = np.cumsum(count_P)
    start = 0
    while start < len(count_P):
        before = ends_P[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends_P, before + _PAIRS_AT_ONCE, side="right")))
        yield slice(start, end)
        start = end


def _words(hashes_N32: U8) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(hashes_N32).view(np.uint64)


def _bands(hashes_N32: U8) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(hashes_N32).view(np.uint16)
