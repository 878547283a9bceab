"""GPR1200 (Schall et al., arXiv 2111.13122): mean average precision over six domains.

Every image queries the whole collection by cosine, itself included, and its own place counts: average precision is the
sum of precision at the hits over the number of images of the class, itself among them (10 in GPR1200).

Shapes: N vectors, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from i2e_pipeline.evaluate.retrieval import average_precision, mean, members_of, ranks_by_block
from i2e_pipeline.evaluate.vectors import class_labels, domain_names

DOMAINS = ("landmarks", "nature", "sketches", "objects", "products", "faces")
"""GPR1200's domains in the order of its category numbers, 200 categories each: Google Landmarks v2, iNaturalist,
ImageNet-Sketch, INSTRE, Stanford Online Products, and faces."""


def gpr(
    features_ND: np.ndarray, labels_N: np.ndarray, domains_N: np.ndarray | None = None, block_mb: float = 256
) -> dict[str, Any]:
    """mAP over all queries, `per_domain` and `ap`, the average precision of each query.

    domains_N   name of each vector's domain. None: the classes, in the order of their labels, form six equal blocks
                named as DOMAINS; where their number does not allow it, per_domain is None.
    """
    labels_N = class_labels(labels_N, len(features_ND))
    domains_N = domains_of(labels_N) if domains_N is None else domain_names(domains_N, len(features_ND))
    ap: list[float | None] = []
    for _, ranks in ranks_by_block(features_ND, features_ND, members_of(labels_N), block_mb):
        ap += [average_precision(ranks_P) for ranks_P in ranks]
    per_domain = None
    if domains_N is not None:
        names, first = np.unique(domains_N, return_index=True)
        in_order = [str(name) for name in names[np.argsort(first)]]
        per_domain = {name: mean([ap[i] for i in np.flatnonzero(domains_N == name)]) for name in in_order}
    return {
        "protocol": "every image is a query against all images, itself included",
        "mAP": mean(ap),
        "per_domain": per_domain,
        "queries": len(labels_N),
        "classes": len(np.unique(labels_N)),
        "mAP_of_random_vectors": expected_of_random(labels_N),
        "ap": ap,
    }


def domains_of(labels_N: np.ndarray) -> np.ndarray | None:
    """The domain of each vector when its class lies in one of six equal blocks; None where there are no such blocks."""
    classes, class_N = np.unique(labels_N, return_inverse=True)
    if len(classes) % len(DOMAINS):
        return None
    return np.array(DOMAINS)[class_N // (len(classes) // len(DOMAINS))]


def expected_of_random(labels_N: np.ndarray) -> float:
    """Mean average precision that vectors without meaning score: the query first, the rest of its class anywhere.

    10.2 % for GPR1200's 12,000 images in classes of 10. In a class of c among n images, rank r > 1 holds one of the
    c - 1 others with probability (c - 1) / (n - 1), and before it then stand the query and (r - 2) (c - 2) / (n - 2)
    others in the mean.
    """
    images = len(labels_N)
    rank = np.arange(2, images + 1)
    sizes, classes = np.unique(np.unique(labels_N, return_counts=True)[1], return_counts=True)
    total = 0.0
    for size, count in zip(sizes.tolist(), classes.tolist(), strict=True):
        hits = 2 + (rank - 2) * (size - 2) / max(1, images - 2)
        ap = (1 + (size - 1) / max(1, images - 1) * (hits / rank).sum()) / size
        total += ap * size * count
    return float(total / images)
