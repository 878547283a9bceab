from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import AlreadyThere, NoSuchFile
from i2e_pipeline.core.files import RecordError, StoreError


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


TREE = (
    "a.parquet",
    "b.parquet",
    "c.txt",
    ".hidden.parquet",
    "_committed.parquet",
    "sub/d.parquet",
    "sub/deep/e.parquet",
    "sub/_delta_log/f.parquet",
    ".git/g.parquet",
    "year=2024/h.parquet",
    "year=2023/k.parquet",
    "[1]/i.parquet",
    "{x,y}/j.parquet",
)


@pytest.fixture(params=["path", "relative", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where TREE lies: on this disk, said in three ways, or in a store that knows no folders but prefixes of keys."""
    if request.param == "memory":
        fsspec = pytest.importorskip("fsspec")
        memory = fsspec.filesystem("memory", skip_instance_cache=True)
        memory.store, memory.pseudo_dirs = {}, [""]
        for name in TREE:
            memory.pipe(f"/bucket/data/{name}", b"x")
        opened = pafs.PyFileSystem(pafs.FSSpecHandler(memory))
        on_disk = files.open_filesystem

        def open_filesystem(path: str) -> tuple[pafs.FileSystem, str]:
            return (opened, path.removeprefix("memory:/")) if path.startswith("memory://") else on_disk(path)

        monkeypatch.setattr(files, "open_filesystem", open_filesystem)
        return "memory://bucket/data"
    for name in TREE:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return {"path": str(tmp_path / "data"), "relative": "./data", "file": f"file://{tmp_path}/data"}[request.param]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        # A wildcard stays within a folder and takes nothing hidden.
        (["*.parquet"], ["a.parquet", "b.parquet"]),
        (["?.parquet"], ["a.parquet", "b.parquet"]),
        (["[!a].*"], ["b.parquet", "c.txt"]),
        (
            ["*/*.parquet"],
            ["[1]/i.parquet", "sub/d.parquet", "year=2023/k.parquet", "year=2024/h.parquet", "{x,y}/j.parquet"],
        ),
        (["sub/*/*.parquet"], ["sub/deep/e.parquet"]),
        # `**` crosses folders, none included.
        (["**/*.parquet"], None),
        (["sub/**/*.parquet"], ["sub/d.parquet", "sub/deep/e.parquet"]),
        (["**/e.*"], ["sub/deep/e.parquet"]),
        (["sub/**"], ["sub/d.parquet", "sub/deep/e.parquet"]),
        # Of a folder, all that is not hidden and ends as asked; of folders that a glob matches, too.
        ([""], None),
        (["/"], None),
        (["sub"], ["sub/d.parquet", "sub/deep/e.parquet"]),
        (["year=*4"], ["year=2024/h.parquet"]),
        # What is spelled is taken: a hidden name, a whole path.
        ([".*.parquet"], [".hidden.parquet"]),
        (["_committed.parquet", "a.parquet"], ["_committed.parquet", "a.parquet"]),
        (["sub/_delta_log/*.parquet"], ["sub/_delta_log/f.parquet"]),
        (["_*"], ["_committed.parquet"]),
        (["[[]1]/*"], ["[1]/i.parquet"]),
        # Braces name each of several; a folder whose name has them is itself.
        (["{a,b}.parquet"], ["a.parquet", "b.parquet"]),
        (["sub/{d,deep/e}.parquet"], ["sub/d.parquet", "sub/deep/e.parquet"]),
        (["year={2023..2024}/*"], ["year=2023/k.parquet", "year=2024/h.parquet"]),
        (["{x,y}"], ["{x,y}/j.parquet"]),
        (["{x,y}/*.parquet", "[1]/*"], ["[1]/i.parquet", "{x,y}/j.parquet"]),
        # Each once.
        (
            ["*.parquet", "a.parquet", "sub", "sub/d.parquet"],
            ["a.parquet", "b.parquet", "sub/d.parquet", "sub/deep/e.parquet"],
        ),
    ],
)
def test_globs_mean_the_same_on_disks_and_in_stores(store: str, patterns: list[str], names: list[str] | None) -> None:
    """Catches: fnmatch, whose `*` crosses `/` and takes hidden files, where a disk's glob does neither."""
    everything = [n for n in TREE if n.endswith(".parquet") and not files.is_hidden(n)]
    base = store.removeprefix("file://")
    found = files.find([f"{store}/{p}" if p != "/" else f"{store}/" for p in patterns], ".parquet")
    assert [f.path for f in found] == sorted(f"{base}/{n}" for n in (everything if names is None else names))
    assert {f.size for f in found} == {1}


@pytest.mark.parametrize("pattern", ["", "*", "*/*", "**/*", "sub", "sub/*", "sub/d.parquet", "sub/deep"])
def test_what_lies_beside_is_told_by_what_was_listed_and_else_asked(store: str, pattern: str) -> None:
    """Catches: hidden folders that say what the files beside them are, and that only a disk's listing shows."""
    beside = files.Beside(["_delta_log"])
    found = files.find([f"{store}/{pattern}"], "", beside)
    base = store.removeprefix("file://")
    beside.ask([files.folder_of(i.path) for i in found] + [f"{base}/sub"])
    assert beside.holding("_delta_log") == {f"{base}/sub"}
    assert (files.Ancestors(beside.whole).nearest(f"{base}/sub") is None) == (pattern not in ("", "*", "**/*", "sub"))
    deep = files.Ancestors(beside.holding("_delta_log"))
    assert deep.nearest(f"{base}/sub/deep/deeper") == f"{base}/sub"
    assert deep.nearest(base) is None
    asked = files.Beside(["_delta_log"])
    asked.ask([files.folder_of(base), f"{base}/none", base, f"{base}/sub", f"{base}/sub/deep"])  # a bucket is the first
    assert asked.holding("_delta_log") == {f"{base}/sub"}


def test_sizes_of_files_that_are_there_and_of_those_that_are_not(store: str) -> None:
    there = [f"{store}/{name}" for name in ("a.parquet", "sub/d.parquet", ".hidden.parquet", "[1]/i.parquet")]
    gone = [f"{store}/{name}" for name in ("none.parquet", "none/a.parquet", "sub", "sub/a.parquet")]
    assert files.sizes([*there, *gone]) == {**dict.fromkeys(there, 1), **dict.fromkeys(gone)}
    assert files.sizes([]) == {}


@pytest.mark.parametrize(
    "pattern", ["none*", "none", "none/*", "sub/*.txt", "a.parquet/*", "*/*/*/*", "{a,none}.parquet"]
)
def test_what_names_nothing_is_told(store: str, pattern: str) -> None:
    with pytest.raises(NoSuchFile, match=r": no file matches \(looked for \*\.parquet\)"):
        files.find([f"{store}/a.parquet", f"{store}/{pattern}"], ".parquet")


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [f.path for f in files.find(["~/*.parquet"], ".parquet")] == [str(tmp_path / "a.parquet")]


def test_files_found_are_those_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a time that is rounded otherwise than in the records of older runs, which then read every file again;
    links that are not followed, as model hubs' caches and mounted data have them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.parquet").write_bytes(b"12345")
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "b.parquet").symlink_to("real/a.parquet")
    here = (tmp_path / "real" / "a.parquet").stat()
    found = files.find(["*.parquet", "linked", "real/*"], ".parquet")
    assert [f.path for f in found] == ["b.parquet", "linked/a.parquet", "real/a.parquet"]
    assert {(f.size, f.modified) for f in found} == {(5, here.st_mtime_ns)}


@pytest.mark.parametrize("name", ["a b", "é", "{x}", "[1]", "a,b", "10:30", "50%", "%20", "#1", "date=1", "a?b*", "\\"])
def test_any_name_may_be_in_a_path(tmp_path: Path, name: str) -> None:
    """Said plainly or as file://. Catches: a URI's rules applied to what is no URI."""
    for base in (tmp_path / name, f"file://{tmp_path}/{name}"):
        files.write_bytes(f"{base}/f {name}.txt", b"x")
        assert [f.path for f in files.find([f"{base}/f {name}.txt"], ".txt")] == [f"{tmp_path}/{name}/f {name}.txt"]
        assert files.read_bytes(f"{base}/f {name}.txt") == b"x"


def test_spark_is_told_of_a_path_with_its_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.for_spark("a,b/{x}[1]*?\\ é#%20") == f"file://{tmp_path}/a,b/{{x}}[1]*?\\ é#%20"
    assert files.for_spark("s3://bucket/{x}?region=r") == "s3://bucket/{x}"


def test_an_unknown_kind_of_store_is_told() -> None:
    with pytest.raises(StoreError, match=r"ftp://host/x.*Known are"):
        files.find(["ftp://host/x/*.parquet"], ".parquet")


def test_a_uri_keeps_what_stands_behind_the_question_mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: paths found in a store at another address that can then not be opened."""
    (tmp_path / "bucket").mkdir()
    for name in ("a1.parquet", "a22.parquet"):
        (tmp_path / "bucket" / name).write_bytes(b"x")
    asked = []

    def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
        asked.append(uri)
        return pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket"

    monkeypatch.setattr(files, "open_filesystem", open_filesystem)
    found = files.find(["s3://bucket/a?.parquet?endpoint_override=localhost:9000"], ".parquet")
    assert asked == ["s3://bucket?endpoint_override=localhost:9000"]
    assert [f.path for f in found] == ["s3://bucket/a1.parquet?endpoint_override=localhost:9000"]


def leftover(folder: Path, name: str, age: float) -> Path:
    """What a writer that was killed leaves of a record, `age` seconds ago."""
    path = folder / name
    path.write_text('{"a"')
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_records_are_the_own_files_of_a_folder(tmp_path: Path) -> None:
    """Catches: a `.tmp` of a killed writer, macOS's `.DS_Store` or a sub-folder that is taken for a unit."""
    files.write_json(str(tmp_path / "b.json"), {"n": 2})
    files.write_json(str(tmp_path / "a.json"), {"n": 1})
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "._a.json").write_bytes(b"\0\5\x16\7")
    (tmp_path / "_old.json").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "sub").mkdir()
    files.write_json(str(tmp_path / "sub" / "c.json"), {"n": 3})
    (tmp_path / "d.json").mkdir()
    old = [leftover(tmp_path, f"a.json.{'0' * 32}.tmp", 90), leftover(tmp_path, f".a.json.{'1' * 32}.tmp", 90)]
    young = leftover(tmp_path, f".a.json.{'2' * 32}.tmp", 1)
    others = leftover(tmp_path, "a.json.tmp", 10**6)
    found = files.records(str(tmp_path), "put it back")
    assert found == {"a": {"n": 1}, "b": {"n": 2}}
    assert list(found) == ["a", "b"]
    assert [p.exists() for p in old] == [False, False]
    assert young.exists(), "another writer was robbed"
    assert others.exists(), "it is not ours"


