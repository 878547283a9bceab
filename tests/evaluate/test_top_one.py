"""The nearest of many candidates: the same as a full exact ranking, whatever the blocks and the order of computing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.evaluate.retrieval import top_k
from i2e_pipeline.evaluate.top_one import Block, top_one
from i2e_pipeline.evaluate.vectors import VectorsError


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


def vectors(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


def blocks(gallery_CD: np.ndarray, size: int) -> Iterator[Block]:
    ids_C = np.arange(len(gallery_CD)) * 10 + 7
    for start in range(0, len(gallery_CD), size):
        yield Block(ids_C[start : start + size], gallery_CD[start : start + size])


@pytest.mark.parametrize("block_mb", [0.0001, 0.01, 64])
@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_the_nearest_is_that_of_the_exact_ranking(size: int, block_mb: float) -> None:
    queries_QD, gallery_CD = vectors(40), vectors(300, seed=1)
    found = top_one(queries_QD, blocks(gallery_CD, size), block_mb)
    scores, index = top_k(queries_QD, gallery_CD, 1)
    assert found.ids_Q.tolist() == (index[:, 0] * 10 + 7).tolist()
    assert np.array_equal(found.scores_Q, scores[:, 0])
    assert found.candidates == 300


@pytest.mark.parametrize("size", [3, 64, 1000])
def test_of_equally_near_candidates_the_first_is_taken(size: int) -> None:
    """Catches: entities of one name, of which another one is the answer on another machine."""
    gallery_CD = np.repeat(vectors(5, seed=1), 40, axis=0)[np.random.default_rng(0).permutation(200)]
    found = top_one(vectors(30), blocks(gallery_CD, size))
    _, index = top_k(vectors(30), gallery_CD, 1)
    assert found.ids_Q.tolist() == (index[:, 0] * 10 + 7).tolist()


def test_candidates_that_float32_cannot_tell_apart_are_told_apart() -> None:
    """Catches: the highest float32 product taken for the nearest. Candidates differ by less than its rounding."""
    width = 512
    queries_QD = vectors(20, width)
    near_CD = unit(np.repeat(queries_QD, 30, axis=0) + 3e-5 * np.random.default_rng(2).normal(size=(600, width)))
    found = top_one(queries_QD, blocks(near_CD, 50))
    _, index = top_k(queries_QD, near_CD, 1)
    assert found.ids_Q.tolist() == (index[:, 0] * 10 + 7).tolist()
    quick = (torch.from_numpy(queries_QD) @ torch.from_numpy(near_CD).T).argmax(dim=1).numpy()
    assert (quick != index[:, 0]).any()


@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3).filter(any), min_size=1, max_size=25),
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3).filter(any), min_size=1, max_size=6),
    st.integers(1, 9),
)
def test_coarse_vectors_full_of_ties_are_ranked_alike(
    gallery: list[list[int]], queries: list[list[int]], size: int
) -> None:
    gallery_CD, queries_QD = unit(np.array(gallery)), unit(np.array(queries))
    found = top_one(queries_QD, blocks(gallery_CD, size))
    scores, index = top_k(queries_QD, gallery_CD, 1)
    assert found.ids_Q.tolist() == (index[:, 0] * 10 + 7).tolist()
    assert np.array_equal(found.scores_Q, scores[:, 0])


def test_nothing_to_compare_with_and_other_widths_are_refused() -> None:
    with pytest.raises(VectorsError, match="no candidate"):
        top_one(vectors(3), iter([]))
    with pytest.raises(VectorsError, match="queries are 16 wide and candidates 8"):
        top_one(vectors(3), blocks(vectors(3, 8), 2))
    hole = vectors(3)
    hole[1] = np.nan
    with pytest.raises(VectorsError, match="candidates: row 1 has a NaN"):
        top_one(vectors(3), blocks(hole, 3))
