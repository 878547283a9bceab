"""Small files put together: the same rows in the same order, whatever dies when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from i2e_pipeline.core import files
from i2e_pipeline.core.config import StorageConfig
from i2e_pipeline.core.schemas import TEXTS
from i2e_pipeline.dataset.published import part_files
from i2e_pipeline.engine import merging
from i2e_pipeline.engine.catalogue import Catalogue, Table
from i2e_pipeline.engine.records import Commit, Records
from i2e_pipeline.engine.tables import Tables, Written
from i2e_pipeline.engine.tasks import Counting, TaskPlan, TaskWriter

CATALOGUE = Catalogue({"texts": Table(TEXTS)}, {"texts": "extract"})
BOTH = pytest.mark.parametrize("storage", ["parquet", "delta"])


def opened(folder: Path, storage: str) -> Tables:
    return Tables(str(folder), StorageConfig(format=storage), None, CATALOGUE)  # type: ignore[arg-type]


def rows(numbers: Sequence[int]) -> pa.RecordBatch:
    told = [{"text_id": n.to_bytes(16, "big"), "text": f"text {n}", "script": "Latin", "pairs": 1} for n in numbers]
    return pa.RecordBatch.from_pylist(told, schema=TEXTS)


def made(tables: Tables, unit: str, tasks: Sequence[Sequence[int]]) -> Commit:
    """A unit as so many tasks write it; each rejects a row, too."""
    staging = tables.path("_staging", f"extract-{unit}")
    schemas = {t: CATALOGUE.schema(t) for t in ("texts", "rejects")}
    written: dict[str, list[Any]] = {table: [] for table in schemas}
    for task, numbers in enumerate(tasks):
        plan = TaskPlan(staging, "extract", unit, schemas, tables.storage, Counting(), None)
        with TaskWriter(plan, unit, f"part-{task:05}-{7 * task}") as writer:
            writer.write("texts", rows(numbers))
            writer.write("rejects", pa.RecordBatch.from_pydict({"reason": ["odd"], "detail": [f"{unit} {task}"]}))
        for table, closed in writer.closed.items():
            written[table] += closed
    total = sum(map(len, tasks))
    commit = Commit("extract", unit, "f", {"version": "1"}, written, total, total, {"odd": len(tasks)}, 0.5)
    return tables.commit([(commit, [Written(staging, written, total, total, {}, own=True)])])[0]


def counting(tables: Tables) -> dict[str, list[Commit]]:
    return {"extract": list(tables.commits("extract").values())}


def content(tables: Tables, table: str) -> list[Any]:
    """All rows, file after file, as somebody who lists the table finds them."""
    root = tables.path(table)
    return [row for path in part_files(root) for row in pq.read_table(f"{root}/{path}", partitioning=None).to_pylist()]


def recorded(tables: Tables) -> dict[str, list[str]]:
    """Files of each unit's tables by its record; all must be there."""
    commits = Records(tables.path("_commits")).read("extract")
    assert tables.missing_files(commits.values()) == {}
    return {unit: sorted(f.path for made in c.files.values() for f in made) for unit, c in commits.items()}


@BOTH
def test_files_become_one_and_no_row_moves(tmp_path: Path, storage: str) -> None:
    tables = opened(tmp_path, storage)
    commits = [made(tables, "u-1", [range(5), range(5, 9), range(9, 20)]), made(tables, "u-2", [range(20, 22)])]
    before = {table: content(tables, table) for table in ("texts", "rejects")}
    planned = merging.merge(tables, counting(tables), dry_run=True)
    assert {table: content(tables, table) for table in before} == before
    assert recorded(tables)["u-1"] == sorted(f.path for of_table in commits[0].files.values() for f in of_table)

    done = merging.merge(tables, counting(tables))
    assert [(m.table, m.before, m.after) for m in done] == [("rejects", 3, 1), ("texts", 3, 1)]
    assert [(m.table, m.before, m.after) for m in planned] == [(m.table, m.before, m.after) for m in done]
    assert {table: content(tables, table) for table in before} == before
    assert [row["text_id"][-1] for row in before["texts"]] == list(range(22))
    assert [len(paths) for paths in recorded(tables).values()] == [2, 2]
    after = tables.commits("extract")
    assert [(c.fingerprint, c.rows_in, c.rejected, c.rows("texts")) for c in after.values()] == [
        (c.fingerprint, c.rows_in, c.rejected, c.rows("texts")) for c in commits
    ]
    assert merging.merge(opened(tmp_path, storage), counting(tables)) == []
    assert files.list_files(tables.path("_staging")) == []
    # What is made again takes the place of what was merged.
    made(tables, "u-1", [range(3), range(3, 4)])
    assert [row["text_id"][-1] for row in content(tables, "texts")] == [0, 1, 2, 3, 20, 21]


