"""Draws without a generator: a number for each (thing, purpose), the same on every machine, in any order.

A run that goes on, or one on other ranks or partitions, draws what the first would have drawn: nothing was consumed.
"""

from __future__ import annotations

import zlib

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al., OOPSLA 2014), a bijection of uint64."""
    x = np.asarray(x, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(x: np.ndarray, *purpose: int | str) -> np.ndarray:
    """uint64 hashes of integers `x`, others for each purpose (names and integers: seed, epoch …)."""
    x = np.asarray(x)
    x = (x if x.dtype == np.uint64 else x.astype(np.int64)).astype(np.uint64)
    for part in purpose:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else int(part)
        salt = np.uint64(((number & _MASK) * _GOLDEN + _GOLDEN) & _MASK)
        x = mixed(x ^ mixed(np.asarray(salt)))
    return x


def uniform(hashes: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) of uint64 hashes: their upper 53 bits."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
