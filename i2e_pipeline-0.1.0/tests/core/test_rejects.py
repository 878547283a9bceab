from __future__ import annotations

from enum import Enum

import numpy as np
import pyarrow as pa
import pytest

from i2e_pipeline.core.rejects import part, reject
from i2e_pipeline.core.schemas import ID, REJECTS, Reason
from i2e_pipeline.engine.tables import conform

ROWS = pa.RecordBatch.from_pydict(
    {
        "pair_id": pa.array([bytes([n]) * 16 for n in range(4)], pa.binary()),  # as Spark hands it over
        "shard": pa.array([0, 0, 1, 1], pa.int32()),
        "row": pa.array([5, 6, 7, 8], pa.int64()),
        "colour": ["red", "green", "blue", None],
    }
)


class Theirs(Enum):
    """An enum that is not of strings: its value is what counts."""

    ODD = "odd"


@pytest.mark.parametrize("mask", [[False, True, False, True], np.array([0, 1, 0, 1], bool), pa.array([0, 1, 0, 1] * 1)])
def test_masked_rows_stand_in_the_tables_schema(mask: object) -> None:
    if isinstance(mask, pa.Array):
        mask = mask.cast(pa.bool_())
    made = conform(reject(ROWS, mask, Reason.TOO_SMALL, ["a", None], key="pair_id"), REJECTS, "rejects")
    assert made.schema == REJECTS
    assert made.column("id").type == ID
    rows = made.to_pylist()
    assert [(r["id"][0], r["shard"], r["row"], r["detail"]) for r in rows] == [(1, 0, 6, "a"), (3, 1, 8, None)]
    assert {(r["reason"], r["start"], r["end"]) for r in rows} == {("too_small", None, None)}


def test_each_row_may_have_its_own_reason() -> None:
    made = reject(ROWS, [True, True, False, False], [Theirs.ODD, "even"], key="pair_id")
    assert made.column("reason").to_pylist() == ["odd", "even"]
    assert "detail" not in made.schema.names


def test_no_row_is_an_empty_batch() -> None:
    assert reject(ROWS, [False] * 4, "odd", key="pair_id").num_rows == 0


def test_a_filter_parts_its_rows_and_loses_none() -> None:
    parts = list(
        part(
            "kept", ROWS, [None, "odd", None, Reason.TOO_LONG], ["a", "b", "c", "d"], key="pair_id", columns=["colour"]
        )
    )
    assert [name for name, _ in parts] == ["kept", "rejects"]
    assert parts[0][1].to_pydict() == {"colour": ["red", "blue"]}
    assert parts[1][1].column("reason").to_pylist() == ["odd", "too_long"]
    assert parts[1][1].column("detail").to_pylist() == ["b", "d"]
    assert [name for name, _ in part("kept", ROWS, [None] * 4, key="pair_id")] == ["kept"]
