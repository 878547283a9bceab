"""The kernel of `rerank`: mentions in, their candidates with new probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.schemas import ID, RERANKED
from i2e_pipeline.engine.tasks import notes
from i2e_pipeline.rerank.questions import CANDIDATE

if TYPE_CHECKING:
    from i2e_pipeline.rerank.reranker import Reranker
    from i2e_pipeline.rerank.vectors import CandidateVectors

UNSURE, ASKED = "mentions that linking was unsure of", "mentions looked at again"
CHANGED = "mentions that mean something else after it"


def look_again(
    batches: Iterable[pa.RecordBatch], reranker: Reranker, known: CandidateVectors | None = None
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The candidates of each mention, by rank.

    batches   text_id: binary(16), start, end: int32, candidates: list<struct<rank, entity_id, prior, probability>> by
              rank, unsure: bool, told: list<struct<entity_id, name, description, coarse_type>> and text, null where the
              mention is not asked
    known     of a bi-encoder: vectors of candidates
    yields    ("reranked", RERANKED), and notes of how many were unsure, asked, changed
    What a mention gets depends on it and its text alone.
    """
    for batch in batches:
        lists = batch.column("candidates")
        flat = lists.flatten()
        counts = np.diff(lists.offsets.to_numpy())
        mention = np.repeat(np.arange(len(lists)), counts)
        first = flat.field("probability").to_numpy(zero_copy_only=False).astype(np.float32)
        probability, score = first.copy(), np.full(len(flat), np.nan, np.float32)
        asked = pc.is_valid(batch.column("text")).to_numpy(zero_copy_only=False)
        here = asked[mention]
        if asked.any():
            found, scores = reranker.probabilities(_questions(batch, asked), known)
            probability[here], score[here] = found, scores
        rank = flat.field("rank").to_numpy(zero_copy_only=False)
        order = np.lexsort((rank, -probability, mention))
        begins = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        new_rank = np.arange(len(order)) - begins[mention]
        # What linking left out of a mention's ranks stays out: only where it was asked the ranks are new.
        ranks = np.where(here, new_rank + 1, rank[order])
        taken = pa.array(order)
        parents = pa.array(mention)
        yield (
            "reranked",
            pa.RecordBatch.from_arrays(
                [
                    batch.column("text_id").cast(ID).take(parents),
                    batch.column("start").take(parents),
                    batch.column("end").take(parents),
                    flat.field("entity_id").take(taken),
                    flat.field("prior").take(taken),
                    pa.array(probability[order], pa.float32()),
                    pa.array(ranks, pa.int32()),
                    pa.array(first[order], pa.float32()),
                    pa.array(score[order], pa.float32(), mask=~here),
                ],
                schema=RERANKED,
            ),
        )
        lead = begins[asked & (counts > 0)]
        yield from notes(
            {
                UNSURE: int(pc.sum(batch.column("unsure")).as_py() or 0),
                ASKED: int(asked.sum()),
                CHANGED: int((order[lead] != lead).sum()),
            }
        )


def _questions(batch: pa.RecordBatch, asked: np.ndarray) -> pa.RecordBatch:
    """QUESTIONS of the mentions that are asked, their candidates in the order of `candidates`."""
    rows = batch.filter(pa.array(asked))
    lists, told = rows.column("candidates"), rows.column("told")
    flat = lists.flatten()
    mention = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    of_told = np.repeat(np.arange(len(told)), np.diff(told.offsets.to_numpy()))
    entity = told.flatten().field("entity_id").to_numpy(zero_copy_only=False)
    by = np.lexsort((entity, of_told))
    wanted = np.lexsort((flat.field("entity_id").to_numpy(zero_copy_only=False), mention))
    at = np.empty(len(flat), np.int64)
    at[wanted] = by
    described = told.flatten().take(pa.array(at))
    candidates = pa.StructArray.from_arrays(
        [
            flat.field("entity_id"),
            *(described.field(name) for name in ("name", "description", "coarse_type")),
            flat.field("probability"),
        ],
        fields=[*CANDIDATE],
    )
    offsets = np.concatenate([[0], np.cumsum(np.diff(lists.offsets.to_numpy()))]).astype(np.int32)
    return pa.RecordBatch.from_pydict(
        {
            "text": rows.column("text"),
            "start": rows.column("start"),
            "end": rows.column("end"),
            "candidates": pa.ListArray.from_arrays(pa.array(offsets), candidates),
        }
    )
