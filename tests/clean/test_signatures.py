"""Signatures of vectors: close ones are found, and measured."""

from __future__ import annotations

import numpy as np
import pytest

from i2e_pipeline.clean.signatures import bits_apart, cosines, of_vectors, vectors_of


def pairs_at(cosine: float, count: int, dimensions: int = 256) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    one = draw.normal(size=(count, dimensions))
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    aside = draw.normal(size=one.shape)
    aside -= (aside * one).sum(axis=1, keepdims=True) * one
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return one.astype(np.float16), (cosine * one + np.sqrt(1 - cosine**2) * aside).astype(np.float16)


@pytest.mark.parametrize("cosine", [0.8, 0.9, 0.95, 0.99])
def test_pairs_of_a_cosine_are_within_its_bits(cosine: float) -> None:
    one, other = pairs_at(cosine, 2000)
    apart = np.bitwise_count(of_vectors(one) ^ of_vectors(other)).sum(axis=1)
    assert np.mean(apart <= bits_apart(cosine)) > 0.997
    assert abs(cosines(one, other) - cosine).max() < 0.002
    one, other = pairs_at(cosine - 0.3, 2000)
    apart = np.bitwise_count(of_vectors(one) ^ of_vectors(other)).sum(axis=1)
    assert np.mean(apart <= bits_apart(cosine)) < 0.5, "and not whatever there is"


def test_a_signature_does_not_depend_on_its_batch() -> None:
    """Catches: sums in another order, whose last digit turns a sign."""
    one, _ = pairs_at(0.9, 100)
    whole = of_vectors(one)
    assert all((of_vectors(one[n : n + 1]) == whole[n]).all() for n in range(100))
    stored = [row.astype("<f2").tobytes() for row in one]
    assert (of_vectors(vectors_of(stored)) == whole).all()
