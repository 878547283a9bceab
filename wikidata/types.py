"""Coarse types: what kind of thing is an item, and how often does a photograph that names one show it?

Reads    types.yaml: some thirty types with their roots, head words and visual shares · ENTITIES
Writes   ENTITIES with `coarse_type`, `visual` and `name_case`

An item that is a class has the type of what is above it (P279, P171), others that of most of their classes (P31), and
where these tell nothing, what heads the description does.
The class graph is walked from the roots down, level by level, in arrays: an edge is 16 bytes, so the five million edges
of Wikidata's class tree are 80 MB in one process, and a circle in it ends by itself. EntityNet (arXiv 2505.02746) takes
the visual entities below 21 such roots; here every item gets a type, and none is thrown away for it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from wikidata.surface import singulars

I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]

UNKNOWN = -1
"""Code of an item without a type."""
MAX_DEPTH = 32
"""Levels below a root. Wikidata's longest chains of P279 that matter have some twenty; taxa are roots themselves."""


@dataclass(frozen=True)
class CoarseType:
    """One type of types.yaml."""

    name: str
    visual: float
    """Of the photographs whose caption names one, the share that shows it."""
    why: str
    roots: tuple[int, ...]
    words: tuple[str, ...]
    recognized_as: tuple[str, ...] = ()
    """What name recognizers call its names."""
    said_with: tuple[str, ...] = ()
    """Words of captions that speak of one."""
    proper: bool = False
    """Whether its names are mostly proper ones."""


class Types:
    """The types of a file, by code: the place in the file."""

    def __init__(self, types: Iterable[CoarseType]) -> None:
        """Raises ValueError where a root or a word belongs to two types, or a share is none."""
        self.all = tuple(types)
        self.names = tuple(t.name for t in self.all)
        self.visual = np.array([t.visual for t in self.all])
        self.fingerprint = hashlib.blake2b(repr(self.all).encode(), digest_size=8).hexdigest()
        self._words: dict[str, int] = {}
        self._roots: dict[int, int] = {}
        for code, type_ in enumerate(self.all):
            if not 0 < type_.visual < 1:
                raise ValueError(f"types: visual of {type_.name} is {type_.visual}: a share between 0 and 1")
            for root in type_.roots:
                if self._roots.setdefault(root, code) != code:
                    raise ValueError(f"types: Q{root} is a root of {self.names[self._roots[root]]} and {type_.name}")
            for word in type_.words:
                if self._words.setdefault(word, code) != code:
                    raise ValueError(f"types: {word!r} is a word of {self.names[self._words[word]]} and {type_.name}")

    @cached_property
    def mean_visual(self) -> float:
        """What counts for an item of unknown type."""
        return float(np.exp(np.log(self.visual).mean()))

    def code(self, name: str | None) -> int:
        return self.names.index(name) if name in self.names else UNKNOWN

    def of_classes(self, child: I64, parent: I64, more: Mapping[int, int] | None = None) -> tuple[I64, I8]:
        """The classes that have a type, rising, and their codes.

        child, parent   the edges of the class graph (E), in any order; circles and repeated edges do no harm
        more            further classes with their codes, from which those are walked to that no root leads to
        The nearest root decides; of two as near, the type that stands first. The roots are among the classes.
        """
        further = {**(more or {}), **self._roots}
        roots = self._roots
        ids = np.unique(np.concatenate([child, parent, np.fromiter(further, np.int64, len(further))]))
        code = np.full(len(ids), len(self.all), dtype=np.int8)
        order = np.argsort(parent, kind="stable")
        below, above = np.searchsorted(ids, child[order]), np.searchsorted(ids, parent[order])
        first, last = np.searchsorted(above, np.arange(len(ids))), np.searchsorted(above, np.arange(len(ids)), "right")
        unseen = np.ones(len(ids), dtype=bool)
        for start in (roots, further):
            at = np.searchsorted(ids, np.fromiter(sorted(start), np.int64, len(start)))
            frontier = at[unseen[at]]
            code[frontier] = [start[int(i)] for i in ids[frontier]]
            unseen[frontier] = False
            for _ in range(MAX_DEPTH):
                sizes = last[frontier] - first[frontier]
                within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
                children = below[np.repeat(first[frontier], sizes) + within]
                its = np.repeat(code[frontier], sizes)
                new = unseen[children]
                children, its = children[new], its[new]
                if not len(children):
                    break
                np.minimum.at(code, children, its)
                frontier = np.unique(children)
                unseen[frontier] = False
        typed = code < len(self.all)
        return ids[typed], code[typed]

    def of_text(self, text: str | None) -> int:
        """The code of the type that heads a description or a class's name, UNKNOWN where no word of it is known.

        >>> TYPES.names[TYPES.of_text("1994 studio album by the Cranes")]
        'album'
        """
        if not text:
            return UNKNOWN
        for phrase in _head_phrases(text):
            words = phrase.split()
            for end in range(len(words), 0, -1):
                for start in (end - 3, end - 2, end - 1):
                    if start < 0:
                        continue
                    code = self._of_word("-".join(words[start:end]))
                    if code != UNKNOWN:
                        return code
        return UNKNOWN

    def of_name(self, name: str | None) -> int:
        """The code of the type that the last words of a name for things say, the more of them the better; UNKNOWN where
        they say none, or are spelled as a proper name's.

        >>> TYPES.names[TYPES.of_name("Howler monkey")], TYPES.of_name("monkey puzzle"), TYPES.of_name("red Monkey")
        ('taxon', -1, -1)

        Nor does a single word tell a type whose names are proper ones: what is spelled as a thing is none of them. A
        snow man is no person, a rubber band no group.
        """
        words = _END.split(" ".join((name or "").split()), 1)[0].split()
        if not words or not words[-1][0].islower():
            return UNKNOWN
        for start in range(max(0, len(words) - 3), len(words)):
            code = self._of_word("-".join(words[start:]).lower())
            if code != UNKNOWN:
                return UNKNOWN if self.all[code].proper and start == len(words) - 1 else code
        return UNKNOWN

    def _of_word(self, word: str) -> int:
        found = self._words.get(word)
        if found is None:
            for single in singulars(word):
                found = self._words.get(single)
                if found is not None:
                    break
        if found is None and word.endswith(_PERSONS) and len(word) > 6:
            found = self._words.get("person")
        return UNKNOWN if found is None else found


