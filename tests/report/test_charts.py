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
        lambda: charts.precision_recall([Figure("all", 3, None, None)], 0.5),
    ],
)
def test_nothing_is_said_to_be_nothing(chart: Callable[[], str]) -> None:
    assert "nothing to show" in "".join(draw(chart()).itertext())


@pytest.mark.parametrize("count", [1, 3, 40])
def test_one_or_many_values_draw_as_well(count: int) -> None:
    draw(charts.funnel(steps(count)))
    assert len(shapes(charts.bars([Bar("a", 1, 4, "pairs")] * count, "rejects"), "rect")) == 2 * count
    draw(charts.buckets([bucket(1)] * count))
    assert len(shapes(charts.rank_frequency([5] * count), "circle")) == count
    draw(charts.histogram([1] * count, [0] * count, 0, 1, "probability", threshold=0.5))
    draw(charts.precision_recall([Figure("all", 3, 0.9, None)] * count, 0.5))


def test_a_million_entities_make_few_points() -> None:
    chart = charts.rank_frequency([*range(1, 1_000_001)])
    assert len(shapes(chart, "circle")) < 300
    assert len(chart) < 60_000


def test_no_mark_lies_outside_the_chart() -> None:
    """Catches: an axis that ends below the largest value, or a range of no width."""
    for chart in (
        charts.rank_frequency([1]),
        charts.rank_frequency([1000, 1, 1]),
        charts.precision_recall(
            [Figure("a", 9, 1.0, 0.31, 9, 9)], charts.lowest_tenth([Figure("a", 9, 1.0, 0.31, 9, 9)])
        ),
    ):
        height = float(draw(chart).get("height", 0))
        for dot in shapes(chart, "circle"):
            assert 0 <= float(dot.get("cx", "").rstrip("%")) <= 100
            assert 0 <= float(dot.get("cy", "")) <= height


def test_what_is_rare_is_still_seen() -> None:
    first, rare = (
        r
        for r in shapes(
            charts.bars([Bar("many", 10**9, 10**9, "pairs"), Bar("one", 1, 10**9, "pairs")], "rejects"), "rect"
        )
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
        charts.bars([Bar(hostile, 1, 1, hostile)], hostile),
        charts.precision_recall([Figure(hostile, 1, 1, 1)], 0.5),
        charts.funnel([Step(hostile, hostile, hostile, 2, 1, {hostile: 1})]),
    ):
        assert "<script" not in chart
        assert hostile in "".join(draw(chart).itertext())


def test_bars_are_shares_of_a_true_whole() -> None:
    """Catches: the most frequent reason drawn as wide as all rows, and the largest bucket as the whole dataset."""
    chart = charts.bars([Bar("below_bar", 328, 2_999, "pairs"), Bar("no_mention", 207, 3_226, "texts")], "rejects")
    widths = [float(r.get("width", "").rstrip("%")) for r in shapes(chart, "rect") if r.find(f"{SVG}title") is not None]
    assert widths == pytest.approx([100 * 328 / 2_999, 100 * 207 / 3_226], abs=1e-3)
    said = "".join(draw(chart).itertext())
    assert "328 of 2,999 pairs · 10.9 %" in said
    assert "100 %" in said
    rows = shapes(charts.buckets([bucket(1), bucket(3)]), "rect")
    widths = [float(r.get("width", "").rstrip("%")) for r in rows if r.find(f"{SVG}title") is not None]
    assert widths == pytest.approx([25, 25, 75, 75])


def test_an_interval_is_drawn_where_the_count_is_known_and_stays_on_the_axis() -> None:
    known, unknown = Figure("a", 9, 1.0, 0.5, 9, 9), Figure("a", 9, 1.0, 0.5)
    assert charts.lowest_tenth([unknown]) == 0.5
    floor = charts.lowest_tenth([known])
    assert floor == 0.2  # Wilson (1927): 4.5 of 9 is .5, from .24 to .76
    lines = shapes(charts.precision_recall([known], floor), "line")
    assert len(lines) == len(shapes(charts.precision_recall([unknown], floor), "line")) + 2
    for line in lines:
        assert 0 <= float(line.get("x1", "").rstrip("%")) <= float(line.get("x2", "").rstrip("%")) <= 100
    assert "the axis begins at 0.2, not at 0" in charts.precision_recall([known], floor)
    assert "the axis is from 0 to 1" in charts.precision_recall([known], 0.0)


def test_words_at_both_ends_of_a_line_do_not_meet() -> None:
    long = Bar("a_reason_of_many_letters", 264_000_000, 3_286_000_000, "mentions")
    of_line: dict[float, list[str]] = {}
    for text in shapes(charts.bars([long], "rejects"), "text"):
        of_line.setdefault(float(text.get("y", "")), []).append(text.text or "")
    assert all(len(" ".join(words)) <= 46 for words in of_line.values())