def test_a_folder_of_records_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert files.records(str(tmp_path / "none"), "") == {}


@pytest.mark.parametrize("content", [b'{"n": 1', b"", b"\xff\xfe\0"])
def test_a_broken_record_is_named_with_its_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "u-1.json").write_bytes(content)
    with pytest.raises(RecordError, match=r"u-1\.json is not a whole record .*: put a copy in its place"):
        files.records(str(tmp_path), "put a copy in its place")


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    files.write_bytes(str(tmp_path / "a"), b"old")
    with pytest.raises(ZeroDivisionError), files.fresh_file(tmp_path / "a") as fresh:  # noqa: PT012
        fresh.write_bytes(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
        raise ZeroDivisionError
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}
    with files.fresh_file(tmp_path / "a") as fresh:
        fresh.write_bytes(b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"new"}


def test_a_folder_takes_the_place_of_the_old_one_when_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").touch()
    with pytest.raises(ZeroDivisionError), files.fresh_folder(tmp_path / "m") as fresh:  # noqa: PT012
        (fresh / "half").touch()
        raise ZeroDivisionError
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["m", "m/old"]
    with files.fresh_folder(tmp_path / "m") as fresh:
        (fresh / "new").touch()
        assert (tmp_path / "m" / "old").exists()
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["m", "m/new"]


