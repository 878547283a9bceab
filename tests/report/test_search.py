"""Every published entity is found, inside the page or in the folder beside it, and no name can become markup."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.report import search
from i2e_pipeline.report.page import write_page
from tests.report.conftest import Output, entity

HOSTILE = "</script><script>alert(1)</script><!--"
SCHEMA = pa.schema(
    [
        ("entity_id", pa.int64()),
        ("name", pa.string()),
        ("description", pa.string()),
        ("aliases", pa.list_(pa.string())),
        ("images", pa.int64()),
        ("mean_probability", pa.float32()),
        ("mean_clip_score", pa.float32()),
        ("coarse_type", pa.string()),
    ]
)


def row(entity_id: int, name: str, images: int = 1, *aliases: str) -> dict[str, Any]:
    told = {"description": "what it is", "mean_probability": 0.9, "mean_clip_score": 0.3, "coarse_type": "object"}
    return {"entity_id": entity_id, "name": name, "aliases": list(aliases), "images": images, **told}


def made(*rows: dict[str, Any], inline: bool = False) -> search.Search:
    return search.search(pa.Table.from_pylist(list(rows), SCHEMA), 10_000 if inline else 0)


def pages(found: search.Search) -> tuple[list[list[Any]], dict[str, list[list[Any]]]]:
    """Rows of all pages in their order, and those of what begins too many keys."""
    index, rows, tops = json.loads(found.embedded), [], {}
    called = {}
    for name, content in found.files():
        said = content.decode()
        assert said.startswith("entitiesFound(")
        called[name] = json.loads(f"[{said.removeprefix('entitiesFound(').rstrip().removesuffix(')')}]")
    for n in range(len(index["firsts"])):
        name, page = called[f"p{n}.js"]
        assert name == f"p{n}"
        rows += page
    for start, n in index["tops"].items():
        tops[start] = called[f"t{n}.js"][1][start]
    return rows, tops


def test_a_small_dataset_is_searched_inside_the_page() -> None:
    found = made(row(308, "Mercury", 8, "☿", "planet Mercury"), row(5, "none", 0), inline=True)
    assert (found.entities, found.of, found.folder, list(found.files())) == (1, 1, "", [])
    assert json.loads(found.embedded)["rows"] == [
        [308, "Mercury", "what it is", "object", 8, 0.9, 0.3, ["☿", "planet Mercury"]]
    ]


def test_a_large_dataset_is_searched_by_sorted_pages_beside_it() -> None:
    found = made(
        row(308, "Mercury", 8, "Hermes' Stern"), row(23, "George Washington", 9, "Washington"), row(7, "Ärger")
    )
    rows, tops = pages(found)
    # What each key is of: a word of the name, the Q-id (-1), an alias.
    assert [(r[1], r[7]) for r in rows] == [
        ("Ärger", 0),
        ("George Washington", 0),
        ("Mercury", "Hermes' Stern"),
        ("Mercury", 0),
        ("George Washington", -1),
        ("Mercury", -1),
        ("Ärger", -1),
        ("George Washington", 1),
        ("George Washington", "Washington"),
    ]
    assert tops == {}
    assert json.loads(found.embedded)["firsts"] == ["arger"]


def test_rows_that_are_too_many_bytes_for_the_page_lie_beside_it() -> None:
    table = pa.Table.from_pylist([row(1, "a" * 500), row(2, "b")], SCHEMA)
    assert not search.search(table, inline_bytes=2_000).folder
    assert search.search(table, inline_bytes=400).folder


def test_an_entity_without_aliases_is_found_as_well() -> None:
    bare = {**row(5, "human"), "aliases": None, "description": None, "mean_probability": None, "coarse_type": None}
    assert json.loads(made(bare, inline=True).embedded)["rows"] == [[5, "human", "", "", 1, None, 0.3, []]]
    rows, _ = pages(made(bare, row(6, "a", 1, "b")))
    assert [(r[0], r[7]) for r in rows] == [(6, 0), (6, "b"), (5, 0), (5, -1), (6, -1)]


def test_what_begins_very_many_keys_has_the_best_chosen_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a query of one letter that loads every page; namesakes beyond two pages, of which the first are shown
    by chance; an entity listed once for each of its aliases."""
    monkeypatch.setattr(search, "PAGE_KEYS", 5)
    monkeypatch.setattr(search, "SHOWN", 3)
    many = [row(n, "John Smith", n, "Johnny", "John S.") for n in range(1, 31)]
    found = made(*many, row(77, "John", 1))
    index, (rows, tops) = json.loads(found.embedded), pages(found)
    assert [r[0] for r in tops["j"]] == [30, 29, 28]
    # What is typed whole comes first.
    assert [r[0] for r in tops["john"]] == [77, 30, 29]
    assert [r[0] for r in tops["john smith"]] == [30, 29, 28]
    assert "john smith " not in tops
    assert len(rows) == sum(1 for _ in many) * 5 + 2
    # Whatever is not chosen beforehand lies in three pages at most.
    keys = [key for key, _ in _keys(rows)]
    for length in range(1, 12):
        for start, count in Counter(key[:length] for key in keys if len(key) >= length).items():
            assert start in index["tops"] or count <= 10


