"""Words of a text that look like names and are in no mention. For explaining; no run of the pipeline asks it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from wikidata.common_words import COMMON_WORDS, FUNCTION_WORDS
from wikidata.surface import inadmissible, normal_form

LONGEST = 5
"""Words of a run that are looked up together."""
_WORD = re.compile(r"[^\W_]+(?:[’'&.-][^\W_]+)*")
_JOINS = frozenset(["of", "the", "de", "la", "le", "du", "des", "del", "der", "den", "van", "von", "di", "da"])

Span = tuple[int, int]


def name_like(text: str, mentions: Iterable[Span]) -> list[list[Span]]:
    """Runs of words, each with its words' spans, that no mention touches.

    A word looks like a name if it has a capital or is of a script without; in a text without a capital any word may.
    Some function words join what stands on both sides ("Bay of Biscay"). By themselves they are none, nor are numbers.
    """
    taken = sorted(mentions)
    cased = text != text.lower()
    runs: list[list[Span]] = []
    run: list[Span] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        word = match[0]
        free = not any(s < end and start < e for s, e in taken)
        if run and text[run[-1][1] : start].strip(" "):
            runs.append(run)
            run = []
        small = word == word.lower() and word.lower() in FUNCTION_WORDS
        named = not small and (not cased or word[:1] != word[:1].lower() or word.lower() == word.upper())
        if free and (named or (run and word in _JOINS)):
            run.append((start, end))
        elif run:
            runs.append(run)
            run = []
    runs.append(run)
    return [trimmed for one in runs if (trimmed := _trimmed(text, one))]


def parts(text: str, run: Sequence[Span]) -> Iterator[Span]:
    """Spans of consecutive words of a run that may be a name together, the longest first."""
    for width in range(min(LONGEST, len(run)), 0, -1):
        for at in range(len(run) - width + 1):
            words = run[at : at + width]
            if _trimmed(text, words) == words:
                yield words[0][0], words[-1][1]


def _trimmed(text: str, run: Sequence[Span]) -> list[Span]:
    """Without function words and numbers at its ends; [] where nothing is left, or a common word without a capital."""

    def plain(span: Span) -> bool:
        form = normal_form(text[span[0] : span[1]])
        return bool(form in FUNCTION_WORDS or form.isdigit() or inadmissible(form))

    run = list(run)
    while run and plain(run[0]):
        del run[0]
    while run and plain(run[-1]):
        del run[-1]
    if len(run) == 1 and is_common(word := text[slice(*run[0])]) and word == word.lower():
        return []
    return run


def is_common(words: str) -> bool:
    """Whether it is a word of the language, whatever it may name beside."""
    return normal_form(words) in COMMON_WORDS
