"""Figures by images per entity: every query in one bucket, and the buckets make the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.evaluate import results, suite
from i2e_pipeline.evaluate.long_tail import BUCKETS, BY, bucket, long_tail
from tests.evaluate.small_sets import settings, vectors
from tests.train.small_dataset import entity_row, image_row, write_dataset


def test_buckets_are_named_by_their_ends() -> None:
    assert [bucket(n) for n in (0, 1, 4, 5, 19, 20, 49, 50, 10**9)] == [
        "0", "1–4", "1–4", "5–9", "10–19", "20–49", "20–49", "50+", "50+",
    ]  # fmt: skip
    assert [high + 1 for _, high in BUCKETS[:-1] if high is not None] == [low for low, _ in BUCKETS[1:]]


@given(st.lists(st.tuples(st.integers(0, 200), st.one_of(st.none(), st.booleans())), min_size=1))
def test_the_buckets_make_the_whole(rows: list[tuple[int, bool | None]]) -> None:
    values = [value for _, value in rows]
    found, of_query = long_tail(values, np.array([count for count, _ in rows]))
    assert of_query == [bucket(count) for count, _ in rows]
    counted = [float(value) for value in values if value is not None]
    sizes = {name: sum(b == name and v is not None for b, v in zip(of_query, values, strict=True)) for name in found}
    assert sum(sizes.values()) == len(counted)
    assert sum(found[name] * sizes[name] for name in found) == pytest.approx(sum(counted))
    low = [int(name.rstrip("+").split("–")[0]) for name in found]
    assert low == sorted(low)


def test_neighbours_and_retrieval_on_a_dataset_are_given_by_images_per_entity(tmp_path: Path) -> None:
    """Catches: a breakdown that only one protocol has; counts of another class."""
    rows = [image_row(i, labels=[((i % 3 if i % 8 else 3 + i // 8 % 4), 0.9)]) for i in range(96)]
    entities = [entity_row(c, images=28 if c < 3 else 3) for c in range(7)]
    dataset = write_dataset(tmp_path / "i2e", rows, entities=entities)
    spec = vectors(tmp_path / "v", "mine", Path(dataset), 0.7)
    measured = suite.evaluate(
        settings(
            tmp_path, models=[f"v={spec}"], data={"mine": dataset}, knn_k=[3], suite=["gpr", "knn_retrieval", "knn"]
        )
    )
    by_protocol = {result.protocol: result for result in measured.results}
    assert {"gpr", "knn_retrieval", "knn"} == set(by_protocol)
    for protocol in ("gpr", "knn_retrieval", "knn"):
        result = by_protocol[protocol]
        cited = next(iter(result.figures))
        parts, groups = result.parts[BY], measured.groups[f"mine/{protocol}"][BY]
        assert set(parts) == {"1–4", "20–49"}, protocol
        values = result.per_query[cited]
        for name, figure in parts.items():
            mine = [v for v, of in zip(values, groups, strict=True) if of == name and v is not None]
            assert figure == pytest.approx(np.mean(mine))
    table = results.terminal(measured)
    assert "k=3, 1–4 images per entity" in table
    assert "by images per entity" in (tmp_path / "out" / "evaluation" / "index.html").read_text()
    assert results.read(str(tmp_path / "out" / "evaluation" / "results.json")) == measured


def test_a_set_that_nothing_is_trained_on_has_no_long_tail(tmp_path: Path) -> None:
    """Catches: images of the test set's own classes taken for those of a training."""
    from tests.evaluate.small_sets import coloured

    folder = coloured(tmp_path / "colours", classes=3, each=6)
    spec = vectors(tmp_path / "v", "colours", folder, 0.7)
    measured, _ = suite.measure(settings(tmp_path, models=[spec], data={"colours": str(folder)}, suite=["gpr"]))
    assert measured.results[0].parts == {}
