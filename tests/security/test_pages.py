"""What comes from outside is no markup of what the pipeline writes: the card, its description for programs, notebooks'
pages. Report, evaluation and explorer have their own tests, in a browser (tests/report, tests/evaluate, tests/explore).
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from i2e_pipeline.core.config import PublishConfig
from i2e_pipeline.core.schemas import IMAGES
from i2e_pipeline.publish.card import card
from i2e_pipeline.publish.croissant import croissant
from tests.publish.test_card import FACTS

HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "![a](https://evil.example/pixel.png)",
    "[a](javascript:alert(3))", "a | b\n| c | d |", "`code`", "**bold** _slanted_ ~~gone~~", "&lt;b&gt; &#60;i&#62;",
    "\\[a](b)", "]: https://evil.example", "a\x1b[2J", "<!-- ", "---\nlicense: mit\n---", "# heading",
)  # fmt: skip


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def rendered(text: str) -> _Tags:
    markdown = pytest.importorskip("markdown")
    tags = _Tags()
    tags.feed(markdown.markdown(text, extensions=["tables", "fenced_code"]))
    return tags


def test_names_and_descriptions_are_no_markup_of_the_card() -> None:
    top: list[dict[str, Any]] = [
        {"entity_id": n, "name": said, "description": said, "images": 10, "mean_clip_score_labelled": 0.25}
        for n, said in enumerate(HOSTILE, 1)
    ]
    plain = [{**row, "name": "name", "description": "description"} for row in top]
    with_hostile, without = (card(FACTS, rows, PublishConfig(), IMAGES) for rows in (top, plain))
    assert "\x1b" not in with_hostile
    fronts = [yaml.safe_load(text.split("---\n", 2)[1]) for text in (with_hostile, without)]
    assert fronts[0] == fronts[1]
    tags, of_plain = (rendered(text.split("---\n", 2)[2]) for text in (with_hostile, without))
    assert tags.found == of_plain.found
    shown = " ".join(tags.text)
    for said in ("<script>alert(1)</script>", "[a](javascript:alert(3))", "a | b | c | d |", "&lt;b&gt;", "`code`"):
        assert said in shown


def test_the_description_for_programs_stays_json() -> None:
    for said in HOSTILE:
        told = croissant(FACTS | {"format_version": 2}, PublishConfig(title=said, license=said), IMAGES)
        assert json.loads(json.dumps(told)) == told
        assert set(told["name"]) - {*"-"} <= {c for c in said if c.isalnum()}


def test_what_a_notebook_prints_is_no_markup_of_its_page(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbconvert")
    from i2e_pipeline.report.notebooks import page

    v4 = nbformat.v4
    cells = []
    for said in HOSTILE:
        cell = v4.new_code_cell(f"print({said!r})", execution_count=1)
        cell.outputs = [
            v4.new_output("stream", name="stdout", text=said),
            v4.new_output("execute_result", data={"text/plain": said}, execution_count=1),
        ]
        cells.append(cell)
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    html = page(tmp_path / "a.ipynb").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "evil.example/pixel.png)" in html
    assert 'src="https://evil' not in html


def test_tables_of_notebooks_escape_what_they_show() -> None:
    """The notebooks show rows as pandas does."""
    pandas = pytest.importorskip("pandas")
    html = pandas.DataFrame({"alt_text": HOSTILE})._repr_html_()
    assert "<script>" not in html
    assert "<img" not in html
