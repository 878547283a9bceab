from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.train.schedule import ScheduleError, factor


def test_the_rise_is_linear_and_ends_at_the_peak() -> None:
    assert [factor(step, 100, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4, 100, 4) == 1.0


def test_below_one_warmup_is_a_share_of_all_steps() -> None:
    assert [factor(step, 200, 0.05) for step in range(200)] == [factor(step, 200, 10) for step in range(200)]
    assert factor(0, 200, 1) == 1.0


def test_half_way_down_is_half_and_the_end_is_zero() -> None:
    assert factor(10 + 45, 100, 10) == pytest.approx(0.5)
    assert factor(100, 100, 10) == pytest.approx(0, abs=1e-12)
    assert factor(500, 100, 10) == pytest.approx(0, abs=1e-12)


def test_without_warmup_the_first_step_runs_at_the_peak() -> None:
    assert factor(0, 10, 0) == 1.0


@given(st.integers(1, 500), st.floats(0, 0.9))
def test_it_rises_then_falls_and_stays_within_zero_and_one(steps: int, warmup: float) -> None:
    if round(warmup * steps) >= steps:
        return
    course = [factor(step, steps, warmup) for step in range(steps + 1)]
    peak = course.index(max(course))
    assert all(0 <= value <= 1 for value in course)
    assert course[: peak + 1] == sorted(course[: peak + 1])
    assert course[peak:] == sorted(course[peak:], reverse=True)
    assert all(value > 0 for value in course[:-1])


def test_a_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"2,000 steps of warm-up in a training of 100"):
        factor(0, 100, 2000)
