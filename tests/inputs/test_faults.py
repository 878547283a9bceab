"""Inputs as people have them, faulty in one way each: read, or refused at the plan with file, column and remedy."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.files import RecordError
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.core.stored_image import NoImage, StoredImage
from i2e_pipeline.engine.units import InputError, Units
from i2e_pipeline.inputs import columns, formats, img2dataset, listing, look
from i2e_pipeline.inputs.named_files import NamedFiles
from i2e_pipeline.inputs.shard import Shard, ShardError

JPEG = b"\xff\xd8\xff\xe0 not really, but it begins like one"


def write(path: Path, table: pa.Table | None = None, **instead: Any) -> Path:
    """Three good pairs, but for these columns; None leaves one out."""
    rows: dict[str, Any] = {
        "key": ["a", "b", "c"],
        "url": ["http://x/1", "http://x/2", "http://x/3"],
        "caption": ["one", "two", "three"],
        "jpg": [JPEG + bytes([n]) for n in range(3)],
    }
    rows = {name: values for name, values in (rows | instead).items() if values is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if table is not None else pa.table(rows), path)
    return path


def read(path: Path | str, **settings: Any) -> tuple[list[dict[str, Any]], list[StoredImage], dict[str, int]]:
    """Texts and images of all rows, as the stages get them, and what was mended."""
    pairs = PairsConfig(path=str(path), **settings)
    registry = Units(str(Path(path).parent / f"out-{os.urandom(4).hex()}"))
    rows: list[dict[str, Any]] = []
    stored: list[StoredImage] = []
    mended: dict[str, int] = {}
    for unit in registry.plan(pairs):
        for file in unit.files:
            shard = registry.shard(file, pairs)
            names = [c for c in (pairs.key_column, pairs.url_column, pairs.text_column) if c]
            for _, batch in formats.columns(shard, names):
                texts, wrong = formats.texts(shard, batch)
                rows += texts.to_pylist()
                mended |= wrong
            with formats.images(shard) as images:
                stored += images.read(range(images.rows))
    return rows, stored, mended


# Texts


@pytest.mark.parametrize("column", ["key", "url", "caption"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_text_that_is_no_utf8_is_made_valid_at_the_door(column: str, kind: pa.DataType, tmp_path: Path) -> None:
    """Catches: a dataset that polars, DuckDB and pyarrow refuse, made of one wrong byte."""
    large = kind in (pa.large_string(), pa.large_binary())
    raw = pa.array([b"good", "für".encode("latin-1"), None], pa.large_binary() if large else pa.binary())
    # A view, since no cast makes such text.
    values = pa.Array.from_buffers(kind, 3, raw.buffers())
    rows, _, mended = read(write(tmp_path / "a.parquet", **{column: values}))
    assert [row[column] for row in rows] == ["good", "f\ufffdr", None]
    assert mended == {column: 1}


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.list_(pa.string_view()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string_view(), 2),
        pa.list_view(pa.string()),
        pa.large_list_view(pa.string_view()),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ],
    ids=str,
)
def test_lists_of_captions_are_read_whatever_their_layout(kind: pa.DataType) -> None:
    plain = pa.array([["a", "b"], None, [" ", "c"]], pa.list_(pa.string()))
    lists = plain.cast(kind) if "dictionary" in str(kind) else pa.array(plain.to_pylist(), kind)
    assert columns.text(lists) == (pa.array(["a", None, "c"]), 0)
    assert columns.text(lists, "join") == (pa.array(["a b", None, "c"]), 0)


def test_what_was_mended_is_counted_in_the_record(tmp_path: Path, world: Path, whole: Path, spark: Any) -> None:
    from i2e_pipeline.stages import pipeline
    from tests.chain import settings

    table = pq.read_table(world / "pairs" / "00000.parquet")
    captions = table["caption"].cast(pa.binary()).to_pylist()
    captions[3] = b"Paris \xff\xfe at night"
    broken = pa.array(captions, pa.binary())
    at = table.column_names.index("caption")
    write(tmp_path / "pairs" / "a.parquet", table.set_column(at, "caption", broken))
    config = settings(world, tmp_path / "out", f"pairs.path={tmp_path}/pairs")
    made = pipeline(config, lambda: spark)
    made.run(["knowledge_base", "surfaces", "pairs"])
    (commit,) = made.tables.commits("pairs").values()
    assert commit.facts["notes"] == {"caption is no UTF-8, mended": 1}
    texts = made.tables.load("texts", [commit], ["text"]).column("text").to_pylist()
    assert any("Paris" in text and "\ufffd" in text for text in texts)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pa.array(["one", None, "three"]).dictionary_encode(), ["one", None, "three"]),
        (pa.array([1, None, 3]), ["1", None, "3"]),
        (pa.array([[" ", "one"], [], None], pa.list_(pa.string())), ["one", "", None]),
        (pa.array([["one"], ["two", "too"], ["three"]], pa.large_list(pa.large_string())), ["one", "two", "three"]),
        (pa.array([None, None, None]), [None, None, None]),
    ],
    ids=["dictionary", "numbers", "lists", "large lists", "nothing"],
)
def test_what_can_be_text_is_cast(values: pa.Array, said: list[str | None], tmp_path: Path) -> None:
    rows, _, _ = read(write(tmp_path / "a.parquet", caption=values))
    assert [row["caption"] for row in rows] == said


def test_captions_in_lists_are_joined_where_that_is_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", caption=[["a cat", "", "on a mat"], [], None])
    rows, _, _ = read(path, captions="join")
    assert [row["caption"] for row in rows] == ["a cat on a mat", "", None]


# Columns


@pytest.mark.parametrize(
    ("instead", "settings", "says"),
    [
        ({"caption": [{"en": "x"}] * 3}, {}, r"a\.parquet: column 'caption' \(pairs\.text_column\) is struct<en"),
        ({"url": [["x"]] * 3}, {}, r"column 'url' \(pairs\.url_column\) is list<"),
        ({"jpg": [[b"x"]] * 3}, {}, r"column 'jpg' \(pairs\.image_column\) is list<.*bytes, Hugging Face's struct"),
        ({"jpg": [1, 2, 3]}, {}, r"column 'jpg' \(pairs\.image_column\) is int64"),
        ({"jpg": None}, {}, r"no column 'jpg' .*; it has key, url, caption\. A table of addresses"),
        ({"caption": None}, {}, r"no column 'caption' \(pairs\.text_column\); it has key, url, jpg"),
        ({}, {"key_column": "id"}, r"no column 'id' \(pairs\.key_column\)"),
        ({}, {"url_column": "source"}, r"no column 'source' \(pairs\.url_column\)"),
        ({"jpg": ["http://x/1.jpg"] * 3}, {}, r"addresses of the web; fetch them first"),
        ({"jpg": [b"https://x/1.jpg"] * 3}, {}, r"addresses of the web as bytes"),
        ({"jpg": ["/9j/4AAQSkZJRgABAQ" * 9] * 3}, {}, r"this is base64: decode it into bytes first$"),
        ({"jpg": ["iVBORw0KGgo" + "A" * 25_000] * 3}, {}, r"this is base64: decode it into bytes first$"),
        ({"jpg": ["x" * 25_000] * 3}, {}, r"holds no image in its first 3 rows that have one: x{100,200}….{0,200}$"),
        ({"jpg": [b"/9j/4AAQSkZJRgABAQ" * 9] * 3}, {}, r"this is base64"),
    ],
)  # fmt: skip
def test_a_column_that_cannot_be_read_is_refused_at_the_plan(
    instead: dict[str, Any], settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """Catches: a good message after the dump, NER and linking, or none of file and column."""
    path = write(tmp_path / "a.parquet", **instead)
    with pytest.raises(InputError, match=says):
        read(path, **settings)


def test_a_name_that_two_columns_have_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array([JPEG])], ["caption", "caption", "jpg"])
    with pytest.raises(InputError, match=r"2 columns named 'caption' \(pairs\.text_column\)"):
        read(write(tmp_path / "a.parquet", table))


@pytest.mark.parametrize("missing", ["key", "url"])
def test_key_and_url_may_be_missing(missing: str, tmp_path: Path) -> None:
    rows, stored, _ = read(write(tmp_path / "a.parquet", **{missing: None}))
    assert {row[missing] for row in rows} == {None}
    assert len(stored) == 3


def test_images_that_are_all_null_are_rows_without_an_image(tmp_path: Path) -> None:
    _, stored, _ = read(write(tmp_path / "a.parquet", jpg=pa.nulls(3)))
    assert stored == [None, None, None]


# Shards without rows


def test_empty_shards_count_as_read_and_make_no_unit(tmp_path: Path) -> None:
    """Catches: numPartitions must be positive; two empty files refused as the same rows."""
    write(tmp_path / "in" / "a.parquet")
    empty = pq.read_schema(tmp_path / "in" / "a.parquet").empty_table()
    for name in ("b", "c"):
        write(tmp_path / "in" / f"{name}.parquet", empty)
    registry = Units(str(tmp_path / "out"))
    assert len(registry.plan(PairsConfig(path=str(tmp_path / "in")))) == 1
    assert len(registry.plan(PairsConfig(path=str(tmp_path / "in")))) == 1
    (tmp_path / "in" / "a.parquet").unlink()
    with pytest.raises(InputError, match=r"no row in any of 2 files, the first of which is .*b\.parquet"):
        Units(str(tmp_path / "other")).plan(PairsConfig(path=str(tmp_path / "in")))


# Paths in tables


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "/etc/passwd", "file:///etc/passwd", "in/../../secret.jpg", "link.jpg", "folder/link.jpg",
     "s3://bucket/secret.jpg", "http://169.254.169.254/latest", "~/.ssh/id_rsa", "a\0b", "C:\\secret.jpg"],
)  # fmt: skip
def test_no_path_of_a_table_leads_out_of_its_folder(name: str, tmp_path: Path) -> None:
    """Catches: a table from outside that reads a worker's files into a published dataset."""
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    folder = tmp_path / "tables"
    (folder / "folder").mkdir(parents=True)
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "folder" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with NamedFiles(Shard(str(folder / "a.parquet"))) as named:
        (stored,) = named.read([name])
    assert isinstance(stored, NoImage)
    assert stored.reason is Reason.MISSING_IMAGE


