from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core.draws import GOLDEN, drawn, hashed, mix_, mixed, signed, uniform


def test_draws_are_those_of_the_reference() -> None:
    """The first draws of splitmix64 from the seed 1234567, as Rosetta Code lists them."""
    state, found = 1234567, []
    for _ in range(5):
        found.append(drawn(state))
        state += GOLDEN
    assert found == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_numpy_torch_and_plain_integers_agree(numbers: list[int]) -> None:
    """Catches: a shift of int64 that drags the sign along, so that a GPU draws other classes than a CPU plans."""
    by_numpy = mixed(np.array(numbers, dtype=np.uint64)).tolist()
    by_torch = mix_(torch.tensor([signed(n) for n in numbers]))
    assert [n % 2**64 for n in by_torch.tolist()] == by_numpy
    assert [drawn(n - GOLDEN) for n in numbers] == by_numpy


def test_purposes_draw_apart() -> None:
    rows = np.arange(1000)
    draws = [hashed(rows, *purpose) for purpose in (("a",), ("b",), ("a", 1), ("a", 2))]
    assert len({d.tobytes() for d in draws}) == 4
    assert all(0.45 < uniform(d).mean() < 0.55 for d in draws)
