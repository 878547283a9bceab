"""Probabilities of candidates: what they sum to, what moves them, and what is rejected."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core.config import LinkConfig
from i2e_pipeline.core.schemas import CANDIDATES, Reason
from i2e_pipeline.link.candidates import LINK_ROWS
from i2e_pipeline.link.context import Context, build
from i2e_pipeline.link.disambiguate import FEATURES, Flat, Weights, disambiguate, probabilities
from i2e_pipeline.link.fit import fit
from tests.link.test_context import entities

TURKEY, BIRD, ATATURK, FILM, FRUIT = 43, 43794, 5152, 100, 503


def candidate(entity: int, prior: float, inflected: bool = False) -> dict[str, Any]:
    return {"entity_id": entity, "prior": prior, "kind": "label", "inflected": inflected}


def mention(text: str, surface: str, *candidates: dict[str, Any], label: str | None = None) -> dict[str, Any]:
    start = text.index(surface)
    return {
        "start": start, "end": start + len(surface), "surface": surface, "normal_form": surface.lower(), "label": label,
        "source": "both" if label else "gazetteer", "candidates": list(candidates),
    }  # fmt: skip


def row(text: str, *mentions: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return {"text_id": number.to_bytes(16, "big"), "text": text, "mentions": list(mentions)}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("context") / "c"
    filler = [(i, f"thing number{i}") for i in range(200, 300)]
    build(
        [
            entities(
                (TURKEY, "country in Asia and Europe"),
                (FILM, "1971 film by Woody Allen"),
                *filler,
                (FRUIT, "elongated fruit"),
            ),
            entities((ATATURK, "president"), coarse_type="person"),
            entities((BIRD, "large bird, roasted for dinner")),
        ],
        folder,
    )
    return Context(folder)


def links(
    *rows: dict[str, Any], context: Context | None = None, **settings: Any
) -> tuple[dict[tuple[bytes, int], list[dict[str, Any]]], list[dict[str, Any]]]:
    """(candidates by text and start, rejects)"""
    found: dict[tuple[bytes, int], list[dict[str, Any]]] = defaultdict(list)
    refused: list[dict[str, Any]] = []
    batch = pa.RecordBatch.from_pylist(list(rows), schema=LINK_ROWS)
    for table, out in disambiguate([batch], context, LinkConfig.model_validate(settings)):
        if table == "candidates":
            assert out.schema == CANDIDATES
            for link in out.to_pylist():
                found[link["text_id"], link["start"]].append(link)
        else:
            refused += out.to_pylist()
    return found, refused


def order(*rows: dict[str, Any], context: Context | None = None, **settings: Any) -> list[int]:
    """Entities of the first mention, the most probable first."""
    found, _ = links(*rows, context=context, **settings)
    return [link["entity_id"] for link in found[rows[0]["text_id"], rows[0]["mentions"][0]["start"]]]


PLAIN = "Turkey at last"
DINNER = "Turkey roasted for dinner"
TWO = (candidate(TURKEY, 0.6), candidate(BIRD, 0.4))


def test_the_prior_decides_where_the_text_says_nothing(context: Context) -> None:
    assert order(row(PLAIN, mention(PLAIN, "Turkey", *TWO)), context=context) == [TURKEY, BIRD]


def test_words_of_the_description_move_the_choice(context: Context) -> None:
    rows = row(DINNER, mention(DINNER, "Turkey", *TWO))
    assert order(rows, context=context) == [BIRD, TURKEY]
    assert order(rows, context=context, context_weight=0) == [TURKEY, BIRD]
    assert order(rows, context=None) == [TURKEY, BIRD]


def test_another_name_of_the_same_entity_supports_it(context: Context) -> None:
    text = "Turkey or Türkiye"
    both = (candidate(BIRD, 0.55), candidate(TURKEY, 0.45))
    other = mention(text, "Türkiye", candidate(TURKEY, 1.0))
    assert order(row(text, mention(text, "Turkey", *both)), context=context)[0] == BIRD
    assert order(row(text, mention(text, "Turkey", *both), other), context=context)[0] == TURKEY


def test_saying_the_same_name_twice_proves_nothing() -> None:
    text = "Turkey, Turkey"
    again = mention(text, "Turkey", *TWO) | {"start": 8, "end": 14}
    once, _ = links(row(text, mention(text, "Turkey", *TWO)))
    twice, _ = links(row(text, mention(text, "Turkey", *TWO), again))
    assert once[bytes(16), 0] == twice[bytes(16), 0]


def test_a_plural_in_small_letters_is_likelier_the_thing_than_the_film(context: Context) -> None:
    rows = [
        row(t, mention(t, t, candidate(FILM, 1.0), candidate(FRUIT, 1.0, inflected=True)))
        for t in ("Bananas", "bananas")
    ]
    share = [
        {c["entity_id"]: c["probability"] for c in links(r, context=context)[0][bytes(16), 0]}[FRUIT] for r in rows
    ]
    assert share[1] > share[0]


def test_an_entity_found_under_both_forms_counts_once() -> None:
    text = "Bananas"
    found, _ = links(row(text, mention(text, text, candidate(FRUIT, 0.5), candidate(FRUIT, 1.0, inflected=True))))
    assert [c["entity_id"] for c in found[bytes(16), 0]] == [FRUIT]


def test_probabilities_leave_room_for_none_of_these() -> None:
    found, _ = links(row(PLAIN, mention(PLAIN, "Turkey", *TWO)), nil_weight=0.05)
    assert 0.9 < sum(c["probability"] for c in found[bytes(16), 0]) < 1
    found, _ = links(row(PLAIN, mention(PLAIN, "Turkey", *TWO)), nil_weight=0)
    assert sum(c["probability"] for c in found[bytes(16), 0]) == pytest.approx(1)


def test_every_mention_is_linked_or_rejected() -> None:
    text = "Turkey and Nowhere and Somewhere"
    rows = row(
        text,
        mention(text, "Turkey", *TWO),
        mention(text, "Nowhere"),
        mention(text, "Somewhere", candidate(7, 1e-6), candidate(8, 0.0)),
    )
    found, refused = links(rows, row("none", number=1), min_probability=0.01)
    assert set(found) == {(bytes(16), 0)}
    assert [(r["reason"], r["start"], r["detail"]) for r in refused] == [
        (Reason.NO_CANDIDATE, 11, "Nowhere"),
        (Reason.BELOW_FLOOR, 23, "Somewhere"),
    ]
    assert {r["id"] for r in refused} == {bytes(16)}


def test_at_most_max_candidates_stay_ranked_from_one() -> None:
    many = [candidate(i, 1 / 20) for i in range(20)]
    found, _ = links(row(PLAIN, mention(PLAIN, "Turkey", *many)), max_candidates=3)
    kept = found[bytes(16), 0]
    assert [c["rank"] for c in kept] == [1, 2, 3]
    assert [c["entity_id"] for c in kept] == [0, 1, 2]


def test_links_do_not_depend_on_the_batch(context: Context) -> None:
    texts = [PLAIN, DINNER, "Turkey or Türkiye"]
    rows = [row(t, mention(t, "Turkey", *TWO), number=i) for i, t in enumerate(texts)]
    rows.insert(1, row("empty", number=9))
    together, _ = links(*rows, context=context)
    backwards, _ = links(*rows[::-1], context=context)
    alone = {k: v for r in rows for k, v in links(r, context=context)[0].items()}
    assert together == backwards == alone


def test_an_empty_batch_gives_nothing(context: Context) -> None:
    assert links(context=context) == ({}, [])


@given(
    priors=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8),
    surface=st.sampled_from(["Turkey", "turkey", "TURKEY"]),
    label=st.sampled_from([None, "PERSON", "LOC"]),
)
def test_probabilities_are_finite_and_sum_to_less_than_one(
    priors: list[float], surface: str, label: str | None
) -> None:
    """Catches: ln 0, an overflow, or a NaN that later drops rows in silence."""
    many = [candidate(i, p) for i, p in enumerate(priors)]
    found, refused = links(row(surface, mention(surface, surface, *many, label=label)), min_probability=0)
    values = [c["probability"] for c in found[bytes(16), 0]]
    assert len(refused) == 0
    assert np.isfinite(values).all()
    assert sum(values) <= 1 + 1e-6
    assert values == sorted(values, reverse=True)


def test_fit_finds_the_weights_that_made_the_data() -> None:
    random = np.random.default_rng(0)
    true = Weights(prior=1.0, inflected=-2.0, words=0.5, support=1.5, lower_proper=-1.0)
    mentions, each = 4000, 3
    made = np.zeros((mentions * each, len(FEATURES)))
    made[:, FEATURES.index("prior")] = np.log(random.dirichlet(np.ones(each), mentions)).ravel()
    for name in ("inflected", "inflected_lower", "support", "lower_proper"):
        made[:, FEATURES.index(name)] = random.random(len(made)) < 0.3
    made[:, FEATURES.index("words")] = random.exponential(1, len(made))
    flat = Flat(np.repeat(np.arange(mentions), each), np.arange(len(made)), np.ones(len(made), np.float32), made)
    p = probabilities(flat, mentions, LinkConfig.model_validate({"nil_weight": 0.1}), true).reshape(mentions, each)
    draw = random.random(mentions)
    which = (draw[:, None] > p.cumsum(axis=1)).sum(axis=1)
    chosen = np.where(which < each, np.arange(mentions) * each + np.minimum(which, each - 1), -1)
    found, nil = fit(flat, mentions, chosen)
    for name in ("prior", "inflected", "words", "support", "lower_proper"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), abs=0.25), name
    assert nil == pytest.approx(0.1, rel=0.4)


VICTORIA, KEY, BECKHAM, MUSKETEERS, NATIONS, FUJI = 9439, 57783, 10520, 12, 1065, 13


def of_name(entity: int, prior: float, kind: str) -> dict[str, Any]:
    return {**candidate(entity, prior), "kind": kind}


def group_name(form: str, entity: int, prior: float = 1.0) -> dict[str, Any]:
    return {"normal_form": form, "candidates": [{"entity_id": entity, "prior": prior}]}


KEYS_ALONE = (of_name(KEY, 0.9, "given"), of_name(VICTORIA, 0.1, "given"))
SPICE = "David added spice"


def test_a_first_name_is_who_its_group_named_in_full() -> None:
    """Catches: "David and Victoria added spice to their marriage", in the group of a text that names the Beckhams."""
    alone = row(SPICE, mention(SPICE, "David", *KEYS_ALONE))
    assert order(alone) == [KEY, VICTORIA]
    assert order({**alone, "group_names": [group_name("david beckham", BECKHAM)]})[0] == BECKHAM
    assert order({**alone, "group_names": [group_name("duncan jones", BECKHAM)]}) == [KEY, VICTORIA]


def test_a_surname_is_who_stands_before_it_in_full() -> None:
    text = "Angela Merkel, and later Merkel"
    full = mention(text, "Angela Merkel", of_name(567, 1.0, "label"))
    short = mention(text, "Merkel", of_name(1, 0.9, "surname"), of_name(567, 0.1, "surname"))
    later = {**short, "start": len(text) - 6, "end": len(text)}
    found, _ = links(row(text, full, later))
    assert [link["entity_id"] for link in found[bytes(16), later["start"]]] == [567, 1]
    assert links(row(text, full, short))[0][bytes(16), short["start"]][0]["entity_id"] == 1, "within the name itself"
    before = "Roosevelt with Eleanor Roosevelt"
    eleanor = mention(before, "Eleanor Roosevelt", of_name(83396, 1.0, "label"))
    franklin = mention(before, "Roosevelt", of_name(8007, 0.95, "surname"), of_name(83396, 0.05, "surname"))
    assert links(row(before, franklin, eleanor))[0][bytes(16), 0][0]["entity_id"] == 8007


def test_capitals_are_the_initials_of_what_stands_before_them(context: Context) -> None:
    text = "Flags at the United Nations (UN) and un"
    full, initials = mention(text, "United Nations", of_name(NATIONS, 1.0, "label")), mention(text, "UN")
    small = {**mention(text, "un"), "start": len(text) - 2, "end": len(text)}
    found, refused = links(row(text, full, initials, small), context=context)
    assert [link["entity_id"] for link in found[bytes(16), initials["start"]]] == [NATIONS]
    assert [r["start"] for r in refused] == [small["start"]]


def test_parts_of_things_name_nothing_new(context: Context) -> None:
    """Catches: an apple is a Fuji apple in every text that has one, and Wyoming is Laramie."""
    text = "Fuji Apple and an Apple"
    fuji = mention(text, "Fuji Apple", of_name(FRUIT, 1.0, "label"))
    apple = {**mention(text, "Apple", of_name(89, 1.0, "label")), "start": len(text) - 5, "end": len(text)}
    found, _ = links(row(text, fuji, apple), context=context)
    assert [link["entity_id"] for link in found[bytes(16), apple["start"]]] == [89]


def test_a_longer_name_that_can_be_nobody_says_nothing() -> None:
    """Catches: 0 of 0 as a share, and with it links without a probability."""
    alone = row(SPICE, mention(SPICE, "David", *KEYS_ALONE))
    nobody = {**alone, "group_names": [group_name("david beckham", BECKHAM, 0.0)]}
    assert links(nobody) == links(alone)
    somebody = {**alone, "group_names": [*nobody["group_names"], group_name("david bowie", BECKHAM + 1)]}
    found, _ = links(somebody)
    assert found[bytes(16), 0][0]["entity_id"] == BECKHAM + 1
    assert all(np.isfinite(link["probability"]) for link in found[bytes(16), 0])


def test_links_of_a_group_do_not_depend_on_the_batch() -> None:
    alone = row(SPICE, mention(SPICE, "David", *KEYS_ALONE))
    grouped = {**alone, "group_names": [group_name("david beckham", BECKHAM)], "text_id": b"g" * 16}
    both, _ = links(alone, grouped)
    assert both[b"g" * 16, 0] == links(grouped)[0][b"g" * 16, 0]
    assert both[bytes(16), 0] == links(alone)[0][bytes(16), 0]
