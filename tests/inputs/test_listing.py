"""Which of the files that lie at a pattern are pairs, of which format; and what is said of the rest."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.listing import listed
from i2e_pipeline.inputs.look import look
from tests.inputs.test_faults import JPEG, read


def put(path: Path, content: bytes = b"something") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def table(path: Path, paths: list[str] | None = None) -> Path:
    """Two pairs, with the images in it or in files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = {"path": paths} if paths else {"jpg": [JPEG, JPEG + b"2"]}
    pq.write_table(pa.table({"caption": ["one", "two"], **images}), path)
    return path


def tar(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in {"a.jpg": JPEG, "a.txt": b"one"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def found(path: Path, **settings: Any) -> list[tuple[str, str]]:
    return [(Path(s.path).name, s.format) for s in listed(PairsConfig(path=(str(path),), **settings))]


# Facts and tables


def test_a_table_called_like_a_folder_or_a_tar_beside_it_is_a_table(tmp_path: Path) -> None:
    """Catches: a split's table of paths, dropped as facts of img2dataset's."""
    for split in ("train", "test"):
        names = [f"{split}/{n}.jpg" for n in range(2)]
        for name in names:
            put(tmp_path / "hf" / name, JPEG)
        table(tmp_path / "hf" / f"{split}.parquet", names)
    assert found(tmp_path / "hf", image_column="path") == [("test.parquet", "parquet"), ("train.parquet", "parquet")]
    with pytest.raises(
        InputError, match=r"test\.parquet is called like .* has no column 'jpg' \(pairs\.image_column\)"
    ):
        found(tmp_path / "hf")
    table(tmp_path / "both" / "data.parquet")
    tar(tmp_path / "both" / "data.tar")
    assert found(tmp_path / "both") == [("data.parquet", "parquet"), ("data.tar", "webdataset")]


def test_facts_without_stats_are_known_by_their_columns(tmp_path: Path) -> None:
    tar(tmp_path / "data.tar")
    pq.write_table(
        pa.table({"url": ["http://x"], "caption": ["one"], "status": ["success"]}), tmp_path / "data.parquet"
    )
    assert found(tmp_path) == [("data.tar", "webdataset")]


# What is passed over


def mixed(folder: Path, *kinds: str) -> Path:
    for kind in kinds:
        match kind:
            case "tar":
                tar(folder / "a.tar")
            case "table":
                table(folder / "t.parquet")
            case "paths":
                table(folder / "t.parquet", ["0.jpg", "1.jpg"])
            case "csv":
                put(folder / "t.csv", b"jpg,caption\n0.jpg,one\n")
            case "images":
                for n in range(3):
                    put(folder / f"{n}.jpg", JPEG)
            case "images with texts":
                for n in range(3):
                    put(folder / f"{n}.jpg", JPEG)
                    put(folder / f"{n}.txt")
            case name:
                put(folder / name)
    return folder


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (("tar", "images"), ["3 images without a text, such as ", "Read is each tar of samples (WebDataset)"]),
        (("table", "images"), ["3 images without a text, such as "]),
        (("table", "images with texts"), ["3 images with a text beside (pairs.format=files reads these), such as "]),
        (("csv", "images with texts"), ["3 images with a text beside"]),
        (
            ("table", "a.arrow", "b.arrow", "c.tar.gz", "noname"),
            ["2 .arrow files, such as ", "/a.arrow", "1 .tar.gz files", "1 files whose names have no ending"],
        ),
        (("images with texts", "x.zip", "x.doc"), ["1 .zip files", "1 .doc files"]),
    ],
)
def test_what_is_passed_over_is_said_once(
    kinds: tuple[str, ...], says: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert listed(PairsConfig(path=(str(mixed(tmp_path, *kinds)),)))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith(f"pairs.path: {tmp_path}: passed over are ")
    for part in says:
        assert part in warning


@pytest.mark.parametrize(
    "kinds",
    [
        ("paths", "images"), ("csv", "images"), ("images with texts", "README.md", "LICENSE"),
        ("tar", "00000_stats.json", "a.idx", "datasheet.md"), ("table",),
    ],
)  # fmt: skip
def test_what_belongs_to_what_is_read_is_not_said(
    kinds: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {"image_column": "path"} if "paths" in kinds else {}
    assert found(mixed(tmp_path, *kinds), **chosen)
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == []


# Formats that names do not tell


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("name", ["c.txt", "c", "part-00000", "c.data"])
@pytest.mark.parametrize("glob", [False, True])
def test_a_table_whose_name_does_not_say_it_is_read_as_told(
    name: str, delimiter: str, glob: bool, tmp_path: Path
) -> None:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["jpg", "caption"], ["0.jpg", "one"], ["1.jpg", "a, b, c"]])
    put(tmp_path / "in" / name, out.getvalue().encode())
    put(tmp_path / "in" / "README", b"not a table, and named by the glob")
    for n in range(2):
        put(tmp_path / "in" / f"{n}.jpg", JPEG + bytes([n]))
    rows, images, _ = read(tmp_path / "in" / ("*" if glob else name), format="csv")
    assert [row["caption"] for row in rows] == ["one", "a, b, c"]
    assert images == [JPEG + bytes([n]) for n in range(2)]


