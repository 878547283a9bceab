"""Nearest vectors: compared one by one, and by the index that many images need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from i2e_pipeline.explore import similar
from i2e_pipeline.explore.similar import NoVectors, Similar, vectors_of

IMAGES, WIDE = 3_000, 32


def batches() -> Iterator[tuple[list[str], np.ndarray]]:
    """Images of 100 kinds, ids in no order; some images stand twice, as those of several pairs do."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(100, WIDE))[np.arange(IMAGES) % 100] + 0.2 * rng.normal(size=(IMAGES, WIDE))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    ids = [rng.bytes(16).hex() for _ in range(IMAGES)]
    for start in range(0, IMAGES, 500):
        yield ids[start : start + 500], vectors[start : start + 500]
    yield ids[:20], vectors[:20]


def first_vector(_: str) -> np.ndarray:
    return next(batches())[1][0]


@pytest.fixture
def exact() -> Similar:
    return Similar(batches, IMAGES, first_vector)


def test_the_nearest_are_those_of_its_kind_without_itself(exact: Similar) -> None:
    ids = [i for part, _ in batches() for i in part]
    for at in (0, 7, 19, 1234):
        found = exact.to_image(ids[at])
        assert len(found) == 24
        assert ids[at] not in [row["image_id"] for row in found]
        assert {ids.index(row["image_id"]) % 100 for row in found} == {at % 100}
        cosines = [row["cosine"] for row in found]
        assert cosines == sorted(cosines, reverse=True)
    assert exact.to_text("anything")[0]["image_id"] == ids[0]
    with pytest.raises(NoVectors, match="no kept vector"):
        exact.to_image("0" * 32)


def test_the_index_of_many_images_finds_what_comparing_finds(
    exact: Similar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built by one process, opened by the next. Catches: keys that mean other images, and images named twice."""
    monkeypatch.setattr(similar, "EXACT", 1_000)
    place = tmp_path / "index.similar"
    with pytest.raises(NoVectors, match="--similar"):
        Similar(batches, IMAGES, first_vector, place).to_text("anything")
    Similar(batches, IMAGES, first_vector, place).build()
    opened = Similar(batches, IMAGES, first_vector, place)
    ids = [i for part, _ in batches() for i in part][:IMAGES]
    hits = 0
    for image_id in ids[:200]:
        found = [row["image_id"] for row in opened.to_image(image_id)]
        assert image_id not in found
        assert len(set(found)) == len(found) >= 20
        with monkeypatch.context() as all_:
            all_.setattr(similar, "EXACT", IMAGES)
            wanted = [row["image_id"] for row in exact.to_image(image_id)]
        hits += len(set(found[:10]) & set(wanted[:10]))
    assert hits / (200 * 10) > 0.95
    assert opened.to_text("anything")[0]["image_id"] == ids[0]


def test_without_vectors_that_is_said() -> None:
    for ask in (lambda s: s.to_text("a"), lambda s: s.to_image("0" * 32), lambda s: s.build()):
        with pytest.raises(NoVectors, match="keep_vectors"):
            ask(Similar())


def test_a_model_of_another_width_is_named(exact: Similar) -> None:
    exact.of_text = lambda text: np.ones(8, np.float32)
    with pytest.raises(NoVectors, match="32 dimensions, the model's 8"):
        exact.to_text("a")


def test_stored_halves_are_read_as_they_were_written() -> None:
    vectors = np.array([[0.5, -0.25], [1, 0]], "<f2")
    table = pa.table({"vector": [v.tobytes() for v in vectors]})
    assert vectors_of(table).tolist() == vectors.tolist()
