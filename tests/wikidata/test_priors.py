"""p(entity | surface), link probability, the kernel over sorted rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikidata.priors import (
    KINDS,
    NAME_ROWS,
    PriorWeights,
    SurfaceLimits,
    base_link_probability,
    link_probability,
    smoothed,
    surfaces,
    weights,
)
from wikidata.schemas import SURFACES

Row = dict[str, Any]


def row(form: str, entity_id: int, **facts: Any) -> Row:
    base = {"surface": form, "kind": "label", "count": 0, "fame": 0.0, "links": 0}
    return {"normal_form": form, "entity_id": entity_id, **base, **facts}


def run(rows: list[Row], batch_size: int = 1000, **settings: Any) -> list[Row]:
    ordered = sorted(rows, key=lambda r: (r["normal_form"], r["entity_id"]))
    table = pa.Table.from_pylist(ordered, NAME_ROWS)
    out: list[Row] = []
    for batch in surfaces(table.to_batches(max_chunksize=batch_size), **settings):
        assert batch.schema == SURFACES
        out += batch.to_pylist()
    return out


def ids(surface: Row) -> list[int]:
    return [c["entity_id"] for c in surface["candidates"]]


def test_anchors_outweigh_everything_else() -> None:
    (surface,) = run([row("mercury", 308, fame=1.2), row("mercury", 925, kind="alias", count=20, links=20)])
    assert ids(surface) == [925, 308]
    assert surface["candidates"][0]["prior"] > 0.9


def test_without_anchors_fame_and_kind_decide() -> None:
    assert ids(run([row("a b", 1, fame=0.1), row("a b", 2, fame=0.9)])[0]) == [2, 1]
    assert ids(run([row("a b", 1, kind="code"), row("a b", 2, kind="alias")])[0]) == [2, 1]


def test_priors_are_the_documented_formula() -> None:
    (surface,) = run([row("x y", 1, count=3, links=3), row("x y", 2, fame=0.4)])
    w = weights(np.ones(2), np.array([0.0, 0.4]), np.array([3.0, 0.0]))
    assert w.tolist() == [round(1000 * 4**0.75), round(1000 * np.exp(0.4))]
    expected = smoothed([3, 0], [float(x) for x in w])
    assert [c["prior"] for c in surface["candidates"]] == pytest.approx(expected, rel=1e-6)
    assert sum(expected) == pytest.approx(1.0)
    assert smoothed([], []) == []


def test_ties_go_to_the_smaller_id() -> None:
    assert ids(run([row("x y", n) for n in (5, 3, 9)])[0]) == [3, 5, 9]


def test_the_best_kind_of_an_entity_counts_once() -> None:
    (surface,) = run([row("x y", 1, kind="alias"), row("x y", 1, kind="label"), row("x y", 1, kind="alias")])
    assert surface["candidates"] == [{"entity_id": 1, "prior": 1.0, "kind": "label"}]


def test_forms_are_distinct_sorted_and_bounded() -> None:
    rows = [row("x", 1, surface=s) for s in ("X", "x", "X", "x!")]
    (surface,) = run(rows, limits=SurfaceLimits(max_forms=2))
    assert surface["forms"] == ["X", "x"]


def test_at_most_twenty_candidates() -> None:
    (surface,) = run([row("john smith", n, fame=0.1 * n) for n in range(1, 60)])
    assert ids(surface) == list(range(59, 39, -1))


ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from(["a b", "b c", "c d", "x"]),
        st.integers(1, 12),
        kind=st.sampled_from([*KINDS, "unheard of"]),
        count=st.integers(0, 5),
        fame=st.floats(0, 6),
        surface=st.sampled_from(["A", "a", "b"]),
        unlinked=st.none() | st.integers(0, 300),
    ),
    min_size=1,
    max_size=60,
)


@given(ROWS, st.integers(1, 7), st.randoms())
def test_the_result_does_not_depend_on_batches_or_order(rows: list[Row], size: int, shuffler: random.Random) -> None:
    whole = run(rows)
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert run(shuffled, batch_size=size) == whole
    for surface in whole:
        priors = [c["prior"] for c in surface["candidates"]]
        assert priors == sorted(priors, reverse=True)
        assert sum(priors) == pytest.approx(1.0, abs=1e-5)


@given(ROWS, st.integers(1, 5))
def test_folding_a_surface_too_large_to_hold_changes_nothing(rows: list[Row], size: int) -> None:
    """Catches: a name of a million bearers is cut before the best are known."""
    # The facts of an entity are equal in all its rows, as the join makes them.
    facts = {r["entity_id"]: r["fame"] for r in rows}
    for r in rows:
        r["fame"] = facts[r["entity_id"]]
    small = SurfaceLimits(max_candidates=3, max_group_rows=4)
    assert run(rows, size, limits=small) == run(rows, limits=SurfaceLimits(max_candidates=3))


def gazetteer(form: str, **facts: Any) -> bool:
    (surface,) = run([row(form, 1, **facts)])
    assert 0.0 <= surface["link_probability"] <= 1.0
    return bool(surface["gazetteer"])


@pytest.mark.parametrize(
    "form",
    [
        "banana",
        "chair",
        "lotus",
        "soccer ball",
        "turkey",
        "stop sign",
        "rose",
        "golden delicious",
        "t shirt",
        "東京",
        "서울",
        "北京",
    ],
)
def test_names_of_things_pass_the_gate(form: str) -> None:
    assert gazetteer(form)


@pytest.mark.parametrize(
    "form",
    [
        "in",
        "and",
        "by",
        "us",
        "no",
        "the",
        "it",
        "photo",
        "1st",
        "42",
        "x",
        "to be",
        "frees",
        "may",
        "january",
        "北",
        "uk",
    ],
)
def test_words_do_not(form: str) -> None:
    assert not gazetteer(form)


@pytest.mark.parametrize(
    "form",
    ["set of 2", "60 minutes", "120 lumens", "10 years", "1 million", "december 25", "next gen", "vol", "corp", "blow",
     "sealing", "noir", "rojo", "schwarz", "stainless", "staggered"],
)  # fmt: skip
def test_neither_do_counts_abbreviations_verbs_and_colours(form: str) -> None:
    assert not gazetteer(form)


def test_a_number_with_a_capital_is_a_name() -> None:
    assert all(gazetteer(name.lower(), surface=name) for name in ("Area 51", "4th of July", "Boeing 747", "9 to 5"))
    assert gazetteer("500 days of summer")


def test_words_do_not_pass_however_often_someone_linked_them() -> None:
    assert not gazetteer("us", count=500, links=500)
    assert not gazetteer("it", count=500)


def test_what_only_anchors_call_so_in_lower_case_does_not() -> None:
    assert not gazetteer("museum", kind="anchor", count=9)
    assert gazetteer("obama", kind="anchor", count=9, surface="Obama")


def test_codes_and_surnames_need_anchors() -> None:
    assert not gazetteer("nor", kind="code")
    assert not gazetteer("sarli", kind="surname", surface="Sarli")
    assert gazetteer("sarli", kind="surname", surface="Sarli", count=9, links=9)


def test_link_probability_rises_with_anchors_and_stays_in_range() -> None:
    base = base_link_probability("turku", "label", ["Turku"])
    values = [link_probability(base, n) for n in (0, 1, 10, 1000)]
    assert values == sorted(values)
    assert values[0] == base
    assert values[-1] < 1.0
    assert base_link_probability("nba", "label", ["NBA"]) < base_link_probability("nba", "label", ["nba"])


def test_link_probability_is_a_ratio_where_it_is_known_how_often_the_name_is_no_link() -> None:
    """Mihalcea & Csomai's keyphraseness, with the guess as a prior that 5 occurrences are worth."""
    base = base_link_probability("turku", "label", ["Turku"])
    assert link_probability(base, 30, 5.0, 65) == pytest.approx((5 * base + 30) / 100)
    assert link_probability(base, 9, 5.0, 0) == link_probability(base, 9)
    assert link_probability(0.01, 9000, 5.0, 1000) == pytest.approx(0.9, abs=0.01)
    assert link_probability(0.01, 9000) == 0.01
    assert link_probability(0.0, 10**6, 5.0, 0) == 0.0


