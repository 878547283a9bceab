"""Rankings against brute force and other people's code; the same to the last bit whatever the block."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from i2e_pipeline.evaluate.gpr1200 import gpr
from i2e_pipeline.evaluate.knn import knn_retrieval
from i2e_pipeline.evaluate.retrieval import (
    average_precision,
    ranks_by_block,
    score_blocks,
    top_k,
)
from i2e_pipeline.evaluate.vectors import VectorsError
from tests.examples import examples

torch.set_num_threads(1)

BLOCKS_MB = (0.001, 0.02, 0.3, 256)
"""From a single query and row at a time to everything at once."""


def vectors(count: int, width: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def few_values(count: int, seed: int = 0) -> np.ndarray:
    """Vectors on a coarse grid, so that many scores are equal."""
    grid = np.array([[1, 0], [0, 1], [1, 1], [3, 4], [-1, 0]], np.float32)
    return grid[np.random.default_rng(seed).integers(0, len(grid), count)]


def ranking(scores_G: Sequence[float]) -> list[int]:
    """Brute force of the stated rule: by score, of equals the lower index."""
    return sorted(range(len(scores_G)), key=lambda i: (-scores_G[i], i))


def brute_ap(order: list[int], relevant: set[int]) -> float | None:
    """As exact fractions: precision at each hit, over the number of relevant items."""
    hits, total = 0, Fraction(0)
    for place, item in enumerate(order, 1):
        if item in relevant:
            hits += 1
            total += Fraction(hits, place)
    return float(total / len(relevant)) if relevant else None


def cosines(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    queries, gallery = (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, gallery))
    return queries @ gallery.T


def all_ranks(queries: np.ndarray, gallery: np.ndarray, listed: list[np.ndarray], **options: Any) -> list[list[int]]:
    return [row.tolist() for _, rows in ranks_by_block(queries, gallery, listed, **options) for row in rows]


# Scores


def test_scores_are_cosines() -> None:
    queries, gallery = vectors(9, 33), vectors(20, 33, seed=1) * 50
    for start, scores_BG, one_B in score_blocks(queries, gallery, 0.01):
        wanted = cosines(queries, gallery)[start : start + len(one_B)]
        assert np.abs(scores_BG / one_B[:, None] - wanted).max() < 3e-8


def test_dot_scores_are_inner_products_of_the_vectors_as_they_are() -> None:
    queries, gallery = vectors(9, 33) * 3, vectors(20, 33, seed=1) * np.arange(1, 21)[:, None]
    ((_, scores_BG, one_B),) = score_blocks(queries, gallery, metric="dot")
    wanted = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    assert np.abs(scores_BG / one_B[:, None] - wanted).max() < 1e-7 * np.abs(wanted).max()


def test_dot_scores_of_short_vectors_are_as_good_as_those_of_long_ones() -> None:
    """Catches: one factor for all rows, which leaves few bits to the short ones."""
    rng = np.random.default_rng(0)
    queries = vectors(40, 32)
    gallery = vectors(3000, 32, seed=1) * np.exp(2 * rng.normal(size=(3000, 1)))
    lengths = np.linalg.norm(gallery.astype(np.float64), axis=1)
    assert lengths.max() / lengths.min() > 1e4
    wanted = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    ((_, scores_BG, one_B),) = score_blocks(queries, gallery, metric="dot")
    moved = np.abs(scores_BG / one_B[:, None] - wanted) / (lengths * np.linalg.norm(queries, axis=1)[:, None])
    assert moved.max() < 6e-8
    found = all_ranks(queries, gallery, [np.arange(3000)] * 40, metric="dot")
    # Only what float64 has apart by less than a rounded cosine moves may change places.
    assert np.mean(found != np.argsort(np.argsort(-wanted, axis=1, kind="stable"), axis=1)) < 2e-3


@pytest.mark.parametrize("width", [1, 3, 64, 1024, 5000])
def test_scores_are_exact_integers_below_two_to_the_53(width: int) -> None:
    """Catches: sums that float64 must round, so that blocks and libraries give other last bits."""
    x = np.concatenate([vectors(12, width), np.ones((1, width)), np.eye(1, width)]).astype(np.float32)
    ((_, scores_BG, _),) = score_blocks(x, x)
    integers = np.rint(x.astype(np.float64) * (2.0**26 / np.sqrt(np.square(x.astype(np.float64)).sum(1)))[:, None])
    exact = [[sum(int(a) * int(b) for a, b in zip(p, q, strict=True)) for q in integers] for p in integers]
    assert [[int(value) for value in row] for row in scores_BG] == exact
    assert max(map(max, exact)) < 2**53


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_every_block_size_gives_the_same_bits(metric: Any) -> None:
    queries, gallery = vectors(53, 130), np.repeat(vectors(101, 130, seed=1), 2, axis=0)
    listed = [np.random.default_rng(q).choice(202, 60 if q % 2 else 5, replace=False) for q in range(53)]
    results = [
        (
            top_k(queries, gallery, 20, block_mb, metric=metric),
            all_ranks(queries, gallery, listed, block_mb=block_mb, metric=metric),
        )
        for block_mb in BLOCKS_MB
    ]
    for (scores, index), ranks in results[1:]:
        assert scores.tobytes() == results[0][0][0].tobytes()
        assert index.tobytes() == results[0][0][1].tobytes()
        assert ranks == results[0][1]


def test_blocks_keep_to_the_memory_asked_for() -> None:
    sizes = [len(one_B) for _, _, one_B in score_blocks(vectors(500, 64), vectors(1000, 64, seed=1), block_mb=1)]
    assert sum(sizes) == 500
    assert 1 < len(sizes) < 20
    assert max(sizes) * 1000 * 8 < 2**20


def test_other_widths_are_refused() -> None:
    with pytest.raises(VectorsError, match="queries are 4 wide and gallery 5"):
        top_k(vectors(3, 4), vectors(3, 5), 1)


# Ranks


@pytest.mark.parametrize("listed_items", [1, 10, 70])
@pytest.mark.parametrize("make", [few_values, vectors])
def test_ranks_are_places_in_the_full_order(make: Any, listed_items: int) -> None:
    """Both ways of counting, with and without equal scores."""
    queries, gallery = make(11), make(90, seed=1)
    draws = np.random.default_rng(2)
    listed = [draws.choice(90, listed_items, replace=False) for _ in queries]
    ((_, scores_BG, _),) = score_blocks(queries, gallery)
    wanted = [[ranking(row).index(i) for i in items] for row, items in zip(scores_BG.tolist(), listed, strict=True)]
    assert all_ranks(queries, gallery, listed) == wanted


@settings(max_examples=examples(60))
@given(
    scores=st.lists(st.integers(-3, 3), min_size=1, max_size=70),
    data=st.data(),
)
def test_ranks_of_any_ranking_with_ties(scores: list[int], data: st.DataObject) -> None:
    """One-dimensional inner products are the scores themselves."""
    shifted = np.array(scores, dtype=np.float64)[:, None] + 10
    items = data.draw(st.lists(st.integers(0, len(scores) - 1), unique=True))
    wanted = [ranking(scores).index(i) for i in items]
    assert all_ranks(np.ones((1, 1)), shifted, [np.array(items, dtype=np.int64)], metric="dot") == [wanted]


def test_a_collapsed_encoder_ranks_by_index() -> None:
    """Catches: minutes for equal scores, or an order that the library's partition chose."""
    same = np.ones((400, 8), dtype=np.float32)
    assert top_k(same, same, 5)[1].tolist() == [[0, 1, 2, 3, 4]] * 400
    assert top_k(same, same, 2, exclude_self=True)[1][:3].tolist() == [[1, 2], [0, 2], [0, 1]]
    everything = [np.arange(400)] * 400
    assert all_ranks(same, same, everything) == [list(range(400))] * 400


