"""Names of the knowledge base, found in running text.

Reads    kb/surfaces, once, to build the file
Writes   kb/gazetteer: a folder of flat arrays, memory-mapped by every worker of a machine together

A name matches where a run of whole words has its normal form, or the normal form of its plural or singular. Scripts
that set no blanks between words have rules of their own for where a name may be cut out (boundaries.py), and where a
language writes endings, articles or prepositions on to a name it is found under them (inflected.py).

The file does not hold the names but their 64-bit hashes, and hashes of their beginnings. With these a dozen array
operations match a batch of texts: one cumulative sum gives the hash of any run of words (a polynomial hash modulo
2^64), runs grow word by word only while they are the beginning of some name, and a bitmap spares most of the searches.

Per name this costs 25 bytes on disk, once per machine, and 270 while 0.4 M names are built. A double-array automaton of
the same names costs 159 bytes in every worker and 1,500 while it is built, and it finds no plurals; both match about as
fast (0.94 to 1.16; benchmarks/extract.py). A run of words that is no name has the hash of one with the probability
names / 2^64, some 5e-13. The link stage then looks it up by its text and finds nothing.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.arrays import Arrays, new
from i2e_pipeline.extract.boundaries import Unspaced
from i2e_pipeline.extract.inflected import FIRST_CHARACTER, FIRST_SIGN, Inflected, signs_of
from i2e_pipeline.extract.substrings import Substrings, code_points, hashes, places_among
from wikidata import scripts
from wikidata.common_words import COMMON_WORDS
from wikidata.function_words import ALL_FUNCTION_WORDS
from wikidata.priors import PARTS
from wikidata.schemas import SURFACES
from wikidata.scripts import TATWEEL
from wikidata.surface import LEADING, inflections, length, normal_form

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

FORMAT = 4
_HEADER = "gazetteer"
MAX_TOKENS = 32
"""Longest name in tokens: words, punctuation marks, and in scripts without blanks syllables."""
MIN_LENGTH = 3
"""Shorter names, as `surface.length` counts, are left to the recognizer."""
SPELLED_KINDS = PARTS
"""A name that is only of these kinds matches only as it is spelled, with its capital, in a text where capitals mean
something: one that also has a longer word in small letters."""

_CHUNK = 1024
"""Texts matched together: large enough for array operations, small enough to stay in the cache."""
_CASELESS, _INFLECTED, _EXACT = 1, 2, 4
# Their order: of equal keys a name that matches in any case wins, then an inflection of one.
_PERSONAL = 8
# Beside one of them: hardly more than people are known by it, by a part of their names.
_OF_PEOPLE = pa.array(["surname", "part", "given"])
_MAY_BE_OF_PEOPLE = pa.array(["surname", "part", "given", "anchor", "short"])
_OTHERS = 0.2
"""Share of what a name means by which it is more than a part of people's names: "Beaver" is an animal first."""


# --- text as the matcher sees it ----------------------------------------------------------------------------------

_BLANK, _WORD, _MARK = 0, 1, 2  # and behind them the kinds of `scripts.Writing` that set no blanks


def _fold(char: str) -> str:
    """What `normal_form` makes of a character, or of some that belong together, inside a name: nothing, one character
    or several. No mark joins the Georgian letters beside it, and they have blanks between words."""
    return normal_form(f"\u10d0{char}\u10d0")[1:-1]


@lru_cache(maxsize=1)
def _joining() -> frozenset[int]:
    """Characters that may become one with the character before them: accents, the marks of half-width katakana, jamo.
    What both are together is more than what each is alone."""
    pairs = (unicodedata.decomposition(chr(point)).split() for point in range(0x12000))
    seconds = {int(parts[1], 16) for parts in pairs if len(parts) == 2 and not parts[0].startswith("<")}
    return frozenset({*seconds, *range(0x1160, 0x1200), 0xFF9E, 0xFF9F, *range(0xFFA0, 0xFFDD)})


def _class(char: str) -> int:
    if char == " ":
        return _BLANK
    if unspaced := scripts.writing(char):
        return _MARK + unspaced
    return _WORD if unicodedata.category(char)[0] in "LMN" else _MARK


