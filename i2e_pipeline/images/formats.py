"""Formats: what stored bytes are, by their first bytes, and which of that is read here.

Pillow alone would try each of its plugins, and would hand an EPS to Ghostscript. Here a format is read where it is
decoded within the process: by Pillow as it was built, or by a plugin that is installed. Plugins are called by their
class and not registered, so that whatever else uses Pillow in this process stays as it is.
"""

from __future__ import annotations

import importlib
import io
import re
import zlib
from collections.abc import Callable
from functools import lru_cache

from PIL import Image, features

_BY_PILLOW = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "GIF": "GIF",
    "WebP": "WEBP",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "AVIF": "AVIF",
    "ICO": "ICO",
    "JPEG 2000": "JPEG2000",
    "Netpbm": "PPM",
    "PSD": "PSD",
    "QOI": "QOI",
}
"""Formats that Pillow decodes by itself, and its names for them."""
_NEEDS = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""What Pillow may have been built without, as `PIL.features` calls it."""
_BY_PLUGIN = {
    "HEIC": ("pillow_heif", "HeifImageFile", "pillow-heif"),
    "JPEG XL": ("pillow_jxl.JpegXLImagePlugin", "JXLImageFile", "pillow-jxl-plugin"),
}
"""Formats that a plugin decodes: its module, its class, and what one installs (the extra `formats`)."""

_FIRST_BYTES = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG"),
    ("GIF", b"GIF8"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("TIFF", b"II+\0"),
    ("TIFF", b"MM\0+"),
    ("ICO", b"\0\0\1\0"),
    ("JPEG 2000", b"\xff\x4f\xff\x51"),
    ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("JPEG XL", b"\xff\x0a"),
    ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("PSD", b"8BPS\0\1"),
    ("QOI", b"qoif"),
    ("CUR", b"\0\0\2\0"),
    ("ICNS", b"icns"),
    ("DDS", b"DDS |\0\0\0"),
    ("OpenEXR", b"v/1\1"),
    ("Radiance HDR", b"#?RADIANCE"),
    ("JPEG XR", b"II\xbc"),
    ("BPG", b"BPG\xfb"),
    ("FLIF", b"FLIF"),
    ("MNG", b"\x8aMNG"),
    ("JNG", b"\x8bJNG"),
    ("XCF", b"gimp xcf"),
    ("DjVu", b"AT&TFORM"),
    ("Fujifilm RAW", b"FUJIFILMCCD-RAW"),
    ("WMF", b"\xd7\xcd\xc6\x9a"),
    ("XPM", b"/* XPM */"),
    ("PostScript", b"%!PS"),
    ("PostScript", b"\xc5\xd0\xd3\xc6"),
    ("PDF", b"%PDF-"),
    ("Flash", b"FWS"),
    ("Flash", b"CWS"),
    ("Matroska or WebM video", b"\x1aE\xdf\xa3"),
    ("Flash video", b"FLV\1"),
    ("MPEG video", b"\0\0\1\xba"),
    ("MPEG video", b"\0\0\1\xb3"),
    ("Windows Media video", b"0&\xb2u\x8ef\xcf\x11"),
    ("Ogg", b"OggS"),
    ("gzip", b"\x1f\x8b\x08"),
    ("bzip2", b"BZh"),
    ("xz", b"\xfd7zXZ\0"),
    ("Zstandard", b"\x28\xb5\x2f\xfd"),
    ("ZIP", b"PK\3\4"),
    ("RAR", b"Rar!\x1a\x07"),
    ("7-Zip", b"7z\xbc\xaf\x27\x1c"),
    ("a data URI", b"data:image/"),
    ("JPEG as base64 text", b"/9j/4"),
    ("PNG as base64 text", b"iVBORw0KGgo"),
    ("GIF as base64 text", b"R0lGOD"),
)
_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"},
    "Canon RAW": {b"crx "},
}
"""By the brands of ISO's container, in this order: an AVIF may call itself mif1, too."""
_SVG = re.compile(
    rb"(?:\s|<\?[^>]*>|<!--(?:(?!-->).)*-->|<!DOCTYPE\s+(?:\w+:)?svg[^>\[]*(?:\[[^\]]*\]\s*)?>)*<(?:\w{1,20}:)?svg[\s>/]",
    re.DOTALL | re.IGNORECASE,
)
"""Each part matches in one way alone: hostile text costs no more time than its length."""
_NETPBM = re.compile(rb"P[1-6]\s+[\d#]")
_LOOKED_AT = 4096


def format_of(stored: bytes) -> str | None:
    """The name of the format that the first bytes say; None: they say nothing, or are text such as an error page."""
    head = stored[:_LOOKED_AT]
    for name, first in _FIRST_BYTES:
        if head.startswith(first):
            return _packed(stored) if name == "gzip" else name
    if head[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"AVI ": "AVI video"}.get(head[8:12])
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "BMP"
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    if head[4:8] in (b"moov", b"mdat"):
        return "MP4 or QuickTime video"
    if head[40:44] == b" EMF":
        return "EMF"
    if head[128:132] == b"DICM":
        return "DICOM"
    if head.startswith(b"SIMPLE  ="):
        return "FITS"
    if _NETPBM.match(head):
        return "Netpbm"
    return "SVG" if _SVG.match(_text(head)) else None


_SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "WebP": "webp",
    "BMP": "bmp",
    "TIFF": "tiff",
    "AVIF": "avif",
    "ICO": "ico",
    "JPEG 2000": "jp2",
    "Netpbm": "ppm",
    "PSD": "psd",
    "QOI": "qoi",
    "HEIC": "heic",
    "JPEG XL": "jxl",
}
"""How files of the formats end that are read here."""


def suffix_of(stored: bytes) -> str:
    """How a file with these bytes ends, without the dot; `bin` where they are no image that is read here."""
    return _SUFFIXES.get(format_of(stored) or "", "bin")


def _by_brand(head: bytes) -> str:
    box = head[: max(16, min(int.from_bytes(head[:4], "big"), 256))]
    brands = {box[8:12], *(box[at : at + 4] for at in range(16, len(box) - 3, 4))}
    return next((name for name, known in _BRANDS.items() if brands & known), "MP4 or QuickTime video")


def _packed(stored: bytes) -> str:
    """What is in a gzip, from its first bytes alone: the rest is not unpacked."""
    try:
        inside = zlib.decompressobj(wbits=31).decompress(stored[: 4 * _LOOKED_AT], _LOOKED_AT)
    except zlib.error:
        return "gzip"
    name = None if inside.startswith(b"\x1f\x8b") else format_of(inside)
    return f"gzip of {name}" if name else "gzip"


def _text(head: bytes) -> bytes:
    """Without a byte order mark; UTF-16 as single bytes."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head[2:].replace(b"\0", b"")
    return head.removeprefix(b"\xef\xbb\xbf")


def is_read(name: str) -> bool:
    """Whether images of a format, as `format_of` names it, are read in this process."""
    return _BY_PILLOW.get(name) in by_pillow() or plugin(name) is not None


def how_to_read(name: str) -> str:
    """The format, and what would have to be installed for it."""
    if name in _BY_PLUGIN:
        return f"{name}: read where {_BY_PLUGIN[name][2]} is installed (pip install 'i2e-pipeline[formats]')"
    return name


@lru_cache(maxsize=1)
def by_pillow() -> tuple[str, ...]:
    """Pillow's names of the formats that it reads as it was built, for `Image.open`."""
    Image.init()
    return tuple(f for f in _BY_PILLOW.values() if f in Image.OPEN and (f not in _NEEDS or features.check(_NEEDS[f])))


@lru_cache
def plugin(name: str | None) -> Callable[[io.BytesIO], Image.Image] | None:
    """What opens images of a format that Pillow needs a plugin for; None where it is not installed."""
    if name is None or name not in _BY_PLUGIN:
        return None
    module, opener, _ = _BY_PLUGIN[name]
    try:
        found: Callable[[io.BytesIO], Image.Image] = getattr(importlib.import_module(module), opener)
    except (ImportError, AttributeError):
        return None
    return found


# Sides before a decoder is called


def sides_within(stored: bytes) -> tuple[int, int] | None:
    """(width, height) of what a decoder would unpack as soon as it opens the bytes; None: it reads the header first.

    Pillow's ICO and the JPEG XL plugin decode at once, so that a limit on the opened image's sides comes too late.
    """
    if stored.startswith(b"\0\0\1\0"):
        return _largest_icon(stored)
    if format_of(stored) == "JPEG XL":
        return _jxl_sides(stored)
    return None


def _largest_icon(stored: bytes) -> tuple[int, int] | None:
    """An icon's directory says 256 at most; what lies behind it is a PNG or a bitmap of its own size."""
    found = []
    for entry in range(min(int.from_bytes(stored[4:6], "little"), 256)):
        at = int.from_bytes(stored[18 + 16 * entry : 22 + 16 * entry], "little")
        if stored[at : at + 4] == b"\x89PNG":
            found.append(tuple(int.from_bytes(stored[at + n : at + n + 4], "big") for n in (16, 20)))
        else:
            found.append(tuple(abs(_signed(stored[at + n : at + n + 4])) for n in (4, 8)))
    return max(((w, h) for w, h in found), key=lambda sides: sides[0] * sides[1], default=None)


def _signed(four: bytes) -> int:
    return int.from_bytes(four, "little", signed=True)


_JXL_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def _jxl_sides(stored: bytes) -> tuple[int, int] | None:
    """From the size header of the codestream (ISO/IEC 18181-1, D.2); None where there is none."""
    stream = stored if stored.startswith(b"\xff\x0a") else _jxl_stream(stored)
    if len(stream) < 4:
        return None
    bits, used = int.from_bytes(stream[2:14], "little"), 0

    def take(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = take(3)
    if ratio:
        over, under = _JXL_RATIOS[ratio]
        return height * over // under, height
    return side(), height


def _jxl_stream(stored: bytes) -> bytes:
    """The first bytes of the codestream in its container."""
    at = 0
    while at + 16 <= len(stored):
        size, kind = int.from_bytes(stored[at : at + 4], "big"), stored[at + 4 : at + 8]
        start = at + 8
        if size == 1:
            size, start = int.from_bytes(stored[at + 8 : at + 16], "big"), at + 16
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0
            return stored[start : start + 16]
        if size < 8:
            break
        at += size
    return b""
