"""What marks say of a run's labels: how many of the published are right, and how many of the right are published.

Reads    marks of labels with their present probability · how many labels there are by probability (drawing.counts)
Writes   precision and recall with intervals

Only drawn marks count: what somebody chose by eye says what catches the eye. A mark stands for `weight` labels; in
strata by probability, each of `_MARKS` marks or more, the weights are scaled to the number of labels that are there
(post-stratification). The interval of a share is that of Korn and Graubard (1998, Survey Methodology 24: 193-201):
Clopper and Pearson's, for as many independent marks as would vary as much. It covers as it claims from .99 down to .8,
with 30 marks to 1,000, whether the probabilities are right or not (benchmarks/marks.py). Of what was tried beside it,
effective marks by the weights alone (Kish) cover as well and are up to a quarter wider, gamma intervals of weighted
counts (Fay and Feuer 1997) are up to twice as wide for few marks, and Jeffreys' posterior of each stratum covers .3 to
.9 where nearly all are right.
Recall is a ratio of two such shares; its interval comes from theirs (MOVER: Donner and Zou 2012, Statistical Methods in
Medical Research 21: 347-359).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import betaincinv, stdtrit

from i2e_pipeline.inputs.marks import RIGHT, UNSURE
from i2e_pipeline.label.drawing import bins_of, fine_edges

CONFIDENCE = 0.95
LEAST_MARKS = 30
"""Drawn marks that a share needs. With fewer, an interval is a quarter wide and more, and says nothing."""
_MARKS = 10
"""Of a stratum, at least."""
_STRATA = 8
"""At most."""


@dataclass(frozen=True)
class Share:
    """How many of some labels are right."""

    value: float
    low: float
    high: float


def joined(marks: pa.Table, labels: pa.Table) -> pa.Table:
    """Marks with what the run says of their labels today: mark, weight, marked_with (probability then), and
    probability and published, both null where the run weighs no such label any more.

    marks    inputs.marks.MARKS
    labels   image_id, entity_id, probability, published, each label once, such as `Pool.marked`
    """
    today = {
        (r["image_id"], r["entity_id"]): (r["probability"], r["published"])
        for r in labels.select(["image_id", "entity_id", "probability", "published"]).to_pylist()
    }
    keys = zip(marks["image_id"].to_pylist(), marks["entity_id"].to_pylist(), strict=True)
    found = [today.get(key, (None, None)) for key in keys]
    return pa.table(
        {
            **{name: marks[name] for name in ("image_id", "entity_id", "mark", "weight")},
            "marked_with": marks["probability"],
            "probability": pa.array([p for p, _ in found], pa.float64()),
            "published": pa.array([is_label for _, is_label in found], pa.bool_()),
        }
    )


def implied(marks: pa.Table, counts: pa.Table, threshold: float, at: float | None = None) -> dict[str, Any]:
    """Precision of the published labels, and recall among all that were weighed. Goes into JSON as it is.

    marks       mark, weight, probability, published, as `joined` gives them
    counts      drawing.counts of the same run
    threshold   of the run
    at          of which the figures are: what would be published with this threshold. None: that of the run. Raises
                ValueError for one below the run's, whose labels nobody has chosen, and for one that is no edge of
                drawing.fine_edges
    returns     labels (published), candidates, marks (drawn ones that are decided), unsure (drawn ones that are not),
                by_eye, gone (marks of labels that the run no longer weighs), expected_precision (what the
                probabilities say), precision, recall. The last two are {value, low, high, marks, unsure_low,
                unsure_high}: the interval, and what the value may become when the unsure are decided. With too few
                marks they are {marks, missing}; where nothing is published missing is null.
    """
    at = threshold if at is None else at
    edges = fine_edges(threshold)
    if at < threshold - 1e-9 or np.abs(edges - at).min() > 1e-9:
        raise ValueError(f"at={at} is below the threshold {threshold}, or no edge of the bins that are counted")
    first = int(bins_of(np.array([at]), edges)[0])

    here = marks.filter(pc.and_(pc.is_valid(marks["weight"]), pc.is_valid(marks["probability"])))
    mark_M = np.array(here["mark"].to_pylist(), dtype=object)
    bin_M, weight_M = bins_of(here["probability"].to_numpy(), edges), here["weight"].to_numpy()
    published_M = here["published"].to_numpy().astype(bool) & (bin_M >= first)
    unsure_M, right_M = mark_M == UNSURE, mark_M == RIGHT

    bin_C, labels_C = bins_of(counts["from"].to_numpy(), edges), counts["labels"].to_numpy()
    published_C = counts["published"].to_numpy() & (bin_C >= first)
    number_B = {
        side: np.bincount(bin_C[of_side], weights=labels_C[of_side], minlength=len(edges) - 1)
        for side, of_side in ((True, published_C), (False, ~published_C))
    }
    labels, others = float(number_B[True].sum()), float(number_B[False].sum())

    def of_side(side: bool, is_right: np.ndarray, known: np.ndarray) -> Share:
        mine = known & (published_M == side)
        return share(bin_M[mine], is_right[mine], weight_M[mine], number_B[side])

    def precision(is_right: np.ndarray, known: np.ndarray) -> Share:
        return of_side(True, is_right, known)

    def recall(is_right: np.ndarray, known: np.ndarray) -> Share:
        if not others:
            return Share(1.0, 1.0, 1.0)
        return _part(of_side(True, is_right, known), labels, of_side(False, is_right, known), others)

    def figure(of: Callable[[np.ndarray, np.ndarray], Share], marked: tuple[int, ...]) -> dict[str, Any]:
        if missing := sum(max(0, LEAST_MARKS - n) for n in marked):
            return {"marks": sum(marked), "missing": missing if labels else None}
        found, everyone = of(right_M, ~unsure_M), np.ones(len(mark_M), dtype=bool)
        ends = [found.value] * 2
        if unsure_M.any():
            ends = [of(right_M | (unsure_M & (published_M == side)), everyone).value for side in (False, True)]
        values = {
            "value": found.value, "low": found.low, "high": found.high, "unsure_low": ends[0], "unsure_high": ends[1],
        }  # fmt: skip
        return {**{name: round(value, 4) for name, value in values.items()}, "marks": sum(marked)}

    decided = {side: int((~unsure_M & (published_M == side)).sum()) for side in (True, False)}
    return {
        "threshold": at,
        "labels": round(labels),
        "candidates": round(labels + others),
        "marks": sum(decided.values()),
        "unsure": int(unsure_M.sum()),
        "by_eye": marks["weight"].null_count,
        "gone": marks["probability"].null_count,
        "expected_precision": round(counts["expected"].to_numpy()[published_C].sum() / labels, 4) if labels else None,
        "precision": figure(precision, (decided[True],)),
        "recall": figure(recall, (decided[True], decided[False]) if others else (decided[True],)),
    }


def share(bins: np.ndarray, right: np.ndarray, weights: np.ndarray, number: np.ndarray) -> Share:
    """The share of labels that are right, and its interval (Korn and Graubard 1998).

    bins, right, weights   of each mark: the bin of its label, whether it is right, how many it stands for
    number                 labels by bin
    """
    stratum_B = _strata(np.bincount(bins, minlength=len(number)), number)
    stratum_M = stratum_B[bins]
    marks_S = np.bincount(stratum_M)
    labels_S = np.bincount(stratum_B, weights=number, minlength=len(marks_S))
    weight_M = weights * (labels_S / np.bincount(stratum_M, weights=weights))[stratum_M]
    weight_M = weight_M / weight_M.sum()
    value = float(weight_M[right].sum())
    kish = 1 / float((weight_M**2).sum())
    if right.all() or not right.any():
        return Share(float(right.all()), *_clopper_pearson(float(right.all()), kish))
    mean_S = np.bincount(stratum_M, weights=weight_M * right) / np.bincount(stratum_M, weights=weight_M)
    square_S = np.bincount(stratum_M, weights=(weight_M * (right - mean_S[stratum_M])) ** 2)
    variance = float((square_S * marks_S / np.maximum(marks_S - 1, 1)).sum())
    n, freedom = len(bins), len(bins) - len(marks_S)
    effective = value * (1 - value) / variance * (_t_squared(n - 1) / _t_squared(freedom)) if variance > 0 else kish
    return Share(value, *_clopper_pearson(value, min(float(n), effective)))


def _strata(marks: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which stratum each bin belongs to, from 0 on: neighbours until there are enough marks in each, and labels."""
    least = max(_MARKS, -(-int(marks.sum()) // _STRATA))
    strata = np.zeros(len(marks), dtype=np.int64)
    current, marked, there = 0, 0, 0.0
    for n, (marks_here, labels_here) in enumerate(zip(marks.tolist(), labels.tolist(), strict=True)):
        if marked >= least and there > 0:
            current, marked, there = current + 1, 0, 0.0
        strata[n] = current
        marked, there = marked + marks_here, there + labels_here
    if current and (marked < least or not there > 0):
        strata[strata == current] = current - 1
    return strata


def _part(published: Share, labels: float, others: Share, candidates: float) -> Share:
    """How many of all right ones are published: A / (A + B), by MOVER's interval of the ratio B / A."""
    a, a_low, a_high = (labels * v for v in (published.value, published.low, published.high))
    b, b_low, b_high = (candidates * v for v in (others.value, others.low, others.high))

    def root(b_end: float, a_end: float) -> float:
        return sqrt(max((a * b) ** 2 - b_end * a_end * (2 * b - b_end) * (2 * a - a_end), 0.0))

    # The lower end as Donner and Zou write it, with numerator and denominator multiplied by a b + root: theirs is 0 / 0
    # where a's upper end is 2 a.
    below = a * b + root(b_low, a_high)
    low = b_low * (2 * b - b_low) / below if below > 0 else 0.0
    high = (a * b + root(b_high, a_low)) / (a_low * (2 * a - a_low)) if a_low > 0 else float("inf")
    return Share(a / (a + b) if a + b else 1.0, 1 / (1 + high), 1 / (1 + low))


def _clopper_pearson(value: float, n: float) -> tuple[float, float]:
    """Of n marks, which need be no whole number."""
    right, tail = value * n, (1 - CONFIDENCE) / 2
    low = 0.0 if right <= 0 else float(betaincinv(right, n - right + 1, tail))
    high = 1.0 if right >= n else float(betaincinv(right + 1, n - right, 1 - tail))
    return low, high


def _t_squared(freedom: int) -> float:
    """The square of Student's t that CONFIDENCE lies within."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) ** 2
