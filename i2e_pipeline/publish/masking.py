"""Masks mail addresses and telephone numbers in published alt-text.

A number counts as a telephone's where it is written as one: with the country's code (+44 …), with the area in
brackets, grouped as in North America (555-123-4567), or behind a word that announces one ("Tel. …"). Numbers of
articles, prices and dates are none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

_LEAST_DIGITS, _MOST_DIGITS = 7, 15
"""Of a telephone number (ITU-T E.164 allows 15)."""
_MAIL = re.compile(r"[\w.%+-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}")
_TELEPHONE = re.compile(
    r"""(?<![\w+.])(?P<number>
        \+\d{1,3}(?:[ .\-/]?\(?\d{1,4}\)?){2,5}
        |\(\d{2,5}\)[ .\-]?\d{3,4}[ .\-]?\d{3,4}
        |\d{3}([\-. ])\d{3}\2\d{4}
    )(?![\w]|-\w)""",
    re.VERBOSE,
)
_ANNOUNCED = re.compile(
    r"(?<!\w)(?:tel|telephone|phone|mobile|call|whatsapp|fax)\b[.:]?\s*(?P<number>\d[\d ().\-/]{5,18}\d)(?![\w]|-\w)",
    re.IGNORECASE,
)
_MAY_HOLD = r"@|\d[\d ().\-/+]{5,}\d"
MASKS = {"mail": "[mail]", "telephone": "[telephone]"}


def mask(texts: pa.Array, what: Sequence[str]) -> pa.Array:
    """The texts (string) with each of `what` (mail, telephone) replaced by MASKS; null stays null."""
    if not what:
        return texts
    at = pc.indices_nonzero(pc.fill_null(pc.match_substring_regex(texts, _MAY_HOLD), False))
    if not len(at):
        return texts
    masked = [_masked(text, what) for text in texts.take(at).to_pylist()]
    may = pc.is_in(pa.array(range(len(texts)), pa.uint64()), value_set=at)
    return pc.replace_with_mask(texts, may, pa.array(masked, texts.type))


def _masked(text: str, what: Sequence[str]) -> str:
    if "mail" in what:
        text = _MAIL.sub(MASKS["mail"], text)
    if "telephone" in what:
        for pattern in (_TELEPHONE, _ANNOUNCED):
            text = pattern.sub(_without_number, text)
    return text


def _without_number(found: re.Match[str]) -> str:
    number = found["number"]
    if not _LEAST_DIGITS <= sum(map(str.isdecimal, number)) <= _MOST_DIGITS:
        return found[0]
    return found[0][: found.start("number") - found.start()] + MASKS["telephone"]