@lru_cache(maxsize=1)
def _tables() -> tuple[
    npt.NDArray[np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.bool_]
]:
    """Of each character of Unicode's first plane: the first character that it folds to, to how many it folds, its
    class, whether it may join the character before it, and whether it is a mark on it."""
    folded, count = np.arange(1 << 16, dtype=np.uint32), np.ones(1 << 16, dtype=np.uint8)
    kinds, joins = np.full(1 << 16, _MARK, dtype=np.uint8), np.zeros(1 << 16, dtype=bool)
    joins[[point for point in _joining() if point < 1 << 16]] = True
    writings = scripts.tables().writing
    for point in range(1 << 16):
        if 0xD800 <= point < 0xE000:
            continue
        char = chr(point)
        kinds[point] = _MARK + writings[point] if writings[point] else _class(char)
        # Ideographs and Hangul syllables, half of the plane, fold to themselves.
        if 0x3400 <= point < 0x9FFF or 0xAC00 <= point < 0xD7A4:
            continue
        form = _fold(char)
        folded[point] = ord(form[0]) if form else 0
        count[point] = len(form)
    marks = np.array([unicodedata.category(chr(p))[0] == "M" or p == TATWEEL for p in range(1 << 16)])
    return folded, count, kinds, joins, marks


_folded = lru_cache(maxsize=1 << 16)(_fold)


