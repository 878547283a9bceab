from __future__ import annotations

import os
from pathlib import Path

import pytest

from i2e_pipeline.core import files


def test_fingerprint_names_content_not_path(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    (tmp_path / "c").write_bytes(b"two")
    a, b, c = (files.fingerprint(str(tmp_path / n)) for n in "abc")
    assert a == b != c


def test_a_changed_byte_in_the_middle_is_seen(tmp_path: Path) -> None:
    """Catches: files told apart by path or size alone (NeMo Curator hashes paths only)."""
    path = tmp_path / "f"
    content = bytearray(os.urandom(3 << 20))
    path.write_bytes(content)
    before = files.fingerprint(str(path))
    content[1 << 20] ^= 1
    path.write_bytes(content)
    assert files.fingerprint(str(path)) != before


def test_large_files_are_sampled_at_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_WHOLE", 1 << 20)
    path = tmp_path / "f"
    content = bytearray(os.urandom(4 << 20))
    path.write_bytes(content)
    before = files.fingerprint(str(path))
    for place in (0, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert files.fingerprint(str(path)) != before


def test_folder_fingerprint_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w").write_bytes(b"1")
    before = files.fingerprint(str(tmp_path / "m"))
    (tmp_path / "m" / "w").rename(tmp_path / "m" / "v")
    assert files.fingerprint(str(tmp_path / "m")) != before


def test_find_takes_files_folders_and_globs_each_once(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.parquet").write_bytes(b"x")
    found = files.find((str(tmp_path / "*.parquet"), str(tmp_path), str(tmp_path / "a.parquet")), ".parquet")
    assert [Path(f.path).name for f in found] == ["a.parquet", "b.parquet", "d.parquet"]
    with pytest.raises(FileNotFoundError, match=r"none\*"):
        files.find((str(tmp_path / "none*"),), ".parquet")


def test_write_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    files.write_json(str(tmp_path / "x" / "a.json"), {"a": 1})
    files.write_json(str(tmp_path / "x" / "a.json"), {"a": 2})
    assert files.read_json(str(tmp_path / "x" / "a.json")) == {"a": 2}
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a.json"]