def test_each_spelling_of_a_name_has_its_occurrences_once() -> None:
    """Catches: a number that stands in every row of a surface is added up over its entities."""
    rows = [
        row("java", 1, surface="Java", count=6, unlinked=40),
        row("java", 2, surface="Java", count=4, unlinked=40, kind="anchor"),
        row("java", 2, surface="java", count=1, unlinked=10, kind="anchor"),
        row("java", 1),
        row("java", 3, surface="JAVA", count=500, kind="anchor"),
    ]
    (surface,) = run(rows)
    base = base_link_probability("java", "label", surface["forms"])
    # The 500 links are of a file that does not say how often the name is no link: not of the same texts.
    assert surface["link_probability"] == pytest.approx((5 * base + 11) / (5 + 11 + 50))


def test_what_texts_hardly_ever_link_passes_no_gate() -> None:
    assert gazetteer("turku", count=9, links=9)
    assert not gazetteer("turku", count=9, links=9, unlinked=2000)
    assert gazetteer("museum", kind="anchor", count=90, unlinked=300)
    assert not gazetteer("it", count=500, unlinked=0)


@pytest.mark.parametrize("setting", [{"popularity": -1}, {"smoothing": 0}])
def test_weights_that_make_no_sense_are_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        PriorWeights(**setting)  # type: ignore[arg-type]


def test_nothing_in_nothing_out() -> None:
    assert list(surfaces([])) == []
    assert list(surfaces([pa.RecordBatch.from_pylist([], NAME_ROWS)])) == []


def test_two_capitals_and_function_words_in_capitals_need_anchors() -> None:
    """Catches: "us" is the United States in every text, or "the UK" is nowhere found."""
    assert base_link_probability("uk", "label", ["UK"]) == base_link_probability("us", "alias", ["US", "us"]) == 0.045
    assert base_link_probability("us", "label", ["us"]) == 0.0
    assert link_probability(0.045, 1) > SurfaceLimits.min_link_probability


@pytest.mark.parametrize("counted", [None, 20])
def test_only_links_in_capitals_speak_for_a_function_word(counted: int | None) -> None:
    """Catches: "Keep calm AND carry on" names Andorra, which has the code AND, because a link somewhere read "and"."""

    def probability(form: str, *anchors: tuple[str, int]) -> float:
        rows = [row(form, 2, surface=surface, kind="anchor", count=n, unlinked=counted) for surface, n in anchors]
        (surface,) = run([row(form, 1, surface=form.upper(), kind="alias"), *rows])
        return float(surface["link_probability"])

    for word in ("and", "it", "who", "aus"):
        assert probability(word, (word, 9), (word.capitalize(), 9)) < 0.05, word
        assert probability(word, (word.upper(), 9), (word, 3)) == probability(word, (word.upper(), 9)) > 0.2, word
    assert probability("uk", ("Uk", 9)) > 0.2, "two letters are no function word"
