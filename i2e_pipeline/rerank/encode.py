"""The kernel of `candidate_vectors`: entities in, a bi-encoder's vectors of what is told of them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from i2e_pipeline.core.schemas import CANDIDATE_VECTORS
from i2e_pipeline.rerank.questions import as_told

if TYPE_CHECKING:
    from i2e_pipeline.rerank.reranker import Reranker

OF_CANDIDATES = ("entity_id", "name", "description", "coarse_type")
"""Columns of kb/entities that `encode_candidates` reads."""


def encode_candidates(batches: Iterable[pa.RecordBatch], reranker: Reranker) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Kernel: a vector of what a model is told of each entity.

    batches   OF_CANDIDATES
    yields    ("candidate_vectors", CANDIDATE_VECTORS), a row per row
    """
    for batch in batches:
        entities = batch.column("entity_id").to_numpy(zero_copy_only=False).astype(np.int64)
        seen = [None] * len(entities) if reranker.seen is None else reranker.seen.of(entities)
        told = zip(*(batch.column(name).to_pylist() for name in OF_CANDIDATES[1:]), seen, strict=True)
        vectors = reranker.vectors([as_told(*of) for of in told])
        width = vectors.shape[1] if len(vectors) else 0
        offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * width)
        lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
        yield (
            "candidate_vectors",
            pa.RecordBatch.from_arrays([batch.column("entity_id"), lists], schema=CANDIDATE_VECTORS),
        )
