"""What a source file is, and what is said of one that is something else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.wikidata.lines import line
from wikidata.source_files import (
    DUMP,
    Read,
    Source,
    SourceError,
    blocks,
    doubt,
    fault,
    invalid,
    lines,
    lines_of_pieces,
    pieces,
    recognised,
    unclosed,
)

TEXT = b"[\n" + b",\n".join(line(n, f"thing {n}") for n in range(1, 400)) + b"\n]\n"


def zstd(text: bytes) -> bytes:
    return bytes(pa.compress(text, codec="zstd", asbytes=True))


def archive(text: bytes) -> bytes:
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as tar:
        entry = tarfile.TarInfo("dump.json")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return out.getvalue()


def zipped(text: bytes) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w") as packed:
        packed.writestr("dump.json", text)
    return out.getvalue()


PACKS: dict[str, Any] = {"bz2": bz2.compress, "gz": gzip.compress, "xz": lzma.compress, "zst": zstd}


def written(folder: Path, content: bytes, name: str = "dump.json") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def of(path: str) -> Source:
    (source,) = recognised([path], DUMP)
    return source


@pytest.mark.parametrize("name", ["dump.json", "dump.json.bz2", "dump.json.gz", "dump"])
@pytest.mark.parametrize("pack", [None, *PACKS])
@pytest.mark.parametrize("streams", [1, 3])
def test_bytes_say_how_a_file_is_packed_and_its_name_says_nothing(
    tmp_path: Path, pack: str | None, name: str, streams: int
) -> None:
    parts = [TEXT[len(TEXT) * n // streams : len(TEXT) * (n + 1) // streams] for n in range(streams)]
    source = of(written(tmp_path, b"".join(PACKS[pack](p) if pack else p for p in parts), name))
    assert source.compression == pack
    assert b"".join(blocks(source, size=1000)) == TEXT
    assert source.begins.startswith("[\n{")
    (numbers,) = pa.table({"id": [0]}).to_batches()
    read = [row for b in lines([numbers], [source]) for row in b.column("value").to_pylist()]
    assert read == TEXT.removesuffix(b"\n").split(b"\n")


ODD_TEXTS = (
    b"[\n{1},\n{22}\n]\n",
    b"\xef\xbb\xbf[\r\n{1},\r\n]\r\n",
    b"\n\n{1}\n\n\n{22}",
    b"{" + b"1" * 40 + b"}\n{2}\n{" + b"3" * 25 + b"}",
    b"one line",
    b"\n",
)
"""With a byte order mark, blank lines, lines longer than a piece, no end of the last line."""


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_however_a_plain_file_is_cut_each_line_is_in_one_piece(tmp_path: Path, text: bytes) -> None:
    """Catches: a line that begins where a piece does is read twice, or by neither."""
    source = Source(written(tmp_path, text), None, len(text))
    wanted = text.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    for length in range(1, len(text) + 2):
        cut = pieces([source], length)
        (numbers,) = pa.table({"id": range(len(cut))}).to_batches()
        for size in (3, 7, 1000):
            batches = lines_of_pieces([numbers], cut, size=size)
            assert [row for b in batches for row in b.column("value").to_pylist()] == wanted, (length, size)


def test_a_plain_file_that_is_gone_is_named(tmp_path: Path) -> None:
    cut = pieces([Source(str(tmp_path / "gone.json"), None, 9)], 4)
    (numbers,) = pa.table({"id": range(len(cut))}).to_batches()
    with pytest.raises(SourceError, match=r"gone\.json cannot be read"):
        list(lines_of_pieces([numbers], cut))
    assert list(lines_of_pieces([numbers], cut, partial=True)) == []


@pytest.mark.parametrize(
    ("name", "pack", "splittable"),
    [
        ("d.json", None, True),
        ("d.json.bz2", "bz2", True),
        ("d.json", "bz2", False),
        ("d.json.bz2", None, False),
        ("d.json.gz", "gz", False),
        ("_d.json", None, False),
        ("10:30.json", None, False),
        (".d.json.bz2", "bz2", False),
    ],
)
def test_spark_cuts_what_hadoop_sees_as_it_is(name: str, pack: str | None, splittable: bool) -> None:
    assert Source(f"/a/{name}", pack, 1).splittable is splittable


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>404", "is an HTML page"),
        (b"\n <!DOCTYPE html><title>503", "is an HTML page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><mediawiki>", "is XML"),
        (b"<http://www.wikidata.org/entity/Q1> <a> <b> .", "is RDF"),
        (b"@prefix wd: <http://www.wikidata.org/entity/> .", "is RDF"),
        (b"# A dump\n# of 2026\nPREFIX wd: <http://www.wikidata.org/entity/>\nwd:Q1 a wd:x .", "is RDF"),
        (b"-- MySQL dump 10.19  Distrib 10.3.38-MariaDB\n--\nDROP TABLE IF EXISTS `x`;", "is an SQL dump"),
        (b"/*!40101 SET NAMES binary*/;\n", "is an SQL dump"),
        (b"INSERT INTO `wb_items_per_site` VALUES (1,2);\n", "is an SQL dump"),
        (b"Not Found\n", "is no JSON, it begins with 'Not Found'"),
        (b"qid,number\nQ1,3\n", "is no JSON"),
        (b"Q1\tUniverse\n" * 9, "is no JSON"),
        (zipped(TEXT), "is a zip archive"),
        (archive(TEXT), "is a tar archive"),
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7z archive"),
        (b"Rar!\x1a\x07\x01\x00", "is a rar archive"),
        (b"\x04\x22\x4d\x18\x60\x40", "is compressed with lz4"),
        (b"PAR1....", "is a Parquet file"),
        ("[\n{".encode("utf-16"), "is text in UTF-16"),
        ('[\n{"type"'.encode("utf-16-le"), "is text in UTF-16"),
        ('[\n{"type"'.encode("utf-16-be"), "is text in UTF-16"),
        ("[\n{".encode("utf-32"), "is text in UTF-32"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (gzip.compress(TEXT), ""),
        (b"\x00\x00\x02\x03", "is binary"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("pack", [None, *PACKS])
def test_what_is_no_dump_is_named_with_the_remedy(tmp_path: Path, content: bytes, said: str, pack: str | None) -> None:
    """Catches: a page of the server under the dump's name makes a knowledge base without entities."""
    path = written(tmp_path, PACKS[pack](content) if pack else content)
    if not said:  # packed once it is read, packed twice it is not
        said = "gz again" if pack else ""
    if not said or (pack and not content):
        assert of(path).compression
        return
    with pytest.raises(
        SourceError, match=f"{path} {'is ' if 'again' in said else ''}{said}.*Wanted is a Wikidata JSON dump"
    ) as error:
        recognised([path], DUMP)
    assert pack is None or f"(within {pack})" in str(error.value)