_PERSONS = ("ologist", "ographer", "player", "woman", "sman")
_END = re.compile(
    r"\s(?:in|of|by|from|for|at|on|with|to|near|that|which|who|whose|where|is|was|are|were|has|have|had|used|having|"
    r"located|born|based|between|as|made|about|formed|containing|consisting|found|produced|directed|written|published|"
    r"created|founded|built|the|known|native|situated|released|starring|featuring|set|under|within|during|after|before|"
    r"since|against|belonging|than|per|via|into|along)\b"
    r"|[,;:()\[\]{}.–—/|\"“”]"
)
"""What ends the noun phrase that heads a description."""
_KIND = re.compile(
    r"^(?:(?:\w+\s){0,2}?)(species|subspecies|genus|cultivar|breed|(?:type|kind|variety|sort|form|style|piece|pair|set|"
    r"model|item|series|part|member|class|any|one|name|family|order|phylum|suborder|superfamily|subfamily|tribe|clade|"
    r"group)(?:\sor\s\w+)?) of (?:the |an? )?"
)
"""What is of the type of what follows: a kind of fruit is a fruit."""
_LEADING_YEARS = re.compile(r"^(?:the )?(?:c\. ?|ca\. ?)?\d[\d\s–/-]*(?:s |(?:th|st|nd|rd)[ -]century )?(?=\D)")
_LIVING = ("species", "subspecies", "genus", "cultivar", "breed")
_IS_A = re.compile(r"^(?:\S+\s){1,6}?(?:is|are|was|were) (?:an? |the |one of the )(?=\w)")


