from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.files import RecordError
from i2e_pipeline.engine.units import InputError, Units


def shard(path: Path, text: str, rows: int = 3) -> Path:
    table = pa.table(
        {
            "key": [str(i) for i in range(rows)],
            "url": ["u"] * rows,
            "caption": [text] * rows,
            "jpg": [b"x"] * rows,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def pairs(*paths: Path | str, **settings: object) -> PairsConfig:
    return PairsConfig.model_validate({"path": [str(p) for p in paths], **settings})


def test_what_else_lies_among_the_units_is_no_unit(tmp_path: Path) -> None:
    """Catches: a `.tmp` of a run that was killed while it wrote, or a `.DS_Store`, that stops every later run."""
    units = Units(str(tmp_path / "out"))
    shard(tmp_path / "in" / "a.parquet", "a")
    first = units.plan(pairs(tmp_path / "in"))
    folder = tmp_path / "out" / "units"
    (folder / f"{first[0].name}.json.{'0' * 32}.tmp").write_text('{"name"')
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "copies").mkdir()
    (folder / "copies" / "u-1.json").write_text((folder / f"{first[0].name}.json").read_text())
    assert units.plan(pairs(tmp_path / "in")) == first
    (folder / "u-half.json").write_text('{"name": "u-half", "files": [')
    with pytest.raises(RecordError, match=r"u-half\.json is not a whole record .*: put a copy of it in its place"):
        units.known()


def test_new_files_become_new_units_beside_the_old(tmp_path: Path) -> None:
    units = Units(str(tmp_path / "out"))
    shard(tmp_path / "in" / "b.parquet", "b")
    first = units.plan(pairs(tmp_path / "in" / "*.parquet"))
    shard(tmp_path / "in" / "a.parquet", "a")
    second = units.plan(pairs(tmp_path / "in" / "*.parquet"))
    assert second[0] == first[0]
    assert [u.files[0].shard for u in second] == [0, 1]
    assert units.plan(pairs(tmp_path / "in" / "*.parquet")) == second


def test_units_are_named_by_content(tmp_path: Path) -> None:
    here = Units(str(tmp_path / "o1")).plan(pairs(shard(tmp_path / "x" / "a.parquet", "same")))
    there = Units(str(tmp_path / "o2")).plan(pairs(shard(tmp_path / "y" / "z.parquet", "same")))
    assert here[0].name == there[0].name


def test_only_new_files_named_keeps_the_old_units(tmp_path: Path) -> None:
    """A new crawl is just more units: naming it alone does not drop what was read before."""
    units = Units(str(tmp_path / "out"))
    units.plan(pairs(shard(tmp_path / "a.parquet", "a")))
    assert len(units.plan(pairs(shard(tmp_path / "b.parquet", "b")))) == 2


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    units = Units(str(tmp_path / "out"))
    path = shard(tmp_path / "a.parquet", "a")
    units.plan(pairs(path))
    shard(path, "changed")
    with pytest.raises(InputError, match=r"a\.parquet has changed since unit u-"):
        units.plan(pairs(path))


def test_a_touched_or_moved_file_is_the_same_file(tmp_path: Path) -> None:
    units = Units(str(tmp_path / "out"))
    path = shard(tmp_path / "a.parquet", "a")
    before = units.plan(pairs(path))
    os.utime(path, (1, 1))
    assert [u.name for u in units.plan(pairs(path))] == [before[0].name]
    moved = path.rename(tmp_path / "b.parquet")
    after = units.plan(pairs(moved))
    assert [(u.name, u.files[0].shard, u.files[0].path) for u in after] == [(before[0].name, 0, str(moved))]


def test_the_same_rows_twice_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", "a")
    shard(tmp_path / "b.parquet", "a")
    with pytest.raises(InputError, match="hold the same rows"):
        Units(str(tmp_path / "out")).plan(pairs(tmp_path / "*.parquet"))


def test_files_are_grouped(tmp_path: Path) -> None:
    for i in range(5):
        shard(tmp_path / f"{i}.parquet", str(i))
    made = Units(str(tmp_path / "out")).plan(pairs(tmp_path / "*.parquet", files_per_unit=2))
    assert [len(u.files) for u in made] == [2, 2, 1]


def test_bad_input_is_named(tmp_path: Path) -> None:
    units = Units(str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"pairs\.path is not set"):
        units.plan(pairs())
    with pytest.raises(InputError, match="no file matches"):
        units.plan(pairs(tmp_path / "none.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no footer")
    with pytest.raises(InputError, match=r"bad\.parquet is not a readable Parquet file"):
        units.plan(pairs(tmp_path / "bad.parquet"))
    with pytest.raises(InputError, match=r"no column 'alt' \(pairs\.text_column\); it has key, url, caption, jpg"):
        units.plan(pairs(shard(tmp_path / "a.parquet", "a"), text_column="alt"))


def test_a_unit_can_be_forgotten(tmp_path: Path) -> None:
    units = Units(str(tmp_path / "out"))
    made = units.plan(pairs(shard(tmp_path / "a.parquet", "a"), shard(tmp_path / "b.parquet", "b")))
    units.forget(made[0].name)
    assert units.known() == made[1:]
    with pytest.raises(InputError, match="no unit u-none"):
        units.forget("u-none")
