"""The long tail: figures by how many images of an entity there were to learn from.

What is rare is learnt from little, and a mean over images hides it: half of them are of the few entities that are
everywhere.

Legend: Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BY = "images per entity"
"""What results call this breakdown."""
BUCKETS = ((0, 0), (1, 4), (5, 9), (10, 19), (20, 49), (50, None))
"""Images per entity, from … to; None: no end."""


def bucket(count: int) -> str:
    """The name of the bucket of an entity with that many images."""
    low, high = next((low, high) for low, high in BUCKETS if high is None or count <= high)
    return f"{low}+" if high is None else f"{low}" if low == high else f"{low}–{high}"


def long_tail(values_Q: Sequence[float | bool | None], images_Q: np.ndarray) -> tuple[dict[str, float], list[str]]:
    """The mean of a figure's values in each bucket, rarest first, and the bucket of each query.

    values_Q   what each query gave; None: it does not count. A bucket without one that counts is left out
    images_Q   images of each query's entity
    """
    of_count = {count: bucket(count) for count in np.unique(images_Q).tolist()}
    buckets = [of_count[count] for count in images_Q.tolist()]
    sums: dict[str, list[float]] = {}
    for name in dict.fromkeys(of_count.values()):
        sums[name] = [float(v) for v, of in zip(values_Q, buckets, strict=True) if of == name and v is not None]
    return {name: sum(values) / len(values) for name, values in sums.items() if values}, buckets
