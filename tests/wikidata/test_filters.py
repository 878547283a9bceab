"""Which items are dropped, which cannot be seen."""

from __future__ import annotations

import pytest

from wikidata.common_words import COMMON_WORDS, FUNCTION_WORDS
from wikidata.filters import is_human, unwanted
from wikidata.reasons import Reason, Verdict


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ([13442814], Reason.SCHOLARLY_ARTICLE),
        ([4167836], Reason.CATEGORY),
        ([13406463], Reason.LIST),
        ([4167410], Reason.DISAMBIGUATION),
        ([11266439], Reason.TEMPLATE),
        ([202444], Reason.NAME),
        ([5, 101352], Reason.NAME),
        ([5], None),
        ([], None),
    ],
)
def test_unwanted_classes(types: list[int], reason: Reason | None) -> None:
    assert unwanted(types) is reason
    assert unwanted(types, {}) is None


def test_a_person_is_no_figure_of_fiction() -> None:
    assert is_human([1, 5])
    assert not is_human([15632617])


def test_every_reason_has_a_verdict() -> None:
    assert {r.verdict for r in Reason} == set(Verdict)


def test_common_words_are_no_things() -> None:
    things = "banana chair lotus apple orange rose mouse dog cat table watch turkey mercury guitar anchor pizza"
    for word in things.split(" "):
        assert word not in COMMON_WORDS | FUNCTION_WORDS, word
    for word in ("photo", "stock", "the", "with", "vector", "beautiful", "running", "january"):
        assert word in COMMON_WORDS | FUNCTION_WORDS, word
