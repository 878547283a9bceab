"""Evaluation sets in all their forms, and what is asked of them."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from i2e_pipeline.clean import evaluation_sets
from i2e_pipeline.clean.evaluation_sets import (
    EvaluationSetError,
    Listed,
    detail,
    digest_of,
    laid_out_sets,
)
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.images.decode import perceptual_hashes, thumbnail


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


def picture(seed: int, side: int = 96) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def stored(image: Image.Image, kind: str = "PNG", **how: int) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **how)
    return content.getvalue()


def hash_of(image: Image.Image) -> bytes:
    return perceptual_hashes(thumbnail(image)[None])[0].tobytes()


IMAGES = [stored(picture(n)) for n in range(5)]


def folder(place: Path) -> str:
    for number, content in enumerate(IMAGES):
        path = place / f"set/class {number % 2}/{number}.{'PNG' if number else 'jpeg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (place / "set/readme.txt").write_text("about the set")
    return str(place / "set")


def parquet(place: Path, column: pa.Array, name: str = "image", **further: pa.Array) -> str:
    pq.write_table(pa.table({"label": pa.array(range(5)), name: column, **further}), place / "set.parquet")
    return str(place / "set.parquet")


def tar(place: Path, mode: str, suffix: str) -> str:
    with tarfile.open(place / f"set{suffix}", mode) as made:
        for number, content in enumerate(IMAGES):
            for name, data in ((f"val/{number}.jpg", content), (f"val/{number}.cls", b"3")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
    return str(place / f"set{suffix}")


def lines(place: Path) -> str:
    text = "# of a set\n\n" + "\n".join(
        [*(content_id(c).hex() for c in IMAGES), *(hash_of(picture(n)).hex() for n in range(5))]
    )
    (place / "set.txt").write_text(text)
    return str(place / "set.txt")


FORMS = {
    "folder": folder,
    "bytes": lambda place: parquet(place, pa.array(IMAGES)),
    "hugging face": lambda place: parquet(place, pa.array([{"bytes": c, "path": "x.png"} for c in IMAGES])),
    "numbers called image_id": lambda place: parquet(place, pa.array(IMAGES), "jpg", image_id=pa.array(range(5))),
    "tar": lambda place: tar(place, "w", ".tar"),
    "tar.gz": lambda place: tar(place, "w:gz", ".tar.gz"),
    "hex in parquet": lambda place: parquet(
        place,
        pa.array([content_id(c).hex() for c in IMAGES]),
        "image_id",
        perceptual_hash=pa.array([hash_of(picture(n)).hex().upper() for n in range(5)]),
    ),
    "lines": lines,
}


def listed(sets: dict[str, tuple[str, ...]], mirrored: bool = True) -> Listed:
    digests = {name: digest_of(name, patterns) for name, patterns in sets.items()}
    return evaluation_sets.read(laid_out_sets(sets, digests), mirrored)


def asked(of: Listed, *images: bytes) -> list[dict[str, bool]]:
    ids = pa.array([content_id(one) for one in images], pa.binary())
    opened = [Image.open(io.BytesIO(one)).convert("RGB") for one in images]
    return of.named(ids, pa.array([hash_of(one) for one in opened], pa.binary()))


@pytest.mark.parametrize("form", FORMS)
def test_a_set_in_each_form(tmp_path: Path, form: str) -> None:
    of = listed({"gpr": (FORMS[form](tmp_path),)})
    edited = stored(picture(3).resize((72, 72)), "JPEG", quality=70)
    assert asked(of, *IMAGES, edited, stored(picture(9))) == [{"gpr": True}] * 5 + [{"gpr": False}, {}]
    mirror = stored(picture(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert asked(of, mirror) == [{"gpr": False}]
    assert asked(listed({"gpr": (FORMS[form](tmp_path),)}, mirrored=False), mirror) == [{}]


def test_an_image_in_several_sets_is_told_of_each(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.jpg").write_bytes(stored(picture(0), "JPEG"))
    of = listed({"a": (folder(tmp_path),), "b": (str(tmp_path / "b"),)})
    (found, other) = asked(of, IMAGES[0], IMAGES[1])
    assert found == {"a": True, "b": False}
    assert other == {"a": True}
    assert detail(found) == "a, b: within 31 bits of 256"
    assert detail({}) is None


def test_what_cannot_be_decoded_is_known_by_its_bytes_alone(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (tmp_path / "set" / "blank.png").write_bytes(stored(Image.new("RGB", (90, 90), "white")))
    of = listed({"s": (str(tmp_path / "set"),)})
    ids = pa.array([content_id(b"\xff\xd8 no image"), content_id(b"other")], pa.binary())
    assert of.named(ids, pa.nulls(2, pa.binary())) == [{"s": True}, {}]
    # One white image says nothing of another.
    assert asked(of, stored(Image.new("RGB", (91, 90), "white"))) == [{}]


def test_a_set_is_looked_at_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path)
    listed({"s": (place,)})
    looked = []
    make = evaluation_sets._make
    monkeypatch.setattr(evaluation_sets, "_make", lambda *a: (looked.append(a[0]), make(*a)))
    listed({"s": (place,)})
    assert not looked
    listed({"other name": (place,)})
    assert not looked
    (Path(place) / "class 0" / "new.png").write_bytes(stored(picture(7)))
    assert asked(listed({"s": (place,)}), stored(picture(7))) == [{"s": True}]
    assert looked == ["s"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: str(p / "nowhere"), "clean.evaluation_sets.s: .*nowhere"),
        (lambda p: str(p), "holds no image, Parquet file or tar"),
        (lambda p: parquet(p, pa.array(range(5)), "x"), "has neither perceptual_hash nor image_id .* it has label, x"),
        (lambda p: parquet(p, pa.array(["ab"] * 5), "image_id"), "'ab' is no image_id: 32 hex digits or 16 bytes"),
        (lambda p: (p / "l.txt").write_text("deadbeef") and str(p / "l.txt"), "l.txt, line 1: 'deadbeef' is no perc"),
        (lambda p: (p / "l.tar").write_bytes(b"x" * 600) and str(p / "l.tar"), "is no tar"),
        (lambda p: (p / "l.parquet").write_bytes(b"x" * 60) and str(p / "l.parquet"), "is no Parquet file"),
    ],
)
def test_what_is_no_set_is_said_with_its_file(tmp_path: Path, make: object, words: str) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(EvaluationSetError, match=words):
        listed({"s": (make(tmp_path),)})  # type: ignore[operator]