class _Folded:
    """A batch of texts, folded: characters, from where to where each was made of, and their tokens."""

    def __init__(self, texts: list[str]) -> None:
        table, kinds, marks = _tables()[0], _tables()[2], _tables()[4]
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        self.original = code_points(texts, "\n")
        self.text_starts = np.cumsum(lengths + 1) - (lengths + 1)
        self._marks: I64 = np.zeros(0, dtype=np.int64)
        breaks = self.text_starts[1:] - 1
        if self.original.max(initial=0) < 0x80:  # each character of ASCII folds to one
            folded = table[self.original]
            folded[breaks] = 0
            origin = np.arange(len(folded))
            until = origin + 1
        else:
            folded, origin, until = self._fold(breaks)
        blank = (folded == 32) | (folded == 0)
        surplus = np.zeros(len(folded), dtype=bool)
        surplus[1:] = (folded[1:] == 32) & blank[:-1]
        if surplus.any():
            origin = origin[~surplus]
            folded = folded[~surplus]
        if len(folded) and folded.max() > 0x900 and len(nasals := scripts.joined_nasals(folded)):
            until[origin[nasals]] = until[origin[nasals + 1]]
            folded[nasals] = scripts.anusvaras(folded[nasals])
            folded, origin = np.delete(folded, nasals + 1), np.delete(origin, nasals + 1)
        high = folded >= (1 << 16)
        kind = kinds[np.where(high, 0, folded) if high.any() else folded]
        for point in np.unique(folded[high]).tolist() if high.any() else ():
            kind[folded == point] = _class(chr(point))
        kind[folded == 0] = _BLANK
        self.unspaced: Unspaced | None = None
        if len(kind) and kind.max() > _MARK:
            # As `scripts.without_optional_blanks` does with names.
            blank, behind = folded == 32, _moved(folded, -1)
            composing = (behind >= 0x300) & (behind <= 0x36F) | (behind == 0x3099) | (behind == 0x309A)
            optional = blank & ((_moved(kind, 1) > _MARK) & ~composing | (_moved(kind, -1) > _MARK))
            kept = ~optional
            gap = _moved(optional, 1)[kept]
            folded, origin, kind = folded[kept], origin[kept], kind[kept]
            self.unspaced = Unspaced(folded, np.where(kind > _MARK, kind - _MARK, 0), gap)
        self.points = folded
        self.origin: I64 = origin
        self.until: I64 = until[origin]
        single = kind >= _MARK
        starts = (kind != _BLANK) & (single | (_moved(kind, 1) != kind))
        ends = (kind != _BLANK) & (single | (_moved(kind, -1) != kind))
        if self.unspaced is not None:
            # What one character folds to is not torn apart either, nor a mark from what it stands on.
            mark = marks[np.where(folded < (1 << 16), folded, 0)]
            torn = (_moved(kind, 1) > _MARK) & (mark | (_moved(origin, 1, -1) == origin) & (kind > _MARK))
            may_part = self.unspaced.may_part & ~torn
            starts &= may_part
            ends &= _moved(may_part, -1, True)
        self.starts: I64 = np.flatnonzero(starts)
        self.ends: I64 = np.flatnonzero(ends) + 1
        self.may_start = ~np.isin(folded[self.starts], _NO_START)
        self.rows: I64 = np.cumsum(folded == 0)[self.starts]

    def _fold(self, breaks: I64) -> tuple[npt.NDArray[np.uint32], I64, I64]:
        """The folded characters, with 0 between the texts, where each comes from, and where each original one ends."""
        table, count, _, joins, marks = _tables()
        points = self.original
        low = points < (1 << 16)
        safe = points if low.all() else np.where(low, points, 0)
        folded, sizes, joined = table[safe], count[safe], joins[safe]
        several: dict[int, str] = {}
        for point in np.unique(points[~low]).tolist() if safe is not points else ():
            here = points == point
            form = _folded(chr(point))
            folded[here], sizes[here], joined[here] = ord(form[0]) if form else 0, len(form), point in _joining()
        dropped = sizes == 0
        if dropped.any():
            self._marks = np.flatnonzero(dropped & marks[safe])
        folded[breaks], sizes[breaks] = 0, 1
        until = np.arange(1, len(points) + 1)
        for start, end in _clusters(points, joined, sizes, breaks):
            several[start] = form = _folded("".join(map(chr, points[start:end].tolist())))
            sizes[start:end], sizes[start], until[start] = 0, len(form), end
            folded[start] = ord(form[0]) if form else 0
        origin = np.arange(len(points))
        if (sizes != 1).any():
            origin = np.repeat(origin, sizes)
            first = np.cumsum(sizes, dtype=np.int64) - sizes
            folded = folded[origin]
            for place in np.flatnonzero(sizes > 1).tolist():
                form = several.get(place) or _folded(chr(points[place]))
                folded[first[place] : first[place] + len(form)] = [ord(c) for c in form]
        return folded, origin, until

    def with_marks(self, ends: I64) -> I64:
        """Ends behind the vowel marks and accents that stand there and fold to nothing."""
        marks = self._marks
        while len(marks) and (marked := np.isin(ends, marks)).any():
            ends = ends + marked
        return ends

    def inflected(self, of: Substrings) -> Inflected | None:
        """The words that may be inflected, where there is one of the scripts in which that is looked for."""
        if not len(self.points) or self.original.max() < FIRST_SIGN:
            return None
        signs = signs_of(self.original, self.text_starts)[self.rows]
        if not signs.any() and self.points.max() < FIRST_CHARACTER:
            return None
        begins_text = np.ones(len(self.rows), dtype=bool)
        begins_text[1:] = self.rows[1:] != self.rows[:-1]
        initials = np.minimum(self.original[self.origin[self.starts]], 0xFFFF)
        capital = scripts.tables().capital[initials] & ~begins_text
        return Inflected(self.points, self.starts, self.ends, capital, signs, of)


def _moved(values: npt.NDArray[Any], by: int, edge: int = 0) -> npt.NDArray[Any]:
    """Each value's neighbour: the one before it for 1, the one behind it for -1."""
    if by > 0:
        return np.concatenate([[edge], values[:-1]]).astype(values.dtype)
    return np.concatenate([values[1:], [edge]]).astype(values.dtype)


_NO_START = np.array([ord(char) for char in LEADING], dtype=np.uint32)


