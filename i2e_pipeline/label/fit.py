"""Fits a calibration (calibration.py) to images whose truth is known.

Reads    candidates joined with scores, and what is known of each image: `truth`, `nothing`, `refuted`, `wider`
         (judged.py). Rows that are neither right nor wrong are looked at beside the others, and not fitted on
Writes   a Calibration: weights, bias, and the lowest threshold with the wanted precision on images that were not fitted
on
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.label import judged
from i2e_pipeline.label.calibration import (
    FITTED,
    GIVEN,
    VOCABULARY_GAP,
    Calibration,
    CalibrationError,
    features,
    select,
)

FOLDS = 10
RIDGE = 3.0
"""How strongly the weights of standardised features are pulled towards 0. On photos that were not fitted on, 3 and 1
give the same, 10 half a point of recall less, 30 three points."""
ONE_SIDED_99 = 2.326
"""Standard deviations of a one-sided confidence of 99 %."""


def fit(
    table: pa.Table,
    target_precision: float = 0.95,
    names: tuple[str, ...] = FITTED,
    fitted_on: str = "",
    named_images: int | None = None,
    confidence: float = ONE_SIDED_99,
) -> Calibration:
    """Weights, and the threshold at which labels of unseen images reach `target_precision`.

    table          calibration.NEEDED, and what judged.right reads; all candidates of an image together. `named` (bool):
                   whether the row's text names the truth; without it, all do
    named_images   how many images have a text that names the truth; `measured["recall"]` is a share of them. None or 0:
                   of the images that have the truth among their candidates
    confidence     standard deviations of the Wilson interval of the precision; its lower end must reach the target
    Probabilities for the threshold come from models that did not see the image (10 folds by image_id). They are those
    of the labels that the selection rule chooses, as labels are published. Raises CalibrationError where no threshold
    reaches the target.
    """
    table = _of_known_images(table)
    if not table.num_rows:
        raise CalibrationError("no row has a known truth: nothing to calibrate on")
    told = (target_precision, fitted_on, named_images, confidence)
    other = _without_vocabulary(table, names, *told) if VOCABULARY_GAP in names else None
    given = {name: GIVEN[name] for name in names if name in GIVEN}
    names = tuple(name for name in names if name not in given)
    x_PF = features(table, names)
    decided_P = pc.is_valid(table["right"]).to_numpy()
    right_P = pc.fill_null(table["right"], False).to_numpy().astype(np.float64)
    folds_P = np.array([i[0] for i in table["image_id"].to_pylist()]) % FOLDS

    if not right_P.any() or len(np.unique(folds_P[decided_P])) < 2:
        raise CalibrationError(
            f"{int(right_P.sum())} of {int(decided_P.sum())} candidates of known truth are right, on too few images to "
            "calibrate on: give more images of known truth whose texts name what they show"
        )
    folds = [folds_P == fold for fold in np.unique(folds_P)]
    parts = [(pa.array(held), *_logistic(x_PF[~held & decided_P], right_P[~held & decided_P])) for held in folds]

    def chosen(slope: float, shift: float) -> pa.Table:
        """The labels that the selection rule chooses at any probability, by models that did not see their images."""
        labels = pa.concat_tables(
            select(table.filter(held), _scaled(names, weights, bias, slope, shift, given), threshold=0.0)
            for held, weights, bias in parts
        )
        return labels.filter(pc.is_null(labels["reason"]))

    # A label that was chosen among several is right more often, or less often, than its own probability says; and the
    # ridge pulls all probabilities together. So slope and shift are fitted once more, on labels as the selection rule
    # chooses them, and only on those above one half, as published labels are.
    p, is_right = _probabilities_of_judged(chosen(1.0, 0.0))
    likely = p > 0.5
    slope, shift = 1.0, 0.0
    if 0 < is_right[likely].sum() < likely.sum():
        (slope,), shift = _logistic(np.log(p / (1 - p))[likely, None], is_right[likely].astype(np.float64), ridge=1.0)
        slope = max(slope, 0.1)
    labels = chosen(slope, shift)
    threshold, lowest = _threshold(*_probabilities_of_judged(labels), target_precision, confidence)
    measured = _figures(labels, _probabilities(labels) >= lowest, named_images or _with_truth(table))
    measured["target_precision"] = target_precision
    whole = _scaled(names, *_logistic(x_PF[decided_P], right_P[decided_P]), slope, shift, given)
    if other is not None:
        other = replace(other, bias=other.bias + _logit(threshold) - _logit(other.threshold), threshold=threshold)
    return replace(whole, threshold=threshold, measured=measured, fitted_on=fitted_on, without_vocabulary=other)


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return float(np.log(p / (1 - p)))


def _without_vocabulary(
    table: pa.Table,
    names: tuple[str, ...],
    target_precision: float,
    fitted_on: str,
    named_images: int | None,
    confidence: float,
) -> Calibration | None:
    """The same without what the vocabulary tells; None where the table does not know it anyway, or where no threshold
    reaches the target without it."""
    if VOCABULARY_GAP not in table.schema.names or table[VOCABULARY_GAP].null_count == table.num_rows:
        return None
    others = tuple(name for name in names if name != VOCABULARY_GAP)
    try:
        return fit(table, target_precision, others, fitted_on, named_images, confidence)
    except CalibrationError:
        return None


def _scaled(
    names: tuple[str, ...],
    weights: tuple[float, ...],
    bias: float,
    slope: float,
    shift: float,
    given: Mapping[str, float],
) -> Calibration:
    scaled = tuple(slope * w for w in weights)
    return Calibration((*names, *given), (*scaled, *given.values()), slope * bias + shift, 0.0)


def report(
    table: pa.Table, calibration: Calibration, named_images: int | None, threshold: float | None = None
) -> dict[str, float]:
    """Figures of the labels that a calibration chooses, on images of known truth; table and named_images as in `fit`.

    labels              right, wrong and undecided ones
    wrong_on_none       those of the wrong labels whose image shows no entity of the knowledge base
    undecided           labels of which it is not known whether they are right; they count nowhere else
    precision           right ones of right and wrong ones
    recall              images whose text names the truth and that have it as a label, of `named_images`
    calibration_error   of the probabilities of labels, and of the best candidate of each image
    """
    table = _of_known_images(table)
    rows = select(table, calibration, threshold)
    is_label = pc.is_null(rows["reason"]).to_numpy()
    return _figures(rows, is_label, named_images or _with_truth(table))


def _of_known_images(table: pa.Table) -> pa.Table:
    """Rows of images of which something is known, with `right`, `nothing`, and `named_image`: whether a text of the
    image names its truth."""
    table = table.filter(judged.told(table))
    named_image = pa.array(np.ones(table.num_rows, dtype=bool))
    if "named" in table.schema.names and pc.any(table["named"]).as_py():
        named_image = pc.is_in(table["image_id"], pc.unique(table.filter(table["named"])["image_id"]))
    further = {"right": judged.right(table), "nothing": judged.told_nothing(table), "named_image": named_image}
    table = table.drop_columns([name for name in further if name in table.schema.names])
    for name, column in further.items():
        table = table.append_column(name, column)
    return table


def _with_truth(table: pa.Table) -> int:
    """Images that have their truth among their candidates."""
    return len(pc.unique(table.filter(table["right"])["image_id"]))


def _probabilities(labels: pa.Table) -> np.ndarray:
    return np.clip(labels["probability"].to_numpy().astype(np.float64), 1e-6, 1 - 1e-6)


def _probabilities_of_judged(labels: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each label that is right or wrong, and which of both it is."""
    labels = labels.filter(pc.is_valid(labels["right"]))
    return _probabilities(labels), labels["right"].to_numpy()


