from __future__ import annotations

import numpy as np
import pytest

from i2e_pipeline.evaluate import projection
from i2e_pipeline.evaluate.projection import ProjectionError

pytest.importorskip("sklearn")


def clusters(each: int = 30, of: int = 4, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(of).repeat(each)
    return rng.normal(size=(of, width))[labels] + 0.05 * rng.normal(size=(each * of, width)), labels


def test_neighbours_stay_neighbours() -> None:
    vectors, labels = clusters()
    xy = projection.project(vectors, "tsne")
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2) + np.eye(len(xy)) * 9
    assert (labels[distance.argmin(axis=1)] == labels).mean() > 0.97


def test_the_same_vectors_give_the_same_picture() -> None:
    vectors, _ = clusters()
    assert np.array_equal(projection.project(vectors, "tsne", 3), projection.project(vectors, "tsne", 3))


def test_length_of_a_vector_does_not_matter() -> None:
    vectors, _ = clusters()
    longer = vectors * np.random.default_rng(1).uniform(1, 9, (len(vectors), 1))
    assert np.allclose(projection.project(vectors, "tsne"), projection.project(longer, "tsne"), atol=0.05)


@pytest.mark.slow
def test_umap_too() -> None:
    pytest.importorskip("umap")
    vectors, labels = clusters()
    xy = projection.project(vectors, "umap")
    assert xy.shape == (len(labels), 2)
    assert np.array_equal(xy, projection.project(vectors, "umap"))


@pytest.mark.parametrize("count", [5, 7])
def test_a_handful_of_points_is_enough(count: int) -> None:
    xy = projection.project(np.random.default_rng(0).normal(size=(count, 8)), "tsne")
    assert np.isfinite(xy).all()
    assert xy.min() >= 0
    assert xy.max() <= 1


def test_fewer_are_refused() -> None:
    with pytest.raises(ProjectionError, match="4 vectors are too few"):
        projection.project(np.ones((4, 8)), "tsne")
    with pytest.raises(ProjectionError, match="no projection 'pca'"):
        projection.project(np.ones((9, 8)), "pca")


def test_equal_vectors_are_no_error() -> None:
    assert np.isfinite(projection.project(np.ones((12, 8)), "tsne")).all()


def test_points_are_drawn_by_hash_and_kept_when_rows_are_added() -> None:
    few = projection.chosen(1000, at_most=100)
    assert len(few) == 100
    assert (np.diff(few) > 0).all()
    assert abs(few.mean() - 500) < 90
    more = projection.chosen(2000, at_most=200)
    assert len(set(few) & set(more[more < 1000])) >= 70
    assert list(projection.chosen(5, at_most=100)) == [0, 1, 2, 3, 4]
    assert list(few) != list(projection.chosen(1000, at_most=100, seed=1))
