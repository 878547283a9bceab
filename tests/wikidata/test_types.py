"""Coarse types: by roots, by names of classes, by descriptions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikidata.schemas import ENTITIES
from wikidata.types import TYPES, UNKNOWN, Types, class_types, load, name_case, typed

SMALL = load(
    """
person: {visual: 0.7, why: seen, roots: [5], words: human actor}
place: {visual: 0.4, why: views, roots: [10, 11], words: town county river}
film: {visual: 0.1, why: posters, roots: [20], words: film, recognized_as: WORK, proper: true}
"""
)


def codes(*edges: tuple[int, int], more: dict[int, int] | None = None) -> dict[int, str]:
    child, parent = (np.array(side, dtype=np.int64) for side in zip(*edges, strict=True)) if edges else ([], [])
    ids, found = SMALL.of_classes(np.asarray(child, np.int64), np.asarray(parent, np.int64), more)
    assert (np.diff(ids) > 0).all()
    return {int(i): SMALL.names[c] for i, c in zip(ids, found, strict=True)}


def test_a_class_has_the_type_of_the_nearest_root() -> None:
    found = codes((100, 5), (101, 100), (102, 101), (102, 10), (103, 999))
    assert (found[100], found[101], found[102]) == ("person", "person", "place")
    assert 103 not in found


def test_of_two_roots_as_near_the_type_that_stands_first_decides_whatever_the_order() -> None:
    assert codes((100, 20), (100, 5))[100] == codes((100, 5), (100, 20))[100] == "person"


def test_circles_and_repeated_edges_end() -> None:
    found = codes((100, 101), (101, 100), (100, 100), (101, 20), (101, 20), (5, 100))
    assert found == {5: "person", 10: "place", 11: "place", 20: "film", 100: "film", 101: "film"}


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=80))
def test_any_graph_is_walked_to_its_end_in_any_order(edges: list[tuple[int, int]]) -> None:
    found = codes(*edges)
    assert found == codes(*reversed(edges))
    assert {5: "person", 10: "place", 20: "film"}.items() <= found.items()
    below = {child for child, parent in edges if parent in found}
    assert below <= set(found)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1994 studio album by the Cranes", "album"),
        ("2001–2011 American television series", "film"),
        ("American actor (born 1950)", "person"),
        ("species of bird in the family Corvidae", "taxon"),
        ("family of birds", "taxon"),
        ("family of languages", "abstract"),
        ("city, county seat of Smith County, Texas", "settlement"),
        ("county of Ohio", "region"),
        ("railway station in Leeds", "building"),
        ("Granny Smith is a green apple with white, firm pulp", "food"),
        ("East and South East Asian musical percussion instrument", "object"),
        ("ship built in 1974", "vehicle"),
        ("ballgame and team sport", "activity"),
        ("Egyptologist", "person"),
        ("mountain in Peru", "landform"),
        ("china cabinet", "object"),
        ("Japanese manga series", "book"),
        ("home video game console", "object"),
        ("natural satellite of the Earth", "astronomy"),
        ("unincorporated community in Texas", "settlement"),
        ("hot dog", "food"),
        ("smartphone model", "object"),
        ("xyzzy of the plugh", None),
        ("", None),
        (None, None),
    ],
)
def test_a_description_is_headed_by_its_type(text: str | None, wanted: str | None) -> None:
    code = TYPES.of_text(text)
    assert (None if code == UNKNOWN else TYPES.names[code]) == wanted


@given(st.text(max_size=80))
def test_no_description_stops_it(text: str) -> None:
    assert UNKNOWN <= TYPES.of_text(text) < len(TYPES.all)


def item(entity_id: int, **columns: Any) -> dict[str, Any]:
    base = dict.fromkeys(ENTITIES.names) | {"name": f"Q{entity_id}", "name_language": "en", "aliases": [], "types": []}
    base |= {
        "parents": [],
        "sitelinks": 0,
        "statements": 0,
        "name_case": 0,
        "has_image": False,
        "visual": 0.0,
        "is_human": False,
    }
    return base | {"entity_id": entity_id} | columns


def kinds(*items: dict[str, Any]) -> dict[int, tuple[str | None, float]]:
    batch = pa.RecordBatch.from_pylist(list(items), schema=ENTITIES)
    (classes,) = class_types([batch.select(["entity_id", "name", "parents"])], SMALL)
    ids, found = (classes.column(i).to_numpy() for i in range(2))
    (out,) = typed([batch], ids, found, SMALL)
    assert out.schema == ENTITIES
    return {r["entity_id"]: (r["coarse_type"], round(r["visual"], 3)) for r in out.to_pylist()}


def test_an_item_has_the_type_of_its_class_then_of_what_is_above_it_then_of_its_description() -> None:
    found = kinds(
        item(1, types=[100]),
        item(100, name="kind of person", parents=[5]),
        item(2, types=[999, 20]),
        item(3, parents=[11], description="film by X"),
        item(4, description="1974 film by X"),
        item(6, description="no such thing"),
        item(7, types=[101]),
        item(101, name="county of Ohio"),
    )
    assert {i: kind for i, (kind, _) in found.items()} == {
        1: "person", 100: "person", 2: "film", 3: "place", 4: "film", 6: None, 7: "place", 101: "place",
    }  # fmt: skip
    assert found[2][1] == pytest.approx(0.1)
    assert found[6][1] == pytest.approx(round(SMALL.mean_visual, 3))


def test_where_nothing_else_tells_a_name_for_things_does() -> None:
    """The last words of a name say what it is, and what is spelled as a proper name may be a film."""
    rows = [
        item(1, name="Border county"),
        item(2, name="Border County"),
        item(3, name="county line"),
        item(4, name="county", description="1974 film by X"),
        item(5, name="Border county", types=[5]),
        item(6, name="unknown daughter County"),
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=ENTITIES)
    (out,) = typed([batch], np.array([5]), np.array([SMALL.code("person")], np.int8), SMALL)
    assert out.column("coarse_type").to_pylist() == ["place", None, None, "film", "person", None]


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("Howler monkey", "taxon"), ("tomato plant", "taxon"), ("vampire bat", "taxon"), ("kitchen knives", "object"),
        ("teddy bear", "object"), ("Teddy bears", "object"), ("aluminum baseball bat", "object"),
        ("Welsh rabbit", "food"), ("power plant", "building"), ("nuclear power plant", "building"),
        ("night club", "building"), ("computer virus", "software"), ("family tree", "abstract"),
        ("snow man", None), ("rubber band", None), ("golf club", None), ("White house", None), ("tea party", None),
    ],
)  # fmt: skip
def test_a_name_for_things_is_told_by_its_compound_and_is_nothing_with_a_proper_name(
    name: str, type_: str | None
) -> None:
    """Catches: toys and plants that are living beings, and things that are persons, teams or bands."""
    code = TYPES.of_name(name)
    assert (TYPES.names[code] if code != UNKNOWN else None) == type_


def test_a_class_of_things_is_what_stands_above_it_and_not_a_class_of_classes() -> None:
    """Catches: ships and songs that are ideas, because the class "ship" is an instance of one."""
    found = kinds(
        item(1, types=[900], parents=[11]), item(900, name="film of classes"), item(2, types=[1]), item(20, types=[900])
    )
    assert (found[1][0], found[2][0], found[20][0]) == ("place", "place", "film")
    found = kinds(item(20, name="film", types=[10]), item(3, types=[20]))
    assert found[20][0] == found[3][0] == "film"


def test_of_several_classes_most_decide_then_the_first() -> None:
    assert kinds(item(1, types=[20, 10, 11]))[1][0] == "place"
    assert kinds(item(1, types=[20, 10]))[1][0] == "film"
    assert kinds(item(1, types=[10, 20]))[1][0] == "place"


def test_a_name_of_a_class_does_not_outvote_a_root() -> None:
    """Catches: a class by name that is nearer to its subclass than the root is."""
    (classes,) = class_types(
        [pa.record_batch({
            "entity_id": pa.array([100, 101, 102], pa.int64()),
            "name": ["film of something", "zzz", "zzz"],
            "parents": pa.array([[], [100, 102], [11]], pa.list_(pa.int64())),
        })],
        SMALL,
    )  # fmt: skip
    found = dict(zip(classes.column(0).to_pylist(), classes.column(1).to_pylist(), strict=True))
    assert (SMALL.names[found[101]], SMALL.names[found[100]]) == ("place", "film")


def test_every_root_of_the_real_file_keeps_its_own_type() -> None:
    """Catches: a root that a nearer or earlier one takes."""
    ids, found = TYPES.of_classes(np.empty(0, np.int64), np.empty(0, np.int64))
    of = dict(zip(ids.tolist(), found.tolist(), strict=True))
    assert all(of[root] == code for code, type_ in enumerate(TYPES.all) for root in type_.roots)


def test_names_of_classes_hand_their_type_down() -> None:
    found = kinds(item(1, types=[102]), item(102, name="zzz", parents=[101]), item(101, name="county of Ohio"))
    assert {kind for kind, _ in found.values()} == {"place"}


def test_the_spelling_of_a_name_tells_things_from_proper_names() -> None:
    things = ["harp", "Red fox", "golden retriever"]
    proper = ["Red Fox Inn", "Isle of Man", "iPhone", "Battle of the Bulge", "van Gogh", "al-Qaeda", "Osama bin Laden"]
    no_telling = ["Harp", "東京", "Boeing 747"]
    assert name_case(pa.array([*things, *proper, *no_telling])).to_pylist() == [1] * 3 + [-1] * 7 + [0] * 3


def test_a_file_that_contradicts_itself_is_refused() -> None:
    twice = "a: {visual: 0.5, why: b, roots: [5], words: x}\n"
    twice += "b: {visual: 0.5, why: b, roots: [5], words: y}"
    with pytest.raises(ValueError, match="Q5 is a root of a and b"):
        load(twice)
    with pytest.raises(ValueError, match="'x' is a word of a and b"):
        load(twice.replace("[5], words: y", "[6], words: x"))
    with pytest.raises(ValueError, match="visual of a is 1"):
        load("a: {visual: 1.0, why: b, roots: [5], words: x}")


def test_every_type_says_why_and_its_words_head_it() -> None:
    assert isinstance(TYPES, Types)
    for code, type_ in enumerate(TYPES.all):
        assert type_.why
        assert type_.roots
        assert all(TYPES.of_text(word.replace("-", " ")) in (code, *_others(word)) for word in type_.words)


def _others(word: str) -> set[int]:
    """A compound may be cut at a word that ends a phrase ("coat of arms")."""
    return {TYPES.of_text(word.replace("-", " "))} if "-" in word else set()
