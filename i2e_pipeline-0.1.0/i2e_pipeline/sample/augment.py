"""Training scenes by the batch, in torch: some thousand a second where Pillow composes a hundred.

The same kinds of scenes as scene.py draws, with wider ranges, and with changes of style that scene.py does not make.
Art styles differ in colour, shading, outline and proportion. A scorer that has seen these vary learns the thing itself.

B batch · C channels · H, W pixels of the scene · S pixels of a sprite
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from i2e_pipeline.sample.art import load_art
from i2e_pipeline.sample.world import load_world

SPRITE = 80


def _smooth(x_BCSS: Tensor) -> Tensor:
    """About a 5 × 5 box blur, by way of a coarser grid: F.avg_pool2d takes ten times as long on a CPU."""
    coarse = F.interpolate(x_BCSS, scale_factor=0.25, mode="bilinear", align_corners=False, antialias=True)
    return F.interpolate(coarse, x_BCSS.shape[-2:], mode="bilinear", align_corners=False)


def _widen(alpha_B1SS: Tensor) -> Tensor:
    """Two pixels more on every side: the maximum over shifts (F.max_pool2d is as slow as F.avg_pool2d)."""
    for dim in (2, 3):
        alpha_B1SS = torch.maximum(
            alpha_B1SS, torch.maximum(torch.roll(alpha_B1SS, 2, dim), torch.roll(alpha_B1SS, -2, dim))
        )
    return alpha_B1SS


@dataclass(frozen=True)
class Sprites:
    """Every drawing that training may see."""

    rgba_NCSS: Tensor
    """uint8, centred on a square."""
    of_entity: tuple[tuple[tuple[int, ...], ...], ...]
    """Entity → art style → rows of rgba_NCSS."""
    is_flag: Tensor
    """Per entity, bool."""


def training_sprites(leave_out: tuple[str, ...] = ()) -> Sprites:
    """Drawings of all art styles but the held-out one and those of `leave_out`, which stand in for it in trials."""
    art, world = load_art(), load_world()
    rows: list[np.ndarray] = []
    of_entity = []
    for e in world.depicted:
        styles = []
        for style in art.styles(e.id, training=True):
            if style in leave_out:
                continue
            here = []
            for variant in art.variants(style, e.id, training=True):
                sprite = art.sprite(style, e.id, variant)
                sprite.thumbnail((SPRITE - 8, SPRITE - 8), Image.Resampling.LANCZOS)
                square = Image.new("RGBA", (SPRITE, SPRITE))
                square.paste(sprite, ((SPRITE - sprite.width) // 2, (SPRITE - sprite.height) // 2))
                here.append(len(rows))
                rows.append(np.asarray(square).transpose(2, 0, 1))
            styles.append(tuple(here))
        of_entity.append(tuple(styles))
    flags = torch.tensor([e.art.startswith("flag:") for e in world.depicted])
    return Sprites(torch.from_numpy(np.stack(rows)), tuple(of_entity), flags)


class SceneStream:
    """An endless, seeded stream of (pixels_BCHW in 0..1, entity_B)."""

    def __init__(self, sprites: Sprites, size: int, batch: int, seed: int) -> None:
        self.sprites, self.size, self.batch = sprites, size, batch
        self.g = torch.Generator().manual_seed(seed)
        self.usable = torch.tensor([i for i, styles in enumerate(sprites.of_entity) if styles])
        self.strength = 1.0
        """How often the stronger changes of style happen, from 0 to 1: training begins with few of them."""
        line = (torch.arange(size) + 0.5) / size * 2 - 1
        self.y_HW, self.x_HW = torch.meshgrid(line, line, indexing="ij")

    def _u(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape or (self.batch,), generator=self.g) * (high - low) + low

    def _p(self, probability: float, n: int | None = None) -> Tensor:
        return torch.rand(n or self.batch, generator=self.g) < probability

    def _rare(self, probability: float) -> Tensor:
        return self._p(probability * self.strength)

    def _up(self, small_BCHW: Tensor, mode: str = "bicubic") -> Tensor:
        return F.interpolate(small_BCHW, (self.size, self.size), mode=mode, align_corners=False)

    def _colours(self, light: Tensor) -> Tensor:
        low = torch.where(light, 0.65, 0.0)[:, None]
        return low + (1 - low) * self._u(0, 1, self.batch, 3)

    def _pick(self) -> tuple[Tensor, Tensor]:
        entity = self.usable[torch.randint(len(self.usable), (self.batch,), generator=self.g)]
        dice = torch.rand(self.batch, 2, generator=self.g).tolist()
        rows = []
        for e, (a, b) in zip(entity.tolist(), dice, strict=True):
            style = self.sprites.of_entity[e][int(a * len(self.sprites.of_entity[e]))]
            rows.append(style[int(b * len(style))])
        return entity, torch.tensor(rows)

    def _restyle(self, rgba: Tensor, flag: Tensor) -> Tensor:
        """Look as another art style would: hue, shading, posterised fills, outlines. Premultiplied RGBA out."""
        n = self.batch
        rgb, alpha = rgba[:, :3], rgba[:, 3:]
        # Hue turned about the grey axis; a flag's colours are its meaning, a car's are not.
        wild = self._rare(0.3) & ~flag
        angle = torch.where(wild, self._u(-1.2, 1.2), self._u(-0.22, 0.22)) * torch.where(flag, 0.5, 1.0)
        cos, sin = torch.cos(angle), torch.sin(angle)
        third, root = (1 - cos) / 3, sin / math.sqrt(3)
        turn = torch.stack(
            [
                cos + third,
                third - root,
                third + root,
                third + root,
                cos + third,
                third - root,
                third - root,
                third + root,
                cos + third,
            ],
            1,
        ).view(n, 3, 3)
        saturation = self._u(0.55, 1.45)[:, None, None]
        grey = torch.full((3, 3), 1 / 3)
        turn = turn @ (saturation * torch.eye(3) + (1 - saturation) * grey)
        rgb = torch.bmm(turn, rgb.reshape(n, 3, -1)).view_as(rgb)
        gamma = self._u(0.7, 1.4)[:, None, None, None]
        rgb = rgb.clamp(1e-3, 1).pow(gamma)
        # Flat fills: details smoothed away, or tones rounded to few.
        blurred = _smooth(torch.cat([rgb * alpha, alpha], 1))
        soft = blurred[:, :3] / blurred[:, 3:].clamp_min(0.05)
        mix = (self._rare(0.3) * self._u(0.4, 1.0))[:, None, None, None]
        edges = (rgb - soft).abs().amax(1, keepdim=True)
        rgb = rgb + mix * (soft - rgb)
        levels = self._u(2.5, 7)[:, None, None, None]
        rgb = torch.where(self._rare(0.2)[:, None, None, None], (rgb * levels).round() / levels, rgb)
        # Line art: inner edges and the outline drawn dark.
        inner = (self._rare(0.25) * self._u(0.8, 2.5))[:, None, None, None]
        rgb = (rgb - inner * edges).clamp(0, 1)
        shade = (
            self._u(-0.3, 0.3)[:, None, None, None] * torch.linspace(-1, 1, SPRITE)[None, None, :, None]
        ) * self._p(0.4)[:, None, None, None]
        rgb = (rgb + shade).clamp(0, 1)
        wide = _widen(alpha)
        ring_on = (self._rare(0.3) & (~flag | self._p(0.3)))[:, None, None, None]
        ink = torch.where(self._p(0.6)[:, None], self._u(0, 0.25, n, 1), self._u(0, 1, n, 3))[:, :, None, None]
        outer = torch.where(ring_on, wide, alpha)
        rgb = rgb * alpha + ink * (outer - alpha)
        # Seldom a bare silhouette.
        bare = (self._rare(0.03) & ~flag)[:, None, None, None]
        rgb = torch.where(bare, self._u(0, 0.4, n, 3)[:, :, None, None] * outer, rgb)
        return torch.cat([rgb, outer], 1)

    def _place(self, rgba: Tensor, flag: Tensor, scale: Tensor, u: Tensor, v: Tensor, bend: float) -> Tensor:
        """Sprites put on empty scenes: turned, stretched, sheared, mirrored, bent a little."""
        n = self.batch
        angle = torch.where(self._p(0.75), torch.randn(n, generator=self.g) * 0.18, self._u(-0.65, 0.65))
        stretch = torch.exp(self._u(-0.22, 0.22))
        mirror = torch.where(self._p(0.5) & ~flag, -1.0, 1.0)
        shear = self._u(-0.2, 0.2) * self._p(0.4)
        cos, sin = torch.cos(angle), torch.sin(angle)
        ax, ay = mirror / (scale * stretch), stretch / scale
        x = self.x_HW[None] - u[:, None, None]
        y = self.y_HW[None] - v[:, None, None]

        def b(t: Tensor) -> Tensor:
            return t[:, None, None]

        gx = b(ax) * (b(cos) * x + b(sin) * y + b(shear) * y)
        gy = b(ay) * (-b(sin) * x + b(cos) * y)
        if bend:
            amount = b(self._u(0, bend) * self._rare(0.7))
            warp = self._up(torch.randn(n, 2, 4, 4, generator=self.g)) * amount[:, None]
            gx, gy = gx + warp[:, 0], gy + warp[:, 1]
            wave = b(self._u(0.02, 0.1) * self._p(0.2) * flag)
            gy = gy + wave * torch.sin(gx * b(self._u(2.5, 6)) + b(self._u(0, 6.3)))
        return F.grid_sample(
            rgba, torch.stack([gx, gy], -1), mode="bilinear", padding_mode="zeros", align_corners=False
        )

    def _background(self) -> Tensor:
        n = self.batch
        light = self._p(0.5)
        a, b = self._colours(light), self._colours(light)
        kind = torch.randint(0, 6, (n,), generator=self.g)
        flat = torch.where(self._p(0.3)[:, None], torch.ones(n, 3), a)[:, :, None, None].expand(
            n, 3, self.size, self.size
        )
        slope = self._up(self._u(0, 1, n, 3, 2, 2), "bilinear")
        cloud = self._up(self._u(0, 1, n, 3, 4, 4))
        fine = self._up(self._u(0, 1, n, 3, 16, 16), "bilinear")
        cloud = cloud + self._u(0.05, 0.4)[:, None, None, None] * (fine - cloud)
        direction = self._u(0, 3.2)[:, None, None]
        phase = torch.cos(direction) * self.x_HW + torch.sin(direction) * self.y_HW
        stripe = (torch.sin(phase * self._u(6, 40)[:, None, None]) > self._u(-0.5, 0.8)[:, None, None])[:, None]
        bars = torch.where(stripe, a[:, :, None, None], b[:, :, None, None])
        out = torch.where((kind == 0)[:, None, None, None] | (kind == 1)[:, None, None, None], flat, slope)
        out = torch.where((kind == 3)[:, None, None, None], cloud, out)
        out = torch.where((kind == 4)[:, None, None, None], bars, out)
        out = torch.where((kind == 5)[:, None, None, None], fine * 0.3 + flat * 0.7, out)
        for probability in (0.4, 0.3, 0.2):
            out = torch.where(
                self._blob(0.1, 0.7)[:, None] & self._p(probability)[:, None, None, None],
                self._colours(light)[:, :, None, None],
                out,
            )
        return out

    def _blob(self, least: float, most: float) -> Tensor:
        """A box or an ellipse somewhere, as a mask."""
        u, v, w, h = self._u(-1, 1), self._u(-1, 1), self._u(least, most), self._u(least, most)
        x = (self.x_HW[None] - u[:, None, None]) / w[:, None, None]
        y = (self.y_HW[None] - v[:, None, None]) / h[:, None, None]
        return torch.where(self._p(0.5)[:, None, None], x.abs().maximum(y.abs()) < 1, x * x + y * y < 1)

    def _occlude(self, image: Tensor) -> Tensor:
        n = self.batch
        middle, thick = self._u(-0.6, 0.6), self._u(0.05, 0.13)
        lying = self._p(0.7)[:, None, None]
        across = torch.where(lying, self.y_HW[None], self.x_HW[None])
        bar = (across - middle[:, None, None]).abs() < thick[:, None, None]
        mask = torch.where(self._p(0.5)[:, None, None], bar, self._blob(0.1, 0.3)) & self._rare(0.25)[:, None, None]
        strength = torch.where(self._p(0.7), 1.0, 0.5)[:, None, None, None] * mask[:, None]
        return image + strength * (self._u(0, 1, n, 3)[:, :, None, None] - image)

    def _damage(self, image: Tensor) -> Tensor:
        n = self.batch

        def b(t: Tensor) -> Tensor:
            return t[:, None, None, None]

        image = image * b(self._u(0.72, 1.28))
        mean = image.mean((1, 2, 3), keepdim=True)
        image = mean + (image - mean) * b(self._u(0.72, 1.28))
        grey = image.mean(1, keepdim=True)
        image = grey + (image - grey) * b(torch.where(self._p(0.02), torch.zeros(n), self._u(0.6, 1.4)))
        gains = 1 + self._u(-0.15, 0.15, n, 3) * self._p(0.4)[:, None]
        image = image * gains[:, :, None, None]
        shifted = (torch.roll(image, 1, 2) + torch.roll(image, 1, 3) + torch.roll(image, (1, 1), (2, 3))) / 3
        image = image + b(self._rare(0.4) * self._u(0.3, 0.75)) * (shifted - image)
        small = F.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
        small = F.interpolate(small, image.shape[-2:], mode="bilinear", align_corners=False)
        image = image + b(self._rare(0.2) * self._u(0.4, 1.0)) * (small - image)
        noise = torch.randn(image.shape, generator=self.g)
        image = image + b(self._rare(0.4) * self._u(0.01, 0.06)) * noise
        return image.clamp(0, 1)

    @torch.no_grad()
    def next(self) -> tuple[Tensor, Tensor]:
        """pixels_BCHW float in 0..1, entity_B (index in world.depicted)."""
        entity, rows = self._pick()
        flag = self.sprites.is_flag[entity]
        rgba = self._restyle(self.sprites.rgba_NCSS[rows].float() / 255, flag)
        image = self._background()
        for probability in (0.5, 0.25):
            # Small things at the edge: other drawings of the batch.
            other = torch.randperm(self.batch, generator=self.g)
            side = torch.where(self._p(0.5), -1.0, 1.0) * self._u(0.75, 1.1)
            along = self._u(-1, 1)
            lying = self._p(0.5)
            small = self._place(
                rgba[other],
                flag[other],
                self._u(0.13, 0.27),
                torch.where(lying, along, side),
                torch.where(lying, side, along),
                0.0,
            )
            small = small * (self._p(probability) & (entity[other] != entity))[:, None, None, None]
            image = image * (1 - small[:, 3:]) + small[:, :3]
        scale = self._u(0.55, 1.08)
        slack = (1 - scale).clamp_min(0.05)
        big = self._place(rgba, flag, scale, slack * self._u(-0.8, 0.8), slack * self._u(-0.8, 0.8), 0.09)
        shadow = torch.roll(big[:, 3:], (2, 2), (2, 3)) * (self._p(0.3) * self._u(0.1, 0.4))[:, None, None, None]
        image = image * (1 - shadow)
        image = image * (1 - big[:, 3:]) + big[:, :3]
        return self._damage(self._occlude(image)), entity

    @torch.no_grad()
    def again(self, image: Tensor, entity: Tensor) -> tuple[Tensor, Tensor]:
        """The same scenes, in another order, moved by some pixels, in another light."""
        order = torch.randperm(self.batch, generator=self.g)
        dx, dy = (int(v) for v in torch.randint(-4, 5, (2,), generator=self.g))
        image = torch.roll(image[order], (dx, dy), (2, 3))
        gain = self._u(0.8, 1.2, self.batch, 1) * self._u(0.93, 1.07, self.batch, 3)
        return ((image - 0.5) * self._u(0.8, 1.2)[:, None, None, None] + 0.5).mul(gain[:, :, None, None]).clamp(
            0, 1
        ), entity[order]
