"""Rows taken by an expression over their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from i2e_pipeline.engine.units import InputError
from i2e_pipeline.inputs.where import WhereError, mask
from tests.inputs.test_faults import read, write

ROWS = pa.RecordBatch.from_pydict(
    {
        "similarity": pa.array([0.1, 0.3, None, 0.5], pa.float32()),
        "language": ["en", "de", "en", None],
        "width": [100, 200, 300, 400],
        "safe": [True, False, None, True],
        "as_text": ["0.1", " 7 ", "n/a", "1e3"],
        "raw": pa.array([b"x", b"y", None, b"x"]),
    }
)


@pytest.mark.parametrize(
    ("expression", "taken"),
    [
        ("similarity >= 0.3", [1, 3]),
        ("0.3 <= similarity", [1, 3]),
        ("0.3 > similarity", [0]),
        ("similarity != 0.5", [0, 1]),
        ("not similarity >= 0.3", [0]),
        ("similarity is None", [2]),
        ("similarity is not None and width > 100", [1, 3]),
        ("language == 'en' or width == 400", [0, 2, 3]),
        ("language in ('de', 'fr')", [1]),
        ("language not in ['de']", [0, 2]),
        ("width in (100, 300) and not (language == 'de')", [0, 2]),
        ("safe == True", [0, 3]),
        ("as_text > 1", [1, 3]),
        ("raw == 'x'", [0, 3]),
        ("width == 200.0", [1]),
        ("width > -1", [0, 1, 2, 3]),
        ("language in ()", []),
    ],
)
def test_an_expression_takes_rows_and_a_null_is_never_one_of_them(expression: str, taken: list[int]) -> None:
    assert [n for n, yes in enumerate(mask(expression, ROWS).to_pylist()) if yes] == taken


@pytest.mark.parametrize(
    "expression",
    ["", "similarity", "similarity >", "similarity > width", "1 < similarity < 2", "f(similarity) > 1", "a.b == 1",
     "similarity + 1 > 2", "__import__('os').system('true') == 0", "language == None", "width in language", "x = 1"],
)  # fmt: skip
def test_what_is_no_such_expression_is_refused(expression: str) -> None:
    with pytest.raises(WhereError, match=r"pairs\.where: "):
        mask(expression, ROWS)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("similarity > 0.3", r"no column 'similarity' \(pairs\.where\); it has key"),
        ("jpg >", "cannot be read"),
    ],
)
def test_it_is_checked_at_the_plan(expression: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read(write(tmp_path / "a.parquet"), where=expression)


def test_rows_that_are_not_taken_are_rejected_and_counted(tmp_path: Path, world: Path, spark: Any) -> None:
    from i2e_pipeline.stages import pipeline
    from tests.chain import settings

    config = settings(world, tmp_path / "out", "pairs.where=key >= '000000040'", shards="00000")
    made = pipeline(config, lambda: spark)
    made.run(["knowledge_base", "surfaces", "pairs"])
    (commit,) = made.tables.commits("pairs").values()
    assert commit.rejected["filtered_out"] > 5
    kept = made.tables.load("pairs", [commit], ["key"]).column("key").to_pylist()
    assert kept
    assert min(kept) >= "000000040"
    assert commit.rows_out + sum(commit.rejected.values()) == commit.rows_in
