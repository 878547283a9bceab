"""What is whole of a folder that img2dataset has filled, or `i2e fetch`, or has begun to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.listing import listed
from tests.inputs.forms import FORMS, Pair

WRITERS = {
    "parquet": "img2dataset's Parquet",
    "webdataset": "img2dataset's tars",
    "files": "img2dataset's folders",
}


def pair(number: int) -> Pair:
    return Pair(f"{number:09}", f"http://x/{number}", f"caption {number}", b"\xff\xd8\xff" + bytes(64))


@pytest.fixture(params=WRITERS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fill(form: str, tmp_path: Path) -> Callable[..., Path]:
    """A folder of img2dataset's with these shards; of some of them no stats."""

    def filled(shards: Sequence[int], without_stats: Sequence[int] = (), images: int = 2) -> Path:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for shard in shards:
            apart = tmp_path / f"apart-{shard}"
            apart.mkdir()
            FORMS[WRITERS[form]]([pair(10_000 * shard + n) for n in range(images)], apart)
            for entry in apart.iterdir():
                entry.rename(folder / entry.name.replace("00000", f"{shard:05}"))
            stats = folder / f"{shard:05}_stats.json"
            stats.write_text(json.dumps({"count": images}))
            if shard in without_stats:
                stats.unlink()
        return folder

    return filled


def read(path: Path | str, **settings: Any) -> list[str]:
    """Which shards are read."""
    paths = [Path(s.path) for s in listed(PairsConfig(path=(str(path),), **settings))]
    return sorted({p.parent.name if p.suffix == ".jpg" else p.stem for p in paths})


def record(folder: Path, shards: int) -> None:
    (folder / "_fetch").mkdir()
    (folder / "_fetch" / "record.json").write_text(json.dumps({"of": "x", "counts": {}, "shards": shards}))


@pytest.mark.parametrize("glob", [False, True])
def test_a_shard_without_stats_is_not_finished(glob: bool, fill: Callable[..., Path], form: str) -> None:
    """Catches: half of a shard that is read as one, or a message on a cut tar, which says nothing of img2dataset."""
    folder = fill([0, 1, 2], without_stats=[1])
    end = {"parquet": "/*.parquet", "webdataset": "/*.tar", "files": "/0*"}[form] if glob else ""
    with pytest.raises(InputError, match=r"has not finished 1 of its 3 shards, such as 00001 .*allow_partial"):
        read(f"{folder}{end}")
    assert read(f"{folder}{end}", allow_partial=True) == ["00000", "00002"]
    (folder / "00001_stats.json").touch()  # killed while it wrote them
    with pytest.raises(InputError, match="such as 00001"):
        read(f"{folder}{end}")
    (folder / "00001_stats.json").write_text("{}")
    assert read(f"{folder}{end}") == ["00000", "00001", "00002"]


def test_shards_that_were_published_without_stats_are_read(fill: Callable[..., Path]) -> None:
    folder = fill([0, 1], without_stats=[0, 1])
    assert read(folder) == ["00000", "00001"]
    # Until something says that a run of img2dataset was killed here in its first shards.
    (folder / "_tmp").mkdir()
    (folder / "_tmp" / "1.feather").touch()
    with pytest.raises(InputError, match="such as 00001"):
        read(folder)
    assert read(folder, allow_partial=True) == ["00000"]


def test_a_fetch_that_has_not_ended_is_refused(fill: Callable[..., Path]) -> None:
    """Catches: shards that are whole and not all, of which nothing in the shards themselves speaks."""
    folder = fill([0, 1])
    record(folder, 3)
    with pytest.raises(InputError, match=r"`i2e fetch` has filled 2 of 3 shards\. The same command goes on"):
        read(folder)
    assert read(folder, allow_partial=True) == ["00000", "00001"]
    fill([2])
    assert read(folder) == ["00000", "00001", "00002"]


def test_a_record_that_does_not_say_how_many_shards_there_are_says_it_by_rows(fill: Callable[..., Path]) -> None:
    """Of a folder that was filled before records said it."""
    folder = fill([0, 1])
    (folder / "_fetch").mkdir()
    said = folder / "_fetch" / "record.json"
    said.write_text(json.dumps({"of": "x", "counts": {"to fetch": 20_001}}))
    with pytest.raises(InputError, match="has filled 2 of 3 shards"):
        read(folder)
    said.write_text(json.dumps({"of": "x", "counts": {"to fetch": 20_000}}))
    assert read(folder) == ["00000", "00001"]


def test_a_fetch_none_of_whose_shards_is_whole_is_refused(fill: Callable[..., Path]) -> None:
    """Catches: a folder without stats that is taken for one that was published so."""
    folder = fill([0, 1], without_stats=[0, 1])
    record(folder, 2)
    with pytest.raises(InputError, match="has filled 0 of 2 shards"):
        read(folder)
    with pytest.raises(InputError, match="none of its shards is whole yet"):
        read(folder, allow_partial=True)


def test_a_fetch_that_has_not_begun_is_refused(tmp_path: Path) -> None:
    record(tmp_path, 3)
    with pytest.raises(InputError, match=r"pairs\.path: .*`i2e fetch` has filled 0 of 3 shards"):
        read(tmp_path)


@pytest.mark.parametrize("form", ["parquet", "webdataset"], indirect=True)
def test_who_names_a_shard_means_it(form: str, fill: Callable[..., Path]) -> None:
    folder = fill([0, 1], without_stats=[1])
    record(folder, 7)
    suffix = {"parquet": "parquet", "webdataset": "tar"}[form]
    assert read(folder / f"00001.{suffix}") == ["00001"]


@pytest.mark.parametrize("form", ["files"], indirect=True)
def test_facts_of_a_shard_without_images_are_facts(fill: Callable[..., Path]) -> None:
    """Catches: the Parquet file of a shard none of whose images could be had, taken for a table without images."""
    folder = fill([0, 1])
    for path in (folder / "00001").iterdir():
        path.unlink()
    assert [s.format for s in listed(PairsConfig(path=(str(folder),)))] == ["files"]


def test_folders_named_by_numbers_are_no_shards(tmp_path: Path) -> None:
    """Years, for one."""
    for year in ("2020", "2021"):
        (tmp_path / year).mkdir()
        (tmp_path / year / "a.jpg").write_bytes(b"\xff\xd8\xff")
        (tmp_path / year / "a.txt").write_text("a")
    pq.write_table(pa.table({"caption": ["a"], "jpg": [b"\xff\xd8\xff"]}), tmp_path / "2022.parquet")
    assert [Path(s.path).name for s in listed(PairsConfig(path=(str(tmp_path),)))] == ["2022.parquet"]
