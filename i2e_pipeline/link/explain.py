"""Why a mention has these candidates: what speaks for each, number by number, and which are left out.

Reads    LINK_ROWS of candidates.py · kb/context
Writes   nothing: plain values for people and programs

Probabilities are those of disambiguate.py, by the same functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.config import LinkConfig
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.link.context import Context
from i2e_pipeline.link.disambiguate import FEATURES, Weights, by_rank, features, in_force, none_score, probabilities

OVER_MAX = "over_max_candidates"
"""Probable enough, and further down than `link.max_candidates`."""

IN_FULL = "named in full"
"""What stands for the kind of name where a longer name before the mention, in its text or group, brings a candidate
in."""


def explain_links(
    rows: pa.RecordBatch, context: Context | None, settings: LinkConfig, weights: Weights
) -> list[list[dict[str, Any]]]:
    """For each text its mentions, by start and end, each with all its candidates, the most probable first.

    rows      LINK_ROWS
    returns   of a mention what MENTION holds, `rejected` (a Reason; None: it has candidates) and `none`, the score and
              probability of "none of these"; of a candidate entity_id, prior, kind, inflected, probability, rank,
              score, `features` (name to value, weight and contribution, their product) and `dropped`, why it is left
              out ("below_floor", OVER_MAX; None: it is not). A score is the sum of the contributions, in natural
              logarithms of odds; probabilities are a softmax over the candidates and "none of these".
    """
    lists = rows.column("mentions")
    mentions = lists.flatten()
    text_of = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = features(rows.column("text"), mentions, text_of, context, rows.column("group_names"))
    probability = probabilities(flat, len(mentions), settings, weights)
    order, ranks = by_rank(flat, probability, len(mentions))
    weight = in_force(settings, weights)
    contributions = flat.features * weight
    score = contributions.sum(axis=1)
    none = 1.0 - np.bincount(flat.mention, probability, len(mentions))
    told: list[list[dict[str, Any]]] = [[] for _ in range(rows.num_rows)]
    made: list[dict[str, Any]] = []
    by_entity: list[dict[int, dict[str, Any]]] = []
    for row, text in zip(mentions.to_pylist(), text_of.tolist(), strict=True):
        candidates = row.pop("candidates") or []
        # Of an entity that stands under the form and under its singular, that of the form counts.
        by_entity.append({c["entity_id"]: c for c in sorted(candidates, key=lambda c: -c["inflected"])})
        nothing = {"score": _finite(none_score(settings)), "probability": 1.0}
        made.append({**row, "rejected": str(Reason.NO_CANDIDATE), "candidates": [], "none": nothing})
        told[text].append(made[-1])
    for at, rank in zip(order.tolist(), ranks.tolist(), strict=True):
        m = int(flat.mention[at])
        known = by_entity[m].get(int(flat.entity[at]), {"kind": IN_FULL, "inflected": False})
        likely = bool(probability[at] >= settings.min_probability)
        made[m]["candidates"].append(
            {
                "entity_id": int(flat.entity[at]),
                "prior": float(flat.prior[at]),
                "kind": known["kind"],
                "inflected": known["inflected"],
                "probability": float(probability[at]),
                "rank": rank,
                "score": float(score[at]),
                "features": {
                    name: {
                        "value": float(flat.features[at, f]),
                        "weight": float(weight[f]),
                        "contribution": float(contributions[at, f]),
                    }
                    for f, name in enumerate(FEATURES)
                },
                "dropped": (OVER_MAX if rank > settings.max_candidates else None)
                if likely
                else str(Reason.BELOW_FLOOR),
            }
        )
    for m, mention in enumerate(made):
        if mention["candidates"]:
            kept = any(c["dropped"] is None for c in mention["candidates"])
            mention["rejected"] = None if kept else str(Reason.BELOW_FLOOR)
            mention["none"]["probability"] = max(0.0, float(none[m]))
    return told


def _finite(value: float) -> float | None:
    """None for the logarithm of 0, which JSON cannot say."""
    return value if np.isfinite(value) else None
