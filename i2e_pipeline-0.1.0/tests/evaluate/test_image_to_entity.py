"""Image to entity: the right text among all, and how that depends on how much there was to learn from."""

from __future__ import annotations

import numpy as np
import pytest

from i2e_pipeline.evaluate.image_to_entity import entity_texts, image_to_entity

NAMES = [f"entity {i}" for i in range(20)]


def tower(vectors: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(entity_texts(NAMES, None), vectors, strict=True))


def world(images: int = 200, noise: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(text vectors, image vectors, labels); images are their entity's text vector and noise."""
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(20, 12))
    labels = rng.integers(0, 20, images)
    vectors = texts[labels] + noise * np.linalg.norm(texts, axis=1).mean() * rng.normal(size=(images, 12)) / 2
    texts, vectors = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (texts, vectors))
    return texts.astype(np.float32), vectors.astype(np.float32), labels


def test_accuracies_are_those_of_a_full_ranking() -> None:
    texts, vectors, labels = world()
    by_text = tower(texts)
    found = image_to_entity(lambda asked: np.stack([by_text[t] for t in asked]), vectors, labels, NAMES)
    cosines = vectors @ texts.T
    rank = (cosines > cosines[np.arange(200), labels][:, None]).sum(axis=1)
    assert [found[f"acc@{k}"] for k in (1, 5, 10)] == pytest.approx([(rank < k).mean() for k in (1, 5, 10)])
    assert 0.2 < found["acc@1"] < found["acc@5"] < found["acc@10"]
    by_entity = np.mean([(rank[labels == c] == 0).mean() for c in np.unique(labels)])
    assert found["acc@1 by entity"] == pytest.approx(by_entity)
    assert found["correct"] == {f"acc@{k}": (rank < k).tolist() for k in (1, 5, 10)}
    assert "buckets" not in found


def test_buckets_part_the_images_by_how_many_their_entity_has() -> None:
    texts, vectors, labels = world()
    by_text = tower(texts)
    counts = np.array([0, 4, 5, 9, 10, 19, 20, 49, 50, 10**9] + [7] * 10)
    found = image_to_entity(
        lambda asked: np.stack([by_text[t] for t in asked]), vectors, labels, NAMES, class_images_C=counts
    )
    rows = {row["name"]: row for row in found["buckets"]}
    assert list(rows) == ["0", "1–4", "5–9", "10–19", "20–49", "50+"]
    assert sum(row["images"] for row in rows.values()) == 200
    assert rows["50+"]["entities"] == 2
    right = np.array(found["correct"]["acc@1"])
    assert rows["10–19"]["acc@1"] == pytest.approx(right[np.isin(labels, [4, 5])].mean())
    weighted = sum(row["acc@5"] * row["images"] for row in rows.values()) / 200
    assert weighted == pytest.approx(found["acc@5"])


def test_a_bucket_without_images_is_left_out() -> None:
    """Catches: an accuracy of 0, or NaN, for what nobody was asked about."""
    texts, vectors, labels = world(images=30)
    found = image_to_entity(lambda asked: texts, vectors, labels, NAMES, class_images_C=np.full(20, 12))
    assert [row["name"] for row in found["buckets"]] == ["10–19"]


def test_descriptions_tell_equal_names_apart() -> None:
    assert entity_texts(["crane", "crane", "fox"], ["bird", "machine", None]) == [
        "crane, bird", "crane, machine", "fox",
    ]  # fmt: skip
    vectors = np.eye(3, dtype=np.float32)
    found = image_to_entity(lambda asked: vectors, vectors, np.arange(3), ["crane", "crane", "fox"])
    assert found["equal_texts"] == ["crane"]
    two = vectors[:2]
    described = image_to_entity(lambda asked: two, two, np.arange(2), ["crane", "crane"], ["bird", "machine"])
    assert described["equal_texts"] == []
