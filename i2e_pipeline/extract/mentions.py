"""Extract: which words of a text may name something?

Reads    texts (text_id, text) · kb/gazetteer
Writes   mentions (text_id, start, end, surface, normal_form, label, source)
Rejects  no_mention (id = text_id)

The recognizer knows what names look like, the gazetteer knows which names there are, and each finds what the other
cannot: of gold spans of news captions the recognizer finds .50, the gazetteer .68, both together .78
(benchmarks/extract.py). All that either finds is kept. Where a recognizer's span overlaps a match of the gazetteer, or
lies within it, both stay, as alternatives among which the image decides: without the spans that lie within others, span
recall is 6 to 7 points lower and a quarter of the candidates is saved. Where one match of the gazetteer lies within
another, only the longer one stays: a "Kaiser pear" need not be tried as a pear. What a person is called before the name
is part of the name, and no mention of the office: "Prime Minister Shinzo Abe" is a mention beside "Shinzo Abe", and
"Prime Minister" is none. In the gold sets nobody marks it apart; whether it belongs to the span they do not agree on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from i2e_pipeline.core.rejects import reject
from i2e_pipeline.core.schemas import ID, MENTIONS, Reason
from i2e_pipeline.extract.gazetteer import Gazetteer
from i2e_pipeline.extract.promising import promising
from i2e_pipeline.extract.recognizer import Recognizer
from wikidata.common_words import BEFORE_VERBS, COMMON_WORDS, VERBS
from wikidata.function_words import ALL_FUNCTION_WORDS
from wikidata.inflection import bases, signs_in
from wikidata.priors import is_measure
from wikidata.surface import APOSTROPHES, inadmissible, inflections, is_title, normal_form

I64 = npt.NDArray[np.int64]

Place = tuple[int, int, int]
"""Number of the text, start, end."""
PERSONS = ("PERSON", "PER")
"""Labels of recognizers for people."""
NER, GAZETTEER, BOTH = "ner", "gazetteer", "both"

_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\S)", re.IGNORECASE)
_BLANK = re.compile(r"\s+")
_EDGES = ' .,;:!?"*~|\\/<>=&%@#+$()[]{}-_…•«»“”„–—' + APOSTROPHES
_CONTRACTED = re.compile(f"[{re.escape(APOSTROPHES)}](?:[md]|ts?|re|ve|ll)(?![^\\W_])", re.IGNORECASE)
_DIGITS_BEHIND = re.compile(r"-(?!(?:19|20)\d\d(?!\w))\d")
_DIGITS_BEFORE = re.compile(r"(?<!\b19\d)(?<!\b20\d)\d-\Z")
# "a sunset.Paris" has lost a blank: domains are in one case.
_ADDRESS = re.compile(r"[A-Za-z]{3,5}://\S*|(?:[\w-]+\.)+(?:[a-z]{2,6}|[A-Z]{2,6})(?:/\S*|(?!\w))")
_LONGEST_OF_CODE = 4
"""Capital letters that digits behind a hyphen make the letters of a code; longer ones may be a maker's name."""
_LONGEST_OF_STATE = 2
_POSSESSIVE = re.compile(f"[{re.escape(APOSTROPHES)}][sS]\\Z")


