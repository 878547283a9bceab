"""Words of a batch of texts that may be a name with something written on to it (`wikidata.inflection`)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from i2e_pipeline.extract.substrings import U64, Substrings, continuation, hashes, places_among
from wikidata import inflection
from wikidata.function_words import ALL_FUNCTION_WORDS

I64 = npt.NDArray[np.int64]

FIRST_SIGN = min(map(ord, inflection.SIGNS))
"""Texts without a character from here on have none of these words: English pays for one comparison."""
FIRST_CHARACTER = min(ord(script.first) for script in inflection.SCRIPTS if not script.signs)


class Inflected:
    """Words with a prefix or an ending.

    points, starts, ends   the folded characters, where tokens start and end
    capital                whether a token has a capital, and not because a text begins with it
    signs                  for each token, which of `inflection.SCRIPTS` its text has signs of: a bit for each
    of                     the hashes of the characters

    prefixed, name_from, shown_from   tokens with a prefix, where the name behind it begins, and where the mention does
    stem_ends, bases                  where an ending begins, and how the hash of the stem goes on to be a name's
    """

    def __init__(
        self,
        points: npt.NDArray[np.uint32],
        starts: I64,
        ends: I64,
        capital: npt.NDArray[np.bool_],
        signs: npt.NDArray[np.uint16],
        of: Substrings,
    ) -> None:
        words = np.flatnonzero((points[starts] >= FIRST_CHARACTER) | (signs > 0))
        words = words[~places_among(_function_words(), of(starts[words], ends[words]))[0]]
        prefixed, name_from, shown_from = [_NONE], [_NONE], [_NONE]
        abjad = words[(points[starts[words]] >= _FIRST_ABJAD) & (points[starts[words]] <= _LAST_ABJAD)]
        for prefix in inflection.PREFIXES if len(abjad) else ():
            size = len(prefix.letters)
            letters = ends[abjad] - starts[abjad] - size
            t = abjad[letters + letters // 2 >= prefix.shortest]
            for i, letter in enumerate(prefix.letters):
                t = t[points[starts[t] + i] == ord(letter)]
            prefixed.append(t)
            name_from.append(starts[t] + size)
            shown_from.append(starts[t] + size - prefix.article)
        self.prefixed, self.name_from, self.shown_from = map(np.concatenate, (prefixed, name_from, shown_from))

        tokens, stem_ends, bases = [_NONE], [_NONE], [np.zeros(0, dtype=np.uint64)]
        last = points[ends[words] - 1]
        for place, (script, sums) in enumerate(zip(inflection.SCRIPTS, _base_sums(), strict=True)):
            of_script = (last >= ord(script.first)) & (last <= ord(script.last))
            if script.signs:
                of_script &= (signs[words] >> place) & 1 > 0
            here = words[of_script]
            if not len(here):
                continue
            shortest = np.where(capital[here], inflection.SHORTEST, script.shortest)
            letters = ends[here] - starts[here]
            for ending, base in zip(script.endings, sums, strict=True):
                stem = letters - len(ending.letters)
                name = stem + len(ending.base)
                name = name + name // 2 if script.abjad else name
                t = here[(stem >= inflection.SHORTEST_STEM) & (name >= shortest)]
                for i, letter in enumerate(reversed(ending.letters)):
                    t = t[points[ends[t] - 1 - i] == ord(letter)]
                tokens.append(t)
                stem_ends.append(ends[t] - len(ending.letters))
                bases.append(np.full(len(t), base))
        ended = np.concatenate(tokens)
        order = np.argsort(ended, kind="stable")
        self._ended = ended[order]
        self.stem_ends: I64 = np.concatenate(stem_ends)[order]
        self.bases: U64 = np.concatenate(bases)[order]

    def endings_of(self, last: I64) -> tuple[I64, I64]:
        """(run, ending) for each ending of the last token of each run."""
        left = np.searchsorted(self._ended, last, side="left")
        count = np.searchsorted(self._ended, last, side="right") - left
        run = np.repeat(np.arange(len(last)), count)
        return run, np.arange(len(run)) - np.repeat(np.cumsum(count) - count - left, count)


def signs_of(texts: npt.NDArray[np.uint32], text_starts: I64) -> npt.NDArray[np.uint16]:
    """For each of some texts, one after the other, which of `inflection.SCRIPTS` it has signs of: a bit for each."""
    table = _sign_table()
    found = np.zeros(len(text_starts), dtype=np.uint16)
    places = np.flatnonzero((texts >= FIRST_SIGN) & (texts < len(table)))
    rows = np.searchsorted(text_starts, places, side="right") - 1
    np.bitwise_or.at(found, rows, table[texts[places]])
    return found


@lru_cache(maxsize=1)
def _sign_table() -> npt.NDArray[np.uint16]:
    table = np.zeros(1 + max(map(ord, inflection.SIGNS)), dtype=np.uint16)
    for sign, scripts_of_it in inflection.SIGNS.items():
        table[ord(sign)] = scripts_of_it
    return table


_NONE = np.zeros(0, dtype=np.int64)
_FIRST_ABJAD, _LAST_ABJAD = 0x5D0, 0x6D3


@lru_cache(maxsize=1)
def _function_words() -> U64:
    return np.unique(hashes(sorted(ALL_FUNCTION_WORDS)))


@lru_cache(maxsize=1)
def _base_sums() -> list[list[np.uint64]]:
    return [[continuation(ending.base) for ending in script.endings] for script in inflection.SCRIPTS]
