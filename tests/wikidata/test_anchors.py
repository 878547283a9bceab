"""Wikitext to links and running text, pages to rows; that no page stops the kernel is a property."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wikidata.lines import batch, instance_of, line
from tests.wikidata.pages import FOOT, head, page
from wikidata import anchors, source_files, wiki_sql
from wikidata.anchors import PAGES, PageReason, Site, scan, sentences, site_of, title
from wikidata.source_files import PAGES as WANTED
from wikidata.source_files import SQL, SourceError, recognised

EN = site_of(head(), "pages.xml")
DE = site_of(head("de"), "pages.xml")
assert EN is not None
assert DE is not None


def links(wikitext: str, site: Site = EN) -> list[tuple[str, str]]:
    return scan(wikitext, site)[1]


def text(wikitext: str, site: Site = EN) -> str:
    return scan(wikitext, site)[0]


@pytest.mark.parametrize(
    ("wikitext", "link"),
    [
        ("[[Paris]]", ("Paris", "Paris")),
        ("[[paris|the city]]", ("the city", "Paris")),
        ("[[ Paris  | the  city ]]", ("the city", "Paris")),
        ("[[bus]]es are", ("buses", "Bus")),
        ("[[Bus|coach]]es", ("coaches", "Bus")),
        ("[[Gott]]<!-- x -->es", ("Gottes", "Gott")),
        ("[[bus]]<nowiki/>es", ("bus", "Bus")),
        ("[[Mercury (planet)|]]", ("Mercury", "Mercury (planet)")),
        ("[[Paris, Texas|]]", ("Paris", "Paris, Texas")),
        ("[[Paris#History|its history]]", ("its history", "Paris")),
        ("[[new_york_City]]", ("new york City", "New york City")),
        ("[[AT&amp;T]]", ("AT&T", "AT&T")),
        ("[[Caf&eacute;]]", ("Café", "Café")),
        ("[[S%C3%A3o Paulo]]", ("São Paulo", "São Paulo")),
        ("[[100% (album)|100%]]", ("100%", "100% (album)")),
        ("[[Paris{{!}}Lutetia]]", ("Lutetia", "Paris")),
        ("[[A|b{{!}}c]]", ("b|c", "A")),
        ("[[Hamlet|''Hamlet'']]", ("Hamlet", "Hamlet")),
        ("[['''x'''|'''''y''''' z]]", ("y z", "'''x'''")),
        ("[[Water|H<sub>2</sub>O]]", ("H2O", "Water")),
        ("[[A|b&nbsp;c &amp; d]]", ("b c & d", "A")),
        ("[[A|[b]]]", ("[b]", "A")),
        ("[[[A]]]", ("A", "A")),
        ("[[Star Trek: Voyager|Voyager]]", ("Voyager", "Star Trek: Voyager")),
        ("[[:Paris]]", ("Paris", "Paris")),
        ("[[ß-Strahl]]en", ("ß-Strahlen", "ß-Strahl")),
        ("[[A\u200e]]", ("A\u200e", "A")),
        ("[[Москва]]а", ("Москваа", "Москва")),
    ],
)
def test_a_link_has_the_text_that_readers_see_and_the_title_that_it_leads_to(
    wikitext: str, link: tuple[str, str]
) -> None:
    assert links(f"He saw {wikitext} there.") == [link]


@pytest.mark.parametrize(
    "wikitext",
    [
        "[[#History|above]]",
        "[[Category:Cities]]",
        "[[ category : Cities|Paris]]",
        "[[:Category:Cities|cities]]",
        "[[de:Paris]]",
        "[[zh-min-nan:Paris]]",
        "[[:de:Paris|Paris]]",
        "[[wikt:city|city]]",
        "[[Talk:Paris|talk]]",
        "[[WP:NPOV]]",
        "[[File:Paris.jpg|thumb|200px]]",
        "[[Image:Paris.jpg]]",
        "[[]]",
        "[[|]]",
        "[[ |x]]",
        "[[A\nB]]",
        "[[A<b>]]",
        "[[A{B}|c]]",
        "[[Paris|{{flag|France}}]]",
        "{{main|[[Paris]]}}",
        "{{a|{{b|[[Paris]]}}|c=[[x]]}}",
        "<ref name=x>[[Paris]]</ref>",
        "<REF>[[Paris]]</REF >",
        "<nowiki>[[Paris]]</nowiki>",
        "<!-- [[Paris]] -->",
        "<!-- [[Paris]]",
        "<math>[[Paris]]</math>",
        "<code>[[Paris]]</code>",
        '<syntaxhighlight lang="lua">[[Paris]]</syntaxhighlight>',
        "<source>[[Paris]]</source>",
        "<pre>[[Paris]]</pre>",
        "\n== [[Paris]] ==\n",
        "[[Paris",
        "Paris]]",
        f"[[{'x' * 256}]]",
    ],
)
def test_what_leads_to_no_article_is_no_link(wikitext: str) -> None:
    assert links(f"He saw {wikitext} there.") == []


def test_captions_hold_links_themselves() -> None:
    wikitext = "x [[File:L.jpg|thumb|200px|alt=Glass|The [[Louvre|Louvre Museum]] in [[Paris]] at night]] y"
    assert scan(wikitext, EN) == ("x | The | in | at night | y", [("Louvre Museum", "Louvre"), ("Paris", "Paris")])
    local = "[[Datei:L.jpg|mini|Der [[Louvre]]]] [[Bild:M.JPG|mini|Ein [[Turm]]]]s [[Kategorie:X]]"
    assert scan(local, DE) == ("Der | Ein | s", [("Louvre", "Louvre"), ("Turm", "Turm")])
    assert text("[[File:L.jpg|thumb|upright=1.2]] after") == "after"


def test_of_links_in_one_another_the_inner_one_is_a_link() -> None:
    assert links("[[A|b [[C]] d]] and [[E]]") == [("C", "C"), ("E", "E")]
    assert links("[[A|b and [[E]]") == [("E", "E")]


def test_what_is_never_closed_hides_nothing() -> None:
    assert links("{{Infobox [[Paris]] and <ref>[[Rome]] {| [[Bonn]]") == [
        ("Paris", "Paris"),
        ("Rome", "Rome"),
        ("Bonn", "Bonn"),
    ]


def test_running_text_has_no_markup_and_no_links() -> None:
    wikitext = (
        "{{Short description|City}}'''Paris''' is the [[capital city|capital]] of France.<ref>Foo [[x]]</ref> It has "
        "2&nbsp;million people &amp; <b>more</b>.\n\n== History ==\n* Lutetia ''was'' here\n# [http://x.org Foo] bar "
        "https://foo.org/a?b=c baz<br/>qux __NOTOC__\n<nowiki>[[raw]]</nowiki> end"
    )
    assert text(wikitext) == (
        "Paris is the | of France. It has 2 million people & more. | Lutetia was here | bar | baz | qux | raw end"
    )


def test_cells_of_tables_are_text_and_their_attributes_are_not() -> None:
    wikitext = (
        '{| class="wikitable sortable"\n|+ Cities\n|-\n! scope="col" | Name !! style="x" | Size\n|- bgcolor=red\n'
        '| rowspan="2" | [[Paris]] || large\n|Rome\n|}\nafter'
    )
    assert scan(wikitext, EN) == ("Cities | Name | Size | large | Rome | after", [("Paris", "Paris")])


def test_captions_of_galleries_are_read() -> None:
    wikitext = "<gallery mode=packed>\nFile:A.jpg|The [[Louvre]]\nB.png\n</gallery>z"
    assert scan(wikitext, EN) == ("The | z", [("Louvre", "Louvre")])


def test_a_link_to_the_page_itself_is_none() -> None:
    assert scan("[[Paris]] and [[Rome]]", EN, "Paris")[1] == [("Rome", "Rome")]


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("iPod", "IPod"),
        ("_a__b_", "A b"),
        ("a#b", "A"),
        ("#b", None),
        ("ßx", "ßx"),
        ("e\u0301a", "Éa"),
        ("a|b", None),
        ("", None),
        ("\x01", None),
    ],
)
def test_titles_are_as_mediawiki_stores_them(written: str, stored: str | None) -> None:
    assert title(written) == stored


def test_the_head_of_a_dump_says_of_which_wiki_it_is() -> None:
    assert (DE.name, DE.language, DE.namespaces["datei"], DE.namespaces["file"]) == ("dewiki", "de", 6, 6)
    by_name = site_of("<page>", "/x/zh_min_nanwiki-20240101-pages-articles.xml.bz2")
    assert by_name is not None
    assert (by_name.name, by_name.language) == ("zh_min_nanwiki", "zh-min-nan")
    assert site_of("<page>", "pages.xml") is None


# --- pages ----------------------------------------------------------------------------------------------------------


def read(*records: str | bytes, **options: int) -> list[dict[str, object]]:
    column = pa.array([r.encode() if isinstance(r, str) else r for r in records], pa.binary())
    rows: list[dict[str, object]] = []
    for found in anchors.read_pages([pa.record_batch([column], ["value"])], EN, **options):
        assert found.schema == PAGES
        rows += found.to_pylist()
    return rows


def records(document: str | bytes) -> list[bytes]:
    whole = document.encode() if isinstance(document, str) else document
    return whole.split(b"</page>")


ARTICLE = page("Paris", "'''Paris''' is in [[France]].")


def test_every_piece_of_a_dump_is_one_row() -> None:
    document = (
        head() + ARTICLE + page("paris, TX", "x", redirect="Paris, Texas") + page("Template:A", "[[x]]", 10)
        + page("X.css", "a{}", model="css") + page("Rose", "May be:\n* [[rose (flower)]]\n{{disambiguation}}")
        + page("Lutetia", "#REDIRECT [[paris#Old]]") + page("Lost", "x", redirect="Category:X") + FOOT
    )  # fmt: skip
    rows = read(*records(document))
    assert [(r["title"], r["reason"], r["redirect"]) for r in rows] == [
        ("Paris", None, None),
        ("Paris, TX", "redirect", "Paris, Texas"),
        ("Template:A", "other_namespace", None),
        ("X.css", "other_model", None),
        ("Rose", "disambiguation", None),
        ("Lutetia", "redirect", "Paris"),
        ("Lost", "redirect", None),
        (None, "frame", None),
    ]
    assert rows[0]["text"] == "Paris is in | ."
    assert rows[0]["links"] == [{"surface": "France", "target": "France"}]
    assert rows[0]["site"] == "enwiki"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (ARTICLE[: ARTICLE.index("</revision>") - 30], PageReason.CUT),
        (ARTICLE[:20], PageReason.CUT),
        (ARTICLE[: ARTICLE.index("Someone")].encode() + b"\xc3", PageReason.CUT),
        (ARTICLE.replace("</title>", "</tilte>").removesuffix("</page>\n"), PageReason.BAD_XML),
        (ARTICLE.replace("France", "&nbsp;").removesuffix("  </page>\n"), PageReason.BAD_XML),
        (ARTICLE.replace("France", "\x00").removesuffix("  </page>\n"), PageReason.BAD_XML),
        (ARTICLE.encode("utf-8").replace(b"France", b"Fran\xe7e").removesuffix(b"  </page>\n"), PageReason.NOT_UTF8),
        (ARTICLE.replace("<title>Paris</title>", "").removesuffix("  </page>\n"), PageReason.NO_TITLE),
        (ARTICLE.replace("<title>Paris", "<title>a|b").removesuffix("  </page>\n"), PageReason.NO_TITLE),
        (ARTICLE.replace("<ns>0</ns>", "").removesuffix("  </page>\n"), PageReason.NO_NAMESPACE),
        (ARTICLE.replace("<ns>0", "<ns>main").removesuffix("  </page>\n"), PageReason.NO_NAMESPACE),
        (page("Paris", "").removesuffix("  </page>\n"), PageReason.NO_TEXT),
        ("<page><title>A</title><ns>0</ns>", PageReason.NO_TEXT),
        (page("Paris", "x" * 3000).removesuffix("  </page>\n"), PageReason.TOO_LONG),
        ("<html><body>404</body></html>", PageReason.BAD_XML),
        (b"\xff\x00\x12 binary", PageReason.BAD_XML),
    ],
)
def test_a_malformed_page_says_why(record: str | bytes, reason: PageReason) -> None:
    (row,) = read(record, max_bytes=3000)
    assert row["reason"] == reason.value
    assert reason.malformed
    assert row["links"] == []
    assert row["detail"] is not None or row["title"] is not None


def test_a_page_behind_a_cut_one_is_read() -> None:
    rows = read(ARTICLE[:120] + ARTICLE.removesuffix("  </page>\n"))
    assert [r["reason"] for r in rows] == ["cut", None]


def test_entities_cannot_be_declared_in_a_page() -> None:
    """Catches: a bomb of entities that expand each other."""
    bomb = '<page><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><title>&b;</title>'
    assert [r["reason"] for r in read(bomb)] == ["cut"]


def test_batches_of_texts_are_bounded() -> None:
    made = [page(f"A{n}", "word " * 100).removesuffix("  </page>\n").encode() for n in range(20)]
    column = pa.record_batch([pa.array(made, pa.binary())], ["value"])
    found = list(anchors.read_pages([column], EN, batch_bytes=1500))
    assert len(found) > 4
    assert [t for b in found for t in b.column("title").to_pylist()] == [f"A{n}" for n in range(20)]


PIECES = (
    "[[", "]]", "{{", "}}", "[", "]", "|", "{|", "|}", "|-", "||", "!!", "''", "'''", "\n", "=", "==", "*", "<ref>",
    "</ref>", "<ref/>", "<nowiki>", "</nowiki>", "<!--", "-->", "<gallery>", "</gallery>", "<math>", "File:", "a.jpg",
    "Category:", ":", "#", "%", "%C3", "&amp;", "&#x0;", "&#10;", "http://", "__TOC__", "{{!}}", "A", "b c", "\u0301",
    "\u200e", "ß", "İ", "東京", "\x01", "\x02", "<", ">", "/", "_",
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40).map("".join))
def test_no_page_stops_the_kernel(wikitext: str) -> None:
    plain, found = scan(wikitext, EN)
    assert "\n" not in plain
    for surface, target in found:
        assert surface == " ".join(surface.split()) != ""
        assert title(target) == target
    pa.array([plain], pa.string())


@given(
    st.lists(st.sampled_from((*PIECES, "\x03", "\x04", "0", "\x05", ". ")) | st.text(max_size=4), max_size=40).map(
        "".join
    )
)
def test_sentences_have_links_of_the_page_where_they_say(wikitext: str) -> None:
    links = scan(wikitext.translate(dict.fromkeys((3, 4, 5))), EN)[1]
    for plain, found in sentences(wikitext, EN):
        assert found
        assert len(plain) <= 300
        for (start, end, target), (following, *_) in zip(found, [*found[1:], (len(plain),)], strict=True):
            assert 0 <= start < end <= following
            assert (plain[start:end], target) in links


def test_sentences_of_a_page_keep_their_links() -> None:
    wikitext = (
        "'''Ghent''' is a [[city]] in [[Belgium|the Kingdom]]. It has [[castle]]s. {{x|[[hidden]]}} Here: nothing.\n"
        "{| class=[[x]]\n|-\n| cell [[Y]]\n|}\n* a list of [[Mercury (planet)|]]\n[[Ghent|Ghent itself]] is no link.\n"
        f"{'long ' * 80}[[too long]]."
    )
    told = [(text, [(text[a:b], t) for a, b, t in found]) for text, found in sentences(wikitext, EN, "Ghent")]
    assert told == [
        ("Ghent is a city in the Kingdom.", [("city", "City"), ("the Kingdom", "Belgium")]),
        ("It has castles.", [("castles", "Castle")]),
        ("cell Y", [("Y", "Y")]),
        ("a list of Mercury", [("Mercury", "Mercury (planet)")]),
    ]


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_record_stops_the_kernel(noise: bytes, at: int) -> None:
    whole = ARTICLE.removesuffix("  </page>\n").encode()
    for record in (noise, b"<page>" + noise, whole[:at] + noise + whole[at:], whole[:at]):
        assert len(read(record)) >= 1


@pytest.mark.parametrize(
    "piece",
    [
        "[[", "]]", "{{", "}}", "[", "[[A|{{", "[[A|", "[[File:a.jpg|", "[[File:a.jpg|[[b]]", "{{x|", "<ref>", "<ref ",
        "<!--", "<nowiki>", "<gallery>\n", "{|\n|", "||", "[http://", "http://", "''", "=", "==\n", "&#", "<a ", " ",
        "\n", "__A", "*", "]]]", "[[a]]b",
    ],
)  # fmt: skip
def test_time_is_in_proportion_to_the_length(piece: str) -> None:
    """Catches: expressions that go back, stacks that are copied: a page of a million open brackets takes hours."""
    small, large = piece * (50_000 // len(piece)), piece * (800_000 // len(piece))

    def seconds(wikitext: str) -> float:
        began = time.process_time()
        scan(wikitext, EN)
        return time.process_time() - began

    # 16 times the text; what grows with its square takes 256 times as long.
    assert seconds(large) < 64 * min(seconds(small) for _ in range(3)) + 0.3


# --- titles and tables ----------------------------------------------------------------------------------------------


def sites(**titles: str) -> dict[str, object]:
    return {"sitelinks": {site: {"site": site, "title": name, "badges": []} for site, name in titles.items()}}


def test_titles_lead_to_items_and_disambiguation_pages_to_none() -> None:
    lines = batch(
        b"[",
        line(90, "Paris", **sites(enwiki="Paris", dewiki="Paris", frwiki="Paris")),
        line(1, "x", **sites(frwiki="X")),
        line(2, "Rose", **sites(enwiki="Rose"), claims=instance_of(4167410)),
        line(3, "broken", sitelinks={"enwiki": {"title": 3}}),
        b"{",
        b"]",
    )
    found = list(anchors.read_titles([lines], ["dewiki", "enwiki"]))
    assert [(t, b.to_pylist()) for t, b in found if t == "titles"] == [
        (
            "titles",
            [
                {"site": "dewiki", "title": "Paris", "entity_id": 90},
                {"site": "enwiki", "title": "Paris", "entity_id": 90},
            ],
        )
    ]
    (counts,) = (b for t, b in found if t == "lines")
    assert dict(zip(*counts.to_pydict().values(), strict=True)) == {
        "bracket": 2, "item": 3, "disambiguation": 1, "not_json": 1
    }  # fmt: skip


def test_tables_are_read_from_sql() -> None:
    pages = b"INSERT INTO `page` VALUES (7,0,'O\\'Neill_\\\"x\\\"','',1,0,0.1),(8,10,'A,(1,2,\\'b','',0),(9,0,'B',1,0);"
    assert list(wiki_sql.rows(pages)) == [
        ("page", 7, 0, 'O\'Neill "x"'),
        ("page", 8, 10, "A,(1,2,'b"),
        ("page", 9, 0, "B"),
    ]
    led = b"INSERT INTO `redirect` VALUES (7,0,'B','',''),(8,0,'C','wikt',''),(9,0,'D',NULL,'x');"
    assert list(wiki_sql.rows(led)) == [("redirect", 7, 0, "B"), ("redirect", 9, 0, "D")]
    assert list(wiki_sql.rows(b"-- MySQL dump")) == []


# --- sources --------------------------------------------------------------------------------------------------------


def test_only_pages_are_taken_for_pages(tmp_path: Path) -> None:
    path = tmp_path / "pages.xml"
    path.write_text(head() + ARTICLE + FOOT)
    assert len(recognised([str(path)], WANTED)) == 1
    for content, what in (
        ("<!doctype html><p>", "an HTML page"),
        ('[\n{"id":"Q1"},\n', "no XML"),
        ("<?xml version='1.0'?><rdf:RDF/>", "no XML"),
        ("-- MySQL dump\nINSERT INTO `page`", "an SQL dump"),
    ):
        path.write_text(content)
        with pytest.raises(SourceError, match=rf"pages\.xml is {what}.*Wanted is Wikipedia's pages as XML"):
            recognised([str(path)], WANTED)
    assert len(recognised([str(path)], SQL)) == 1
    path.write_text(head())
    with pytest.raises(SourceError, match=r"pages\.xml is XML"):
        recognised([str(path)], source_files.DUMP)


@pytest.mark.parametrize("size", [1, 3, 7, 20, 1 << 18])
def test_a_separator_is_found_across_the_pieces_of_a_file(tmp_path: Path, size: int) -> None:
    whole = head() + ARTICLE * 3 + FOOT
    path = tmp_path / "pages.xml"
    path.write_text(whole)
    (source,) = recognised([str(path)], WANTED)
    blocks = list(source_files.blocks(source, size=size, separator=b"</page>"))
    assert b"".join(blocks) == whole.encode()
    assert all(block.endswith(b"</page>") for block in blocks[:-1])
    assert blocks[-1].count(b"</page>") == 0