def test_empty_files_beside_others_are_passed_over(tmp_path: Path) -> None:
    paths = [written(tmp_path, b"", "a"), written(tmp_path, TEXT, "b")]
    assert [s.path for s in recognised(paths, DUMP)] == paths[1:]
    with pytest.raises(SourceError, match="the 2 files are empty"):
        recognised([paths[0]] * 2, DUMP)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        recognised([str(tmp_path / "none")], DUMP)


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("harm", ["cut", "damaged"])
def test_a_packed_file_that_is_cut_or_damaged_is_an_error_unless_a_part_is_meant(
    tmp_path: Path, pack: str, harm: str
) -> None:
    whole = PACKS[pack](TEXT) + PACKS[pack](TEXT)
    place = len(whole) * 3 // 4
    harmed = whole[:place] if harm == "cut" else whole[:place] + bytes(64) + whole[place + 64 :]
    source = of(written(tmp_path, harmed))
    with pytest.raises(SourceError, match=r"dump\.json is damaged or cut short \(.+\): download the file again"):
        list(blocks(source))
    taken = b"".join(blocks(source, partial=True, size=1 << 10))
    assert taken
    assert (TEXT + TEXT).startswith(taken[: len(TEXT)])
    assert b"".join(blocks(of(written(tmp_path, whole)), partial=True)) == TEXT + TEXT


@pytest.mark.parametrize("pack", ["bz2", "gz", "xz"])
def test_what_stands_behind_a_packed_file_is_said(tmp_path: Path, pack: str) -> None:
    """Catches: "incorrect header check" of a file whose streams are whole."""
    garbage = of(written(tmp_path, PACKS[pack](TEXT) + b"trailing garbage\n"))
    with pytest.raises(SourceError, match="behind a whole stream stands something else"):
        list(blocks(garbage))
    assert b"".join(blocks(garbage, partial=True)) == TEXT
    assert b"".join(blocks(of(written(tmp_path, PACKS[pack](TEXT) + bytes(9000))))) == TEXT


