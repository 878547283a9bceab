"""How long the tail of a dataset is: images per entity, and the power law that fits them best.

Fitted as Clauset, Shalizi and Newman do (SIAM Review 51, 2009, arXiv:0706.1062): of each smallest number of images
`from_images` the exponent that maximizes the likelihood of a discrete power law, p(n) = n^-a / zeta(a, from_images); of
all of these the one whose law is nearest to what is there, by Kolmogorov and Smirnov's distance. That it fits best does
not say that it fits well: the distance stands beside it, and a law is no better than that.

Reads {number of images: number of entities}, which grows with the distinct numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FEWEST = 50
"""Entities that a tail must have to be fitted; fewer say nothing of an exponent."""
STARTS = 200
"""Of very many distinct numbers so many are tried as the smallest one, evenly over their order."""
_LOWEST, _HIGHEST = 1.01, 8.0
"""Exponents. A tail that asks for one at either end is none of a power law."""


@dataclass(frozen=True)
class PowerLaw:
    """p(n) proportional to n^-exponent, for n from `from_images`."""

    exponent: float
    standard_error: float
    from_images: int
    entities: int
    """with as many images or more"""
    distance: float
    """the largest difference of the two cumulative shares, 0 to 1"""


def long_tail(entities_by_images: Mapping[int, int]) -> dict[str, Any]:
    """What the manifest says of the tail.

    entities_by_images   number of images to the number of entities that have as many
    returns              entities_of_one_image; largest_percent_holds, the share of labels that the 1 % of entities with
                         the most images (one at least) has; gini of images over entities (0: all have as many, near 1:
                         few have all); power_law (PowerLaw), null where no tail can be fitted; {} without entities
    """
    ordered = sorted((n, count) for n, count in entities_by_images.items() if n > 0 and count > 0)
    if not ordered:
        return {}
    images, entities = (np.array(column, dtype=np.int64) for column in zip(*ordered, strict=True))
    law = power_law(images, entities)
    return {
        "entities_of_one_image": int(entities[images == 1].sum()),
        "largest_percent_holds": round(_held_by_largest(images, entities, max(1, int(entities.sum()) // 100)), 6),
        "gini": round(_gini(images, entities), 6),
        "power_law": None if law is None else {k: round(v, 4) for k, v in asdict(law).items()},
    }


def _held_by_largest(images: np.ndarray, entities: np.ndarray, most: int) -> float:
    """Share of all images that `most` entities have, those with the most."""
    largest, counts = images[::-1], entities[::-1]
    taken = np.clip(most - (np.cumsum(counts) - counts), 0, counts)
    return float((largest * taken).sum() / (images * entities).sum())


def _gini(images: np.ndarray, entities: np.ndarray) -> float:
    """1 - twice the area under the Lorenz curve."""
    share = np.concatenate([[0.0], np.cumsum(images * entities) / (images * entities).sum()])
    return float(1 - ((share[1:] + share[:-1]) * entities / entities.sum()).sum())


def power_law(images: np.ndarray, entities: np.ndarray) -> PowerLaw | None:
    """The law that fits best; None where no tail has FEWEST entities of two different numbers of images.

    images     int64 (D,): distinct numbers, rising, from 1
    entities   int64 (D,): how many have each
    """
    at_least = np.cumsum(entities[::-1])[::-1]
    starts = np.flatnonzero(at_least[:-1] >= FEWEST)
    if len(starts) > STARTS:
        starts = starts[np.linspace(0, len(starts) - 1, STARTS).astype(np.int64)]
    fits = [law for start in starts if (law := _fitted(images[start:], entities[start:])) is not None]
    return min(fits, key=lambda law: (law.distance, law.from_images), default=None)


def _fitted(images: np.ndarray, entities: np.ndarray) -> PowerLaw | None:
    """The likeliest law from images[0] on; None where its exponent is no law's."""
    smallest, count = int(images[0]), int(entities.sum())
    mean_log = float((entities * np.log(images)).sum() / count)

    def loss(exponent: float) -> float:
        return exponent * mean_log + float(np.log(zeta(exponent, np.array([smallest]))[0]))

    exponent = _lowest(loss)
    if not _LOWEST + 0.005 < exponent < _HIGHEST - 0.005:
        return None
    # The loss is convex, and its curvature the information of one entity.
    step = 1e-3
    curvature = (loss(exponent + step) - 2 * loss(exponent) + loss(exponent - step)) / step**2
    found = np.cumsum(entities) / count
    law = 1 - zeta(exponent, images + 1) / zeta(exponent, images[:1])
    before = 1 - zeta(exponent, images) / zeta(exponent, images[:1])  # where the steps of what is there begin
    distance = max(np.abs(found - law).max(), np.abs(np.concatenate([[0.0], found[:-1]]) - before).max())
    return PowerLaw(exponent, float(1 / np.sqrt(count * curvature)), smallest, count, float(distance))


def _lowest(loss: Callable[[float], float]) -> float:
    """Where a convex function of the exponent is lowest, to 1e-7 (golden section)."""
    golden = (5**0.5 - 1) / 2
    low, high = _LOWEST, _HIGHEST
    one, two = high - golden * (high - low), low + golden * (high - low)
    of_one, of_two = loss(one), loss(two)
    while high - low > 1e-7:
        if of_one < of_two:
            high, two, of_two = two, one, of_one
            one = high - golden * (high - low)
            of_one = loss(one)
        else:
            low, one, of_one = one, two, of_two
            two = low + golden * (high - low)
            of_two = loss(two)
    return (low + high) / 2


def zeta(exponent: float, start: np.ndarray) -> np.ndarray:
    """Hurwitz's zeta, the sum of (start + k)^-exponent over k = 0, 1 …, for an exponent above 1 and starts from 1.

    Twelve terms, and the rest by Euler and Maclaurin's formula, right to some 1e-12 of it. (scipy has it, and the
    pipeline does without scipy.)
    """
    begin = np.asarray(start, dtype=np.float64)
    terms = 12
    whole = sum(((begin + k) ** -exponent for k in range(terms)), np.zeros_like(begin))
    n = begin + terms
    rest = n ** (1 - exponent) / (exponent - 1) + n**-exponent / 2
    product = exponent
    for k, bernoulli in enumerate(_BERNOULLI, 1):
        rest = rest + bernoulli * product * n ** (-exponent - 2 * k + 1)
        product *= (exponent + 2 * k - 1) * (exponent + 2 * k)
    return np.asarray(whole + rest)


_BERNOULLI = (1 / 12, -1 / 720, 1 / 30_240, -1 / 1_209_600, 1 / 47_900_160)
"""B_2k / (2k)!"""
