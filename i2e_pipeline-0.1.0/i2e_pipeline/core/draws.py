"""Draws without a generator: a number for each (thing, purpose), the same on every machine, in any order.

A run that goes on, or one on other ranks or partitions, draws what the first would have drawn: nothing was consumed.

All of them come from splitmix64 (Steele et al., OOPSLA 2014), here in its three forms: of numpy's uint64, of Python's
integers and of torch's int64.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, odd: what splitmix64 adds between two draws."""
_MASK = (1 << 64) - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser of each number, a bijection of uint64."""
    x = np.asarray(x, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def drawn(x: int) -> int:
    """splitmix64's draw that follows state `x`: 64 bits in, 64 well mixed bits out."""
    return int(mixed(np.asarray((x + GOLDEN) & _MASK, dtype=np.uint64)))


def mix_(x: Tensor) -> Tensor:
    """The finaliser of int64 in place, on the tensor's own device, with the bits that `mixed` gives."""
    # torch has no products of uint64, and those of int64 wrap around to the same bits. Its shift drags the sign along,
    # which the masks take off.
    x ^= (x >> 30) & (2**34 - 1)
    x *= signed(_FIRST)
    x ^= (x >> 27) & (2**37 - 1)
    x *= signed(_SECOND)
    x ^= (x >> 31) & (2**33 - 1)
    return x


def signed(x: int) -> int:
    """The int64 with the same 64 bits."""
    return x - 2**64 if x >= 2**63 else x


def hashed(x: np.ndarray, *purpose: int | str) -> np.ndarray:
    """uint64 hashes of the integers `x`. Each purpose (names and integers: seed, epoch …) gives other ones."""
    x = np.asarray(x)
    x = (x if x.dtype == np.uint64 else x.astype(np.int64)).astype(np.uint64)
    for part in purpose:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else int(part)
        salt = np.uint64(((number & _MASK) * GOLDEN + GOLDEN) & _MASK)
        x = mixed(x ^ mixed(np.asarray(salt)))
    return x


def uniform(hashes: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) of uint64 hashes: their upper 53 bits."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
