"""Names from outside lead nowhere outside: members of archives, keys, units, paths in records, addresses of the app."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core import files
from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.files import RecordError
from i2e_pipeline.dataset.published import DatasetError
from i2e_pipeline.engine.records import Records
from i2e_pipeline.engine.shipping import Shipped
from i2e_pipeline.engine.units import Units
from i2e_pipeline.export.form import image_name
from i2e_pipeline.inputs import formats, listing, look
from tests.small_models import picture, stored

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