def test_who_writes_alone_removes_what_killed_writers_left(tmp_path: Path) -> None:
    """Catches: a disk that fills with copies of which a kill left a part each; another folder's writer robbed."""
    killed, others = tmp_path / f".m.{'0' * 32}.tmp", tmp_path / f".mm.{'0' * 32}.tmp"
    for path in (killed, others):
        path.mkdir()
        (path / "half").touch()
    with files.fresh_folder(tmp_path / "m"):
        assert killed.exists()
    with files.fresh_folder(tmp_path / "m", alone=True):
        assert not killed.exists()
    assert others.exists()


def test_a_file_is_made_once(tmp_path: Path) -> None:
    files.create_json(str(tmp_path / "lock"), {"n": 1})
    with pytest.raises(AlreadyThere, match="lock is there already"):
        files.create_json(str(tmp_path / "lock"), {"n": 2})
    assert files.read_json(str(tmp_path / "lock")) == {"n": 1}


def test_write_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    files.write_json(str(tmp_path / "x" / "a.json"), {"a": 1})
    files.write_json(str(tmp_path / "x" / "a.json"), {"a": 2})
    assert files.read_json(str(tmp_path / "x" / "a.json")) == {"a": 2}
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a.json"]


def test_a_fresh_stream_takes_bytes_as_they_are_whatever_its_name(store: str) -> None:
    """Catches: what its writer packed, packed again by pyarrow for the .gz in a name, in stores alone."""
    packed = gzip.compress(b"x" * 100)
    with files.fresh_stream(f"{store}/new/rows.tsv.gz") as stream:
        stream.write(packed)
    filesystem, inner = files.open_filesystem(f"{store}/new/rows.tsv.gz")
    with filesystem.open_input_stream(inner, compression=None) as raw:
        assert raw.read() == packed


def test_a_stream_is_there_whole_or_not_at_all(store: str) -> None:
    with files.fresh_stream(f"{store}/new/packed.tar") as stream:
        stream.write(b"a")
        stream.write(b"b")
    assert files.read_bytes(f"{store}/new/packed.tar") == b"ab"
    with pytest.raises(TypeError):
        _half_written(f"{store}/new/other.tar")
    assert [f.path for f in files.list_files(f"{store}/new")] == ["packed.tar"]


def _half_written(path: str) -> None:
    with files.fresh_stream(path) as stream:
        stream.write(b"a")
        stream.write(None)  # type: ignore[arg-type]
