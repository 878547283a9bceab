"""Images: stored bytes -> what is scored, or the reason why not.

Reads    stored bytes, as they lie in an input shard
Writes   Decoded: size as displayed, a 64 x 64 grey thumbnail for the perceptual hash, the model's pixels
Rejects  null_image · empty_image · too_many_bytes · not_an_image · unsupported_format · truncated_image ·
         broken_image · too_many_pixels · too_small · too_long

Bytes are hostile. Only formats that are decoded within the process are opened (formats.py; Pillow would hand an EPS to
Ghostscript). Sizes are checked on the header, before anything is decoded. Metadata that is damaged, or larger than the
decoder's bounds, does not cost an image whose pixels are whole (metadata.py); pixels that are not all there do.
Whatever the decoder says of an image becomes that image's reason.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from i2e_pipeline.core.config import ImageLimits
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.core.stored_image import NoImage, StoredImage
from i2e_pipeline.images import formats, metadata

REASONS = {
    Reason.NULL_IMAGE: "The row has a text but no image.",
    Reason.MISSING_IMAGE: "The file that the row names as its image is not there, or not where it may be read.",
    Reason.EMPTY_IMAGE: "The image is stored with zero bytes, as after a download that failed.",
    Reason.NOT_AN_IMAGE: "The stored bytes are of no image format: an error page, for the most part.",
    Reason.UNSUPPORTED_FORMAT: (
        "The stored bytes are of a format that is not read here: a drawing, a video, an archive, or an image that a "
        "plugin would read. The detail names it."
    ),
    Reason.TRUNCATED_IMAGE: "The image ends before its own header says it should.",
    Reason.BROKEN_IMAGE: "The bytes begin as an image and the decoder cannot finish them.",
    Reason.TOO_MANY_BYTES: "The stored image is larger than the limit and is not read.",
    Reason.TOO_MANY_PIXELS: "The header announces more pixels than the limit: decoding it could exhaust the memory.",
    Reason.TOO_SMALL: "The shorter side is below the limit: icons, spacers and tracking pixels.",
    Reason.TOO_LONG: "The image is many times longer than wide, or the reverse: banners and rulers.",
}
"""Why an image is not decoded, each reason with its sentence: a stage that opens images has these among its own."""

DRAFT_MARGIN = 4
"""A JPEG is decoded at a half, a quarter or an eighth only while its shorter side stays this many times the model's.
Against full decodes that moved cosines by 0.004 at most, a thirtieth of the background's standard deviation, and took
33 ms instead of 166 for photos of 17 megapixels; a margin of 2 moves them twice as far."""


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image before it is decoded: stored bytes, and sides in pixels once the header was parsed."""

    size: int
    sides: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.sides[0]} x {self.sides[1]} pixels" if self.sides else f"{self.size} bytes"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an image is not scored; `detail` is the decoder's own message, or the size that broke a limit."""

    reason: Reason
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image ready for the model. Sides in pixels as displayed: EXIF orientation applied."""

    width: int
    height: int
    thumb_TT: np.ndarray
    """uint8 grey, T = 32."""
    pixels: np.ndarray
    """What the model's `prepare` made of it."""


def unfit(header: Header | None, limits: ImageLimits) -> Reason | None:
    """Why this image is not decoded, or None. `header` None: the shard holds a null."""
    if header is None:
        return Reason.NULL_IMAGE
    if header.size == 0:
        return Reason.EMPTY_IMAGE
    if header.size > limits.max_bytes:
        return Reason.TOO_MANY_BYTES
    if header.sides is not None:
        short, long = sorted(header.sides)
        if short * long > limits.max_pixels:
            return Reason.TOO_MANY_PIXELS
        if short < limits.min_side:
            return Reason.TOO_SMALL
        if long > short * limits.max_aspect:
            return Reason.TOO_LONG
    return None


def open_image(stored: bytes) -> Image.Image:
    """The one way to open an image: only what this process decodes itself, so that no program is started for the bytes'
    sake.

    Raises what Pillow raises: whatever comes from outside goes through `open_rgb`.
    """
    if opener := formats.plugin(formats.format_of(stored)):
        return opener(io.BytesIO(stored))
    return Image.open(io.BytesIO(stored), formats=formats.by_pillow())