def test_files_are_put_together_up_to_a_size_and_in_their_order(tmp_path: Path) -> None:
    tables = opened(tmp_path, "parquet")
    one = made(tables, "u-1", [range(10 * n, 10 * n + 10) for n in range(7)])
    before = content(tables, "texts")
    largest = max(f.bytes for f in one.files["texts"])
    (_, merged) = merging.merge(tables, counting(tables), full=3 * largest)
    assert (merged.before, merged.after) == (6, 2)
    assert content(tables, "texts") == before
    assert len(part_files(tables.path("texts"))) == 3


def test_changes_of_a_delta_table_have_no_part_in_it(tmp_path: Path) -> None:
    """Catches: readers of changes, and streams from the table, that see every row again."""
    from deltalake import DeltaTable

    tables = opened(tmp_path, "delta")
    made(tables, "u-1", [range(5), range(5, 9)])
    version = DeltaTable(tables.path("texts")).version()
    merging.merge(tables, counting(tables))
    log = Path(tables.path("texts", "_delta_log", f"{version + 1:020}.json")).read_text()
    assert log.count('"dataChange":false') == 3
    assert '"dataChange":true' not in log


@BOTH
@pytest.mark.parametrize("after", ["moved", "staging lost"])
def test_what_a_killed_merge_left_is_found_after_a_move_and_dropped_where_it_is_lost(
    tmp_path: Path, storage: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: old files removed for new ones that are nowhere."""
    tables = opened(tmp_path / "out", storage)
    made(tables, "u-1", [range(5), range(5, 9)])
    before = {table: content(tables, table) for table in ("texts", "rejects")}

    def die(*_: str) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(files, "move_file", die)
        with pytest.raises(Killed):
            merging.merge(tables, counting(tables))
    place = tmp_path / "out"
    if after == "moved":
        place = place.rename(tmp_path / "elsewhere")
    else:
        files.remove(str(place / "_staging"))
    alive = opened(place, storage)
    merging.finish(alive)
    assert {table: content(alive, table) for table in before} == before
    assert len(recorded(alive)["u-1"]) == (2 if after == "moved" else 4)
    merging.merge(alive, counting(alive))
    assert len(recorded(alive)["u-1"]) == 2
    assert {table: content(alive, table) for table in before} == before


class Killed(BaseException):
    """What a signal would do."""


@BOTH
def test_a_kill_at_any_point_loses_no_unit(tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that changes the store is the last one once, before it is done and after."""

    def dying(call: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def instead(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Killed
            result = call(*arguments, **named)
            if left == 0:
                raise Killed
            return result

        return instead

    died = 0
    for after in (False, True):
        for n in range(1, 100):
            tables = opened(tmp_path / f"{n}-{after}", storage)
            for unit in ("u-1", "u-2"):
                start = 50 * int(unit[-1])
                made(tables, unit, [range(start, start + 5), range(start + 5, start + 9)])
            before = {table: content(tables, table) for table in ("texts", "rejects")}
            left = n
            with monkeypatch.context() as patched:
                for name in ("move_file", "remove", "write_bytes"):
                    patched.setattr(files, name, dying(getattr(files, name), after))
                try:
                    merging.merge(tables, counting(tables))
                except Killed:
                    died += 1
            alive = opened(tmp_path / f"{n}-{after}", storage)
            merging.finish(alive)
            alive.discard_staging()
            assert {table: content(alive, table) for table in before} == before
            assert recorded(alive).keys() == {"u-1", "u-2"}
            merging.merge(alive, counting(alive))
            assert [len(paths) for paths in recorded(alive).values()] == [2, 2]
            assert {table: content(alive, table) for table in before} == before
            if left > 0:
                break
    assert died >= 12


def test_a_job_never_writes_a_name_twice(tmp_path: Path) -> None:
    """Catches: numbers of attempts that begin anew with each application; Delta then refuses to put a unit in place."""
    tables = opened(tmp_path, "delta")
    for last in (5, 7):
        made(tables, "u-1", [range(last)])
        assert len(content(tables, "texts")) == last


def test_who_removes_or_merges_leaves_a_delta_table_s_columns_as_they_are(tmp_path: Path) -> None:
    """Catches: `i2e clean`, which plans no input and knows no kept column, and whose readers then find none."""
    made(opened(tmp_path, "delta"), "u-1", [range(3), range(3, 5)])
    made(opened(tmp_path, "delta"), "u-2", [range(5, 7)])
    before = DeltaTable(tmp_path / "texts").schema()
    fewer = Catalogue({"texts": Table(pa.schema([TEXTS.field("text_id")]))}, {"texts": "extract"})
    tables = Tables(str(tmp_path), StorageConfig(format="delta"), None, fewer)  # type: ignore[arg-type]
    merging.merge(tables, counting(tables))
    tables.discard("extract", ["u-2"])
    assert DeltaTable(tmp_path / "texts").schema() == before
    assert len(content(tables, "texts")) == 5
