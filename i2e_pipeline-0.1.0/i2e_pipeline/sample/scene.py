"""A scene: one drawing, posed on a background among clutter, then damaged as pictures on the web are.

Everything random comes from the generator that is handed in, so a scene is a function of its seed.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

Rng = np.random.Generator
Colour = tuple[int, int, int]


def _colour(rng: Rng, light: bool = False) -> Colour:
    low = 170 if light else 0
    r, g, b = (int(v) for v in rng.integers(low, 256, 3))
    return r, g, b


def _noise(rng: Rng, width: int, height: int, cells: int) -> Image.Image:
    grid = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def background(rng: Rng, width: int, height: int) -> Image.Image:
    """Plain paper, gradient, cloudy texture, stripes, or shapes."""
    kind = rng.choice(5, p=[0.28, 0.24, 0.22, 0.12, 0.14])
    if kind == 0:
        return Image.new("RGB", (width, height), (255, 255, 255) if rng.random() < 0.4 else _colour(rng, light=True))
    if kind == 1:
        pair = np.array([[_colour(rng), _colour(rng)], [_colour(rng), _colour(rng)]], dtype=np.uint8)
        if rng.random() < 0.6:
            pair[1] = pair[0]
        image = Image.fromarray(pair).resize((width, height), Image.Resampling.BILINEAR)
        return image.rotate(90) if width == height and rng.random() < 0.5 else image
    if kind == 2:
        coarse = _noise(rng, width, height, int(rng.integers(2, 6)))
        fine = _noise(rng, width, height, int(rng.integers(10, 40)))
        return Image.blend(coarse, fine, float(rng.uniform(0.05, 0.4)))
    image = Image.new("RGB", (width, height), _colour(rng, light=rng.random() < 0.5))
    draw = ImageDraw.Draw(image)
    if kind == 3:
        ink, step = _colour(rng), int(rng.integers(8, 40))
        for x in range(-height, width + height, step):
            draw.line((x, 0, x + (height if rng.random() < 0.5 else 0), height), fill=ink, width=max(2, step // 3))
    else:
        for _ in range(int(rng.integers(3, 9))):
            _shape(rng, draw, width, height, 0.5)
    return image


def _shape(rng: Rng, draw: ImageDraw.ImageDraw, width: int, height: int, most: float) -> None:
    w, h = float(rng.uniform(0.05, most)) * width, float(rng.uniform(0.05, most)) * height
    x, y = float(rng.uniform(-0.1, 1.0)) * width, float(rng.uniform(-0.1, 1.0)) * height
    box, fill = (x, y, x + w, y + h), _colour(rng)
    match rng.integers(0, 3):
        case 0:
            draw.rectangle(box, fill=fill)
        case 1:
            draw.ellipse(box, fill=fill)
        case _:
            draw.polygon([(x, y + h), (x + w / 2, y), (x + w, y + h)], fill=fill)


def _wave(rng: Rng, sprite: Image.Image) -> Image.Image:
    """A flag in the wind: columns moved up and down."""
    pixels = np.asarray(sprite)
    height, width = pixels.shape[:2]
    depth, turns = height * rng.uniform(0.03, 0.09), rng.uniform(0.8, 2.0)
    pad = math.ceil(depth)
    phase = rng.uniform(0, 6.3)
    shift = np.round(depth * np.sin(np.arange(width) / width * 6.283 * turns + phase)).astype(int)
    out = np.zeros((height + 2 * pad, width, 4), np.uint8)
    rows = np.arange(height)[:, None] + pad + shift[None, :]
    out[rows, np.arange(width)[None, :]] = pixels
    shade = 1 + 0.14 * np.cos(np.arange(width) / width * 6.283 * turns + phase)
    out[..., :3] = np.clip(out[..., :3] * shade[None, :, None], 0, 255)
    return Image.fromarray(out)


def pose(rng: Rng, sprite: Image.Image, side: float, flag: bool) -> Image.Image:
    """The drawing, its longer side `side`, turned, sheared, perhaps mirrored, waving, outlined or shaded."""
    if flag and rng.random() < 0.25 and sprite.height < 0.85 * sprite.width:
        sprite = _wave(rng, sprite)
    if not flag and rng.random() < 0.35:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = side / max(sprite.size)
    squeeze = float(rng.uniform(0.85, 1.0))
    sx, sy = (scale * squeeze, scale) if rng.random() < 0.5 else (scale, scale * squeeze)
    sprite = sprite.resize(
        (max(2, round(sprite.width * sx)), max(2, round(sprite.height * sy))), Image.Resampling.BICUBIC
    )
    if rng.random() < 0.3:
        lean = float(rng.uniform(-0.18, 0.18))
        extra = abs(lean) * sprite.height
        sprite = sprite.transform(
            (round(sprite.width + extra), sprite.height),
            Image.Transform.AFFINE,
            (1, lean, -extra if lean > 0 else 0, 0, 1, 0),
            Image.Resampling.BILINEAR,
        )
    angle = float(rng.normal(0, 9)) if rng.random() < 0.8 else float(rng.uniform(-32, 32))
    sprite = sprite.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    if rng.random() < 0.12:
        alpha = sprite.getchannel("A")
        border = alpha.filter(ImageFilter.MaxFilter(5))
        edge = Image.new("RGBA", sprite.size, (*((255, 255, 255) if rng.random() < 0.6 else _colour(rng)), 255))
        edge.putalpha(border)
        edge.alpha_composite(sprite)
        sprite = edge
    return sprite


def _paste(image: Image.Image, sprite: Image.Image, x: int, y: int, shadow: bool) -> None:
    if shadow:
        alpha = sprite.getchannel("A").filter(ImageFilter.GaussianBlur(3)).point(lambda a: a // 3)
        image.paste((0, 0, 0), (x + 4, y + 5), alpha)
    image.paste(sprite, (x, y), sprite)


def _occlude(rng: Rng, image: Image.Image, x: int, y: int, width: int, height: int) -> None:
    """Something in front: a bar, a corner, a watermark."""
    draw = ImageDraw.Draw(image, "RGBA")
    fill = (*_colour(rng), 255 if rng.random() < 0.7 else 120)
    match rng.integers(0, 3):
        case 0:
            thick = 0.14 * height
            top = y + float(rng.uniform(0.1, 0.8)) * height
            draw.rectangle((x - 9, top, x + width + 9, top + thick), fill=fill)
        case 1:
            side = float(rng.uniform(0.2, 0.36)) * min(width, height)
            left = x + float(rng.uniform(-0.1, 0.9)) * width
            top = y + float(rng.uniform(-0.1, 0.9)) * height
            draw.ellipse((left, top, left + side, top + side), fill=fill)
        case _:
            for i in range(-2, 6):
                offset = i * width / 3
                draw.line((x + offset, y, x + offset + height, y + height), fill=(*fill[:3], 70), width=3)


def _tint(rng: Rng, image: Image.Image) -> Image.Image:
    """Camera, screen and filter: brightness, contrast, saturation, white balance."""
    for change, spread in ((ImageEnhance.Brightness, 0.22), (ImageEnhance.Contrast, 0.22), (ImageEnhance.Color, 0.35)):
        image = change(image).enhance(float(rng.uniform(1 - spread, 1 + spread)))
    if rng.random() < 0.35:
        gains = rng.uniform(0.86, 1.14, 3)
        table = [min(255, round(v * g)) for g in gains for v in range(256)]
        image = image.point(table)
    if rng.random() < 0.015:
        image = image.convert("L").convert("RGB")
    return image


def compose(rng: Rng, subject: Image.Image, clutter: list[Image.Image], flag: bool) -> Image.Image:
    """An RGB scene of 128 to 256 px a side with `subject` in it, large, and `clutter` small around it."""
    width, height = (int(v) for v in rng.integers(128, 257, 2))
    if rng.random() < 0.4:
        height = width
    image = background(rng, width, height)
    short = min(width, height)
    if rng.random() < 0.3:
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(1, 4))):
            _shape(rng, draw, width, height, 0.3)
    for small in clutter:
        piece = pose(rng, small, short * float(rng.uniform(0.14, 0.26)), flag=False)
        # Along the edge, where the subject seldom is.
        along, far = float(rng.random()), float(rng.choice([-0.08, 0.86]))
        u, v = (along, far) if rng.random() < 0.5 else (far, along)
        _paste(image, piece, round(u * width), round(v * height), shadow=False)
    big = pose(rng, subject, short * float(rng.uniform(0.6, 0.98)), flag)
    slack_x, slack_y = width - big.width, height - big.height
    x = round(slack_x / 2 + float(rng.normal(0, 0.18)) * max(0, slack_x))
    y = round(slack_y / 2 + float(rng.normal(0, 0.18)) * max(0, slack_y))
    _paste(image, big, x, y, shadow=bool(rng.random() < 0.3))
    if rng.random() < 0.2:
        _occlude(rng, image, x, y, big.width, big.height)
    image = _tint(rng, image)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.6))))
    if rng.random() < 0.3:
        grain = rng.normal(0, rng.uniform(3, 14), (height, width, 1)).astype(np.int16)
        noisy: NDArray[np.int16] = np.asarray(image, np.int16) + grain
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if rng.random() < 0.06:
        image = ImageChops.offset(image, int(rng.integers(-4, 5)), 0)
    return image


def encode(rng: Rng, image: Image.Image) -> tuple[bytes, str]:
    """(bytes, file name extension): mostly JPEG of any quality, some PNG and WebP."""
    buffer = io.BytesIO()
    kind = rng.random()
    if kind < 0.90:
        quality = int(rng.integers(28, 93))
        image.save(buffer, "JPEG", quality=quality)
        return buffer.getvalue(), "jpg"
    if kind < 0.95:
        image.quantize(128).save(buffer, "PNG")
        return buffer.getvalue(), "png"
    image.save(buffer, "WEBP", quality=int(rng.integers(40, 90)), method=2)
    return buffer.getvalue(), "webp"
