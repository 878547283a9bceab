"""Sets in training: image sets that a training is measured on, beside what it holds out.

Reads    the data sets of train.evaluate_sets, by the layouts of `i2e evaluate`
Writes   `SET/PROTOCOL FIGURE` → number, by its protocols

The training's ranks encode the images (train/on_ranks.py), which this room does not know: it is handed in.

Legend: N images, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
from PIL import Image

from i2e_pipeline.core.config import Config, EvaluateConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.evaluate.datasets import ImageSet, open_dataset
from i2e_pipeline.evaluate.embed import Embedded, ImageEncoder, batches
from i2e_pipeline.evaluate.protocols import PROTOCOLS
from i2e_pipeline.evaluate.results import CHANCE
from i2e_pipeline.evaluate.task import Task

log = logging.getLogger(__name__)


class Towers(Protocol):
    """What a training hands in: its towers on all of its ranks (train/on_ranks.py)."""

    width: int
    has_texts: bool

    def prepare(self, image: Image.Image) -> np.ndarray: ...

    def images(
        self, count: int, batches_of: Callable[[range], Iterator[tuple[list[int], np.ndarray]]]
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def texts(self, texts: list[str]) -> np.ndarray: ...

    def measured(self, measure: Callable[[], dict[str, float]]) -> dict[str, float]: ...


class SetError(I2EError, ValueError):
    """A set or protocol that a training cannot be measured by; the message names the setting and the way out."""


class Sets:
    """The sets of train.evaluate_sets: opened and checked once, measured as often as it is called."""

    def __init__(self, config: Config, at_once: int) -> None:
        """Raises DatasetError where one cannot be read, SetError where no protocol fits it."""
        train = config.train
        if odd := [name for name in train.evaluate_protocols if name not in PROTOCOLS]:
            raise SetError(f"train.evaluate_protocols: {odd[0]!r} is no protocol: there are {', '.join(PROTOCOLS)}")
        self._protocols = train.evaluate_protocols
        self._settings: EvaluateConfig = config.evaluate
        self._at_once = at_once
        self._sets = [open_dataset(name, path) for name, path in train.evaluate_sets.items()]
        for data in self._sets:
            if not any(PROTOCOLS[name].applies(data) for name in self._protocols):
                fit = ", ".join(name for name, protocol in PROTOCOLS.items() if protocol.applies(data))
                raise SetError(
                    f"train.evaluate_sets: none of {', '.join(self._protocols)} applies to {data.name}; there are {fit}"
                )

    def __call__(self, towers: Towers) -> dict[str, float]:
        """`SET/PROTOCOL FIGURE` → number. A set that cannot be read any more is left out with a warning: a training
        does not end for it."""
        figures: dict[str, float] = {}
        for data in self._sets:
            failed: dict[str, str] = {}
            try:
                vectors_ND, rows_N = towers.images(
                    len(data),
                    partial(batches, towers.prepare, data, batch_size=self._at_once, failed=failed),
                )
                embedded = Embedded(vectors_ND, rows_N, failed, False)
                figures |= towers.measured(partial(self._figures, towers, data, embedded))
            except (I2EError, OSError) as why:
                log.warning(f"train.evaluate_sets: {data.name} is left out of this evaluation: {why}")
            if failed:
                log.warning(f"{data.name}: {len(failed):,} images not decoded, first {next(iter(failed))}")
        return figures

    def _figures(self, towers: Towers, data: ImageSet, embedded: Embedded) -> dict[str, float]:
        texts = towers.texts if towers.has_texts else None
        encoder = ImageEncoder("training", "", "", towers.width, towers.prepare, _none, texts)
        task = Task(encoder, data, embedded, self._settings)
        figures: dict[str, float] = {}
        for name in self._protocols:
            protocol = PROTOCOLS[name]
            if not protocol.applies(data) or (protocol.needs_text and texts is None):
                continue
            try:
                found = protocol.measure(task).figures
            except I2EError as why:
                log.warning(f"{data.name}/{name} is left out of this evaluation: {why}")
                continue
            named = {key: value for key, value in found.items() if value is not None and key != CHANCE}
            figures |= {f"{data.name}/{name} {key}": float(value) for key, value in named.items()}
        return figures


def _none(_: np.ndarray) -> np.ndarray:
    raise SetError("images are encoded by the ranks together")
