"""The weights of disambiguate.py, by maximum likelihood on gold links.

A conditional logit: each mention chooses one of its candidates or "none of these". The likelihood is concave, so
Newton's method needs a dozen steps and the result does not depend on where it starts. Gold links from which the
priors were counted must not be among them: there the priors know the answer, and all other evidence would look
worthless.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from i2e_pipeline.link.disambiguate import FEATURES, Flat, Weights


def fit(flat: Flat, mentions: int, chosen: npt.NDArray[np.int64], penalty: float = 1.0) -> tuple[Weights, float]:
    """The likeliest (weights, nil_weight).

    flat      the candidates of `mentions` mentions
    chosen    for each mention the place of the right candidate in `flat`, or -1 where none is right
    penalty   of a ridge towards 0, in units of one observation; the weights of the prior and of nil are left free
    """
    size = len(FEATURES) + 1  # the last is ln nil_weight
    weights = np.zeros(size)
    weights[FEATURES.index("prior")] = 1.0
    ridge = np.full(size, penalty)
    ridge[[FEATURES.index("prior"), -1]] = 1e-6
    right = chosen[chosen >= 0]
    observed = np.append(flat.features[right].sum(axis=0), float((chosen < 0).sum()))
    for _ in range(200):
        scores = flat.features @ weights[:-1]
        top = np.full(mentions, weights[-1])
        np.maximum.at(top, flat.mention, scores)
        shares, none = np.exp(scores - top[flat.mention]), np.exp(weights[-1] - top)
        mass = none.copy()
        np.add.at(mass, flat.mention, shares)
        p, q = shares / mass[flat.mention], none / mass
        mean = np.zeros((mentions, size))
        np.add.at(mean[:, :-1], flat.mention, flat.features * p[:, None])
        mean[:, -1] = q
        gradient = observed - mean.sum(axis=0) - ridge * weights
        second = np.zeros((size, size))
        second[:-1, :-1] = (flat.features * p[:, None]).T @ flat.features
        second[-1, -1] = q.sum()
        second -= mean.T @ mean
        step = np.linalg.solve(second + np.diag(ridge + 1e-9), gradient)
        # Far from the optimum a full step may lead away from it; near it this changes nothing.
        weights += step * min(1.0, 1.0 / np.abs(step).max())
        if np.abs(step).max() < 1e-6:
            break
    return Weights(**dict(zip(FEATURES, weights[:-1].tolist(), strict=True))), float(np.exp(weights[-1]))
