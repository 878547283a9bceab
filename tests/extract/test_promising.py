"""Which texts the profile "fast" gives to the recognizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2e_pipeline.core.config import Config, ConfigError, ExtractConfig, load
from i2e_pipeline.extract.promising import promising
from i2e_pipeline.extract.stages import Extract, Pairs
from tests.extract.test_gazetteer import gazetteer, surfaces
from tests.extract.test_mentions import Seeing, mentions

PROMISING = [
    "protests in the streets of Kryvyi Rih after heavy rain",  # a run that nothing covers
    "heavy rain over the streets of Zzyzx today",
    "an old church in rural WA",  # two letters are left to the recognizer
    "Anna Blume speaks to reporters about heavy rain",  # at the start: two words
    "altes kleines Haus in Überlingen mit grünem Garten",
]
NOT = [
    "Zzyzx under heavy rain and dark clouds",  # a capital that its place gives
    "Kryvyi Rih After Heavy Rain In The Streets",  # a capital on every word says nothing
    "KRYVYI RIH AFTER HEAVY RAIN",
    "kryvyi rih after heavy rain",
    "New Arrival of the best woollen winter socks",  # common words
    "people on the beach of London near tall buildings",  # found already
    "Vintage Brass Lamp With Shade NX",
    "",
    "北京大学的学生",
    "2 x 4 | 100%",
]


def ask(texts: list[str], found: list[tuple[int, int, int]]) -> list[bool]:
    rows, starts, ends = np.array(found, dtype=np.int64).reshape(-1, 3).T
    answer: list[bool] = promising(texts, rows, starts, ends).tolist()
    return answer


def found(text: str, row: int) -> list[tuple[int, int, int]]:
    at = text.find("London")
    return [(row, at, at + 6)] if at >= 0 else []


@pytest.mark.parametrize("text", PROMISING)
def test_capitals_beside_small_words_promise_a_name(text: str) -> None:
    assert ask([text], []) == [True]


@pytest.mark.parametrize("text", NOT)
def test_nothing_else_does(text: str) -> None:
    assert ask([text], found(text, 0)) == [False]


def test_what_a_match_touches_promises_nothing() -> None:
    text = "heavy rain over the streets of Zzyzx today"
    at = text.find("Zzyzx")
    assert ask([text], [(0, at, at + 5)]) == [False]


def test_texts_do_not_depend_on_their_neighbours() -> None:
    texts = [*NOT, *PROMISING, *NOT]
    matches = [m for row, text in enumerate(texts) for m in found(text, row)]
    assert ask(texts, matches) == [False] * len(NOT) + [True] * len(PROMISING) + [False] * len(NOT)
    assert ask([], []) == []
    assert ask(["", ""], []) == [False, False]


class Counting(Seeing):
    def find(self, texts: list[str]) -> Any:
        self.asked = texts
        return super().find(texts)


def test_the_recognizer_is_given_those_texts_alone_and_spans_stay_where_they_are(tmp_path: Path) -> None:
    names = gazetteer(tmp_path, surfaces("London"))
    texts = ["Zzyzx, London", "two old churches near London in WA", "London", "rain over streets of small Zzyzx"]
    full, _ = mentions(texts, Counting(Zzyzx="LOC", WA="LOC"), names)
    seeing = Counting(Zzyzx="LOC", WA="LOC")
    fast, silent = mentions(texts, seeing, names, profile="fast")
    assert seeing.asked == [texts[1], texts[3]]
    assert [m for m in full if m["source"] == "gazetteer" or m["text_id"][0] in (1, 3)] == fast
    assert [m["surface"] for m in fast] == ["London", "London", "WA", "London", "Zzyzx"]
    assert silent == []


def test_a_profile_makes_mentions_anew_and_the_default_none() -> None:
    def settings(*given: str) -> object:
        return Extract().settings(load(None, ["pairs.path=x", *given]))

    assert "profile" not in ExtractConfig().fingerprint()
    assert settings("extract.profile=full") == settings() != settings("extract.profile=fast")
    pairs = [Pairs().settings(Config(extract=ExtractConfig(profile=p))) for p in ("full", "fast")]  # type: ignore[arg-type]
    assert pairs[0] == pairs[1]


def test_fast_without_the_gazetteer_is_an_error() -> None:
    with pytest.raises(ConfigError, match="profile: fast goes by what the gazetteer finds"):
        load(None, ["extract.profile=fast", "extract.gazetteer=false"])
