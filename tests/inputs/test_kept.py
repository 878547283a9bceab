"""What columns hold that are carried into the dataset, and what becomes of their values."""

from __future__ import annotations

import decimal
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.engine.units import Units, kept_columns
from i2e_pipeline.inputs import kept
from i2e_pipeline.inputs.columns import InputError


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-20", "0"], "int64"),
        (["1", "2.5"], "double"),
        (["1e-7", "nan", "", "-inf"], "double"),
        (["true", "FALSE", ""], "bool"),
        (["true", "1"], "string"),
        (["007"], "string"),
        (["007", "1.5"], "string"),
        (["9" * 30], "double"),
        (["cc-by", "1"], "string"),
        (["", ""], kept.NOTHING),
        ([], kept.NOTHING),
    ],
)
def test_cells_of_a_table_without_types(cells: list[str], kind: str) -> None:
    assert kept.of_cells(pa.array(cells, pa.string())) == kind
    assert kept.of_cells(pa.array([c.encode() for c in cells], pa.binary())) == kind
    assert kept.joined(kept.of_cells(pa.array([c])) for c in cells) == kind


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        (pa.dictionary(pa.int8(), pa.string()), "string"),
        (pa.float16(), "double"),
        (pa.decimal128(5, 2), "double"),
        (pa.uint32(), "int64"),
        (pa.uint64(), "string"),
        (pa.null(), kept.NOTHING),
        (pa.list_(pa.float32()), "string"),
        (pa.timestamp("us"), "string"),
        (pa.binary_view(), "string"),
    ],
)
def test_types_of_columns(stored: pa.DataType, kind: str) -> None:
    assert kept.of_type(stored) == kind


STRUCT = pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])
KINDS: list[tuple[str, Any, pa.DataType, Any, int]] = [
    ("string", [1.5, float("nan"), None], pa.float32(), ["1.5", None, None], 0),
    ("string", [b"\xff!", b"", None], pa.binary(), ["�!", None, None], 0),
    ("string", [{"a": 1, "b": ["ü"]}, None], STRUCT, ['{"a":1,"b":["ü"]}', None], 0),
    ("string", [datetime(2020, 1, 2, 3, 4, 5)], pa.timestamp("s"), ["2020-01-02 03:04:05"], 0),
    ("string", [2**64 - 1], pa.uint64(), [str(2**64 - 1)], 0),
    (
        "double",
        ["1", " 2.5 ", "x", "", "NaN", "-inf", "+3"],
        pa.string(),
        [1, 2.5, None, None, None, -float("inf"), 3],
        1,
    ),
    ("double", [decimal.Decimal("1.25")], pa.decimal128(5, 2), [1.25], 0),
    ("double", [True, False], pa.bool_(), [1.0, 0.0], 0),
    ("int64", ["1", "2.0", "9" * 30, "+4"], pa.string(), [1, None, None, 4], 2),
    ("int64", [1.0, 2.5, float("nan"), 1e300], pa.float64(), [1, None, None, None], 2),
    ("int64", [2**64 - 1, 5], pa.uint64(), [None, 5], 1),
    ("bool", ["true", "0", "yes", None], pa.string(), [True, False, None, None], 1),
    ("bool", [1, 0], pa.int8(), [True, False], 0),
]


@pytest.mark.parametrize(("kind", "stored", "of_type", "wanted", "lost"), KINDS)
def test_values(kind: Any, stored: list[Any], of_type: pa.DataType, wanted: list[Any], lost: int) -> None:
    """Values that are none of the kind become null and are counted; those that were missing are not."""
    found, missing = kept.values(pa.array(stored, of_type), kept.TYPES[kind])
    assert found.type == kept.TYPES[kind]
    assert (found.to_pylist(), missing) == (wanted, lost)


JSON = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6), st.just([1, "a"])
)


