"""Exact ranking of a gallery for each query, in bounded memory, the same to the last bit wherever it runs.

A product of float32 matrices differs in its last bits with the shape of the blocks and with the library, and so would
the order of near equals. Here rows are rounded to integers first: vectors of length 1 to multiples of 2^-26, which
moves a cosine by about 1e-8, less than float32 arithmetic does. By Cauchy and Schwarz no partial sum of a product then
exceeds 2^53, so float64 holds each without rounding: scores are exact integers, whatever the block, the library or the
number of threads, and equal vectors have equal scores. Inner products are these cosines times the length of the
gallery's vector, one rounding each, so that short vectors keep as many bits as long ones.

Ties: of equal scores the lower index in the gallery comes first.

Shapes: N vectors, D width, Q queries, G gallery, B queries of a block, P listed items of a query, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from i2e_pipeline.evaluate.vectors import VectorsError, lengths, same_width

Metric = Literal["cosine", "dot"]

_UNIT = 2.0**26
"""The integer that stands for 1 in a vector."""
_TILE = 1024
"""Rows of a large gallery that are converted in one go, enough for a quick product."""
_STRIP = 32
"""Rows that are rounded while they are still in the processor's cache."""
_FEW = 24
_FEW_SHARE = 200
"""Up to 24 listed items, or 1/200 of the gallery, are counted one by one; for more, sorting the row once is quicker:
measured, the two take the same time for 24 items of 3,000, 70 of 12,000 and 200 of 50,000."""


@dataclass(frozen=True)
class FixedPoint:
    """Vectors that are handed out as integers in float64, a block at a time."""

    vectors_ND: np.ndarray
    lengths_N: np.ndarray
    """Of each row; it is handed out at length 2^26."""

    def block(self, start: int, stop: int, out_BD: np.ndarray) -> np.ndarray:
        """Rows start ... stop in out_BD, float64 integers (B, D), none longer than 2^26 but for the rounding."""
        stop = min(stop, len(self.vectors_ND))
        for first in range(start, stop, _STRIP):
            last = min(first + _STRIP, stop)
            strip_BD = out_BD[first - start : last - start]
            np.multiply(self.vectors_ND[first:last], (_UNIT / self.lengths_N[first:last])[:, None], out=strip_BD)
            np.rint(strip_BD, out=strip_BD)
        return out_BD[: stop - start]

    def cosines(self, rows_P: np.ndarray, others: FixedPoint, others_P: np.ndarray) -> np.ndarray:
        """Of pairs of rows, float64 (P,): those that `score_blocks` gives over what stands for 1, to the last bit."""
        products_PD = np.rint(self.vectors_ND[rows_P] * (_UNIT / self.lengths_N[rows_P])[:, None])
        products_PD *= np.rint(others.vectors_ND[others_P] * (_UNIT / others.lengths_N[others_P])[:, None])
        return np.asarray(products_PD.sum(axis=1) / _UNIT**2)


def fixed_point(vectors_ND: np.ndarray, name: str) -> FixedPoint:
    """Rows as integers, each at the length that stands for 1."""
    vectors_ND = np.asarray(vectors_ND)
    return FixedPoint(vectors_ND, lengths(vectors_ND, name))