def _keys(rows: list[list[Any]]) -> list[tuple[str, list[Any]]]:
    found = []
    for r in rows:
        of = r[7]
        text = f"q{r[0]}" if of == -1 else _fold(of) if isinstance(of, str) else " ".join(_fold(r[1]).split(" ")[of:])
        found.append((text, r))
    return found


def _fold(name: str) -> str:
    return search.folded(pa.array([name])).to_pylist()[0]


@given(
    st.lists(
        st.tuples(st.text("abc é-ß☿Ω😀", max_size=8), st.lists(st.text("abé ☿", max_size=4), max_size=3)),
        min_size=1,
        max_size=25,
    )
)
def test_every_key_of_every_entity_lies_in_the_pages_in_order(named: list[tuple[str, list[str]]]) -> None:
    before = search.PAGE_KEYS
    search.PAGE_KEYS = 4
    try:
        found = made(*(row(n + 1, name, n + 1, *aliases) for n, (name, aliases) in enumerate(named)))
        rows, tops = pages(found)
    finally:
        search.PAGE_KEYS = before
    keys = _keys(rows)
    assert [k for k, _ in keys] == sorted(k for k, _ in keys)
    assert json.loads(found.embedded)["firsts"] == [k for k, _ in keys][::4]
    wanted = {(f"q{n + 1}", n + 1) for n in range(len(named))}
    for n, (name, aliases) in enumerate(named):
        wanted |= {(_fold(a), n + 1) for a in aliases}
        words = _fold(name).split(" ")
        wanted |= {(" ".join(words[w:]), n + 1) for w in range(min(len(words), 4))}
    assert {(k, r[0]) for k, r in keys} == {(k, n) for k, n in wanted if k}
    for start, best in tops.items():
        held = {r[0]: k for k, r in reversed(keys) if k.startswith(start)}
        whole = {r[0] for k, r in keys if k == start}
        assert [r[0] for r in best] == sorted(held, key=lambda e: (e not in whole, -e))[: search.SHOWN]


def test_no_name_ends_the_script_that_it_stands_in() -> None:
    for found in (made(row(1, HOSTILE, 1, HOSTILE), inline=True), made(row(1, HOSTILE, 1, HOSTILE))):
        for text in (str(found.embedded), *(content.decode() for _, content in found.files())):
            assert not set("<>&") & set(text)
    assert pages(found)[0][0][1] == HOSTILE


def test_equal_entities_make_equal_files_in_whatever_order_they_are_read() -> None:
    rows = [row(n, f"name {n % 3}", n % 4 + 1, "also") for n in range(1, 40)]
    one, other = made(*rows), made(*rows[::-1])
    assert one == other
    assert dict(one.files()) == dict(other.files())
    assert made(*rows[1:]).folder != one.folder


@pytest.fixture
def many(published: Callable[..., Output], monkeypatch: pytest.MonkeyPatch) -> Output:
    """A dataset that has more entities than the page holds."""
    monkeypatch.setattr(search, "INLINE_BYTES", 0)
    return published()


def test_the_report_of_before_goes_with_its_pages_when_the_new_one_stands(
    many: Output, published: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a page that names a folder which is not there, or is not whole, at any moment of its writing."""
    write_page(many.pipeline)
    folder = many.root / "report_entities"
    [first] = folder.iterdir()
    held = {path.name: path.read_bytes() for path in first.iterdir()}
    assert set(held) == {"p0.js", "whole.js"}
    write_page(many.pipeline)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == held

    published(entities=[entity(89, "apple", 2), entity(434, "pear tree", 1)])
    with monkeypatch.context() as killed:
        killed.setattr(search, "sweep", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            write_page(many.pipeline)
    assert len(list(folder.iterdir())) == 2
    write_page(many.pipeline)
    [second] = folder.iterdir()
    assert second != first
    assert f"report_entities/{second.name}" in (many.root / "report.html").read_text(encoding="utf-8")

    monkeypatch.setattr(search, "INLINE_BYTES", 10_000)
    write_page(many.pipeline)
    assert not folder.exists()


def test_the_page_with_a_folder_says_so(many: Output) -> None:
    html = Path(write_page(many.pipeline)).read_text(encoding="utf-8")
    assert "The folder <code>report_entities</code> belongs to this page" in html
    assert "pear" not in html.split('id="find-index">')[1].split("</script>")[0]


def test_on_a_store_the_pages_are_named_whole_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: pages that a killed upload left halfway, taken for whole by the next report."""
    found, written = made(row(1, "a")), []
    monkeypatch.setattr(search.files, "is_local", lambda _: False)
    monkeypatch.setattr(search.files, "write_bytes", lambda path, content: written.append(path.rsplit("/", 1)[1]))
    search.write(str(tmp_path), found)
    assert written == ["p0.js", "whole.js"]
