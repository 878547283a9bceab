from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from i2e_pipeline.evaluate import suite
from i2e_pipeline.evaluate.compare import Difference, Interval
from i2e_pipeline.evaluate.page import _scale, _span, page
from i2e_pipeline.evaluate.results import Data, Model, Result, Results
from tests.evaluate.small_sets import coloured, settings, vectors

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Seen(HTMLParser):
    """Tags with their attributes, as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two encoders on one small set."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("page")
    colours = coloured(folder / "colours")
    far, near = (vectors(folder / n, "colours", colours, noise) for n, noise in (("far", 3.0), ("near", 0.1)))
    config = settings(folder, models=[f"far={far}", f"near={near}"], data={"colours": str(colours)}, projection="tsne")
    suite.evaluate(config)
    return (folder / "out" / "evaluation" / "index.html").read_text(encoding="utf-8")


def test_page_is_one_file_that_fetches_nothing(html: str) -> None:
    seen = Seen(html)
    assert seen.all("img")
    assert all((i["src"] or "").startswith("data:image/jpeg;base64,") for i in seen.all("img"))
    assert not seen.all("link")
    assert [s.get("src") for s in seen.all("script")] == [None]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", html)


def test_contents_lead_somewhere(html: str) -> None:
    seen = Seen(html)
    targets = {(a["href"] or "")[1:] for a in seen.all("a") if (a["href"] or "").startswith("#")}
    assert targets <= {a.get("id") for _, a in seen.tags}


def test_frames_of_the_better_encoder_are_mostly_green(html: str) -> None:
    rows = [part.split("</div>")[0] for part in html.split('<div class="answer">')[1:]]
    far, near = ("".join(rows[n::2]) for n in range(2))
    assert near.count('class="hit right"') > 0.8 * near.count('class="hit ')
    assert far.count('class="hit right"') < 0.5 * far.count('class="hit ')
    assert near.count('class="hit ') == far.count('class="hit ') == 12 * 8


def test_a_plane_for_each_encoder_and_a_verdict(html: str) -> None:
    assert html.count('<svg class="scatter"') == 2
    assert "near is better" in html


def test_every_protocol_is_explained(html: str) -> None:
    explained = html.split('<section id="protocols">')[1].split("</section>")[0]
    for name in ("GPR retrieval", "kNN retrieval", "kNN", "linear probe"):
        assert f"<dt>{name}</dt>" in explained


def of_names(name: str) -> Results:
    result = Result(name, name, "gpr", {"mAP": 0.5}, {"domain": {name: 0.2, "b": 0.3}}, {"mAP": [0.5] * 12})
    other = Result("other", name, "gpr", {"mAP": 0.6}, {}, {"mAP": [0.6] * 12})
    models = (Model(name, name, "f", "model", 4), Model("other", "o", "f", "model", 4))
    return Results(models, (Data(name, "gpr", name, "f", 12, 2, {name: 3}),), (result, other))


def test_names_cannot_break_out_of_the_page() -> None:
    html = page(of_names(HOSTILE))
    assert "<script>alert" not in html
    assert "<img src=x" not in html


def test_a_page_of_figures_alone_has_no_pictures() -> None:
    html = page(of_names("set"))
    assert not Seen(html).all("img")
    assert "<b>60.00</b>" in html


def test_published_figures_stand_in_the_table_with_their_source() -> None:
    result = Result("mine", "gpr1200", "gpr", {"mAP": 0.9}, {}, {})
    data = (Data("gpr1200", "gpr", "/d", "f", 12000, 1200),)
    html = page(Results((Model("mine", "m", "f", "model", 4),), data, (result,)))
    assert "MOFI ViT-H/14 (released) <b>86.75</b>" in html
    assert "arXiv 2306.07952" in html


def test_a_single_encoder_is_compared_with_none() -> None:
    result = Result("mine", "set", "gpr", {"mAP": 0.9}, {}, {"mAP": [0.9] * 12})
    html = page(Results((Model("mine", "m", "f", "model", 4),), (Data("set", "gpr", "/d", "f", 12, 2),), (result,)))
    assert "More than chance" not in html


def test_cards_are_of_every_data_set_and_say_which_model_has_which_figure() -> None:
    models = (Model("trained", "t", "f", "model", 4), Model("untrained", "u", "f", "model", 4))
    rows = [
        Result(m.label, data, protocol, {"mAP": value})
        for data in ("first", "second")
        for protocol in ("gpr", "knn", "linear_probe", "zero_shot")
        for m, value in zip(models, (0.538, 0.133), strict=True)
    ]
    sets = tuple(Data(name, "gpr", "/d", "f", 12, 2) for name in ("first", "second"))
    cards = page(Results(models, sets, tuple(rows))).split('<dl class="headline">')[1].split("</dl>")[0]
    assert re.findall("<dt>(.*?)</dt>", cards) == [
        "first: GPR retrieval, mAP",
        "second: GPR retrieval, mAP",
        "first: kNN, mAP",
        "second: kNN, mAP",
    ]
    assert '<dd class="card best"><span>53.8 %</span> <small>trained</small></dd>' in cards
    assert '<dd class="card"><span>13.3 %</span> <small>untrained</small></dd>' in cards


@pytest.mark.parametrize(("low", "high", "zero"), [(0.1, 0.3, 3.0), (-0.3, -0.1, 97.0), (0.0, 0.0, 50.0)])
def test_intervals_share_a_scale_that_ends_with_them(low: float, high: float, zero: float) -> None:
    """Catches: half of the chart empty where all differences are positive, and nothing at all where all are zero."""
    interval = Interval(low, high, 12)
    difference = Difference("d", "gpr", "mAP", "a", "b", (0.0, (low + high) / 2), interval, 12, "classes")
    drawn = _span(difference, _scale([difference]))
    assert f'x1="{zero:.2f}%"' in drawn
    assert "<circle" in drawn


def test_images_that_were_not_decoded_are_named() -> None:
    data = (Data("set", "gpr", "/d", "f", 12, 2, {"not decoded": 1}, {"bad <1>.png": "broken_image"}),)
    html = page(Results((Model("mine", "m", "f", "model", 4),), data, (Result("mine", "set", "gpr", {"mAP": 0.9}),)))
    assert "bad &lt;1&gt;.png: broken_image" in html


def test_two_pages_of_the_same_results_are_the_same(tmp_path: Path) -> None:
    assert page(of_names("set")) == page(of_names("set"))
