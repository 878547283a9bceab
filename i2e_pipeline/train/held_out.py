"""Held out: the figures of a training on images that it does not see.

Reads    stored bytes of held-out images and of some training images; the towers as they are
Writes   name → number, from whatever function of the vectors it was given

What is measured is decided elsewhere: the figures are functions of the evaluation, which this room does not import
(commands/train.py joins the two). The ranks share the encoding, and every rank gets the figures.

Legend: N images, B images encoded at once, C entities, D width, H W side of the input.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.dataset.split import Side
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.train.augment import centred
from i2e_pipeline.train.encoders import Towers
from i2e_pipeline.train.groups import Groups
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.samples import Samples
from i2e_pipeline.train.texts import Texts

Figures = Callable[
    [np.ndarray, np.ndarray, np.ndarray, "np.ndarray | None", np.ndarray, np.ndarray], "dict[str, float]"
]
"""(image_ND, class_N, new_N, text_CD or None, train_ND, train_class_M) → figures. Classes are numbered anew: text_CD
has a row for each class of class_N; new_N (bool): the image shows an entity that is not trained on."""
_AT_ONCE = 64


class HeldOutImages:
    """Encodes the same images at each call; their pixels are decoded once and stay (3 HW bytes each)."""

    def __init__(
        self, samples: Samples, towers: Towers, module: nn.Module, config: TrainConfig, world: World, figures: Figures
    ) -> None:
        """module: the towers as strategy.wrap gives them; every rank calls its forward equally often."""
        self._samples, self._towers, self._module, self._world, self._figures = samples, towers, module, world, figures
        held = samples.held_out
        self._rows_N = np.concatenate([held.entity_rows, held.image_rows, held.trained_rows])
        self._class_N = np.concatenate([held.entity_classes, held.image_classes, held.trained_classes])
        self._new = len(held.entity_rows)
        self._held = self._new + len(held.image_rows)
        self._pixels_NCHW: Tensor | None = None
        self._mine: np.ndarray = np.arange(world.rank, len(self._rows_N), world.size)
        self._good: np.ndarray = np.empty(0, dtype=bool)
        self._tokens_CL: Tensor | None = None
        if towers.uses_text and self._held:
            texts = Texts(samples.published.entities, (0, 0, 1), config.text.template, towers.tokenizer)
            named = np.unique(self._class_N[: self._held]).tolist()
            self._tokens_CL = towers.trim(texts.tokens([texts.of_entity(c, True) for c in named]))

    def __str__(self) -> str:
        sides, entities = self._samples.index.sides, len(self._samples.held_out_entities)
        images, others = sides[Side.OF_HELD_OUT_ENTITY], sides[Side.HELD_OUT_IMAGE]
        return f"{images:,} images of {entities:,} entities and {others:,} images of the others"

    def measure(self, go_on: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The figures of the towers as they are; the same on every rank. Nothing held out: none.

        go_on   called before each batch, equally often on every rank; raises where there is to be no more
        """
        if not self._held:
            return {}
        if self._pixels_NCHW is None:
            self._decode()
        self._module.eval()
        with torch.no_grad():
            mine_ND = self._images(go_on)
            text_CD = None if self._tokens_CL is None else self._texts(self._tokens_CL, go_on)
        self._module.train()
        told = self._world.gather_objects((self._mine[self._good], mine_ND))
        figures: Any = None
        if self._world.first:
            place_N = np.concatenate([p for p, _ in told])
            order = np.argsort(place_N)
            place_N, image_ND = place_N[order], np.concatenate([v for _, v in told])[order]
            # Held-out classes come first, so that a class is its row in text_CD.
            named = np.unique(self._class_N[: self._held])
            known_N = np.searchsorted(named, self._class_N[place_N]).clip(max=len(named) - 1)
            class_N = np.where(named[known_N] == self._class_N[place_N], known_N, len(named) + self._class_N[place_N])
            held_N = place_N < self._held
            new_N = place_N[held_N] < self._new
            figures = self._figures(
                image_ND[held_N], class_N[held_N], new_N, text_CD, image_ND[~held_N], class_N[~held_N]
            )
        figures = self._world.gather_objects(figures)[0]
        return dict(figures)

    def _images(self, go_on: Callable[[], None]) -> np.ndarray:
        """Unit vectors of this rank's images. Ranks call the towers equally often: with FSDP2 a call
        is an exchange."""
        assert self._pixels_NCHW is not None
        calls = math.ceil(math.ceil(len(self._rows_N) / self._world.size) / _AT_ONCE)
        parts = []
        for call in range(calls):
            go_on()
            part_BCHW = self._pixels_NCHW[call * _AT_ONCE : (call + 1) * _AT_ONCE]
            rows = len(part_BCHW)
            if not rows:
                part_BCHW = torch.zeros((1, *self._pixels_NCHW.shape[1:]), dtype=torch.uint8)
            parts.append(self._module(part_BCHW.to(self._world.device)).image_BD[:rows].float().cpu())
        return np.asarray(torch.cat(parts).numpy()[self._good])

    def _texts(self, tokens_CL: Tensor, go_on: Callable[[], None]) -> np.ndarray:
        side = self._towers.image_size
        parts = []
        for start in range(0, len(tokens_CL), _AT_ONCE):
            go_on()
            part = tokens_CL[start : start + _AT_ONCE].to(self._world.device)
            # An image comes along, because under FSDP2 only the module's own forward gathers its weights.
            blank = torch.zeros((1, 3, side, side), dtype=torch.uint8, device=self._world.device)
            parts.append(self._module(blank, part).text_BD.float().cpu())
        return np.asarray(torch.cat(parts).numpy())

    def _decode(self) -> None:
        side = self._towers.image_size
        rows_M = self._rows_N[self._mine]
        order_M = np.argsort(rows_M)
        pixels_MHWC = np.zeros((len(rows_M), side, side, 3), dtype=np.uint8)
        good_M = np.zeros(len(rows_M), dtype=bool)

        def decode(row: int, stored: bytes | None) -> None:
            opened = open_rgb(stored, self._samples.limits, side)
            if not isinstance(opened, Rejected):
                place = order_M[np.searchsorted(rows_M, row, sorter=order_M)]
                pixels_MHWC[place] = centred(opened[0], side)
                good_M[place] = True

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for rows, images in stored(self._samples, rows_M):
                list(pool.map(decode, rows.tolist(), images))
        self._good = good_M
        self._pixels_NCHW = torch.from_numpy(pixels_MHWC).permute(0, 3, 1, 2)


def stored(samples: Samples, rows: np.ndarray) -> Iterator[tuple[np.ndarray, list[bytes | None]]]:
    """Rows of the dataset and their stored bytes, row group by row group, each row once."""
    rows = np.unique(rows)
    with contextlib.closing(Groups(samples, [])) as groups:
        for group in np.unique(np.searchsorted(samples.group_start_G, rows, side="right") - 1).tolist():
            start, end = samples.group_start_G[group : group + 2]
            here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)]
            yield here, groups.stored(group, here - start)
