from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from i2e_pipeline.report import charts
from i2e_pipeline.report.charts import Bar, Figure, Step

SVG = "{http://www.w3.org/2000/svg}"


def draw(chart: str) -> ElementTree.Element:
    """Raises where the chart is not well-formed."""
    return ElementTree.fromstring(chart)


def shapes(chart: str, kind: str) -> list[ElementTree.Element]:
    return draw(chart).findall(f"{SVG}{kind}")


def steps(count: int) -> list[Step]:
    return [Step("label", "chooses", "pairs", 10, 7, {"below_bar": 3})] * count


def bucket(entities: int, images_to: int = 9) -> dict[str, int]:
    return {"images_from": 5, "images_to": images_to, "entities": entities, "images": 5 * entities}


@pytest.mark.parametrize(
    "chart",
    [
        lambda: charts.funnel([]),
        lambda: charts.funnel([Step("pairs", "", "pairs", 0, 0, {})]),
        lambda: charts.bars([], "rejects"),
        lambda: charts.buckets([]),
        lambda: charts.buckets([bucket(0)]),
        lambda: charts.rank_frequency([]),
        lambda: charts.rank_frequency([0, 0]),
        lambda: charts.histogram([0], [0], 0, 1, "probability"),
        lambda: charts.histogram([], [], 0, 1, "probability"),
        lambda: charts.precision_recall([], 0.5),
        lambda: charts.precision_recall([Figure("all", None, None)], 0.5),
    ],
)
def test_nothing_is_said_to_be_nothing(chart: Callable[[], str]) -> None:
    assert "nothing to show" in "".join(draw(chart()).itertext())


@pytest.mark.parametrize("count", [1, 3, 40])
def test_one_or_many_values_draw_as_well(count: int) -> None:
    draw(charts.funnel(steps(count)))
    assert len(shapes(charts.bars([Bar("a", 1)] * count, "rejects"), "rect")) == 2 * count
    draw(charts.buckets([bucket(1)] * count))
    assert len(shapes(charts.rank_frequency([5] * count), "circle")) == count
    draw(charts.histogram([1] * count, [0] * count, 0, 1, "probability", threshold=0.5))
    draw(charts.precision_recall([Figure("all", 0.9, None)] * count, 0.5))


def test_a_million_entities_make_few_points() -> None:
    chart = charts.rank_frequency([*range(1, 1_000_001)])
    assert len(shapes(chart, "circle")) < 300
    assert len(chart) < 60_000


def test_no_mark_lies_outside_the_chart() -> None:
    """Catches: an axis that ends below the largest value, or a range of no width."""
    for chart in (
        charts.rank_frequency([1]),
        charts.rank_frequency([1000, 1, 1]),
        charts.precision_recall([Figure("a", 1.0, 0.31)], charts.lowest_tenth([Figure("a", 1.0, 0.31)])),
    ):
        height = float(draw(chart).get("height", 0))
        for dot in shapes(chart, "circle"):
            assert 0 <= float(dot.get("cx", "").rstrip("%")) <= 100
            assert 0 <= float(dot.get("cy", "")) <= height


def test_what_is_rare_is_still_seen() -> None:
    first, rare = (
        r
        for r in shapes(charts.bars([Bar("many", 10**9), Bar("one", 1)], "rejects"), "rect")
        if r.find(f"{SVG}title") is not None
    )
    assert float(first.get("width", "").rstrip("%")) == 100
    assert float(rare.get("width", "").rstrip("%")) > 0.1


def test_funnel_widths_add_up_to_what_came_in() -> None:
    rects = [r for r in shapes(charts.funnel(steps(1)), "rect") if r.find(f"{SVG}title") is not None]
    assert sum(float(r.get("width", "").rstrip("%")) for r in rects) == pytest.approx(100)


def test_labels_are_escaped() -> None:
    hostile = '<script>alert("x")</script>&'
    for chart in (
        charts.bars([Bar(hostile, 1)], hostile),
        charts.precision_recall([Figure(hostile, 1, 1)], 0.5),
        charts.funnel([Step(hostile, hostile, hostile, 2, 1, {hostile: 1})]),
    ):
        assert "<script" not in chart
        assert hostile in "".join(draw(chart).itertext())
