"""Windows of classes and first rows: functions of a number, that need no memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.train.class_sampling import normal_rows, sample_size, window

SEEDS = st.integers(0, 2**40)


@given(st.integers(1, 400), st.integers(1, 400), SEEDS, st.integers(0, 30))
def test_a_pass_sees_each_class_once_and_the_last_window_repeats_the_rest(
    classes: int, size: int, seed: int, number: int
) -> None:
    size = min(size, classes)
    steps = math.ceil(classes / size)
    windows = [window(number * steps + place, classes, size, seed).classes_of() for place in range(steps)]
    assert all(len(set(drawn.tolist())) == size for drawn in windows)
    seen = torch.bincount(torch.cat(windows), minlength=classes)
    assert len(seen) == classes
    assert int(seen.min()) == 1
    assert int(seen.max()) <= 2
    assert int(seen.sum()) == steps * size


@given(st.integers(1, 400), st.integers(1, 400), SEEDS, st.integers(0, 1000))
def test_the_slot_of_a_class_is_where_the_window_has_it(classes: int, size: int, seed: int, step: int) -> None:
    drawn = window(step, classes, min(size, classes), seed)
    slots = drawn.slots(torch.arange(classes))
    assert sorted(slots.tolist()) == list(range(classes))
    assert torch.equal(slots[drawn.classes_of()], torch.arange(drawn.size))


def test_two_thousand_million_classes_do_not_overflow() -> None:
    classes = 2_000_000_011
    drawn = window(7, classes, 1000, 3)
    listed = drawn.classes_of()
    assert int(listed.min()) >= 0
    assert int(listed.max()) < classes
    assert torch.equal(drawn.slots(listed), torch.arange(1000))


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("classes", [125_000, 1_400_000, 2_000_003])
def test_ranks_own_equal_parts_of_a_window(classes: int, ranks: int) -> None:
    for step in range(12):
        drawn = window(step * 11, classes, classes // 10, 1)
        owned = torch.bincount(drawn.classes_of() % ranks, minlength=ranks)
        assert int(owned.max()) < 1.1 * classes / 10 / ranks


def test_sample_size_is_the_share_within_its_limits() -> None:
    assert sample_size(100_000, 0.1, 4096) == 10_000
    assert sample_size(10_000, 0.1, 4096) == 4096
    assert sample_size(197, 0.1, 4096) == 197


def test_first_rows_are_normal_and_unrelated() -> None:
    rows_ND = normal_rows(torch.arange(20_000), 64, 9)
    assert abs(rows_ND.mean().item()) < 0.005
    assert abs(rows_ND.std().item() - 1) < 0.005
    assert abs((rows_ND[0::2] * rows_ND[1::2]).mean().item()) < 0.005
    assert abs((rows_ND[:, 0::2] * rows_ND[:, 1::2]).mean().item()) < 0.005
    assert not torch.equal(rows_ND, normal_rows(torch.arange(20_000), 64, 10))


@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=20), SEEDS)
def test_a_first_row_does_not_depend_on_those_drawn_with_it(classes: list[int], seed: int) -> None:
    together = normal_rows(torch.tensor(classes), 16, seed)
    for number, row in zip(classes, together, strict=True):
        assert torch.equal(normal_rows(torch.tensor([number]), 16, seed)[0], row)
