"""Text-image retrieval: does an image find one of its captions among all, and a caption its image?

Recall@k as papers on CLIP give it, and as CLIP_benchmark (LAION) computes it: an image is right when any of its
captions is among the k nearest of all captions (text retrieval), a caption is right when its image is among the k
nearest images (image retrieval); the mean over images, and over captions.

Legend: N images, T captions, D width, P captions of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from i2e_pipeline.evaluate.retrieval import ranks_by_block
from i2e_pipeline.evaluate.vectors import VectorsError

AT = (1, 5, 10)
TEXTS, IMAGES = "text_retrieval_recall", "image_retrieval_recall"
"""What is found: a text for an image, an image for a text. CLIP_benchmark's names."""


def text_image_retrieval(
    images_ND: np.ndarray, texts_TD: np.ndarray, image_of_T: np.ndarray, at: Sequence[int] = AT, block_mb: float = 256
) -> dict[str, Any]:
    """`text_retrieval_recall@k` and `image_retrieval_recall@k` in [0, 1], by cosine; a k of which everything would be
    found, since there is no more, is None.

    image_of_T   row in images_ND of each caption's image
    `correct` has of each figure whether each query was right: text retrieval asks N times, image retrieval T times.
    Of equally near ones the first in order is nearer. Exact, in blocks of block_mb MiB (retrieval.py).
    Raises VectorsError for an image without a caption, a caption of no image, or vectors that have no direction.
    """
    image_of_T = np.asarray(image_of_T)
    if len(image_of_T) != len(texts_TD):
        raise VectorsError(f"{len(texts_TD)} captions, and images of {len(image_of_T)}")
    if away := [int(n) for n in image_of_T if not 0 <= n < len(images_ND)]:
        raise VectorsError(f"a caption is of image {away[0]}, and there are {len(images_ND)} images")
    order_T = np.argsort(image_of_T, kind="stable")
    captions_N = np.bincount(image_of_T, minlength=len(images_ND))
    if not captions_N.all():
        raise VectorsError(f"image {int(captions_N.argmin())} has no caption: leave it out")
    own = np.split(order_T, np.cumsum(captions_N)[:-1])
    nearest_N = np.empty(len(images_ND), dtype=np.int64)
    for start, ranks in ranks_by_block(images_ND, texts_TD, own, block_mb):
        nearest_N[start : start + len(ranks)] = [ranks_P.min() for ranks_P in ranks]
    rank_T = np.empty(len(texts_TD), dtype=np.int64)
    for start, ranks in ranks_by_block(texts_TD, images_ND, np.split(image_of_T, len(image_of_T)), block_mb):
        rank_T[start : start + len(ranks)] = np.concatenate(ranks)
    figures: dict[str, float | None] = {}
    correct: dict[str, list[bool]] = {}
    for found, rank, among in ((TEXTS, nearest_N, len(texts_TD)), (IMAGES, rank_T, len(images_ND))):
        for k in at:
            right = rank < k
            figures[f"{found}@{k}"] = float(right.mean()) if k <= among else None
            correct[f"{found}@{k}"] = right.tolist()
    return {**figures, "images": len(images_ND), "captions": len(texts_TD), "correct": correct}
