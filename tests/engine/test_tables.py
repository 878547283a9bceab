"""Writes, commits and reads, the same over Parquet and Delta."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import StorageConfig
from i2e_pipeline.core.schemas import MENTIONS, REJECTS, TEXTS
from i2e_pipeline.engine.catalogue import Catalogue, Passed, Table
from i2e_pipeline.engine.tables import Commit, Counting, Failed, TableError, Tables, Written
from i2e_pipeline.engine.tasks import conform

KEY = bytes(16)


def text_row(number: int, **overrides: object) -> dict[str, object]:
    told = {"text": f"text {number}", "script": "Latin", "pairs": 1, "group_id": None}
    return {"text_id": number.to_bytes(16, "big"), **told, **overrides}


def texts_kernel(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Even numbers pass, odd ones are rejected."""
    for batch in batches:
        numbers = batch.column("id").to_pylist()
        kept = [text_row(n) for n in numbers if n % 2 == 0]
        yield "texts", pa.RecordBatch.from_pylist(kept, schema=TEXTS)
        odd = [n for n in numbers if n % 2]
        yield (
            "rejects",
            pa.RecordBatch.from_pydict(
                {
                    "reason": pa.array(["odd"] * len(odd), pa.string()),
                    "detail": pa.array(["x" * 1000] * len(odd), pa.string()),
                }
            ),
        )


COUNTING = Counting(passed=Passed("texts", ("text_id",)))
CATALOGUE = Catalogue({"texts": Table(TEXTS), "mentions": Table(MENTIONS)}, {"texts": "extract"})


@pytest.fixture(params=["parquet", pytest.param("delta", marks=pytest.mark.delta)])
def tables(request: pytest.FixtureRequest, tmp_path: Path, spark: Any) -> Tables:
    return Tables(str(tmp_path / "out"), StorageConfig(format=request.param), lambda: spark, CATALOGUE)


def write(tables: Tables, rows: int, unit: str = "u-1", partitions: int = 3) -> Written:
    frame = tables.spark.range(rows).repartition(partitions)
    return tables.write(frame, lambda: texts_kernel, "extract", unit, ("texts",), COUNTING)


def commit(tables: Tables, written: Written, unit: str = "u-1", fingerprint: str = "f") -> Commit:
    made = Commit(
        "extract", unit, fingerprint, {}, written.files, written.rows_in, written.rows_out, written.rejected, 0.0
    )
    return tables.commit([(made, [written])])[0]


def ids(tables: Tables, *commits: Commit) -> list[int]:
    rows = tables.read("texts", commits, ["text_id"]).collect()
    return sorted(int.from_bytes(r["text_id"], "big") for r in rows)


def test_rows_are_counted_and_read_back(tables: Tables) -> None:
    written = write(tables, 100)
    assert (written.rows_in, written.rows_out, written.rejected) == (100, 50, {"odd": 50})
    made = commit(tables, written)
    assert ids(tables, made) == list(range(0, 100, 2))
    assert tables.load("texts", [made]).num_rows == made.rows("texts") == 50
    rejects = ds.dataset(tables.path("rejects"), format="parquet", partitioning="hive", exclude_invalid_files=True)
    rows = rejects.to_table(columns=["stage", "reason", "detail"]).to_pylist()
    assert len(rows) == 50
    assert {(r["stage"], r["reason"], len(r["detail"])) for r in rows} == {("extract", "odd", 500)}


@pytest.mark.parametrize("name", ["run [10:30]", "{a,b}:*? é#50%"])
def test_an_output_may_have_any_name(name: str, tables: Tables, tmp_path: Path) -> None:
    """Catches: a name that Hadoop takes for a glob, in which it takes no colon."""
    if tables.storage.format == "parquet":
        name += "\\ %20"  # which delta-rs takes for / and a blank
    odd = Tables(str(tmp_path / name), tables.storage, lambda: tables.spark, CATALOGUE)
    made = commit(odd, write(odd, 10))
    assert ids(odd, made) == [0, 2, 4, 6, 8]


