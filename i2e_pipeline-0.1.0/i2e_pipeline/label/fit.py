"""Fits a calibration (calibration.py) to images whose truth is known.

Reads    candidates joined with scores, and `truth`: the entity that each image shows (int64; null: unknown, left out)
Writes   a Calibration: weights, bias, and the lowest threshold with the wanted precision on images that were not fitted
on
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.label.calibration import FEATURES, Calibration, CalibrationError, features, select

FOLDS = 10
RIDGE = 30.0
"""How strongly the weights of standardised features are pulled towards 0. Held-out figures are the same from 3 to 30.
But at 3, a feature that no right label of the fitting set has gets a weight that no other evidence can outweigh."""
ONE_SIDED_99 = 2.326
"""Standard deviations of a one-sided confidence of 99 %."""


def fit(
    table: pa.Table,
    target_precision: float = 0.95,
    names: tuple[str, ...] = tuple(FEATURES),
    fitted_on: str = "",
    named_images: int | None = None,
    confidence: float = ONE_SIDED_99,
) -> Calibration:
    """Weights, and the threshold at which labels of unseen images reach `target_precision`.

    table          calibration.NEEDED and truth; all candidates of an image together
    named_images   how many images have a text that names the truth; `measured["recall"]` is a share of them. None: of
                   the images that have the truth among their candidates
    confidence     standard deviations of the Wilson interval of the precision; its lower end must reach the target
    Probabilities for the threshold come from models that did not see the image (10 folds by image_id). They are those
    of the labels that the selection rule chooses, as labels are published. Raises CalibrationError where no threshold
    reaches the target.
    """
    table = table.filter(pc.is_valid(table["truth"]))
    if not table.num_rows:
        raise CalibrationError("no row has a known truth: nothing to calibrate on")
    x_PF = features(table, names)
    right_P = pc.equal(table["entity_id"], table["truth"]).to_numpy(zero_copy_only=False).astype(np.float64)
    folds_P = np.array([i[0] for i in table["image_id"].to_pylist()]) % FOLDS

    folds = [folds_P == fold for fold in np.unique(folds_P)]
    parts = [(pa.array(held), *_logistic(x_PF[~held], right_P[~held])) for held in folds]

    def chosen(slope: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each label, by a model that did not see its image, and whether it is right."""
        labels = pa.concat_tables(
            select(table.filter(held), _scaled(names, weights, bias, slope, shift), threshold=0.0)
            for held, weights, bias in parts
        )
        labels = labels.filter(pc.is_null(labels["reason"]))
        is_right = pc.equal(labels["entity_id"], labels["truth"]).to_numpy(zero_copy_only=False)
        return np.clip(labels["probability"].to_numpy().astype(np.float64), 1e-6, 1 - 1e-6), is_right

    # A label that was chosen among several is right more often, or less often, than its own probability says; and the
    # ridge pulls all probabilities together. So slope and shift are fitted once more, on labels as the selection rule
    # chooses them, and only on those above one half, as published labels are.
    p, is_right = chosen(1.0, 0.0)
    likely = p > 0.5
    slope, shift = 1.0, 0.0
    if 0 < is_right[likely].sum() < likely.sum():
        (slope,), shift = _logistic(np.log(p / (1 - p))[likely, None], is_right[likely].astype(np.float64), ridge=1.0)
        slope = max(slope, 0.1)
    wanted = named_images or len(pc.unique(table.filter(pa.array(right_P > 0))["image_id"]))
    threshold, measured = _threshold(*chosen(slope, shift), target_precision, wanted, confidence)
    whole = _scaled(names, *_logistic(x_PF, right_P), slope, shift)
    return replace(whole, threshold=threshold, measured=measured, fitted_on=fitted_on)


def _scaled(names: tuple[str, ...], weights: tuple[float, ...], bias: float, slope: float, shift: float) -> Calibration:
    return Calibration(names, tuple(slope * w for w in weights), slope * bias + shift, 0.0)


def report(
    table: pa.Table, calibration: Calibration, named_images: int, threshold: float | None = None
) -> dict[str, float]:
    """Precision and recall of the labels that a calibration chooses, on images with a known truth."""
    table = table.filter(pc.is_valid(table["truth"]))
    labels = select(table, calibration, threshold)
    labels = labels.filter(pc.is_null(labels["reason"]))
    right = pc.sum(pc.equal(labels["entity_id"], labels["truth"])).as_py() or 0
    return _figures(right, labels.num_rows, named_images)


def _figures(right: int, labels: int, wanted: int) -> dict[str, float]:
    return {
        "labels": labels,
        "precision": round(right / labels, 4) if labels else 0.0,
        "recall": round(right / wanted, 4) if wanted else 0.0,
    }


def _threshold(
    p: np.ndarray, right: np.ndarray, target: float, wanted: int, confidence: float
) -> tuple[float, dict[str, float]]:
    falling = np.argsort(-p, kind="stable")
    p, right = p[falling], right[falling]
    labels = np.arange(1, len(p) + 1)
    share = np.cumsum(right) / labels
    z2 = confidence**2
    sure = (share + z2 / (2 * labels) - confidence * np.sqrt(share * (1 - share) / labels + z2 / (4 * labels**2))) / (
        1 + z2 / labels
    )
    good = np.flatnonzero((sure >= target) & (np.append(p[1:], -1) < p))
    if not len(good):
        raise CalibrationError(
            f"no threshold reaches a precision of {target}: the best on {len(p)} labels is {sure.max(initial=0):.3f} "
            "(lower end); ask for less, or give more images"
        )
    last = int(good[-1])
    figures = _figures(int(right[: last + 1].sum()), last + 1, wanted)
    below = float(p[last + 1]) if last + 1 < len(p) else float(p[last])
    return round((float(p[last]) + below) / 2, 4), figures | {"target_precision": target}


def _logistic(x_PF: np.ndarray, right_P: np.ndarray, ridge: float = RIDGE) -> tuple[tuple[float, ...], float]:
    """Weights and bias of a ridge logistic regression by Newton's method, for features as they come."""
    mean_F, std_F = x_PF.mean(axis=0), x_PF.std(axis=0)
    std_F = np.where(std_F > 1e-9, std_F, 1.0)
    x_PG = np.column_stack([(x_PF - mean_F) / std_F, np.ones(len(x_PF))])
    pull_G = np.append(np.full(x_PF.shape[1], ridge), 1e-6)
    w_G = np.zeros(x_PG.shape[1])
    for _ in range(50):
        p_P = 1 / (1 + np.exp(-np.clip(x_PG @ w_G, -50, 50)))
        slope_G = x_PG.T @ (right_P - p_P) - pull_G * w_G
        curve_GG = (x_PG * (p_P * (1 - p_P))[:, None]).T @ x_PG + np.diag(pull_G)
        step_G = np.linalg.solve(curve_GG, slope_G)
        w_G = w_G + step_G
        if np.abs(step_G).max() < 1e-8:
            break
    weights_F = w_G[:-1] / std_F
    bias = float(w_G[-1] - weights_F @ mean_F)
    return tuple(float(w) for w in weights_F), bias


def rounded(calibration: Calibration, digits: int = 4) -> Calibration:
    """The same with short numbers, for print."""
    return replace(
        calibration,
        weights=tuple(round(w, digits) for w in calibration.weights),
        bias=round(calibration.bias, digits),
    )
