"""The nearest of millions of candidates for each query, exactly, in memory that does not grow with them.

Candidates come a block at a time, are compared with all queries and forgotten. The product is float32, which is quick
and inexact; its error is bounded, so whoever could be nearest is known, and of these few the scores are computed again
as in retrieval.py: integers without rounding. So the answer is the same whatever the blocks, the library or the device.

Legend: Q queries, C candidates of a block, B queries of a chunk, D width, P pairs that are looked at again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from i2e_pipeline.evaluate.retrieval import fixed_point
from i2e_pipeline.evaluate.vectors import VectorsError, same_width

_PER_PAIR = 25
"""Bytes for each similarity of a chunk, where all candidates are equally near: two float32, a bit, two places."""
_AGAIN = 1 << 22
"""Numbers of vectors that are looked at again at a time: 64 MiB with what is computed from them."""


@dataclass(frozen=True)
class Block:
    """Candidates in their order."""

    ids_C: np.ndarray
    """int64, what a query is answered with"""
    vectors_CD: np.ndarray
    """float32, norm 1"""


@dataclass(frozen=True)
class Nearest:
    ids_Q: np.ndarray
    """int64, of the nearest candidate; of equally near ones that which came first"""
    scores_Q: np.ndarray
    """float64, its cosine"""
    candidates: int


def top_one(queries_QD: np.ndarray, blocks: Iterable[Block], block_mb: float = 256, device: str = "cpu") -> Nearest:
    """The nearest candidate by cosine of each query.

    queries_QD   float32, norm 1
    block_mb     MiB that the similarities of a chunk of queries with a block may take, beside queries and block
    Raises VectorsError where a vector is of another width or has no direction, and where there is no candidate.
    """
    queries = fixed_point(queries_QD, "queries")
    width = queries_QD.shape[1]
    # Any order of adding D products of float32 numbers errs by at most D 2^-24 of the lengths' product (Higham,
    # Accuracy and Stability of Numerical Algorithms, 3.1); lengths, and integers that stand for numbers, err far less.
    margin = 1.1 * (width + 32) * 2.0**-24
    quick = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
    asked_QD = torch.from_numpy(np.ascontiguousarray(queries_QD)).to(device, quick)
    best_Q = np.full(len(queries_QD), -np.inf)
    place_Q = np.full(len(queries_QD), -1, dtype=np.int64)
    ids_Q = np.full(len(queries_QD), -1, dtype=np.int64)
    seen = 0
    for block in blocks:
        if not len(block.ids_C):
            continue
        same_width(queries_QD, block.vectors_CD, "queries", "candidates")
        gallery = fixed_point(block.vectors_CD, "candidates")
        block_DC = torch.from_numpy(np.ascontiguousarray(block.vectors_CD)).to(device, quick).T
        rows = max(1, int(block_mb * 2**20 / (_PER_PAIR * len(block.ids_C))))
        for start in range(0, len(queries_QD), rows):
            scores_BC = asked_QD[start : start + rows] @ block_DC
            highest_B = scores_BC.max(dim=1).values
            known_B = torch.from_numpy(best_Q[start : start + rows]).to(device, quick)
            may_B = torch.nonzero(highest_B >= known_B - margin)[:, 0]
            if not len(may_B):
                continue
            floor_B = torch.maximum(highest_B[may_B] - 2 * margin, known_B[may_B] - margin)
            pairs_P2 = torch.nonzero(scores_BC[may_B] >= floor_B[:, None])
            query_P = may_B[pairs_P2[:, 0]].cpu().numpy() + start
            column_P = pairs_P2[:, 1].cpu().numpy()
            per = max(1, _AGAIN // width)
            for first in range(0, len(query_P), per):
                some = slice(first, first + per)
                q_P, c_P = query_P[some], column_P[some]
                cosine_P = queries.cosines(q_P, gallery, c_P)
                _take(best_Q, place_Q, ids_Q, q_P, cosine_P, c_P + seen, block.ids_C[c_P])
        seen += len(block.ids_C)
    if not seen:
        raise VectorsError("there is no candidate to compare with")
    return Nearest(ids_Q, best_Q, seen)


def _take(
    best_Q: np.ndarray, place_Q: np.ndarray, ids_Q: np.ndarray,
    query_P: np.ndarray, score_P: np.ndarray, column_P: np.ndarray, id_P: np.ndarray,
) -> None:  # fmt: skip
    """Keep of each query the highest score, of equal ones the first place."""
    order_P = np.lexsort((column_P, -score_P, query_P))
    first_P = order_P[np.flatnonzero(np.diff(query_P[order_P], prepend=-1))]
    q, score, place = query_P[first_P], score_P[first_P], column_P[first_P]
    better = (score > best_Q[q]) | ((score == best_Q[q]) & (place < place_Q[q]))
    best_Q[q[better]], place_Q[q[better]], ids_Q[q[better]] = score[better], place[better], id_P[first_P][better]
