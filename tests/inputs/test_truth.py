"""What people write about the truth of an image is read, or said to be none."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from i2e_pipeline.inputs.truth import ids, names, truths

UNKNOWN: dict[str, Any] = {"truth": None, "nothing": False, "refuted": None, "unread": None}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("Q42", {"truth": 42}),
        (" q0042\n", {"truth": 42}),
        ("42", {"truth": 42}),
        ("none", {"nothing": True}),
        ("None ", {"nothing": True}),
        ("NONE", {"nothing": True}),
        ("not Q42", {"refuted": [42]}),
        ("Not q42, Q43 44", {"refuted": [42, 43, 44]}),
        (None, {}),
        ("", {}),
        ("  ", {}),
        ("cat", {"unread": "'cat'"}),
        ("Q42 Q43", {"unread": "'Q42 Q43'"}),
        ("not", {"unread": "'not'"}),
        ("not none", {"unread": "'not none'"}),
        ("notQ42", {"unread": "'notQ42'"}),
        ("Q0", {"unread": "'Q0'"}),
        ("-1", {"unread": "'-1'"}),
        ("P180", {"unread": "'P180'"}),
        ("Q٤٢", {"unread": "'Q٤٢'"}),
        ("Q" + "9" * 25, {"unread": repr("Q" + "9" * 25)}),
    ],
)
def test_a_truth_is_an_entity_nothing_known_not_some_or_unknown(value: str | None, says: dict[str, Any]) -> None:
    for column in (pa.array([value], pa.string()), pa.array([value], pa.string()).dictionary_encode()):
        assert truths(column).to_pylist() == [UNKNOWN | says]


def test_a_truth_comes_in_any_column() -> None:
    """Catches: pandas' 42.0 for whole numbers with gaps, a number column, bytes, a list of one."""
    assert truths(pa.array([42, None, -3])).column("truth").to_pylist() == [42, None, None]
    assert truths(pa.array([42, None, -3])).column("unread").to_pylist() == [None, None, "'-3'"]
    pandas = truths(pa.array([42.0, float("nan"), 4.5]))
    assert pandas.column("truth").to_pylist() == [42, None, None]
    assert pandas.column("unread").to_pylist() == [None, None, "'4.5'"]
    assert truths(pa.array([b"Q7", b"none"])).to_pylist() == [UNKNOWN | {"truth": 7}, UNKNOWN | {"nothing": True}]
    assert truths(pa.array([["Q7"], [], ["Q7", "Q8"]])).to_pylist() == [
        UNKNOWN | {"truth": 7},
        UNKNOWN,
        UNKNOWN | {"unread": "'Q7 Q8'"},
    ]
    assert truths(pa.nulls(1)).to_pylist() == [UNKNOWN]
    assert truths(pa.array([{"qid": "Q7"}, None])).column("unread").is_valid().to_pylist() == [True, False]
    assert truths(pa.array([True])).column("unread").to_pylist() == ["'true'"]


def test_a_long_value_is_quoted_short() -> None:
    assert len(truths(pa.array(["x" * 10_000])).column("unread")[0].as_py()) < 300


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([["Q1", "x", "q2"], None, []]), [[1, 2], None, []]),
        (pa.array([[1, 2], None]), [[1, 2], None]),
        (pa.array([["Q1", "Q2"], ["Q3", "Q4"]], pa.list_(pa.string(), 2)), [[1, 2], [3, 4]]),
        (pa.array([["Q1"], None, ["Q2"]]).slice(1), [None, [2]]),
        (pa.array(["Q1 Q22", '["Q3"]', "Q4|5", "[]", "", None]), [[1, 22], [3], [4, 5], [], None, None]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_ids_of_a_list_column_and_of_a_table_of_texts(column: pa.Array, found: list[list[int] | None]) -> None:
    """Catches: the text "Q42" read as a list of its characters, and so as 4 and 2."""
    assert ids(column).to_pylist() == found


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([["Dog", " Große Katze ", ""], None, []]), [["dog", "grosse katze"], None, []]),
        (pa.array(["Dog|guide dog; pet", '["Tea, green", "tea"]', "['Cup']", "", None, "[odd"]),
         [["dog", "guide dog", "pet"], ["tea, green", "tea"], ["cup"], None, None, ["[odd"]]),
        (pa.nulls(1), [None]),
    ],
)  # fmt: skip
def test_names_of_a_list_column_and_of_a_table_of_texts(column: pa.Array, found: list[list[str] | None]) -> None:
    assert names(column).to_pylist() == found
