"""What a reranker's scores are worth beside the fast path, and the probabilities that come out.

    ln p(c) = trust · ln p_fast(c) + weight · score(c) − ln Z          over a mention's candidates and "none of these"

A reranker is trained with trust = weight = 1: it learns what the fast path does not know, and where it says nothing,
the fast path's probabilities stay. `Fusing`, fitted on mentions that it was not trained on, makes them calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from i2e_pipeline.rerank.questions import Asked

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fusing:
    """How much the fast path and the reranker count."""

    trust: float = 1.0
    weight: float = 1.0
    none: float = 0.0
    """Added to the score of "none of these"."""

    def probabilities(self, asked: Asked, score: F64, none: F64) -> tuple[F64, F64]:
        """(C) and (Q): of each candidate, and of "none of these".

        score   (C), in logits
        none    (Q)
        """
        of = self.trust * asked.log_probability + self.weight * score
        of_none = self.trust * asked.log_none + self.weight * none + self.none
        top = of_none.copy()
        np.maximum.at(top, asked.mention, of)
        shares, rest = np.exp(of - top[asked.mention]), np.exp(of_none - top)
        mass = rest + np.bincount(asked.mention, shares, len(asked))
        return shares / mass[asked.mention], rest / mass


def best_of(value: F64, asked: Asked) -> I64:
    """(Q): the place of each question's candidate of the highest value; of equal ones the first."""
    order = np.lexsort((-np.arange(len(value)), value, asked.mention))
    return order[np.searchsorted(asked.mention[order], np.arange(len(asked)), side="right") - 1]


def fit(asked: Asked, score: F64, none: F64, chosen: I64, numbers: I64, penalty: float = 1.0) -> Fusing:
    """The likeliest `Fusing` on some questions, with a ridge towards the one that training assumes.

    chosen   (Q): the place of the right candidate, -1: none of them
    penalty  in units of one question
    """
    from scipy.optimize import minimize

    def loss(values: F64) -> float:
        p, q = Fusing(*values).probabilities(asked, score, none)
        likely = np.where(chosen >= 0, p[chosen], q)[numbers]
        away = values - np.array([1.0, 1.0, 0.0])
        return float(-np.log(np.maximum(likely, 1e-12)).sum() + penalty * (away**2).sum())

    found = minimize(loss, np.array([1.0, 1.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-4})
    return Fusing(*(round(float(v), 4) for v in found.x))
