"""The linear probe is scikit-learn's logistic regression, swept where it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from i2e_pipeline.evaluate.linear_probe import fit, linear_probe


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Hundreds of steps over a few kilobytes: threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blobs(rows: int, classes: int = 4, width: int = 6, seed: int = 0, spread: float = 0.6) -> tuple[Any, Any]:
    """Unit vectors around a centre per class, far enough apart to be told mostly."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, width))
    labels = np.arange(rows) % classes
    vectors = centres[labels] + spread * rng.normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("C", [0.1, 1.0, 30.0, 1000.0])
def test_weights_are_those_of_scikit_learn(C: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    vectors, labels = blobs(120)
    ours = fit(vectors, labels, 4, C, dtype=torch.float64, tolerance=1e-9, device="cpu")
    theirs = linear_model.LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(vectors.astype(np.float64), labels)
    assert np.allclose(ours.weights_CD.numpy(), theirs.coef_, atol=2e-4 * max(1, np.abs(theirs.coef_).max()))
    # Intercepts are the same up to a constant: adding one to all changes no probability.
    ours_C, theirs_C = ours.bias_C.numpy(), theirs.intercept_
    assert np.allclose(ours_C - ours_C.mean(), theirs_C - theirs_C.mean(), atol=2e-4 * max(1, np.abs(theirs_C).max()))


def test_float32_predicts_what_scikit_learn_predicts() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    vectors, labels = blobs(400, classes=10, width=16)
    test, _ = blobs(1000, classes=10, width=16, seed=1)
    theirs = linear_model.LogisticRegression(C=10, max_iter=10_000).fit(vectors, labels)
    ours = fit(vectors, labels, 10, 10, device="cpu")
    assert (ours.predict(test) == theirs.predict(test)).mean() > 0.995


def test_the_whole_probe_is_the_sweep_of_scikit_learn() -> None:
    """CLIP's protocol (arXiv 2103.00020, appendix A.3) with LogisticRegression at every C that was tried. Catches: a
    choice on other images than val, a final fit that lacks val, a C that means another strength than there."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    parts = [blobs(rows, classes=6, width=8, seed=seed, spread=1.2) for seed, rows in enumerate((480, 240, 600))]
    (x, y), (val_x, val_y), (test_x, test_y) = parts
    found = linear_probe(x, y, val_x, val_y, test_x, test_y, device="cpu")

    def fitted(vectors: Any, labels: Any, C: float) -> Any:
        model = linear_model.LogisticRegression(C=C, tol=1e-8, max_iter=20_000)
        return model.fit(vectors.astype(np.float64), labels)

    for C, accuracy in found["curve"]:
        assert accuracy == pytest.approx(fitted(x, y, C).score(val_x, val_y), abs=1.01 / len(val_y)), C
    both = fitted(np.concatenate([x, val_x]), np.concatenate([y, val_y]), found["regulariser"])
    same = (both.predict(test_x) == test_y) == np.array(found["correct"])
    assert same.mean() > 0.995
    assert found["accuracy"] == pytest.approx(both.score(test_x, test_y), abs=3 / len(test_y))
    assert 0.3 < found["accuracy"] < 0.95  # neither all right nor chance


def test_the_optimum_does_not_depend_on_blocks_start_or_a_common_offset() -> None:
    vectors, labels = blobs(90)
    settings: dict[str, Any] = {"dtype": torch.float64, "tolerance": 1e-9, "device": "cpu"}
    plain = fit(vectors, labels, 4, 10, **settings)
    by_row = fit(vectors, labels, 4, 10, block_mb=1e-6, **settings)
    begun = fit(vectors, labels, 4, 10, fit(vectors, labels, 4, 1000, **settings), **settings)
    # Vectors that nearly coincide, as an untrained encoder's do: a hundredth of the spread around a common direction.
    near = fit(vectors * 0.01 + 5, labels, 4, 10 * 100**2, **settings)
    for other, scale in ((by_row, 1), (begun, 1), (near, 100)):
        assert torch.allclose(plain.weights_CD * scale, other.weights_CD, atol=2e-4 * scale)


def test_the_regulariser_is_chosen_on_val_and_both_are_fitted() -> None:
    train, val, test = blobs(40, spread=0.9), blobs(40, seed=1, spread=0.9), blobs(400, seed=2, spread=0.9)
    found = linear_probe(*train, *val, *test, device="cpu")
    assert [C for C, _ in found["curve"]] == sorted(C for C, _ in found["curve"])
    best = max(accuracy for _, accuracy in found["curve"])
    assert found["regulariser"] == next(C for C, accuracy in found["curve"] if accuracy == best)
    both = fit(np.concatenate([train[0], val[0]]), np.concatenate([train[1], val[1]]), 4, found["regulariser"])
    assert found["accuracy"] == pytest.approx((both.predict(test[0]) == test[1]).mean(), abs=0.006)
    assert found["accuracy"] == np.mean(found["correct"])
    assert found == linear_probe(*train, *val, *test, device="cpu")


def test_a_best_value_at_the_edge_of_the_grid_is_said() -> None:
    train, val, test = blobs(40), blobs(40, seed=1), blobs(40, seed=2)
    assert linear_probe(*train, *val, *test, grid=(1e-6, 1e-5), device="cpu")["at_edge"]


def test_the_best_of_the_grid_is_refined_by_thirds_of_a_decade() -> None:
    train, val, test = blobs(40, spread=0.9), blobs(40, seed=1, spread=0.9), blobs(40, seed=2)
    found = linear_probe(*train, *val, *test, grid=(1.0, 10.0, 100.0), device="cpu")
    tried = np.log10([C for C, _ in found["curve"]])
    coarse = max((a, -C) for C, a in found["curve"] if C in (1.0, 10.0, 100.0))
    around = np.log10(-coarse[1]) + np.array([-2, -1, 1, 2]) / 3
    assert np.allclose(tried, sorted([0, 1, 2, *around]))
    narrow = linear_probe(*train, *val, *test, grid=(found["regulariser"],), device="cpu", block_mb=0.001)
    assert found["accuracy"] == pytest.approx(narrow["accuracy"], abs=0.03)


def test_classes_count_the_same_in_the_mean_per_class() -> None:
    train, val, (x, y) = blobs(40), blobs(40, seed=1), blobs(400, seed=2, spread=1.5)
    keep = (y != 0) | (np.arange(len(y)) < 40)
    found = linear_probe(*train, *val, x[keep], y[keep], device="cpu")
    right = np.array(found["correct"])
    assert found["mean per class"] == pytest.approx(np.mean([right[y[keep] == c].mean() for c in range(4)]))
    assert abs(found["mean per class"] - found["accuracy"]) > 1e-3
    assert found["unknown"] == 0


def test_a_class_that_nothing_is_fitted_on_counts_as_wrong() -> None:
    train, val, test = blobs(40), blobs(40, seed=1), blobs(40, seed=2, spread=0.01)
    labels = np.array([10, 20, 30, 40])
    seen = test[1] != 3
    keep = train[1] != 3
    found = linear_probe(
        train[0][keep], labels[train[1][keep]], val[0][keep], labels[val[1][keep]], test[0], labels[test[1]],
        device="cpu",
    )  # fmt: skip
    assert (found["classes"], found["unknown"]) == (3, (~seen).sum())
    assert found["correct"] == seen.tolist()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"train_N": np.zeros(3, int)}, "8 vectors and 3 labels in train"),
        ({"test_ND": np.empty((0, 6), np.float32), "test_N": np.empty(0, int)}, "nothing in test"),
        ({"train_N": np.zeros(8, int), "val_N": np.zeros(8, int)}, "only class 0 in train and val"),
    ],
)
def test_what_cannot_be_fitted_is_refused(spoil: dict[str, Any], says: str) -> None:
    vectors, labels = blobs(8)
    arguments = dict.fromkeys(("train_ND", "val_ND", "test_ND"), vectors) | dict.fromkeys(
        ("train_N", "val_N", "test_N"), labels
    )
    with pytest.raises(ValueError, match=says):
        linear_probe(**(arguments | spoil), device="cpu")


def test_equal_vectors_give_the_most_frequent_class() -> None:
    """Catches: an encoder that makes the same vector of every image, which ends the evaluation of all the others."""
    vectors = np.tile(np.float32([0.6, 0.8]), (30, 1))
    labels = np.array([0, 1, 1] * 10)
    found = linear_probe(vectors, labels, vectors, labels, vectors, labels)
    assert found["accuracy"] == pytest.approx(2 / 3)