def score_blocks(
    queries_QD: np.ndarray, gallery_GD: np.ndarray, block_mb: float = 256, metric: Metric = "cosine", per_query: int = 0
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Scores of one block of queries after the other with the whole gallery.

    block_mb    MiB for the block and the integers that make it, at least one query and one row of the gallery
    per_query   bytes that the caller needs for each query beside its row of scores
    yields      start, scores_BG (float64, valid until the next is asked for; integers with metric `cosine`), one_B:
                what stands for a score of 1, by query. With metric `dot` a score is the inner product.
    """
    same_width(np.asarray(queries_QD), np.asarray(gallery_GD), "queries", "gallery")
    same = queries_QD is gallery_GD
    gallery = fixed_point(gallery_GD, "features" if same else "gallery")
    queries = gallery if same else fixed_point(queries_QD, "queries")
    one_Q = _UNIT**2 / queries.lengths_N if metric == "dot" else np.full(len(queries_QD), _UNIT**2)
    budget = block_mb * 2**20
    count, width = gallery.vectors_ND.shape
    # Converted once and kept where that leaves most of the budget, else tile by tile for each block.
    keep = 8 * count * width <= 0.5 * budget
    tile = count if keep else max(1, min(count, _TILE, int(0.25 * budget / (8 * width))))
    left = budget - 8 * tile * width
    rows = max(1, min(len(queries_QD), int(left / (8 * count + 8 * width + per_query)), 4096))
    # The same memory for every block and tile: fresh pages cost as much time as the rounding.
    tile_out, block_out, scores = np.empty((tile, width)), np.empty((rows, width)), np.empty((rows, count))
    if keep:
        gallery.block(0, count, tile_out)
    for start in range(0, len(queries_QD), rows):
        block_BD = queries.block(start, start + rows, block_out)
        scores_BG = scores[: len(block_BD)]
        for first in range(0, count, tile):
            tile_TD = tile_out if keep else gallery.block(first, first + tile, tile_out)
            np.matmul(block_BD, tile_TD.T, out=scores_BG[:, first : first + tile])
        if metric == "dot":
            scores_BG *= gallery.lengths_N
        yield start, scores_BG, one_Q[start : start + rows]


def ranks_by_block(
    queries_QD: np.ndarray,
    gallery_GD: np.ndarray,
    listed: Sequence[np.ndarray],
    block_mb: float = 256,
    metric: Metric = "cosine",
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Ranks that each query gives to its listed items, without ordering the rest of the gallery.

    listed      per query, indices into the gallery (P,), each at most once
    yields      start, and per query of the block the rank of each listed item from 0, int64 (P,), in the order listed
    """
    if len(listed) != len(queries_QD):
        raise VectorsError(f"{len(queries_QD)} queries, but items are listed for {len(listed)}")
    longest = max((len(items) for items in listed), default=0)
    for start, scores_BG, _ in score_blocks(queries_QD, gallery_GD, block_mb, metric, per_query=32 * longest):
        yield start, [_ranks(row_G, listed[start + b]) for b, row_G in enumerate(scores_BG)]


def _ranks(row_G: np.ndarray, items_P: np.ndarray) -> np.ndarray:
    scores_P = row_G[items_P]
    if len(items_P) <= max(_FEW, len(row_G) // _FEW_SHARE):
        # Of equals the lower index comes first: before the item equals count, after it they do not.
        counts = [
            np.count_nonzero(row_G[:i] >= score) + np.count_nonzero(row_G[i + 1 :] > score)
            for i, score in zip(items_P.tolist(), scores_P.tolist(), strict=True)
        ]
        return np.array(counts, dtype=np.int64)
    ordered_G = np.sort(row_G)
    above_P = np.searchsorted(ordered_G, scores_P, "right")
    if np.all(above_P - np.searchsorted(ordered_G, scores_P, "left") == 1):
        return len(row_G) - above_P
    ranks_G = np.empty(len(row_G), dtype=np.int64)
    ranks_G[np.argsort(-row_G, kind="stable")] = np.arange(len(row_G))
    return ranks_G[items_P]


def top_k(
    queries_QD: np.ndarray,
    gallery_GD: np.ndarray,
    k: int,
    block_mb: float = 256,
    exclude_self: bool = False,
    metric: Metric = "cosine",
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the gallery for each query: scores float64 (Q, K) falling, indices int64 (Q, K).

    exclude_self    query i is item i of the gallery and is left out
    """
    blocks = list(top_k_by_block(queries_QD, gallery_GD, k, block_mb, exclude_self, metric))
    return np.concatenate([scores for _, scores, _ in blocks]), np.concatenate([index for _, _, index in blocks])


def top_k_by_block(
    queries_QD: np.ndarray,
    gallery_GD: np.ndarray,
    k: int,
    block_mb: float = 256,
    exclude_self: bool = False,
    metric: Metric = "cosine",
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """As top_k, a block of queries at a time: start, scores_BK, index_BK."""
    import torch

    candidates = len(gallery_GD) - exclude_self
    if not 1 <= k <= candidates:
        raise VectorsError(f"the best {k} are asked for, of {candidates} in the gallery")
    if exclude_self and len(queries_QD) != len(gallery_GD):
        raise VectorsError(f"{len(queries_QD)} queries and {len(gallery_GD)} in the gallery: no query is item i of it")
    more = min(k + 1, len(gallery_GD))
    blocks = score_blocks(queries_QD, gallery_GD, block_mb, metric, per_query=96 * more)
    for start, scores_BG, one_B in blocks:
        rows_B = np.arange(len(scores_BG))
        if exclude_self:
            scores_BG[rows_B, start + rows_B] = -np.inf
        found = torch.topk(torch.from_numpy(scores_BG), more)
        best_BK, index_BK = found.values.numpy(), found.indices.numpy()
        # torch does not say which of equals it takes: rows whose border falls between equals are ordered in full.
        torn: list[int] = np.flatnonzero(best_BK[:, k - 1] == best_BK[:, k]).tolist() if more > k else []
        order_BK = np.argsort(index_BK[:, :k], axis=1)
        index_BK = np.take_along_axis(index_BK[:, :k], order_BK, axis=1)
        best_BK = np.take_along_axis(best_BK[:, :k], order_BK, axis=1)
        order_BK = np.argsort(-best_BK, axis=1, kind="stable")
        index_BK = np.take_along_axis(index_BK, order_BK, axis=1)
        best_BK = np.take_along_axis(best_BK, order_BK, axis=1)
        for b in torn:
            index_BK[b] = np.argsort(-scores_BG[b], kind="stable")[:k]
        yield start, best_BK / one_B[:, None], index_BK


def average_precision(ranks_P: np.ndarray, at: int | None = None) -> float | None:
    """Precision at each hit, summed, over the number of relevant items; None where there are none.

    ranks_P     ranks of all relevant items from 0, any order
    at          only hits among the first so many, over at most so many relevant items
    """
    relevant = len(ranks_P)
    if relevant == 0:
        return None
    ordered_P = np.sort(ranks_P)
    precision_P = np.arange(1, relevant + 1) / (ordered_P + 1)
    if at is None:
        return float(precision_P.sum() / relevant)
    return float(precision_P[ordered_P < at].sum() / min(at, relevant))


def members_of(labels_N: np.ndarray) -> list[np.ndarray]:
    """Per vector, the indices of its class, itself included, ascending; vectors of a class share one array."""
    _, class_N = np.unique(labels_N, return_inverse=True)
    order_N = np.argsort(class_N, kind="stable")
    members = np.split(order_N, np.cumsum(np.bincount(class_N))[:-1])
    return [members[c] for c in class_N.tolist()]


def mean_by_class(right_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over classes of the share of right images: each class counts the same, however many images it has."""
    _, class_N = np.unique(labels_N, return_inverse=True)
    return float((np.bincount(class_N, weights=right_N) / np.bincount(class_N)).mean())


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None where there are none."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
