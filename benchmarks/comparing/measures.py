"""What a training came to, image by image, and how sure differences are.

Retrieval leaves the asked image out of what is ranked, and entities of one image out of what is asked: an image finds
itself whatever the encoder, and an entity of one image has nothing else to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from i2e_pipeline.evaluate.in_training import NEIGHBOURS, TEMPERATURE
from i2e_pipeline.evaluate.knn import knn_classify
from i2e_pipeline.evaluate.retrieval import average_precision, members_of, ranks_by_block
from i2e_pipeline.evaluate.vectors import normalised

FIGURES = ("retrieval", "knn", "zero_shot")
REPLICATES = 2000


@dataclass(frozen=True)
class Measured:
    """Vectors of a trained encoder; N held-out images, M images it was trained on, C entities by their texts.

    Entities are Wikidata's numbers. image_ids_N: 32 hex digits.
    """

    image_ND: np.ndarray
    entity_N: np.ndarray
    image_id_N: np.ndarray
    new_N: np.ndarray
    """bool: of an entity that was not trained on"""
    train_MD: np.ndarray
    train_entity_M: np.ndarray
    text_CD: np.ndarray
    text_entity_C: np.ndarray
    """No texts: the recipe trains no text tower."""

    def with_truth(self, truth: Mapping[str, int]) -> Measured:
        """The same vectors, and of each held-out image whose truth is known the entity that it shows; negative: none,
        as nobody else's."""
        entity_N = np.array(
            [truth.get(image, entity) for image, entity in zip(self.image_id_N, self.entity_N.tolist(), strict=True)],
            dtype=np.int64,
        )
        return Measured(**{**vars(self), "entity_N": entity_N})


def in_both(one: Measured, other: Measured) -> tuple[Measured, Measured]:
    """Two encoders' vectors of the new images that neither was trained on the entity of; texts and others left out."""
    both = set(one.image_id_N[one.new_N].tolist()) & set(other.image_id_N[other.new_N].tolist())
    return _of_new(one, both), _of_new(other, both)


def _of_new(measured: Measured, images: set[str]) -> Measured:
    stays_N = measured.new_N & np.array([image in images for image in measured.image_id_N.tolist()], dtype=bool)
    order = np.flatnonzero(stays_N)[np.argsort(measured.image_id_N[stays_N])]
    return Measured(
        image_ND=measured.image_ND[order],
        entity_N=measured.entity_N[order],
        image_id_N=measured.image_id_N[order],
        new_N=measured.new_N[order],
        train_MD=measured.train_MD[:0],
        train_entity_M=measured.train_entity_M[:0],
        text_CD=measured.text_CD[:0],
        text_entity_C=measured.text_entity_C[:0],
    )


@dataclass(frozen=True)
class PerImage:
    """A value between 0 and 1 of each asked image, and the entity that it counts for."""

    entity_Q: np.ndarray
    value_Q: np.ndarray


def per_image(measured: Measured, left_out: frozenset[int] = frozenset()) -> dict[str, PerImage]:
    """By figure. left_out: entities whose images are neither asked nor ranked."""
    stays_N = ~np.isin(measured.entity_N, list(left_out)) & (measured.entity_N >= 0)
    new_N, known_N = measured.new_N & stays_N, ~measured.new_N & stays_N
    found = {"retrieval": retrieval(measured.image_ND[new_N], measured.entity_N[new_N])}
    if known_N.any() and len(measured.train_MD):
        k = min(NEIGHBOURS, len(measured.train_MD))
        asked = measured.image_ND[known_N], measured.entity_N[known_N]
        voted = knn_classify(measured.train_MD, measured.train_entity_M, *asked, ks=(k,), temperature=TEMPERATURE)
        found["knn"] = PerImage(asked[1], np.array(voted["correct"][f"k={k}"], dtype=np.float64))
    if len(measured.text_CD):
        # Among the texts of the new entities alone: the others' were trained on.
        of_new_C = np.isin(measured.text_entity_C, measured.entity_N[new_N])
        text_CD, entity_C = normalised(measured.text_CD[of_new_C]), measured.text_entity_C[of_new_C]
        nearest = entity_C[(normalised(measured.image_ND[new_N]) @ text_CD.T).argmax(axis=1)]
        found["zero_shot"] = PerImage(
            measured.entity_N[new_N], (nearest == measured.entity_N[new_N]).astype(np.float64)
        )
    return found


def retrieval(image_ND: np.ndarray, entity_N: np.ndarray) -> PerImage:
    """Average precision of each image among all others, of entities that have two or more."""
    members = members_of(entity_N)
    value_N = np.full(len(entity_N), np.nan)
    for start, listed in ranks_by_block(image_ND, image_ND, members):
        for place, rank_P in enumerate(listed, start):
            if len(rank_P) > 1:
                own = members[place] == place
                others_P = rank_P[~own]
                # What ranks behind the image itself moves up.
                value_N[place] = average_precision(others_P - (others_P > rank_P[own]))
    asked_N = ~np.isnan(value_N)
    return PerImage(entity_N[asked_N], value_N[asked_N])


Run = tuple[str, int]
"""Draw of what is held out, seed."""


def interval(
    of: Mapping[Run, PerImage], against: Mapping[Run, PerImage] | None = None, replicates: int = REPLICATES
) -> tuple[float, float, float]:
    """Mean over runs and images, or its difference to that of the same runs, with a 95 % interval.

    Resampled are both what was drawn: the runs, and the entities, each with all its images in all runs (percentile
    bootstrap). Runs that `against` has not are left aside.
    """
    runs = sorted(of.keys() & against.keys()) if against is not None else sorted(of)
    entities = np.unique(np.concatenate([of[run].entity_Q for run in runs]))
    sums_RE = _sums(of, runs, entities)
    counts_RE = _counts(of, runs, entities)
    other_RE = _sums(against, runs, entities) if against is not None else np.zeros_like(sums_RE)
    if against is not None and not np.array_equal(counts_RE, _counts(against, runs, entities)):
        raise ValueError("two arms of one run were asked about other images")
    rng = np.random.default_rng(0)

    def mean(run_R: np.ndarray, entity_E: np.ndarray) -> float:
        """Of the runs' means: each run counts the same."""
        told = entity_E * counts_RE[run_R]
        gained = entity_E * (sums_RE - other_RE)[run_R]
        return float((gained.sum(axis=1) / np.maximum(told.sum(axis=1), 1e-12)).mean())

    point = mean(np.arange(len(runs)), np.ones(len(entities)))
    drawn = []
    for _ in range(replicates):
        weight_E = np.bincount(rng.integers(len(entities), size=len(entities)), minlength=len(entities))
        drawn.append(mean(rng.integers(len(runs), size=len(runs)), weight_E.astype(np.float64)))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return point, float(low), float(high)


def _sums(of: Mapping[Run, PerImage], runs: Sequence[Run], entities: np.ndarray) -> np.ndarray:
    return _by_entity(of, runs, entities, lambda found: found.value_Q)


def _counts(of: Mapping[Run, PerImage], runs: Sequence[Run], entities: np.ndarray) -> np.ndarray:
    return _by_entity(of, runs, entities, lambda found: np.ones(len(found.value_Q)))


def _by_entity(
    of: Mapping[Run, PerImage], runs: Sequence[Run], entities: np.ndarray, value: Callable[[PerImage], np.ndarray]
) -> np.ndarray:
    rows = [
        np.bincount(np.searchsorted(entities, of[run].entity_Q), weights=value(of[run]), minlength=len(entities))
        for run in runs
    ]
    return np.stack(rows)
