"""Neighbours against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from i2e_pipeline.evaluate.knn import knn_classify, knn_retrieval
from i2e_pipeline.evaluate.vectors import VectorsError

torch.set_num_threads(1)

rng = np.random.default_rng(5)
CENTRES = rng.normal(size=(6, 12))
TRAIN_LABELS = rng.integers(0, 6, 150)
TEST_LABELS = rng.integers(0, 6, 80)
TRAIN = (CENTRES[TRAIN_LABELS] + rng.normal(size=(150, 12)) * 1.6).astype(np.float32)
TEST = (CENTRES[TEST_LABELS] + rng.normal(size=(80, 12)) * 1.6).astype(np.float32)


def test_accuracy_is_that_of_the_nearest_others() -> None:
    index_NK = NearestNeighbors(metric="cosine", algorithm="brute").fit(TRAIN).kneighbors(n_neighbors=5)[1]
    same_NK = TRAIN_LABELS[index_NK] == TRAIN_LABELS[:, None]
    found = knn_retrieval(TRAIN, TRAIN_LABELS, block_mb=0.05)
    assert found["acc@1"] == same_NK[:, 0].mean()
    assert found["acc@5"] == same_NK.any(axis=1).mean()
    assert found["acc@1"] < found["acc@5"] < 1


def test_images_that_are_alone_in_their_class_are_left_out_and_counted() -> None:
    """Catches: a query that can find nothing and counts as wrong."""
    labels = TRAIN_LABELS.copy()
    labels[:3] = [100, 101, 102]
    index_NK = NearestNeighbors(metric="cosine", algorithm="brute").fit(TRAIN).kneighbors(n_neighbors=5)[1]
    right_N = (labels[index_NK] == labels[:, None]).any(axis=1)
    found = knn_retrieval(TRAIN, labels)
    assert (found["queries"], found["queries_without_positives"]) == (150, 3)
    assert found["correct"]["acc@1"][:3] == [None] * 3
    assert found["correct"]["acc@5"][3:] == right_N[3:].tolist()
    assert found["acc@5"] == right_N[3:].mean()


def test_the_query_itself_does_not_count() -> None:
    """Catches: an exact copy ranks before the query, and the query's own place is then taken for the copy's."""
    x = np.repeat(TRAIN[:2], 2, axis=0)
    assert knn_retrieval(x, np.array([0, 1, 0, 1]))["acc@1"] == 0.0
    assert knn_retrieval(x, np.array([0, 0, 1, 1]))["acc@1"] == 1.0


def test_images_without_others_of_their_class_have_no_figure() -> None:
    assert knn_retrieval(TRAIN[:3], np.arange(3))["acc@1"] is None
    with pytest.raises(VectorsError, match="two images"):
        knn_retrieval(TRAIN[:1], np.arange(1))


def test_votes_equal_scikit_learns() -> None:
    ks = (1, 5, 20, 100)
    found = knn_classify(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, ks, 0.07, block_mb=0.05)
    for k in ks:
        oracle = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(TRAIN, TRAIN_LABELS)
        assert found[f"k={k}"] == oracle.score(TEST, TEST_LABELS)
        assert found["correct"][f"k={k}"] == (oracle.predict(TEST) == TEST_LABELS).tolist()


def test_votes_are_weighted() -> None:
    """Catches: a plain majority: one neighbour at the query outweighs two far away."""
    train = np.array([[1.0, 0], [0.5, 1], [0.5, -1]])
    assert knn_classify(train, np.array([5, 2, 2]), train[:1], np.array([5]), (3,))["k=3"] == 1.0
    assert knn_classify(train, np.array([5, 2, 2]), train[:1], np.array([5]), (3,), 100.0)["k=3"] == 0.0


def test_low_temperatures_do_not_overflow() -> None:
    coldest = knn_classify(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, (20,), 1e-4)["k=20"]
    assert coldest == knn_classify(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, (1,))["k=1"]


def test_equal_votes_go_to_the_lower_label() -> None:
    train = np.array([[1.0, 0], [1.0, 0]])
    assert knn_classify(train, np.array([9, 4]), train[:1], np.array([4]), (2,))["k=2"] == 1.0


def test_more_neighbours_than_training_images_have_no_figure() -> None:
    found = knn_classify(TRAIN[:15], TRAIN_LABELS[:15], TEST, TEST_LABELS, (10, 20))
    assert found["k=10"] is not None
    assert found["k=20"] is None
    assert knn_classify(TRAIN[:2], TRAIN_LABELS[:2], TEST, TEST_LABELS, (10,))["k=10"] is None


def test_labels_of_another_length_are_named() -> None:
    with pytest.raises(VectorsError, match="labels of the test images: one per vector"):
        knn_classify(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS[:-1])
    with pytest.raises(VectorsError, match="must be positive"):
        knn_classify(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, temperature=0)
