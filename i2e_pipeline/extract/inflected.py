"""Words of a batch of texts that may be a name with something written on to it (`wikidata.inflection`)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

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
        sizes = ends[words] - starts[words]
        prefixes, endings = _prefixes(), _endings()

        abjad = np.flatnonzero((points[starts[words]] >= _FIRST_ABJAD) & (points[starts[words]] <= _LAST_ABJAD))
        found = [(_NONE, _NONE)]
        for size in np.unique(prefixes.size).tolist() if len(abjad) else ():
            t = abjad[sizes[abjad] > size]
            found.append(prefixes.places(t, of(starts[words[t]], starts[words[t]] + size), size))
        which, prefix = map(np.concatenate, zip(*found, strict=True))
        letters = sizes[which] - prefixes.size[prefix]
        long = letters + letters // 2 >= prefixes["shortest"][prefix]
        which, prefix = which[long], prefix[long]
        self.prefixed: I64 = words[which]
        self.name_from: I64 = starts[self.prefixed] + prefixes.size[prefix]
        self.shown_from: I64 = self.name_from - prefixes["article"][prefix]

        found = [(_NONE, _NONE)]
        for size in np.unique(endings.size).tolist():
            t = np.flatnonzero(sizes >= size + inflection.SHORTEST_STEM)
            found.append(endings.places(t, of(ends[words[t]] - size, ends[words[t]]), size))
        which, ending = map(np.concatenate, zip(*found, strict=True))
        letters = sizes[which] - endings.size[ending] + endings["base_size"][ending]
        letters += np.where(endings["abjad"][ending], letters // 2, 0)
        shortest = np.where(capital[words[which]], inflection.SHORTEST, endings["shortest"][ending])
        good = (letters >= shortest) & (endings["signs"][ending] & (signs[words[which]] | _UNSIGNED) > 0)
        which, ending = which[good], ending[good]
        order = np.argsort(which, kind="stable")
        ended, ending = words[which[order]], ending[order]
        self.stem_ends: I64 = ends[ended] - endings.size[ending]
        self.bases: U64 = endings["base"][ending]
        self._count = np.bincount(ended, minlength=len(starts))
        self._first = np.cumsum(self._count) - self._count

    def endings_of(self, last: I64) -> tuple[I64, I64]:
        """(run, ending) for each ending of the last token of each run."""
        count = self._count[last]
        return _expanded(count, self._first[last])


def _expanded(count: I64, first: I64) -> tuple[I64, I64]:
    """(row, place) of `count` places from `first` on for each row."""
    rows = np.repeat(np.arange(len(count)), count)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(count) - count - first, count)


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


_UNSIGNED = np.uint16(inflection.UNSIGNED)


class _Affixes:
    """Letters at one end of a word, sorted by their hash, and what holds of them, by name."""

    def __init__(self, letters: list[str], **columns: list[Any]) -> None:
        keys = hashes(letters)
        order = np.lexsort((np.arange(len(keys)), keys))
        self._keys = keys[order]
        self.size: I64 = np.array([len(x) for x in letters], dtype=np.int64)[order]
        self.columns = {name: np.array(values)[order] for name, values in columns.items()}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def places(self, words: I64, values: U64, size: int) -> tuple[I64, I64]:
        """(word, affix) for each of these words that has one of that size; `values` are the hashes of their letters."""
        left = np.searchsorted(self._keys, values, side="left")
        count = np.searchsorted(self._keys, values, side="right") - left
        which, affix = _expanded(count, left)
        return words[which], affix


@lru_cache(maxsize=1)
def _prefixes() -> _Affixes:
    rows = inflection.PREFIXES
    return _Affixes([p.letters for p in rows], article=[p.article for p in rows], shortest=[p.shortest for p in rows])


@lru_cache(maxsize=1)
def _endings() -> _Affixes:
    rows = [
        (1 << place, script, ending) for place, script in enumerate(inflection.SCRIPTS) for ending in script.endings
    ]
    return _Affixes(
        [ending.letters for _, _, ending in rows],
        signs=[np.uint16(bit) for bit, _, _ in rows],
        shortest=[script.shortest for _, script, _ in rows],
        abjad=[script.abjad for _, script, _ in rows],
        base=[continuation(ending.base) for *_, ending in rows],
        base_size=[len(ending.base) for *_, ending in rows],
    )