def _head_phrases(text: str) -> list[str]:
    """The noun phrases that may head it, likeliest first: "1974 film by X" gives "1974 film"."""
    lower = _LEADING_YEARS.sub("", " ".join(text.lower().split())[:200])
    found = []
    if match := _IS_A.match(lower):
        lower = lower[match.end() :]
    if match := _KIND.match(lower):
        if match.group(1) in _LIVING:
            return ["taxon"]
        found.append(_END.split(lower[match.end() :], 1)[0])
    for article in ("a ", "an ", "the ", "any "):
        lower = lower.removeprefix(article)
    found.append(_END.split(lower, 1)[0])
    return [phrase.replace("/", " ").strip() for phrase in found if phrase.strip()]


def load(text: str) -> Types:
    """The types of a file's text. Raises ValueError, saying what is wrong."""
    return Types(
        CoarseType(
            name,
            visual=float(t["visual"]),
            why=t["why"],
            roots=tuple(map(int, t["roots"])),
            words=tuple(t["words"].split()),
            recognized_as=tuple(t.get("recognized_as", "").split()),
            said_with=tuple(t.get("said_with", "").split()),
            proper=bool(t.get("proper", False)),
        )
        for name, t in yaml.safe_load(text).items()
    )


TYPES = load(files("wikidata").joinpath("types.yaml").read_text(encoding="utf-8"))


CLASS_TYPES = pa.schema([pa.field("class_id", pa.int64(), nullable=False), pa.field("code", pa.int8(), nullable=False)])


def class_types(batches: Iterable[pa.RecordBatch], types: Types = TYPES) -> Iterator[pa.RecordBatch]:
    """The codes of all classes that have a type: one batch of CLASS_TYPES, by rising id.

    batches   entity_id: int64, name: string, parents: list<int64>: every item that is a class of another one, once
    A class that no root leads to has the type that its name is headed by ("county of Ohio"), and hands it on to the
    classes below it that have none. Holds 16 bytes an edge and the names that are asked for.
    """
    ids, child, parent, names = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
    for batch in batches:
        here = batch.column("entity_id").to_numpy(zero_copy_only=False).astype(np.int64)
        lists = batch.column("parents")
        ids.append(here)
        names.append(batch.column("name"))
        parent.append(lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64))
        child.append(here[pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)])
    edges = np.concatenate(child), np.concatenate(parent)
    found, codes = types.of_classes(*edges)
    asked = np.concatenate(ids)
    at = np.flatnonzero(~np.isin(asked, found))
    said = pa.chunked_array(names, pa.string()).take(pa.array(at)).to_pylist() if names else []
    by_name = {int(asked[i]): code for i, text in zip(at, said, strict=True) if (code := types.of_text(text)) >= 0}
    if by_name:
        found, codes = types.of_classes(*edges, more=by_name)
    yield pa.RecordBatch.from_arrays([pa.array(found), pa.array(codes)], schema=CLASS_TYPES)


def typed(
    batches: Iterable[pa.RecordBatch], class_ids: I64, codes: I8, types: Types = TYPES
) -> Iterator[pa.RecordBatch]:
    """The same rows with `coarse_type`, `visual` and `name_case` filled in.

    batches     ENTITIES
    What neither classes nor description tell, a name that is spelled as a word for things does: a howler monkey is a
    monkey, while a "Howler Monkey" may be a film.
    class_ids   rising, with their `codes`, as `class_types` gives them
    What a class of things is, the classes above it say, and not the class of classes (P31) that it is an instance of;
    but for professions, above which stands whoever has one.
    """
    names = pa.array([*types.names, None], pa.string())
    visual = np.append(types.visual, types.mean_visual).astype(np.float32)
    occupation = types.code("occupation") if "occupation" in types.names else UNKNOWN - 1
    for batch in batches:
        by_class = _most(batch.column("types"), class_ids, codes)
        own = batch.column("entity_id").to_numpy(zero_copy_only=False).astype(np.int64)
        code = np.where(by_class == occupation, by_class, _known(own, class_ids, codes))
        for other in (_most(batch.column("parents"), class_ids, codes), by_class):
            code = np.where(code == UNKNOWN, other, code)
        at = np.flatnonzero(code == UNKNOWN)
        if len(at):
            said = batch.column("description").take(pa.array(at)).to_pylist()
            code[at] = [UNKNOWN if text is None else types.of_text(text) for text in said]
        case = name_case(batch.column("name"))
        at = np.flatnonzero((code == UNKNOWN) & (case.to_numpy(zero_copy_only=False) == 1))
        if len(at):
            code[at] = [types.of_name(name) for name in batch.column("name").take(pa.array(at)).to_pylist()]
        columns = {"coarse_type": names.take(pa.array(code % len(visual))), "visual": pa.array(visual[code])}
        yield _with(batch, {**columns, "name_case": case})


