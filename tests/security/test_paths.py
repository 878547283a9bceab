"""Names from outside lead nowhere outside: members of archives, keys, units, paths in records, addresses of the app."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands.clean import clean
from i2e_pipeline.commands.verify import verify
from i2e_pipeline.core import files, lock
from i2e_pipeline.core.config import Config, PairsConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import RecordError
from i2e_pipeline.core.schemas import TEXTS
from i2e_pipeline.dataset.published import DatasetError, manifest_of
from i2e_pipeline.engine import merging, seal
from i2e_pipeline.engine.catalogue import Catalogue, Table
from i2e_pipeline.engine.pipeline import Pipeline, stored_as
from i2e_pipeline.engine.pipeline import _refuse_half_joined as refuse_half_joined
from i2e_pipeline.engine.records import Records
from i2e_pipeline.engine.shipping import Shipped
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.units import Units
from i2e_pipeline.export.form import image_name
from i2e_pipeline.inputs import formats, listing, look
from i2e_pipeline.inputs.img2dataset import shards_of_fetch
from i2e_pipeline.report import quality
from i2e_pipeline.train import reinforced
from tests.small_models import picture, stored

ROOT = Path(__file__).parent.parent.parent
JPEG = stored(picture(1), "JPEG")
OUTSIDE = ("../taken", "../../taken", "/tmp/i2e-taken", "a/../../taken", "./../taken", "..\\taken", "C:\\taken")


def tar(path: Path, *members: tuple[str, bytes], links: tuple[tuple[str, str, bytes], ...] = ()) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, to, kind in links:
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, to
            archive.addfile(header)
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Path]:
    """A folder; nothing may come to lie, or be changed, beside it."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (tmp_path / "a" / "kept").write_text("as it was")
    yield folder
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b", "kept"]
    assert (tmp_path / "a" / "kept").read_text() == "as it was"
    assert not os.path.exists("/tmp/i2e-taken")


def test_members_of_a_tar_name_samples_and_no_files(inside: Path) -> None:
    """A link to a file of the reader's is not followed either."""
    names = [name for name in OUTSIDE if "\\" not in name]  # that one is hidden here, and passed over
    members = [(f"{name}.{part}", content) for name in names for part, content in (("jpg", JPEG), ("txt", b"a"))]
    links = (("linked.jpg", "/etc/passwd", tarfile.SYMTYPE), ("hard.jpg", "../kept", tarfile.LNKTYPE))
    path = tar(inside / "00000.tar", *members, ("linked.txt", b"a"), ("hard.txt", b"a"), links=links)
    pairs = PairsConfig(path=(str(path),))
    (source,) = listing.listed(pairs)
    found = look.look(source, pairs)
    files.write_table(str(inside / "index.parquet"), found.index)
    shard = source.shard(pairs, str(inside / "index.parquet"))
    keys = [row["key"] for _, batch in formats.columns(shard, ["key"]) for row in batch.to_pylist()]
    with formats.images(shard) as images:
        read = dict(zip(keys, images.read(range(found.rows)), strict=True))
    assert read.pop("linked") is None
    assert read.pop("hard") is None
    assert set(read) == {name.removeprefix("./") for name in names}
    assert set(read.values()) == {JPEG}


@pytest.mark.parametrize("image_id", [*OUTSIDE, "a/b", "", ".hidden", "a\0b"])
def test_an_id_that_is_none_names_no_file_of_an_export(image_id: str) -> None:
    """The dataset may be somebody else's, and whoever unpacks the export trusts its names."""
    with pytest.raises(DatasetError, match="image_id"):
        image_name(image_id, JPEG)
    assert image_name("0f" * 16, JPEG) == f"{'0f' * 16}.jpg"


