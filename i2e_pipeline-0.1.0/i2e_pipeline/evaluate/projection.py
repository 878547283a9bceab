"""Projection: vectors as points of a plane, near where the vectors are near.

Reads    vectors_ND
Writes   xy_N2, the rows they stand for

A picture, not a measurement: t-SNE and UMAP keep neighbourhoods and nothing else. Sizes of clusters, distances
between them and empty space mean nothing.
"""

from __future__ import annotations

import numpy as np

from i2e_pipeline.core.draws import hashed
from i2e_pipeline.core.errors import I2EError

AT_MOST = 2000
"""Points of a picture: more lie on top of each other, and t-SNE takes time for each."""
_WIDTH = 50
"""Dimensions that principal components leave, as van der Maaten and Hinton (JMLR 2008) advise."""
_NEIGHBOURS = 30
FEWEST = 5
_EQUAL = 1e-7
"""Unit vectors that differ by less are one vector in float32."""
_STEPS = 500
"""Half of scikit-learn's default, in half the time: of the ten nearest neighbours of 2,000 photos 64 % stay near with
either."""


class ProjectionError(I2EError, ValueError):
    """Vectors that cannot be projected; the message says why and the way out."""


def chosen(rows: int, at_most: int = AT_MOST, seed: int = 0) -> np.ndarray:
    """Which of `rows` rows a picture shows: all, or `at_most` by hash of the row number, growing."""
    return np.sort(by_hash(rows, seed)[:at_most])


def by_hash(rows: int, seed: int = 0) -> np.ndarray:
    """Numbers below `rows` in the order of their hashes."""
    return np.argsort(hashed(np.arange(rows), "shown", seed), kind="stable")


def project(vectors_ND: np.ndarray, method: str, seed: int = 0) -> np.ndarray:
    """xy_N2, float64, in [0, 1]: the same for the same vectors and seed on one machine.

    method   tsne (scikit-learn) or umap (umap-learn); both by cosine, as the protocols compare
    Raises ProjectionError where the package is missing or there are fewer than five vectors.
    """
    if len(vectors_ND) < FEWEST:
        raise ProjectionError(f"{len(vectors_ND)} vectors are too few for a projection ({FEWEST} or more)")
    # Of unit vectors the squared Euclidean distance is 2 - 2 cos: neighbours by cosine and by distance are the same.
    if method not in ("tsne", "umap"):
        raise ProjectionError(f"no projection {method!r}: tsne or umap")
    unit_ND = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    narrow_ND = _narrow(unit_ND)
    if narrow_ND.std(axis=0).max() < _EQUAL:  # scikit-learn's t-SNE divides by this, and crashes the process
        return np.full((len(narrow_ND), 2), 0.5)
    return _framed(_tsne(narrow_ND, seed) if method == "tsne" else _umap(narrow_ND, seed))


def _narrow(unit_ND: np.ndarray) -> np.ndarray:
    try:
        from sklearn.decomposition import PCA
    except ImportError:
        raise ProjectionError(
            "evaluate.projection needs scikit-learn: pip install 'i2e-pipeline[evaluate]', or evaluate.projection=none"
        ) from None
    width = min(_WIDTH, unit_ND.shape[1], len(unit_ND) - 1)
    return PCA(n_components=width, svd_solver="full").fit_transform(unit_ND.astype(np.float64))


def _tsne(narrow_ND: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(float(_NEIGHBOURS), (len(narrow_ND) - 1) / 3)
    model = TSNE(n_components=2, perplexity=perplexity, init="pca", max_iter=_STEPS, random_state=seed)
    return model.fit_transform(narrow_ND)


def _umap(narrow_ND: np.ndarray, seed: int) -> np.ndarray:
    try:
        import umap
    except ImportError:
        raise ProjectionError(
            "evaluate.projection=umap needs umap-learn: pip install 'i2e-pipeline[evaluate]', or use tsne"
        ) from None
    neighbours = min(15, len(narrow_ND) - 1)
    model = umap.UMAP(n_components=2, n_neighbors=neighbours, init="pca", random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(narrow_ND))


def _framed(xy_N2: np.ndarray) -> np.ndarray:
    """Moved and scaled into the unit square, both axes alike; points far from all others lie on its edge."""
    xy_N2 = xy_N2.astype(np.float64)
    low, high = np.quantile(xy_N2, [0.002, 0.998], axis=0)
    side = max(float((high - low).max()), 1e-12)
    return np.clip((xy_N2 - (low + high) / 2) / side + 0.5, 0, 1)
