"""Augmentation: the random crop and mirror of an image, drawn by hash, and the plain view that evaluation takes.

Reads    RGB images, as images.open_rgb gives them
Writes   pixels_HWC: uint8, H = W = the side of the model's input

Legend: N images, F the four numbers of a crop and the mirror, V the five of a view: its left, top, right and bottom
edge as shares of the image's sides, and the mirror.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from i2e_pipeline.core.config import DataConfig
from i2e_pipeline.core.draws import hashed, uniform
from i2e_pipeline.images.decode import DRAFT_MARGIN

MAX_ASPECT = 4 / 3
"""Of a random crop, either way (Szegedy et al., arXiv 1409.4842)."""
_PURPOSES = ("area", "aspect", "across", "down", "mirror")


def draws(keys_N: np.ndarray, config: DataConfig) -> np.ndarray | None:
    """What is drawn for images of these keys: draws_NF, float64 in [0, 1); None where nothing is augmented.

    F: area, aspect, place across and down, mirror (≥ 0.5: mirrored).
    """
    if config.augment == "none":
        return None
    drawn_NF = np.stack([uniform(hashed(keys_N, purpose)) for purpose in _PURPOSES], axis=1)
    if config.augment == "crop":
        drawn_NF[:, 4] = 0
    return drawn_NF


def augmented(image: Image.Image, side: int, drawn_F: np.ndarray, area: tuple[float, float]) -> np.ndarray:
    """A random crop of `area` (shares of the image, from … to), scaled to side x side and perhaps mirrored."""
    return _cut(image, side, crop_box(image.size, drawn_F, area), bool(drawn_F[4] >= 0.5))


def view_of(size: tuple[int, int], drawn_F: np.ndarray, area: tuple[float, float]) -> np.ndarray:
    """What `augmented` cuts of an image of this size, as a view_V, float32, which can be stored and seen again."""
    left, top, right, bottom = crop_box(size, drawn_F, area)
    width, height = size
    return np.array([left / width, top / height, right / width, bottom / height, drawn_F[4] >= 0.5], dtype=np.float32)


def viewed(image: Image.Image, side: int, view_V: np.ndarray) -> np.ndarray:
    """A stored view of the image, scaled to side x side: of an image of the size that `view_of` was told, the pixels of
    `augmented`; of one that was decoded at a half of it, the same part."""
    width, height = image.size
    left, top, right, bottom = (
        round(float(share) * of) for share, of in zip(view_V, (width, height) * 2, strict=False)
    )
    left, top = min(left, width - 1), min(top, height - 1)
    box = (left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height))
    return _cut(image, side, box, bool(view_V[4]))


def _cut(image: Image.Image, side: int, box: tuple[int, int, int, int], mirrored: bool) -> np.ndarray:
    scaled_HWC = scale(image.crop(box), side)
    # Here and not as a view with a negative stride, which costs ten times as much to copy.
    return np.ascontiguousarray(scaled_HWC[:, ::-1]) if mirrored else scaled_HWC


def crop_box(size: tuple[int, int], drawn_F: np.ndarray, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the crop, at whole pixels."""
    width, height = size
    of_area, of_aspect, across, down, _ = drawn_F.tolist()
    pixels = (area[0] + of_area * (area[1] - area[0])) * width * height
    aspect = math.exp((2 * of_aspect - 1) * math.log(MAX_ASPECT))
    # What would stick out is cut off, where torchvision draws ten times and then gives up.
    crop_width = max(1, round(min(float(width), math.sqrt(pixels * aspect))))
    crop_height = max(1, round(min(float(height), math.sqrt(pixels / aspect))))
    left, top = round(across * (width - crop_width)), round(down * (height - crop_height))
    return left, top, left + crop_width, top + crop_height


def scale_by_pillow(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0))


def scale_by_torch(image: Image.Image, side: int) -> np.ndarray:
    """The same filter (bicubic, a = −0.5, widened where it scales down), by AVX2: the pixels are Pillow's but for
    roundings, in half of the time (benchmarks/decoders.py)."""
    # As torch has a batch with channels last, which is what its kernel for uint8 reads three bytes at a time.
    x_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    y_1CHW = interpolate(x_1CHW, (side, side), mode="bicubic", antialias=True)
    return np.ascontiguousarray(y_1CHW[0].permute(1, 2, 0).numpy())


scale = scale_by_torch if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else scale_by_pillow
"""An RGB image as pixels_HWC of side x side. Without AVX2 torch's kernel is the slower one."""


def centred(image: Image.Image, side: int) -> np.ndarray:
    """The largest square in the middle of the image, scaled to side x side."""
    width, height = image.size
    square = min(width, height)
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))


def decoded_side(side: int, config: DataConfig) -> int:
    """`side` for images.open_rgb: large JPEGs are decoded at a half, quarter or eighth only while the smallest crop
    still has as many pixels as the model takes."""
    smallest = 1.0 if config.augment == "none" else math.sqrt(config.crop_area[0] / MAX_ASPECT)
    return max(1, math.ceil(side / smallest / DRAFT_MARGIN))
