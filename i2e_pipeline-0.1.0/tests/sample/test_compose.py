"""Composing is deterministic, atomic and holds what its schema says."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from i2e_pipeline.sample import compose as c


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module", autouse=True)
def few_hard_rows() -> Iterator[dict[str, int]]:
    """Two of each kind: enough to see, quick to draw. Yields the counts that ship."""
    shipped = dict(c.HARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c, "HARD", dict.fromkeys(shipped, 2))
        yield shipped


def decodes(data: bytes | None) -> bool:
    try:
        Image.open(io.BytesIO(data or b"")).load()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sample") / "input"
    assert c.compose(output, rows=60, shards=3, processes=1)
    return output


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    """Catches: an unseeded draw, a set's order, a time stamp in a file."""
    assert c.compose(tmp_path / "again", rows=60, shards=3, processes=2)
    assert digests(tmp_path / "again") == digests(small)


def test_a_second_call_does_nothing(small: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    assert not c.compose(small, rows=60, shards=3)
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before


def test_other_arguments_replace_the_folder_at_once(tmp_path: Path) -> None:
    output = tmp_path / "input"
    c.compose(output, rows=4, shards=2, processes=1)
    (output / "stale").write_text("left by hand")
    assert c.compose(output, rows=4, shards=1, processes=1)
    assert sorted(p.name for p in (output / "pairs").iterdir()) == ["00000.parquet"]
    assert not (output / "stale").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["input"]


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """Catches: --output pointed at somebody's data."""
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not a sample input"):
        c.compose(tmp_path, rows=4, shards=1, processes=1)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_rows_hold_what_the_schema_says(small: Path) -> None:
    rows = []
    for path in sorted((small / "pairs").iterdir()):
        file = pq.ParquetFile(path)
        assert file.schema_arrow == c.SCHEMA
        assert all(file.metadata.row_group(i).num_rows <= c.ROW_GROUP for i in range(file.metadata.num_row_groups))
        rows += file.read().to_pylist()
    assert len(rows) == 60 + sum(c.HARD.values())
    assert [r["key"] for r in rows] == [f"{i:09d}" for i in range(len(rows))]
    assert len({r["url"] for r in rows}) == len(rows)
    undecodable = 0
    for r in rows:
        assert r["sha256"] == (None if r["jpg"] is None else hashlib.sha256(r["jpg"]).hexdigest())
        if r["truth_qid"] is None:
            undecodable += 1
            assert r["hand"] is None
            assert not decodes(r["jpg"])
        else:
            image = Image.open(io.BytesIO(r["jpg"]))
            image.load()
            assert image.size == (r["width"], r["height"])
            assert min(image.size) >= 128
            assert max(image.size) <= 256
    assert undecodable == sum(c.HARD[k] for k in ("truncated", "empty", "html", "null image"))
    assert {None, ""} <= {r["caption"] and r["caption"].strip() for r in rows}
    assert max(len(r["caption"] or "") for r in rows) > 100_000


def test_duplicates_show_the_same_thing_under_another_address(small: Path) -> None:
    rows = [r for p in (small / "pairs").iterdir() for r in pq.read_table(p).to_pylist() if r["jpg"]]
    by_hash: dict[str, list[dict[str, object]]] = {}
    for r in rows:
        by_hash.setdefault(r["sha256"], []).append(r)
    twins = [group for group in by_hash.values() if len(group) > 1]
    assert twins
    assert all(
        len({r["truth_qid"] for r in group}) == 1 and len({r["url"] for r in group}) == len(group) for group in twins
    )


def test_hard_rows_are_few(few_hard_rows: dict[str, int]) -> None:
    assert sum(few_hard_rows.values()) <= 0.02 * c.ROWS
    assert c.ROWS >= 3000
    assert c.SHARDS >= 8
