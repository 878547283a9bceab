"""The first pass is what label would say without a verdict; the weight of verdicts is Bayes'."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.core.config import VerifyConfig
from i2e_pipeline.label.calibration import DEFAULT, OPTIONAL, VERDICT, Calibration
from i2e_pipeline.label.labels import choose_labels
from i2e_pipeline.verify.first_pass import IN_BAND, first_pass, of_budget
from tests.examples import examples


def pairs(rows: list[list[tuple[int, int, float, float]]]) -> pa.RecordBatch:
    """A pair for each list of (start, entity, probability by text, z)."""
    options = [
        [
            {
                "start": start, "end": start + 2, "entity_id": entity, "clip_score": 0.2, "background_z": z,
                "described": True, **dict.fromkeys(OPTIONAL), "text_probability": p, "surface": f"s{start}",
            }
            for start, entity, p, z in of_pair
        ]
        for of_pair in rows
    ]  # fmt: skip
    struct = pa.struct(
        [("start", pa.int32()), ("end", pa.int32()), ("entity_id", pa.int64()), ("clip_score", pa.float32()),
         ("background_z", pa.float32()), ("described", pa.bool_()), *((name, pa.float32()) for name in OPTIONAL),
         ("text_probability", pa.float32()), ("surface", pa.string())]
    )  # fmt: skip
    ids = pa.array([n.to_bytes(16, "big") for n in range(len(rows))], pa.binary(16))
    numbers = pa.array(range(len(rows)), pa.int64())
    return pa.RecordBatch.from_pydict(
        {
            "pair_id": ids, "image_id": ids, "text_id": ids, "shard": numbers.cast(pa.int32()), "row": numbers,
            "width": numbers.cast(pa.int32()), "height": numbers.cast(pa.int32()),
            "options": pa.array(options, pa.list_(struct)),
        }
    )  # fmt: skip


def run(batch: pa.RecordBatch, low: float, high: float) -> tuple[list[dict[str, object]], int]:
    found: list[dict[str, object]] = []
    counted = 0
    for table, rows in first_pass(iter([batch]), DEFAULT, low, high):
        if table == "questions":
            found += rows.to_pylist()
        else:
            assert rows.to_pydict()["note"] == [IN_BAND]
            counted = rows.to_pydict()["rows"][0]
    return found, counted


option = st.tuples(st.integers(0, 3), st.integers(1, 4), st.floats(0.015625, 1, width=32), st.floats(-2, 9, width=32))


@settings(max_examples=examples(60))
@given(st.lists(st.lists(option, min_size=1, max_size=5, unique_by=lambda o: o[:2]), min_size=1, max_size=6))
def test_its_probabilities_are_those_by_which_labels_are_chosen(
    rows: list[list[tuple[int, int, float, float]]],
) -> None:
    """Catches: a first pass that drifts from what it stands for."""
    batch = pairs(rows)
    labels = next(b for t, b in choose_labels(iter([batch]), DEFAULT, None, 4) if t == "labels").to_pylist()
    wanted = {(r["pair_id"], r["entity_id"]): r["probability"] for r in labels}
    found, counted = run(batch, 0, 1)
    assert {(q["pair_id"], o["entity_id"]): o["probability"] for q in found for o in q["options"]} == wanted  # type: ignore[attr-defined]
    assert counted == len(wanted)
    for q in found:
        p = [o["probability"] for o in q["options"]]  # type: ignore[attr-defined]
        assert p == sorted(p, reverse=True)
    best = {q["pair_id"]: q["options"][0]["probability"] for q in found}  # type: ignore[index]
    within, _ = run(batch, 0.3, 0.8)
    assert {q["pair_id"] for q in within} == {pair for pair, p in best.items() if 0.3 <= p <= 0.8}


def test_the_least_sure_is_nearest_to_one_half() -> None:
    found, _ = run(pairs([[(0, 1, 0.9, z)] for z in np.linspace(-2, 9, 12)]), 0, 1)
    by_unsure = sorted(found, key=lambda q: q["unsure"])  # type: ignore[arg-type,return-value]
    distance = [abs(q["options"][0]["probability"] - 0.5) for q in by_unsure]  # type: ignore[index]
    assert distance == sorted(distance)


@pytest.mark.parametrize(
    ("budget", "pairs", "most"), [(0.25, 10, 2), (1, 10, 10), (0, 10, 0), (0.3, 10, 3), (0.1, 9, 0)]
)
def test_a_budget_is_a_share_of_the_pairs(budget: float, pairs: int, most: int) -> None:
    assert of_budget(pairs, VerifyConfig(budget=budget)) == most


def test_a_verdict_multiplies_odds_by_those_of_its_being_right() -> None:
    weighing = DEFAULT.with_verdicts(0.9)
    assert weighing.features == (*DEFAULT.features, VERDICT)
    assert weighing.without_vocabulary is not None
    assert weighing.without_vocabulary.features[-1] == VERDICT
    assert weighing.without((VERDICT,)) == DEFAULT
    assert weighing.with_verdicts(0.6) is weighing, "what weighs verdicts by itself is not weighed twice"
    assert DEFAULT.without((VERDICT,)) is DEFAULT
    table = pa.table(
        {
            "pair_id": pa.array([bytes([n]) * 16 for n in range(3)], pa.binary(16)),
            "image_id": pa.array([bytes([n]) * 16 for n in range(3)], pa.binary(16)),
            "start": pa.array([0] * 3, pa.int32()), "end": pa.array([3] * 3, pa.int32()),
            "entity_id": pa.array([1] * 3, pa.int64()), "text_probability": pa.array([0.8] * 3, pa.float32()),
            "background_z": pa.array([3.0] * 3, pa.float32()), VERDICT: pa.array([1, None, -1], pa.float32()),
        }
    )  # fmt: skip
    own = Calibration(("log_text_probability", "background_z"), (1.0, 0.5), -1.0, 0.5)
    p = own.with_verdicts(0.9).probability(table)
    odds = np.log(p / (1 - p))
    assert odds[0] - odds[1] == pytest.approx(math.log(9), abs=1e-5)
    assert odds[1] - odds[2] == pytest.approx(math.log(9), abs=1e-5)
    assert p[1] == own.probability(table)[1]
