"""Thumbnails: stored images as small inline JPEGs of a page, up to a budget for all of it."""

from __future__ import annotations

import base64
import io
import warnings

from PIL import Image

SIDE = 144
"""Pixels of the longer side."""
BUDGET = 2_200_000
"""Bytes of inline pictures on a page."""


class Thumbnails:
    """Makes small inline JPEGs until the page's budget is spent."""

    def __init__(self, max_pixels: int, budget: int = BUDGET, side: int = SIDE) -> None:
        self.max_pixels, self.left, self.side = max_pixels, budget, side

    def __call__(self, stored: bytes | None, uses: int = 1) -> str | None:
        """data URI, or None where the bytes are no image that can be shown. `uses`: how often the page holds it."""
        if not stored or self.left <= 0:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = Image.open(io.BytesIO(stored))
                if picture.width * picture.height > self.max_pixels:
                    return None
                picture.draft("RGB", (self.side, self.side))
                picture.thumbnail((self.side, self.side))
                # What is transparent was meant to lie on a page, and pages are mostly white.
                seen = picture.convert("RGBA")
                small = Image.new("RGB", seen.size, "white")
                small.paste(seen, mask=seen)
                encoded = io.BytesIO()
                small.save(encoded, "JPEG", quality=72, optimize=True)
        # Pillow's decoders raise nearly anything on hostile bytes; a thumbnail is not worth a report.
        except Exception:
            return None
        uri = "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
        self.left -= len(uri) * uses
        return uri
