"""How often names stand in texts, against a brute-force reading."""

from __future__ import annotations

import re
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.extract import occurrences as module
from i2e_pipeline.extract.gazetteer import MAX_TOKENS, Gazetteer, build_of, findable
from i2e_pipeline.extract.occurrences import OCCURRENCES, occurrences

NAMES = ["a", "a b", "b c", "of", "paris", "new york", "new york city hall", "city", "it"]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Gazetteer:
    folder = tmp_path_factory.mktemp("names")
    about = build_of([NAMES[:3], NAMES[3:], NAMES[:1]], folder / "g")
    assert about["keys"] == len(NAMES)
    return Gazetteer(folder / "g")


def count(names: Gazetteer, *texts: str | None) -> dict[str, int]:
    batches = [pa.record_batch([pa.array([text], pa.string())], ["text"]) for text in texts]
    found: Counter[str] = Counter()
    for batch in occurrences(batches, names):
        assert batch.schema == OCCURRENCES
        found.update(dict(zip(*batch.to_pydict().values(), strict=True)))
    return dict(found)


def test_each_occurrence_counts_once_under_its_spelling(names: Gazetteer) -> None:
    text = "Paris, PARIS and paris's; Parisian | New York City Hall in New York. Paris"
    assert count(names, text, None, "") == {"Paris": 2, "PARIS": 1, "paris": 1, "New York City Hall": 1, "New York": 1}


def test_words_that_no_gazetteer_of_mentions_holds_are_counted(names: Gazetteer) -> None:
    assert count(names, "a city of it") == {"a": 1, "city": 1, "of": 1, "it": 1}
    assert count(names, "cities") == {}


def test_no_name_goes_across_a_break(names: Gazetteer) -> None:
    assert count(names, "new | york and new york") == {"new york": 1}


def test_of_names_that_overlap_the_first_counts_and_of_those_the_longest(names: Gazetteer) -> None:
    assert count(names, "a b c") == {"a b": 1}
    assert count(names, "b c a b") == {"b c": 1, "a b": 1}


@given(st.lists(st.sampled_from(["a", "b", "c", "of", "new", "york", "city", "hall", "|", "x"]), max_size=30))
def test_it_is_what_a_regular_expression_counts(names: Gazetteer, words: list[str]) -> None:
    text = " ".join(words)
    longest = "|".join(sorted(NAMES, key=len, reverse=True))
    assert count(names, text) == dict(Counter(re.findall(rf"\b(?:{longest})\b", text)))


def test_texts_are_matched_in_parts_of_bounded_size(names: Gazetteer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "new york city of paris " * 40
    batch = pa.record_batch([pa.array([text] * 30, pa.string())], ["text"])
    whole = [b.to_pydict() for b in occurrences([batch], names)]
    monkeypatch.setattr(module, "_CHARACTERS", 1000)
    assert [b.to_pydict() for b in occurrences([batch], names)] == whole


def test_names_of_too_many_words_cannot_be_found() -> None:
    assert findable(["a", " ".join("a" * MAX_TOKENS), " ".join("a" * (MAX_TOKENS + 1))]).tolist() == [True, True, False]
    assert findable([]).tolist() == []
