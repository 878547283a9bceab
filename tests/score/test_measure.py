"""What images are held against, where some of it has no vector."""

from __future__ import annotations

import numpy as np
import pytest

from i2e_pipeline.score.entity_vectors import EntityVectors
from i2e_pipeline.score.measure import DESCRIPTION, NAME, WHOLE, Measure

EXEMPLARS = {"taxon": [1, 2, 3, 4], "food": [5, 6, 7, 8, 9], "vehicle": [10, 11, 12, 13]}
BACKGROUND = [14, 15, 16]
IMAGES, ENTITIES = np.arange(3), np.array([2, 5, 17])


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def vectors(nan: tuple[int, ...] = (), described: bool = True) -> EntityVectors:
    whole, description = unit(20, 0), unit(20, 1) * described
    whole[list(nan)], description[list(nan)] = np.nan, np.nan
    beside = {NAME: whole, DESCRIPTION: description, "type": np.zeros(20, np.int8)}
    return EntityVectors(np.arange(20), whole, beside=beside)


@pytest.mark.parametrize("nan", [(), (1,), (5,), (14,), (1, 5, 10, 14)])
def test_what_has_no_vector_is_held_against_nothing(nan: tuple[int, ...]) -> None:
    """Catches: one text of which the model makes NaN ends the run, or makes every image's numbers NaN."""
    images = unit(3, 2).astype(np.float64)
    measure = Measure(vectors(nan), BACKGROUND, EXEMPLARS, per_type=128, vocabulary=128)
    held = measure.held(images)
    cosines = measure.cosines(WHOLE, images, IMAGES, ENTITIES)
    numbers = [measure.below_vocabulary(held[WHOLE], IMAGES, ENTITIES, cosines)]
    numbers.append(measure.above_background(WHOLE, images, IMAGES, cosines))
    numbers.append(measure.below_vocabulary(held[DESCRIPTION], IMAGES, ENTITIES, cosines))
    rows = [n for n in numbers if n is not None]
    assert len(rows) == 3
    for number in rows:
        assert np.isfinite(np.where(np.isnan(cosines), 0.0, number)).all()
    others = measure.types(held[WHOLE], IMAGES, ENTITIES, cosines)
    assert others is None if 1 in nan and 10 in nan else others is not None


def test_without_any_description_there_is_no_vocabulary_of_descriptions() -> None:
    measure = Measure(vectors(described=False), BACKGROUND, EXEMPLARS, per_type=128, vocabulary=128)
    assert [*measure.held(unit(3, 2).astype(np.float64))] == [WHOLE]
