from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.files import RecordError
from i2e_pipeline.core.ids import rows_in_share
from i2e_pipeline.engine.units import InputError, Unit, Units


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


def mended(units: Units, folder: Path, **settings: object) -> dict[str, list[str]]:
    """Units after `--replace`, each with the paths of its files."""
    planned = units.plan(pairs(folder / "*.parquet", **settings), replace_changed=True)
    assert len({f.shard for u in planned for f in u.files}) == sum(len(u.files) for u in planned)
    return {u.name: [Path(f.path).name for f in u.files] for u in planned}


def test_a_mended_file_takes_its_old_place_and_is_itself_again_when_it_is_put_back(tmp_path: Path) -> None:
    """Catches: a unit that is hidden by those that took its place, one after the other, and counts as gone itself."""
    units, folder = Units(str(tmp_path / "out")), tmp_path / "in"
    for name in "abc":
        shard(folder / f"{name}.parquet", name)
    first = mended(units, folder, files_per_unit=2)
    shards = {f.path: f.shard for u in units.known() for f in u.files}
    for text in ("second", "third"):
        shard(folder / "a.parquet", text, rows=4)
        now = mended(units, folder, files_per_unit=2)
        assert sorted(now.values()) == [["a.parquet", "b.parquet"], ["c.parquet"]]
        assert len(now.keys() - first.keys()) == 1
        assert {
            f.path: f.shard for u in units.known() for f in u.files if "a.par" not in f.path
        }.items() <= shards.items()
    shard(folder / "a.parquet", "a")
    assert mended(units, folder, files_per_unit=2) == first
    assert units.replaced() == []
    assert mended(units, folder, files_per_unit=2) == first


def test_a_mended_file_of_which_a_sample_was_read(tmp_path: Path) -> None:
    units, folder = Units(str(tmp_path / "out")), tmp_path / "in"
    path = shard(folder / "a.parquet", "a", rows=400)
    for share in (0.3, 0.7):
        units.plan(pairs(path, sample=share))
    shard(path, "b", rows=500)
    made = units.plan(pairs(path, sample=0.7), replace_changed=True)
    assert [u.share for u in made] == [(0.0, 0.3), (0.3, 0.7)]
    assert len({f.shard for u in made for f in u.files}) == 2
    assert (
        sum(u.rows for u in made)
        == rows_in_share(bytes.fromhex(made[0].files[0].digest), np.arange(500), (0, 0.7)).sum()
    )


def test_files_that_changed_their_names_are_the_same_files(tmp_path: Path) -> None:
    """A crawl whose files were numbered anew. Catches: a file that counts as changed since another has its name now."""
    units, folder = Units(str(tmp_path / "out")), tmp_path / "in"
    for n in range(3):
        shard(folder / f"{n}.parquet", f"text {n}")
    first = units.plan(pairs(folder / "*.parquet"))
    for n in (2, 1, 0):
        (folder / f"{n}.parquet").rename(folder / f"{n + 1}.parquet")
    shard(folder / "0.parquet", "new")
    after = units.plan(pairs(folder / "*.parquet"))
    assert [u.name for u in after[:3]] == [u.name for u in first]
    assert [Path(u.files[0].path).name for u in after] == ["1.parquet", "2.parquet", "3.parquet", "0.parquet"]

    (folder / "0.parquet").rename(tmp_path / "x")
    (folder / "3.parquet").rename(folder / "0.parquet")
    (tmp_path / "x").rename(folder / "3.parquet")
    assert {u.name for u in units.plan(pairs(folder / "*.parquet"))} == {u.name for u in after}

    shard(folder / "1.parquet", "text 1")  # what 2.parquet holds
    with pytest.raises(InputError, match=r"1\.parquet and .*2\.parquet hold the same rows"):
        units.plan(pairs(folder / "*.parquet"), replace_changed=True)


def test_a_file_that_lost_its_rows_is_no_file_without_news(tmp_path: Path) -> None:
    units, folder = Units(str(tmp_path / "out")), tmp_path / "in"
    for name in "abc":
        shard(folder / f"{name}.parquet", name)
    units.plan(pairs(folder / "*.parquet"))
    shard(folder / "a.parquet", "", rows=0)
    with pytest.raises(InputError, match=r"a\.parquet has no row any more, and rows of unit u-\w+ were read from it"):
        units.plan(pairs(folder / "*.parquet"), replace_changed=True)
    shard(folder / "a.parquet", "a")
    units.forget(next(u.name for u in units.known() if u.files[0].path.endswith("c.parquet")))
    shard(folder / "a.parquet", "c")
    with pytest.raises(InputError, match=r"a\.parquet holds now what was forgotten with another unit"):
        units.plan(pairs(folder / "*.parquet"), replace_changed=True)


