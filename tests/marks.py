"""Which of many like cases is always run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def but_one(kept: Any, cases: Iterable[Any]) -> list[Any]:
    """The cases, of which all but `kept` bear the mark `long`."""
    all_of_them = list(cases)
    assert kept in all_of_them
    return [case if case == kept else pytest.param(case, marks=pytest.mark.long) for case in all_of_them]
