"""Where a name may start and end in scripts that set no blanks between words.

There a name stands inside running text, and no dictionary says where words end: what keeps "Siam" out of "Siamese" in
Latin letters is the blank. What is known of each script stands in for it.

Han         a name may be cut out anywhere. It has two characters at least (`surface.length`), and the longest match
            wins: 北京大学 is no 北京.
Hiragana    writes particles and endings too, so a name of two stands between other scripts; a longer one does not
            begin behind Han, where endings are ("食べるの").
Katakana    a foreign name in a longer run of katakana is a part of a compound from four characters on (ロンドンバス);
            shorter ones are beginnings of other words (インド in インドア, タイ in タイヤ).
Hangul      words have blanks: a name begins with the word, and behind it stands the word's end or a particle; from
            three syllables on anything, as in compounds.
Thai, Lao,  a name is made of whole syllables as far as the script shows them, two of them at least: a vowel before its
Khmer,      consonant, marks above and below it, and a silenced consonant are not torn off.
Myanmar
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from wikidata.inflection import PARTICLES
from wikidata.scripts import Writing, tables

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_PART_OF_KATAKANA = 4
_PART_OF_HANGUL = 3
_PART_OF_HIRAGANA = 3
_PART_OF_STACKED = 3
_SYLLABLES_OF_STACKED = 2
_ACROSS_BLANKS = 4
"""Characters of the shortest name that may have a blank inside among other words: "이 천" is two thousand, 이천 is a
city."""


class Unspaced:
    """A folded batch of texts, of which some are in such scripts.

    points   the characters, without optional blanks
    writing  `Writing` of each
    gap      whether an optional blank stood before it
    """

    def __init__(self, points: npt.NDArray[np.uint32], writing: npt.NDArray[np.uint8], gap: Bools) -> None:
        self.points, self.writing = points, writing
        changes = np.ones(len(points) + 1, dtype=bool)
        changes[1:-1] = writing[1:] != writing[:-1]
        self.changes = changes
        """Of each place between characters: does another script begin there?"""
        self.apart = changes.copy()
        """The same, or a blank stood there."""
        self.apart[:-1] |= gap
        self.gaps = np.concatenate([[0], np.cumsum(gap & (writing > 0) & ~changes[:-1])])
        self.may_part = self._may_part()
        """May a token begin with the character, as far as its neighbours go?"""

    def _may_part(self) -> Bools:
        may_part = np.ones(len(self.points), dtype=bool)
        places = np.flatnonzero((self.writing == Writing.STACKED) | (self.writing == Writing.KATAKANA))
        if not len(places):
            return may_part
        known = tables()

        def of_neighbour(table: Bools, by: int) -> Bools:
            there = places + by
            inside = (there >= 0) & (there < len(self.points))
            points = self.points[np.where(inside, there, 0)]
            return inside & (points < len(table)) & table[np.where(points < len(table), points, 0)]

        leaning = of_neighbour(known.leaning, 0) | of_neighbour(known.leading, -1)
        # A silenced consonant may carry a vowel sign before the one that silences it.
        killed = of_neighbour(known.killing, 1) | of_neighbour(known.leaning, 1) & of_neighbour(known.killing, 2)
        may_part[places] = ~(leaning | killed) | self.changes[places]
        return may_part

    def allowed(self, starts: I64, ends: I64, tokens: I64) -> Bools:
        """Which runs of tokens may be names: first characters, ends behind the last ones, numbers of tokens."""
        first, last = self.writing[starts], self.writing[ends - 1]
        size = ends - starts
        cut_start, cut_end = ~self.apart[starts], ~self.apart[ends]
        cut = cut_start & (first > 0) | cut_end & (last > 0)
        good = ~((self._is(first, Writing.KATAKANA, cut_start) | self._is(last, Writing.KATAKANA, cut_end))
                 & (size < _PART_OF_KATAKANA))  # fmt: skip
        stacked = cut & ((first == Writing.STACKED) | (last == Writing.STACKED))
        good &= ~(stacked & ((size < _PART_OF_STACKED) | (tokens < _SYLLABLES_OF_STACKED)))
        good &= self._hiragana(starts, ends, cut)
        good &= ~self._is(first, Writing.HANGUL, cut_start)
        behind = self._is(last, Writing.HANGUL, cut_end) & (size < _PART_OF_HANGUL)
        if behind.any():
            good[behind] &= self._particle_from(ends[behind])
        inside = self.gaps[ends] - self.gaps[starts + 1] > 0
        among_words = ~self.changes[starts] & (first > 0) | ~self.changes[ends] & (last > 0)
        return good & ~(inside & (cut_start & (first > 0) | (among_words & (size < _ACROSS_BLANKS))))

    @staticmethod
    def _is(writing: npt.NDArray[np.uint8], kind: Writing, cut: Bools) -> Bools:
        return cut & (writing == kind)

    def _hiragana(self, starts: I64, ends: I64, cut: Bools) -> Bools:
        good = np.ones(len(starts), dtype=bool)
        pure = np.flatnonzero(self.writing[starts] == Writing.HIRAGANA)
        if not len(pure):
            return good
        kana = np.concatenate([[0], np.cumsum(self.writing == Writing.HIRAGANA)])
        start, end = starts[pure], ends[pure]
        all_kana = kana[end] - kana[start] == end - start
        behind_han = (start > 0) & (self.writing[start - 1] == Writing.HAN)
        short = (end - start < _PART_OF_HIRAGANA) & cut[pure]
        good[pure] = ~(all_kana & (behind_han | short))
        return good

    def _particle_from(self, ends: I64) -> Bools:
        """Whether a particle, to the end of the word, stands behind each place."""
        particles, longest = _particles()
        word_ends = np.flatnonzero(self.apart)
        rest = word_ends[np.searchsorted(word_ends, ends)] - ends
        good = np.zeros(len(ends), dtype=bool)
        for i in np.flatnonzero(rest <= longest).tolist():
            good[i] = self.points[ends[i] : ends[i] + rest[i]].tobytes() in particles
        return good


@lru_cache(maxsize=1)
def _particles() -> tuple[frozenset[bytes], int]:
    return frozenset(p.encode("utf-32-le") for p in PARTICLES), max(map(len, PARTICLES))
