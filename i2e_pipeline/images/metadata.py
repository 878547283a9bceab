"""Metadata: an image without what is not its pixels.

Texts, profiles and thumbnails beside the pixels are written by other programs than these, are often damaged, and may
unpack to gigabytes. Pillow gives the image up with them (a bad checksum, more than its bound of text); browsers do not.
So where an image cannot be opened, it is tried again without them. Nothing is unpacked here, and what is returned is no
longer than what was stored.

What decides on the pixels as displayed stays: transparency, and of EXIF the orientation. An orientation that XMP alone
names is lost, which browsers do not heed either.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from PIL import Image

_ORIENTATION = 0x0112
_CANDIDATES = 16
"""Places at which the chunks of a PNG may go on behind one whose length is wrong, which is passed over once. Checking
one costs its length."""
_MOST_PARTS = 100_000
"""Chunks or segments that are looked at. Real images have some thousands at most; each costs an object."""
_PALETTE_OR_PIXELS = re.compile(rb"PLTE|IDAT")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_TRNS_BYTES = {0: (2,), 2: (6,), 3: range(1, 257)}
"""By colour type."""


def without(stored: bytes) -> bytes | None:
    """The image without its metadata; None where there is no more to leave out, or its pixels are not all there."""
    bare = None
    if stored.startswith(_PNG_START):
        bare = _png(stored)
    elif stored.startswith(b"\xff\xd8"):
        bare = _jpeg(stored)
    elif stored[:4] == b"RIFF" and stored[8:12] == b"WEBP":
        bare = _webp(stored)
    elif stored[4:8] == b"ftyp":
        bare = _EXIF_ITEM.sub(rb"\1free", stored)
    return bare if bare != stored else None


def _orientation(exif: bytes) -> bytes | None:
    """An EXIF block (from its TIFF header on) that holds the orientation alone; None where it says none."""
    read = Image.Exif()
    try:
        read.load(exif)
        turned = read.get(_ORIENTATION, 1)
    except Exception:  # whatever Pillow comes to grief over in damaged EXIF
        return None
    if turned not in range(2, 9):
        return None
    alone = Image.Exif()
    alone[_ORIENTATION] = turned
    return alone.tobytes().removeprefix(b"Exif\0\0")


# PNG


def _png(stored: bytes) -> bytes | None:
    kept, colour, pixels = [_PNG_START], -1, False
    for kind, data, whole in _png_chunks(stored):
        if kind[:1].isupper():
            if not whole:
                return None
            pixels = pixels or kind == b"IDAT"
            colour = data[9] if kind == b"IHDR" and len(data) == 13 else colour
            kept.append(_png_chunk(kind, data))
        elif not whole:
            continue
        elif kind == b"tRNS" and len(data) in _TRNS_BYTES.get(colour, ()):
            kept.append(_png_chunk(kind, data))
        elif kind == b"eXIf" and (turned := _orientation(data)):
            kept.append(_png_chunk(kind, turned))
    if not pixels:
        return None
    return b"".join(kept) if kept[-1][4:8] == b"IEND" else b"".join(kept) + _png_chunk(b"IEND", b"")


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _png_chunks(stored: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(type, data, whether it is there to its end and its checksum is right) up to IEND.

    Behind a chunk whose length is wrong they go on, once, with the next whole one that the pixels need, as long as no
    pixels were read: behind these, a gap could be a part of them.
    """
    at, last, stays = len(_PNG_START), len(_PNG_START), False
    for _ in range(_MOST_PARTS):
        if at + 8 > len(stored):
            return
        kind, end = stored[at + 4 : at + 8], at + 12 + int.from_bytes(stored[at : at + 4], "big")
        if not kind.isalpha() or end > len(stored):
            if kind == b"IDAT":
                yield kind, b"", False
                return
            following = None if stays else _next_critical(stored, last)
            if following is None:
                return
            at, stays = following, True
            continue
        data = stored[at + 8 : end - 4]
        # IDAT's own checksum is not looked at, as Pillow does not: its data has another of its own.
        right = kind == b"IDAT" or zlib.crc32(data, zlib.crc32(kind)) == int.from_bytes(stored[end - 4 : end], "big")
        yield kind, data, right
        if kind == b"IEND":
            return
        stays = stays or kind == b"IDAT"
        last, at = at + 8, end


