"""Pairs of images that look the same, against every pair compared."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.clean import buckets
from i2e_pipeline.images.near_hashes import BANDS, MIRROR

Pair = tuple[bytes, bytes]


def image_ids(count: int) -> list[bytes]:
    return [b"%016d" % n for n in range(count)]


def rows_of(hashes: np.ndarray, entities: list[list[int]]) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "image_id": pa.array(image_ids(len(hashes)), pa.binary()),
            "signature": pa.array([h.tobytes() for h in hashes], pa.binary()),
            "entities": pa.array(entities, pa.list_(pa.int64())),
        }
    )


def in_order(rows: Iterable[pa.RecordBatch], per_batch: int) -> list[pa.RecordBatch]:
    """As Spark's sort leaves them, in batches."""
    table = pa.Table.from_batches(list(rows), buckets.KEYED)
    return table.sort_by([("bucket", "ascending"), ("image_id", "ascending")]).to_batches(per_batch)


def found(batches: Iterable[pa.RecordBatch], bits: int, mirrored: bool) -> set[Pair]:
    told = pa.Table.from_batches(list(buckets.near(batches, bits, mirrored)), buckets.NEAR)
    assert all(a < b for a, b in zip(*(c.to_pylist() for c in told.columns), strict=True))
    return set(zip(*(c.to_pylist() for c in told.columns), strict=True))


def apart(one: np.ndarray, other: np.ndarray, mirrored: bool) -> int:
    ways = [one ^ other, *([one ^ other ^ MIRROR] if mirrored else [])]
    return min(int(np.unpackbits(way).sum()) for way in ways)


def meet(one: np.ndarray, other: np.ndarray, mirrored: bool) -> bool:
    ways = [other, *([other ^ MIRROR] if mirrored else [])]
    return any((one.view(np.uint16) == way.view(np.uint16)).any() for way in ways)


def edited(of: np.ndarray, bits: int, draw: np.random.Generator) -> np.ndarray:
    flat = np.unpackbits(of)
    flat[draw.permutation(256)[:bits]] ^= 1
    return np.packbits(flat)


def some_hashes(draw: np.random.Generator, count: int) -> np.ndarray:
    """Some of their own, some edited or mirrored from one before."""
    made = [draw.integers(0, 256, 32, dtype=np.uint8)]
    while len(made) < count:
        of = made[draw.integers(0, len(made))]
        kind = draw.integers(0, 4)
        new = draw.integers(0, 256, 32, dtype=np.uint8) if kind == 0 else edited(of, int(draw.integers(0, 36)), draw)
        made.append(new ^ MIRROR if kind == 3 else new)
    return np.stack(made)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), mirrored=st.booleans(), per_batch=st.integers(1, 200))
def test_pairs_of_an_entity_are_found_and_no_other(seed: int, count: int, mirrored: bool, per_batch: int) -> None:
    """Catches: a bucket cut in two by a batch's end; images of no common entity compared."""
    draw = np.random.default_rng(seed)
    hashes = some_hashes(draw, count)
    entities = [sorted(set(draw.integers(0, 3, draw.integers(1, 3)).tolist())) for _ in range(count)]
    keyed = buckets.keyed([rows_of(hashes, entities)], mirrored)
    ids = image_ids(count)
    wanted = {
        (ids[i], ids[j])
        for i in range(count)
        for j in range(i + 1, count)
        if set(entities[i]) & set(entities[j])
        and apart(hashes[i], hashes[j], mirrored) <= 31
        and meet(hashes[i], hashes[j], mirrored)
    }
    assert found(in_order(keyed, per_batch), 31, mirrored) == wanted


def test_every_pair_within_15_bits_meets() -> None:
    draw = np.random.default_rng(2)
    hashes = [draw.integers(0, 256, 32, dtype=np.uint8)]
    hashes += [edited(hashes[0], 15, draw) for _ in range(60)]
    keyed = list(buckets.keyed([rows_of(np.stack(hashes), [[7]] * 61)], False))
    assert sum(batch.num_rows for batch in keyed) == 61 * BANDS
    first = image_ids(1)[0]
    assert {b for a, b in found(in_order(keyed, 1000), 15, False) if a == first} == set(image_ids(61)[1:])


@pytest.mark.parametrize("per_batch", [1, 7, 100, 10_000])
@pytest.mark.parametrize("at_once", [3, 1 << 16])
def test_a_picture_that_stands_there_very_often_is_compared_once_for_each(
    monkeypatch: pytest.MonkeyPatch, per_batch: int, at_once: int
) -> None:
    """Catches: n² comparisons of a stock image; a result that depends on the size of batches."""
    monkeypatch.setattr(buckets, "_ROWS_AT_ONCE", at_once)
    compared = []
    near = buckets._Comparing.near

    def counted(self: buckets._Comparing, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        answer = near(self, one, other)
        compared.append(len(answer))
        return answer

    monkeypatch.setattr(buckets._Comparing, "near", counted)
    draw = np.random.default_rng(3)
    stock = draw.integers(0, 256, 32, dtype=np.uint8)
    often = [edited(stock, int(draw.integers(0, 4)), draw) for _ in range(600)]
    others = [draw.integers(0, 256, 32, dtype=np.uint8) for _ in range(50)]
    hashes = np.stack([*often, *others])
    # All in one bucket, whatever their bits.
    one_bucket = pa.record_batch(
        {
            "bucket": pa.array([5] * 650, pa.int64()),
            "image_id": pa.array(image_ids(650), pa.binary()),
            "signature": pa.array([h.tobytes() for h in hashes], pa.binary()),
        },
        schema=buckets.KEYED,
    )
    before, behind = (
        pa.record_batch(one_bucket.slice(0, 2).set_column(0, "bucket", pa.array([n] * 2, pa.int64()))) for n in (4, 6)
    )
    pairs = found(in_order([one_bucket, before, behind], per_batch), 31, False)
    first = image_ids(1)[0]
    assert pairs == {(first, other) for other in image_ids(600)[1:]}
    assert sum(compared) <= 600 + 50 * 51 / 2 + 10


def test_leaders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are near to none of so many leaders are left to other buckets."""
    monkeypatch.setattr(buckets, "LEADERS", 10)
    draw = np.random.default_rng(4)
    strangers = draw.integers(0, 256, (100, 32), dtype=np.uint8)
    hashes = np.concatenate([strangers, strangers])
    rows = pa.record_batch(
        {
            "bucket": pa.array([5] * 200, pa.int64()),
            "image_id": pa.array(image_ids(200), pa.binary()),
            "signature": pa.array([h.tobytes() for h in hashes], pa.binary()),
        },
        schema=buckets.KEYED,
    )
    ids = image_ids(200)
    assert found([rows], 31, False) == {(ids[n], ids[100 + n]) for n in range(10)}