def _clusters(
    points: npt.NDArray[np.uint32], joined: npt.NDArray[np.bool_], sizes: npt.NDArray[np.uint8], breaks: I64
) -> Iterator[tuple[int, int]]:
    """From where to where characters stand that must be folded together: one that joins, all that join before it, and
    the one that they join."""
    borders = {-1, *breaks.tolist()}
    start = end = -1
    for place in np.flatnonzero(joined).tolist():
        base = place - 1
        while base not in borders and (sizes[base] == 0 or unicodedata.combining(chr(points[base]))):
            base -= 1
        if start <= base < end:
            end = place + 1
            continue
        if end > 0:
            yield start, end
        start, end = base + (base in borders), place + 1
    if end > 0:
        yield start, end


# --- building -----------------------------------------------------------------------------------------------------


def build(
    batches: Iterable[pa.RecordBatch], folder: str | os.PathLike[str], min_link_probability: float = 0.05
) -> dict[str, int]:
    """Write the gazetteer of these surfaces to `folder`; returns what is in it.

    batches   normal_form, candidates, link_probability, forms, gazetteer: rows of kb/surfaces, in any order; what is
              written does not depend on it
    Memory peaks at some 270 bytes per admitted name: its key, those of its inflections, its beginnings, a sorted copy.
    """
    keys: list[U64] = []
    flags: list[npt.NDArray[np.uint8]] = []
    beginnings: list[U64] = []
    exact_forms: list[U64] = []
    names = 0
    for batch in batches:
        for part in _slices(batch, 1 << 16):
            bases, kinds, spellings, personal = _admit(part, min_link_probability)
            names += len(bases)
            inflected = [
                (variant, kind | _INFLECTED)
                for base, kind in zip(bases, kinds, strict=True)
                if kind == _CASELESS
                for variant in inflections(base)
                if length(variant) >= MIN_LENGTH and not _never(variant)
            ]
            variants = bases + [variant for variant, _ in inflected]
            variant_flags = np.array(kinds + [kind for _, kind in inflected], dtype=np.uint8)
            variant_flags[: len(bases)] |= np.array(personal, dtype=np.uint8) * np.uint8(_PERSONAL)
            keep, variant_keys, starts = _beginnings(variants)
            keys.append(variant_keys)
            flags.append(variant_flags[keep])
            beginnings.append(starts)
            exact_forms.append(np.unique(hashes(spellings)))
    return _write(Path(folder), keys, flags, beginnings, exact_forms, names)


def build_of(parts: Iterable[list[str]], folder: str | os.PathLike[str]) -> dict[str, int]:
    """Write a gazetteer of these normal forms alone, whatever `build` would keep out: each matches in any case, and no
    inflection does. `findable` says which can match at all; memory is as for `build`."""
    keys: list[U64] = []
    beginnings: list[U64] = []
    names = 0
    for forms in parts:
        keep, variant_keys, starts = _beginnings(forms)
        keys.append(variant_keys)
        beginnings.append(starts)
        names += int(keep.sum())
    flags = [np.full(len(part), _CASELESS, dtype=np.uint8) for part in keys]
    return _write(Path(folder), keys, flags, beginnings, [], names)


def findable(forms: list[str]) -> npt.NDArray[np.bool_]:
    """Which normal forms have a token, and at most MAX_TOKENS."""
    return _beginnings(forms)[0]


