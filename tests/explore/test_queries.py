"""What the pages ask: names while typing, lists, filters, and an entity's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.commands.explore import explored
from i2e_pipeline.dataset.place import Place
from i2e_pipeline.explore import queries as asking
from i2e_pipeline.explore.queries import BadFilter, Queries, entity_number
from tests.report.conftest import Output, entity, image


def first(queries: Queries) -> dict[str, Any]:
    entity = queries.entity(queries.entities({}, most=1)["rows"][0]["entity_id"])
    assert entity is not None
    return entity


def test_a_name_an_alias_a_word_within_and_an_id_find_an_entity(queries: Queries) -> None:
    entities = queries.entities({"with": "all"}, most=5000)["rows"]
    with_alias = next(e for row in entities if (e := queries.entity(row["entity_id"])) and e["aliases"])
    words = next(e for e in entities if " " in e["name"])
    for typed, wanted in (
        (with_alias["name"], with_alias),
        (with_alias["name"].upper(), with_alias),
        (with_alias["aliases"][0], with_alias),
        (words["name"].split()[1], words),
        (f"Q{words['entity_id']}", words),
        (f"q{words['entity_id']}", words),
    ):
        assert wanted["entity_id"] in [hit["entity_id"] for hit in queries.hits(typed, 100)], typed


def test_whole_names_come_before_beginnings_and_more_images_before_fewer(queries: Queries) -> None:
    typed = first(queries)["name"][:2]
    hits = queries.hits(typed, 50)
    whole = [hit["name"].casefold() == typed.casefold() for hit in hits]
    assert whole == sorted(whole, reverse=True)
    beginnings = [hit["images"] for hit, is_whole in zip(hits, whole, strict=True) if not is_whole]
    assert beginnings == sorted(beginnings, reverse=True)


@given(st.text(max_size=40))
def test_whatever_is_typed_is_answered(queries: Queries, typed: str) -> None:
    """Catches: quotes, percent signs, NUL and other characters that mean something to a database."""
    assert len(queries.hits(typed)) <= 12
    assert queries.entities({"q": typed, "script": typed, "type": typed, "domain": typed})["total"] >= 0
    assert (
        queries.images({"text": typed, "mention": typed, "unit": typed, "domain": typed, "split": typed})["total"] >= 0
    )


@pytest.mark.parametrize("sort", ["score", "-score", "clip", "-clip", "hash"])
def test_pages_of_an_entitys_images_are_all_of_them_in_order(queries: Queries, sort: str) -> None:
    entity = first(queries)
    asked = {"entity": f"Q{entity['entity_id']}", "sort": sort}
    pages = [queries.images(asked, offset, 7) for offset in range(0, entity["images"] + 7, 7)]
    assert {page["total"] for page in pages} == {entity["images"]}
    rows = [row for page in pages for row in page["rows"]]
    assert len({row["image_id"] for row in rows}) == len(rows) == entity["images"]
    key = {"score": "score", "clip": "clip_score", "hash": "image_id"}[sort.lstrip("-")]
    values = [row[key] for row in rows]
    assert values == sorted(values, reverse=sort in ("score", "clip"))


def test_filters_hold_and_count_what_they_show(queries: Queries) -> None:
    entity = first(queries)
    about = queries.about(entity)
    number = str(entity["entity_id"])
    for name, rows in (("script", about["scripts"]), ("domain", about["domains"]), ("split", about["splits"])):
        row = rows[0]
        found = queries.images({"entity": number, name: row[name]}, most=5000)
        assert found["total"] == row["n"] == len(found["rows"])
        assert {r[name] for r in found["rows"]} == {row[name]}
    surface = about["surfaces"][0]
    assert queries.images({"entity": number, "mention": surface["mention"]})["total"] == surface["n"]
    unit = about["units"][0]
    assert queries.images({"entity": number, "unit": unit["unit"]})["total"] == unit["n"]
    assert sum(b["n"] for b in about["scores"]) == entity["images"] == sum(u["n"] for u in about["units"])
    bound = queries.images({"entity": number, "min_score": "0.9"}, most=5000)
    assert bound["total"] == len(bound["rows"]) > 0
    assert all(r["score"] >= 0.9 for r in bound["rows"])


def test_entities_are_filtered_by_kind_images_script_and_domain(queries: Queries) -> None:
    kind, count = queries.facts["types"][0]
    found = queries.entities({"type": kind, "min_images": "3"}, most=5000)["rows"]
    assert 0 < len(found) <= count
    assert all(e["coarse_type"] == kind and e["images"] >= 3 for e in found)
    domain = queries.facts["domains"][0][0]
    shown = {r["entity_id"] for r in queries.images({"domain": domain.upper()}, most=5000)["rows"]}
    assert {e["entity_id"] for e in queries.entities({"domain": domain}, most=5000)["rows"]} == shown
    assert queries.entities({"with": "all"})["total"] == queries.facts["known_entities"]


def test_namesakes_bear_the_same_name_or_alias(queries: Queries) -> None:
    rows = queries.entities({"with": "all"}, most=5000)["rows"]
    names: dict[str, list[int]] = {}
    for row in rows:
        names.setdefault(row["name"].casefold(), []).append(row["entity_id"])
    shared = next(ids for ids in names.values() if len(ids) > 1)
    entity = queries.entity(shared[0])
    assert entity is not None
    assert set(shared[1:]) <= {e["entity_id"] for e in queries.namesakes(entity)}
    assert shared[0] not in {e["entity_id"] for e in queries.namesakes(entity)}


def test_ids_are_found_by_their_beginning(queries: Queries) -> None:
    image_id = queries.some(1)[0]["image_id"]
    assert queries.ids_beginning(image_id[:12]) == [image_id]
    assert len(queries.ids_beginning("")) == 10


def test_near_duplicates_differ_in_few_bits(queries: Queries) -> None:
    """Against the same count in Python."""
    hashes = {
        str(row["image_id"]).replace("-", ""): [row[f"h{n}"] for n in range(4)]
        for row in queries._rows("SELECT * FROM images WHERE h0 IS NOT NULL")
    }
    asked = next(iter(hashes))
    bits = {i: sum((a ^ b).bit_count() for a, b in zip(h, hashes[asked], strict=True)) for i, h in hashes.items()}
    wanted = {i: n for i, n in bits.items() if n <= 31 and i != asked}
    found = queries.near_duplicates(asked, 1000)
    assert found is not None
    assert {row["image_id"]: row["bits"] for row in found} == wanted


@pytest.mark.parametrize("asked", [{"sort": "size"}, {"min_images": "many"}])
def test_a_filter_that_is_none_is_named(queries: Queries, asked: dict[str, str]) -> None:
    with pytest.raises(BadFilter, match=next(iter(asked))):
        queries.entities(asked)


@pytest.mark.parametrize(("written", "number"), [("Q308", 308), ("q308", 308), (" 308 ", 308)])
def test_an_entity_is_written_with_or_without_q(written: str, number: int) -> None:
    assert entity_number(written) == number


@pytest.mark.parametrize("written", ["", "Q", "Mercury", "Q3; DROP TABLE labels", "9" * 30])
def test_what_is_no_entity_is_refused(written: str) -> None:
    with pytest.raises(BadFilter):
        entity_number(written)


NAMES = (
    "Google+ page", "A$AP Rocky", "\u2605 Star", "Love = Pain", "Notre\u00a0Dame", "\u00c5ngstr\u00f6m", "AC/DC",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",
)  # fmt: skip


@pytest.fixture
def odd(tmp_path: Path) -> Queries:
    """Names with symbols, and a rare exact name behind many that begin so."""
    output = Output(tmp_path / "out")
    entities = [entity(100 + n, name, 1, class_index=n) for n, name in enumerate(NAMES)]
    entities += [entity(5, "Po", 0)]
    output.publish([image(e["name"], (e["entity_id"], e["class_index"], 0.9)) for e in entities[:-1]], entities)
    return explored(Place.of(str(tmp_path / "out")), None, index=str(tmp_path / "index")).queries


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES, 100)))
def test_names_with_symbols_are_found_by_whatever_is_typed_of_them(odd: Queries, number: int, name: str) -> None:
    for typed in (name, name.upper(), name[: len(name) // 2 + 1], name.replace("\u00a0", " ")):
        assert number in [hit["entity_id"] for hit in odd.hits(typed)], typed
    assert odd.hits(str(number))[0]["entity_id"] == number


def test_an_exact_name_is_not_lost_behind_frequent_beginnings(odd: Queries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_MOST_NAMES", 0)
    assert [hit["entity_id"] for hit in odd.hits("po")] == [5]
    assert [hit["entity_id"] for hit in odd.hits("Q5")] == [5]
