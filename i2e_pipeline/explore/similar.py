"""Nearest images, and images that fit a text, where the run kept its vectors (`image_vectors`).

Up to EXACT images are compared one by one; more have an index of their own (USearch: HNSW over half floats, memory
mapped), which `i2e explore --similar` builds. Vectors have norm 1: a product is the cosine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from i2e_pipeline.core import arrays
from i2e_pipeline.core.errors import I2EError

EXACT = 100_000
"""Images up to which all are compared."""
_MOST = 24
_HEADER, _FORMAT, _ANN = "vectors", 1, "vectors.usearch"


class NoVectors(I2EError):
    """Nothing can be said of what is near; the message says why, and the remedy."""


@dataclass
class Similar:
    """batches     of the vectors of published images: (ids as 32 hex digits, vectors of shape (n, dimensions)); None:
                there are none
    images      how many there are
    of_text     the vector of a text, of shape (dimensions,); None: the model is not there
    place       the folder of the ANN index
    """

    batches: Callable[[], Iterator[tuple[list[str], np.ndarray]]] | None = None
    images: int = 0
    of_text: Callable[[str], np.ndarray] | None = None
    place: Path | None = None
    _ids: np.ndarray | None = None
    _vectors: np.ndarray | None = None
    _ann: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def there(self) -> bool:
        return self.batches is not None and self.images > 0

    def to_image(self, image_id: str) -> list[dict[str, Any]]:
        """The nearest images, nearest first, without itself: image_id, cosine."""
        self._load()
        assert self._ids is not None
        at = int(np.searchsorted(self._ids, image_id.encode()))
        if at == len(self._ids) or self._ids[at] != image_id.encode():
            raise NoVectors("this image has no kept vector: it was scored before vectors were kept")
        return [row for row in self._nearest(self._vector(at), _MOST + 1) if row["image_id"] != image_id][:_MOST]

    def to_text(self, text: str) -> list[dict[str, Any]]:
        """The images that fit a text best, in the eyes of the run's scoring model."""
        if not self.there:
            raise NoVectors("no vectors are kept beside this dataset (score.keep_vectors), so texts cannot be compared")
        if self.of_text is None:
            raise NoVectors("the scoring model is not at hand here, so a text has no vector")
        self._load()
        with self._lock:
            vector = self.of_text(text)
        return self._nearest(vector, _MOST)

    def build(self) -> None:
        """The ANN index, written whole; memory holds it while it is made. Raises NoVectors where there are none."""
        if not self.there or self.place is None or self.batches is None:
            raise NoVectors("no vectors are kept beside this dataset (score.keep_vectors)")
        if self.images <= EXACT or self._built():
            return
        from usearch.index import Index

        index, ids, count = None, [], 0
        for names, vectors in self.batches():
            if index is None:
                index = Index(ndim=vectors.shape[1], metric="cos", dtype="f16", connectivity=16)
            index.add(np.arange(count, count + len(names)), vectors.astype(np.float16))
            ids.append(np.array(names, dtype="S32"))
            count += len(names)
        assert index is not None
        with arrays.new(self.place, _HEADER) as writer:
            writer.header["format"] = _FORMAT
            writer.save("ids", np.concatenate(ids))
            index.save(str(writer.folder / _ANN))

    def _built(self) -> bool:
        return self.place is not None and self.place.exists()

    def _load(self) -> None:
        with self._lock:
            if self._ids is not None:
                return
            if not self.there or self.batches is None:
                raise NoVectors("no vectors are kept beside this dataset (score.keep_vectors)")
            if self.images > EXACT:
                self._open_index()
                return
            parts = list(self.batches())
            ids = np.array([i for names, _ in parts for i in names], dtype="S32")
            vectors = np.concatenate([v for _, v in parts]).astype(np.float32)
            order = np.argsort(ids, kind="stable")
            first = np.ones(len(ids), dtype=bool)
            first[1:] = ids[order][1:] != ids[order][:-1]
            order = order[first]
            self._vectors, self._ids = vectors[order], ids[order]

    def _open_index(self) -> None:
        if not self._built():
            raise NoVectors(
                f"{self.images:,} images are too many to compare one by one: start with `i2e explore --similar`, which "
                "builds an index of their vectors once"
            )
        from usearch.index import Index

        assert self.place is not None
        self._ann = Index.restore(str(self.place / _ANN), view=True)
        self._of_key = arrays.Arrays(self.place, _HEADER, _FORMAT)["ids"]
        self._order = np.argsort(self._of_key, kind="stable")
        self._ids = self._of_key[self._order]

    def _vector(self, at: int) -> np.ndarray:
        if self._ann is not None:
            found: np.ndarray = np.asarray(self._ann.get(int(self._order[at])), dtype=np.float32)
            return found
        assert self._vectors is not None
        return self._vectors[at]

    def _nearest(self, vector: np.ndarray, most: int) -> list[dict[str, Any]]:
        vector = np.asarray(vector, dtype=np.float32)
        if self._ann is not None:
            # An image that several pairs have has a vector of each, all of them equal.
            found = self._ann.search(vector.astype(np.float16), 2 * most)
            cosines = dict(
                zip(self._of_key[found.keys.astype(np.int64)].tolist(), (1 - found.distances).tolist(), strict=True)
            )
            rows = [(image_id.decode(), cosine) for image_id, cosine in list(cosines.items())[:most]]
        else:
            assert self._vectors is not None
            assert self._ids is not None
            if vector.shape != self._vectors.shape[1:]:
                raise NoVectors(f"the vectors here have {self._vectors.shape[1]} dimensions, the model's {len(vector)}")
            cosines = self._vectors @ vector
            first = np.argpartition(-cosines, min(most, len(cosines)) - 1)[:most]
            rows = [(self._ids[i].decode(), float(cosines[i])) for i in first]
        rows.sort(key=lambda row: (-row[1], row[0]))
        return [{"image_id": i, "cosine": c} for i, c in rows]


def vectors_of(table: pa.Table) -> np.ndarray:
    """Vectors of rows of `image_vectors` as float32 of shape (rows, dimensions): they are stored as little-endian
    halves."""
    joined = b"".join(table["vector"].to_pylist())
    return np.frombuffer(joined, "<f2").reshape(table.num_rows, -1).astype(np.float32)
