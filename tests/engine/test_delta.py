"""What a Delta table's log says after columns have changed."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from i2e_pipeline.engine.delta import DeltaLog
from i2e_pipeline.engine.tasks import WrittenFile


def written(place: Path, name: str, **columns: list[object]) -> WrittenFile:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table, path)
    return WrittenFile(name, table.num_rows, path.stat().st_size)


def rows(place: Path) -> list[dict[str, object]]:
    table = DeltaTable(place).to_pyarrow_table()
    return sorted(table.to_pylist(), key=lambda row: row["unit"])  # type: ignore[no-any-return]


def test_columns_may_come_change_and_go(tmp_path: Path) -> None:
    """Catches: a column that is in the files, and that no reader of the table sees."""
    place = tmp_path / "images"
    log = DeltaLog(os.fspath(place))
    a, b = pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.int64())
    first = [written(place, f"unit={u}/1.parquet", a=[n]) for n, u in enumerate("xy")]
    log.replace(pa.schema([a]), first, {"unit=x", "unit=y"})
    assert rows(place) == [{"a": 0, "unit": "x"}, {"a": 1, "unit": "y"}]

    log.replace(pa.schema([a, b]), [written(place, "unit=x/2.parquet", a=[0], b=[5])], {"unit=x"})
    assert rows(place) == [{"a": 0, "b": 5, "unit": "x"}, {"a": 1, "b": None, "unit": "y"}]

    as_text = pa.schema([a, pa.field("b", pa.string())])
    for known in (log, DeltaLog(os.fspath(place))):  # the one that knows the table, and one that finds it
        for n, unit in enumerate("xy"):
            known.replace(as_text, [written(place, f"unit={unit}/3.parquet", a=[n], b=["five"])], {f"unit={unit}"})
    assert rows(place) == [{"a": 0, "b": "five", "unit": "x"}, {"a": 1, "b": "five", "unit": "y"}]

    log.replace(pa.schema([a]), [written(place, f"unit={u}/4.parquet", a=[7]) for u in "xy"], {"unit=x", "unit=y"})
    assert rows(place) == [{"a": 7, "unit": "x"}, {"a": 7, "unit": "y"}]
    assert len(DeltaTable(place).file_uris()) == 2


def test_the_same_columns_make_no_transaction_of_their_own(tmp_path: Path) -> None:
    place = tmp_path / "kb"
    schema = pa.schema([pa.field("id", pa.binary(16), nullable=False), pa.field("v", pa.list_(pa.float32()))])
    for n in range(3):
        files = [written(place, f"unit=x/{n}.parquet", id=[bytes(16)], v=[[1.0]])]
        DeltaLog(os.fspath(place)).replace(schema, files, {"unit=x"})
        assert DeltaTable(place).version() == n
