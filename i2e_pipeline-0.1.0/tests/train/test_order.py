"""The order of training. What is checked is what a resumed or re-scaled training relies on."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.core.draws import hashed, uniform
from i2e_pipeline.train import order as order_module
from i2e_pipeline.train.order import Order, OrderError, micro_batch_size
from tests.examples import examples


@pytest.fixture(autouse=True)
def small_datasets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred samples are dealt into lanes and windows as millions are."""
    monkeypatch.setattr(order_module, "WHOLE", 1)


def taken(order: Order, start: int, stop: int, batch: int, world_size: int, accumulate: int) -> list[np.ndarray]:
    """Per step the samples of all ranks, each rank's micro-batches asked for on their own."""
    size = micro_batch_size(batch, world_size, accumulate)
    steps = []
    for first in range(start, stop, batch):
        parts = [
            order.share(first + m * size, size, rank, world_size).sample
            for rank in range(world_size)
            for m in range(accumulate)
        ]
        steps.append(np.concatenate(parts))
    return steps


@st.composite
def cases(draw: Any) -> tuple[Order, int, int, int, int]:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum))
    world_size, accumulate = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    batch = world_size * accumulate * draw(st.integers(1, 12))
    order = Order(
        np.array(sizes),
        batch_size=batch,
        lanes=draw(st.integers(1, 9)),
        window=draw(st.integers(1, 50)),
        seed=draw(st.integers(0, 5)),
        shuffle=draw(st.booleans()),
    )
    return order, batch, world_size, accumulate, draw(st.integers(0, 3 * sum(sizes)))


@settings(max_examples=examples(150))
@given(cases())
def test_every_epoch_has_every_sample_once(case: tuple[Order, int, int, int, int]) -> None:
    order = case[0]
    for epoch in range(3):
        places = order.at(np.arange(epoch * order.samples, (epoch + 1) * order.samples))
        assert sorted(places.sample) == list(range(order.samples))
        assert (places.epoch == epoch).all()


@settings(max_examples=examples(150))
@given(cases())
def test_steps_have_the_same_samples_on_any_number_of_ranks_from_any_start(
    case: tuple[Order, int, int, int, int],
) -> None:
    order, batch, world_size, accumulate, start = case
    stop = start + 4 * batch
    alone = taken(order, start, stop, batch, 1, 1)
    shared = taken(order, start, stop, batch, world_size, accumulate)
    for step, (a, b) in enumerate(zip(alone, shared, strict=True)):
        stream = order.at(np.arange(start + step * batch, start + (step + 1) * batch)).sample
        assert sorted(a) == sorted(b) == sorted(stream)
    if accumulate == 1:
        assert all((a == b).all() for a, b in zip(alone, shared, strict=True))


@given(cases())
def test_a_position_leads_to_the_same_sample_however_it_is_asked_for(case: tuple[Order, int, int, int, int]) -> None:
    """Catches: state that is left over from what was asked for before."""
    order, _, _, _, start = case
    positions = np.arange(start, start + 40)
    fresh = copy.deepcopy(order)
    at_once = order.at(positions).sample
    assert [int(fresh.at(np.array([p])).sample[0]) for p in positions[::-1]] == at_once[::-1].tolist()


@given(cases())
def test_a_window_is_past_at_its_end(case: tuple[Order, int, int, int, int]) -> None:
    """Catches: stored images that are let go too early (an error) or never (memory)."""
    order, _, _, _, start = case
    places = order.at(np.arange(start, start + 2 * order.samples))
    for i in range(len(places)):
        key = int(places.epoch[i]), int(places.lane[i]), int(places.window[i])
        end = order.window_end(*key)
        assert places.position[i] < end
        assert places.sample[i] in order.window_samples(*key)
        if end - 1 < start + len(places):
            last = order.at(np.array([end - 1]))
            assert (int(last.epoch[0]), int(last.lane[0]), int(last.window[0])) == key