def open_rgb(
    stored: StoredImage, limits: ImageLimits, side: int = 0, upright: bool = True
) -> tuple[Image.Image, tuple[int, int]] | Rejected:
    """One stored image as 8-bit RGB, upright, and its (width, height) as displayed; or why there is none.

    Never raises for what the bytes hold.
    side      pixels of the side that the image will be scaled to; a JPEG that is much larger is decoded at a half, a
              quarter or an eighth of its size. 0: always at its full size
    upright   False: as it is stored, without EXIF's rotation. Benchmarks' own readers, and the boxes in their images,
              have it so
    """
    if isinstance(stored, NoImage):
        return Rejected(stored.reason, stored.detail)
    header = None if stored is None else Header(len(stored))
    reason = unfit(header, limits)
    if reason is not None or stored is None:
        return Rejected(reason or Reason.NULL_IMAGE, str(header) if header and header.size else None)
    opened = _open_rgb(stored, limits, side, upright)
    if isinstance(opened, Rejected) and opened.reason in _OF_THE_DECODER and (bare := metadata.without(stored)):
        again = _open_rgb(bare, limits, side, upright)
        return opened if isinstance(again, Rejected) and again.reason in _OF_THE_DECODER else again
    return opened


_OF_THE_DECODER = (Reason.NOT_AN_IMAGE, Reason.TRUNCATED_IMAGE, Reason.BROKEN_IMAGE, Reason.UNSUPPORTED_FORMAT)


def _open_rgb(
    stored: bytes, limits: ImageLimits, side: int, upright: bool
) -> tuple[Image.Image, tuple[int, int]] | Rejected:
    try:
        header = Header(len(stored), formats.sides_within(stored))
        if unfit(header, limits) is Reason.TOO_MANY_PIXELS:
            return Rejected(Reason.TOO_MANY_PIXELS, str(header))
        image = open_image(stored)
        header = Header(len(stored), image.size)
        reason = unfit(header, limits)
        if reason is not None:
            return Rejected(reason, str(header))
        displayed = image.size
        drafted = bool(side) and image.format in ("JPEG", "MPO") and image.draft(None, (DRAFT_MARGIN * side,) * 2)
        image.load()
        if not drafted:
            displayed = image.size  # Pillow turns a TIFF upright by itself, while it loads
        turn = _turn(image) if upright else None
        if turn in _SWAPPING:
            displayed = displayed[1], displayed[0]
        return opaque_rgb(image if turn is None else image.transpose(turn)), displayed
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Rejected(Reason.TOO_MANY_PIXELS, str(error))
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its own message holds a memory address: two runs would write two details
        return _fault(stored, "", f"begins with {stored[:16]!r}")
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... for broken images
        return _fault(stored, str(error), _said_by(error))


def decode(
    stored: StoredImage, limits: ImageLimits, prepare: Callable[[Image.Image], np.ndarray], side: int = 0
) -> Decoded | Rejected:
    """Pixels for the model of one stored image, or why there are none; never raises for what the bytes hold.

    prepare   the model's preprocessing: RGB image -> pixels; thread-safe
    side      as for `open_rgb`
    """
    opened = open_rgb(stored, limits, side)
    if isinstance(opened, Rejected):
        return opened
    rgb, displayed = opened
    try:
        return Decoded(*displayed, thumbnail(rgb), prepare(rgb))
    except MemoryError:
        raise
    except Exception as error:  # a preprocessing that this image defeats
        return Rejected(Reason.BROKEN_IMAGE, _said_by(error))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the image upright. Viewers show an image whose EXIF is damaged as it is stored; so do we."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:
        return None


def opaque_rgb(image: Image.Image) -> Image.Image:
    """The image as a page shows it: 8-bit RGB, what is transparent laid on white.

    Dropping alpha, as `convert("RGB")` does, uncovers whatever the transparent pixels happen to hold, mostly black.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = min(0.0, float(values.min())), float(values.max())
        full = 255.0 if high <= 255 else 65535.0 if high <= 65535 else high
        grey = (values - low) * (255.0 / max(full - low, 1e-9))
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _said_by(error: Exception) -> str:
    """In one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


_UNABLE = re.compile(r"unsupported|not supported|cannot handle|not available|no codec", re.IGNORECASE)
"""How decoders say that a whole image is of a kind of their format that they do not read."""