def test_equal_vectors_tie_wherever_they_stand() -> None:
    """Catches: a matrix product whose last bits depend on the column, so that copies of one image change places."""
    gallery = np.tile(vectors(1, 769), (333, 1))
    scores, index = top_k(vectors(4, 769, seed=3), gallery, 333)
    assert index.tolist() == [list(range(333))] * 4
    assert (scores == scores[:, :1]).all()


def test_lists_for_other_queries_are_refused() -> None:
    with pytest.raises(VectorsError, match="3 queries, but items are listed for 2"):
        all_ranks(vectors(3), vectors(3), [np.arange(1)] * 2)


# The best k


@pytest.mark.parametrize("k", [1, 5, 29, 30])
@pytest.mark.parametrize("make", [few_values, vectors])
def test_the_best_k_are_the_head_of_the_full_order(make: Any, k: int) -> None:
    queries, gallery = make(11), make(30, seed=1)
    ((_, scores_BG, _),) = score_blocks(queries, gallery)
    scores_QK, index_QK = top_k(queries, gallery, k)
    assert index_QK.tolist() == [ranking(row)[:k] for row in scores_BG.tolist()]
    assert np.allclose(scores_QK, np.take_along_axis(cosines(queries, gallery), index_QK, axis=1))
    assert (np.diff(scores_QK, axis=1) <= 0).all()


