"""Rows taken by an expression over their columns."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.engine.units import InputError, Units
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.where import WhereError, columns, mask
from tests.inputs.test_faults import JPEG, read, write

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


NAN = float("nan")
SAME: dict[str, list[Any]] = {
    "key": ["a", "b", "c", "d", "e"],
    "jpg": ["1.jpg"] * 5,
    "caption": ["x"] * 5,
    "sim": [0.1, 0.5, NAN, None, 0.9],
    "license": ["cc", "", "by", None, "f\ufffdr"],
    "n": [1, 2**53 + 1, 2**63 - 1, None, -4],
    "big": [1, 2**53, 2**63 + 1, 2**64 - 1, 0],
    "seen": [True, False, None, True, False],
    "class": [1, 2, 3, 4, 5],
    "aesthetic-score": [1, 2, 3, 4, 5],
}


def _forms(folder: Path) -> dict[str, Path]:
    """The same pairs as Parquet, CSV and JSON lines, with a Latin-1 byte in one of them."""
    kinds = {"big": pa.uint64(), "n": pa.int64()}
    table = pa.table({name: pa.array(values, kinds.get(name)) for name, values in SAME.items()})
    raw = pa.array([None if v is None else v.encode().replace("\ufffd".encode(), b"\xfc") for v in SAME["license"]])
    invalid = pa.Array.from_buffers(pa.string(), 5, raw.buffers())  # a view, since no cast makes such text
    (folder / "1.jpg").write_bytes(JPEG)
    pq.write_table(table.set_column(4, "license", invalid), folder / "a.parquet")
    rows = table.to_pylist()
    cells = [",".join(SAME), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
    for name, lines in (("a.csv", cells), ("a.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows])):
        (folder / name).write_bytes("\n".join(lines).encode().replace("\ufffd".encode(), b"\xfc"))
    return {name: folder / name for name in ("a.parquet", "a.csv", "a.jsonl")}


@pytest.mark.parametrize(
    ("expression", "taken"),
    [
        ("license is None", "bd"),
        ("license is not None", "ace"),
        ("license != 'cc'", "ce"),
        ("license not in ('cc', 'by')", "e"),
        ("license == ''", "bd"),
        ("license in ('', 'cc')", "abd"),
        ("license not in ('', 'cc')", "ce"),
        ("license == 'f\ufffdr'", "e"),
        ("sim is None or sim > 2", "cd"),
        ("sim != 0.5", "ae"),
        ("not sim < 0.3", "be"),
        ("sim not in (0.1, 0.9)", "b"),
        ("n == 9007199254740993", "b"),
        ("n == 9007199254740992", ""),
        ("n > 9223372036854775806", "c"),
        ("n < 9223372036854775808", "abce"),
        ("n > 1.5", "bc"),
        ("n in (1, 9007199254740993)", "ab"),
        ("n != 99999999999999999999999", "abce"),
        ("big > 9223372036854775807", "cd"),
        ("big == 18446744073709551615", "d"),
        ("big >= -1", "abcde"),
        ("big <= 1e300", "abcde"),
        ("seen == True", "ad"),
        ("seen == 'True'", "ad"),
        ("column('class') == 1 or column(\"aesthetic-score\") > 4", "ae"),
    ],
)
def test_the_same_pairs_give_the_same_rows_in_every_form(expression: str, taken: str, tmp_path: Path) -> None:
    """Catches: an empty cell that is not null, a NaN that passes, an id that is rounded."""
    for name, path in _forms(tmp_path).items():
        pairs = PairsConfig(path=str(path), where=expression)
        registry = Units(str(tmp_path / f"out of {name}"))
        (unit,) = registry.plan(pairs)
        shard = registry.shard(unit.files[0], pairs)
        found = [
            key
            for _, batch in formats.columns(shard, ["key", *columns(expression)])
            for key in batch.filter(mask(expression, batch)).column("key").to_pylist()
        ]
        assert "".join(key if isinstance(key, str) else key.decode() for key in found) == taken, name


def test_a_float_column_is_compared_as_what_it_holds() -> None:
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        batch = pa.RecordBatch.from_pydict({"f": pa.array(np.array([0.7, 0.6, NAN], kind.to_pandas_dtype()))})
        assert mask("f >= 0.7", batch).to_pylist() == [True, False, False]
        assert mask("f == 0.7 or f > 1e999", batch).to_pylist() == [True, False, False]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("jpg is not None", r"looks at 'jpg', which holds the images: .* rejected anyway"),
        ("tags == 'a'", r"'tags' is list<.*, which is not compared with 'a'"),
        ("day >= 2020", r"'day' is date32\[day\], which is not compared with 2020"),
        ("twice == 1", r"has 2 columns 'twice' \(pairs\.where\)"),
        ("not " * 5_000 + "key == 'a'", r"is nested too deep"),
        ("(" * 150 + "key == 'a'" + ")" * 150 + " and " + "not " * 150 + "key == 'a'", r"is nested too deep"),
        ("key in ('a', 1)", r"has values of several kinds"),
        ("aesthetic-score > 5", r'is not known: .* column\("a-b"\)'),
        ("class > 5", r'cannot be read .* column\("a-b"\)'),
        ("column(key) == 'a'", r"is not known"),
        ("key in {[]: 1}", r"is not known"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_at_the_plan(expression: str, says: str, tmp_path: Path) -> None:
    """Catches: all images of a batch in memory; an error in a stage; a message of 20 KB."""
    table = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["x"]), pa.array([JPEG]), pa.array([["a"]]), pa.array([date(2020, 1, 1)]),
         pa.array([1]), pa.array([1])],
        ["key", "caption", "jpg", "tags", "day", "twice", "twice"],
    )  # fmt: skip
    path = write(tmp_path / "a.parquet", table)
    with pytest.raises((InputError, WhereError), match=says) as refused:
        read(path, where=expression)
    assert len(str(refused.value)) < 1_000
    assert read(path, where="tags is not None and day >= '2019-12-31'")[0]


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