def _slices(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _never(form: str) -> bool:
    return form in ALL_FUNCTION_WORDS or form in COMMON_WORDS


def _admit(batch: pa.RecordBatch, min_link_probability: float) -> tuple[list[str], list[int], list[str], list[bool]]:
    """Which names enter, how each may match, the exact spellings of those that must match exactly, and which are
    personal."""
    probable = pc.greater_equal(batch.column("link_probability"), min_link_probability)
    admitted = pc.and_(batch.column("gazetteer"), pc.fill_null(probable, False))
    spelled = pc.and_(
        pc.invert(pc.fill_null(admitted, False)), _only_of(batch.column("candidates"), pa.array(SPELLED_KINDS))
    )
    bases: list[str] = []
    kinds: list[int] = []
    spellings: list[str] = []
    rows = batch.select(["normal_form", "forms"])
    certain = rows.filter(admitted)
    for form, forms in zip(certain.column("normal_form").to_pylist(), certain.column("forms").to_pylist(), strict=True):
        if length(form) >= MIN_LENGTH and not form.isdigit() and not _never(form):
            bases.append(form)
            kinds.append(_CASELESS)
            continue
        # "US" and "WHO" are names where they are in capitals, and only there.
        capitals_only = [f for f in forms if len(form) > 1 and f.isupper() and f.isascii() and not form.isdigit()]
        if capitals_only and (length(form) < MIN_LENGTH or form in ALL_FUNCTION_WORDS):
            bases.append(form)
            kinds.append(_EXACT)
            spellings += capitals_only
    rows = batch.select(["normal_form", "forms"]).filter(spelled)
    for form, forms in zip(rows.column("normal_form").to_pylist(), rows.column("forms").to_pylist(), strict=True):
        capitals = [spelled for f in forms if f != f.lower() for spelled in {f, f[:1].upper() + f[1:]}]
        if length(form) > MIN_LENGTH and capitals and not _never(form):
            bases.append(form)
            kinds.append(_EXACT)
            spellings += capitals
    personal = dict(
        zip(batch.column("normal_form").to_pylist(), _of_people(batch.column("candidates")).tolist(), strict=True)
    )
    return bases, kinds, spellings, [personal[base] for base in bases]


def refused(surface: Mapping[str, Any], min_link_probability: float) -> str | None:
    """Why a name of the knowledge base is not looked for in running text as `build` decides; None: it is.

    surface   a row of kb/surfaces: normal_form, candidates, link_probability, forms, gazetteer
    """
    form, probability = surface["normal_form"], surface["link_probability"]
    if length(form) < MIN_LENGTH:
        return f"shorter than {MIN_LENGTH} characters: left to the recognizer"
    if form.isdigit():
        return "a number"
    if _never(form):
        return "a common word"
    batch = pa.RecordBatch.from_pylist([dict(surface)], schema=SURFACES)
    bases, kinds, spellings, _ = _admit(batch, min_link_probability)
    if not bases:
        if not surface["gazetteer"]:
            return f"link probability {probability:.3f} is below the gate of the knowledge base itself"
        return f"link probability {probability:.3f} is below extract.min_link_probability ({min_link_probability:g})"
    if not _beginnings(bases)[0].any():
        return f"longer than {MAX_TOKENS} words"
    if kinds == [_EXACT]:
        return f"only as spelled ({', '.join(spellings)}), in a text that has words in small letters"
    return None


def _only_of(candidates: pa.Array, kinds: pa.Array) -> pa.Array:
    """Whether a name has candidates, and all of these kinds: of SPELLED_KINDS, its spelling alone tells it from a
    word."""
    spelled = pc.is_in(candidates.flatten().field("kind"), kinds)
    sizes = pc.list_value_length(candidates).to_numpy(zero_copy_only=False)
    others = np.repeat(np.arange(len(sizes)), sizes)[~spelled.to_numpy(zero_copy_only=False)]
    return pa.array((np.bincount(others, minlength=len(sizes)) == 0) & (sizes > 0))


def _of_people(candidates: pa.Array) -> npt.NDArray[np.bool_]:
    """Whether a name is a part of people's names, and hardly anything else."""
    sizes = pc.list_value_length(candidates).to_numpy(zero_copy_only=False)
    of = np.repeat(np.arange(len(sizes)), sizes)
    flat = candidates.flatten()
    people, may_be = (
        pc.is_in(flat.field("kind"), kinds).to_numpy(zero_copy_only=False) for kinds in (_OF_PEOPLE, _MAY_BE_OF_PEOPLE)
    )
    prior = flat.field("prior").to_numpy(zero_copy_only=False)
    others = np.bincount(of, np.where(may_be, 0.0, prior), minlength=len(sizes))
    return (np.bincount(of[people], minlength=len(sizes)) > 0) & (others < _OTHERS)


def _beginnings(forms: list[str]) -> tuple[npt.NDArray[np.bool_], U64, U64]:
    """(forms of at most MAX_TOKENS tokens, their hashes, hashes of their proper beginnings at a token's end)."""
    if not forms:
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64)
    folded = _Folded(forms)
    of = Substrings(folded.points)
    first = np.searchsorted(folded.rows, np.arange(len(forms)), side="left")
    last = np.searchsorted(folded.rows, np.arange(len(forms)), side="right") - 1
    size = last - first + 1
    keep = (size >= 1) & (size <= MAX_TOKENS)
    whole = of(folded.starts[first[keep]], folded.ends[last[keep]])
    proper = keep[folded.rows] & (np.arange(len(folded.rows)) < last[folded.rows])
    starts = of(folded.starts[first[folded.rows[proper]]], folded.ends[proper])
    return keep, whole, np.unique(starts)