def find_mentions(
    batches: Iterable[pa.RecordBatch],
    recognizer: Recognizer,
    gazetteer: Gazetteer | None,
    max_mentions: int = 32,
    profile: str = "full",
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The spans of each text that may name an entity.

    batches   text_id: binary(16), text: string (cleaned; a row per distinct text)
    yields    ("mentions", MENTIONS) ordered by text, start, end; offsets in characters, surface == text[start:end];
              ("rejects", reason, id = text_id) for a text without a mention.

    A span that both find has source "both" and the recognizer's label. Of more than `max_mentions` the longest stay,
    the earlier of equals. A text's mentions depend on that text alone. With the profile "fast" the recognizer is given
    those texts alone that promise a name beside the gazetteer's (promising.py).
    """
    for batch in batches:
        texts: list[str] = batch.column("text").to_pylist()
        rows, starts, ends, labels, sources, forms = _spans(texts, recognizer, gazetteer, profile)
        keep = _longest(rows, starts, ends, max_mentions)
        rows, starts, ends = rows[keep], starts[keep], ends[keep]
        surfaces = [
            texts[row][start:end] for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)
        ]
        ids = batch.column("text_id").cast(ID)  # Spark has no fixed-size binary
        yield (
            "mentions",
            pa.RecordBatch.from_arrays(
                [
                    ids.take(pa.array(rows)),
                    pa.array(starts, pa.int32()),
                    pa.array(ends, pa.int32()),
                    pa.array(surfaces, pa.string()),
                    pa.array([forms[i] for i in keep], pa.string()),
                    pa.array([labels[i] for i in keep], pa.string()),
                    pa.array([sources[i] for i in keep], pa.string()),
                ],
                schema=MENTIONS,
            ),
        )
        silent = np.ones(len(texts), dtype=bool)
        silent[rows] = False
        if silent.any():
            yield "rejects", reject(batch, silent, Reason.NO_MENTION, key="text_id")


def _spans(
    texts: list[str], recognizer: Recognizer, gazetteer: Gazetteer | None, profile: str
) -> tuple[I64, I64, I64, list[str | None], list[str], list[str]]:
    """Rows, starts, ends, labels, sources and normal forms of all spans, ordered by row, start, end."""
    found = gazetteer.find(texts) if gazetteer is not None else (np.zeros(0, dtype=np.int64),) * 3
    matched = {
        (row, start, _with_dot(texts[row], start, end))
        for row, start, end in zip(*(a.tolist() for a in found), strict=True)
        if not _no_name(texts[row], start, end)
    }
    asked = np.arange(len(texts))
    if profile == "fast" and gazetteer is not None:
        asked = np.flatnonzero(promising(texts, *found))
    rows, starts, ends, labels = recognizer.find([texts[row] for row in asked.tolist()])
    recognised: dict[Place, str] = {}
    for row, start, end, label in zip(*_lists((asked[rows], starts, ends, labels)), strict=True):
        span = _trimmed(texts[row], start, end)
        place = (row, *span) if span is not None else None
        if place is not None and not _no_name(texts[row], *place[1:]) and not _has_tail(texts[row], place, matched):
            recognised[place] = label
    matched -= _first_names(texts, matched, recognised, gazetteer)
    parts = _in_places(texts, matched, gazetteer)
    matched |= set(parts)
    matched -= {whole for whole in parts.values() if whole is not None}
    titled = _titled(texts, matched, recognised)
    for title, name, both in titled:
        matched.discard(title)
        recognised.pop(title, None)
        recognised[both] = recognised[name]
        parts[both] = parts.get(name) or name
        if name in matched:
            matched.add(both)
    matched |= _before_title(texts, [title for title, _, _ in titled], gazetteer)
    places = sorted({*matched, *recognised})
    signs = list(map(signs_in, texts))
    whole = [parts.get(place) or place for place in places]
    articles, forms, known = _forms([texts[row][start:end] for row, start, end in whole], places, signs, gazetteer)
    bare = {place: (place[0], place[1] + skip, place[2]) for place, skip in zip(places, articles, strict=True)}
    within = _within(places, matched)
    spans: dict[Place, tuple[str | None, bool, bool, str]] = {}
    for place, form, is_known, inside in zip(places, forms, known, within, strict=True):
        if inside and place not in matched and not is_known and " " in form:
            continue  # a piece of a longer name, under which the knowledge base has nothing
        before = spans.get(bare[place], (None, False, False, form))
        spans[bare[place]] = (
            recognised.get(place, before[0]),
            before[1] or place in matched,
            before[2] or place in recognised,
            form,
        )
    kept = [place for place, span in sorted(spans.items()) if span[3]]
    array = np.array(kept, dtype=np.int64).reshape(-1, 3)
    chosen = [spans[place] for place in kept]
    sources = [BOTH if span[1] and span[2] else GAZETTEER if span[1] else NER for span in chosen]
    return array[:, 0], array[:, 1], array[:, 2], [span[0] for span in chosen], sources, [span[3] for span in chosen]


def _has_tail(text: str, place: Place, matched: set[Place]) -> bool:
    """Whether a recognizer's span is a name that the gazetteer knows, and words in small letters behind it: it adds
    nothing to "Peter Falk" that it goes on to "Peter Falk statue", and its label is of that."""
    row, start, at = place
    while (blank := text.rfind(" ", start, at)) > start and text[blank + 1].islower():
        at = blank
        if (row, start, at) in matched:
            return True
    return False


def _first_names(
    texts: list[str], matched: set[Place], recognised: Mapping[Place, str], gazetteer: Gazetteer | None
) -> set[Place]:
    """Matches of one word, a part of people's names and nothing else, that begin, or stand within, what the recognizer
    takes for a person's name, and do not end it. "Thomas" is nobody in "Thomas Gainsborough"; "Gainsborough" may be
    somebody, and "Beaver" in "Beaver Wholesale" is the animal, whatever the recognizer says."""
    persons: dict[int, list[tuple[int, int]]] = {}
    for (row, start, end), label in recognised.items():
        if label in PERSONS and (row, start, end) not in matched:
            persons.setdefault(row, []).append((start, end))
    first = [
        (row, start, end)
        for row, start, end in matched
        if row in persons
        and " " not in texts[row][start:end]
        and any(s <= start and end < e and texts[row][end] in " .-" for s, e in persons[row])
    ]
    if gazetteer is None or not first:
        return set()
    personal = gazetteer.personal([normal_form(texts[row][start:end]) for row, start, end in first])
    return {place for place, is_personal in zip(first, personal.tolist(), strict=True) if is_personal}


def _titled(texts: list[str], matched: set[Place], recognised: Mapping[Place, str]) -> list[tuple[Place, Place, Place]]:
    """Each title that stands directly before what the recognizer takes for a person's name: its place, that of the
    longest such name, and that of both."""
    names: dict[tuple[int, int], Place] = {}
    for place, label in sorted(recognised.items()):
        if label in PERSONS:
            names[place[:2]] = place
    found = []
    for title in sorted(matched | set(recognised)):
        row, start, end = title
        name = names.get((row, end + 1))
        if name and texts[row][end] == " " and is_title(normal_form(texts[row][start:end])):
            found.append((title, name, (row, start, name[2])))
    return found


def _before_title(texts: list[str], titles: list[Place], gazetteer: Gazetteer | None) -> set[Place]:
    """The longest name that each title begins with: "British" of "British prime minister"."""
    begun = [
        (row, start, start + blank.start())
        for row, start, end in titles
        for blank in reversed([*_BLANK.finditer(texts[row][start:end])])
    ]
    if gazetteer is None or not begun:
        return set()
    known = gazetteer.known([normal_form(texts[row][start:end]) for row, start, end in begun])
    longest: dict[tuple[int, int], Place] = {}
    for place, held in zip(begun, known.tolist(), strict=True):
        if held and not is_title(normal_form(texts[place[0]][place[1] : place[2]])):
            longest.setdefault(place[:2], place)
    return set(longest.values())


def _in_places(texts: list[str], matched: set[Place], gazetteer: Gazetteer | None) -> dict[Place, Place | None]:
    """What to look for instead of a name with a comma, of which both sides are names: "Laramie, Wyoming" is Laramie,
    and Wyoming. Of each the place under whose words it is looked up: all of the name for the first side, since it says
    which Laramie; None for the other."""
    commas = [
        ((row, start, comma), (row, comma + 2, end))
        for row, start, end in matched
        if (comma := texts[row].find(", ", start, end)) > start
    ]
    if gazetteer is None or not commas:
        return {}
    known = gazetteer.known([normal_form(texts[row][start:end]) for pair in commas for row, start, end in pair])
    found: dict[Place, Place | None] = {}
    for n, (first, second) in enumerate(commas):
        if known[2 * n] and known[2 * n + 1]:
            found[first] = (first[0], first[1], second[2])
            found.setdefault(second, None)
    return found


def _within(places: list[Place], matched: set[Place]) -> list[bool]:
    """Whether each place lies within a match of the gazetteer, other than itself."""
    by_row: dict[int, list[tuple[int, int]]] = {}
    for row, start, end in matched:
        by_row.setdefault(row, []).append((start, end))
    return [
        any(s <= start and end <= e and (s, e) != (start, end) for s, e in by_row.get(row, ()))
        for row, start, end in places
    ]


def _lists(found: tuple[I64, I64, I64, list[str]]) -> tuple[list[int], list[int], list[int], list[str]]:
    return found[0].tolist(), found[1].tolist(), found[2].tolist(), found[3]


def _no_name(text: str, start: int, end: int) -> bool:
    """Whether what stands around a match says that it is no name here.

    A piece of a contraction ("don't"), of a code ("TLD-10-2008"; a year makes none: "NBA-2013"), of a web address
    ("blog.tumblr.com", but "Amazon.co.uk" begins with a name), or a verb ("I saw").
    """
    behind = text[end : end + 1]
    if behind and behind in APOSTROPHES and _CONTRACTED.match(text, end):
        return True
    surface = text[start:end]
    may_be_code = end - start <= _LONGEST_OF_CODE and surface.isupper()
    if may_be_code and (_DIGITS_BEHIND.match(text, end) or _DIGITS_BEFORE.search(text[max(0, start - 6) : start])):
        return True
    before = text[text.rfind(" ", 0, start) + 1 : start]
    if "." in before or "//" in before:
        address = _ADDRESS.match(text, start - len(before))
        return address is not None and address.end() >= end
    if not before and start and surface.casefold() in VERBS:
        return text[:start].rstrip().rpartition(" ")[2].casefold() in BEFORE_VERBS
    return False


def _with_dot(text: str, start: int, end: int) -> int:
    """An abbreviation's end with its last dot: "U.S" is "U.S."."""
    return (
        end + 1
        if text[end : end + 1] == "." and end - start >= 3 and text[end - 2] in ". " and text[end - 1].isalpha()
        else end
    )


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """A recognizer's span without punctuation and possessive at its edges; None if nothing that can be a name is
    left."""
    while start < end and text[start] in _EDGES:
        start += 1
    while start < end and text[end - 1] in _EDGES and text[end - 2 : end] not in ("C#", "++"):
        end -= 1
    if _POSSESSIVE.search(text, start, end):
        end -= 2
    end = _with_dot(text, start, end)
    surface = text[start:end]
    form = normal_form(surface)
    # The recognizer is given a text of one case as a title, so a capital there says nothing.
    shouted = surface.isupper() and not text.isupper()
    if inadmissible(form) or is_measure(form) or (form in ALL_FUNCTION_WORDS and not shouted):
        return None
    # A word in capitals among others is stressed ("(RED)"); two letters may stand for a state ("AL").
    if form in COMMON_WORDS and (surface.islower() or text.isupper() or (shouted and len(form) > _LONGEST_OF_STATE)):
        return None
    return start, end


def _forms(
    surfaces: list[str], places: list[tuple[int, int, int]], signs: list[int], gazetteer: Gazetteer | None
) -> tuple[list[int], list[str], list[bool]]:
    """How many characters of an article to leave out of each span, the normal form under which the knowledge base most
    likely holds the rest, and whether the gazetteer knows it.

    "the Senate" is Senate, and so is "The Senate" at the start of a text; "in The Hague" keeps its article, for a
    capital there is part of the name (in the gold sets 2,250 of 2,320 names after an article stand without it).
    """
    tried: list[list[str]] = []
    skips: list[int] = []
    exact = list(map(normal_form, surfaces))
    held = gazetteer.known(exact).tolist() if gazetteer is not None else [False] * len(exact)
    for surface, form, is_held, (row, start, _) in zip(surfaces, exact, held, places, strict=True):
        article = _ARTICLE.match(surface)
        skip = 0
        bared = article is not None and (surface[0].islower() or start == 0)
        # Most are held as they stand, and the first that is held is chosen.
        forms = [form]
        if bared or not is_held:
            forms += [*inflections(form), *bases(form, _capital(surface, start), signs[row])]
        if article and bared:
            skip = article.end()
            bare = normal_form(surface[skip:])
            forms = [bare, *inflections(bare), *forms]
            if inadmissible(bare):
                skip, forms = 0, [form]
        skips.append(skip)
        tried.append(forms)
    flat = [form for forms in tried for form in forms]
    small = [surface == surface.lower() for surface, forms in zip(surfaces, tried, strict=True) for _ in forms]
    known = gazetteer.known(flat, small).tolist() if gazetteer is not None else [False] * len(flat)
    chosen: list[str] = []
    is_known: list[bool] = []
    place = 0
    for i, forms in enumerate(tried):
        hit = next((j for j in range(len(forms)) if known[place + j]), None)
        place += len(forms)
        chosen.append(forms[hit or 0])
        is_known.append(hit is not None)
        if skips[i] and hit is not None and hit >= len(forms) // 2:
            skips[i] = 0
    return skips, chosen, is_known


def _capital(surface: str, start: int) -> bool:
    """Whether the last word of a surface has a capital that its place does not give it."""
    last = surface.rfind(" ") + 1
    return start + last > 0 and surface[last : last + 1].isupper()


def _longest(rows: I64, starts: I64, ends: I64, limit: int) -> I64:
    """Places of the spans to keep: of each row the `limit` longest, in their first order."""
    order = np.lexsort((starts, starts - ends, rows))
    sorted_rows = rows[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_rows, sorted_rows, side="left")
    return np.sort(order[rank < limit])