def test_a_rank_reads_few_row_groups() -> None:
    """Catches: ranks that all read the whole dataset, which is what a plain shuffle asks of them."""
    groups, rows, batch, ranks = 400, 100, 256, 8
    order = Order(np.full(groups, rows), batch_size=batch, lanes=64, window=100)
    read = [set[int]() for _ in range(ranks)]
    for step in range(order.samples // batch):
        for rank in range(ranks):
            read[rank] |= set((order.share(step * batch, batch, rank, ranks).sample // rows).tolist())
    assert order.lanes == 64
    assert max(len(r) for r in read) < 1.5 * groups / ranks


@pytest.mark.parametrize("rows", [20, 150, 300])
def test_lanes_change_windows_at_different_steps(rows: int) -> None:
    """Catches: every lane reading its next window in the same step, while the training waits."""
    sizes = np.random.default_rng(0).integers(rows * 9 // 10, rows * 11 // 10, 96_000 // rows)
    order = Order(sizes, batch_size=256, lanes=64, window=200)
    changes: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    for step in range(order.samples // 256):
        places = order.share(step * 256, 256)
        keys = set(zip(places.lane.tolist(), places.window.tolist(), strict=True))
        changes[step] = len(keys - seen)
        seen |= keys
    assert changes.pop(0) >= 64
    assert 2 <= max(changes.values()) <= 12


def test_a_small_dataset_is_one_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "WHOLE", 16_384)
    order = Order(np.full(8, 325), batch_size=256, lanes=64, window=4096)
    assert (order.lanes, order.window) == (1, 2600)


def test_large_row_groups_are_read_in_fewer_lanes() -> None:
    """Catches: 64 row groups of gigabytes in memory, as compacting a table may leave them."""
    order = Order(np.full(200, 10_000), batch_size=256, lanes=64, window=1000)
    assert order.lanes == 8
    assert Order(np.full(2000, 1000), batch_size=256, lanes=64, window=1000).lanes == 64


@pytest.mark.parametrize("whole", [1, 16_384])
def test_a_batch_mixes_row_groups_evenly(monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    """Catches: the sample's eight row groups met one after the other, so that batches differ in what they show."""
    monkeypatch.setattr(order_module, "WHOLE", whole)
    order = Order(np.full(8, 320), batch_size=256, lanes=64, window=64)
    counts = np.stack([np.bincount(order.share(s * 256, 256).sample // 320, minlength=8) for s in range(30)])
    assert counts.min() >= 10
    assert abs(counts.mean(axis=0) - 32).max() < 2


def test_two_samples_meet_in_a_batch_as_often_as_chance_has_it() -> None:
    order = Order(np.full(8, 40), batch_size=32, lanes=1, window=320)
    together = 0
    for epoch in range(400):
        batch_of = np.empty(320, dtype=int)
        batch_of[order.at(np.arange(320) + 320 * epoch).sample] = np.arange(320) // 32
        together += int(batch_of[0] == batch_of[1]) + int(batch_of[0] == batch_of[319])
    assert abs(together / 800 - 31 / 319) < 0.04


def test_epochs_and_seeds_differ() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        order = Order(np.full(8, 100), batch_size=8, lanes=4, window=50, seed=seed)
        return order.at(np.arange(800) + 800 * epoch).sample.tolist()

    orders = [first(0, 0), first(0, 1), first(1, 0), first(1, 1), first(-1, 0)]
    assert len({tuple(o) for o in orders}) == len(orders)
    assert first(0, 0) == orders[0]


def test_without_shuffle_the_order_is_that_of_the_files() -> None:
    order = Order(np.array([3, 0, 4]), batch_size=2, lanes=64, window=2, shuffle=False)
    assert order.at(np.arange(14)).sample.tolist() == [*range(7), *range(7)]


def test_the_order_is_that_of_the_first_release() -> None:
    """Catches: a change of hash or layout, after which a resumed training repeats and loses samples."""
    order = Order(np.array([5, 4, 6]), batch_size=4, lanes=2, window=4, seed=3)
    assert order.at(np.arange(15)).sample.tolist() == [3, 6, 4, 8, 2, 5, 1, 7, 0, 13, 10, 12, 9, 14, 11]


def test_a_batch_that_ranks_do_not_divide_is_refused_with_one_that_they_do() -> None:
    with pytest.raises(OrderError, match=r"batch_size is 100.*3 ranks of 2 micro-batches.*96 would do"):
        micro_batch_size(100, 3, 2)
    with pytest.raises(OrderError, match="2 would do"):
        micro_batch_size(1, 2, 1)
    assert micro_batch_size(96, 3, 2) == 48


def test_no_sample_is_refused() -> None:
    with pytest.raises(OrderError, match="no sample"):
        Order(np.array([0, 0]), batch_size=1, lanes=1, window=1)


def test_draws_are_uniform_and_differ_by_purpose() -> None:
    ids = np.arange(20_000)
    drawn = np.stack([uniform(hashed(ids, purpose)) for purpose in ("area", "mirror", 0, 1, 2**40)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean(axis=1) - 0.5).max() < 0.01
    assert abs(np.corrcoef(drawn) - np.eye(5)).max() < 0.03
    assert abs(np.corrcoef(drawn[:, 1:], drawn[:, :-1])[:5, 5:]).max() < 0.03