def _bitmap(values: U64) -> npt.NDArray[np.uint8]:
    bits = 1 << max(10, int(max(1, len(values)) * 16 - 1).bit_length())
    bitmap = np.zeros(bits >> 3, dtype=np.uint8)
    places = values >> np.uint64(64 - (bits.bit_length() - 1))
    np.bitwise_or.at(
        bitmap, places >> np.uint64(3), np.left_shift(1, (places & np.uint64(7)).astype(np.uint8), dtype=np.uint8)
    )
    return bitmap


def _write(
    folder: Path,
    keys: list[U64],
    flags: list[npt.NDArray[np.uint8]],
    beginnings: list[U64],
    exact: list[U64],
    names: int,
) -> dict[str, int]:
    all_keys = np.concatenate(keys) if keys else np.zeros(0, dtype=np.uint64)
    all_flags = np.concatenate(flags) if flags else np.zeros(0, dtype=np.uint8)
    # A name in its own form comes before an inflection of another ("glasses" before "glass" + es).
    order = np.lexsort((all_flags & ~np.uint8(_PERSONAL), all_keys))
    all_keys, all_flags = all_keys[order], all_flags[order]
    first = np.ones(len(all_keys), dtype=bool)
    first[1:] = all_keys[1:] != all_keys[:-1]
    all_keys, all_flags = all_keys[first], all_flags[first]
    starts = np.unique(np.concatenate(beginnings)) if beginnings else np.zeros(0, dtype=np.uint64)
    forms = np.unique(np.concatenate(exact)) if exact else np.zeros(0, dtype=np.uint64)
    arrays: dict[str, npt.NDArray[Any]] = {
        "keys": all_keys,
        "flags": all_flags,
        "exact_forms": forms,
        "key_bits": _bitmap(all_keys),
        "beginning_bits": _bitmap(starts),
    }
    digest = hashlib.blake2b(digest_size=16)
    about = {"format": FORMAT, "names": names, "keys": len(all_keys), "exact_only": int((all_flags & _EXACT > 0).sum())}
    with new(folder, _HEADER) as store:
        for name, values in arrays.items():
            store.save(name, values)
            digest.update(np.ascontiguousarray(values).data)
        store.header = {**about, "fingerprint": digest.hexdigest()}
    return about


# --- matching -----------------------------------------------------------------------------------------------------


