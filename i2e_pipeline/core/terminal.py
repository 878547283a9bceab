"""What is shown on a terminal: texts from outside without what a terminal would obey.

Names of entities, alt-texts, file names and what a decoder says of an image come from strangers. A terminal takes some
of their characters for orders: to clear the screen, to write elsewhere on it, to set its title, to type an answer.
"""

from __future__ import annotations

import re

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters but for line end and tab; C1's among them, which are 8-bit escapes; and those that turn the order
of what is shown behind them."""


def shown(text: str) -> str:
    """The text with each control character as it is written in code: `\\x1b[2J`. Line ends and tabs stay."""
    return _OBEYED.sub(_written, text)


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown_json(text: str) -> str:
    """The same of JSON, which stays JSON of the same value: it escapes those below 0x20 by itself."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