@pytest.mark.parametrize("name", [*OUTSIDE[:4], "model/../../../taken"])
def test_a_packed_folder_is_laid_out_within_its_own(inside: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Into a store that others can write to, anybody may put an archive."""
    monkeypatch.setenv("TMPDIR", str(inside))
    path = tar(inside / "model.tar", (name, b"taken"), ("model/weights", b"w"))
    with pytest.raises((tarfile.TarError, files.StoreError, RuntimeError)):
        Shipped(str(path), "model", "0" * 32).local()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_packed_folder_writes_through_no_link(inside: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    monkeypatch.setenv("TMPDIR", str(inside))
    links = (("model", str(inside.parent), kind),)
    path = tar(inside / "model.tar", ("model/kept", b"taken"), links=links)
    with pytest.raises((tarfile.TarError, OSError, RuntimeError)):
        Shipped(str(path), "model", "0" * 32).local()


def commit(**changed: Any) -> dict[str, Any]:
    written = {"path": "unit=u-1/part-0.parquet", "rows": 1, "bytes": 1}
    made = {
        "stage": "pairs", "unit": "u-1", "fingerprint": "f", "components": None, "files": {"pairs": [written]},
        "rows_in": 1, "rows_out": 1, "rejected": {},
    }  # fmt: skip
    return {**made, **changed}


def journal(folder: Path, record: Any) -> Path:
    (folder / "_commits" / "pairs").mkdir(parents=True, exist_ok=True)
    said = {"anew": False, "gone": [], "components": {"f": {}}, "commits": [record]}
    path = folder / "_commits" / "pairs" / "journal-000000001.json"
    path.write_text(json.dumps(said))
    return path


@pytest.mark.parametrize("path", [*OUTSIDE[:4], "unit=a/../../x", "", "s3://elsewhere/x", "a\0b"])
def test_a_record_names_files_of_its_table_alone(inside: Path, path: str) -> None:
    """What a record names is read, moved and removed, and an output may be somebody else's (`i2e merge`, `explore`)."""
    journal(inside, commit())
    assert list(Records(str(inside / "_commits")).read("pairs")) == ["u-1"]
    written = {"path": path, "rows": 1, "bytes": 1}
    for record in (commit(files={"pairs": [written]}), commit(files={path: []} | {f"{path}/x": [written]})):
        place = journal(inside, record)
        with pytest.raises(RecordError, match=rf"{place.name}: .*not below its table.*remove it"):
            Records(str(inside / "_commits")).read("pairs")


@pytest.mark.parametrize("name", [*OUTSIDE, "u-1/../x", ".", "..", ""])
def test_a_unit_and_its_content_are_named_by_names(inside: Path, name: str) -> None:
    file = {"shard": 0, "path": "a", "size": 1, "modified": 1, "digest": "0" * 32, "rows": 1}
    (inside / "units").mkdir()
    for record in ({"name": name, "files": [file]}, {"name": "u-1", "files": [{**file, "digest": name}]}):
        (inside / "units" / "u-1.json").write_text(json.dumps(record))
        with pytest.raises(RecordError, match=r"u-1\.json is no record of a unit"):
            Units(str(inside)).known()
    (inside / "units" / "u-1.json").write_text(json.dumps({"name": "u-1", "files": [file]}))
    assert [unit.name for unit in Units(str(inside)).known()] == ["u-1"]


# --- records of somebody else's output ------------------------------------------------------------------------------


HOSTILE: tuple[Any, ...] = (
    "../victim", "../../victim", "/tmp/i2e-taken", "s3://elsewhere/x", "a\0b", "_staging/../../victim", "_staging/..",
    "_staging/a/../../../victim", "_staging", "_staging/", "_staging/a/b",
    ".", "", None, 7, -1, 2**70, True, 1.5, [], {},
    ["../victim"], {"../victim": "../victim"},
)  # fmt: skip
"""In the place of each value of each record."""


def places(record: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a record stand, those that hold others too."""
    yield above
    below = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in below:
        yield from places(value, (*above, key))


def put(record: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    made = json.loads(json.dumps(record))
    node = made
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return made


STAGED = {"path": "unit=u-1/part-1.parquet", "rows": 1, "bytes": 1, "digest": "0f"}
UNIT = {
    "name": "u-1", "share": [0.0, 1.0], "replaces": "u-0",
    "files": [{"shard": 0, "path": "/in/a.parquet", "size": 1, "modified": 1, "digest": "0" * 32, "rows": 1,
               "in_unit": None, "format": "parquet", "indexed": False, "kinds": {}}],
}  # fmt: skip
REINFORCED: dict[str, Any] = {
    "format": 1, "augmentations": 2, "augment": "crop_flip", "crop_area": [0.4, 1.0], "template": "{name}",
    "teachers": [{"model": "local-dir:/a", "fingerprint": "f", "width": 8, "scale": 10.0}],
    "captioner": {"model": "local-dir:/b", "fingerprint": "g", "captions": 2},
}  # fmt: skip
RECORDS: dict[str, Any] = {
    "_commits/merging.json": {
        "staging": "_staging/merging-1", "same_rows": True, "same_columns": True,
        "stages": {"pairs": [commit(components={}, files={"pairs": [STAGED]})]},
    },
    "_commits/pairs/journal-000000001.json": {
        "anew": False, "gone": [], "components": {"f": {"settings": {}}}, "commits": [commit()],
    },
    "_commits/pairs/u-1.json": commit(components={}),
    "units/u-1.json": UNIT,
    "forgotten_units/u-1.json": UNIT,
    "_joining.json": {"from": ["/a", "/b"], "units": {"u-1": [0]}},
    "_storage.json": {"format": "parquet"},
    "_lock": {"host": "elsewhere", "process": 7, "since": "2026-01-01", "beat": 1e9, "began": "", "namespace": ""},
    "_reported.json": "f",
    "_unsealed": {"others": {"units/u-1.json": [3, 4]}},
    "quality.json": [{"figure": "precision"}],
    "i2e/manifest.json": {"units": {"u-1": 3}, "format_version": 2, "dataset": "0123", "images": 3},
    "reinforced/settings.json": REINFORCED,
    "reinforced/manifest.json": {
        "settings": REINFORCED, "rows": 3, "undecodable": {}, "images": ["unit=u-1/part-00000-0.parquet"],
        "entities": ["entities/part-00000-0.parquet"],
    },
    "input/_fetch/record.json": {"of": "x", "counts": {"to fetch": 9}, "shards": 2},
}  # fmt: skip
"""Every record that is read to act on it, as it should be, by its place in an output."""


def read_all(output: Path) -> None:
    """All that reads them, and takes what they say for granted."""
    tables = toys_tables(output)
    for act in (
        lambda: verify(Pipeline(Config(output=str(output)), [])),
        lambda: merging.finish(tables),
        lambda: [tables.discard(s, list(tables.commits(s))) for s in ("pairs",)],
        lambda: tables.orphans(),
        lambda: [Units(str(output)).known(), Units(str(output)).left_out(), Units(str(output)).drop_replaced(["u-0"])],
        lambda: [Units(str(output)).forget(u.name) for u in Units(str(output)).known()],
        lambda: refuse_half_joined(tables),
        lambda: stored_as(tables),
        lambda: seal.seal(str(output), []),
        lambda: lock.refuse_held(str(output)),
        lambda: quality.read(tables),
        lambda: manifest_of(str(output / "i2e")),
        lambda: shards_of_fetch(str(output / "input")),
        lambda: tables.discard_staging(),
        lambda: reinforced.read_settings(str(output / "reinforced")),
        lambda: reinforced.read_manifest(str(output / "reinforced")),
    ):
        with suppress(I2EError):
            act()


def toys_tables(output: Path) -> Tables:
    return Tables(str(output), None, None, Catalogue({"pairs": Table(TEXTS)}, {"pairs": "pairs"}))


@pytest.mark.parametrize("name", RECORDS)
def test_no_record_leads_out_of_its_output(name: str, tmp_path: Path) -> None:
    """Catches: a folder of the user's that a record names, and that `i2e clean --dry-run` removed; a value of another
    kind that ends a command with a traceback."""
    tried = 0
    for place in places(RECORDS[name]):
        for value in HOSTILE:
            tried += 1
            home = tmp_path / str(tried)
            output, victim = home / "output", home / "victim"
            (victim / "kept").mkdir(parents=True)
            record = output / name
            record.parent.mkdir(parents=True)
            (output / "_staging" / "merging-1" / "pairs" / "unit=u-1").mkdir(parents=True)
            (output / "_staging" / "merging-1" / "pairs" / "unit=u-1" / "part-1.parquet").write_bytes(b"x")
            record.write_text(json.dumps(put(RECORDS[name], place, value)))
            read_all(output)
            assert (victim / "kept").is_dir(), (place, value)
            assert sorted(p.name for p in home.iterdir()) == ["output", "victim"], (place, value)
            assert [p.name for p in victim.iterdir()] == ["kept"], (place, value)
            assert not os.path.exists("/tmp/i2e-taken")
            shutil.rmtree(home)


def test_the_records_are_all_there_are() -> None:
    """Catches: a new record that somebody reads and nobody tries here."""
    found = set()
    for path in sorted((ROOT / "i2e_pipeline").rglob("*.py")):
        called = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        if called & {"files.record", "files.records", "files.read_json"}:
            found.add(path.relative_to(ROOT / "i2e_pipeline").as_posix())
    assert found == {
        "commands/fetch.py",  # input/_fetch/record.json, and the stats beside it
        "commands/run.py",  # _reported.json
        "commands/verifying/stored.py",  # _storage.json
        "dataset/published.py",  # i2e/manifest.json
        "dataset/training_data.py",  # training_data.json of an export: names and digests, which are compared
        "engine/joining.py", "engine/pipeline.py",  # _joining.json, _storage.json
        "engine/merging.py",  # _commits/merging.json
        "engine/records.py", "engine/units.py",
        "engine/digest_list.py",  # the units of i2e/manifest.json
        "engine/seal.py",  # _unsealed, whose sizes and times are compared
        "evaluate/results.py", "train/trainer.py",  # results of a training and an evaluation, which name no file
        "inputs/img2dataset.py",  # input/_fetch/record.json
        "report/quality.py",  # quality.json
        "train/reinforced.py",  # reinforced/settings.json and manifest.json
    }  # fmt: skip


@pytest.mark.parametrize("where", ["staging", "table", "unit", "units", "index", "commits"])
def test_nothing_behind_a_link_is_removed_or_written(where: str, tmp_path: Path) -> None:
    """Catches: an output that was unpacked from somebody's archive, in which a folder is a link to the user's own."""
    output, victim = tmp_path / "output", tmp_path / "victim"
    links = {
        "staging": "_staging", "table": "pairs", "unit": "pairs/unit=u-1", "units": "units", "index": "units/index",
        "commits": "_commits/other",
    }  # fmt: skip
    names = (
        "unit=u-1/part-0.parquet",
        "part-0.parquet",
        "u-1.json",
        "x.parquet",
        "merging-1/pairs/unit=u-1/part-1.parquet",
    )
    for name in names:
        (victim / name).parent.mkdir(parents=True, exist_ok=True)
        (victim / name).write_bytes(b"x")
    (victim / "u-1.json").write_text(json.dumps(UNIT))
    before = {p: p.read_bytes() for p in victim.rglob("*") if p.is_file()}
    journal(output, commit())
    if where != "units":
        (output / "units").mkdir()
        (output / "units" / "u-1.json").write_text(json.dumps(UNIT))
    (output / links[where]).parent.mkdir(parents=True, exist_ok=True)
    (output / links[where]).symlink_to(victim, target_is_directory=True)
    if where in ("staging", "table"):
        (output / "_commits" / "merging.json").write_text(json.dumps(RECORDS["_commits/merging.json"]))
    read_all(output)
    whole = Pipeline(Config(output=str(output)), [])
    with suppress(I2EError):
        clean(whole, removed_stages=True)
    (output / "_seal").unlink(missing_ok=True)
    seal._write(str(output), {"units/u-1.json": seal.Sealed(1, 1, "0f", "{}")})
    with suppress(I2EError):
        seal.restore(str(output), ["units/u-1.json"])
    assert {p: p.read_bytes() for p in victim.rglob("*") if p.is_file()} == before


def test_an_output_that_is_a_link_is_the_users_own(tmp_path: Path) -> None:
    """Outputs lie on other disks, behind links to them or to the folder above."""
    journal(tmp_path / "disk" / "out", commit(files={"pairs": [{"path": "unit=u-1/a.parquet", "rows": 1, "bytes": 1}]}))
    part = tmp_path / "disk" / "out" / "pairs" / "unit=u-1" / "a.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "out").symlink_to(tmp_path / "linked" / "out")
    tables = toys_tables(tmp_path / "out")
    tables.discard("pairs", ["u-1"])
    assert not part.exists()
    files.remove_below(str(tmp_path / "linked" / "out"), "pairs")
    assert not (tmp_path / "disk" / "out" / "pairs").exists()


def test_what_lies_behind_a_link_is_said_with_the_way_out(tmp_path: Path) -> None:
    journal(tmp_path / "out", commit(files={"pairs": [{"path": "unit=u-1/a.parquet", "rows": 1, "bytes": 1}]}))
    (tmp_path / "disk").mkdir()
    (tmp_path / "out" / "pairs").symlink_to(tmp_path / "disk")
    with pytest.raises(files.LedOutside, match=r"out/pairs.* leads out of .*disk.*link the whole output"):
        toys_tables(tmp_path / "out").discard("pairs", ["u-1"])


@pytest.mark.parametrize("path", ["../x", "/x", "", "a/../../x", "s3://b/x"])
def test_what_is_removed_by_name_lies_below(path: str, tmp_path: Path) -> None:
    for root in (str(tmp_path), "s3://bucket/out"):
        with pytest.raises(files.LedOutside, match="below"):
            files.remove_below(root, path)
    with pytest.raises(files.LedOutside, match="below"):
        files.refuse_outside("s3://bucket/out", "s3://bucket/other/x")


def test_a_dry_run_ends_nothing_that_was_cut_off(tmp_path: Path) -> None:
    """Catches: a look at what would go that moves and removes files."""
    output = tmp_path / "out"
    for name, record in (("_commits/merging.json", RECORDS["_commits/merging.json"]), ("units/u-1.json", UNIT)):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(json.dumps(record))
    staged = output / "_staging" / "merging-1" / "pairs" / "unit=u-1" / "part-1.parquet"
    staged.parent.mkdir(parents=True)
    staged.write_bytes(b"x")
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    freed = clean(Pipeline(Config(output=str(output)), []), dry_run=True, removed_stages=True, merge=True)
    assert [one.kind for one in freed] == ["staging"]
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before
