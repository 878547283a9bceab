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


def test_vectors_of_their_class_are_all_right() -> None:
    images, labels, own = drawn(range(30), 4, 0.01)
    train, train_labels, _ = drawn(range(20), 5, 0.01, seed=1)
    assert held_out(images, labels, own, train, train_labels) == {"mAP": 1.0, "knn": 1.0, "zero_shot": 1.0}


def test_retrieval_is_among_entities_that_were_not_trained_on() -> None:
    """Catches: held-out images of trained entities, which are easier, among the retrieved."""
    images, labels, _ = drawn(range(30), 4, 2.0)
    train, train_labels, _ = drawn(range(20), 5, 2.0, seed=1)
    new = labels >= 20
    wanted = gpr(images[new], labels[new])["mAP"]
    assert held_out(images, labels, None, train, train_labels)["mAP"] == pytest.approx(wanted)
    assert held_out(images, labels, None, None, None)["mAP"] == pytest.approx(gpr(images, labels)["mAP"])


def test_figures_that_the_arrays_do_not_allow_are_left_out() -> None:
    images, labels, own = drawn(range(5), 3, 0.1)
    assert set(held_out(images, labels, None, None, None)) == {"mAP"}
    assert set(held_out(images, labels, own, None, None)) == {"mAP", "zero_shot"}
    train, train_labels, _ = drawn(range(30, 32), 3, 0.1)
    assert "knn" not in held_out(images, labels, None, train, train_labels)


def test_length_of_a_vector_does_not_matter() -> None:
    images, labels, own = drawn(range(8), 3, 2.0)
    longer = images * np.random.default_rng(0).uniform(0.5, 9, (len(images), 1)).astype(np.float32)
    a, b = held_out(images, labels, own, None, None), held_out(longer, labels, 3 * own, None, None)
    assert a == pytest.approx(b, abs=1e-9)


def test_fewer_training_images_than_neighbours_still_vote() -> None:
    images, labels, _ = drawn(range(4), 3, 0.05)
    train, train_labels, _ = drawn(range(4), 2, 0.05, seed=1)
    assert held_out(images, labels, None, train, train_labels)["knn"] == 1.0