def test_a_unit_made_again_replaces_itself_and_nothing_else(tables: Tables) -> None:
    commit(tables, write(tables, 10), "u-1")
    other = commit(tables, write(tables, 6, "u-2"), "u-2")
    again = commit(tables, write(tables, 4), "u-1")
    assert ids(tables, again) == [0, 2]
    assert ids(tables, other) == [0, 2, 4]
    assert ids(tables, *tables.commits("extract").values()) == [0, 0, 2, 2, 4]
    assert tables.missing_files([again, other]) == {}


def test_no_rows_are_a_table_without_rows(tables: Tables) -> None:
    made = commit(tables, write(tables, 0))
    assert ids(tables, made) == []
    assert made.rows_in == 0


def test_a_discarded_unit_is_gone(tables: Tables) -> None:
    commit(tables, write(tables, 4), "u-1")
    other = commit(tables, write(tables, 6, "u-2"), "u-2")
    tables.discard("extract", ["u-1"])
    assert list(tables.commits("extract")) == ["u-2"]
    assert ids(tables, other) == [0, 2, 4]


def test_what_was_not_committed_is_not_read(tables: Tables) -> None:
    """Catches: a killed run's files counted as whole."""
    write(tables, 10)
    assert tables.commits("extract") == {}
    assert not os.path.exists(tables.path("texts"))
    tables.discard_staging()
    assert not os.path.exists(tables.path("_staging"))


