"""Wider labels: only where the text's own candidates give none, and the image agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from i2e_pipeline.core.schemas import LABELS
from i2e_pipeline.engine.tasks import conform
from i2e_pipeline.label.calibration import Calibration
from i2e_pipeline.label.explain import explain_labels
from i2e_pipeline.label.labels import choose_labels
from i2e_pipeline.label.wider import GAP

CALIBRATION = Calibration(
    features=("background_z", "log_text_probability", "share_against_best_other", "log_readings_of_mention"),
    weights=(1.0, 0.5, 2.0, -0.5),
    bias=-4.0,
    threshold=0.5,
)
HUSKY, MALAMUTE, DOG, ANIMAL, BAND, CAT = 1, 2, 20, 30, 4, 5
OPTION = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("entity_id", pa.int64()),
        ("clip_score", pa.float32()),
        ("background_z", pa.float32()),
        ("vocabulary_gap", pa.float32()),
        ("description_gap", pa.float32()),
        ("text_probability", pa.float32()),
        ("surface", pa.string()),
        ("wider_of", pa.int64()),
        ("steps", pa.int32()),
    ]
)
WITH_WIDER = pa.schema([*LABELS, pa.field("wider_of", pa.int64())])


def option(
    entity: int,
    z: float,
    start: int = 0,
    text: float = 0.5,
    of: int | None = None,
    steps: int | None = None,
    gap: float | None = 0.0,
    described: float | None = 0.0,
) -> dict[str, Any]:
    return {
        "start": start, "end": start + 5, "entity_id": entity, "clip_score": z / 10, "background_z": z,
        "vocabulary_gap": gap, "description_gap": described, "text_probability": text, "surface": "words",
        "wider_of": of,
        "steps": (1 if steps is None else steps) if of is not None else None,
    }  # fmt: skip


def pairs(*options: list[dict[str, Any]]) -> pa.RecordBatch:
    n = len(options)
    return pa.RecordBatch.from_pydict(
        {
            "image_id": pa.array([bytes([i]) * 16 for i in range(n)], pa.binary(16)),
            "pair_id": pa.array([bytes([100 + i]) * 16 for i in range(n)], pa.binary(16)),
            "shard": pa.array([0] * n, pa.int32()),
            "row": pa.array(range(n), pa.int64()),
            "width": pa.array([10] * n, pa.int32()),
            "height": pa.array([10] * n, pa.int32()),
            "options": pa.array(list(options), pa.list_(OPTION)),
        }
    )


def labels(*batches: pa.RecordBatch, calibration: Calibration = CALIBRATION) -> list[dict[str, Any]]:
    found = []
    for table, batch in choose_labels(iter(batches), calibration, None, 4):
        if table == "labels":
            found += conform(batch, WITH_WIDER, "labels").to_pylist()
    return found


def reasons(*options: dict[str, Any]) -> dict[int, str | None]:
    return {r["entity_id"]: r["reason"] for r in labels(pairs(list(options)))}


def probability(entity: int, *options: dict[str, Any]) -> float:
    (found,) = (r["probability"] for r in labels(pairs(list(options))) if r["entity_id"] == entity)
    return float(found)


def test_what_stands_above_a_candidate_that_does_not_fit_is_the_label() -> None:
    found = labels(pairs([option(HUSKY, 1.0), option(DOG, 6.0, of=HUSKY)]))
    assert [(r["entity_id"], r["reason"], r["wider_of"]) for r in found] == [
        (DOG, None, HUSKY), (HUSKY, "below_bar", None),
    ]  # fmt: skip


def test_an_image_with_a_label_by_name_gets_no_wider_one() -> None:
    """Catches: a label and its own class on one image."""
    assert reasons(option(HUSKY, 6.0), option(DOG, 7.0, of=HUSKY)) == {HUSKY: None}
    assert reasons(option(HUSKY, 1.0), option(BAND, 6.0, start=20), option(DOG, 7.0, of=HUSKY)) == {
        BAND: None, HUSKY: "below_bar",
    }  # fmt: skip


def test_labels_by_name_are_what_they_are_without_wider_ones() -> None:
    """Catches: a husky that loses to the dog as if that were another reading."""
    own = [[option(HUSKY, 4.0), option(BAND, 3.5), option(CAT, 3.0, start=9)], [option(CAT, 1.0), option(BAND, 2.0)]]
    above = [option(DOG, 9.0, of=HUSKY), option(ANIMAL, 9.0, of=CAT, start=9)]
    alone = labels(pairs(*own))
    beside = labels(pairs([*own[0], *above], [*own[1], option(ANIMAL, 1.0, of=CAT)]))
    assert [r for r in beside if r["wider_of"] is None] == alone


def test_the_nearest_that_passes_is_the_label_and_there_is_one() -> None:
    rows = (option(HUSKY, 1.0), option(DOG, 5.0, of=HUSKY), option(ANIMAL, 9.0, of=HUSKY, steps=2))
    assert reasons(*rows) == {DOG: None, ANIMAL: "rival", HUSKY: "below_bar"}
    rows = (option(HUSKY, 1.0), option(DOG, 2.0, of=HUSKY), option(ANIMAL, 9.0, of=HUSKY, steps=2))
    assert reasons(*rows) == {ANIMAL: None, DOG: "below_bar", HUSKY: "below_bar"}
    two = (option(HUSKY, 1.0), option(CAT, 1.0, start=9), option(DOG, 5.0, of=HUSKY), option(ANIMAL, 6.0, 9, of=CAT))
    assert [e for e, reason in reasons(*two).items() if reason is None] == [ANIMAL]


@pytest.mark.parametrize(
    ("gaps", "reason"),
    [
        ({"gap": GAP, "described": None}, None),
        ({"gap": -1.0, "described": GAP}, None),
        ({"gap": GAP + 0.01}, "fits_others"),
        ({"gap": -1.0, "described": GAP + 0.01}, "fits_others"),
        ({"gap": None, "described": None}, "fits_others"),
    ],
)
def test_the_image_must_fit_nothing_else_clearly_better(gaps: dict[str, Any], reason: str | None) -> None:
    """Without a vocabulary nobody knows, and there is no wider label."""
    assert reasons(option(HUSKY, 1.0), option(DOG, 6.0, of=HUSKY, **gaps))[DOG] == reason


def test_the_text_speaks_for_it_as_for_all_that_it_stands_above() -> None:
    one = (option(HUSKY, 1.0, text=0.3), option(MALAMUTE, 1.0, text=0.2))
    of_both = (*one, option(DOG, 3.0, text=0.3, of=HUSKY, steps=2), option(DOG, 3.0, text=0.2, of=MALAMUTE))
    (dog,) = (r for r in labels(pairs(list(of_both))) if r["entity_id"] == DOG)
    assert dog["text_probability"] == pytest.approx(0.5)
    assert dog["wider_of"] == HUSKY


def test_it_is_weighed_in_the_place_of_what_it_stands_above() -> None:
    """Not beside it: that the image fits the husky as well speaks not against the dog. Another reading does."""
    above = option(DOG, 4.0, of=HUSKY)
    alone = probability(DOG, option(HUSKY, 0.0), above)
    assert probability(DOG, option(HUSKY, 3.0, text=0.01), above) == alone
    assert probability(DOG, option(HUSKY, 0.0), option(BAND, 3.0, text=0.01), above) < alone
    expected = 4.0 + 0.5 * np.log(0.5) + 2.0 - 0.5 * np.log(1) - 4.0
    assert alone == pytest.approx(1 / (1 + np.exp(-expected)))


def test_of_two_mentions_the_more_probable_one_counts() -> None:
    rows = (option(HUSKY, 1.0, text=0.2), option(MALAMUTE, 1.0, start=9, text=0.9))
    above = (option(DOG, 3.0, text=0.2, of=HUSKY), option(DOG, 3.0, start=9, text=0.9, of=MALAMUTE))
    (dog,) = (r for r in labels(pairs([*rows, *above])) if r["entity_id"] == DOG)
    assert dog["wider_of"] == MALAMUTE
    assert dog["text_probability"] == pytest.approx(0.9)


def test_pairs_do_not_depend_on_the_batch_or_the_order_that_they_come_in() -> None:
    rng = np.random.default_rng(3)

    def drawn(entity: int, z: float, place: int, of: int | None = None) -> dict[str, Any]:
        return option(entity, rng.normal(z, 1.5), 9 * (place % 2), rng.uniform(0.05, 0.5), of, int(rng.integers(1, 4)))

    own = (1, 2, 3, 4)
    options = [
        [*(drawn(e, 1, e) for e in own), *(drawn(w, 3, e, e) for e in own for w in (20, 21, 22))] for _ in range(40)
    ]
    whole = pairs(*options)
    together = labels(whole)
    assert {r["reason"] for r in together if r["wider_of"] is not None} == {None, "below_bar", "rival"}
    apart = labels(*(whole.slice(start, 7) for start in range(0, 40, 7)))
    shuffled = labels(pairs(*([o[i] for i in rng.permutation(len(o))] for o in options)))
    assert together == apart == shuffled


def test_what_is_explained_is_what_was_chosen() -> None:
    batch = pairs(
        [option(HUSKY, 1.0), option(BAND, 0.5, start=9), option(DOG, 6.0, of=HUSKY), option(ANIMAL, 1.0, 9, of=BAND)],
        [option(HUSKY, 6.0), option(DOG, 6.0, of=HUSKY)],
    )
    flat = [
        {**o, "pair_id": p["pair_id"], "image_id": p["image_id"]} for p in batch.to_pylist() for o in p["options"]
    ]  # fmt: skip
    schema = pa.schema([*OPTION, ("pair_id", pa.binary(16)), ("image_id", pa.binary(16))])
    told = explain_labels(pa.Table.from_pylist(flat, schema=schema), CALIBRATION, None, 4)
    same = ("image_id", "pair_id", "entity_id", "wider_of", "text_probability", "probability", "reason")
    assert [{k: r[k] for k in same} for r in told] == [{k: r[k] for k in same} for r in labels(batch)]
    for row in told:
        assert 1 / (1 + np.exp(-row["score"])) == pytest.approx(row["probability"])
        assert row["score"] == pytest.approx(row["bias"] + sum(f["contribution"] for f in row["features"].values()))