class Gazetteer:
    """A built gazetteer, memory-mapped. Opening costs milliseconds, whatever its size.

    Raises ArraysError for a folder that holds none, or one of another format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        stored = Arrays(folder, _HEADER, FORMAT)
        self.fingerprint: str = stored.header["fingerprint"]
        self.names: int = stored.header["names"]
        self._keys, self._flags, self._exact, self._key_bits, self._beginning_bits = (
            stored[name] for name in ("keys", "flags", "exact_forms", "key_bits", "beginning_bits")
        )

    def known(self, forms: list[str], small: list[bool] | None = None) -> npt.NDArray[np.bool_]:
        """Which normal forms are names of the gazetteer, as they stand (not as a plural or singular of one).

        small   which of them a text writes without a capital: these are no names that match only as spelled
        """
        found, places = places_among(self._keys, hashes(forms))
        if small is not None:
            found &= ~(np.array(small, dtype=bool) & ((self._flags[places] & _EXACT) > 0)) if len(self._keys) else found
        found[found] = (self._flags[places[found]] & _INFLECTED) == 0
        return found

    def personal(self, forms: list[str]) -> npt.NDArray[np.bool_]:
        """Which normal forms are names of the gazetteer, and parts of people's names before anything else."""
        found, places = places_among(self._keys, hashes(forms))
        found[found] = (self._flags[places[found]] & (_INFLECTED | _PERSONAL)) == _PERSONAL
        return found

    def find(self, texts: list[str]) -> tuple[I64, I64, I64]:
        """The names in each text: rows, starts and ends in characters, ordered by row, start, end.

        A match is a run of whole words, as far as the script has any (boundaries.py), or an inflected form of a name
        (inflected.py); of matches one within the other only the longest stays, of others all do.
        """
        parts = [_none()]
        # By themselves, texts of ASCII alone do not pay for what the others need.
        ascii_only = np.fromiter(map(str.isascii, texts), dtype=bool, count=len(texts))
        for of_kind in (np.flatnonzero(ascii_only), np.flatnonzero(~ascii_only)):
            for i in range(0, len(of_kind), _CHUNK):
                chunk = of_kind[i : i + _CHUNK]
                rows, starts, ends = self._find([texts[row] for row in chunk.tolist()])
                parts.append((chunk[rows], starts, ends))
        rows, starts, ends = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(rows, kind="stable")
        return rows[order], starts[order], ends[order]

    def _find(self, texts: list[str]) -> tuple[I64, I64, I64]:
        folded = _Folded(texts)
        tokens, first, last, places = self._runs(folded)
        starts, ends, rows = folded.origin[first], folded.with_marks(folded.until[last - 1]), folded.rows[tokens]
        exact = (self._flags[places] & _EXACT) > 0
        if exact.any():
            allowed = ~exact
            spelled, _ = places_among(self._exact, Substrings(folded.original)(starts[exact], ends[exact]))
            allowed[exact] = spelled & (
                _cased(folded, len(texts))[rows[exact]] | _as_a_name(folded, tokens[exact], last[exact])
            )
            rows, starts, ends = rows[allowed], starts[allowed], ends[allowed]
        order = np.lexsort((-ends, starts))
        rows, starts, ends = rows[order], starts[order], ends[order]
        if len(rows):
            # Positions grow from text to text, so one running maximum serves them all.
            outer = np.ones(len(rows), dtype=bool)
            outer[1:] = ends[1:] > np.maximum.accumulate(ends)[:-1]
            rows, starts, ends = rows[outer], starts[outer], ends[outer]
        offset = folded.text_starts[rows]
        return rows, starts - offset, ends - offset

    def _runs(self, folded: _Folded) -> tuple[I64, I64, I64, I64]:
        """What may be a mention: its first token, where it starts and ends among the folded characters, and the place
        of its name among the keys."""
        of = Substrings(folded.points)
        words = folded.inflected(of)
        tokens = np.flatnonzero(folded.may_start)
        name_from = shown_from = folded.starts[tokens]
        if words is not None and len(words.prefixed):
            tokens = np.concatenate([tokens, words.prefixed])
            name_from = np.concatenate([name_from, words.name_from])
            shown_from = np.concatenate([shown_from, words.shown_from])
        found: list[tuple[I64, I64, U64, int, bool]] = []
        alive = np.arange(len(tokens))
        for width in range(MAX_TOKENS):
            last = tokens[alive] + width
            inside = last < len(folded.starts)
            alive, last = alive[inside], last[inside]
            same = folded.rows[tokens[alive]] == folded.rows[last]
            alive, last = alive[same], last[same]
            if not len(alive):
                break
            values = of(name_from[alive], folded.ends[last])
            hit = _probe(self._key_bits, values)
            found.append((alive[hit], folded.ends[last[hit]], values[hit], width + 1, True))
            if words is not None:
                run, ending = words.endings_of(last)
                stems = of.followed(name_from[alive[run]], words.stem_ends[ending], words.bases[ending])
                hit = _probe(self._key_bits, stems)
                run = run[hit]
                found.append((alive[run], folded.ends[last[run]], stems[hit], width + 1, False))
            alive = alive[_probe(self._beginning_bits, values)]
        if not found:
            return (*_none(), np.zeros(0, dtype=np.int64))
        begun, ends, keys = (np.concatenate(part) for part in list(zip(*found, strict=True))[:3])
        named, places = places_among(self._keys, keys)
        begun, ends, places = begun[named], ends[named], places[named]
        if words is not None:
            # An inflected form of an inflected form is none of the name, nor is one of a surname as it is spelled.
            whole = np.repeat([whole for *_, whole in found], [len(part[0]) for part in found])[named]
            good = whole | ((self._flags[places] & _CASELESS) > 0) & ((self._flags[places] & _INFLECTED) == 0)
            begun, ends, places, named = begun[good], ends[good], places[good], np.flatnonzero(named)[good]
        if folded.unspaced is not None:
            sizes = np.repeat([size for *_, size, _ in found], [len(part[0]) for part in found])[named]
            good = folded.unspaced.allowed(shown_from[begun], ends, sizes)
            begun, ends, places = begun[good], ends[good], places[good]
        return tokens[begun], shown_from[begun], ends, places


