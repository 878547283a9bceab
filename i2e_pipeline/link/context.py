"""What is known of each entity, as far as it helps to tell namesakes apart in a text.

Reads    kb/entities (entity_id, description, coarse_type, name_case), once, by rising entity_id
Writes   kb/context: a folder of flat arrays, memory-mapped by every worker of a machine together

An entity's context is the set of words of its description, hashed to 32 bits, its coarse type and how its name is
spelled. A text speaks for an entity as far as they share words, each weighted by how few descriptions have it. This
takes some 40 bytes per entity; building it holds one batch and a table of word counts in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.arrays import Arrays, new
from wikidata.common_words import FUNCTION_WORDS
from wikidata.surface import singulars
from wikidata.types import TYPES, UNKNOWN

FORMAT = 2
_HEADER = "context"
COLUMNS = ("entity_id", "description", "coarse_type", "name_case")
"""Of kb/entities, what `build` reads."""
_BUCKETS = 1 << 20
"""Buckets of the table of word counts. Words that share a bucket count as equally frequent, which does no harm."""
_WORD = re.compile(r"[^\W_]{2,}")

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]


@lru_cache(maxsize=1 << 17)
def _token(word: str) -> int:
    """A word's hash, the same for singular and plural; -1 for a function word."""
    if word in FUNCTION_WORDS:
        return -1
    base = singulars(word)
    return zlib.crc32((base[0] if base else word).encode("utf-8", "replace"))


def tokens(text: str) -> set[int]:
    """The hashes of a text's words, 32 bits each, without function words."""
    found = {_token(word) for word in _WORD.findall(text.lower())}
    found.discard(-1)
    return found


def build(batches: Iterable[pa.RecordBatch], folder: str | os.PathLike[str]) -> dict[str, int]:
    """Write the context of these entities to `folder`; returns what is in it.

    batches   COLUMNS: entity_id: int64, rising; description, coarse_type: string?; name_case: int8
    Raises ValueError where the ids do not rise.
    """
    counts = np.zeros(_BUCKETS, dtype=np.int64)
    entities = total = 0
    last = -1
    digests = [hashlib.blake2b(digest_size=16) for _ in range(5)]
    names = pa.array(TYPES.names)
    with new(folder, _HEADER) as store:
        streams = [store.stream(name) for name in ("ids", "ends", "words", "types", "cases")]
        for batch in batches:
            if not batch.num_rows:
                continue
            here = batch.column("entity_id").to_numpy(zero_copy_only=False).astype(np.int64)
            if here[0] <= last or (np.diff(here) <= 0).any():
                raise ValueError("kb/context is built from entities sorted by entity_id, each once; sort them first")
            last = int(here[-1])
            bags = [sorted(tokens(d)) if d else [] for d in batch.column("description").to_pylist()]
            flat = np.fromiter((t for bag in bags for t in bag), dtype=np.uint32)
            sizes = np.fromiter(map(len, bags), dtype=np.int64, count=len(bags))
            code = pc.index_in(_of(batch, "coarse_type", pa.string()), value_set=names).fill_null(UNKNOWN)
            type_, case = (
                np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int8)
                for column in (code, _of(batch, "name_case", pa.int8()).fill_null(0))
            )
            parts = (here, total + np.cumsum(sizes), flat, type_, case)
            for stream, digest, part in zip(streams, digests, parts, strict=True):
                stream.write(np.ascontiguousarray(part).data)
                digest.update(np.ascontiguousarray(part).data)
            counts += np.bincount(flat % _BUCKETS, minlength=_BUCKETS)
            entities += len(here)
            total += len(flat)
        store.save("rarity", np.log((entities + 1) / (counts + 1)).astype(np.float32))
        about = {"format": FORMAT, "entities": entities, "words": total}
        content = hashlib.blake2b(b"".join(digest.digest() for digest in digests), digest_size=16)
        store.header = {**about, "fingerprint": content.hexdigest()}
    return about


def _of(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    """A column, of nulls where the table was written before there was such a column."""
    return batch.column(name) if name in batch.schema.names else pa.nulls(batch.num_rows, kind)


class Context:
    """A built context, memory-mapped. Raises ArraysError for a folder that holds none, or one of another format."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        stored = Arrays(folder, _HEADER, FORMAT)
        self.fingerprint: str = stored.header["fingerprint"]
        self._ids: I64 = stored.numbers("ids", np.int64)
        self._ends: I64 = stored.numbers("ends", np.int64)
        self._words: U32 = stored.numbers("words", np.uint32)
        self._types = stored.numbers("types", np.int8)
        self._cases = stored.numbers("cases", np.int8)
        self._rarity: F32 = stored["rarity"]

    def rows(self, entity_ids: I64) -> I64:
        """Where each entity stands; -1 where it is unknown."""
        if not len(self._ids):
            return np.full(len(entity_ids), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._ids, entity_ids), len(self._ids) - 1)
        return np.where(self._ids[places] == entity_ids, places, -1)

    def types(self, rows: I64) -> npt.NDArray[np.int8]:
        """The code in `wikidata.types.TYPES` of each row's coarse type; -1 where unknown."""
        return self._of(self._types, rows, UNKNOWN)

    def cases(self, rows: I64) -> npt.NDArray[np.int8]:
        """`name_case` of each row; 0 where unknown."""
        return self._of(self._cases, rows, 0)

    @staticmethod
    def _of(values: npt.NDArray[np.int8], rows: I64, unknown: int) -> npt.NDArray[np.int8]:
        if not len(values):
            return np.full(len(rows), unknown, dtype=np.int8)
        return np.where(rows < 0, np.int8(unknown), values[np.maximum(rows, 0)])

    def words(self, rows: I64) -> tuple[I64, U32]:
        """The words of each row, flat, and for each word the place in `rows` that it belongs to."""
        known = np.flatnonzero(rows >= 0)
        ends = self._ends[rows[known]]
        starts = np.where(rows[known] > 0, self._ends[np.maximum(rows[known] - 1, 0)], 0)
        sizes = ends - starts
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.repeat(known, sizes), self._words[np.repeat(starts, sizes) + within]

    def rarity(self, words: U32) -> F32:
        """How rare each word is: ln of (entities + 1) / (entities whose description has it + 1)."""
        return self._rarity[words % _BUCKETS]
