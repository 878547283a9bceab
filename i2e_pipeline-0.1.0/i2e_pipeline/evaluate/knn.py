"""Nearest neighbours by cosine: retrieval accuracy without the query itself, and DINO's weighted classifier.

Shapes: N images, D width, Q test images, K neighbours, B test images of a block, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from i2e_pipeline.evaluate.retrieval import top_k_by_block
from i2e_pipeline.evaluate.vectors import VectorsError, class_labels


def knn_retrieval(
    features_ND: np.ndarray, labels_N: np.ndarray, block_mb: float = 256, at: Sequence[int] = (1, 5)
) -> dict[str, Any]:
    """Share of images that have one of their class among their k nearest others (self-match out): acc@k.

    Images that are alone in their class have nothing to find: they are left out and counted in
    queries_without_positives. `correct` holds each image's answer by figure, None where it was left out.
    """
    labels_N = class_labels(labels_N, len(features_ND))
    if len(labels_N) < 2:
        raise VectorsError("kNN retrieval needs two images at least")
    deepest = min(max(at), len(labels_N) - 1)
    _, class_N, size_C = np.unique(labels_N, return_inverse=True, return_counts=True)
    asked_N = size_C[class_N] > 1
    right = {k: np.zeros(len(labels_N), dtype=bool) for k in at}
    for start, _, index_BK in top_k_by_block(features_ND, features_ND, deepest, block_mb, exclude_self=True):
        same_BK = labels_N[index_BK] == labels_N[start : start + len(index_BK), None]
        for k in at:
            right[k][start : start + len(index_BK)] = same_BK[:, :k].any(axis=1)
    return {
        **{f"acc@{k}": float(right_N[asked_N].mean()) if asked_N.any() else None for k, right_N in right.items()},
        "queries": len(labels_N),
        "queries_without_positives": int((~asked_N).sum()),
        "correct": {
            f"acc@{k}": [bool(r) if asked else None for r, asked in zip(right_N, asked_N, strict=True)]
            for k, right_N in right.items()
        },
    }


def knn_classify(
    train_ND: np.ndarray,
    train_labels_N: np.ndarray,
    test_QD: np.ndarray,
    test_labels_Q: np.ndarray,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    block_mb: float = 256,
) -> dict[str, Any]:
    """Accuracy of a vote of the k nearest training images, each with weight exp(cosine / temperature): "k=10" …

    DINO's classifier (Caron et al., arXiv 2104.14294). Of equal votes the lower label wins. A k beyond the number of
    training images is None: it would be the figure of another k. `correct` holds each test image's answer by figure.
    """
    train_labels_N = class_labels(train_labels_N, len(train_ND), "labels of the training images")
    test_labels_Q = class_labels(test_labels_Q, len(test_QD), "labels of the test images")
    if not ks or min(ks) < 1 or not temperature > 0:
        raise VectorsError(f"ks {tuple(ks)}, temperature {temperature}: both must be positive")
    fitting = [k for k in ks if k <= len(train_ND)]
    if not fitting:
        return {f"k={k}": None for k in ks} | {"correct": {}}
    classes_C, class_N = np.unique(train_labels_N, return_inverse=True)
    right = {k: np.zeros(len(test_labels_Q), dtype=bool) for k in fitting}
    for start, cosine_BK, index_BK in top_k_by_block(test_QD, train_ND, max(fitting), block_mb):
        # Relative to the nearest, so that a low temperature does not overflow; the order of votes stays.
        weight_BK = np.exp((cosine_BK - cosine_BK[:, :1]) / temperature)
        wanted_B = test_labels_Q[start : start + len(index_BK)]
        for b, (weight_K, index_K) in enumerate(zip(weight_BK, index_BK, strict=True)):
            class_K = class_N[index_K]
            for k in fitting:
                votes_C = np.bincount(class_K[:k], weight_K[:k])
                right[k][start + b] = classes_C[np.argmax(votes_C)] == wanted_B[b]
    return {
        **{f"k={k}": float(right[k].mean()) if k in right else None for k in ks},
        "correct": {f"k={k}": right_Q.tolist() for k, right_Q in right.items()},
    }
