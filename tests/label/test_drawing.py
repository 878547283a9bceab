"""Which labels are drawn, whatever the order and the files in which they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.label.drawing import Pool, counts, draw, fine_edges, pooled

THRESHOLD = 0.7
SCHEMA = pa.schema(
    [
        ("image_id", pa.binary(16)),
        ("pair_id", pa.binary(16)),
        ("entity_id", pa.int64()),
        ("probability", pa.float32()),
        ("reason", pa.string()),
        ("coarse_type", pa.string()),
        ("mention", pa.string()),
    ]
)


def label(n: int, entity_id: int = 1, p: float = 0.8, pair: int = 0, kind: str | None = "taxon") -> dict[str, Any]:
    reason = None if p >= THRESHOLD else "below_bar"
    ids = {"image_id": n.to_bytes(16, "little"), "pair_id": pair.to_bytes(16, "little")}
    return {**ids, "entity_id": entity_id, "probability": p, "reason": reason, "coarse_type": kind, "mention": "m"}


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, SCHEMA)


def many(number: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    p = np.where(rng.random(number) < 0.3, rng.uniform(THRESHOLD, 1, number), rng.beta(0.3, 2, number) * THRESHOLD)
    kinds = rng.choice(["taxon", "person", "place"], number, p=[0.9, 0.09, 0.01])
    columns = {
        "image_id": pa.array([int(i).to_bytes(16, "little") for i in range(number)], pa.binary(16)),
        "pair_id": pa.array([int(i).to_bytes(16, "little") for i in range(number)], pa.binary(16)),
        "entity_id": pa.array(rng.integers(1, 500, number)),
        "probability": pa.array(p, pa.float32()),
        "reason": pa.array(["" if v >= THRESHOLD else "below_bar" for v in p], pa.string()),
        "coarse_type": pa.array(kinds.tolist(), pa.string()),
        "mention": pa.array(["m"] * number),
    }
    columns["reason"] = pc.if_else(pc.equal(columns["reason"], ""), None, columns["reason"])
    return pa.table(columns, SCHEMA)


rows = st.builds(
    label, st.integers(0, 9), st.integers(1, 3), st.sampled_from([0.1, 0.5, 0.7, 0.9]), st.integers(0, 3),
    st.sampled_from(["taxon", None]),
)  # fmt: skip


@given(st.lists(rows, max_size=40), st.randoms(use_true_random=False), st.integers(1, 12), st.integers(1, 10))
def test_the_draw_depends_on_neither_order_nor_batches(
    given_: list[dict[str, Any]], random: Any, keep: int, size: int
) -> None:
    types: dict[int, str | None] = {}
    for row in given_:  # an entity has one type
        row["coarse_type"] = types.setdefault(row["entity_id"], row["coarse_type"])
    shuffled = list(given_)
    random.shuffle(shuffled)
    one = pooled([batch(given_)], keep)
    parts = [batch(shuffled[i : i + size]) for i in range(0, len(shuffled), size)]
    other = pooled([*parts, batch([])], keep)
    assert one.share == other.share
    assert one.labels.equals(other.labels)
    assert one.labels.num_rows <= keep
    assert draw(one, THRESHOLD, 5).equals(draw(other, THRESHOLD, 5))


def test_a_label_of_several_pairs_is_drawn_once_as_it_is_published() -> None:
    low = label(1, p=0.9, pair=2) | {"reason": "less_sure"}
    pool = pooled([batch([low, label(1, p=0.75, pair=3)]), batch([label(1, p=0.8, pair=4), label(2, p=0.3)])])
    found = {r["image_id"][0]: r for r in pool.labels.to_pylist()}
    assert len(found) == pool.labels.num_rows == 2
    assert found[1]["pair_id"][0] == 4
    assert (found[1]["published"], found[2]["published"]) == (True, False)


def test_named_labels_are_found_whatever_the_pool_keeps() -> None:
    table = many(2_000)
    named = table.take(pa.array([5, 1_999])).select(["image_id", "entity_id"])
    pool = pooled(table.to_batches(max_chunksize=100), keep=10, named=named)
    assert pool.labels.num_rows <= 10
    ids = sorted(r["image_id"] for r in pool.marked.to_pylist())
    assert ids == sorted(named["image_id"].to_pylist())
    assert "published" in pool.marked.column_names


def test_counts_are_those_of_all_labels() -> None:
    table = many(5_000)
    found = counts(pooled([*table.to_batches()]), THRESHOLD)
    assert pc.sum(found["labels"]).as_py() == 5_000
    published = pc.is_null(table["reason"])
    assert pc.sum(found.filter(found["published"])["labels"]).as_py() == pc.sum(published).as_py()
    assert pc.min(found.filter(found["published"])["from"]).as_py() >= THRESHOLD
    assert pc.sum(found["expected"]).as_py() == pytest.approx(pc.sum(table["probability"]).as_py(), rel=1e-5)
    for row in found.to_pylist():
        assert row["from"] * row["labels"] - 1e-3 <= row["expected"] <= row["to"] * row["labels"] + 1e-3


def test_a_pool_of_a_share_estimates_the_counts() -> None:
    table = many(20_000)
    pool = pooled(table.to_batches(max_chunksize=1_000), keep=6_000)
    assert pool.share == 0.25
    published = pc.sum(pc.is_null(table["reason"])).as_py()
    found = counts(pool, THRESHOLD)
    assert pc.sum(found.filter(found["published"])["labels"]).as_py() == pytest.approx(published, rel=0.1)


def test_what_is_drawn_stands_for_all() -> None:
    """Weights sum to the numbers of labels by type and side, at every beginning of the order: a rate that is not that
    of the draw is off by more than the draw's noise."""
    table = many(30_000)
    pool: Pool = pooled([*table.to_batches()])
    drawn = draw(pool, THRESHOLD, 2_000)
    for n in (500, 2_000):
        first = drawn.slice(0, n)
        weight = first["weight"].to_numpy()
        weight = weight / weight.sum() * table.num_rows
        for kind in ("taxon", "person"):
            for published in (True, False):
                mine = pc.and_(pc.equal(first["coarse_type"], kind), pc.equal(first["published"], published))
                here = weight[mine.to_numpy()]
                there = pc.and_(pc.equal(table["coarse_type"], kind), pc.equal(pc.is_null(table["reason"]), published))
                assert here.sum() == pytest.approx(pc.sum(there).as_py(), rel=4 / np.sqrt(len(here)))
    half = drawn["published"].to_numpy().mean()
    assert half == pytest.approx(0.5, abs=0.05)
    rare = drawn.filter(pc.equal(drawn["coarse_type"], "place")).num_rows
    assert rare > 3 * 0.01 * 2_000  # three times its share
    assert drawn.slice(0, 500).equals(draw(pool, THRESHOLD, 500))
    assert not drawn.equals(draw(pool, THRESHOLD, 2_000, seed=1))


def test_few_labels_are_all_drawn_with_one_weight() -> None:
    pool = pooled([batch([label(n, p=0.05 * (n % 20)) for n in range(50)])])
    drawn = draw(pool, THRESHOLD, 100)
    assert drawn.num_rows == 50
    assert set(drawn["weight"].to_pylist()) == {1.0}
    assert draw(pooled([batch([])]), THRESHOLD, 10).num_rows == 0


def test_the_threshold_is_an_edge() -> None:
    assert np.isclose(fine_edges(0.6543), 0.6543).any()
    assert (np.diff(fine_edges(0.7)) > 0).all()