def _next_critical(stored: bytes, start: int) -> int | None:
    """Where the next PLTE or IDAT begins that is there to its end and whose checksum is right."""
    for number, found in enumerate(_PALETTE_OR_PIXELS.finditer(stored, start)):
        at = found.start() - 4
        end = at + 12 + int.from_bytes(stored[at : at + 4], "big")
        if number == _CANDIDATES:
            break
        if end <= len(stored) and zlib.crc32(stored[at + 4 : end - 4]) == int.from_bytes(stored[end - 4 : end], "big"):
            return at
    return None


# JPEG


def jpeg_segments(stored: bytes, over_gaps: bool = False) -> Iterator[tuple[int, bytes, bytes]]:
    """(marker, data, the segment as stored) up to the start of scan, whose last is all the rest.

    over_gaps   a segment whose length is wrong is followed by the next marker, as libjpeg has it; else by nothing
    """
    at = 2
    for _ in range(_MOST_PARTS):
        if at + 4 > len(stored):
            return
        if stored[at] != 0xFF:
            found = re.compile(rb"\xff[^\0\xff]").search(stored, at) if over_gaps else None
            if found is None:
                return
            at = found.start()
        marker = stored[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            yield marker, b"", stored[at:]
            return
        length = int.from_bytes(stored[at + 2 : at + 4], "big")
        if length < 2 or marker in (0x00, 0x01, 0xD8, 0xD9) or 0xD0 <= marker <= 0xD7:
            return
        yield marker, stored[at + 4 : at + 2 + length], stored[at : at + 2 + length]
        at += 2 + length


_CHANNELS = {(0xE0, b"JFIF\0"): 14, (0xEE, b"Adobe"): 12}
"""Segments that say what the channels are, and their bytes at least."""


def _jpeg(stored: bytes) -> bytes | None:
    kept, frame, scan, exif = [b"\xff\xd8"], False, False, False
    for marker, data, segment in jpeg_segments(stored, over_gaps=True):
        scan = marker == 0xDA
        frame = frame or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))
        if marker == 0xE1 and data.startswith(b"Exif\0\0") and not exif:
            exif = True
            if turned := _orientation(data[6:]):
                block = b"Exif\0\0" + turned
                kept.append(b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block)
        elif len(data) >= _CHANNELS.get((marker, data[:5]), len(stored)) or not (
            0xE0 <= marker <= 0xEF or marker == 0xFE
        ):
            kept.append(segment)
    return b"".join(kept) if frame and scan else None


# WebP

_OF_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_ICC, _EXIF, _XMP = 0x20, 0x08, 0x04


def _webp(stored: bytes) -> bytes | None:
    kept: list[tuple[bytes, bytes]] = []
    turned, at = None, 12
    for _ in range(_MOST_PARTS):
        if at + 8 > len(stored):
            break
        kind, size = stored[at : at + 4], int.from_bytes(stored[at + 4 : at + 8], "little")
        data, whole = stored[at + 8 : at + 8 + size], at + 8 + size <= len(stored)
        if kind in (b"VP8X", *_OF_PIXELS):
            if not whole:
                return None
            kept.append((kind, data))
        elif kind == b"EXIF" and whole:
            turned = turned or _orientation(data.removeprefix(b"Exif\0\0"))
        at += 8 + size + size % 2
    if not any(kind in _OF_PIXELS for kind, _ in kept):
        return None
    if turned and kept[0][0] == b"VP8X":
        kept.append((b"EXIF", turned))
    body = b"".join(
        kind + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
        for kind, data in ((kind, _flags(data, turned) if kind == b"VP8X" else data) for kind, data in kept)
    )
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body


def _flags(extended: bytes, turned: bytes | None) -> bytes:
    """VP8X, which says what else there is."""
    flags = extended[0] & ~(_ICC | _EXIF | _XMP) if extended else 0
    return bytes([flags | (_EXIF if turned else 0)]) + extended[1:]


# AVIF, HEIC

_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{3}.{4}|\x03.{3}.{6}))Exif", re.DOTALL)
"""The entry that makes an item EXIF; renamed, nobody looks for it, and no offset changes."""
