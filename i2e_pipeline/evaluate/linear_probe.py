"""Linear probe: logistic regression on frozen vectors, the regulariser swept on a validation split.

Objective, as scikit-learn's LogisticRegression has it (weights W_CD, intercepts b_C, which are not penalised):

    C · Σ_n −log softmax(x_n W^T + b)[y_n]  +  ½ ‖W‖²

L-BFGS over all rows at once, on a CPU or a GPU. The problem is convex and nothing is drawn, so a machine gives the same
figure every time. Memory is bounded: the scores of a block of rows at a time.

Legend: N rows, D width, C classes (in text: C also the inverse of the regulariser's strength).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from i2e_pipeline.core.machine import choose_device
from i2e_pipeline.evaluate.retrieval import mean_by_class
from i2e_pipeline.evaluate.vectors import VectorsError

GRID = tuple(10.0**power for power in range(-1, 7))
"""Values of C. Vectors of norm 1 want weights of some tens, so the best lies well above scikit-learn's default of 1."""
FINE = tuple(10.0 ** (third / 3) for third in (-2, -1, 1, 2))
"""Factors by which the best of the grid is then refined, below it and above."""


@dataclass(frozen=True)
class Fitted:
    weights_CD: torch.Tensor
    bias_C: torch.Tensor
    iterations: int
    gradient: float
    """Largest component of the gradient that the last step left, of the objective divided by C · N."""

    def predict(self, vectors_ND: np.ndarray, rows_at_once: int = 1 << 16) -> np.ndarray:
        """int64 class of each row."""
        found = []
        for start in range(0, len(vectors_ND), rows_at_once):
            x_ND = torch.from_numpy(vectors_ND[start : start + rows_at_once]).to(self.weights_CD)
            found.append((x_ND @ self.weights_CD.T + self.bias_C).argmax(dim=1).cpu().numpy())
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def fit(
    vectors_ND: np.ndarray,
    labels_N: np.ndarray,
    classes: int,
    C: float,
    start: Fitted | None = None,
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    max_iterations: int = 500,
    tolerance: float = 1e-5,
    block_mb: float = 256,
) -> Fitted:
    """The minimum for one C; `start` is another fit to begin from, which saves steps and does not change the result.

    labels_N    int, 0 … classes − 1
    tolerance   on the largest component of the gradient (Fitted.gradient)
    """
    x_ND = torch.from_numpy(np.ascontiguousarray(vectors_ND)).to(
        device=choose_device(device, "evaluate.device"), dtype=dtype
    )
    y_N = torch.from_numpy(np.asarray(labels_N, dtype=np.int64)).to(x_ND.device)
    count, width = x_ND.shape
    rows_at_once = max(1, int(block_mb * 2**20 / (2 * (classes + width) * x_ND.element_size())))
    # Inside, rows are centred and of variance 1: the intercept takes up the centre, weights and penalty the scale, so
    # the optimum stays. Vectors that nearly coincide (an untrained encoder's do) would else look converged at once.
    centre_D = x_ND.mean(dim=0, dtype=torch.float64).to(dtype)
    squares = sum(
        float((x_ND[at : at + rows_at_once] - centre_D).square().sum(dtype=torch.float64))
        for at in range(0, count, rows_at_once)
    )
    # Rows that are all one tell nothing: with any scale the weights stay 0.
    scale = (squares / (count * width)) ** 0.5 or 1.0
    penalty = 1 / (C * count * scale**2)
    # One tensor for the optimiser: the last column is the intercept.
    w_CE = torch.zeros(classes, width + 1, device=x_ND.device, dtype=dtype)
    if start is not None:
        w_CE[:, :width] = start.weights_CD * scale
        w_CE[:, width] = start.bias_C + start.weights_CD @ centre_D
    w_CE.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w_CE],
        lr=1,
        max_iter=max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-12 if dtype is torch.float64 else 1e-8,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> torch.Tensor:
        """Objective / (C · N), and its gradient by hand: autograd would keep the scores of all rows."""
        grad_CE = torch.zeros_like(w_CE)
        loss = torch.zeros((), device=x_ND.device, dtype=dtype)
        for at in range(0, count, rows_at_once):
            part_BD, y_B = (x_ND[at : at + rows_at_once] - centre_D) / scale, y_N[at : at + rows_at_once]
            log_p_BC = torch.log_softmax(torch.addmm(w_CE[:, width], part_BD, w_CE[:, :width].T), dim=1)
            loss -= log_p_BC.gather(1, y_B[:, None]).sum()
            error_BC = log_p_BC.exp_()
            error_BC[torch.arange(len(y_B), device=x_ND.device), y_B] -= 1
            grad_CE[:, :width] += error_BC.T @ part_BD
            grad_CE[:, width] += error_BC.sum(dim=0)
        loss, grad_CE = loss / count, grad_CE / count
        grad_CE[:, :width] += w_CE[:, :width] * penalty
        w_CE.grad = grad_CE
        return loss + w_CE[:, :width].square().sum() * (penalty / 2)

    optimizer.step(closure)
    closure()
    assert w_CE.grad is not None
    done = w_CE.detach()
    steps = int(optimizer.state[w_CE]["n_iter"])
    weights_CD = done[:, :width] / scale
    return Fitted(weights_CD, done[:, width] - weights_CD @ centre_D, steps, float(w_CE.grad.abs().max()))


