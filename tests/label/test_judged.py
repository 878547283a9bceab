"""Which labels are right, wrong, or neither, by what is known of the image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.inputs import truth
from i2e_pipeline.label.judged import bears_wider_name, calibration_error, reliability, right, summed, told


def candidate(entity_id: int, said: str | None, name: str = "thing", wider: list[str] | None = None) -> pa.Table:
    """One candidate of an image of which the input says this."""
    read = truth.truths(pa.array([said], pa.string()))
    names = truth.names(pa.array([wider], pa.list_(pa.string())))
    return pa.table(
        {
            "entity_id": pa.array([entity_id]),
            **{c: read[c] for c in ("truth", "nothing", "refuted")},
            "wider": bears_wider_name(pa.array([name]), names),
        }
    )


@pytest.mark.parametrize(
    ("entity_id", "said", "name", "is_right"),
    [
        (42, "Q42", "beagle", True),
        (43, "Q42", "cat", False),
        (43, "Q42", "Dog", None),
        (42, "Q42", "dog", True),  # a right one stays right, whatever its name
        (42, "none", "cat", False),
        (42, "none", "DOG", None),
        (42, "not Q42", "cat", False),
        (42, "not Q42", "dog", False),  # what is said of an id holds
        (43, "not Q42", "cat", None),
        (44, "not Q42 Q44", "cat", False),
        (42, None, "cat", None),
    ],
)
def test_a_label_is_right_wrong_or_neither(entity_id: int, said: str | None, name: str, is_right: bool | None) -> None:
    assert right(candidate(entity_id, said, name, ["dog"])).to_pylist() == [is_right]


def test_wider_names_are_compared_without_case_and_only_as_a_whole() -> None:
    assert right(candidate(1, "none", "Straße", ["STRASSE"])).to_pylist() == [None]
    assert right(candidate(1, "none", "dog food", ["dog"])).to_pylist() == [False]
    assert right(candidate(1, "none", "dog", None)).to_pylist() == [False]


def test_a_truth_alone_is_enough() -> None:
    table = pa.table({"entity_id": [1, 2, 3], "truth": pa.array([1, 1, None], pa.int64())})
    assert right(table).to_pylist() == [True, False, None]
    assert told(table).to_pylist() == [True, True, False]
    assert right(table.slice(0, 0)).to_pylist() == []


def test_what_is_affirmed_says_nothing_of_other_entities() -> None:
    """Catches: a mark that is taken for the truth, beside which all else is wrong."""
    lists = pa.list_(pa.int64())
    table = pa.table(
        {
            "entity_id": [1, 2, 3, 1, 2],
            "truth": pa.array([None, None, None, 2, 2], pa.int64()),
            "affirmed": pa.array([[1, 9]] * 3 + [[1]] * 2, lists),
            "refuted": pa.array([[2], [2], None, [], None], lists),
        }
    )
    assert right(table).to_pylist() == [True, False, None, True, True]
    assert told(table.drop_columns(["refuted"])).to_pylist() == [True] * 5


def test_rows_keep_their_own_lists() -> None:
    """Catches: lists compared by their place in the flat array, where some are null or the table is chunked."""
    parts = [candidate(7, "not Q8 Q7"), candidate(7, None), candidate(7, "not Q8"), candidate(7, "not Q7")]
    assert right(pa.concat_tables(parts)).to_pylist() == [False, None, None, False]


def test_the_calibration_error_is_what_a_hand_computes() -> None:
    p, is_right = np.array([0.95, 0.95, 0.15, 1.0, 0.0]), np.array([True, False, True, True, False])
    # by bin: .9-1 |2.9 - 2|, .1-.2 |.15 - 1|, 0-.1 |0 - 0|
    assert calibration_error(reliability(p, is_right)) == pytest.approx((0.9 + 0.85) / 5)
    assert calibration_error(reliability(p[:0], is_right[:0])) is None
    parts = [*reliability(p[:2], is_right[:2]), *reliability(p[2:], is_right[2:])]
    for bin_, whole in zip(summed(parts), reliability(p, is_right), strict=True):
        assert bin_ == pytest.approx(whole)


def test_real_photos_of_things_that_are_not_in_the_knowledge_base(real_data: Path) -> None:
    """The share of labels that a naive labeller gets right: every photo gets the entity of the pack whose name it has,
    or a wider name's. Judged here row by row as the columns say, and at once."""
    columns = ["truth_qid", "mentioned_qids", "wider"]
    (table,) = pq.read_table(real_data / "pairs_open" / "00000.parquet", columns=columns).to_batches()
    entities = [json.loads(line) for line in (real_data / "pairs" / "entities.jsonl").read_text().splitlines()]
    read, wider = truth.truths(table["truth_qid"]), truth.names(table["wider"])
    assert sum(read["nothing"].to_pylist()) == 455
    assert read["truth"].is_valid().to_pylist().count(True) == 56
    assert read["unread"].null_count == table.num_rows
    undecided = 0
    for e in entities:
        entity_id = int(e["qid"][1:])
        found = right(
            pa.table(
                {
                    "entity_id": pa.array([entity_id] * table.num_rows),
                    **{c: read[c] for c in ("truth", "nothing", "refuted")},
                    "wider": bears_wider_name(pa.array([e["label"]] * table.num_rows), wider),
                }
            )
        ).to_pylist()
        for row, is_right in zip(table.to_pylist(), found, strict=True):
            if row["truth_qid"] == e["qid"]:
                assert is_right is True
            elif e["label"].lower() in row["wider"]:
                assert is_right is None
                undecided += 1
            else:
                assert is_right is False
    assert undecided > 0
