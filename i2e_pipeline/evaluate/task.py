"""Task: what a protocol is given to measure.

Legend: N images, D width, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from i2e_pipeline.core.config import EvaluateConfig
from i2e_pipeline.evaluate.embed import Embedded, ImageEncoder
from i2e_pipeline.evaluate.image_set import UNSEEN, ImageSet
from i2e_pipeline.evaluate.top_one import Block

Head = Callable[[], Iterator[Block]]
"""The classes of an entity head: Wikidata ids and their vectors, a block at a time."""


@dataclass(frozen=True)
class Task:
    """One encoder's vectors of one data set."""

    encoder: ImageEncoder
    data: ImageSet
    embedded: Embedded
    settings: EvaluateConfig
    folder: str | None = None
    """Where a protocol may write; None: nowhere, as within a training."""
    head: Head | None = None
    """The entity head of the encoder's checkpoint."""

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(vectors_ND, labels_N) of those of the rows that have a class and could be decoded."""
        rows = self.kept(rows)
        return self.embedded.vectors_ND[np.searchsorted(self.embedded.rows_N, rows)], self.data.labels_N[rows]

    def kept(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.isin(rows, self.embedded.rows_N) & (self.data.labels_N[rows] >= 0)]

    @property
    def retrieved(self) -> np.ndarray:
        """Rows that retrieval asks and searches: a benchmark's test images; of a dataset whose split keeps entities out
        of training, their images; of another set of the user's, all."""
        if UNSEEN in self.data.splits:
            return self.kept(self.data.splits[UNSEEN])
        if self.data.fixed and "test" in self.data.splits:
            return self.kept(self.data.splits["test"])
        return self.kept(np.arange(len(self.data)))
