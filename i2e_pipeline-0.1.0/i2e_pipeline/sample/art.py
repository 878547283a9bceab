"""The drawings: RGBA sprites by art style and entity, from the sheets that ship with the project."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

from PIL import Image

from i2e_pipeline.images.decode import open_image
from i2e_pipeline.sample.world import ART, HELD_OUT_STYLE

KEPT_VARIANTS = 4
"""Our own code draws an entity in many variants. This many of them are kept out of training and used for scoring."""
DRAWN = "drawn"
"""The art style of what our own code draws."""


@dataclass(frozen=True)
class Art:
    """Where each drawing lies on its sheet, by art style and entity. A sheet is decoded when it is first asked for."""

    index: dict[str, dict[str, list[list[int]]]]

    @cached_property
    def _sheets(self) -> dict[str, Image.Image]:
        return {}

    def styles(self, entity: str, training: bool) -> tuple[str, ...]:
        """The art styles in which the entity is drawn; for training without the held-out one."""
        return tuple(
            s for s in sorted(self.index) if entity in self.index[s] and not (training and s == HELD_OUT_STYLE)
        )

    def variants(self, style: str, entity: str, training: bool) -> tuple[int, ...]:
        """Numbers of the entity's drawings in that style. Of our own drawings, training and scoring see different
        ones."""
        count = len(self.index[style][entity])
        if style != DRAWN:
            return tuple(range(count))
        return tuple(range(count - KEPT_VARIANTS)) if training else tuple(range(count - KEPT_VARIANTS, count))

    def sprite(self, style: str, entity: str, variant: int = 0) -> Image.Image:
        """One drawing, RGBA, its longer side 128 px."""
        if style not in self._sheets:
            with open_image((ART / f"{style}.webp").read_bytes()) as sheet:
                self._sheets[style] = sheet.convert("RGBA")
        left, top, width, height = self.index[style][entity][variant]
        return self._sheets[style].crop((left, top, left + width, top + height))


@lru_cache(maxsize=1)
def load_art() -> Art:
    """The drawings that ship with the project."""
    return Art(json.loads((ART / "index.json").read_text()))
