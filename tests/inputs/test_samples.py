"""Samples of folders and tars as people name them: which parts belong together, and what is not read."""

from __future__ import annotations

import codecs
import io
import logging
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.core.stored_image import NoImage
from i2e_pipeline.engine.units import InputError, Units
from i2e_pipeline.inputs import formats, samples, webdataset

JPEG = b"\xff\xd8\xff\xe0"


@pytest.mark.parametrize(
    ("path", "key", "suffix"),
    [
        ("a/b.jpg", "a/b", "jpg"),
        ("a.b/c.JPG", "a.b/c", "jpg"),
        ("St. Louis.jpeg", "St. Louis", "jpeg"),
        ("photo.v1.png", "photo.v1", "png"),
        ("a.jpg.json", "a", "json"),
        ("photo.v1.jpg.txt", "photo.v1", "txt"),
        ("a.left.jpg", "a.left", "jpg"),
        ("a.seg.npy", "a", "seg.npy"),
        (".jpg", "", "jpg"),
        ("none", "none", ""),
    ],
)
def test_names_are_split_where_their_suffix_begins(path: str, key: str, suffix: str) -> None:
    assert samples.split(path) == (key, suffix)


def test_a_suffix_that_the_settings_name_is_one() -> None:
    assert samples.split("a.left.jpg", "left.jpg") == ("a", "left.jpg")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tar(path: Path, members: list[tuple[str, bytes]], encoding: str = "utf-8", **more: Any) -> Path:
    with tarfile.open(path, "w", encoding=encoding, errors="surrogateescape", **more) as out:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return path


def rows(path: Path, output: Path) -> dict[str | None, Any]:
    """Text to stored image, of all shards."""
    pairs = PairsConfig(path=str(path))
    registry, found = Units(str(output)), {}
    for unit in registry.plan(pairs):
        for file in unit.files:
            shard = registry.shard(file, pairs)
            texts = [formats.texts(shard, b)[0].column(0) for _, b in formats.columns(shard, ["caption"])]
            with formats.images(shard) as images:
                said = [text for column in texts for text in column.to_pylist()]
                found |= dict(zip(said, images.read(range(images.rows)), strict=True))
    return found


NAMED = {
    "St. Louis.jpg": "St. Louis.txt",
    "photo.v1.png": "photo.v1.txt",
    "photo.v2.png": "photo.v2.txt",
    "IMG_7.JPG": "IMG_7.TXT",
    "gallery.webp": "gallery.webp.txt",
}


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_parts_of_a_sample_find_each_other(form: str, tmp_path: Path) -> None:
    """Catches: `photo.v1.jpg` that ends a plan, and IMG_7.JPG whose text is IMG_7.TXT."""
    files = {image: JPEG + image.encode() for image in NAMED} | {text: text.encode() for text in NAMED.values()}
    if form == "tar":  # all images, then all texts
        place = tar(tmp_path / "a.tar", list(files.items()))
    else:
        place = write(tmp_path / "in", files)
    wanted = {text: JPEG + image.encode() for image, text in NAMED.items()}
    assert rows(place, tmp_path / "out") == wanted


def test_images_without_a_text_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "in", {"a.jpg": JPEG, "a.txt": b"a", "b.jpg": JPEG, "c.jpg": JPEG})
    with caplog.at_level(logging.WARNING):
        assert rows(tmp_path / "in", tmp_path / "out") == {"a": JPEG}
    assert "2 images without a text beside them are passed over, such as" in caplog.text
    assert "b.jpg" in caplog.text


@pytest.mark.parametrize(
    "stored",
    [b"a lion\n", b"a lion\r\n", codecs.BOM_UTF8 + b"a lion", "a lion\n".encode("utf-16")],
    ids=["line break", "Windows's", "byte-order mark", "UTF-16"],
)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_text_in_a_file_is_the_text_that_a_table_has(form: str, stored: bytes, tmp_path: Path) -> None:
    if form == "tar":
        place = tar(tmp_path / "a.tar", [("a.jpg", JPEG), ("a.txt", stored)])
    else:
        place = write(tmp_path / "in", {"a.jpg": JPEG, "a.txt": stored})
    assert rows(place, tmp_path / "out") == {"a lion": JPEG}


