"""Metadata that is damaged or larger than the decoder's bounds does not cost the image its pixels."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from i2e_pipeline.core.config import ImageLimits
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.images import metadata
from i2e_pipeline.images.decode import Rejected, open_rgb
from tests.small_models import picture, stored

PNG, JPEG = stored(picture(1), "PNG"), stored(picture(1), "JPEG", quality=90)
PALETTE = stored(picture(1).convert("P"), "PNG", transparency=3)
HUGE = zlib.compress(b"a" * 5_000_000)
XMP = b"XML:com.adobe.xmp\0\1\0\0\0"


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return len(data).to_bytes(4, "big") + kind + data + checksum.to_bytes(4, "big")


def in_png(*chunks: bytes, behind_pixels: bool = False, png: bytes = PNG) -> bytes:
    at = len(png) - 12 if behind_pixels else 33
    return png[:at] + b"".join(chunks) + png[at:]


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def in_jpeg(*segments: bytes) -> bytes:
    """Behind JFIF."""
    return JPEG[:20] + b"".join(segments) + JPEG[20:]


def seen(data: bytes) -> np.ndarray:
    opened = open_rgb(data, ImageLimits())
    assert not isinstance(opened, Rejected), opened
    return np.asarray(opened[0])


def reason(data: bytes) -> Reason:
    opened = open_rgb(data, ImageLimits())
    assert isinstance(opened, Rejected)
    return opened.reason


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


PNGS = {
    "XMP that unpacks to more than the bound": in_png(chunk(b"iTXt", XMP + HUGE)),
    "text that unpacks to more than the bound": in_png(chunk(b"zTXt", b"k\0\0" + HUGE)),
    "a profile that unpacks to more than the bound": in_png(chunk(b"iCCP", b"k\0\0" + HUGE)),
    "more text than the bound of all": in_png(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 1_000_000))] * 80),
    "such text behind the pixels": in_png(chunk(b"iTXt", XMP + HUGE), behind_pixels=True),
    "a profile packed in an unknown way": in_png(chunk(b"iCCP", b"k\0\1" + HUGE)),
    "an empty profile": in_png(chunk(b"iCCP", b"")),
    "a wrong checksum of gamma": in_png(chunk(b"gAMA", b"\0\0\1\0", 5)),
    "a wrong checksum of text": in_png(chunk(b"tEXt", b"a\0b", 5)),
    "a wrong checksum of a private chunk": in_png(chunk(b"prVt", b"\0\0", 5)),
    "a resolution that is cut": in_png(chunk(b"pHYs", b"\0")),
    "an empty transparency": in_png(chunk(b"tRNS", b"")),
    "an animation without frames": in_png(chunk(b"acTL", bytes(8))),
    "an animation that is cut": in_png(chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", bytes(26))),
    "EXIF that is none": in_png(chunk(b"eXIf", b"junk")),
    "text that is cut at the end": PNG[:-12] + chunk(b"tEXt", b"a\0" + b"b" * 2000)[:500],
    "no end": PNG[:-12],
    "a length that is too small": in_png(b"\0\0\0\5tEXta\0bcdefghijkl\0\0\0\0"),
    "a length that is too large": in_png(b"\x7f\0\0\5tEXta\0bcdefghijkl\0\0\0\0"),
}
MPF = b"MPF\0II*\0\x08\0\0\0"
JPEGS = {
    "a list of pictures without their number": in_jpeg(segment(0xE2, MPF + b"\1\0\0\xb0\7\0\4\0\0\00100\0\0\0\0")),
    "a list of pictures that is none": in_jpeg(segment(0xE2, b"MPF\0" + b"junk" * 9)),
    "a list of pictures that is cut": in_jpeg(segment(0xE2, b"MPF\0II*\0")),
    "a profile without numbers": in_jpeg(segment(0xE2, b"ICC_PROFILE\0")),
    "a part of a profile": in_jpeg(segment(0xE2, b"ICC_PROFILE\0\5\7abc")),
    "JFIF that is cut": JPEG[:2] + segment(0xE0, b"JFIF") + JPEG[20:],
    "Adobe's marker, cut": in_jpeg(segment(0xEE, b"Adobe\0")),
    "Photoshop's block, cut": in_jpeg(segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x1a")),
    "EXIF that is none": in_jpeg(segment(0xE1, b"Exif\0\0junkjunk")),
    "EXIF that is cut": in_jpeg(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\5\0")),
    "megabytes of EXIF": in_jpeg(*[segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0" + b"a" * 65_000)] * 100),
    "a comment without a length": in_jpeg(b"\xff\xfe\0\0"),
    "junk between segments": in_jpeg(b"junkjunk"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", PNGS)
def test_damaged_or_huge_metadata_does_not_cost_a_png(kind: str) -> None:
    """Catches: an image given up over a text that nobody reads."""
    assert np.array_equal(seen(PNGS[kind]), seen(PNG))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", JPEGS)
def test_damaged_or_huge_metadata_does_not_cost_a_jpeg(kind: str) -> None:
    assert np.array_equal(seen(JPEGS[kind]), seen(JPEG))


def test_damaged_or_huge_metadata_does_not_cost_a_webp() -> None:
    plain = stored(picture(1), "WEBP")
    full = stored(picture(1), "WEBP", exif=b"Exif\0\0" + b"a" * 300_000, xmp=b"x" * 1000, icc_profile=b"i" * 99)
    announced_too_long = full[:4] + b"\xff\xff\xff\x7f" + full[8:]
    for data in (full, full[:-500], full[:-200_000], announced_too_long):
        assert np.array_equal(seen(data), seen(plain))
    assert reason(plain[:-50]) is Reason.TRUNCATED_IMAGE


def test_damaged_exif_does_not_cost_an_avif() -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = stored(picture(1), "AVIF", exif=exif)
    at = data.rindex(b"MM\0*")
    assert np.array_equal(seen(data[:at] + b"junk" + data[at + 4 :]), seen(stored(picture(1), "AVIF")))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "damage",
    [lambda png: in_png(chunk(b"iCCP", b""), png=png), lambda png: in_png(chunk(b"gAMA", bytes(4), 5), png=png)],
)
def test_transparency_and_orientation_stay_where_metadata_goes(damage: Callable[[bytes], bytes]) -> None:
    """Catches: black where the image is transparent, a photo on its side."""
    for mode, opaque in [("P", picture(1).convert("P")), ("L", picture(1).convert("L"))]:
        clear = int(np.asarray(opaque)[0, 0])
        png = stored(opaque, "PNG", transparency=clear)
        assert not np.array_equal(seen(png), seen(stored(opaque, "PNG"))), mode
        assert np.array_equal(seen(damage(png)), seen(png)), mode
    turned = in_png(chunk(b"eXIf", orientation(6).removeprefix(b"Exif\0\0")))
    assert seen(turned).shape == (64, 48, 3)
    assert np.array_equal(seen(damage(turned)), seen(turned))
    broken = in_jpeg(segment(0xE1, orientation(6)), segment(0xE2, MPF + b"\1\0\0\xb0\7\0\4\0\0\00100\0\0\0\0"))
    assert np.array_equal(seen(broken), seen(in_jpeg(segment(0xE1, orientation(6)))))
    webp = stored(picture(1), "WEBP", exif=orientation(6), xmp=b"x" * 1000)
    assert np.array_equal(seen(webp[:-500]), seen(webp))


def test_damaged_pixels_cost_the_image() -> None:
    """Catches: a guess at pixels that are not there."""
    at = PNG.index(b"IDAT")
    assert reason(PNG[: at + 200]) is Reason.TRUNCATED_IMAGE
    assert reason(PNG[: at + 200] + PNG[-12:]) in (Reason.TRUNCATED_IMAGE, Reason.BROKEN_IMAGE)
    assert reason(PNG[: at + 200] + PNG[at + 260 :]) in (Reason.TRUNCATED_IMAGE, Reason.BROKEN_IMAGE)
    palette = PALETTE.index(b"PLTE") + 10
    assert reason(PALETTE[:palette] + b"xx" + PALETTE[palette + 2 :]) is Reason.BROKEN_IMAGE
    assert reason(PNGS["an empty profile"][: at + 200]) is Reason.TRUNCATED_IMAGE
    assert reason(JPEG[:-200]) is Reason.TRUNCATED_IMAGE
    assert reason(JPEGS["a comment without a length"][:-200]) is Reason.TRUNCATED_IMAGE


def test_pixels_in_several_chunks_are_not_joined_over_a_gap() -> None:
    """Catches: a chunk of pixels that is passed over as if it were a text."""
    at = PNG.index(b"IDAT") - 4
    data = PNG[at + 8 : -16]
    whole = PNG[:at] + b"".join(chunk(b"IDAT", data[n : n + 900]) for n in range(0, len(data), 900)) + PNG[-12:]
    assert np.array_equal(seen(whole), seen(PNG))
    second = whole.index(b"IDAT", at + 8)
    for damaged in (whole[: second + 10] + whole[second + 90 :], whole[:second] + b"iDAT" + whole[second + 4 :]):
        assert reason(damaged) in (Reason.TRUNCATED_IMAGE, Reason.BROKEN_IMAGE)


def test_bombs_of_text_are_not_unpacked() -> None:
    """Catches: 60 MB of stored zeros that unpack to 60 GB."""
    bomb = zlib.compress(bytes(200_000_000))
    data = in_png(*[chunk(kind, b"k\0\0" + bomb) for kind in (b"zTXt", b"iCCP")], chunk(b"iTXt", XMP + bomb))
    tracemalloc.start()
    try:
        seen(data)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        PNG[:33] + chunk(b"prVt", b"") * 2_000_000,
        PNG[:33] + chunk(b"IDAT", b"") * 2_000_000,
        JPEG[:20] + b"\xff\xc4\0\2" * 5_000_000,
        b"RIFF\0\0\0\0WEBP" + b"ANMF\0\0\0\0" * 2_000_000,
    ],
)
def test_millions_of_empty_parts_are_not_gathered(data: bytes) -> None:
    """Catches: an object for each of the millions of parts that a file of a few megabytes can hold."""
    tracemalloc.start()
    try:
        metadata.without(data)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_bombs_of_pixels_stay_out_where_metadata_is_left_out() -> None:
    large = stored(Image.new("1", (9_000, 9_000)))
    assert reason(in_png(chunk(b"iCCP", b""), png=large)) is Reason.TOO_MANY_PIXELS


def test_pillow_is_as_it_was() -> None:
    """Catches: bounds that are raised for whatever else uses Pillow in this process."""

    def bounds() -> tuple[object, ...]:
        of_png = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
        return (*of_png, ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)

    before = bounds()
    seen(PNGS["XMP that unpacks to more than the bound"])
    assert bounds() == before
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(PNGS["text that unpacks to more than the bound"]))


def test_what_has_no_metadata_is_not_tried_again() -> None:
    assert metadata.without(stored(picture(1), "PNG")) is None
    assert metadata.without(b"\xff\xd8\xff\xe0") is None
    assert metadata.without(b"<html>") is None
    assert metadata.without(stored(picture(1), "GIF")) is None


@pytest.mark.parametrize("data", [PNGS["an empty profile"], JPEGS["junk between segments"], stored(picture(1), "WEBP")])
def test_no_damage_raises(data: bytes) -> None:
    """At each place that a byte can be cut or changed in what stands before the pixels."""
    for at in range(0, min(len(data), 900), 3):
        for changed in (data[:at], data[:at] + b"\xff\xff" + data[at + 2 :], data[:at] + data[at + 5 :]):
            assert metadata.without(changed) is None or isinstance(metadata.without(changed), bytes)