@pytest.mark.parametrize("make", [few_values, vectors])
@pytest.mark.parametrize("block_mb", BLOCKS_MB)
def test_a_query_left_out_is_not_among_its_neighbours(make: Any, block_mb: float) -> None:
    x = make(30)
    ((_, scores_BG, _),) = score_blocks(x, x)
    wanted = [[i for i in ranking(row) if i != own][:29] for own, row in enumerate(scores_BG.tolist())]
    assert top_k(x, x, 29, block_mb, exclude_self=True)[1].tolist() == wanted


def test_more_neighbours_than_there_are_is_an_error() -> None:
    with pytest.raises(VectorsError, match="the best 4 are asked for, of 3"):
        top_k(vectors(2), vectors(3), 4)
    with pytest.raises(VectorsError, match="of 2 in the gallery"):
        top_k(vectors(3), vectors(3), 3, exclude_self=True)
    with pytest.raises(VectorsError, match="the best 0"):
        top_k(vectors(2), vectors(3), 0)
    with pytest.raises(VectorsError, match="no query is item i"):
        top_k(vectors(2), vectors(3), 1, exclude_self=True)


# Average precision


@given(order=st.permutations(range(12)), relevant=st.sets(st.integers(0, 11)))
def test_average_precision_equals_brute_force_and_scikit_learn(order: list[int], relevant: set[int]) -> None:
    ranks = np.array([order.index(i) for i in relevant], dtype=np.int64)
    found = average_precision(ranks)
    wanted = brute_ap(order, relevant)
    assert found == (None if wanted is None else pytest.approx(wanted, abs=1e-15))
    if relevant:
        truth = [i in relevant for i in order]
        assert found == pytest.approx(average_precision_score(truth, -np.arange(12)), abs=1e-12)


def test_average_precision_at_k_equals_axlearns(real_data: Path) -> None:
    """Ties aside: its third ranking has nothing relevant, which axlearn scores 0 and we leave out."""
    golden = json.loads((real_data / "eval/axlearn/average_precision_at_k.json").read_text())
    for depth, wanted in golden["expected_ap"].items():
        found = [
            average_precision(
                np.array([ranking(scores).index(i) for i, hit in enumerate(relevant) if hit], dtype=np.int64),
                None if depth == "all" else int(depth),
            )
            for scores, relevant in zip(golden["similarity"], golden["relevant"], strict=True)
        ]
        assert found == [pytest.approx(wanted[0]), pytest.approx(wanted[1]), None]


# Data sets of classes


@pytest.mark.parametrize("make", [few_values, vectors])
def test_retrieval_of_classes_equals_brute_force(make: Any) -> None:
    """Classes of several sizes, one image alone in its class; GPR1200's way has the query among the found, kNN's not.

    Catches: of equal scores another order than the gallery's, and a query that is taken out of the wrong place.
    """
    x, labels = make(24), np.array([0] * 10 + [7] * 8 + [3] * 5 + [-1])
    ((_, scores_BG, _),) = score_blocks(x, x)
    ap, first, fifth = [], [], []
    for own, row in enumerate(scores_BG.tolist()):
        order = ranking(row)
        ap.append(brute_ap(order, {i for i in range(24) if labels[i] == labels[own]}))
        order.remove(own)
        first.append(labels[order[0]] == labels[own])
        fifth.append(any(labels[i] == labels[own] for i in order[:5]))
    found = gpr(x, labels, block_mb=0.01)
    assert found["ap"] == pytest.approx(ap)
    assert found["mAP"] == pytest.approx(np.mean(ap))  # type: ignore[arg-type]
    others = knn_retrieval(x, labels, block_mb=0.01)
    assert others["queries_without_positives"] == 1
    assert others["acc@1"] == pytest.approx(np.mean(first[:-1]))
    assert others["acc@5"] == pytest.approx(np.mean(fifth[:-1]))


def test_nan_vectors_and_short_labels_are_named() -> None:
    x = vectors(4)
    x[2, 1] = np.nan
    with pytest.raises(VectorsError, match="features: row 2 has a NaN in column 1"):
        gpr(x, np.zeros(4, int))
    with pytest.raises(VectorsError, match=r"labels: one per vector is wanted, shape \(4,\), not \(3,\)"):
        gpr(vectors(4), np.zeros(3, int))
