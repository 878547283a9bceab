from __future__ import annotations

import numpy as np
import pytest

from i2e_pipeline.evaluate.gpr1200 import gpr
from i2e_pipeline.evaluate.in_training import held_out


def drawn(classes: range, each: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    own = np.random.default_rng(9).normal(size=(40, 16)).astype(np.float32)
    labels = np.array([c for c in classes for _ in range(each)])
    return (own[labels] + noise * rng.normal(size=(len(labels), 16))).astype(np.float32), labels, own


def none() -> tuple[np.ndarray, np.ndarray]:
    return np.empty((0, 16), dtype=np.float32), np.empty(0, dtype=np.int64)


def test_vectors_of_their_class_are_all_right() -> None:
    images, labels, own = drawn(range(30), 4, 0.01)
    train, train_labels, _ = drawn(range(20), 5, 0.01, seed=1)
    found = held_out(images, labels, labels >= 20, own, train, train_labels)
    assert found == {"mAP": 1.0, "knn": 1.0, "zero_shot": 1.0}


def test_retrieval_is_among_entities_that_were_not_trained_on() -> None:
    """Catches: held-out images of trained entities, which are easier, among the retrieved; entities taken for new
    because no image of theirs is among the training images that were drawn."""
    images, labels, _ = drawn(range(30), 4, 2.0)
    train, train_labels, _ = drawn(range(10), 5, 2.0, seed=1)
    new = labels >= 20
    wanted = gpr(images[new], labels[new])["mAP"]
    assert held_out(images, labels, new, None, train, train_labels)["mAP"] == pytest.approx(wanted)


def test_figures_that_the_arrays_do_not_allow_are_left_out() -> None:
    images, labels, own = drawn(range(5), 3, 0.1)
    everything, nothing = np.ones(len(labels), dtype=bool), np.zeros(len(labels), dtype=bool)
    assert set(held_out(images, labels, everything, None, *none())) == {"mAP"}
    assert set(held_out(images, labels, everything, own, *none())) == {"mAP", "zero_shot"}
    assert set(held_out(images, labels, nothing, own, *none())) == {"zero_shot"}
    assert set(held_out(images, labels, nothing, None, *drawn(range(5), 3, 0.1)[:2])) == {"knn"}


def test_one_new_entity_tells_nothing() -> None:
    """Catches: a perfect mAP at every step, where all images that are asked are of one entity."""
    images, labels, _ = drawn(range(4), 5, 2.0)
    assert "mAP" not in held_out(images, labels, labels == 3, None, *none())


def test_length_of_a_vector_does_not_matter() -> None:
    images, labels, own = drawn(range(8), 3, 2.0)
    longer = images * np.random.default_rng(0).uniform(0.5, 9, (len(images), 1)).astype(np.float32)
    new = np.ones(len(labels), dtype=bool)
    a, b = held_out(images, labels, new, own, *none()), held_out(longer, labels, new, 3 * own, *none())
    assert a == pytest.approx(b, abs=1e-9)


def test_fewer_training_images_than_neighbours_still_vote() -> None:
    images, labels, _ = drawn(range(4), 3, 0.05)
    train, train_labels, _ = drawn(range(4), 2, 0.05, seed=1)
    assert held_out(images, labels, labels < 0, None, train, train_labels)["knn"] == 1.0
