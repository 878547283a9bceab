from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from i2e_pipeline.core.config import RunConfig
from i2e_pipeline.engine.dealing import Blocks
from i2e_pipeline.engine.waves import Waves


def waves(rows: list[int], cores: int = 1, gb: float = 0.0, **limits: float) -> Waves:
    units = [f"u-{n:04}" for n in range(len(rows))]
    return Waves(units, dict(zip(units, rows, strict=True)), dict.fromkeys(units, gb), RunConfig(**limits), cores)


def sizes(of: Waves) -> list[int]:
    found = []
    while wave := of.next():
        found.append(len(wave))
    return found


def test_a_wave_is_bounded_in_units_rows_and_bytes() -> None:
    assert sizes(waves([10] * 7, wave_units=3)) == [3, 3, 1]
    assert sizes(waves([10] * 7, wave_rows=25)) == [2, 2, 2, 1]
    assert sizes(waves([10] * 5, gb=2.0, wave_gb=5)) == [2, 2, 1]


def test_a_unit_above_the_bound_is_a_wave_by_itself() -> None:
    assert sizes(waves([5, 1000, 5, 5], wave_rows=20)) == [1, 1, 2]


def test_the_first_wave_is_small_and_the_others_last_as_long_as_is_wished() -> None:
    """Catches: minutes that nobody knows before a row was worked on."""
    of = waves([10_000] * 500, cores=2, wave_minutes=1, wave_units=500)
    first = of.next()
    assert len(first) == 4  # 20,000 rows a core
    of.done(first, seconds=10.0)  # 4,000 rows/s: 240,000 in a minute
    assert len(of.next()) == 24


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 20), st.integers(1, 1000))
def test_every_unit_comes_once_and_in_order(rows: list[int], units: int, most: int) -> None:
    of = waves(rows, wave_units=units, wave_rows=most)
    found: list[str] = []
    while wave := of.next():
        found += wave
    assert found == [f"u-{n:04}" for n in range(len(rows))]


@given(st.integers(1, 500), st.sets(st.integers(0, 499), max_size=60), st.integers(1, 500))
@example(500, {7, 130, 300, 400}, 500)
@example(500, set(range(3)), 500)
def test_units_that_break_their_jobs_are_found_and_the_others_are_made(count: int, which: set[int], most: int) -> None:
    """Catches: a handful of bad units taken for a fault of everything, and none of the others made."""
    of, bad = waves([1] * count, wave_units=most), {f"u-{n:04}" for n in which if n < count}
    made: set[str] = set()
    broken, jobs = set(), 0
    while wave := of.next():
        jobs += 1
        if not bad & set(wave):
            made |= set(wave)
            of.made()
        elif not of.failed(wave):
            broken |= set(wave)
            if of.hopeless():
                break
    if of.hopeless():  # where the first ones that are tried are all bad
        assert not made
        return
    assert broken == bad
    assert len(made) == count - len(bad)
    assert jobs <= -(-count // most) + 2 * len(bad) * 10


def test_bad_units_that_lie_together_are_told_from_a_fault_of_everything() -> None:
    of, made = waves([1] * 500, wave_units=500), 0
    while (wave := of.next()) and not of.hopeless():
        if int(wave[0][2:]) >= 40:
            made += len(wave)
            of.made()
        else:
            of.failed(wave)
    assert made == 460


def test_where_everything_fails_it_is_not_tried_for_ever() -> None:
    of, tries = waves([1] * 512, wave_units=512), 0
    while wave := of.next():
        tries += 1
        of.failed(wave)
        if of.hopeless():
            break
    assert of.hopeless()
    assert tries < 40


# How rows are dealt to tasks


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 100)), min_size=1, max_size=40))
def test_parts_lie_in_tasks_that_follow_each_other_and_none_has_too_much(parts: list[tuple[int, int]]) -> None:
    blocks = Blocks([(n, rows, size) for n, (rows, size) in enumerate(parts)])
    shares = [0.0] * blocks.count
    last = 0
    for n, (rows, size) in enumerate(parts):
        tasks = [blocks.task(n, row) for row in range(rows)]
        assert tasks == sorted(tasks)
        assert set(tasks) <= set(range(blocks.first[n], blocks.first[n] + blocks.tasks[n]))
        assert blocks.first[n] >= last
        last = blocks.first[n]
        for task in tasks:
            shares[task] += 1 / size
    assert all(share <= 1 + 1e-6 for share in shares)


def test_small_parts_share_a_task_and_large_ones_have_several() -> None:
    blocks = Blocks([("a", 10, 100), ("b", 20, 100), ("c", 250, 100), ("d", 10, 100)])
    assert (blocks.first, blocks.tasks) == ({"a": 0, "b": 0, "c": 1, "d": 4}, {"a": 1, "b": 1, "c": 3, "d": 1})
    assert blocks.count == 5