def _figures(rows: pa.Table, is_label: np.ndarray, wanted: int) -> dict[str, float]:
    """Figures of `report`. rows: what `select` returned, so that the best candidate of an image is its first row."""
    labels = rows.filter(pa.array(is_label))
    right = labels.filter(labels["right"])
    wrong = labels.filter(pc.invert(labels["right"]))
    found = len(pc.unique(right.filter(right["named_image"])["image_id"]))
    ids = rows["image_id"].combine_chunks()
    best = pc.not_equal(ids, pa.concat_arrays([pa.nulls(min(1, len(ids)), ids.type), ids[:-1]]))
    first = pc.fill_null(best, True).to_numpy(zero_copy_only=False)
    bins = judged.reliability(*_probabilities_of_judged(rows.filter(pa.array(first | is_label))))
    decided = right.num_rows + wrong.num_rows
    return {
        "labels": labels.num_rows,
        "right": right.num_rows,
        "wrong": wrong.num_rows,
        "wrong_on_none": pc.sum(wrong["nothing"]).as_py() or 0,
        "undecided": labels.num_rows - decided,
        "precision": round(right.num_rows / decided, 4) if decided else 0.0,
        "recall": round(found / wanted, 4) if wanted else 0.0,
        "calibration_error": judged.calibration_error(bins) or 0.0,
    }


def _threshold(p: np.ndarray, right: np.ndarray, target: float, confidence: float) -> tuple[float, float]:
    """The lowest threshold whose labels reach the target, and the probability of the last label above it."""
    falling = np.argsort(-p, kind="stable")
    p, right = p[falling], right[falling]
    labels = np.arange(1, len(p) + 1)
    sure, _ = judged.wilson(np.cumsum(right), labels, confidence)
    good = np.flatnonzero((sure >= target) & (np.append(p[1:], -1) < p))
    if not len(good):
        raise CalibrationError(
            f"no threshold reaches a precision of {target}: the best on {len(p)} labels is {sure.max(initial=0):.3f} "
            "(lower end); ask for less, or give more images"
        )
    last = int(good[-1])
    below = float(p[last + 1]) if last + 1 < len(p) else float(p[last])
    return round((float(p[last]) + below) / 2, 4), float(p[last])


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
    other = calibration.without_vocabulary
    return replace(
        calibration,
        weights=tuple(round(w, digits) for w in calibration.weights),
        bias=round(calibration.bias, digits),
        without_vocabulary=None if other is None else rounded(other, digits),
    )
