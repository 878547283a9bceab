"""The fit of images per entity: against laws that are known, scipy's zeta, and sums made by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.publish.long_tail import long_tail, power_law, zeta


def drawn(exponent: float, smallest: int, entities: int, seed: int) -> Counter[int]:
    """From a discrete power law, by its cumulative shares up to 10^6 images."""
    numbers = np.arange(smallest, 1_000_000)
    shares = np.cumsum(numbers**-exponent / zeta(exponent, np.array([smallest]))[0])
    at = np.searchsorted(shares, np.random.default_rng(seed).random(entities))
    return Counter((smallest + at).tolist())


def columns(counts: Counter[int]) -> tuple[np.ndarray, np.ndarray]:
    ordered = sorted(counts.items())
    return np.array([n for n, _ in ordered]), np.array([c for _, c in ordered])


@pytest.mark.parametrize("exponent", [1.02, 1.5, 2.0, 2.5, 4.0, 8.0])
def test_zeta_is_scipys(exponent: float) -> None:
    special = pytest.importorskip("scipy.special")
    start = np.array([1, 2, 7, 100, 10**6], dtype=np.float64)
    assert zeta(exponent, start) == pytest.approx(special.zeta(exponent, start), rel=1e-11)


@pytest.mark.parametrize("exponent", [1.6, 2.0, 2.5, 3.2])
def test_a_known_law_is_found_again(exponent: float) -> None:
    """Catches: the continuous approximation, which at a smallest number of 1 is off by a tenth of the exponent."""
    law = power_law(*columns(drawn(exponent, 1, 50_000, seed=3)))
    assert law is not None
    assert law.exponent == pytest.approx(exponent, abs=4 * law.standard_error)
    assert law.standard_error < 0.05
    assert law.distance < 0.02


def test_where_a_tail_begins_is_found_too() -> None:
    """Below 20 images the entities follow no power law: as many have one image as nineteen."""
    counts = drawn(2.4, 20, 20_000, seed=5) + Counter(dict.fromkeys(range(1, 20), 800))
    law = power_law(*columns(counts))
    assert law is not None
    assert 18 <= law.from_images <= 40
    assert law.exponent == pytest.approx(2.4, abs=max(0.05, 4 * law.standard_error))


def test_a_standard_error_is_how_far_fits_scatter() -> None:
    fits = [power_law(*columns(drawn(2.2, 1, 3_000, seed=seed))) for seed in range(40)]
    from_one = [law for law in fits if law is not None and law.from_images == 1]
    assert len(from_one) > 10
    scatter = float(np.std([law.exponent for law in from_one]))
    assert 0.5 < scatter / from_one[0].standard_error < 2


def test_shares_of_a_dataset_that_can_be_added_up_by_hand() -> None:
    told = long_tail({1: 150, 2: 40, 10: 9, 400: 1})
    assert told["entities_of_one_image"] == 150
    whole = 150 + 80 + 90 + 400
    assert told["largest_percent_holds"] == pytest.approx((400 + 10) / whole, abs=1e-6)
    images = np.repeat([1, 2, 10, 400], [150, 40, 9, 1])
    differences = np.abs(images[:, None] - images).sum() / (2 * len(images) ** 2 * images.mean())
    assert told["gini"] == pytest.approx(differences, abs=1e-6)


@given(st.dictionaries(st.integers(0, 3000), st.integers(0, 200), max_size=30))
def test_any_dataset_has_a_tail_or_none(counts: dict[int, int]) -> None:
    """Catches: a run that ends in a division by zero because its dataset is small, or all of its entities alike."""
    told = long_tail(counts)
    live = {n: count for n, count in counts.items() if n > 0 and count > 0}
    assert bool(told) == bool(live)
    if told:
        assert 0 <= told["gini"] < 1
        assert 0 < told["largest_percent_holds"] <= 1
        law = told["power_law"]
        assert law is None or (1 < law["exponent"] < 8 and law["from_images"] in live and 0 <= law["distance"] <= 1)
