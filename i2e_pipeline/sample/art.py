"""The drawings: RGBA sprites by hand and entity, from the sheets that ship with the project."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

from PIL import Image

from i2e_pipeline.images.decode import open_image
from i2e_pipeline.sample.world import ART, HELD_OUT_HAND

KEPT_VARIANTS = 4
"""Where our own code draws an entity in many variants, so many of them are kept from training, for scoring."""
DRAWN = "drawn"


@dataclass(frozen=True)
class Art:
    """Boxes by hand and entity; sheets are decoded when first asked for."""

    index: dict[str, dict[str, list[list[int]]]]

    @cached_property
    def _sheets(self) -> dict[str, Image.Image]:
        return {}

    def hands(self, entity: str, training: bool) -> tuple[str, ...]:
        """Which hands draw the entity; never the held-out one for training."""
        return tuple(h for h in sorted(self.index) if entity in self.index[h] and not (training and h == HELD_OUT_HAND))

    def variants(self, hand: str, entity: str, training: bool) -> tuple[int, ...]:
        """Drawings of the entity by that hand; of many variants of our own, training and scoring see different ones."""
        count = len(self.index[hand][entity])
        if hand != DRAWN:
            return tuple(range(count))
        return tuple(range(count - KEPT_VARIANTS)) if training else tuple(range(count - KEPT_VARIANTS, count))

    def sprite(self, hand: str, entity: str, variant: int = 0) -> Image.Image:
        """One drawing, RGBA, its longer side 128 px."""
        if hand not in self._sheets:
            with open_image((ART / f"{hand}.webp").read_bytes()) as sheet:
                self._sheets[hand] = sheet.convert("RGBA")
        left, top, width, height = self.index[hand][entity][variant]
        return self._sheets[hand].crop((left, top, left + width, top + height))


@lru_cache(maxsize=1)
def load_art() -> Art:
    """The drawings that ship with the project."""
    return Art(json.loads((ART / "index.json").read_text()))
