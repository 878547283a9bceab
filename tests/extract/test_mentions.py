"""The union of recognizer and gazetteer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from i2e_pipeline.core.schemas import MENTIONS, Reason
from i2e_pipeline.extract.gazetteer import Gazetteer
from i2e_pipeline.extract.mentions import find_mentions
from i2e_pipeline.extract.recognizer import Recognizer, load
from tests.extract.test_gazetteer import gazetteer, surfaces


class Seeing(Recognizer):
    """Recognises the given strings wherever they stand first."""

    def __init__(self, **labels: str) -> None:
        super().__init__(None, "seeing")
        self.labels = {name.replace("_", " "): label for name, label in labels.items()}

    def find(self, texts: list[str]) -> Any:
        found = sorted(
            (row, text.index(name), text.index(name) + len(name), label)
            for row, text in enumerate(texts)
            for name, label in self.labels.items()
            if name in text
        )
        places = np.array([f[:3] for f in found], dtype=np.int64).reshape(-1, 3)
        return places[:, 0], places[:, 1], places[:, 2], [f[3] for f in found]


NOBODY = load("blank")


@pytest.fixture
def names(tmp_path: Path) -> Gazetteer:
    return gazetteer(
        tmp_path, surfaces("banana", "Turkey", "New York", "Senate", "The Hague", "U.S.", "President of Malawi")
    )


def mentions(
    texts: Sequence[str], recognizer: Recognizer, names: Gazetteer | None, max_mentions: int = 32, profile: str = "full"
) -> tuple[list[dict[str, Any]], list[bytes]]:
    batch = pa.RecordBatch.from_arrays(
        [pa.array([bytes([i]) * 16 for i in range(len(texts))], pa.binary()), pa.array(texts, pa.string())],
        names=["text_id", "text"],
    )
    found: list[dict[str, Any]] = []
    silent: list[bytes] = []
    for table, out in find_mentions([batch], recognizer, names, max_mentions, profile):
        if table == "mentions":
            assert out.schema == MENTIONS
            found += out.to_pylist()
        else:
            assert set(out.column("reason").to_pylist()) == {Reason.NO_MENTION}
            silent += out.column("id").to_pylist()
    return found, silent


def short(found: list[dict[str, Any]]) -> list[tuple[str, str, str | None, str]]:
    return [(m["surface"], m["normal_form"], m["label"], m["source"]) for m in found]


def test_what_both_find_is_one_mention(names: Gazetteer) -> None:
    found, _ = mentions(["Turkey and Ataturk"], Seeing(Turkey="LOC", Ataturk="PERSON"), names)
    assert short(found) == [("Turkey", "turkey", "LOC", "both"), ("Ataturk", "ataturk", "PERSON", "ner")]


def test_overlaps_stay_as_alternatives(names: Gazetteer) -> None:
    found, _ = mentions(["President of Malawi"], Seeing(Malawi="LOC"), names)
    assert [m["surface"] for m in found] == ["President of Malawi", "Malawi"]


def test_a_plural_has_the_normal_form_that_the_knowledge_base_holds(names: Gazetteer) -> None:
    found, _ = mentions(["Bananas in YORK"], NOBODY, names)
    assert short(found) == [("Bananas", "banana", None, "gazetteer")]


@pytest.mark.parametrize(
    ("text", "surface", "form"),
    [
        ("seen by the Senate today", "Senate", "senate"),
        ("The Senate today", "Senate", "senate"),
        ("peace in The Hague", "The Hague", "the hague"),
        ("Senate's doors", "Senate", "senate"),
        ("“Senate”,", "Senate", "senate"),
        ("Senateʼs doors", "Senate", "senate"),
        ("`Senate´", "Senate", "senate"),
        ("in the U.S. today", "U.S.", "u.s"),
    ],
)
def test_articles_possessives_and_marks_are_left_outside(names: Gazetteer, text: str, surface: str, form: str) -> None:
    seen = Seeing(the_Senate="ORG", The_Senate="ORG", The_Hague="LOC")
    for recognizer in (seen, Seeing(**{text.replace(" ", "_"): "MISC"}) if text[0] in "“`" else NOBODY):
        found, _ = mentions([text], recognizer, names)
        assert (surface, form) in [(m["surface"], m["normal_form"]) for m in found]
        assert all(m["surface"] == text[m["start"] : m["end"]] for m in found)


def test_common_words_that_only_looked_like_names_are_dropped(names: Gazetteer) -> None:
    found, silent = mentions(["stock photo", "PRICE"], Seeing(photo="ORG", PRICE="ORG"), names)
    assert found == []
    assert len(silent) == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I don't fly, DON’Ts and Don's", ["Don"]),  # contractions; a possessive is none
        ("Jandy TLD-10-2008 and 12-TLD, TLD at NBA-2013", ["TLD", "NBA"]),
        ("malakaindie.tumblr.com tumblr.com", ["tumblr.com"]),
        ("http://example.com/2013/don-fly don fly", ["don", "fly"]),
        ("Sold.By Mr. Smith.Don and WWW.TLD.COM", ["Don"]),  # a lost blank makes no address
        ("I Saw Goody, we can fly, a fly and Saw", ["fly", "Saw"]),
        ("BMW-320i, VOLVO-3", ["VOLVO"]),
    ],
)
def test_what_stands_around_a_name_may_say_that_it_is_none(tmp_path: Path, text: str, found: list[str]) -> None:
    """Pieces of contractions, codes and web addresses, and verbs behind who acts."""
    names = gazetteer(tmp_path, surfaces("Don", "TLD", "NBA", "tumblr.com", "fly", "Saw", "BMW", "VOLVO"))
    assert [m["surface"] for m in mentions([text], NOBODY, names)[0]] == found


def test_stressed_and_counted_words_are_no_names() -> None:
    texts = ["Wrist Regular (RED)", "a flight of 60 minutes", "WE LOOK UP", "collapsed in UP, India"]
    seeing = Seeing(RED="ORG", **{"60_minutes": "TIME"}, UP="LOC", India="LOC")
    found, silent = mentions(texts, seeing, None)
    assert [m["surface"] for m in found] == ["UP", "India"]
    assert len(silent) == 3


def test_every_text_has_mentions_or_is_rejected(names: Gazetteer) -> None:
    texts = ["banana", "", "nothing", "é\u0301", "12", "New York"]
    found, silent = mentions(texts, NOBODY, names)
    assert {m["text_id"] for m in found}.isdisjoint(silent)
    assert len({m["text_id"] for m in found}) + len(silent) == len(texts)


def test_of_too_many_mentions_the_longest_stay_in_their_order(names: Gazetteer) -> None:
    found, _ = mentions(["Turkey banana New York Turkey Turkey"], NOBODY, names, max_mentions=3)
    assert [m["surface"] for m in found] == ["Turkey", "banana", "New York"]


def test_mentions_do_not_depend_on_the_batch(names: Gazetteer) -> None:
    texts = ["Turkey and banana", "New York", "", "the Senate's bananas"]
    seen = Seeing(Senate="ORG", Turkey="LOC")
    together, _ = mentions(texts, seen, names)
    alone = [m | {"text_id": bytes([i]) * 16} for i, t in enumerate(texts) for m in mentions([t], seen, names)[0]]
    assert together == alone


def test_without_a_gazetteer_the_recognizer_stands_alone() -> None:
    found, _ = mentions(["the Senate in Rome"], Seeing(the_Senate="ORG", Rome="LOC"), None)
    assert short(found) == [("Senate", "senate", "ORG", "ner"), ("Rome", "rome", "LOC", "ner")]


def test_an_empty_batch_gives_no_mentions(names: Gazetteer) -> None:
    assert mentions([], NOBODY, names) == ([], [])


def found(texts: Sequence[str], recognizer: Recognizer, names: Gazetteer | None) -> list[tuple[str, str, str | None]]:
    return [(m["surface"], m["normal_form"], m["label"]) for m in mentions(texts, recognizer, names)[0]]


def test_a_place_in_a_place_is_both_places(tmp_path: Path) -> None:
    """Catches: "Laramie, Wyoming" hides Laramie and Wyoming, which are what people mark."""
    names = gazetteer(tmp_path, surfaces("Laramie, Wyoming", "Laramie", "Wyoming", "Washington, D.C.", "Washington"))
    assert found(["snow in Laramie, Wyoming"], NOBODY, names) == [
        ("Laramie", "laramie, wyoming", None), ("Wyoming", "wyoming", None)
    ]  # fmt: skip
    assert found(["in Washington, D.C."], NOBODY, names) == [("Washington, D.C.", "washington, d.c", None)]


def test_first_names_are_nobody_within_a_name(tmp_path: Path) -> None:
    names = gazetteer(tmp_path, surfaces("Thomas", "Gainsborough", kind="given"), surfaces("Anna Karina", "Beaver"))
    seeing = Seeing(Thomas_Gainsborough="PERSON", Anna_Karina="PERSON")
    spans = found(["portrait by Thomas Gainsborough of Anna Karina, and Thomas"], seeing, names)
    assert [s for s, *_ in spans] == ["Thomas Gainsborough", "Gainsborough", "Anna Karina", "Thomas"]
    assert [s for s, *_ in found(["by Thomas Gainsborough"], Seeing(Thomas_Gainsborough="WORK"), names)] == [
        "Thomas", "Thomas Gainsborough", "Gainsborough"
    ]  # fmt: skip
    wholesale = found(["Beaver Wholesale, 30 pieces"], Seeing(Beaver_Wholesale="PERSON"), names)
    assert [s for s, *_ in wholesale] == ["Beaver", "Beaver Wholesale"]


def test_a_title_before_a_name_is_no_mention_of_the_office(tmp_path: Path) -> None:
    names = gazetteer(tmp_path, surfaces("British Prime Minister", "British", "Prime Minister", "President", "Lula"))
    seeing = Seeing(Gordon_Brown="PERSON", Lula="PERSON", Alvor="LOC")
    spans = found(["British Prime Minister Gordon Brown"], seeing, names)
    assert spans == [
        ("British", "british", None),
        ("British Prime Minister Gordon Brown", "gordon brown", "PERSON"),
        ("Gordon Brown", "gordon brown", "PERSON"),
    ]
    both, _ = mentions(["the president Lula"], seeing, names)
    assert short(both) == [("president Lula", "lula", "PERSON", "both"), ("Lula", "lula", "PERSON", "both")]
    for apart in ("Prime Minister, Gordon Brown", "Prime Minister Alvor", "the Prime Minister of Gordon Brown"):
        assert "Prime Minister" in [s for s, *_ in found([apart], seeing, names)]


def test_a_title_before_a_title_is_part_of_the_name(tmp_path: Path) -> None:
    """Catches: a KeyError where the recognizer takes a title for a name."""
    names = gazetteer(tmp_path, surfaces("King", "Prince"))
    spans = found(["King Prince John here"], Seeing(Prince="PERSON", John="PERSON"), names)
    assert {s for s, *_ in spans} == {"King Prince", "Prince John", "John"}


def test_a_recognised_name_ends_where_a_known_one_does(tmp_path: Path) -> None:
    names = gazetteer(tmp_path, surfaces("Peter Falk", "Aung San Suu Kyi"))
    assert found(["the Peter Falk statue"], Seeing(Peter_Falk_statue="WORK"), names) == [
        ("Peter Falk", "peter falk", None)
    ]
    piece = found(["with Aung San Suu Kyi today"], Seeing(Aung_San_Suu="PERSON"), names)
    assert [s for s, *_ in piece] == ["Aung San Suu Kyi"]
