"""In training: the suite's figures on what is held out, small enough to be asked for every few thousand steps.

Pure functions over arrays: whoever trains hands in vectors and gets numbers, and nothing is read or written.

Legend: N held-out images, M training images, C entities, D width.
"""

from __future__ import annotations

import numpy as np

from i2e_pipeline.evaluate.gpr1200 import gpr
from i2e_pipeline.evaluate.knn import knn_classify
from i2e_pipeline.evaluate.vectors import normalised

NEIGHBOURS = 20
TEMPERATURE = 0.07
_BLOCK = 1 << 24
"""Cosines of images and entities that are held at once."""


def held_out(
    image_ND: np.ndarray,
    class_N: np.ndarray,
    new_N: np.ndarray,
    entity_text_CD: np.ndarray | None,
    train_ND: np.ndarray,
    train_class_M: np.ndarray,
    block_mb: int = 256,
) -> dict[str, float]:
    """Figures in [0, 1], those that the arrays allow:

    mAP         retrieval by the GPR protocol among the images of entities that are not trained on; not there with fewer
                than two such entities, for one cannot be told apart from itself
    knn         accuracy of 20 weighted neighbours among the training images, for the other held-out images
    zero_shot   share of the held-out images whose nearest entity text, of all C, is their own entity's

    image_ND         float32, any norm but zero
    class_N          int64: row of entity_text_CD, and the same numbers as train_class_M
    new_N            bool: the image shows an entity that is not trained on
    """
    image_ND, class_N = normalised(image_ND), np.asarray(class_N, dtype=np.int64)
    figures: dict[str, float] = {}
    if len(np.unique(class_N[new_N])) > 1:
        figures["mAP"] = gpr(image_ND[new_N], class_N[new_N], block_mb=block_mb)["mAP"]
    if len(train_ND) and not new_N.all():
        k = min(NEIGHBOURS, len(train_ND))
        found = knn_classify(
            normalised(train_ND),
            np.asarray(train_class_M, dtype=np.int64),
            image_ND[~new_N],
            class_N[~new_N],
            ks=(k,),
            temperature=TEMPERATURE,
            block_mb=block_mb,
        )
        figures["knn"] = found[f"k={k}"]
    if entity_text_CD is not None and len(class_N):
        figures["zero_shot"] = _nearest_is_own(image_ND, class_N, normalised(entity_text_CD))
    return figures


def _nearest_is_own(image_ND: np.ndarray, class_N: np.ndarray, text_CD: np.ndarray) -> float:
    at_once = max(1, _BLOCK // len(text_CD))
    right = 0
    for start in range(0, len(image_ND), at_once):
        part = slice(start, start + at_once)
        right += int(((image_ND[part] @ text_CD.T).argmax(axis=1) == class_N[part]).sum())
    return right / len(image_ND)
