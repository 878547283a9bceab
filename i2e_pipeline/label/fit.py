"""Fits a calibration (calibration.py) to images whose truth is known.

Reads    candidates joined with scores, and what is known of each image: `truth`, `nothing`, `refuted`, `affirmed`,
         `wider` (judged.py). Rows that are neither right nor wrong are looked at beside the others, and not fitted on
Writes   a Calibration: weights, bias, and the lowest threshold with the wanted precision on images that were not fitted
         on; or, of few marks, one that there is, shifted

Where labels were drawn to be looked at, more of some kinds than of others, a column `weight` says for how many each
stands (label/drawing.py), null of those that nobody drew. Weights and bias are fitted without it: which labels were
drawn depends on nothing but what the model knows of them, and a fit weighed by it would be as right and less sure.
Threshold and figures are shares of all labels, and take it.
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

WEIGHT = "weight"
FOLDS = 10
RIDGE = 3.0
"""How strongly the weights of standardised features are pulled towards 0. On photos that were not fitted on, 3 and 1
give the same, 10 half a point of recall less, 30 three points."""
ONE_SIDED_99 = 2.326
"""Standard deviations of a one-sided confidence of 99 %."""
MARKS_OF_A_FIT, MARKS_OF_A_SHIFT = 300, 10
"""Drawn marks that a fit needs, and a shift. A threshold holds where the lower end of its precision's interval does:
for .95, of labels of which one in fifty is wrong, from some 290 on."""
SHIFT_DEVIATION = 0.5
"""How far a calibration is believed to be off before anything is marked: a standard deviation, in log-odds. It is worth
some 20 marks at the threshold."""


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
    confidence     standard deviations of the Wilson interval of the precision; its lower end must reach the target.
                   Of weighed labels there are as many as their weights are worth (Kish)
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
    threshold, lowest = _threshold(*_weighed(labels), target_precision, confidence)
    measured = _figures(labels, _probabilities(labels) >= lowest, named_images or _with_truth(table))
    measured["target_precision"] = target_precision
    whole = _scaled(names, *_logistic(x_PF[decided_P], right_P[decided_P]), slope, shift, given)
    if other is not None:
        other = replace(other, bias=other.bias + _logit(threshold) - _logit(other.threshold), threshold=threshold)
    return replace(whole, threshold=threshold, measured=measured, fitted_on=fitted_on, without_vocabulary=other)


def shifted(table: pa.Table, base: Calibration, fitted_on: str = "", threshold: float | None = None) -> Calibration:
    """A calibration that there is, its bias moved as far as few marks ask for; weights and threshold stay.

    table       as in `fit`, with `weight`; rows without one do not count
    threshold   overrides the base's in the figures
    The bias is the likeliest one, with a normal distribution around the base's before the marks (SHIFT_DEVIATION), so
    that ten marks move it little. The figures are of the marks that it was moved by: `shift`, its standard error, and
    what `report` says of the base (`before_…`) and of the result. Raises CalibrationError without a mark.
    """
    known = _of_known_images(table)
    p, is_right, _ = _weighed(select(known, base, threshold=0.0, max_labels=max(1, known.num_rows)))
    if not len(p):
        raise CalibrationError("no candidate was drawn and marked right or wrong: nothing to shift a calibration by")
    logits, prior = np.log(p / (1 - p)), SHIFT_DEVIATION**-2
    shift = 0.0
    for _ in range(50):
        now = 1 / (1 + np.exp(-(logits + shift)))
        curvature = float((now * (1 - now)).sum()) + prior
        step = float((is_right - now).sum() - prior * shift) / curvature
        shift += float(np.clip(step, -1, 1))
        if abs(step) < 1e-9:
            break
    other = base.without_vocabulary
    if other is not None:
        other = replace(other, bias=other.bias + shift, fitted_on=fitted_on)
    moved = replace(base, bias=base.bias + shift, fitted_on=fitted_on, without_vocabulary=other)
    before, after = (report(table, calibration, 0, threshold) for calibration in (base, moved))
    measured = {
        "marks": len(p),
        "shift": round(shift, 4),
        "shift_error": round(curvature**-0.5, 4),
        **{f"before_{name}": before[name] for name in ("labels", "precision", "calibration_error")},
        **after,
    }
    return replace(moved, measured=measured)


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
    recall              images whose text names the truth and that have it as a label, of `named_images`; of weighed
                        candidates: the right ones that are labels, of all right ones
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


def _weights(rows: pa.Table) -> np.ndarray:
    """For how many each row stands: 1 without the column, 0 where nobody drew it."""
    if WEIGHT not in rows.schema.names:
        return np.ones(rows.num_rows)
    return np.asarray(pc.fill_null(rows[WEIGHT], 0.0).to_numpy(), dtype=np.float64)


def _weighed(labels: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability of each label that is right or wrong, which of both it is, and for how many it stands."""
    labels = labels.filter(pc.and_(pc.is_valid(labels["right"]), pa.array(_weights(labels) > 0)))
    return *_probabilities_of_judged(labels), _weights(labels)


def _figures(rows: pa.Table, is_label: np.ndarray, wanted: int) -> dict[str, float]:
    """Figures of `report`. rows: what `select` returned, so that the best candidate of an image is its first row."""
    counts = _weights(rows) > 0
    rows, is_label = rows.filter(pa.array(counts)), is_label[counts]
    labels = rows.filter(pa.array(is_label))
    right = labels.filter(labels["right"])
    wrong = labels.filter(pc.invert(labels["right"]))
    found = len(pc.unique(right.filter(right["named_image"])["image_id"]))
    ids = rows["image_id"].combine_chunks()
    best = pc.not_equal(ids, pa.concat_arrays([pa.nulls(min(1, len(ids)), ids.type), ids[:-1]]))
    first = pc.fill_null(best, True).to_numpy(zero_copy_only=False)
    bins = judged.reliability(*_probabilities_of_judged(rows.filter(pa.array(first | is_label))))
    decided = right.num_rows + wrong.num_rows
    right_weight, wrong_weight = _weights(right).sum(), _weights(wrong).sum()
    recall = found / wanted if wanted else 0.0
    if WEIGHT in rows.schema.names:
        of_all = _weights(rows.filter(rows["right"])).sum()
        recall = right_weight / of_all if of_all else 0.0
    return {
        "labels": labels.num_rows,
        "right": right.num_rows,
        "wrong": wrong.num_rows,
        "wrong_on_none": pc.sum(wrong["nothing"]).as_py() or 0,
        "undecided": labels.num_rows - decided,
        "precision": round(float(right_weight / (right_weight + wrong_weight)), 4) if decided else 0.0,
        "recall": round(float(recall), 4),
        "calibration_error": judged.calibration_error(bins) or 0.0,
    }


def _threshold(
    p: np.ndarray, right: np.ndarray, weight: np.ndarray, target: float, confidence: float
) -> tuple[float, float]:
    """The lowest threshold whose labels reach the target, and the probability of the last label above it."""
    falling = np.argsort(-p, kind="stable")
    p, right, weight = p[falling], right[falling], weight[falling]
    weights = np.cumsum(weight)
    # As many marks as these weigh (Kish): drawn ones stand for more or fewer labels.
    labels = weights**2 / np.cumsum(weight**2)
    sure, _ = judged.wilson(np.cumsum(weight * right) / weights * labels, labels, confidence)
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