def test_kill_between_write_and_commit_leaves_no_duplicate(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: data files are renamed into place before the unit is marked done (NeMo Curator's documented gap)."""
    from i2e_pipeline.core import files

    real = files.write_bytes

    def killed(path: str, content: bytes) -> None:
        if "_commits" in path:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(files, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        commit(tables, write(tables, 10))
    monkeypatch.setattr(files, "write_bytes", real)
    assert tables.commits("extract") == {}
    made = commit(tables, write(tables, 10))
    assert ids(tables, made) == [0, 2, 4, 6, 8]
    if tables.storage.format == "parquet":
        assert ds.dataset(tables.path("texts"), format="parquet").count_rows() == 5


def test_a_failing_task_that_is_tried_again_writes_its_rows_once(tmp_path: Path, spark: Any) -> None:
    """Catches: files of a failed attempt left beside those of the next (MosaicML names files by attempt)."""
    tables = Tables(str(tmp_path / "out"), StorageConfig(), lambda: spark, CATALOGUE)
    flag = str(tmp_path / "failed-once")

    def fails_once(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
        yield from texts_kernel(batches)
        if not os.path.exists(flag):
            open(flag, "w").close()
            raise RuntimeError("first attempt")

    frame = spark.range(10).repartition(1)
    # local[2] does not try again: two jobs stand for two attempts of one task.
    with pytest.raises(Exception, match="first attempt"):
        tables.write(frame, lambda: fails_once, "extract", "u-1", ("texts",), COUNTING)
    written = tables.write(frame, lambda: fails_once, "extract", "u-1", ("texts",), COUNTING)
    made = commit(tables, written)
    assert ids(tables, made) == [0, 2, 4, 6, 8]


def test_orphans_of_other_attempts_are_not_committed(tmp_path: Path, spark: Any) -> None:
    tables = Tables(str(tmp_path / "out"), StorageConfig(), lambda: spark, CATALOGUE)
    tag = str(tmp_path / "out")

    def leaves_an_orphan(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
        import glob

        for table, batch in texts_kernel(batches):
            yield table, batch
            (folder,) = glob.glob(f"{tag}/_staging/*/texts")
            os.makedirs(f"{folder}/unit=u-1", exist_ok=True)
            orphan = pa.Table.from_pylist([text_row(99)], schema=TEXTS)
            pq.write_table(orphan, f"{folder}/unit=u-1/part-00000-777.parquet")

    frame = spark.range(4).repartition(1)
    written = tables.write(frame, lambda: leaves_an_orphan, "extract", "u-1", ("texts",), COUNTING)
    made = commit(tables, written)
    assert ids(tables, made) == [0, 2]
    assert ds.dataset(tables.path("texts"), format="parquet").count_rows() == 2


def test_missing_and_changed_files_are_found(tmp_path: Path, spark: Any) -> None:
    tables = Tables(str(tmp_path / "out"), StorageConfig(), lambda: spark, CATALOGUE)
    made = commit(tables, write(tables, 10))
    first = tables.path("texts", made.files["texts"][0].path)
    with open(first, "ab") as file:
        file.write(b"x")
    assert tables.missing_files([made]) == {"u-1": [f"texts/{made.files['texts'][0].path}"]}
    os.remove(first)
    assert tables.missing_files([made]) == {"u-1": [f"texts/{made.files['texts'][0].path}"]}


def test_rows_go_to_the_unit_that_they_name(tmp_path: Path, spark: Any) -> None:
    tables = Tables(str(tmp_path / "out"), StorageConfig(), lambda: spark, CATALOGUE)

    def routed(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
        for batch in batches:
            rows = [text_row(n) | {"unit": f"u-{n % 2}"} for n in batch.column("id").to_pylist()]
            yield "texts", pa.RecordBatch.from_pylist(rows)

    written = tables.write(spark.range(10).repartition(2), lambda: routed, "select", "all", ("texts",), COUNTING)
    (made,) = tables.commit([(Commit("select", "all", "f", {}, written.files, 10, 10, {}, 0.0), [written])])
    rows = tables.read("texts", [made], ["text_id"], only_units=["u-1"]).collect()
    assert sorted(int.from_bytes(r["text_id"], "big") for r in rows) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": None}, "texts: 1 rows have no text"),
        ({"colour": "red"}, r"texts: columns \['colour'\] are not in its schema"),
        ({"pairs": "many"}, "texts.pairs: string does not fit int64"),
    ],
)
def test_rows_that_break_the_schema_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(TableError, match=said):
        conform(pa.RecordBatch.from_pylist([text_row(1) | change]), TEXTS, "texts")


def test_a_missing_key_column_is_refused_and_a_nullable_one_is_null() -> None:
    with pytest.raises(TableError, match="column script is missing"):
        conform(pa.RecordBatch.from_pylist([text_row(1)]).drop_columns(["script"]), TEXTS, "texts")
    rejects = conform(pa.RecordBatch.from_pydict({"reason": ["odd"]}), REJECTS, "rejects")
    assert rejects.schema == REJECTS
    assert rejects.column("detail").null_count == 1


def test_a_table_that_a_stage_does_not_declare_is_refused(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path / "out"), catalogue=CATALOGUE)
    with pytest.raises(TableError, match="yields texts, which it does not declare"):
        tables.write_local(iter([("texts", pa.RecordBatch.from_pylist([text_row(1)]))]), "x", "u", ("mentions",))


@pytest.mark.parametrize("expected", [0, 2])
def test_rows_that_come_when_a_unit_is_whole_make_it_fail(expected: int, tables: Tables) -> None:
    """Catches: a unit committed with the rows that were expected, and the others dropped without a word."""
    frame = (
        tables.spark.range(0, 8, 2, 4)
        .selectExpr("id", "'u-1' AS unit")
        .union(tables.spark.range(2).selectExpr("id", "'u-2' AS unit"))
    )
    with tables.staging("extract") as staging:
        made = [
            one
            for group in tables.write_units(
                frame, lambda: texts_kernel, "extract", {"u-1": expected, "u-2": 2}, ("texts",), staging, COUNTING
            )
            for one in group
        ]
    failed = [one for one in made if isinstance(one, Failed)]
    written = {one[0]: one[1] for one in made if not isinstance(one, Failed)}
    assert written["u-2"].rows_in == 2
    # Whichever way the rows came: all were counted, so that the check of rows finds them, or the unit is told again.
    if written["u-1"].rows_in == expected:
        assert {f.unit for f in failed} == {"u-1"}
        assert failed[0].why.startswith("RowsLost: ")
    else:
        assert written["u-1"].rows_in == 4
