"""Thumbnails: images as small inline JPEGs of a page, up to a budget for all of it.

Stored bytes are opened as the scorer opens them (decode.open_rgb): among rejected rows are the most hostile bytes of a
crawl.
"""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass

from PIL import Image

from i2e_pipeline.core.config import ImageLimits
from i2e_pipeline.images.decode import Rejected, open_rgb

SIDE = 144
"""Pixels of the longer side."""
BUDGET = 2_200_000
"""Bytes of inline pictures on a page."""

ANY_SHAPE = ImageLimits(min_side=1, max_aspect=1e9, max_bytes=1 << 40)
"""Whatever its size or shape, a rejected image is worth a look."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """What a page shows of an image."""

    uri: str | None
    """data URI; None where there is no picture"""
    why: str = ""
    """Why there is no picture, in a word or two: the reason's name where the bytes are no image. "" where the row has
    no bytes at all."""
    detail: str = ""
    """What the decoder said of the bytes."""


class Thumbnails:
    """Makes thumbnails until the page's budget is spent."""

    def __init__(self, max_pixels: int = ImageLimits().max_pixels, budget: int = BUDGET, side: int = SIDE) -> None:
        """`max_pixels`: larger images are not decoded. `budget`: bytes. `side`: pixels of the longer side."""
        self.left, self.side = budget, side
        self._limits = ANY_SHAPE.model_copy(update={"max_pixels": max_pixels})

    def __call__(self, stored: bytes | None, uses: int = 1) -> Thumbnail:
        """The thumbnail of stored bytes. `uses`: how often the page holds it."""
        if not stored:
            return Thumbnail(None)
        if self.left <= 0:
            return _FULL
        opened = _opened(stored, self._limits, self.side)
        return opened if isinstance(opened, Thumbnail) else self.of(opened, uses)

    def of(self, image: Image.Image | None, uses: int = 1) -> Thumbnail:
        """The thumbnail of an RGB image that is open already; None: it could not be opened."""
        if image is None:
            return Thumbnail(None, "not decoded")
        if self.left <= 0:
            return _FULL
        encoded = _jpeg(image, self.side)
        uri = "data:image/jpeg;base64," + base64.b64encode(encoded).decode()
        self.left -= len(uri) * uses
        return Thumbnail(uri)


def small(stored: bytes, side: int) -> bytes | Thumbnail:
    """A JPEG of at most `side` pixels; or a thumbnail without a picture, which says why there is none."""
    opened = _opened(stored, ANY_SHAPE, side)
    return opened if isinstance(opened, Thumbnail) else _jpeg(opened, side)


def _opened(stored: bytes, limits: ImageLimits, side: int) -> Image.Image | Thumbnail:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = open_rgb(stored, limits, side)
    except MemoryError:
        return Thumbnail(None, "too large to decode here")
    return Thumbnail(None, str(opened.reason), opened.detail or "") if isinstance(opened, Rejected) else opened[0]


def _jpeg(image: Image.Image, side: int) -> bytes:
    shrunk = image.copy()
    shrunk.thumbnail((side, side))
    encoded = io.BytesIO()
    shrunk.save(encoded, "JPEG", quality=72, optimize=True)
    return encoded.getvalue()


_FULL = Thumbnail(None, "the page is full")
