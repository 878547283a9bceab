"""What is no format that is read here is named; what a plugin reads is read where it is installed."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import struct
import sys
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2e_pipeline.core.config import ImageLimits
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.images import formats
from i2e_pipeline.images.decode import Rejected, open_rgb
from tests.small_models import picture, stored

SVG = b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
JPEG = stored(picture(0), "JPEG")
UNREAD = {
    "SVG": [
        SVG,
        b"\xef\xbb\xbf <svg width='9'>",
        "<svg >".encode("utf-16"),
        b"<svg:svg xmlns:svg=''/>",
        b'<?xml version="1.0"?><?xml-stylesheet href=""?>\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg.dtd" ['
        b'\n<!ENTITY ns "http://ns.adobe.com/">\n]>\n<!-- a > b --><svg\n viewBox="0 0 9 9">',
    ],
    "gzip of JPEG": [gzip.compress(JPEG)],
    "gzip of SVG": [gzip.compress(SVG)],
    "gzip": [gzip.compress(b"text"), gzip.compress(gzip.compress(JPEG)), b"\x1f\x8b\x08 damaged"],
    "bzip2": [bz2.compress(JPEG)],
    "ZIP": [b"PK\3\4\x14\0"],
    "PDF": [b"%PDF-1.4\n"],
    "PostScript": [b"%!PS-Adobe-3.0 EPSF-3.0"],
    "MP4 or QuickTime video": [b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", b"\0\0\0\x14ftypqt  \0\0\0\0qt  "],
    "Matroska or WebM video": [b"\x1aE\xdf\xa3\x01\0\0\0"],
    "AVI video": [b"RIFF\0\0\0\0AVI LIST"],
    "JPEG as base64 text": [base64.b64encode(JPEG)],
    "a data URI": [b"data:image/png;base64,iVBORw0KGgo="],
    "DICOM": [bytes(128) + b"DICM"],
    "EMF": [b"\1\0\0\0" + bytes(36) + b" EMF"],
    "ICNS": [stored(picture(0).resize((64, 64)), "ICNS")],
}


def seen(data: bytes, **limits: int) -> np.ndarray | Rejected:
    opened = open_rgb(data, ImageLimits(**limits))
    return opened if isinstance(opened, Rejected) else np.asarray(opened[0])


@pytest.mark.parametrize("name", UNREAD)
def test_a_format_that_is_not_read_is_named(name: str) -> None:
    """Catches: a drawing or a photo of a telephone that is counted as an error page."""
    for data in UNREAD[name]:
        assert seen(data) == Rejected(Reason.UNSUPPORTED_FORMAT, name)


@pytest.mark.parametrize("format", ["JPEG2000", "AVIF", "TIFF", "BMP", "PPM", "QOI", "GIF", "WEBP"])
def test_a_format_that_pillow_reads_is_read(format: str) -> None:
    data = stored(picture(0), format)
    assert formats.is_read(formats.format_of(data) or "")
    opened = seen(data)
    assert isinstance(opened, np.ndarray)
    assert np.abs(opened.astype(int) - np.asarray(picture(0))).mean() < 12
    assert seen(data[: len(data) // 2]) != Reason.UNSUPPORTED_FORMAT


def test_a_format_that_pillow_was_built_without_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stored(picture(0), "JPEG2000")
    monkeypatch.setattr(formats.features, "check", lambda feature: feature != "jpg_2000")
    formats.by_pillow.cache_clear()
    try:
        assert seen(data) == Rejected(Reason.UNSUPPORTED_FORMAT, "JPEG 2000")
    finally:
        formats.by_pillow.cache_clear()


def test_a_jpeg_of_twelve_bits_is_named() -> None:
    at = JPEG.index(b"\xff\xc0") + 4
    twelve = JPEG[:at] + b"\x0c" + JPEG[at + 1 :]
    assert seen(twelve) == Rejected(Reason.UNSUPPORTED_FORMAT, "JPEG of 12 bits a channel")


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"
JXL = b"\0\0\0\x0cJXL \r\n\x87\n"


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (HEIC, "HEIC: read where pillow-heif is installed (pip install 'i2e-pipeline[formats]')"),
        (JXL, "JPEG XL: read where pillow-jxl-plugin is installed (pip install 'i2e-pipeline[formats]')"),
        (
            b"\xff\x0a\xff\x07",
            "JPEG XL: read where pillow-jxl-plugin is installed (pip install 'i2e-pipeline[formats]')",
        ),
    ],
)
def test_a_format_whose_plugin_is_not_installed_is_named_with_it(
    data: bytes, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pillow_heif", "pillow_jxl", "pillow_jxl.JpegXLImagePlugin"):
        monkeypatch.setitem(sys.modules, module, None)
    formats.plugin.cache_clear()
    try:
        assert seen(data) == Rejected(Reason.UNSUPPORTED_FORMAT, detail)
    finally:
        formats.plugin.cache_clear()


@pytest.mark.parametrize("text", [b"<!---->", b" ", b"<?a?>", b"<!--a", b"<!DOCTYPE svg [", b"<!DOCTYPE svg>"])
def test_text_that_is_nearly_a_drawing_costs_no_time(text: bytes) -> None:
    """Catches: an expression that tries every way in which the comments of a page could be divided."""
    before = time.process_time()
    assert formats.format_of(text * 4000 + b"<html>") is None
    assert time.process_time() - before < 1


def test_brands_tell_avif_from_heic_and_video() -> None:
    def named(*brands: bytes) -> str | None:
        return formats.format_of((8 + 4 * len(brands) + 4).to_bytes(4, "big") + b"ftyp" + brands[0] + bytes(4)
                                 + b"".join(brands[1:]) + b"avif")  # fmt: skip

    assert named(b"mif1", b"avif", b"miaf") == "AVIF"
    assert named(b"mif1", b"heic", b"miaf") == named(b"heix") == "HEIC"
    assert named(b"mp42", b"isom") == "MP4 or QuickTime video"  # what stands behind the box is not in it


# Plugins


def heic(image: Image.Image, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    stream = io.BytesIO()
    made = pillow_heif.from_pillow(image)
    made.info.update(options)
    made.save(stream)
    return stream.getvalue()


def jxl(image: Image.Image, **options: Any) -> bytes:
    pytest.importorskip("pillow_jxl", reason="pillow-jxl-plugin is not installed")
    return stored(image, "JXL", **options)


def test_heic_is_read_where_its_plugin_is() -> None:
    data = heic(picture(0))
    opened = seen(data)
    assert isinstance(opened, np.ndarray)
    assert np.abs(opened.astype(int) - np.asarray(picture(0))).mean() < 12
    assert "HEIF" not in Image.OPEN  # nobody else gets it
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = seen(heic(picture(0), exif=exif.tobytes()))
    assert isinstance(turned, np.ndarray)
    assert turned.shape == (64, 48, 3)
    cut = seen(data[:-100])
    assert isinstance(cut, Rejected)
    assert cut.reason is Reason.TRUNCATED_IMAGE
    large = seen(heic(Image.new("RGB", (2000, 1500))), max_pixels=1_000_000)
    assert large == Rejected(Reason.TOO_MANY_PIXELS, "2000 x 1500 pixels")


def test_jpeg_xl_is_read_where_its_plugin_is() -> None:
    data = jxl(picture(0), lossless=True)
    opened = seen(data)
    assert isinstance(opened, np.ndarray)
    assert np.array_equal(opened, np.asarray(picture(0)))
    cut = seen(data[: len(data) // 2])
    assert isinstance(cut, Rejected)
    assert cut.reason is Reason.BROKEN_IMAGE


@pytest.mark.parametrize("container", [False, True])
def test_the_sides_of_a_jpeg_xl_are_known_before_it_is_unpacked(container: bool) -> None:
    for sides in [(8, 8), (256, 8), (300, 200), (513, 513), (640, 480), (1920, 1080), (17, 33), (64, 48), (3000, 20)]:
        assert formats.sides_within(jxl(Image.new("RGB", sides), use_container=container)) == sides
    large = jxl(Image.new("RGB", (640, 480)), use_container=container)
    assert seen(large, max_pixels=100_000) == Rejected(Reason.TOO_MANY_PIXELS, "640 x 480 pixels")


@pytest.mark.parametrize(
    ("stream", "sides"),
    [
        (b"\xff\x0a\x05\x08", (40, 24)),
        (b"\xff\x0a\x01\x01", (12, 8)),
        (b"\xff\x0a\xba\x21\x05", (1920, 1080)),
        (b"\xff\x0a", None),
        (JXL + bytes(60), None),
    ],
)
def test_the_size_header_of_jpeg_xl(stream: bytes, sides: tuple[int, int] | None) -> None:
    """Without the plugin: a small one of both sides, a small and a large one by ratio, none."""
    assert formats.sides_within(stream) == sides


def test_an_icon_is_as_large_as_what_it_holds() -> None:
    """Catches: an icon that says 64 x 64 and unpacks to a hundred million pixels as soon as it is opened."""
    inside = stored(Image.new("1", (12_000, 5_000)), "PNG")
    bomb = b"\0\0\1\0\1\0" + bytes([64, 64, 0, 0]) + struct.pack("<HHII", 1, 32, len(inside), 22) + inside
    assert seen(bomb) == Rejected(Reason.TOO_MANY_PIXELS, "12000 x 5000 pixels")
    icon = stored(picture(0).resize((64, 64)), "ICO", sizes=[(64, 64)])
    assert isinstance(seen(icon), np.ndarray)
