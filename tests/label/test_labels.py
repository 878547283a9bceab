from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from i2e_pipeline.core.schemas import LABELS
from i2e_pipeline.engine.tasks import conform
from i2e_pipeline.label.calibration import Calibration
from i2e_pipeline.label.labels import choose_labels

BY_IMAGE = Calibration(features=("background_z",), weights=(1.0,), bias=-3.0, threshold=0.5)
"""Right with probability 1/2 at three standard deviations above the background."""


def option(entity_id: int, z: float, start: int = 0, end: int = 5, text: float = 0.5) -> dict[str, Any]:
    return {
        "start": start,
        "end": end,
        "entity_id": entity_id,
        "clip_score": z / 10,
        "background_z": z,
        "text_probability": text,
        "surface": f"name {entity_id} at {start}",
    }


def pairs(*options: list[dict[str, Any]]) -> pa.RecordBatch:
    kind = pa.list_(
        pa.struct(
            [
                ("start", pa.int32()),
                ("end", pa.int32()),
                ("entity_id", pa.int64()),
                ("clip_score", pa.float32()),
                ("background_z", pa.float32()),
                ("text_probability", pa.float32()),
                ("surface", pa.string()),
            ]
        )
    )
    n = len(options)
    return pa.RecordBatch.from_pydict(
        {
            "image_id": pa.array([bytes([i]) * 16 for i in range(n)], pa.binary(16)),
            "pair_id": pa.array([bytes([100 + i]) * 16 for i in range(n)], pa.binary(16)),
            "shard": pa.array([0] * n, pa.int32()),
            "row": pa.array(range(n), pa.int64()),
            "width": pa.array([10] * n, pa.int32()),
            "height": pa.array([10] * n, pa.int32()),
            "options": pa.array(list(options), kind),
        }
    )


Rows = list[dict[str, Any]]


def chosen(*batches: pa.RecordBatch, threshold: float | None = None, most: int = 4) -> tuple[Rows, Rows]:
    labels, rejects = [], []
    for table, batch in choose_labels(iter(batches), BY_IMAGE, threshold, most):
        if table == "labels":
            labels += conform(batch, LABELS, "labels").to_pylist()
        else:
            rejects += batch.to_pylist()
    return labels, rejects


def test_the_image_chooses_among_the_candidates_of_a_mention() -> None:
    labels, rejects = chosen(pairs([option(1, 6.0), option(2, 4.0)]))
    assert {r["entity_id"]: r["reason"] for r in labels} == {1: None, 2: "less_sure"}
    assert {r["entity_id"]: r["mention"] for r in labels} == {1: "name 1 at 0", 2: "name 2 at 0"}
    assert rejects == []


def test_the_image_can_reject_all() -> None:
    labels, rejects = chosen(pairs([option(1, 1.0), option(2, 2.0)]))
    assert {r["reason"] for r in labels} == {"below_bar"}
    (reject,) = rejects
    assert reject["reason"] == "below_bar"
    assert reject["id"] == bytes([100]) * 16
    assert reject["detail"] == "best is Q2 with 0.269, bar 0.500"


def test_the_threshold_of_the_config_overrides_the_calibrations() -> None:
    assert chosen(pairs([option(1, 2.0)]), threshold=0.1)[0][0]["reason"] is None
    assert chosen(pairs([option(1, 4.0)]), threshold=0.9)[0][0]["reason"] == "below_bar"


def test_an_entity_that_two_mentions_offer_is_one_label() -> None:
    labels, _ = chosen(pairs([option(1, 6.0, 0, 5), option(1, 6.0, 10, 15)]))
    assert [(r["entity_id"], r["reason"]) for r in labels] == [(1, None)]


def test_pairs_do_not_depend_on_the_batch_they_come_in() -> None:
    """Catches: pairs of one image weighed together when, and only when, a partition holds both."""
    a, b = [option(1, 6.0), option(2, 5.9, 10, 15)], [option(2, 4.0), option(3, 1.0)]
    together = pairs(a, b)
    same_image = together.set_column(0, "image_id", pa.array([bytes(16)] * 2, pa.binary(16)))
    apart = [same_image.slice(0, 1), same_image.slice(1, 1)]
    for row in (together := chosen(same_image)[0]):
        assert row in chosen(*apart)[0]
    assert len(together) == len(chosen(*apart)[0])


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_labels_than_allowed(most: int) -> None:
    labels, _ = chosen(pairs([option(1, 8.0, 0, 5), option(2, 8.0, 6, 9), option(3, 8.0, 10, 15)]), most=most)
    assert sum(r["reason"] is None for r in labels) == most
