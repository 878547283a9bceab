"""On ranks: the towers of a training as an encoder, for whoever measures them on images of their own.

Reads    prepared pixels and texts
Writes   vectors on rank 0, float32 of norm 1; figures on every rank

Ranks share the images. All of them call the towers equally often, with blanks where a rank has nothing left, since with
FSDP2 a call is an exchange; for the same reason a text that rank 0 asks for is encoded by all of them.

Legend: N images or texts, B at once, H W side of the input, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from i2e_pipeline.images import models
from i2e_pipeline.images.encoder import steps_on_images
from i2e_pipeline.train.encoders import Towers
from i2e_pipeline.train.parallel import World

AT_ONCE = 64

Batches = Iterator[tuple[list[int], np.ndarray]]
"""Rows, rising, and their pixels as `prepare` gives them, stacked; AT_ONCE of them at most."""
Measure = Callable[["OnRanks"], "dict[str, float]"]
"""What is measured beside the held-out images: every rank calls it, and gets the same figures."""


class OnRanks:
    def __init__(
        self, towers: Towers, module: nn.Module, world: World, go_on: Callable[[], None] = lambda: None
    ) -> None:
        """module   the towers as strategy.wrap gives them
        go_on    called before each batch of images, equally often on every rank; raises where there is to be no more
        """
        self._towers, self._module, self._world, self._go_on = towers, module, world, go_on
        self._steps = steps_on_images(models.preprocessing(towers.model))
        self.width, self.has_texts = towers.width, towers.uses_text

    def prepare(self, image: Image.Image) -> np.ndarray:
        """uint8 (H, W, 3), as the export's own preprocessing makes it; thread-safe."""
        for step in self._steps:
            image = step(image)
        return np.asarray(image)

    def images(self, count: int, batches_of: Callable[[range], Batches]) -> tuple[np.ndarray, np.ndarray]:
        """(vectors_ND, rows_N) of `count` images, on rank 0; none elsewhere. Every rank calls it.

        batches_of   the batches of some of the rows. Where it raises on one rank, that error is raised on all
        """
        mine = range(self._world.rank, count, self._world.size)
        calls = math.ceil(math.ceil(count / self._world.size) / AT_ONCE)
        batches = batches_of(mine)
        problem: Exception | None = None
        vectors, rows = [np.empty((0, self.width), np.float32)], [np.empty(0, np.int64)]
        for _ in range(calls):
            self._go_on()
            try:
                some, pixels = next(batches) if problem is None else ([], None)
            except StopIteration:
                some, pixels = [], None
            except Exception as raised:
                problem, some, pixels = raised, [], None
            encoded_BD = self._encoded(pixels)
            if some:
                vectors.append(encoded_BD.numpy())
                rows.append(np.array(some, dtype=np.int64))
        told = self._world.gather_objects((np.concatenate(rows), np.concatenate(vectors), problem))
        if errors := [error for _, _, error in told if error is not None]:
            raise errors[0]
        if not self._world.first:
            return vectors[0], rows[0]
        rows_N = np.concatenate([r for r, _, _ in told])
        order = np.argsort(rows_N)
        return np.concatenate([v for _, v, _ in told])[order], rows_N[order]

    def measured(self, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What rank 0 measures, on every rank; meanwhile the others encode the texts that it asks `texts` for."""

        def work() -> tuple[dict[str, float], Exception | None]:
            try:
                return measure(), None
            except Exception as raised:
                return {}, raised
            finally:
                self._world.gather_objects(None)  # no more texts

        outcome: Any = None
        if self._world.first:
            outcome = work()
        else:
            while (asked := self._world.gather_objects(None)[0]) is not None:
                self._encoded_texts(asked)
        figures, error = self._world.gather_objects(outcome)[0]
        if error is not None:
            raise error
        return dict(figures)

    def texts(self, texts: list[str]) -> np.ndarray:
        """vectors_ND of texts; rank 0 calls it, within `measured`."""
        self._world.gather_objects(texts)
        return self._encoded_texts(texts)

    def _encoded(self, pixels_BHWC: np.ndarray | None) -> Tensor:
        side = self._towers.image_size
        given = np.zeros((1, side, side, 3), np.uint8) if pixels_BHWC is None else pixels_BHWC
        pixels_BCHW = torch.from_numpy(given).permute(0, 3, 1, 2).to(self._world.device)
        with torch.no_grad():
            encoded: Tensor = self._module(pixels_BCHW).image_BD.float().cpu()
        return encoded

    def _encoded_texts(self, texts: list[str]) -> np.ndarray:
        side, device = self._towers.image_size, self._world.device
        # An image comes along, because under FSDP2 only the module's own forward gathers its weights.
        blank = torch.zeros((1, 3, side, side), dtype=torch.uint8, device=device)
        parts = [np.empty((0, self.width), np.float32)]
        for start in range(0, len(texts), AT_ONCE):
            tokens_BL = self._towers.trim(self._towers.tokenizer(texts[start : start + AT_ONCE])).to(device)
            with torch.no_grad():
                parts.append(self._module(blank, tokens_BL).text_BD.float().cpu().numpy())
        return np.concatenate(parts)
