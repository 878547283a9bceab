"""What the scripts of the world do that Latin does not: words without blanks between them, marks that may be left out,
letters that are typed in several ways.

`fold` makes one of the spellings of a word that a reader of its script takes for the same, in the texts and in the
names of the knowledge base alike (`surface.normal_form`):

Arabic      without vowel marks, hamza on or under a letter, and tatweel; alef, yeh, kaf and heh in one form each,
            whether typed on an Arabic, Persian or Urdu keyboard; teh marbuta as heh
Hebrew      without points
Greek       without accents, which capitals do not have
Cyrillic    without stress marks; ё as е, its dots being optional in Russian
Devanagari  without nukta; candrabindu and a nasal joined to a stop of its own place as anusvara (प्रिण्टर as प्रिंटर);
            the joined ng of Bengali likewise
digits      of any script as those of ASCII

Simplified and traditional Chinese stay two: which of several traditional characters one simplified stands for is a
matter of whole words, and needs a dictionary. The knowledge base has labels in both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Writing(IntEnum):
    """How a character takes part in words."""

    SPACED = 0
    """Of a script with blanks between words, or of none."""
    HAN = 1
    HIRAGANA = 2
    KATAKANA = 3
    HANGUL = 4
    """Words have blanks between them, but particles are written on to them, and blanks within names are optional."""
    STACKED = 5
    """Thai, Lao, Khmer, Myanmar: no blanks, vowels around their consonant."""


# fmt: off
_WRITINGS = (
    (0x0E01, 0x0E3A, Writing.STACKED), (0x0E40, 0x0E4E, Writing.STACKED), (0x0E81, 0x0ECF, Writing.STACKED),
    (0x0EDC, 0x0EDF, Writing.STACKED), (0x1000, 0x103F, Writing.STACKED), (0x1050, 0x108F, Writing.STACKED),
    (0x1100, 0x11FF, Writing.HANGUL), (0x1780, 0x17D3, Writing.STACKED), (0x17D7, 0x17D7, Writing.STACKED),
    (0x17DC, 0x17DD, Writing.STACKED), (0x3005, 0x3007, Writing.HAN), (0x3041, 0x3096, Writing.HIRAGANA),
    (0x309D, 0x309F, Writing.HIRAGANA),
    (0x30A1, 0x30FA, Writing.KATAKANA), (0x30FC, 0x30FF, Writing.KATAKANA), (0x3105, 0x312F, Writing.HIRAGANA),
    (0x3131, 0x318E, Writing.HANGUL), (0x31F0, 0x31FF, Writing.KATAKANA), (0x3400, 0x4DBF, Writing.HAN),
    (0x4E00, 0x9FFF, Writing.HAN), (0xA960, 0xA97C, Writing.HANGUL), (0xA9E0, 0xA9FE, Writing.STACKED),
    (0xAA60, 0xAA7F, Writing.STACKED), (0xAC00, 0xD7FB, Writing.HANGUL), (0xF900, 0xFAFF, Writing.HAN),
    (0x20000, 0x323AF, Writing.HAN),
)
# fmt: on
_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last, _ in _WRITINGS)
_COMPOSING = "\u0300-\u036f\u3099\u309a"
"""Ranges of marks that become one with the letter before them. A blank before such a mark, of which it was a part,
stays."""
_BLANK_BESIDE = re.compile(f"(?<=[{_UNSPACED}]) (?![{_COMPOSING}])| (?=[{_UNSPACED}])")

_LEANING = frozenset(
    "\u0e2f\u0e30\u0e32\u0e33\u0e45\u0e46\u0eb0\u0eb2\u0eb3\u0ebd\u0ec6\u17d7ァィゥェォッャュョヮヵヶーンん"
)
"""Letters that belong to the one before them, beside the combining marks."""
_LEADING = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4\u17d2\u1039")
"""What belongs to the letter behind it: vowels that are written before their consonant, and signs that stack."""
_KILLERS = frozenset("\u0e4c\u0ecc\u103a\u1039\u17cd\u17d1")
"""The consonant that they stand on has no vowel, and so belongs to the one before it."""


def writing(char: str) -> Writing:
    """How this character is written."""
    point = ord(char)
    return next((kind for first, last, kind in _WRITINGS if first <= point <= last), Writing.SPACED)


class Tables(NamedTuple):
    """What holds of each character of Unicode's first plane."""

    writing: npt.NDArray[np.uint8]
    leaning: npt.NDArray[np.bool_]
    """Does it belong to the one before it?"""
    leading: npt.NDArray[np.bool_]
    """Does it belong to the one behind it?"""
    killing: npt.NDArray[np.bool_]
    """Does it take the vowel of the one that it stands on, so that this belongs to the one before?"""
    capital: npt.NDArray[np.bool_]