def _none() -> tuple[I64, I64, I64]:
    return (np.zeros(0, dtype=np.int64),) * 3


def _cased(folded: _Folded, texts: int) -> npt.NDArray[np.bool_]:
    """Whether a text has a word of four letters or more that starts with a small ASCII letter. In other texts capitals
    mean nothing."""
    first = folded.original[folded.origin[folded.starts]]
    plain = (first >= 97) & (first <= 122) & (folded.ends - folded.starts >= 4)
    has = np.zeros(texts, dtype=bool)
    has[folded.rows[plain]] = True
    return has


_TITLES = """mr mrs ms dr prof professor sir president premier chancellor minister secretary senator sen congressman
congresswoman representative governor gov general gen colonel col admiral archbishop bishop cardinal rabbi ayatollah
ambassador"""
"""Words that stand before last names alone and before hardly anything else. Queens are beds, and coaches are bags."""


@lru_cache(maxsize=1)
def _titles() -> U64:
    return np.sort(hashes(_TITLES.split()))


def _as_a_name(folded: _Folded, first: I64, ends: I64) -> npt.NDArray[np.bool_]:
    """Whether a run of words stands where a person's name stands, whatever the rest of the text is written like: behind
    a title ("Senator Merkley"), or at the very beginning, before a word in small letters or a year ("Bokassa in 1939",
    "Sarandon, 2008").

    first, ends   of each run its first token, and where it ends among the folded characters
    """
    starts = folded.starts
    initial = folded.original[folded.origin[starts]]
    size = folded.ends - starts
    small = (initial >= 97) & (initial <= 122) & (size >= 2)
    number = (initial >= 48) & (initial <= 57) & (size == 4)
    mark = ~small & (size == 1) & np.isin(initial, _BEFORE_A_YEAR)
    begins = np.ones(len(starts), dtype=bool)
    begins[1:] = folded.rows[1:] != folded.rows[:-1]

    def same_text(at: I64) -> npt.NDArray[np.bool_]:
        inside = (at >= 0) & (at < len(starts))
        return inside & (folded.rows[np.clip(at, 0, len(starts) - 1)] == folded.rows[first])

    def holds(what: npt.NDArray[np.bool_], at: I64) -> npt.NDArray[np.bool_]:
        return same_text(at) & what[np.clip(at, 0, len(starts) - 1)]

    behind = np.searchsorted(starts, ends)
    alone = begins[first] & (
        holds(small, behind) | holds(number, behind) | (holds(mark, behind) & holds(number, behind + 1))
    )
    titles, _ = places_among(_titles(), Substrings(folded.points)(starts, folded.ends))
    before = first - 1
    before = np.where(holds(initial == ord("."), before), before - 1, before)
    return alone | holds(titles, before)


_BEFORE_A_YEAR = np.array([ord(char) for char in ",("], dtype=np.uint32)


def _probe(bitmap: npt.NDArray[np.uint8], values: U64) -> npt.NDArray[np.bool_]:
    shift = np.uint64(64 - (len(bitmap).bit_length() - 1 + 3))
    places = values >> shift
    return (bitmap[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8)) & 1 > 0
