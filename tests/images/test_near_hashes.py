"""Hashes near to listed ones, against every pair compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.images import near_hashes
from i2e_pipeline.images.near_hashes import NEAR_BITS, NearHashes


def drawn(draw: np.random.Generator, count: int) -> np.ndarray:
    return draw.integers(0, 256, (count, 32), dtype=np.uint8)


def changed(hashes: np.ndarray, bits: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Each with so many of its bits turned over."""
    flat = np.unpackbits(hashes, axis=1)
    for row, count in zip(flat, bits, strict=True):
        row[draw.permutation(256)[:count]] ^= 1
    return np.packbits(flat, axis=1)


def pairs(found: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(zip(*(x.tolist() for x in found), strict=True))


def all_compared(rows: np.ndarray, listed: np.ndarray) -> list[tuple[int, int]]:
    differ = np.unpackbits(rows[:, None] ^ listed[None], axis=2).sum(axis=2)
    return sorted(map(tuple, np.argwhere(differ <= NEAR_BITS).tolist()))


@pytest.mark.parametrize("few", [0, 10_000], ids=["tables", "each with each"])
@given(seed=st.integers(0, 2**32 - 1), listed=st.integers(0, 60), copies=st.integers(0, 60))
def test_every_pair_is_found_and_no_other(few: int, seed: int, listed: int, copies: int) -> None:
    """Catches: a pair at the very limit that agrees in no band; one that is found in several bands and told twice."""
    draw = np.random.default_rng(seed)
    of_list = drawn(draw, listed)
    rows = drawn(draw, 5)
    if listed:
        of = draw.integers(0, listed, copies)
        rows = np.concatenate([rows, changed(of_list[of], draw.integers(NEAR_BITS - 8, NEAR_BITS + 3, copies), draw)])
        of_list = np.concatenate([of_list, of_list[: draw.integers(0, listed)]])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(near_hashes, "_FEW", few)
        assert pairs(NearHashes(of_list).find(rows)) == all_compared(rows, of_list)


def test_bits_that_are_spread_as_evenly_as_can_be_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """31 bits over 16 bands: two in each but one."""
    monkeypatch.setattr(near_hashes, "_FEW", 0)
    of_list = drawn(np.random.default_rng(1), 1)
    for spared in range(16):
        flat = np.unpackbits(of_list, axis=1)
        for band in range(16):
            flat[0, 16 * band] ^= 1
            flat[0, 16 * band + 7] ^= band != spared
        assert pairs(NearHashes(of_list).find(np.packbits(flat, axis=1))) == [(0, 0)], spared


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_a_picture_that_is_listed_ten_thousand_times_is_compared_in_parts(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: blank images, of which lists and shops are full, that take the memory of all pairs."""
    monkeypatch.setattr(near_hashes, "_PAIRS_AT_ONCE", at_once)
    blank = np.zeros((1, 32), dtype=np.uint8)
    listed = np.repeat(blank, 300 if at_once < 100 else 10_000, axis=0)
    rows, places = NearHashes(listed).find(np.concatenate([blank, ~blank]))
    assert rows.tolist() == [0] * len(listed)
    assert places.tolist() == list(range(len(listed)))


def test_nothing_is_near_to_nothing() -> None:
    nothing, one = np.empty((0, 32), dtype=np.uint8), np.zeros((1, 32), dtype=np.uint8)
    for of_list, rows in ((nothing, one), (one, nothing), (nothing, nothing)):
        assert pairs(NearHashes(of_list).find(rows)) == []