@pytest.mark.parametrize("change", ["text", "json", "text gone", "image gone"])
def test_a_folder_in_which_something_changed_is_refused(change: str, tmp_path: Path) -> None:
    """Catches: a new caption that is published beside the labels of the old one."""
    place = write(
        tmp_path / "in",
        {"a.jpg": JPEG, "a.txt": b"a lion", "b.jpg": JPEG + b"b", "b.json": b'{"caption": "b"}', "b.txt": b"b"},
    )
    pairs, registry = PairsConfig(path=str(place)), Units(str(tmp_path / "out"))
    (unit,) = registry.plan(pairs)
    assert registry.plan(pairs) == [unit]
    if change == "text":
        (place / "a.txt").write_bytes(b"a tent")
        os.utime(place / "a.txt", (2_000_000_000, 2_000_000_000))
    elif change == "json":
        (place / "b.json").write_bytes(b'{"caption": "another"}')
    else:
        (place / ("a.txt" if change == "text gone" else "b.jpg")).unlink()
    with pytest.raises(InputError, match=f"an image or a text in the folder of .* has changed since unit {unit.name}"):
        registry.plan(pairs)


def test_what_links_lead_to_elsewhere_is_not_read(tmp_path: Path) -> None:
    """Catches: a folder from outside whose captions are a worker's files."""
    write(tmp_path, {"secret.txt": b"a secret", "secret.jpg": JPEG + b"secret"})
    place = write(tmp_path / "in", {"a.jpg": JPEG, "b.txt": b"b", "c.jpg": JPEG + b"c", "real.txt": b"c"})
    (place / "a.txt").symlink_to(tmp_path / "secret.txt")
    (place / "b.jpg").symlink_to(tmp_path / "secret.jpg")
    (place / "c.txt").symlink_to(place / "real.txt")
    found = rows(place, tmp_path / "out")
    assert found.keys() == {None, "b", "c"}
    assert isinstance(found["b"], NoImage)
    assert found["b"].reason == Reason.MISSING_IMAGE
    assert found["c"] == JPEG + b"c"


def test_a_pipe_that_a_table_names_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    write(tmp_path, {"a.jpg": JPEG, "t.csv": b"jpg,caption\npipe.jpg,a pipe\na.jpg,an image\nno.jpg,none\n"})
    found = rows(tmp_path / "t.csv", tmp_path / "out")
    assert found["an image"] == JPEG
    assert found["a pipe"].detail == "pipe.jpg: it is no file"
    assert found["none"].detail.startswith("no.jpg: No such file")


def test_tars_that_were_joined_by_cat_are_refused(tmp_path: Path) -> None:
    """Catches: all but the first of them lost without a word."""
    for n in "ab":
        tar(tmp_path / f"{n}.tar", [(f"{n}.jpg", JPEG), (f"{n}.txt", n.encode())])
    joined = tmp_path / "joined.tar"
    joined.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    with pytest.raises(InputError, match=r"joined\.tar: its end comes before byte 10,240.*another tar"):
        rows(joined, tmp_path / "out")
    joined.write_bytes((tmp_path / "a.tar").read_bytes() + bytes(100_000))
    assert rows(joined, tmp_path / "out") == {"a": JPEG}


def test_samples_of_one_name_are_all_there(tmp_path: Path) -> None:
    members = [(f"a.{suffix}", content) for n in b"xyz" for suffix, content in (("jpg", b"%c" % n), ("txt", b"%c" % n))]
    assert rows(tar(tmp_path / "a.tar", members), tmp_path / "out") == {"x": b"x", "y": b"y", "z": b"z"}


def test_names_in_a_tar_need_not_be_utf8(tmp_path: Path) -> None:
    members = [(f"{name}.{s}", name.encode()) for name in ("été", "ete") for s in ("jpg", "txt")]
    place = tar(tmp_path / "a.tar", members, encoding="latin-1", format=tarfile.GNU_FORMAT)
    assert rows(place, tmp_path / "out").keys() == {"été", "ete"}


def test_members_that_no_image_is_as_large_as_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a member of gigabytes that a worker holds."""
    monkeypatch.setattr(webdataset, "LARGEST", 1000)
    place = tar(tmp_path / "a.tar", [("a.jpg", bytes(2000)), ("a.txt", b"a"), ("b.jpg", JPEG), ("b.txt", b"b")])
    found = rows(place, tmp_path / "out")
    assert found["a"] == NoImage(Reason.TOO_MANY_BYTES, "it has 2,000 bytes")
    assert found["b"] == JPEG


def test_a_hard_link_is_the_member_that_it_links_to(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a.jpg": JPEG, "a.txt": b"a", "b.txt": b"b"})
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for name in ("a.jpg", "a.txt", "b.jpg", "b.txt"):
            out.add(folder / name, name)
    assert rows(tmp_path / "a.tar", tmp_path / "out") == {"a": JPEG, "b": JPEG}


def test_members_with_holes_are_said(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(JPEG)
    subprocess.run(["tar", "--sparse", "-cf", "a.tar", "a.jpg"], cwd=tmp_path, check=True)
    with pytest.raises(InputError, match=r"a\.jpg is stored with holes: pack the tar anew"):
        rows(tmp_path / "a.tar", tmp_path / "out")