@lru_cache(maxsize=1)
def tables() -> Tables:
    """Made once per process."""
    made = Tables(np.zeros(1 << 16, dtype=np.uint8), *(np.zeros(1 << 16, dtype=bool) for _ in range(4)))
    for first, last, kind in _WRITINGS:
        made.writing[first : last + 1] = kind
        if kind == Writing.STACKED:
            made.leaning[[p for p in range(first, last + 1) if unicodedata.category(chr(p))[0] == "M"]] = True
    for table, chars in ((made.leaning, _LEANING), (made.leading, _LEADING), (made.killing, _KILLERS)):
        table[[ord(c) for c in chars]] = True
    made.capital[[p for p in range(1 << 16) if chr(p).isupper()]] = True
    return made


def without_optional_blanks(form: str) -> str:
    """Without the blanks beside characters of scripts that do not set blanks between words, or only some of them:
    "ジョージ ワシントン" is "ジョージワシントン", "조지 워싱턴" is "조지워싱턴"."""
    return _BLANK_BESIDE.sub("", form)


_ARABIC_MARKS = [*range(0x610, 0x61B), *range(0x64B, 0x660), 0x670, *range(0x6D6, 0x6DD), *range(0x6DF, 0x6E5),
                 0x6E7, 0x6E8, *range(0x6EA, 0x6EE), *range(0x8D3, 0x8FF)]  # fmt: skip
_HEBREW_POINTS = [*range(0x591, 0x5BE), 0x5BF, 0x5C1, 0x5C2, 0x5C4, 0x5C5, 0x5C7]
TATWEEL, _NUKTA = 0x640, 0x93C
_LETTERS = {
    "\u0671": "\u0627", "\u0672": "\u0627", "\u0673": "\u0627",  # alef with wasla, with wavy hamza
    "\u0649": "\u064a", "\u06cc": "\u064a", "\u06d0": "\u064a",  # alef maksura, Persian yeh
    "\u06a9": "\u0643", "\u06aa": "\u0643",  # Persian kaf
    "\u0901": "\u0902",  # candrabindu
    "\u0629": "\u0647", "\u06c1": "\u0647", "\u06c3": "\u0647", "\u06d5": "\u0647",  # teh marbuta, Urdu and Kurdish heh
}  # fmt: skip
# fmt: off
_NASALS = {
    0x919: (0x915, 0x918), 0x91E: (0x91A, 0x91D), 0x923: (0x91F, 0x922), 0x928: (0x924, 0x927), 0x92E: (0x92A, 0x92D),
    0x999: (0x995, 0x998),
}
_ZEROS = (0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6, 0xE50, 0xED0,
          0xF20, 0x1040, 0x1090, 0x17E0, 0x1810)
# fmt: on
_FOLDED: Mapping[int, str] = {
    **{ord(a): b for a, b in _LETTERS.items()},
    **dict.fromkeys((*_ARABIC_MARKS, *_HEBREW_POINTS, TATWEEL, _NUKTA), ""),
    **{zero + digit: str(digit) for zero in _ZEROS for digit in range(10)},
}
_MARKED = re.compile("[\u0370-\u052f][^\u0000-\u02ff]*[\u0300-\u036f]")
_STRESSED = frozenset("аеиоуыэюяіїє")


_NASAL = re.compile(
    "|".join(f"{chr(n)}{chr((n & 0xF80) + 0x4D)}(?=[{chr(first)}-{chr(last)}])" for n, (first, last) in _NASALS.items())
)


def joined_nasals(points: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Where, among folded characters, a nasal stands that `fold` makes an anusvara, with the sign behind it that joins
    it to a stop."""
    places = np.flatnonzero((points[:-2] >= min(_NASALS)) & (points[:-2] <= max(_NASALS)))
    good = np.zeros(len(places), dtype=bool)
    for nasal, (first, last) in _NASALS.items():
        stop = points[places + 2]
        joined = points[places + 1] == (nasal & 0xF80) + 0x4D
        good |= (points[places] == nasal) & joined & (stop >= first) & (stop <= last)
    return places[good]


def anusvaras(nasals: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The anusvara of the script of each nasal."""
    return (nasals & np.uint32(0xF80)) + np.uint32(2)


def fold(form: str) -> str:
    """What the module says, of a string after NFKD and case folding."""
    form = form.translate(_FOLDED)
    if _NASAL.search(form):
        form = _NASAL.sub(lambda match: chr((ord(match[0][0]) & 0xF80) + 2), form)
    return _without_optional_marks(form) if _MARKED.search(form) else form


def _without_optional_marks(form: str) -> str:
    kept: list[str] = []
    base = ""
    for char in form:
        if not unicodedata.combining(char):
            base = char
        elif (
            ("\u0370" <= base <= "\u03ff" and "\u0300" <= char <= "\u036f")
            or (base in _STRESSED and char in "\u0300\u0301")
            or (base == "е" and char == "\u0308")
        ):
            continue
        kept.append(char)
    return "".join(kept)


def is_abjad(char: str) -> bool:
    """Is it a letter of a script that leaves most vowels out (Arabic, Hebrew, Syriac)?"""
    return "\u05d0" <= char <= "\u05ea" or "\u0620" <= char <= "\u06d3" or "\u0710" <= char <= "\u072f"