@given(st.lists(JSON, max_size=6))
def test_a_kind_that_fits_all_loses_nothing(values: list[Any]) -> None:
    """Catches: a kind that was found over a file, and does not hold what is in it."""
    from i2e_pipeline.inputs.tables import from_objects

    rows = [{"x": value} for value in values]
    kind = kept.of_objects(rows, ["x"]).get("x", kept.NOTHING)
    kind = "string" if kind in (kept.NOTHING, kept.ABSENT) else kind
    stored = from_objects(rows, ["x"], kept=["x"]).column("x")
    found, lost = kept.values(stored, kept.TYPES[kind])  # type: ignore[index]
    assert lost == 0
    holds = [kept.of_value(value) != kept.NOTHING for value in values]
    assert [value is not None for value in found.to_pylist()] == holds


@given(st.lists(st.lists(JSON, max_size=4), max_size=4))
def test_kinds_do_not_depend_on_how_rows_lie_in_files(parts: list[list[Any]]) -> None:
    together = kept.of_objects([{"x": v} for part in parts for v in part], ["x"])
    assert kept.of_parts(
        [{"x": kept.ABSENT}, *(kept.of_objects([{"x": v} for v in part], ["x"]) for part in parts)]
    ) == (together)


def test_files_that_differ_give_what_fits_them_all(tmp_path: Any) -> None:
    jpg = pa.array([b"\xff\xd8\xff"])
    for name, further in {
        "a": {"score": pa.array([1])},
        "b": {"score": pa.array([0.5]), "license": pa.array(["x"])},
        "c": {},
        "d": {"score": pa.array(["high"]), "punsafe": pa.array([None])},
    }.items():
        pq.write_table(pa.table({"jpg": jpg, "caption": [name], **further}), tmp_path / f"{name}.parquet")
    registry = Units(str(tmp_path / "out"))

    def columns(files: str, keep: Any) -> dict[str, pa.DataType]:
        pairs = PairsConfig(path=[f"{tmp_path}/{name}.parquet" for name in files], keep_columns=keep)
        schema = kept_columns(registry.plan(pairs, remember=False), pairs)
        return {field.name: field.type for field in schema}

    assert columns("ac", ["score"]) == {"score": pa.int64()}
    assert columns("abc", ["license", "score"]) == {"license": pa.string(), "score": pa.float64()}
    assert columns("abcd", "score") == {"score": pa.string()}
    assert columns("abcd", {"score": "double", "punsafe": None}) == {"score": pa.float64(), "punsafe": pa.string()}
    assert columns("ac", {"license": "string"}) == {"license": pa.string()}
    with pytest.raises(InputError, match=r"no input file has a column 'licence' .*a.parquet.*licence: string"):
        columns("ab", ["licence"])


@pytest.mark.parametrize("name", ["image", "Labels", "unit", "a b", "a.b", "", "x;y"])
def test_names_that_a_dataset_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        PairsConfig(keep_columns=[name])


def test_names_that_differ_in_capitals_alone_are_refused() -> None:
    with pytest.raises(ValidationError, match="capitals"):
        PairsConfig(keep_columns=["NSFW", "nsfw"])


def test_ways_to_write_them() -> None:
    wanted = {"license": None, "similarity": "double"}
    assert PairsConfig(keep_columns=["license", {"similarity": "double"}]).keep_columns == wanted
    assert PairsConfig(keep_columns="license").keep_columns == {"license": None}


@pytest.mark.parametrize("stored", [STRUCT, pa.list_(pa.float32()), pa.timestamp("s"), pa.date32()], ids=str)
def test_a_column_that_cannot_hold_what_the_settings_say_is_refused_at_the_plan(
    stored: pa.DataType, tmp_path: Any
) -> None:
    """Catches: a column of dates that is kept as numbers, all of them left out; also where it is kept later."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"jpg": [b"x"], "caption": ["a"], "taken": pa.nulls(1, stored)}), path)
    registry = Units(str(tmp_path / "out"))
    registry.plan(PairsConfig(path=str(path)))
    with pytest.raises(
        InputError, match=r"a\.parquet: column 'taken' \(pairs\.keep_columns\) is .*, which is no double"
    ):
        registry.plan(PairsConfig(path=str(path), keep_columns={"taken": "double"}))
    kept_as_text = PairsConfig(path=str(path), keep_columns={"taken": "string"})
    assert kept_columns(registry.plan(kept_as_text), kept_as_text) == pa.schema([("taken", pa.string())])
