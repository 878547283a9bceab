"""Which images an evaluation looks at: the same ones, however the dataset is cut into parts."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.train.chosen import OF_A_CLASS, Chosen
from tests.examples import examples


def some(classes: list[int]) -> Chosen:
    class_N = np.array(classes, dtype=np.int64)
    rows_N = np.arange(len(class_N))
    return Chosen.of(rows_N, class_N, class_N + 1000, (rows_N * 7919).astype(np.uint64))


@settings(max_examples=examples(300))
@given(st.data())
def test_parts_choose_what_the_whole_chooses(data: st.DataObject) -> None:
    """Catches: an image dropped from a part that the whole would have chosen."""
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 5, OF_A_CLASS, OF_A_CLASS + 1, 60]), min_size=1, max_size=12))
    classes = data.draw(st.permutations([c for c, size in enumerate(sizes) for _ in range(size)]))
    limit = data.draw(st.sampled_from([1, 3, 16, 40, 100]))
    whole = some(list(classes))
    part_N = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(whole), max_size=len(whole))))
    kept = whole.take(np.empty(0, dtype=np.int64))
    for part in range(4):
        kept = Chosen.merged([kept, whole.take(np.flatnonzero(part_N == part)).bounded(limit)]).bounded(limit)
        assert len(kept) <= 2 * limit + 2 * max(OF_A_CLASS, limit)
    assert kept.first(limit).rows_N.tolist() == whole.first(limit).rows_N.tolist()


def test_whole_classes_come_before_more_of_any() -> None:
    chosen = some([c for c in range(10) for _ in range(40)]).first(100)
    counts = sorted(np.bincount(chosen.class_N).tolist())
    assert [c for c in counts if c] == [4, *[OF_A_CLASS] * 6]
    assert (np.diff(chosen.rows_N) > 0).all()


def test_few_classes_give_more_of_each_and_all_where_all_fit() -> None:
    whole = some([0] * 60 + [1] * 60)
    counts = np.bincount(whole.first(50).class_N)
    assert counts.min() >= OF_A_CLASS
    assert counts.sum() == 50
    assert len(whole.first(200)) == 120


def test_fewer_of_each_class_where_so_many_are_wanted() -> None:
    whole = some([c for c in range(40) for _ in range(30)])
    counts = np.bincount(whole.first(80, 2).class_N)
    assert counts.tolist() == [2] * 40
