"""Commit records in journals: read as one, never half, whatever dies when."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core import files
from i2e_pipeline.core.files import RecordError
from i2e_pipeline.engine.records import Commit, Records, WrittenFile


def commit(unit: str, fingerprint: str = "f", rows: int = 3) -> Commit:
    made = {"texts": [WrittenFile(f"unit={unit}/part-0.parquet", rows, 100)]}
    return Commit("extract", unit, fingerprint, {"version": fingerprint}, made, rows, rows, {"odd": 1}, 0.5)


def of(*commits: Commit) -> dict[str, Commit]:
    return {c.unit: c for c in commits}


def test_what_was_added_is_read_by_another_process(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    records.add("extract", [commit("b"), commit("a")])
    records.add("extract", [commit("c", "g")])
    assert list(Records(str(tmp_path)).read("extract").items()) == [
        ("a", commit("a")),
        ("b", commit("b")),
        ("c", commit("c", "g")),
    ]
    assert records.known("extract") == Records(str(tmp_path)).read("extract")
    assert records.read("link") == {}
    assert records.stages() == ["extract"]


def test_later_records_overrule_earlier_ones(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    records.add("extract", [commit("a"), commit("b"), commit("c")])
    records.drop("extract", ["a", "never there"])
    records.add("extract", [commit("b", "g")])
    wanted = of(commit("b", "g"), commit("c"))
    assert Records(str(tmp_path)).read("extract") == records.known("extract") == wanted
    records.add("extract", [commit("a", "h")])
    assert Records(str(tmp_path)).read("extract") == of(commit("a", "h"), *wanted.values())


def test_dropping_what_is_not_there_writes_nothing(tmp_path: Path) -> None:
    Records(str(tmp_path)).drop("extract", ["a"])
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """What a signal would do."""


def test_a_kill_while_many_files_become_one_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a unit that was dropped and counts again, because the file that dropped it went before the one that
    made it."""
    records = Records(str(tmp_path))
    for n in range(20):
        records.add("extract", [commit(f"u-{n:02}"), commit("again", f"f{n}")])
        records.drop("extract", [f"u-{n:02}"] if n % 3 else [])
    wanted = records.read("extract")
    assert len(wanted) == 8
    real_write, real_remove = files.write_bytes, files.remove
    left = [0]

    def dying(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments)

        return call

    monkeypatch.setattr(files, "write_bytes", dying(real_write))
    monkeypatch.setattr(files, "remove", dying(real_remove))
    for survives in (0, 1, 2, 3, 17, 1000):
        left[0] = survives
        try:
            Records(str(tmp_path)).fold("extract")
        except Killed:
            assert survives < 1000
        assert Records(str(tmp_path)).read("extract") == wanted
    assert len(list((tmp_path / "extract").iterdir())) == 1


def test_few_files_are_left_as_they_are(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    records.add("extract", [commit("a")])
    before = {p.name: p.read_bytes() for p in (tmp_path / "extract").iterdir()}
    records.fold("extract")
    assert {p.name: p.read_bytes() for p in (tmp_path / "extract").iterdir()} == before


def test_units_share_what_their_fingerprint_is_made_of(tmp_path: Path) -> None:
    """Catches: the settings of a stage written once for each of ten thousand units."""
    big = {"settings": {"names": ["x" * 100] * 100}}
    units = [replace(commit(f"u-{n}"), components=big) for n in range(50)]
    Records(str(tmp_path)).add("extract", units)
    (journal,) = (tmp_path / "extract").iterdir()
    assert journal.stat().st_size < 50_000
    assert Records(str(tmp_path)).read("extract") == of(*units)


def test_a_file_per_unit_of_earlier_versions_counts_until_it_is_overruled(tmp_path: Path) -> None:
    """Catches: an output of an earlier version that is made again, or a unit that comes back from it."""
    folder = tmp_path / "extract"
    folder.mkdir()
    for unit in ("a", "b"):
        record = asdict(commit(unit))
        del record["task_seconds"]
        (folder / f"{unit}.json").write_text(json.dumps(record, indent=1))
    records = Records(str(tmp_path))
    assert records.read("extract") == of(commit("a"), commit("b"))
    records.drop("extract", ["a"])
    assert Records(str(tmp_path)).read("extract") == of(commit("b"))


def test_what_else_lies_among_the_records_is_no_commit(tmp_path: Path) -> None:
    """Catches: a folder or another program's file that is taken for a unit that is done."""
    records = Records(str(tmp_path))
    records.add("extract", [commit("u-1")])
    folder = tmp_path / "extract"
    (folder / f".journal-000000002.json.{'0' * 32}.tmp").write_text("{")
    (folder / "._u-1.json").write_bytes(b"\0\5\x16\7")
    (folder / "old").mkdir()
    (folder / "old" / "u-3.json").write_text((folder / "journal-000000001.json").read_text())
    assert records.read("extract") == of(commit("u-1"))
    (folder / "u-4.json").write_text("")
    with pytest.raises(RecordError, match=r"u-4\.json is not a whole record .*: remove it, and `i2e run` makes again"):
        records.read("extract")


@pytest.mark.parametrize(
    "said",
    [
        "[]", "3", '"a"', "{}", '{"anew": false, "gone": [], "commits": 3, "components": {}}', "[" * 100_000,
        '{"anew": false, "gone": [], "commits": [3], "components": {}}',
        '{"anew": false, "gone": [], "commits": [{"files": {"a": [{}]}}], "components": {}}',
        '{"anew": false, "gone": [], "commits": [{"files": {}, "fingerprint": "f", "odd": 1}], "components": {"f": 1}}',
    ],
)  # fmt: skip
def test_a_journal_that_is_none_is_named(tmp_path: Path, said: str) -> None:
    """Catches: KeyError and TypeError of JSON that is whole and no journal."""
    (tmp_path / "extract").mkdir()
    (tmp_path / "extract" / "journal-000000001.json").write_text(said)
    with pytest.raises(RecordError, match=r"journal-000000001\.json.*remove it, and `i2e run` makes again"):
        Records(str(tmp_path)).read("extract")
    (tmp_path / "extract" / "journal-000000001.json").rename(tmp_path / "extract" / "u-1.json")
    with pytest.raises(RecordError, match=r"u-1\.json.*remove it, and `i2e run` makes again"):
        Records(str(tmp_path)).read("extract")
