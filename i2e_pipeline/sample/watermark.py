"""Watermarks, planted: what agencies print over pictures that they have not sold yet.

banner   a pale bar in a corner with a line of text
across   large letters over the middle, on the two diagonals of the picture
tiled    a line of text over and over, aslant
Sizes and places are shares of the picture's sides, so that a watermark is as large on a photo as on a sample's scene.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = ("banner", "across", "tiled")
_WORDS = ("(c) stock.example.com", "PREVIEW", "SAMPLE", "stock.example", "PHOTO AGENCY", "do not copy", "(c) A. Nobody")
_SCALE = 2
"""Letters are drawn so much larger and scaled down: aslant they have no teeth."""


def banner(image: Image.Image) -> Image.Image:
    """A bar and a line of text in the lower right corner, the same on each picture."""
    marked = image.copy()
    draw, (width, height) = ImageDraw.Draw(marked, "RGBA"), image.size
    draw.rectangle((width * 0.55, height * 0.85, width * 0.97, height * 0.95), fill=(255, 255, 255, 140))
    draw.text((width * 0.57, height * 0.87), "(c) stock.example.com", fill=(0, 0, 0, 200))
    return marked


def watermarked(image: Image.Image, rng: np.random.Generator, kind: str) -> Image.Image:
    """An RGB picture with a watermark of a kind; words, place, size, tone and opacity are drawn."""
    light = rng.random() < 0.75
    tone, opacity = (255 if light else 20), float(rng.uniform(0.3, 0.65))
    words = str(rng.choice(_WORDS))
    layer = _PLANTED[kind](image.size, rng, words, tone, opacity)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _banner(size: tuple[int, int], rng: np.random.Generator, words: str, tone: int, opacity: float) -> Image.Image:
    width, height = size
    layer = Image.new("RGBA", size)
    bar_width, bar_height = round(width * rng.uniform(0.4, 1.0)), max(9, round(height * rng.uniform(0.09, 0.16)))
    left = int(rng.integers(0, width - bar_width + 1))
    gap = round(height * rng.uniform(0, 0.06))
    top = gap if rng.random() < 0.3 else height - bar_height - gap
    ImageDraw.Draw(layer).rectangle(
        (left, top, left + bar_width, top + bar_height), fill=(tone, tone, tone, round(255 * opacity))
    )
    text = _text(words, 255 - tone, 0.85, max(7, round(bar_height * 0.7)))
    if text.width > bar_width - 4:
        text = text.resize((bar_width - 4, max(1, text.height * (bar_width - 4) // text.width)))
    layer.alpha_composite(text, (left + 2, top + max(0, (bar_height - text.height) // 2)))
    return layer


def _across(size: tuple[int, int], rng: np.random.Generator, words: str, tone: int, opacity: float) -> Image.Image:
    width, height = size
    layer = Image.new("RGBA", size)
    draw, fill = ImageDraw.Draw(layer), (tone, tone, tone, round(255 * opacity))
    if rng.random() < 0.6:
        thick = max(1, round(min(size) / 90))
        draw.line((0, 0, width, height), fill=fill, width=thick)
        draw.line((0, height, width, 0), fill=fill, width=thick)
    text = _text(words, tone, opacity, 48)
    wide = round(width * rng.uniform(0.7, 0.95))
    text = text.resize((wide, max(6, text.height * wide // text.width)), Image.Resampling.BILINEAR)
    text = text.rotate(float(rng.uniform(-30, 30)), expand=True, resample=Image.Resampling.BILINEAR)
    place = (max(0, (width - text.width) // 2), max(0, (height - text.height) // 2))
    layer.alpha_composite(text.crop((0, 0, min(width, text.width), min(height, text.height))), place)
    return layer


def _tiled(size: tuple[int, int], rng: np.random.Generator, words: str, tone: int, opacity: float) -> Image.Image:
    width, height = size
    side = round(1.5 * max(size))
    field = Image.new("RGBA", (side, side))
    text = _text(words, tone, opacity, max(8, round(min(size) * rng.uniform(0.07, 0.12))))
    step_x, step_y = round(text.width * rng.uniform(1.1, 1.5)), round(text.height * rng.uniform(1.4, 2.6))
    for number, top in enumerate(range(0, max(1, side - text.height), step_y)):
        for left in range((number % 2) * step_x // 2, max(1, side - text.width), step_x):
            field.paste(text, (left, top))
    field = field.rotate(float(rng.uniform(15, 45)), resample=Image.Resampling.BILINEAR)
    left, top = (side - width) // 2, (side - height) // 2
    return field.crop((left, top, left + width, top + height))


_PLANTED: dict[str, Callable[..., Image.Image]] = {"banner": _banner, "across": _across, "tiled": _tiled}


def _text(words: str, tone: int, opacity: float, height: int) -> Image.Image:
    """A line of text, so many pixels high, on nothing."""
    font = ImageFont.load_default(size=height * _SCALE)
    left, top, right, bottom = font.getbbox(words)
    large = Image.new("RGBA", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(large).text((1 - left, 1 - top), words, font=font, fill=(tone, tone, tone, round(255 * opacity)))
    return large.resize((max(1, large.width // _SCALE), max(1, large.height // _SCALE)), Image.Resampling.BILINEAR)
