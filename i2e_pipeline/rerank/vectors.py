"""Candidates' vectors of a bi-encoder, made once per entity and reranker, and shared by all workers.

Reads    candidate_vectors: what `BiEncoder.entities` makes of what is told of an entity (float32, norm 1)

Each machine lays the table out once, sorted by id, and its workers map it into memory. An entity that has no vector
there is encoded where it is asked about: the table spares work, and in float32 changes no score by more than the last
digit that is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import arrays
from i2e_pipeline.core.files import open_filesystem
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.core.schemas import CANDIDATE_VECTORS

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_HEADER, _FORMAT = "candidate_vectors", 1
_ROWS = 4096


class CandidateVectors:
    """Vectors by entity, memory-mapped."""

    def __init__(self, ids: I64, vectors: F32) -> None:
        """ids (N) rising, vectors (N, W)"""
        self._ids, self._vectors = ids, vectors

    @classmethod
    def from_files(cls, files: Sequence[str], key: str, cache: str | None = None) -> CandidateVectors:
        """The committed files of the table, through this machine's cache.

        key   names their content
        """
        root = Path(cache) if cache else scratch("candidate-vectors")
        stored = arrays.shared(root, key, _HEADER, _FORMAT, partial(_lay_out, files), ("ids", "vectors"))
        return cls(stored["ids"], stored["vectors"])

    def lookup(self, entities: I64) -> tuple[npt.NDArray[np.bool_], F32]:
        """(N) which of these entities have a vector, and (N, W) their vectors; 0 where there is none."""
        at = np.minimum(np.searchsorted(self._ids, entities), max(len(self._ids) - 1, 0))
        there = self._ids[at] == entities if len(self._ids) else np.zeros(len(entities), bool)
        found = np.zeros((len(entities), self._vectors.shape[1]), np.float32)
        found[there] = self._vectors[at[there]]
        return np.asarray(there), found


def _lay_out(files: Sequence[str], store: arrays.Writer) -> None:
    """In two passes: first the ids, then each row to its place. Of an id that stands twice the first one counts."""
    found = [np.empty(0, np.int64), *(batch["entity_id"].to_numpy() for batch in _batches(files, ["entity_id"]))]
    ids = np.unique(np.concatenate(found))
    laid, written = None, np.zeros(len(ids), bool)
    for batch in _batches(files, CANDIDATE_VECTORS.names):
        rows = batch["vector"].flatten().to_numpy().reshape(len(batch), -1)
        if laid is None:
            laid = store.create("vectors", (len(ids), rows.shape[1]), np.float32)
        at, first = np.unique(np.searchsorted(ids, batch["entity_id"].to_numpy()), return_index=True)
        new = ~written[at]
        laid[at[new]] = rows[first[new]]
        written[at] = True
    if laid is None:
        store.save("vectors", np.zeros((0, 0), np.float32))
    else:
        laid.flush()
    store.save("ids", ids)
    store.header = {"format": _FORMAT, "entities": len(ids)}


def _batches(files: Sequence[str], columns: list[str]) -> Iterator[pa.RecordBatch]:
    for file in files:
        filesystem, inner = open_filesystem(file)
        with filesystem.open_input_file(inner) as source:
            batches = pq.ParquetFile(source).iter_batches(_ROWS, columns=columns, use_threads=False)
            yield from (batch for batch in batches if batch.num_rows)
