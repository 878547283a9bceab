"""Image to entity: is the right entity among the k whose texts are nearest to the image, of all entities?

The text of an entity is its name and description; entities of one name are told apart by the description only. The
figures are given again by how many images the entity has: what is rare is learnt from little, and averages hide it.

Legend: N images, C entities, D width, K nearest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from i2e_pipeline.evaluate.long_tail import BUCKETS, bucket
from i2e_pipeline.evaluate.retrieval import mean_by_class, top_k

TEMPLATE = "{name}, {description}"
AT = (1, 5, 10)


def entity_texts(
    names: Sequence[str], descriptions: Sequence[str | None] | None, template: str = TEMPLATE
) -> list[str]:
    """What each entity is called for the text tower; without a description the name stands alone."""
    described = descriptions or [None] * len(names)
    return [
        template.format(name=name, description=about) if about else name
        for name, about in zip(names, described, strict=True)
    ]


def image_to_entity(
    texts: Callable[[list[str]], np.ndarray],
    vectors_ND: np.ndarray,
    labels_N: np.ndarray,
    names: Sequence[str],
    descriptions: Sequence[str | None] | None = None,
    class_images_C: np.ndarray | None = None,
    template: str = TEMPLATE,
    block_mb: float = 256,
) -> dict[str, Any]:
    """`acc@1`, `acc@5`, `acc@10` in [0, 1] over the images; `buckets`, the same by images per entity.

    texts                  encodes texts: vectors_ND, norm 1
    vectors_ND, labels_N   of the images, norm 1; labels count along `names`
    class_images_C         images of each entity in the data that was trained on; None: no buckets
    `acc@1 by entity` is the mean over entities instead of images: each counts the same. `correct`: whether the right
    one's text is among the k nearest, by figure and image; `bucket`: the bucket of each image. Entities of equal text
    cannot be told apart; `equal_texts` lists them.
    """
    labels_N = np.asarray(labels_N)
    said = entity_texts(names, descriptions, template)
    _, nearest_NK = top_k(vectors_ND, texts(said), min(max(AT), len(said)), block_mb)
    right_NK = nearest_NK == labels_N[:, None]
    found: dict[str, Any] = dict(_accuracies(right_NK))
    found |= {
        "acc@1 by entity": mean_by_class(right_NK[:, 0], labels_N),
        "images": len(vectors_ND),
        "entities": len(said),
        "equal_texts": sorted(text for text, count in Counter(said).items() if count > 1),
        "correct": {f"acc@{k}": right_NK[:, :k].any(axis=1).tolist() for k in AT},
    }
    if class_images_C is not None:
        count_N = np.asarray(class_images_C)[labels_N]
        found["buckets"] = _by_bucket(right_NK, labels_N, count_N)
        found["bucket"] = [bucket(int(count)) for count in count_N]
    return found


def _accuracies(right_NK: np.ndarray) -> dict[str, float]:
    return {f"acc@{k}": float(right_NK[:, :k].any(axis=1).mean()) for k in AT}


def _by_bucket(right_NK: np.ndarray, labels_N: np.ndarray, count_N: np.ndarray) -> list[dict[str, Any]]:
    """Accuracies by how many images the entity has; buckets without an image are left out."""
    rows = []
    for low, high in BUCKETS:
        inside = (count_N >= low) & (count_N <= (count_N.max() if high is None else high))
        if inside.any():
            name = bucket(low)
            counts = {"images": int(inside.sum()), "entities": len(np.unique(labels_N[inside]))}
            rows.append({"name": name, "from": low, "to": high} | counts | _accuracies(right_NK[inside]))
    return rows
