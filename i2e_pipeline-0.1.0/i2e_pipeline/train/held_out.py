"""Held out: the figures of a training on images that it does not see.

Reads    stored bytes of held-out images and of some training images; the towers as they are
Writes   name → number, from whatever function of the vectors it was given

What is measured is decided elsewhere: the figures are functions of the evaluation, which this room does not import
(commands/train.py joins the two). The ranks share the encoding, and every rank gets the figures.

Legend: N images, B images encoded at once, C entities, D width, H W side of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.core.draws import hashed
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.train.augment import centred
from i2e_pipeline.train.encoders import Towers
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.samples import Samples
from i2e_pipeline.train.texts import Texts

Figures = Callable[
    [np.ndarray, np.ndarray, np.ndarray, "np.ndarray | None", np.ndarray, np.ndarray], "dict[str, float]"
]
"""(image_ND, class_N, new_N, text_CD or None, train_ND, train_class_M) → figures. Classes are numbered anew: text_CD
has a row for each class of class_N; new_N (bool): the image shows an entity that is not trained on."""
_AT_ONCE = 64
_OF_A_CLASS = 16
"""So many images of one class are taken before the next class is: retrieval looks for others of the same class."""


class HeldOutImages:
    """Encodes the same images at each call; their pixels are decoded once and stay (3 HW bytes each)."""

    def __init__(
        self, samples: Samples, towers: Towers, module: nn.Module, config: TrainConfig, world: World, figures: Figures
    ) -> None:
        """module: the towers as strategy.wrap gives them; every rank calls its forward equally often."""
        self._samples, self._towers, self._module, self._world, self._figures = samples, towers, module, world, figures
        limit = config.evaluate_images
        held = samples.held_out
        new, new_class = _some(samples, held.entity_rows, held.entity_classes, limit)
        known, known_class = _some(samples, held.image_rows, held.image_classes, limit)
        # Neighbours can only be right where the classes that are asked for are among them.
        class_N = samples.class_of(samples.training)
        trained, trained_class = _some(samples, samples.training, class_N, limit, known_class)
        self._rows_N = np.concatenate([new, known, trained])
        self._class_N = np.concatenate([new_class, known_class, trained_class])
        self._new = len(new)
        self._held = len(new) + len(known)
        self._counts = len(held.entity_rows), len(samples.held_out_entities), len(held.image_rows)
        self._pixels_NCHW: Tensor | None = None
        self._mine: np.ndarray = np.arange(world.rank, len(self._rows_N), world.size)
        self._good: np.ndarray = np.empty(0, dtype=bool)
        self._tokens_CL: Tensor | None = None
        if towers.uses_text and self._held:
            texts = Texts(samples.published.entities, (0, 0, 1), config.text.template, towers.tokenizer)
            named = np.unique(self._class_N[: self._held]).tolist()
            self._tokens_CL = towers.trim(texts.tokens([texts.of_entity(c, True) for c in named]))

    def __str__(self) -> str:
        images, entities, others = self._counts
        return f"{images:,} images of {entities:,} entities and {others:,} images of the others"

    def measure(self) -> dict[str, float]:
        """The figures of the towers as they are; the same on every rank. Nothing held out: none."""
        if not self._held:
            return {}
        if self._pixels_NCHW is None:
            self._decode()
        self._module.eval()
        with torch.no_grad():
            mine_ND = self._images()
            text_CD = None if self._tokens_CL is None else self._texts(self._tokens_CL)
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

    def _images(self) -> np.ndarray:
        """Unit vectors of this rank's images. Ranks call the towers equally often: with FSDP2 a call
        is an exchange."""
        assert self._pixels_NCHW is not None
        calls = math.ceil(math.ceil(len(self._rows_N) / self._world.size) / _AT_ONCE)
        parts = []
        for call in range(calls):
            part_BCHW = self._pixels_NCHW[call * _AT_ONCE : (call + 1) * _AT_ONCE]
            rows = len(part_BCHW)
            if not rows:
                part_BCHW = torch.zeros((1, *self._pixels_NCHW.shape[1:]), dtype=torch.uint8)
            parts.append(self._module(part_BCHW.to(self._world.device)).image_BD[:rows].float().cpu())
        return np.asarray(torch.cat(parts).numpy()[self._good])

    def _texts(self, tokens_CL: Tensor) -> np.ndarray:
        side = self._towers.image_size
        parts = []
        for start in range(0, len(tokens_CL), _AT_ONCE):
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
            for rows, images in self._samples.stored(rows_M):
                list(pool.map(decode, rows.tolist(), images))
        self._good = good_M
        self._pixels_NCHW = torch.from_numpy(pixels_MHWC).permute(0, 3, 1, 2)


def _some(
    samples: Samples, rows: np.ndarray, class_N: np.ndarray, limit: int, first: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `limit` of the rows and their classes, by hash: the same ones in every training.

    Whole classes rather than an image of each: up to _OF_A_CLASS images of a class, those of `first` before others.
    """
    if len(rows) <= limit:
        return rows, class_N
    by_image = hashed(samples.keys(rows), "evaluated")
    by_class = hashed(samples.entity_ids_C[class_N], "evaluated")
    order = np.lexsort((by_image, by_class))
    starts = np.flatnonzero(np.diff(by_class[order], prepend=by_class[order[0]] + np.uint64(1)) != 0)
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    later = np.zeros(len(order), dtype=bool) if first is None else ~np.isin(class_N[order], first)
    order = order[np.lexsort((np.arange(len(order)), later, place >= _OF_A_CLASS))][:limit]
    order = order[np.argsort(rows[order])]
    return rows[order], class_N[order]