def test_paths_count_from_the_root_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos" / "a b").mkdir(parents=True)
    (tmp_path / "photos" / "a b" / "é%20#.jpg").write_bytes(JPEG)
    whole = tmp_path / "photos" / "a b" / "é%20#.jpg"
    path = write(tmp_path / "tables" / "a.parquet", jpg=["a b/é%20#.jpg", str(whole), "none.jpg"])
    _, stored, _ = read(path, image_root=str(tmp_path / "photos"))
    assert stored[:2] == [JPEG, JPEG]
    assert isinstance(stored[2], NoImage)
    assert "none.jpg" in stored[2].detail
    with pytest.raises(InputError, match=r"Paths count from the table's folder, or from pairs\.image_root"):
        read(path)


# Tars


def tar(path: Path, members: dict[str, bytes], **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **how) as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


SAMPLES = {f"{n}.{end}": c for n in range(3) for end, c in (("jpg", JPEG + bytes([n])), ("txt", f"text {n}".encode()))}


@pytest.mark.parametrize("left", [600, 1500, 2000, 3100, 5000])
def test_a_tar_that_is_cut_off_is_refused(left: int, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", SAMPLES)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"a\.tar (is cut off|has no end|is no whole tar)"):
        read(path)


def test_a_damaged_or_packed_tar_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", SAMPLES)
    content = bytearray(path.read_bytes())
    content[1024 + 150] ^= 0xFF  # in a header's checksum
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tar (is no whole tar|has no end)"):
        read(path)
    path.write_bytes(gzip.compress(tar(tmp_path / "b.tar", SAMPLES).read_bytes()))
    with pytest.raises(InputError, match=r"It is compressed: unpack it"):
        read(path)


def test_members_that_are_no_sample_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as made:
        for name, content in {
            "../../etc/x.jpg": JPEG,
            "../../etc/x.txt": b"escapes",
            **SAMPLES,
            "README": b"?",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("9.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    rows, stored, _ = read(path)
    assert [row["caption"] for row in rows] == ["escapes", "text 0", "text 1", "text 2"]
    assert len(stored) == 4
    assert not (tmp_path.parent.parent / "etc").exists()


def test_samples_may_lack_a_part(tmp_path: Path) -> None:
    members = {
        "a.txt": b"no image",
        "b.jpg": JPEG,
        "c.json": b'{"caption": "c"',
        "c.jpg": JPEG,
        "d.txt": b"\xff",
        "d.png": b"x",
    }
    rows, stored, mended = read(tar(tmp_path / "a.tar", members))
    assert [(row["key"], row["caption"]) for row in rows] == [
        ("a", "no image"),
        ("b", None),
        ("c", None),
        ("d", "\ufffd"),
    ]
    assert stored == [None, JPEG, JPEG, b"x"]
    assert mended == {"caption": 1}


# Tables


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "jpg,caption\n1.jpg,x\n2.jpg,x,y\n", r"a\.csv .*Expected 2 columns, got 3"),
        ("a.jsonl", '{"caption": "x", "jpg": "1.jpg"}\n{"caption"\n', r"a\.jsonl, line 2: no JSON"),
        ("a.jsonl", '[1, 2]\n', r"a\.jsonl, line 1: an object is wanted"),
        ("a.csv", "address,caption\nhttp://x/1.jpg,x\n", r"no column 'jpg'"),
        ("a.csv", "url,caption\nhttp://x/1.jpg,x\n", r"A table of addresses without images: fetch"),
        ("a.csv.gz", "no gzip", r"a\.csv\.gz is not whole gzip|not a readable table"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_refused_with_its_line(
    name: str, content: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "captions"),
    [
        ("a.tsv", 'jpg\tcaption\n1\t"Lion King" poster\n1\t"one\n1\tfish\n1\ttwo" here\n1\t"three\n',
         ['"Lion King" poster', '"one', "fish", 'two" here', '"three']),
        ("a.tsv", '"jpg"\t"caption"\n"1"\t"say ""hi"", ""you"""\n1\t"say \\"hi\\""\n1\t""\n',
         ['say "hi", "you"', 'say "hi"', ""]),
        ("a.tsv", 'jpg\tcaption\n1\t"two\nlines"\n1\t"a ""tab\t"""\n', ["two\nlines", 'a "tab\t"']),
        ("a.csv", 'jpg,caption\n1,"He said \\"hi\\" there"\n1,"a \\"b, c\\" d"\n1,"pipe 5\\""\n',
         ['He said "hi" there', 'a "b, c" d', 'pipe 5"']),
        ("a.csv", 'jpg,caption\n1,"C:\\lion\\"\n1,"two\nlines ""here"""\n1,5" pipe\n',
         ["C:\\lion\\", 'two\nlines "here"', '5" pipe']),
        ("a.csv", 'jpg,caption\n1,"Lion King" poster\n1,"a, b"\n', ["Lion King poster", "a, b"]),
    ],
    ids=["tabs without quoting", "tabs, cells quoted", "tabs, quoting needed", "Spark's escapes", "doubled", "stray"],
)  # fmt: skip
def test_quotation_marks_lose_no_rows(name: str, content: str, captions: list[str], tmp_path: Path) -> None:
    """Catches: two captions that begin with a quotation mark swallow the rows between."""
    (tmp_path / "1").write_bytes(JPEG)
    (tmp_path / name).write_text(content)
    rows, stored, _ = read(tmp_path / name)
    assert [row["caption"] for row in rows] == captions
    assert stored == [JPEG] * len(captions)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b'jpg,caption\n1,lion\n1,"open\n1,fish\n',
         r"a\.csv, line 3: a quotation mark opens a cell and is not closed"),
        ("a.csv", b'jpg,caption\n1,"open\n1,fish\n1,"last" one\n',
         r"a\.csv, line 2: a quotation mark stands where none may .*double"),
        ("a.csv", b'jpg,caption\n1,"' + b"x" * (17 << 20) + b'"\n', r"line 2: .* not closed for 16 MiB"),
        ("a.tsv", b'jpg\tcaption\n1\t"one\n1\ttwo\tthree\n', r"Row #3: Expected 2 columns, got 3.*: mend the row"),
        ("a.csv", "jpg,légende\n1,x\n".encode("latin-1"), r"columns' names, is no UTF-8: convert .*iconv -f LATIN1"),
        ("a.csv", "jpg,caption\n1,x\n".encode("utf-16"), r"a\.csv is UTF-16: convert it.*iconv -f UTF-16"),
        ("a.tsv", "jpg\tcaption\n1\tx\n".encode("utf-16-be"), r"a\.tsv is UTF-16"),
        ("a.jsonl", '{"jpg": "1"}\n'.encode("utf-16"), r"a\.jsonl is UTF-16"),
        ("a.csv", b"jpg;caption\n1;x\n", r"it has jpg;caption: is it split by ';'\?"),
        ("a.jsonl", b'{"caption": "x", "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n",
         r"line 1: no JSON \(it is nested"),
        ("a.jsonl", b'{"jpg": "1", "caption": {"en": "lion"}}\n', r"column 'caption' .* is map<.*text .* is wanted"),
        ("a.jsonl", b'{"jpg": "1", "caption": [["lion"]]}\n', r"column 'caption' .* is list<item: list<.* is wanted"),
        ("a.jsonl", b'{"jpg": "1", "caption": "x", "url": ["a"]}\n', r"column 'url' .* is list<.* is wanted"),
        ("a.jsonl", b'{"jpg": "/9j/4AAQSkZJRgABAQ", "caption": "x"}\n', r"this is base64: decode it into bytes first$"),
    ],
)  # fmt: skip
def test_a_table_in_another_writing_is_refused_with_the_remedy(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as refused:
        read(tmp_path / name)
    assert len(str(refused.value)) < 1_000


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_gzip_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    lines = b"".join(b'{"caption": "%d"}\n' % (n * n * 7919) for n in range(5000))
    packed = gzip.compress(lines)
    (tmp_path / name).write_bytes(packed[:-20] if damage == "cut" else packed[:200] + b"\0" * 4 + packed[204:])
    with pytest.raises(InputError, match=rf"{name} is not whole gzip .*: fetch it again"):
        read(tmp_path / name)


# JSON

BROKEN = {
    "half a character": (b'"lion \\ud83d"', "lion \ufffd", 1),
    "a wrong byte": (b'"f\xfcr"', "f\ufffdr", 1),
    "half of a list": (b'["\\udc80 lion", "x"]', "\ufffd lion", 1),
    "a whole one": (b'"\\ud83e\\udd81"', "\U0001f981", 0),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("form", ["lines", "tar"])
def test_json_whose_texts_are_broken_is_mended_and_counted(name: str, form: str, tmp_path: Path) -> None:
    stored, wanted, count = BROKEN[name]
    facts = b'{"caption": ' + stored + b', "\\ud83d": 1, "jpg": "1.jpg", "deep": {"a": "\\ud83d"}}'
    (tmp_path / "1.jpg").write_bytes(JPEG)
    if form == "tar":
        path = tar(tmp_path / "a.tar", {"1.jpg": JPEG, "1.json": facts, "2.jpg": JPEG, "2.txt": b"beside"})
    else:
        path = tmp_path / "a.jsonl"
        path.write_bytes(facts + b'\n{"caption": "beside", "jpg": "1.jpg"}\n')
    rows, kept, mended = read(path, where="deep is None or deep is not None", keep_columns=["deep"])
    assert [row["caption"] for row in rows] == [wanted, "beside"]
    assert kept == [JPEG, JPEG]
    assert mended == ({"caption": count} if count else {})


def test_a_json_path_with_half_a_character_names_no_file(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (tmp_path / "a.jsonl").write_text('{"jpg": "\\ud83d.jpg", "caption": "x"}\n{"jpg": "1.jpg", "caption": "y"}\n')
    _, (first, second), _ = read(tmp_path / "a.jsonl")
    assert isinstance(first, NoImage)
    assert second == JPEG


def test_json_that_is_nested_too_deep_is_as_other_broken_json(tmp_path: Path) -> None:
    deep = b'{"caption": "x", "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    path = tar(
        tmp_path / "a.tar", {"1.jpg": JPEG, "1.json": deep, "2.jpg": JPEG, "2.json": b'\xef\xbb\xbf{"caption": "y"}'}
    )
    rows, _, _ = read(path)
    assert [row["caption"] for row in rows] == [None, "y"]


@pytest.mark.parametrize("form", ["lines", "tar", "folder"])
def test_fields_that_only_later_samples_have_are_columns(form: str, tmp_path: Path) -> None:
    """Catches: a column that the first rows do not have is said to be in none."""
    facts = [
        b'{"caption": "x", "jpg": "000.jpg"' + (b', "license": "cc"' if n > 120 else b"") + b"}" for n in range(130)
    ]
    parts = {
        f"{n:03d}.{end}": part
        for n, fact in enumerate(facts)
        for end, part in (("jpg", JPEG + b"%d" % n), ("json", fact))
    }
    if form == "tar":
        path = tar(tmp_path / "a.tar", parts)
    else:
        path = tmp_path / "in"
        path.mkdir()
        for name, content in parts.items() if form == "folder" else [("000.jpg", JPEG), ("a.jsonl", b"\n".join(facts))]:
            (path / name).write_bytes(content)
    rows, _, _ = read(path, where="license is None", url_column="license")
    assert [row["license"] for row in rows] == [None] * 121 + ["cc"] * 9
    with pytest.raises(InputError, match=r"no column 'licence' \(pairs\.where\)"):
        read(path, where="licence is None")


def test_later_objects_are_no_captions(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    lines = [b'{"jpg": "1.jpg", "caption": "x"}'] * 150 + [b'{"jpg": "1.jpg", "caption": {"en": "x"}}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows, _, _ = read(tmp_path / "a.jsonl")
    assert [row["caption"] for row in rows] == ["x"] * 150 + [None]


# What is not read


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.tfrecord", "TFRecord: write its features as Parquet"),
        ("a.arrow", r"Hugging Face's `dataset\.to_parquet"),
        ("a.zip", "a zip: unpack it"),
        ("a.tar.gz", "a compressed tar: unpack it"),
        ("metadata/v1.metadata.json", "an Iceberg table"),
        ("a.jpg", r"1 images without a text: put NAME\.txt"),
        ("notes.doc", r"nothing that can be read; the first file is .*notes\.doc"),
    ],
)
def test_what_is_not_read_is_said_with_the_way_there(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "in" / name).parent.mkdir(parents=True)
    (tmp_path / "in" / name).write_bytes(b"something")
    with pytest.raises(InputError, match=says):
        read(tmp_path / "in")


def test_a_delta_table_whose_files_do_not_show_its_rows_is_refused(tmp_path: Path) -> None:
    import json

    from deltalake import write_deltalake

    table = tmp_path / "table"
    write_deltalake(str(table), pq.read_table(write(tmp_path / "a.parquet")))
    log = table / "_delta_log" / "00000000000000000000.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if "protocol" in line:
            line["protocol"] |= {
                "minReaderVersion": 3, "minWriterVersion": 7,
                "readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"],
            }  # fmt: skip
    log.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(InputError, match=r"Delta table (with deletionVectors|whose log cannot be read)"):
        read(table)


# Folders


def test_new_images_of_a_folder_are_shards_of_their_own(tmp_path: Path) -> None:
    """Catches: rows that get other numbers when somebody puts a file into the folder."""

    def put(name: str) -> None:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.jpg").write_bytes(JPEG + name.encode())
        (tmp_path / "in" / f"{name}.txt").write_text(name)

    registry, pairs = Units(str(tmp_path / "out")), PairsConfig(path=str(tmp_path / "in"))
    for name in ("b", "d"):
        put(name)
    first = registry.plan(pairs)
    put("a")
    put("c")
    second = registry.plan(pairs)
    assert second[0] == first[0]
    assert [u.rows for u in second] == [2, 2]
    os.utime(tmp_path / "in" / "a.jpg", (5, 5))
    assert [u.name for u in registry.plan(pairs)] == [u.name for u in second]
    (tmp_path / "in" / "a.jpg").write_bytes(b"changed" + JPEG)
    with pytest.raises(InputError, match=r"has changed since unit u-"):
        registry.plan(pairs)


# The real ones


READ = [
    "caption_bad_utf8", "url_bad_utf8", "key_bad_utf8", "caption_binary", "url_binary_bad", "dictionary_image",
    "dictionary",
    "no_key", "no_url", "caption_list", "int_key", "large", "null_columns", "good",
]  # fmt: skip
FOLDERS = ["one_empty", "all_failed", "delta_table", "hidden", "upper", "mixed_schema", "odd names"]


@pytest.mark.parametrize("name", [*(f"{name}.parquet" for name in READ), *FOLDERS])
def test_real_inputs_that_broke_a_run_are_read(name: str, real_data: Path, tmp_path: Path) -> None:
    pairs = PairsConfig(path=str(real_data / "faults" / "pairs" / name))
    registry = Units(str(tmp_path / "out"))
    rows = 0
    for unit in registry.plan(pairs):
        for file in unit.files:
            shard = registry.shard(file, pairs)
            for _, batch in formats.columns(shard, ["key", "url", "caption"]):
                texts, _ = formats.texts(shard, batch)
                texts.validate(full=True)
                rows += texts.num_rows
            with formats.images(shard) as images:
                assert all(isinstance(stored, bytes | None) for stored in images.read(range(images.rows)))
    assert rows == {"delta_table": 7, "all_failed": 6}.get(name, 8)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("only_empty.parquet", "no row in any of 1 files"),
        ("caption_struct.parquet", r"column 'caption' \(pairs\.text_column\) is struct"),
        ("twice_named.parquet", "2 columns named 'caption'"),
        ("list_of_images.parquet", r"column 'jpg' \(pairs\.image_column\) is list"),
        ("image_as_path.parquet", r"is not below .* \(pairs\.image_root\)"),
        ("hf_path_only.parquet", r"is not below .* \(pairs\.image_root\)"),
    ],
)
def test_real_inputs_that_cannot_be_read_are_refused_at_the_plan(
    name: str, says: str, real_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        Units(str(tmp_path / "out")).plan(PairsConfig(path=str(real_data / "faults" / "pairs" / name)))


# --- what fuzzing found ----------------------------------------------------------------------------------------------


def test_a_parquet_file_whose_columns_have_no_names_is_refused(tmp_path: Path) -> None:
    """Catches: pyarrow's UnicodeDecodeError, which names no file."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"captions": ["a"], "jpg": [b"x"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"captions", b"\xff\xfeptions"))
    pairs = PairsConfig(path=(str(path),), text_column="captions")
    (source,) = listing.listed(pairs)
    with pytest.raises(InputError, match=r"a\.parquet is not a readable Parquet file"):
        look.look(source, pairs)


@pytest.mark.parametrize("read", ["texts", "some rows", "images"])
def test_a_damaged_page_is_named_with_its_file(tmp_path: Path, read: str) -> None:
    """Catches: what Arrow says of a page whose footer is whole, and so passed the plan."""
    path = tmp_path / "a.parquet"
    columns = {"caption": ["a caption"] * 50, "jpg": [b"x" * 90 + bytes([n]) for n in range(50)]}
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=False)
    content, group = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0)
    for n in range(2):
        chunk = group.column(n)
        end = chunk.data_page_offset + chunk.total_compressed_size
        content[end - 16 : end] = b"\xff" * 16
    path.write_bytes(content)
    pairs = PairsConfig(path=(str(path),))
    (source,) = listing.listed(pairs)
    shard = source.shard(pairs)
    assert look.look(source, pairs).rows == 50

    def stored() -> list[StoredImage]:
        with formats.images(shard) as images:
            return list(images.read([3]))

    reads: dict[str, Any] = {
        "texts": lambda: list(formats.columns(shard, ["caption"])),
        "some rows": lambda: list(formats.rows(shard, [3], ["caption"])),
        "images": stored,
    }
    with pytest.raises(ShardError, match=r"input shard .*a\.parquet cannot be read .*: mend it, or leave it out"):
        reads[read]()


def test_a_footer_that_says_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    """Catches: rows that a plan counts and nobody reads."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"caption": ["a"] * 7, "jpg": [b"x"] * 7}), path, row_group_size=4, store_schema=False)
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    said = content.index(b"\x16\x0e", start)  # the field num_rows: an i64, 7 in zigzag
    path.write_bytes(content[: said + 1] + b"\x10" + content[said + 2 :])
    assert pq.read_metadata(path).num_rows == 8
    pairs = PairsConfig(path=(str(path),))
    (source,) = listing.listed(pairs)
    with pytest.raises(InputError, match=r"a\.parquet says that it has 8 rows, and has 7"):
        look.look(source, pairs)
    with pytest.raises(ShardError, match=r"a\.parquet says that it has 8 rows, and has 7"):
        list(formats.columns(source.shard(pairs), ["caption"]))


def test_rows_of_small_groups_are_read_together_and_of_large_values_apart(tmp_path: Path) -> None:
    """A value of a dictionary is stored once and decoded for each row: what is decoded together is bounded by it, and
    ordinary files still come in large batches."""
    path, large = tmp_path / "a.parquet", "x" * (9 << 20)
    shard = Shard(str(path))
    pq.write_table(pa.table({"caption": [f"{n}" for n in range(10_000)]}), path, row_group_size=500)
    sizes = [batch.num_rows for _, batch in formats.columns(shard, ["caption"])]
    assert (sum(sizes), max(sizes), len(sizes)) == (10_000, 4000, 3)
    numbers = pa.array([0] * 60 + [1] * 60, pa.int32())
    texts = pa.DictionaryArray.from_arrays(numbers, pa.array([large, "small"]))
    pq.write_table(pa.table({"caption": texts}), path, dictionary_pagesize_limit=1 << 30)
    batches = list(formats.columns(shard, ["caption"]))
    assert sum(batch.num_rows for _, batch in batches) == 120
    assert [start for start, _ in batches] == list(accumulate([0, *(b.num_rows for _, b in batches[:-1])]))
    assert max(batch.num_rows for _, batch in batches[:2]) < 30
    assert formats.texts(shard, batches[-1][1])[0].column(0)[-1].as_py() == "small"


@pytest.mark.parametrize(
    "said",
    ["[]", '{"of": "x"}', '{"counts": 3}', '{"counts": {"to fetch": "many"}}', '{"counts": {}, "shards": "all"}'],
)
def test_a_record_of_a_fetch_that_is_none_is_named(tmp_path: Path, said: str) -> None:
    (tmp_path / "_fetch").mkdir()
    (tmp_path / "_fetch" / "record.json").write_text(said)
    with pytest.raises(RecordError, match=r"_fetch/record\.json is no record of a fetch .*remove the folder"):
        img2dataset.shards_of_fetch(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (124, b"\xff" * 12), (124, b"\x80" + b"\xff" * 11), (124, b"9" * 12), (136, b"zz"), (156, b"S"), (156, b"L"),
        (156, b"K"), (156, b"x"), (156, b"g"), (156, b"V"), (257, b"\0\0\0\0\0"), (0, b"\0"), (0, b"\xff" * 100),
    ],
)  # fmt: skip
def test_a_header_that_nobody_writes_is_refused_or_passed_over(tmp_path: Path, field: int, value: bytes) -> None:
    """Catches: what tarfile raises beside its own errors, and a size below zero, at which it turns in a circle."""
    samples = [(f"{n}.{part}", b"abc") for n in range(3) for part in ("jpg", "txt")]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in samples:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    for at in (0, 1024, 5 * 1024):
        data = bytearray(path.read_bytes())
        data[at + field : at + field + len(value)] = value
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        odd = tmp_path / f"odd-{at}.tar"
        odd.write_bytes(data)
        pairs = PairsConfig(path=(str(odd),))
        (source,) = listing.listed(pairs)
        try:
            found = look.look(source, pairs)
        except InputError as error:
            assert odd.name in str(error)  # noqa: PT017
        else:
            assert found.rows <= 3
