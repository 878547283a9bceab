"""Images that look the same, found in buckets: two kernels with a shuffle between them.

    keyed    each image -> a row for each of its entities and each band of its signature
    near     rows in the order of their bucket -> pairs of images whose signatures differ in few bits

A signature has 256 bits: the perceptual hash, or the signs of the image's vector (signatures.py). Its bands are 16
times 16 bits. Images that share an entity and the bits of a band meet in a bucket. By the pigeonhole every pair of an
entity meets that differs in 15 bits or fewer. Edits of an image turn over bits of few bands, so most others meet, too:
of re-encoded, scaled, mirrored, watermarked and slightly cropped photos that differ in 31 bits or fewer, 997 in 1,000
do (benchmarks/near_duplicates.py). Images without an entity in common are never compared: of 10⁹ images, 16 bits are
shared by 15,000 strangers each, and two flags of other colours have one hash.

No bucket costs more than its rows times LEADERS. In one of more than ALL_PAIRS rows each row is compared with leaders:
rows that were near to no leader before them, in the order of their ids. So a picture that stands there 10⁵ times has
one leader and 10⁵ comparisons.

Legend: N rows, B bands, L leaders, M pairs that are near.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from i2e_pipeline.core.draws import hashed
from i2e_pipeline.core.ids import fixed_binary, fixed_bytes
from i2e_pipeline.images.near_hashes import BANDS, MIRROR

KEYED = pa.schema([("bucket", pa.int64()), ("image_id", pa.binary()), ("signature", pa.binary())])
NEAR = pa.schema([("a", pa.binary()), ("b", pa.binary())])
"""Pairs of image ids, a < b."""
ALL_PAIRS = 64
"""Rows of a bucket up to which each is compared with each."""
LEADERS = 1024
"""Rows of a larger bucket with which all others are compared. Those that are near to none of them are compared in other
buckets alone."""
_ROWS_AT_ONCE = 1 << 16

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def keyed(batches: Iterable[pa.RecordBatch], mirrored: bool) -> Iterator[pa.RecordBatch]:
    """KEYED of images.

    batches    image_id: binary(16), signature: binary(32), entities: list of int64
    mirrored   images and their mirror images meet in the same buckets; only for perceptual hashes
    """
    for batch in batches:
        if not batch.num_rows:
            continue
        lists = batch.column("entities")
        of_E = np.asarray(pa.compute.list_parent_indices(lists))
        entity_E = np.asarray(pa.compute.list_flatten(lists)).astype(np.int64)
        bands_NB = fixed_bytes(batch.column("signature"), 32).view(np.uint16)
        if mirrored:
            bands_NB = np.minimum(bands_NB, bands_NB ^ MIRROR.view(np.uint16))
        place_B = (np.arange(BANDS, dtype=np.uint64) << np.uint64(16)) + np.uint64(1)
        value_EB = bands_NB[of_E].astype(np.uint64) + place_B
        bucket_EB = hashed(hashed(entity_E, "entity")[:, None] ^ hashed(value_EB, "band"))
        row_EB = pa.array(np.repeat(of_E, BANDS))
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(bucket_EB.ravel().view(np.int64)),
                batch.column("image_id").cast(pa.binary()).take(row_EB),
                batch.column("signature").cast(pa.binary()).take(row_EB),
            ],
            schema=KEYED,
        )


def near(batches: Iterable[pa.RecordBatch], bits: int, mirrored: bool) -> Iterator[pa.RecordBatch]:
    """NEAR of whole buckets; a pair once for each that it meets in.

    batches    KEYED in the order of bucket and image_id
    bits       signatures of a pair differ in so many at the most
    mirrored   one of the two may be mirrored
    """
    comparing = _Comparing(bits, mirrored)
    begun: _Large | None = None
    left = _Rows.none()
    for batch in batches:
        rows = left.and_then(_Rows.of(batch))
        if not len(rows):
            continue
        last = int(np.searchsorted(rows.bucket_N, rows.bucket_N[-1]))
        whole, left = rows[:last], rows[last:]
        if begun is not None:
            of_begun = int(np.searchsorted(whole.bucket_N, begun.bucket, side="right"))
            yield from _told(begun.compare(whole[:of_begun]))
            whole = whole[of_begun:]
            if left.bucket_N[0] != begun.bucket:
                begun = None
        yield from _told(_whole_buckets(whole, comparing))
        if len(left) > _ROWS_AT_ONCE or (begun is not None and len(left)):
            begun = begun or _Large(int(left.bucket_N[0]), comparing)
            yield from _told(begun.compare(left))
            left = _Rows.none()
    yield from _told(begun.compare(left) if begun is not None else _whole_buckets(left, comparing))


class _Comparing:
    """What near means."""

    def __init__(self, bits: int, mirrored: bool) -> None:
        self.bits = bits
        self._mirror_4 = MIRROR.view(np.uint64) if mirrored else None

    def near(self, one: U64, other: U64) -> npt.NDArray[np.bool_]:
        """Of signatures (…, 4) that can be broadcast."""
        differ = one ^ other
        found = np.bitwise_count(differ).sum(axis=-1, dtype=np.int64) <= self.bits
        if self._mirror_4 is not None:
            found |= np.bitwise_count(differ ^ self._mirror_4).sum(axis=-1, dtype=np.int64) <= self.bits
        return np.asarray(found)


class _Rows:
    """Rows of KEYED as arrays."""

    def __init__(self, bucket_N: I64, id_N16: U8, words_N4: U64) -> None:
        self.bucket_N, self.id_N16, self.words_N4 = bucket_N, id_N16, words_N4

    @staticmethod
    def none() -> _Rows:
        return _Rows(np.empty(0, np.int64), np.empty((0, 16), np.uint8), np.empty((0, 4), np.uint64))

    @staticmethod
    def of(batch: pa.RecordBatch) -> _Rows:
        words_N4 = fixed_bytes(batch.column("signature"), 32).view(np.uint64)
        return _Rows(np.asarray(batch.column("bucket")), fixed_bytes(batch.column("image_id"), 16), words_N4)

    def __len__(self) -> int:
        return len(self.bucket_N)

    def __getitem__(self, part: slice | np.ndarray) -> _Rows:
        return _Rows(self.bucket_N[part], self.id_N16[part], self.words_N4[part])

    def and_then(self, other: _Rows) -> _Rows:
        if not len(self):
            return other
        return _Rows(
            *(np.concatenate([getattr(self, n), getattr(other, n)]) for n in ("bucket_N", "id_N16", "words_N4"))
        )


def _whole_buckets(rows: _Rows, comparing: _Comparing) -> Iterator[tuple[U8, U8]]:
    """Pairs of ids (M, 16) that are near, of buckets that are all there."""
    begins = np.flatnonzero(np.diff(rows.bucket_N, prepend=rows.bucket_N[:1] - 1)) if len(rows) else np.empty(0, int)
    sizes = np.diff(begins, append=len(rows))
    for begin, size in zip(begins[sizes > ALL_PAIRS].tolist(), sizes[sizes > ALL_PAIRS].tolist(), strict=True):
        yield from _Large(int(rows.bucket_N[begin]), comparing).compare(rows[begin : begin + size])
    size_N = np.repeat(sizes, sizes)
    few = rows[(size_N > 1) & (size_N <= ALL_PAIRS)]
    for apart in range(1, ALL_PAIRS):
        one = np.flatnonzero(few.bucket_N[apart:] == few.bucket_N[:-apart])
        if not len(one):
            return
        one = one[comparing.near(few.words_N4[one], few.words_N4[one + apart])]
        yield few.id_N16[one], few.id_N16[one + apart]


class _Large:
    """A bucket of many rows, which come in parts in the order of their ids."""

    def __init__(self, bucket: int, comparing: _Comparing) -> None:
        self.bucket, self._comparing = bucket, comparing
        self._leaders: list[tuple[U8, U64]] = []

    def compare(self, rows: _Rows) -> Iterator[tuple[U8, U8]]:
        """Pairs of each row with the first leader that it is near to."""
        for leader_id, leader in self._leaders:
            near_N = self._comparing.near(rows.words_N4, leader)
            yield self._with(leader_id, rows[near_N])
            rows = rows[~near_N]
        while len(rows) and len(self._leaders) < LEADERS:
            leader_id, leader = rows.id_N16[0], rows.words_N4[0]
            self._leaders.append((leader_id, leader))
            rows = rows[1:]
            near_N = self._comparing.near(rows.words_N4, leader)
            yield self._with(leader_id, rows[near_N])
            rows = rows[~near_N]

    @staticmethod
    def _with(leader_id: U8, rows: _Rows) -> tuple[U8, U8]:
        return np.broadcast_to(leader_id, rows.id_N16.shape), rows.id_N16


def _told(pairs: Iterable[tuple[U8, U8]]) -> Iterator[pa.RecordBatch]:
    parts = [(a, b) for a, b in pairs if len(a)]
    if parts:
        ends = (np.concatenate([part[end] for part in parts]) for end in (0, 1))
        yield pa.RecordBatch.from_arrays([fixed_binary(end) for end in ends], schema=NEAR)
