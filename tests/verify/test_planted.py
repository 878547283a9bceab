"""A verifier that errs in one answer of ten: labels gain what that implies, by what text and image said before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.planted import Planted, serving
from i2e_pipeline.commands.calibrate import calibrate
from i2e_pipeline.core.config import Config
from i2e_pipeline.label.calibration import VERDICT, Calibration
from i2e_pipeline.stages import pipeline
from tests.chain import run
from tests.verify.test_stage import ALL, table, verdicts

NOISE, THRESHOLD = 0.1, 0.7


def chosen(p: dict[int, float], verdict_on: int | None, weight: float) -> int | None:
    """The label of a pair by the probabilities of its candidates and a verdict: None, none reaches the threshold."""
    odds = {e: math.log(q / (1 - q)) + (weight if e == verdict_on else -weight) for e, q in p.items()}
    best = max(odds, key=lambda e: (odds[e], -e))
    return best if 1 / (1 + math.exp(-odds[best])) >= THRESHOLD else None


@pytest.mark.slow
def test_labels_gain_what_the_verifiers_reliability_implies(
    configured: Callable[..., Config], planted: Callable[[float], Planted], spark: Any
) -> None:
    knowing = planted(NOISE)
    with serving(knowing) as told:
        config = configured(*told.settings, *ALL, "verify.reliability=0.9", f"label.threshold={THRESHOLD}",
                            "label.max_labels_per_image=1")  # fmt: skip
        run(config, spark, "verify", "label")
        asked = len(told.asked)
        assert 0 < len(knowing.wrong) < asked
        assert abs(len(knowing.wrong) - NOISE * asked) <= 4 * math.sqrt(asked * NOISE * (1 - NOISE))
    truth = truths(config)
    first: dict[bytes, dict[int, float]] = {}
    for (pair, entity), row in verdicts(config).items():
        first.setdefault(pair, {})[entity] = min(max(row["probability"], 1e-9), 1 - 1e-9)
    known = {pair: p for pair, p in first.items() if pair in truth}
    labels = {row["pair_id"]: row["entity_id"] for row in table(config.output, "labels") if row["reason"] is None}

    weight = math.log((1 - NOISE) / NOISE)
    gain: dict[str, list[float]] = {"right": [], "wrong": []}
    spread = dict.fromkeys(gain, 0.0)
    before = dict.fromkeys(gain, 0)
    for pair, p in known.items():
        right = truth[pair] if truth[pair] in p else None
        others = [e for e in [*p, None] if e != right]
        outcomes = [(1 - NOISE, right), *((NOISE / len(others), one) for one in others)]
        alone = chosen(p, None, 0.0)
        for kind, counts in (("right", True), ("wrong", False)):
            # A label is right or wrong; of a pair without one it is neither.
            share = sum(
                q for q, said in outcomes if (label := chosen(p, said, weight)) is not None
                and (label == truth[pair]) is counts
            )  # fmt: skip
            gain[kind].append(share)
            spread[kind] += share * (1 - share)
            before[kind] += alone is not None and (alone == truth[pair]) is counts
    got = {
        "right": sum(labels.get(pair) == truth[pair] for pair in known if pair in labels),
        "wrong": sum(labels[pair] != truth[pair] for pair in known if pair in labels),
    }
    for kind in gain:
        assert abs(got[kind] - sum(gain[kind])) <= 4 * math.sqrt(spread[kind]) + 1, (kind, got, before)
    assert sum(gain["right"]) - sum(gain["wrong"]) > before["right"] - before["wrong"], "nothing to be gained here"
    assert got["right"] - got["wrong"] >= before["right"] - before["wrong"]

    # A fit weighs verdicts by itself, and its weight is then not given.
    fitted = f"{config.output}/c.json"
    calibrate(pipeline(config, lambda: spark), None, 0.6, fitted)
    weights = Calibration.load(fitted)
    assert weights.weights[weights.features.index(VERDICT)] > 1
    assert np.isfinite(weights.weights).all()
    assert weights.with_verdicts(0.9) is weights


def truths(config: Config) -> dict[bytes, int | None]:
    """What the images of pairs show, where it is known; None: nothing of the knowledge base."""
    files = {f.shard: f.path for unit in pipeline(config).planned().units for f in unit.files}
    said = {shard: pq.read_table(path, columns=["truth_qid"])["truth_qid"].to_pylist() for shard, path in files.items()}
    found = {}
    for row in table(config.output, "pairs"):
        one = said[row["shard"]][row["row"]]
        if one is not None and one.startswith(("Q", "none")):
            found[row["pair_id"]] = int(one[1:]) if one.startswith("Q") else None
    return found
