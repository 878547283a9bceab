from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from i2e_pipeline.evaluate import pictures
from i2e_pipeline.evaluate.compare import Interval
from i2e_pipeline.evaluate.pictures import Group
from i2e_pipeline.images.thumbnails import Thumbnails
from i2e_pipeline.pages.palette import SERIES

SVG = "{http://www.w3.org/2000/svg}"


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def vectors() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(40, 8)))


def test_nearest_are_those_of_brute_force_without_the_query(vectors: np.ndarray) -> None:
    asked = np.array([0, 7, 39])
    found = pictures.nearest(asked, vectors, np.arange(40))
    for row, near in zip(asked, found, strict=True):
        cosine = vectors.astype(np.float64) @ vectors[row].astype(np.float64)
        cosine[row] = -2
        assert [i for i, _ in near] == np.argsort(-cosine)[: pictures.NEIGHBOURS].tolist()
        assert [s for _, s in near] == pytest.approx(np.sort(cosine)[::-1][: pictures.NEIGHBOURS], abs=1e-6)


def test_a_copy_of_the_query_does_not_push_the_query_among_its_neighbours() -> None:
    """Catches: the query is left out by rank, and an equal image that comes first is left out in its place."""
    same = unit(np.ones((12, 4)))
    (near,) = pictures.nearest(np.array([5]), same, np.arange(12))
    assert 5 not in [i for i, _ in near]
    assert len(near) == pictures.NEIGHBOURS


def test_neighbours_are_rows_of_the_data_set_not_of_the_vectors(vectors: np.ndarray) -> None:
    rows = np.arange(40) * 3
    (near,) = pictures.nearest(np.array([30]), vectors, rows)
    assert {i % 3 for i, _ in near} == {0}
    assert 30 not in [i for i, _ in near]


def test_small_sets_have_as_many_neighbours_as_there_are(vectors: np.ndarray) -> None:
    (near,) = pictures.nearest(np.array([1]), vectors[:3], np.arange(3))
    assert len(near) == 2


def test_queries_take_domains_in_turn_and_classes_once() -> None:
    labels = np.arange(60) // 3
    domains = np.array(["faces", "places"])[labels // 10]
    asked = pictures.queries(labels, domains, 8)
    assert len(asked) == 8
    assert len(set(labels[asked])) == 8
    assert (domains[asked] == "faces").sum() == 4


def test_an_image_that_nothing_is_like_is_not_asked_with() -> None:
    labels = np.array([0, 0, 1, -1, -1])
    assert set(pictures.queries(labels, None)) <= {0, 1}
    assert len(pictures.queries(np.array([0, 1, 2]), None)) == 0


def test_hits_are_right_where_classes_agree() -> None:
    labels = np.array([0, 0, 1, 1])
    near = {"m": [[(1, 0.9), (2, 0.1)]]}

    def read(rows: Sequence[int]) -> Iterator[Image.Image | None]:
        assert list(rows) == sorted(set(rows))
        return (None if row == 2 else Image.new("RGB", (30, 20), "teal") for row in rows)

    (shown,) = pictures.grid(np.array([0]), near, labels, lambda c: f"class {c}", None, read, Thumbnails(10**9))
    ((_, found),) = shown.found
    assert [f.right for f in found] == [True, False]
    assert [f.name for f in found] == ["class 0", "class 1"]
    assert found[0].picture is not None
    assert found[0].picture.startswith("data:image/jpeg")
    assert found[1].picture is None


def test_scatter_has_a_point_for_each_vector_and_a_colour_for_each_domain() -> None:
    xy = np.random.default_rng(0).random((50, 2))
    groups = np.array(["faces", "places"], dtype=object)[np.arange(50) % 2]
    drawn = pictures.scatter(xy, groups, 80)
    paths = ElementTree.fromstring(drawn.chart).findall(f"{SVG}path")
    assert sum(path.attrib["d"].count("M") for path in paths) == 50
    assert [(key.name, key.points) for key in drawn.keys] == [("faces", 25), ("places", 25)]
    assert len({path.attrib["stroke"] for path in paths}) == 2


def test_without_domains_the_largest_classes_have_colours() -> None:
    labels = np.concatenate([np.arange(20), np.full(5, 3), np.full(4, 11)])
    groups = pictures.groups(labels, [f"c{i}" for i in range(20)], None)
    named = {g for g in groups if g}
    assert {"c3", "c11"} < named
    assert len(named) == len(SERIES)
    drawn = pictures.scatter(np.random.default_rng(0).random((len(labels), 2)), groups, len(labels))
    assert drawn.keys[-1].name == "others"
    assert sum(key.points for key in drawn.keys) == len(labels)


def test_names_cannot_break_out_of_a_chart() -> None:
    hostile = '"><script>alert(1)</script>'
    drawn = pictures.scatter(np.zeros((1, 2)), np.array([hostile], dtype=object), 1)
    ElementTree.fromstring(drawn.chart)
    ElementTree.fromstring(pictures.bars([Group(hostile, (0.5,))], [hostile], hostile))


def test_bars_are_as_long_as_their_figures() -> None:
    rows = [Group("a", (0.25, None), (Interval(0.2, 0.3, 12), None)), Group("b", (0.5, 1.0))]
    chart = pictures.bars(rows, ["first", "second"], "figures")
    drawn = ElementTree.fromstring(chart)
    titles = {r.findtext(f"{SVG}title"): float(r.attrib["width"].rstrip("%")) for r in drawn.findall(f"{SVG}rect")}
    assert titles["second, b: 1.0000"] == pytest.approx(2 * titles["first, b: 0.5000"], abs=0.01)
    assert titles["first, a: 0.2500"] == pytest.approx(titles["first, b: 0.5000"] / 2, abs=0.01)
    assert len(drawn.findall(f"{SVG}line")) == 1
    assert "nothing to show" in pictures.bars([Group("a", (None,))], ["first"], "figures")