_LINKING = (
    r"(?i)\b(of|the|and|in|for|to|on|with|at|de|la|le|les|el|los|las|du|des|del|della|di|da|do|dos|das|von|van|der|den|"
    r"und|y|e|et|bin|ibn|al|upon|ad|am|an|sur|ten|ter|zu|zum)\b"
)


def name_case(names: pa.Array) -> pa.Array:
    """int8: 1 where a name is spelled as a word for things ("harp", "Red fox"), -1 as a proper name ("Red Fox Inn"), 0
    where its spelling does not tell ("Harp", "東京").

    Wikidata's labels have a capital where the language has one; page titles have one always, so that only their later
    words tell.
    """
    later = pc.replace_substring_regex(names, _LINKING, "")
    mixed = pc.match_substring_regex(
        later, r"^[ -]*[\p{Ll}]*[\p{Lu}].*[\p{Ll}][\p{Lu}]|^[ -]*[\p{Ll}]+[\p{Lu}]"
    )  # eBay
    linked = pc.and_(pc.match_substring_regex(names, r"^[\p{Ll}]"), pc.match_substring_regex(later, r"^[ -]*[\p{Lu}]"))
    lower = pc.or_(
        pc.match_substring_regex(later, r"^[ -]*[\p{Ll}]"), pc.match_substring_regex(later, r"[ ][\p{Ll}][\p{L}]{2}")
    )
    upper = pc.or_(pc.or_(pc.match_substring_regex(later, r"[ -][\p{Lu}]"), linked), mixed)
    lower = pc.and_not(lower, mixed)
    return pc.if_else(lower, 1, pc.if_else(upper, -1, 0)).cast(pa.int8())


def _with(batch: pa.RecordBatch, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    arrays = [columns.get(field.name, batch.column(field.name)) for field in batch.schema]
    return pa.RecordBatch.from_arrays(
        [a.cast(f.type) for a, f in zip(arrays, batch.schema, strict=True)], schema=batch.schema
    )


def _known(ids: I64, class_ids: I64, codes: I8) -> npt.NDArray[np.int64]:
    if not len(class_ids):
        return np.full(len(ids), UNKNOWN)
    at = np.minimum(np.searchsorted(class_ids, ids), len(class_ids) - 1)
    return np.where(class_ids[at] == ids, codes[at], UNKNOWN).astype(np.int64)


def _most(lists: pa.Array, class_ids: I64, codes: I8) -> npt.NDArray[np.int64]:
    """For each list the code that most of its classes have; of several the one whose class stands first."""
    code = _known(lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64), class_ids, codes)
    row = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    known = np.flatnonzero(code != UNKNOWN)
    pairs, first, count = np.unique(row[known] * 128 + code[known], return_index=True, return_counts=True)
    order = np.lexsort((first, -count, pairs // 128))
    lead = np.flatnonzero(np.diff(pairs[order] // 128, prepend=-1))
    result = np.full(len(lists), UNKNOWN)
    result[pairs[order][lead] // 128] = pairs[order][lead] % 128
    return result
