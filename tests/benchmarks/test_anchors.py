"""The benchmark of Wikipedia's pages runs, and its ways do the same work."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import anchors
from tests.wikidata.pages import head
from wikidata.anchors import scan, site_of


def test_all_ways_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    figures = anchors.main(["--megabytes", "0.2", "--parsed", "0.05", "--repeats", "1", "--json", str(out)])
    assert json.loads(out.read_text()) == figures
    assert figures["pages"]["times_bz2"]["bz2"] == 1
    assert set(figures["pages"]["mb_per_cpu_second"]) == {"bz2", "xml", "kernel", "names"}
    assert figures["pages"]["links"] > 300
    assert 0.2 < figures["pages"]["share_running_text"] < 0.9


def test_pages_are_in_the_shape_of_articles() -> None:
    """Catches: text without markup, on which every scanner is fast."""
    site = site_of(head(), "")
    assert site is not None
    text = "".join(anchors.pages(0.1))
    for construct in ("{{Infobox", "<ref>{{cite web", "[[File:", "{|", "[[Category:", "&nbsp;", "<!--", "'''", "]]s"):
        assert construct in text
    plain, links = scan(text, site)
    assert 3 < 1000 * len(links) / len(text) < 10
    assert "{{" not in plain
