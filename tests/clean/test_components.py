"""Connected components, against a search of the graph."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from i2e_pipeline.clean.components import components


def searched(edges: list[tuple[int, int]]) -> dict[int, int]:
    """node -> the smallest of its component, for all nodes but these."""
    beside: dict[int, set[int]] = {}
    for a, b in edges:
        beside.setdefault(a, set()).add(b)
        beside.setdefault(b, set()).add(a)
    root: dict[int, int] = {}
    for start in sorted(beside):
        left = [start] if start not in root else []
        while left:
            node = left.pop()
            if node not in root:
                root[node] = start
                left += beside[node]
    return {node: of for node, of in root.items() if node != of}


def test_components(spark: Any) -> None:
    """A long path, a star, a ring, a clique, edges that stand there twice and either way, loops, random trees."""
    draw = np.random.default_rng(1)
    path = draw.permutation(100)
    edges = [(int(a), int(b)) for a, b in pairwise(path)]
    edges += [(200, n) for n in range(201, 240)]
    edges += [(300 + n, 300 + (n + 1) % 30) for n in range(30)]
    edges += [(a, b) for a in range(400, 408) for b in range(400, 408)]
    edges += [(500 + int(draw.integers(0, n)), 500 + n) for n in range(1, 60)]
    edges += [(600 + int(a), 600 + int(b)) for a, b in draw.integers(0, 80, (60, 2))]
    found = components(spark.createDataFrame(edges, "a long, b long").repartition(3))
    rows = [(row["node"], row["root"]) for row in found.collect()]
    assert len(rows) == len(dict(rows))
    assert dict(rows) == searched(edges)


@pytest.mark.parametrize("edges", [[], [(7, 7)]], ids=["none", "a loop"])
def test_without_edges_there_are_none(spark: Any, edges: list[tuple[int, int]]) -> None:
    assert components(spark.createDataFrame(edges, "a long, b long")).count() == 0
