"""Which texts promise a name that the gazetteer did not find, so that a recognizer may be worth its time there?

Of alt-text a recognizer takes twenty times what the gazetteer takes, and adds one link in thirty. Most alt-texts are
titles or lists, in one case or with a capital on every word, where a capital tells nothing. Where small words of
meaning stand beside them, a run of capitalised words that no match touches and that are no common words is likely a
name, and so are two capital letters, which the gazetteer leaves to the recognizer (`gazetteer.MIN_LENGTH`). A capital
alone at a text's start is none of these. benchmarks/extract.py says what this saves and what it costs.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from i2e_pipeline.extract.substrings import Substrings, code_points, hashes, places_among
from wikidata.common_words import COMMON_WORDS
from wikidata.function_words import ALL_FUNCTION_WORDS

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SMALL_WORDS = 3
"""Words of meaning in small letters that a text must have, so that a capital makes a name."""
SMALL_WORDS_BESIDE_TWO_LETTERS = 1
LONGEST_RUN = 4
"""More capitalised words in a row are a title."""

_OTHER, _SMALL, _CAPITAL = 0, 1, 2
_JOINTS = np.array([ord(char) for char in " -.'’&"], dtype=np.uint32)


@lru_cache(maxsize=1)
def _letters() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Of each character of Unicode's first plane: no letter, a small or caseless one, a capital; and its small letter
    (itself, where that is none or several)."""
    kinds, small = np.zeros(1 << 16, dtype=np.uint8), np.arange(1 << 16, dtype=np.uint32)
    for point in range(1 << 16):
        char = chr(point)
        if char.isalpha():
            kinds[point] = _CAPITAL if char.isupper() else _SMALL
            if len(lower := char.lower()) == 1:
                small[point] = min(ord(lower), 0xFFFF)
    return kinds, small


@lru_cache(maxsize=1)
def _words() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Hashes, sorted, of function words, and of all that names nothing by itself."""
    function = np.unique(hashes(sorted(ALL_FUNCTION_WORDS)))
    return function, np.unique(hashes(sorted(ALL_FUNCTION_WORDS | COMMON_WORDS)))


def promising(texts: list[str], rows: I64, starts: I64, ends: I64) -> Bools:
    """Whether each text promises a name beside what is found in it.

    rows, starts, ends   the matches of the gazetteer, in characters
    The answer for a text depends on it and its matches alone.
    """
    promise = np.zeros(len(texts), dtype=bool)
    original = code_points(texts, "\n")
    if not len(original):
        return promise
    kinds, small = _letters()
    points = np.minimum(original, 0xFFFF)
    kind = kinds[points]
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    text_starts = np.cumsum(lengths + 1) - (lengths + 1)

    letter = np.zeros(len(kind) + 2, dtype=np.int8)
    letter[1:-1] = kind > _OTHER
    edges = np.diff(letter)
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if not len(first):
        return promise
    of_text = np.searchsorted(text_starts, first, side="right") - 1

    found = np.zeros(len(kind) + 1, dtype=np.int64)
    np.add.at(found, text_starts[rows] + starts, 1)
    np.add.at(found, text_starts[rows] + ends, -1)
    touched = _count(np.cumsum(found[:-1]) > 0, first, last) > 0
    capital = kind[first] == _CAPITAL
    capitals = _count(kind == _CAPITAL, first, last)
    words = Substrings(small[points])(first, last)
    function, common = _words()
    has_meaning = ~places_among(function, words)[0]
    may_name = ~touched & ~places_among(common, words)[0]

    beside = np.bincount(of_text[~capital & has_meaning], minlength=len(texts))
    two_letters = ~touched & (capitals == 2) & (last - first == 2)
    promise[of_text[two_letters]] = True
    promise &= beside >= SMALL_WORDS_BESIDE_TWO_LETTERS

    goes_on = np.zeros(len(first), dtype=bool)
    goes_on[1:] = capital[1:] & capital[:-1] & (first[1:] == last[:-1] + 1) & np.isin(original[last[:-1]], _JOINTS)
    begins = np.flatnonzero(~goes_on)
    size = np.diff(np.append(begins, len(first)))
    opens = np.ones(len(begins), dtype=bool)
    opens[1:] = of_text[begins[1:]] != of_text[begins[1:] - 1]
    name = capital[begins] & np.logical_and.reduceat(may_name, begins)
    name &= (size <= LONGEST_RUN) & ((size > 1) | ~opens)
    named = np.zeros(len(texts), dtype=bool)
    named[of_text[begins[name]]] = True
    return promise | (named & (beside >= SMALL_WORDS))


def _count(of: Bools, starts: I64, ends: I64) -> I64:
    sums = np.concatenate([[0], np.cumsum(of)])
    return sums[ends] - sums[starts]