def test_the_index_of_a_file_goes_with_its_last_unit(tmp_path: Path) -> None:
    """Catches: rows of a mended or forgotten table that its index goes on to repeat."""
    units, table = Units(str(tmp_path / "out")), tmp_path / "in.csv"
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    table.write_text("caption,jpg\nfirst,1.jpg\nsecond,2.jpg\n")
    (before,) = units.plan(pairs(table))
    table.write_text("caption,jpg\nfirst,1.jpg\nmended,2.jpg\n")
    (after,) = units.plan(pairs(table), replace_changed=True)
    index = tmp_path / "out" / "units" / "index"
    assert len(list(index.iterdir())) == 2
    assert units.replaced() == [before.name]
    units.drop_replaced([before.name])
    assert [path.stem for path in index.iterdir()] == [after.files[0].digest]
    units.forget(after.name)
    assert list(index.iterdir()) == []


def test_the_index_of_a_forgotten_file_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a run that looks at a forgotten file again and leaves its captions in the output."""
    units, index = Units(str(tmp_path / "out")), tmp_path / "out" / "units" / "index"
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8\xff")
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"caption,jpg\n{name},1.jpg\n")
    gone, stays = units.plan(pairs(tmp_path / "a.csv", tmp_path / "b.csv", files_per_unit=1))
    units.forget(gone.name)
    (tmp_path / "c.csv").write_text("caption,jpg\nc,1.jpg\n")
    with monkeypatch.context() as patched:
        looked, look = [], Units._look

        def looking(self: Units, source: Any, *rest: Any) -> Any:
            looked.append(source.path)
            return look(self, source, *rest)

        patched.setattr(Units, "_look", looking)
        made = units.plan(pairs(tmp_path / "*.csv", files_per_unit=1))
    assert [Path(path).name for path in looked] == ["c.csv"]
    assert made[0] == stays
    digests = {f.digest for unit in made for f in unit.files}
    assert {path.stem for path in index.iterdir()} == digests
    os.utime(tmp_path / "a.csv", (1, 1))
    assert units.plan(pairs(tmp_path / "*.csv", files_per_unit=1)) == made
    (tmp_path / "a.csv").rename(tmp_path / "d.csv")
    assert units.plan(pairs(tmp_path / "*.csv", files_per_unit=1)) == made
    assert {path.stem for path in index.iterdir()} == digests


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


# A sample that grows


def taken(units: list[Unit]) -> dict[str, set[int]]:
    """Rows of each file, by its path, that units take; none twice."""
    found: dict[str, set[int]] = {}
    for unit in units:
        for file in unit.files:
            mask = rows_in_share(bytes.fromhex(file.digest), np.arange(file.rows), unit.share)
            rows = set(np.flatnonzero(mask).tolist())
            assert len(rows) == file.taken
            assert not rows & found.setdefault(file.path, set())
            found[file.path] |= rows
    return found


def test_a_sample_grows_by_new_units_that_take_the_further_rows(tmp_path: Path) -> None:
    """Catches: a pilot whose work is done again when it grows, or whose rows come twice."""
    units = Units(str(tmp_path / "out"))
    for name in ("a", "b"):
        shard(tmp_path / "in" / f"{name}.parquet", name, rows=1000)
    pilot = units.plan(pairs(tmp_path / "in", sample=0.1))
    rows = taken(pilot)
    assert all(60 < len(r) < 140 for r in rows.values())
    assert units.plan(pairs(tmp_path / "in", sample=0.1)) == pilot

    shard(tmp_path / "in" / "c.parquet", "c", rows=1000)  # beside it, a file that the pilot has not seen
    grown = units.plan(pairs(tmp_path / "in", sample=0.5))
    assert [u for u in grown if u in pilot] == pilot
    assert len(grown) == 5
    assert len({f.shard for u in grown for f in u.files}) == 5
    assert all(400 < len(r) < 600 for r in taken(grown).values())
    assert all(rows[path] < taken(grown)[path] for path in rows)

    whole = units.plan(pairs(tmp_path / "in"))
    assert [u for u in whole if u in grown] == grown
    assert all(r == set(range(1000)) for r in taken(whole).values())
    with pytest.raises(InputError, match=r"pairs\.sample=0\.5, and 1 of the rows of .* were read before: a sample can"):
        units.plan(pairs(tmp_path / "in", sample=0.5))


def test_a_sample_takes_the_same_rows_wherever_the_file_lies(tmp_path: Path) -> None:
    here = Units(str(tmp_path / "o1")).plan(pairs(shard(tmp_path / "x" / "a.parquet", "same", 500), sample=0.2))
    there = Units(str(tmp_path / "o2")).plan(pairs(shard(tmp_path / "y" / "b.parquet", "same", 500), sample=0.2))
    assert [u.name for u in here] == [u.name for u in there]
    all_rows = Units(str(tmp_path / "o3")).plan(pairs(tmp_path / "x" / "a.parquet"))
    assert all_rows[0].name != here[0].name


def test_a_moved_file_of_a_sample_is_known_in_all_its_units(tmp_path: Path) -> None:
    units = Units(str(tmp_path / "out"))
    path = shard(tmp_path / "in" / "a.parquet", "a", rows=200)
    units.plan(pairs(path, sample=0.2))
    before = units.plan(pairs(path, sample=0.6))
    moved = tmp_path / "in" / "z.parquet"
    os.rename(path, moved)
    after = units.plan(pairs(moved, sample=0.6))
    assert [u.name for u in after] == [u.name for u in before]
    assert {f.path for u in after for f in u.files} == {str(moved)}