def test_a_dump_that_begins_with_one_damaged_line_is_read(tmp_path: Path) -> None:
    assert of(written(tmp_path, b"junk\n" + TEXT)).size
    assert of(written(tmp_path, b'[{"type":"item", "id":"Q1", "labels":' + b" " * (70 << 10))).size


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([TEXT], None),
        ([TEXT.removesuffix(b"]\n")], "the end is missing"),
        ([TEXT[: len(TEXT) // 2]], "the end is missing"),
        ([TEXT.removeprefix(b"[\n")], "the beginning is missing"),
        ([TEXT[2:-2]], None),
        ([b"\xef\xbb\xbf\n" + TEXT + b"\r\n \n"], None),
        ([TEXT + bytes(99)], None),
        ([TEXT.replace(b"[\n{", b"[{").replace(b"}\n]", b"}]")], None),
        ([TEXT[:9000], TEXT[9000:]], None),
        ([TEXT[:9000], TEXT[9000:20000]], "the end is missing"),
        ([line(1, "x" * 200_000), line(2, "y" * 200_000) + b"\n]"], "the beginning is missing"),
        ([TEXT[:9000], bz2.compress(TEXT[9000:20000])], None),
        ([gzip.compress(TEXT[:9000])], None),
    ],
)
def test_the_end_of_a_plain_dump_is_looked_at_first(tmp_path: Path, parts: list[bytes], said: str | None) -> None:
    """Catches: a cut file that is read for hours until its end is missed."""
    sources = recognised([written(tmp_path, part, f"{n}.json") for n, part in enumerate(parts)], DUMP)
    found = unclosed(sources)
    assert (found is None) == (said is None)
    assert said is None or said in str(found)


SOURCES = [Source("/d.json", None, 1, "begins")]


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (Read(10, {"bracket": 2, "not_json": 3, "property": 90, "category": 50}, 1, 1), None),
        (Read(10, {}, 0, 0), None),
        (Read(0, {"bracket": 2}, 1, 1), "none of its 0 lines .* begins with 'begins'"),
        (Read(0, {"category": 7}, 0, 0), r"none of its 7 lines is an item that is kept \(7 category\)"),
        (Read(0, {"lexeme": 49, "bracket": 2}, 1, 1), r"none of its 49 lines is an item that is kept \(49 lexeme\)"),
        (Read(10, {"not_json": 9, "bad_id": 2, "not_utf8": 1}, 0, 0), "12 of its 22 lines are no entities"),
        (Read(432, {"not_json": 185}, 1, 1), "185 of its 617 lines are no entities"),
        (Read(90, {"not_json": 5, "property": 9}, 1, 1), None),
        (Read(10, {"bracket": 1}, 1, 0), "does not close"),
        (Read(10, {"bracket": 1}, 0, 1), "the beginning is missing"),
    ],
)
def test_what_can_hardly_be_a_whole_dump_is_doubted(read: Read, said: str | None) -> None:
    found = doubt(read, SOURCES)
    if said is None:
        assert found is None
    else:
        with pytest.raises(SourceError, match=said):
            raise SourceError(found)


def test_a_few_damaged_lines_are_counted() -> None:
    assert invalid(Read(10, {"bracket": 2, "property": 1}, 1, 1)) is None
    few = Read(97, {"not_json": 2, "bad_shape": 1, "bracket": 2, "property": 3}, 1, 1)
    assert invalid(few) == "3 of its 103 lines are no entities (2 not_json, 1 bad_shape)"


def test_a_job_says_what_is_wrong_with_a_source() -> None:
    assert fault(ValueError("x\n  wikidata.source_files.SourceError: a.gz is damaged\n at java")) == "a.gz is damaged"
    said = (
        "[FAILED_READ_FILE] Encountered error while reading file file:///a%20b/c.bz2.  SQLSTATE\n"
        "Caused by: java.io.IOException: crc error"
    )
    assert fault(ValueError(said)) == "/a b/c.bz2 is damaged or cut short (crc error): download the file again"
    assert fault(ValueError("something else")) is None


def test_a_long_window_of_zstd_is_said(tmp_path: Path) -> None:
    """Catches: "damaged or cut short" of a file that is whole."""
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3]) + b"\x01\x00\x00"  # RFC 8878: a window of 2 GB
    with pytest.raises(SourceError, match=r"was packed with a long window \(zstd --long\): unpack it first"):
        list(blocks(of(written(tmp_path, frame))))
