"""Tables with versions: only rows that are live are read, or the table is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.files import Beside
from i2e_pipeline.inputs import versioned
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.listing import listed

ROWS = pa.table({"key": ["a", "b", "c"], "caption": ["one", "two", "three"], "jpg": [b"1", b"2", b"3"]})


def names(*paths: Path | str, **settings: Any) -> list[str]:
    return [Path(s.path).name for s in listed(PairsConfig(path=tuple(map(str, paths)), **settings))]


def parquet(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(ROWS, path)
    return path


def delta(path: Path, **how: Any) -> tuple[list[str], list[str]]:
    """A Delta table with a row deleted: names of its files that are live, and of those that are not."""
    write_deltalake(str(path), ROWS, **how)
    DeltaTable(str(path)).delete("key != 'a'")
    live = sorted(Path(u).name for u in DeltaTable(str(path)).file_uris())
    return live, sorted(p.name for p in path.rglob("*.parquet") if p.name not in live and "_delta_log" not in str(p))


@pytest.mark.parametrize(
    "named", ["", "data", "data/*.parquet", "data/*/*.parquet", "*/**", "data/part=1/a.parquet", "data/part=1"]
)
def test_an_iceberg_table_is_refused_however_it_is_named(named: str, tmp_path: Path) -> None:
    """Catches: rows of older versions, read from the files that a rewrite has left."""
    parquet(tmp_path / "ice" / "data" / "part=1" / "a.parquet")
    parquet(tmp_path / "ice" / "data" / "b.parquet")
    (tmp_path / "ice" / "metadata").mkdir()
    (tmp_path / "ice" / "metadata" / "v2.metadata.json").write_text("{}")
    with pytest.raises(InputError, match=r"ice is an Iceberg table: write its rows as Parquet \(`spark\.table"):
        names(tmp_path / "ice" / named)


@pytest.mark.parametrize("named", ["", "h", "h/*.parquet", "h/2020/1/*.parquet", "h/2020/1/a.parquet", "h/2020"])
def test_a_hudi_table_is_refused_however_it_is_named(named: str, tmp_path: Path) -> None:
    parquet(tmp_path / "h" / "2020" / "1" / "a.parquet")
    (tmp_path / "h" / "2020" / "1" / ".hoodie_partition_metadata").touch()
    parquet(tmp_path / "h" / "a.parquet")
    (tmp_path / "h" / ".hoodie").mkdir()
    with pytest.raises(InputError, match=r"is a Hudi table: write its rows as Parquet \(`spark\.read\.format"):
        names(tmp_path / named)


def test_a_folder_called_metadata_is_no_sign(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "a.parquet")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "licenses.json").write_text("{}")
    for named in ("", "data", "data/a.parquet", "*"):
        assert names(tmp_path / named) == ["a.parquet"]


def test_every_delta_table_of_a_folder_is_read_by_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: rows that were deleted, from tables behind the first hundreds of folders; a request for each folder."""
    for n in range(300):
        parquet(tmp_path / "many" / f"f{n:03}" / "a.parquet")
    live, dead = delta(tmp_path / "many" / "zz")
    assert live
    assert dead
    asked: list[str] = []
    ask = Beside.ask
    real_exists = versioned.files.exists
    monkeypatch.setattr(versioned.files, "exists", lambda path: asked.append(path) or real_exists(path))
    monkeypatch.setattr(Beside, "ask", lambda self, folders: (ask(self, folders), asked.extend(self._listed))[0])
    assert names(tmp_path / "many") == ["a.parquet"] * 300 + live
    assert len(asked) < 10
    assert names(tmp_path / "many" / "*") == ["a.parquet"] * 300 + live
    assert names(tmp_path / "many" / "*" / "*.parquet") == ["a.parquet"] * 300 + live


def test_of_files_named_in_a_delta_table_those_that_are_live_are_read(tmp_path: Path) -> None:
    """Catches: one file that is named, and the whole table that is read; a file that is named, and rows that are no
    more."""
    live, dead = delta(tmp_path / "t", partition_by=["key"])
    (still,) = live
    assert len(dead) == 2
    assert names(tmp_path / "t") == [still]
    write_deltalake(str(tmp_path / "t"), ROWS.slice(1), mode="append", partition_by=["key"])
    assert names(tmp_path / "t" / "key=a") == [still]
    assert names(tmp_path / "t" / "key=a" / still) == [still]
    assert names(tmp_path / "t" / "key=[a]" / "*.parquet") == [still]
    assert len(names(tmp_path / "t" / "key=*")) == 3
    for gone in (tmp_path / "t").glob("key=*/*.parquet"):
        if gone.name in dead:
            with pytest.raises(
                InputError, match=r"1 of the files that it names are not live in the Delta table .*/t: its last"
            ):
                names(gone)


def test_of_what_lies_beside_a_delta_table_pairs_are_read_and_the_rest_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a table that is refused because of a paper on it beside."""
    live, _ = delta(tmp_path / "t")
    (tmp_path / "README.md").touch()
    assert names(tmp_path) == live
    assert caplog.records == []
    (tmp_path / "notes.doc").touch()
    assert names(tmp_path) == live
    (warning,) = [r.getMessage() for r in caplog.records]
    assert "passed over are 1 .doc files, such as" in warning
    parquet(tmp_path / "a.parquet")
    assert sorted(names(tmp_path)) == ["a.parquet", *live]


def of_log(table: Path, change: Any) -> None:
    log = table / "_delta_log" / "00000000000000000000.json"
    log.write_text("\n".join(json.dumps(change(json.loads(line))) for line in log.read_text().splitlines()))


def test_a_delta_table_with_mapped_columns_is_refused_by_its_properties(tmp_path: Path) -> None:
    """Catches: a table of reader version 2, which names no features, whose files have the columns' older names."""
    write_deltalake(str(tmp_path / "t"), ROWS)

    def mapped(action: dict[str, Any]) -> dict[str, Any]:
        if "protocol" in action:
            action["protocol"] = {"minReaderVersion": 2, "minWriterVersion": 5}
        if meta := action.get("metaData"):
            meta["configuration"] = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "3"}
            schema = json.loads(meta["schemaString"])
            for n, field in enumerate(schema["fields"], 1):
                field["metadata"] = {
                    "delta.columnMapping.id": n, "delta.columnMapping.physicalName": field["name"],
                }  # fmt: skip
            meta["schemaString"] = json.dumps(schema)
        return action

    of_log(tmp_path / "t", mapped)
    with pytest.raises(InputError, match="is a Delta table with columnMapping, which its files do not show"):
        names(tmp_path / "t")


@pytest.mark.parametrize("content", ["{", "", "no json at all", '{"add": 3}'])
def test_a_damaged_delta_log_is_one_line(content: str, tmp_path: Path) -> None:
    """Catches: a backtrace of Rust's."""
    write_deltalake(str(tmp_path / "t"), ROWS)
    (tmp_path / "t" / "_delta_log" / "00000000000000000000.json").write_text(content)
    with pytest.raises(
        InputError, match=r"t is a Delta table whose log cannot be read \(.*copy .*_delta_log anew"
    ) as it:
        names(tmp_path / "t")
    assert "\n" not in str(it.value)