def linear_probe(
    train_ND: np.ndarray,
    train_N: np.ndarray,
    val_ND: np.ndarray,
    val_N: np.ndarray,
    test_ND: np.ndarray,
    test_N: np.ndarray,
    grid: Sequence[float] = GRID,
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    block_mb: float = 256,
) -> dict[str, Any]:
    """`accuracy` in [0, 1] on the test rows of the regression fitted on train and val, with the C that is best on val.

    …_ND, …_N   vectors float32 of norm 1, and their labels
    grid        values of C; around the best of them thirds of a decade are tried, too (FINE)
    Of values of C that are equally right, the smallest (the strongest regulariser) is the `regulariser`. `curve` holds
    (C, accuracy on val); `at_edge` says that the best C is the first or last that was tried, so that a wider grid may
    have a better one. `correct`: whether each test row is right; `unknown`: how many cannot be, for their class is not
    in train and val. `mean per class` is the mean over classes instead of rows.
    Raises VectorsError where there is no row to fit, choose or measure on, or only one class.
    """
    for name, vectors_ND, labels_N in (("train", train_ND, train_N), ("val", val_ND, val_N), ("test", test_ND, test_N)):
        if len(vectors_ND) != len(labels_N):
            raise VectorsError(f"linear probe: {len(vectors_ND)} vectors and {len(labels_N)} labels in {name}")
        if not len(vectors_ND):
            raise VectorsError(f"linear probe: nothing in {name}")
    known = np.unique(np.concatenate([train_N, val_N]))
    if len(known) < 2:
        raise VectorsError(f"linear probe: only class {known[0]} in train and val; two are wanted")

    def among_known(labels_N: np.ndarray) -> np.ndarray:
        """Places in `known`; −1, which is never predicted, for a class that nothing is fitted on."""
        place_N = np.minimum(np.searchsorted(known, labels_N), len(known) - 1)
        return np.where(known[place_N] == labels_N, place_N, -1)

    train_y, val_y, test_y = (among_known(np.asarray(labels_N)) for labels_N in (train_N, val_N, test_N))
    settings: dict[str, Any] = {"device": device, "dtype": dtype, "block_mb": block_mb}
    fits: dict[float, Fitted] = {}
    accuracies: dict[float, float] = {}

    def best_C() -> float:
        return max(sorted(accuracies), key=accuracies.__getitem__)

    def tried(C: float) -> None:
        near = min(fits, key=lambda other: abs(math.log(other / C)), default=None)
        fits[C] = fit(train_ND, train_y, len(known), C, None if near is None else fits[near], **settings)
        accuracies[C] = float((fits[C].predict(val_ND) == val_y).mean())

    for C in sorted(grid):
        tried(C)
    for C in [best_C() * factor for factor in FINE]:
        tried(C)
    curve = sorted(accuracies.items())
    regulariser = best_C()
    both_ND, both_y = np.concatenate([train_ND, val_ND]), np.concatenate([train_y, val_y])
    final = fit(both_ND, both_y, len(known), regulariser, fits[regulariser], **settings)
    correct = final.predict(test_ND) == test_y
    return {
        "accuracy": float(correct.mean()),
        "mean per class": mean_by_class(correct, np.asarray(test_N)),
        "regulariser": regulariser,
        "accuracy on val": accuracies[regulariser],
        "curve": curve,
        "at_edge": regulariser in (curve[0][0], curve[-1][0]),
        "unknown": int((test_y < 0).sum()),
        "train": len(train_y),
        "val": len(val_y),
        "test": len(test_y),
        "classes": len(known),
        "correct": correct.tolist(),
    }
