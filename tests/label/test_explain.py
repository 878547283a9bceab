"""What speaks for a label adds up to its probability, and verdicts are the rule's."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from i2e_pipeline.label.calibration import DEFAULT, Calibration, CalibrationError, Verdict, select
from i2e_pipeline.label.explain import SENTENCES, explain_labels


def options(*rows: tuple[int, int, int, int, float, float]) -> pa.Table:
    """Rows of (pair, start, end, entity, text probability, z)."""
    names = ("pair_id", "start", "end", "entity_id", "text_probability", "background_z")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    ids = pa.array([bytes([n]) * 16 for n in columns.pop("pair_id")], pa.binary(16))
    return pa.table({"pair_id": ids, "image_id": pa.array([b"i" * 16] * len(rows), pa.binary(16)), **columns})


ROWS = options((0, 0, 5, 89, 0.9, 5.0), (0, 0, 5, 312, 0.1, 1.0), (0, 8, 12, 434, 0.9, 4.9), (1, 0, 5, 89, 0.5, 2.0))


@pytest.mark.parametrize("threshold", [None, 0.0, 0.99])
@pytest.mark.parametrize("max_labels", [1, 4])
def test_an_explanation_is_what_the_rule_chooses(threshold: float | None, max_labels: int) -> None:
    told = explain_labels(ROWS, DEFAULT, threshold, max_labels)
    by_pair = ROWS.set_column(1, "image_id", ROWS.column("pair_id"))
    chosen = select(by_pair, DEFAULT, threshold, max_labels).to_pylist()
    assert [(r["pair_id"], r["entity_id"], r["probability"], r["reason"]) for r in told] == [
        (r["pair_id"], r["entity_id"], r["probability"], r["reason"]) for r in chosen
    ]
    for row in told:
        assert tuple(row["features"]) == DEFAULT.on(ROWS).features
        assert row["bias"] + sum(f["contribution"] for f in row["features"].values()) == pytest.approx(row["score"])
        assert 1 / (1 + np.exp(-row["score"])) == pytest.approx(row["probability"], abs=1e-6)
        assert row["image_id"] == b"i" * 16
        assert (row["sentence"] is None) == (row["reason"] is None)


def test_a_column_of_a_stage_from_outside_is_told() -> None:
    table = ROWS.append_column("sharpness", pa.array([0.5, None, 2.0, 1.0]))
    told = explain_labels(table, Calibration(("sharpness",), (2.0,), -1.0, 0.5), None, 4)
    values = {(r["pair_id"][0], r["entity_id"]): r["features"]["sharpness"] for r in told}
    assert values[0, 434] == {"value": 2.0, "weight": 2.0, "contribution": 4.0}
    assert values[0, 312]["value"] == 0.0


def test_every_verdict_has_a_sentence() -> None:
    assert set(SENTENCES) == set(Verdict)


def test_without_a_background_there_is_nothing_to_tell() -> None:
    none = ROWS.set_column(ROWS.schema.names.index("background_z"), "background_z", pa.nulls(4, pa.float64()))
    with pytest.raises(CalibrationError, match="background_z"):
        explain_labels(none, DEFAULT, None, 4)