def _fault(stored: bytes, message: str, detail: str) -> Rejected:
    """Why bytes that could not be opened are no image. `message` is the decoder's, empty where it has none."""
    name = formats.format_of(stored)
    if name is None:
        return Rejected(Reason.NOT_AN_IMAGE, detail)
    if not formats.is_read(name):
        return Rejected(Reason.UNSUPPORTED_FORMAT, formats.how_to_read(name))
    if "truncated" in message.lower() or _cut_short(stored):
        return Rejected(Reason.TRUNCATED_IMAGE, detail)
    if _UNABLE.search(message):
        return Rejected(Reason.UNSUPPORTED_FORMAT, f"{name}: {message}"[:200])
    if name == "JPEG" and (bits := _bits_of_jpeg(stored)) not in (None, 8):
        return Rejected(Reason.UNSUPPORTED_FORMAT, f"JPEG of {bits} bits a channel")
    return Rejected(Reason.BROKEN_IMAGE, detail)


def _bits_of_jpeg(stored: bytes) -> int | None:
    for marker, data, _ in metadata.jpeg_segments(stored):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[0] if data else None
    return None


def _cut_short(stored: bytes) -> bool:
    """Whether bytes of a known format end before the image does: a download that broke off."""
    if stored.startswith(b"\xff\xd8"):
        at = 2
        while at + 4 <= len(stored):  # marker segments up to the start of scan
            if stored[at] != 0xFF:
                return False
            if stored[at + 1] == 0xDA:
                return b"\xff\xd9" not in stored[at:]
            length = int.from_bytes(stored[at + 2 : at + 4], "big")
            if length < 2:
                return False
            at += 2 + length
        return True
    if stored.startswith(b"\x89PNG"):
        return b"IEND" not in stored[-64:]
    if stored.startswith(b"GIF8"):
        return not stored.rstrip(b"\0").endswith(b";")
    if stored[:4] == b"RIFF":
        return int.from_bytes(stored[4:8], "little") + 8 > len(stored)
    if stored[4:8] in (b"ftyp", b"jP  ", b"JXL "):
        return _ends_within_a_box(stored)
    return False


def _ends_within_a_box(stored: bytes) -> bool:
    """Whether a file of ISO's boxes (AVIF, HEIC, JPEG 2000, JPEG XL) ends before its last one does."""
    at = 0
    while at + 8 <= len(stored):
        size = int.from_bytes(stored[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(stored[at + 8 : at + 16], "big")
        if size < 8:
            return False  # 0: to the end, wherever that is
        at += size
    return at != len(stored)


_THUMB = 64
_KEPT = 16
# Cosines in whole 1/1024ths: every product and sum below stays an integer under 2^53, so that the hash of an image is
# the same whatever batch it comes in and whichever BLAS multiplies.
_DCT_KT = np.rint(1024 * np.cos(np.pi * np.outer(np.arange(1, _KEPT + 1), 2 * np.arange(_THUMB) + 1) / (2 * _THUMB)))


def thumbnail(image: Image.Image) -> np.ndarray:
    """uint8 grey (64, 64) of the whole image."""
    return np.asarray(image.resize((_THUMB, _THUMB), Image.Resampling.BOX, reducing_gap=2.0).convert("L"))


def perceptual_hashes(thumbs_NTT: np.ndarray) -> np.ndarray:
    """256-bit hashes (uint8, (N, 32)) of grey thumbnails; near-equal images differ in few bits.

    A bit says whether one of the 16 x 16 lowest frequencies, the constant ones left out, is above their median (Zauner
    2010, DCT hash). Of 10^9 random hashes of 64 bits each has some ten others within 10 bits of its own; of 256 bits
    none has one within 31, the distance at which PDQ (Facebook 2019), of as many bits, calls images the same.
    """
    low_NKK = _DCT_KT @ thumbs_NTT.astype(np.float64) @ _DCT_KT.T
    flat_NB = low_NKK.reshape(len(thumbs_NTT), -1)
    bits_NB = flat_NB > np.median(flat_NB, axis=1, keepdims=True)
    return np.packbits(bits_NB, axis=1)


_TELLING_BITS = 32


def says_something(hashes_N32: np.ndarray) -> np.ndarray:
    """bool (N,): which perceptual hashes tell their image from others. Half of the bits are set unless frequencies are
    equal, and they are equal in images of one colour, or nearly."""
    set_N = np.bitwise_count(hashes_N32).sum(axis=1, dtype=np.int64)
    return np.asarray(np.abs(set_N - 8 * hashes_N32.shape[1] // 2) < _TELLING_BITS)
