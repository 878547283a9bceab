"""Fitting a head: logistic regression on the vectors of images that somebody has looked at.

Reads    vectors, and for each whether the head is to find the image
Writes   a Head (heads.py), with what it is measured to do on images that it was not fitted to

The images are parted by hash, three fifths to fit the weights, a fifth to choose the threshold, a fifth to measure: a
threshold looks better on the images that it was chosen on. Images of a group (an entity, a photographer, a site) go the
same way, since a head that knows a group's other images is asked too little.

Legend: N images, D the width of their vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from i2e_pipeline.clean.heads import F32, About, Head, HeadError
from i2e_pipeline.core.draws import hashed
from i2e_pipeline.core.ids import content_id

FIT, CHOOSE, MEASURE = range(3)
_FIFTHS = np.array([FIT, FIT, FIT, CHOOSE, MEASURE])
_STEPS = 100
_SETTLED = 1e-8
_HALVED = 14
"""Times that a step is halved before the weights stay as they are."""
_FOUND = 10
"""Images that a threshold must find of those that it is chosen on: of fewer no precision is known."""
LEAST = 20
"""Images of each kind that a part must have, for its figures to say anything."""

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """How a head does on images that neither weights nor threshold were chosen on."""

    images: int
    wanted: int
    """Images that it is to find."""
    found: int
    precision: float | None
    """Of those that it finds; None: it finds none."""
    recall: float
    auc: float
    """How often an image that it is to find has the higher number, of one of each kind."""


def parts(keys: list[str]) -> npt.NDArray[np.int64]:
    """FIT, CHOOSE or MEASURE of each image, by what it is grouped by."""
    number_N = np.array([int.from_bytes(content_id(key.encode())[:8], "little") for key in keys], np.uint64)
    return np.asarray(_FIFTHS[(hashed(number_N, "heads") % np.uint64(5)).astype(np.int64)])


def fit(vectors_ND: npt.NDArray[Any], wanted_N: Bools, l2: float) -> tuple[F32, F32]:
    """Weight (1, D) and bias (1,) that make the labels most likely, by Newton's method.

    l2   how strongly weights are drawn to 0, in images: with 1 as strongly as one image of each kind would
    """
    centre_D, spread_D = vectors_ND.mean(axis=0, dtype=np.float64), vectors_ND.std(axis=0, dtype=np.float64)
    spread_D = np.maximum(spread_D, 1e-6)
    x_NE = np.concatenate([(vectors_ND.astype(np.float64) - centre_D) / spread_D, np.ones((len(vectors_ND), 1))], 1)
    drawn_E = np.append(np.full(x_NE.shape[1] - 1, l2), 0.0)
    weight_E = np.zeros(x_NE.shape[1])
    loss = _loss(x_NE, wanted_N, drawn_E, weight_E)
    for _ in range(_STEPS):
        p_N = 0.5 * (1 + np.tanh(0.5 * (x_NE @ weight_E)))
        slope_E = x_NE.T @ (p_N - wanted_N) + drawn_E * weight_E
        bend_EE = (x_NE * (p_N * (1 - p_N))[:, None]).T @ x_NE + np.diag(drawn_E + 1e-9)
        step_E = np.linalg.solve(bend_EE, slope_E)
        tried = [weight_E - step_E / 2**halved for halved in range(_HALVED)]
        better = next((t for t in tried if _loss(x_NE, wanted_N, drawn_E, t) < loss), weight_E)
        weight_E, before = better, loss
        loss = _loss(x_NE, wanted_N, drawn_E, weight_E)
        if before - loss < _SETTLED * len(x_NE):
            break
    weight_D = weight_E[:-1] / spread_D
    bias = weight_E[-1] - weight_D @ centre_D
    return weight_D[None].astype(np.float32), np.array([bias], np.float32)


def _loss(x_NE: F64, wanted_N: Bools, drawn_E: F64, weight_E: F64) -> float:
    z_N = x_NE @ weight_E
    return float((np.logaddexp(0, z_N) - wanted_N * z_N).sum() + 0.5 * (drawn_E * weight_E**2).sum())


def threshold_for(number_N: F64, wanted_N: Bools, precision: float) -> float | None:
    """The lowest threshold from which on so many of those at or above it are wanted; None where there is none."""
    order = np.argsort(-number_N, kind="stable")
    sorted_N = number_N[order]
    right_N = np.cumsum(wanted_N[order]) / np.arange(1, len(order) + 1)
    last_N = np.append(sorted_N[1:] != sorted_N[:-1], True)  # equal numbers are above a threshold together
    good = np.flatnonzero((right_N >= precision) & last_N)
    return float(sorted_N[good[-1]]) if len(good) else None


def measure(number_N: F64, wanted_N: Bools, threshold: float) -> Measured:
    found_N = number_N >= threshold
    right = int((found_N & wanted_N).sum())
    return Measured(
        images=len(number_N),
        wanted=int(wanted_N.sum()),
        found=int(found_N.sum()),
        precision=round(right / int(found_N.sum()), 3) if found_N.any() else None,
        recall=round(right / max(1, int(wanted_N.sum())), 3),
        auc=round(auc(number_N, wanted_N), 3),
    )


def auc(number_N: F64, wanted_N: Bools) -> float:
    """Area under the ROC curve; equal numbers count one half."""
    _, at_N, count = np.unique(number_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(count) - (count - 1) / 2)[at_N]
    wanted, others = int(wanted_N.sum()), int((~wanted_N).sum())
    return float((rank_N[wanted_N].sum() - wanted * (wanted + 1) / 2) / max(1, wanted * others))


def trained(
    vectors_ND: npt.NDArray[Any],
    wanted_N: Bools,
    part_N: npt.NDArray[np.int64],
    *,
    finds: str,
    model: str,
    vectors_of: str,
    precision: float,
    l2: float,
    on: str,
) -> tuple[Head, Measured]:
    """A head, and how it does on the part that was put aside. Raises HeadError where a part has too few images of a
    kind, or no threshold gives the precision.

    precision   asked of the threshold, on the fifth that it is chosen on
    on          what the images are, for the file
    """
    for part, name in ((FIT, "to fit the weights"), (CHOOSE, "to choose the threshold"), (MEASURE, "to measure")):
        here_N = wanted_N[part_N == part]
        if min(int(here_N.sum()), int((~here_N).sum())) < LEAST:
            raise HeadError(
                f"of the images {name}, {int(here_N.sum())} are to be found and {int((~here_N).sum())} not; at least "
                f"{LEAST} of each are wanted: label more images"
            )
    weight, bias = fit(vectors_ND[part_N == FIT], wanted_N[part_N == FIT], l2)
    about = About(finds=finds, model=model, vectors_of=vectors_of, width=vectors_ND.shape[1], threshold=0.5)
    number_N = Head(about, [(weight, bias)])(vectors_ND)
    chosen_N = part_N == CHOOSE
    threshold = threshold_for(number_N[chosen_N], wanted_N[chosen_N], precision)
    if threshold is None or int((number_N[chosen_N] >= threshold).sum()) < _FOUND:
        raise HeadError(
            f"no threshold gives a precision of {precision:g}: these vectors do not tell it so well (AUC "
            f"{auc(number_N[chosen_N], wanted_N[chosen_N]):.3f}). Ask for less, label more images, or take another "
            "model"
        )
    measured = measure(number_N[part_N == MEASURE], wanted_N[part_N == MEASURE], threshold)
    said = {**measured.__dict__, "on": on, "precision_asked": precision}
    about = About(**{**about.__dict__, "threshold": threshold, "measured": said})
    return Head(about, [(weight, bias)]), measured
