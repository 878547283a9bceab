"""Look: what the page shows of one data set beside its figures. The suite fills it, the page draws it.

Legend: N images of the data set, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from i2e_pipeline.evaluate.image_set import ImageSet
from i2e_pipeline.evaluate.pictures import Neighbours, Scatter


@dataclass
class Look:
    """Each encoder adds its neighbours and its scatter under its label."""

    data: ImageSet
    rows_N: np.ndarray | None = None
    """int64, rows that could be decoded: the same for every encoder. None before the first encoder."""
    asked_Q: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Rows of the queries whose neighbours are shown."""
    neighbours: dict[str, list[Neighbours]] = field(default_factory=dict)
    """What each encoder found for each query, by the encoder's label."""
    scatters: dict[str, Scatter] = field(default_factory=dict)