def test_json_lines_in_a_json_file_are_read_as_told(tmp_path: Path) -> None:
    rows = [{"jpg": f"{n}.jpg", "caption": f"row {n}"} for n in range(2)]
    path = put(tmp_path / "in" / "pairs.json", "\n".join(map(json.dumps, rows)).encode())
    for n in range(2):
        put(tmp_path / "in" / f"{n}.jpg", JPEG)
    assert [row["caption"] for row in read(path, format="jsonl")[0]] == ["row 0", "row 1"]
    assert found(tmp_path / "in" / "*.json", format="jsonl") == [("pairs.json", "jsonl")]
    with pytest.raises(InputError, match=r"pairs\.json is JSON: write an object a line"):
        found(path)


def test_of_a_folder_the_format_takes_only_what_names_tell(tmp_path: Path) -> None:
    """Catches: notes beside tables that are taken for one."""
    put(tmp_path / "t.csv", b"jpg,caption\n")
    put(tmp_path / "notes.txt")
    assert found(tmp_path, format="csv") == [("t.csv", "csv")]
    (tmp_path / "t.csv").unlink()
    with pytest.raises(InputError, match=r"nothing of the format csv \(pairs\.format\) among 1 files"):
        found(tmp_path, format="csv")


def test_what_is_certainly_not_of_the_format_is_not_taken_for_it(tmp_path: Path) -> None:
    shutil.copy(table(tmp_path / "t.parquet"), tmp_path / "bare")
    for name in ("bare", "x.zip", "x.json"):
        if name != "bare":
            put(tmp_path / name)
        with pytest.raises(InputError, match="nothing of the format csv"):
            found(tmp_path / name, format="csv")
    put(tmp_path / "x.tar.gz")
    with pytest.raises(
        InputError, match=r"nothing of the format webdataset .*x\.tar\.gz is a compressed tar: unpack it"
    ):
        found(tmp_path / "x.tar.gz", format="webdataset")
    assert found(tmp_path / "bare", format="parquet") == [("bare", "parquet")]


# Names


@pytest.mark.parametrize("glob", ["[z-a].parquet", "[].parquet", "[!]/*", "**/[z-a]*"])
def test_brackets_that_stand_for_nothing_are_refused_with_the_pattern(glob: str, tmp_path: Path) -> None:
    table(tmp_path / "a.parquet")
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="brackets stand for no character") as refused:
        found(tmp_path / glob)
    assert glob in str(refused.value)


@pytest.mark.parametrize("named", ["", "*", "sub/*.parquet", "**/*.parquet"])
def test_a_name_that_is_no_text_is_refused_with_its_folder(named: str, tmp_path: Path) -> None:
    """Catches: a UnicodeDecodeError that names nothing."""
    table(tmp_path / "sub" / "a.parquet")
    Path(os.fsdecode(os.fsencode(tmp_path / "sub") + b"/caf\xe9.jpg")).write_bytes(JPEG)
    with pytest.raises(InputError, match=r"no UTF-8 \(.*caf\\xe9\.jpg.*rename it") as refused:
        found(tmp_path / named)
    assert str(tmp_path) in str(refused.value)


def test_a_table_without_a_header_is_said(tmp_path: Path) -> None:
    """Catches: CC3M's own form, whose first row is taken for names."""
    (tmp_path / "train.tsv").write_text("a lion\thttp://example.org/1.jpg\na tent\thttp://example.org/2.jpg\n")
    pairs = PairsConfig(path=f"{tmp_path}/train.tsv", image_column="http://example.org/1.jpg")
    (source,) = listed(pairs)
    with pytest.raises(InputError, match=r"has no column 'caption'.*a row and no header: put one before it"):
        look(source, pairs)
