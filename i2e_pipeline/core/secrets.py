"""What must not be read by others: which settings are secrets, and how they are left out of what is printed or written.

The one place that knows a secret when it sees one. By its name: `fs.s3a.secret.key`, `password`, `api_token` …; by its
place: what stands before the @ of a URL, the signature of a signed one, `password=…` in a line of text; by its value,
once `remember` was told of it, or where the environment holds it under such a name.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"

_KINDS = (
    r"(?:secret|passw(?:or)?d|passphrase|credential"
    r"|(?:access|account|api|auth|private|secret|shared|signing|storage)[._-]?key"
    r"|(?:sas|oauth2?|session|security|access|refresh|auth|bearer|api|hf)[._-]?token)"
)
SPARK_REDACTION = (
    r"(?i)secret|passw(or)?d|passphrase|credential|token|(access|account|api|private)[._-]?key|[.]sas[.]"
    r"|[._-](pwd|pat|pass)$|://[^/@\s]+:[^/@\s]+@|[?&](sig|signature|x-amz-signature|x-amz-credential|x-goog-signature|x-goog-credential)="
)
"""The same for Spark (`spark.redaction.regex`), which looks at keys and values alike: its event log, its pages and its
log leave out what matches."""

_SHORT = r"(?:sas|token|pwd|pat|pass)"
"""Too short to tell within a word: they stand between dots, dashes and lines, or as a `Token` behind a small letter."""
_NAMED = re.compile(rf"{_KINDS}|(?:^|[._-]){_SHORT}(?:$|[._-])|(?-i:[a-z]Token)\b", re.IGNORECASE)
_ENDS = re.compile(rf"(?:^|_)(?:{_KINDS}s?|{_SHORT})(?:_id)?$", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^\s/@:'\"]*:(?P<password>(?!\d+/)[^\s@'\"]+)(?=@)")
"""A key may hold a slash, and is then no part of the address as others read it; a port is followed by one."""
_USER_OF_THE_WEB = re.compile(r"(?P<scheme>https?://)[^\s/@'\"]+(?=@)")
"""A token alone may stand there."""
_IN_QUERY = re.compile(
    rf"(?P<key>[?&;](?:sig|signature|token|x-(?:amz|goog)-(?:signature|credential|security-token)|[\w.-]*{_KINDS}[\w.-]*)=)"
    r"(?P<value>[^\s&;'\"]+)",
    re.IGNORECASE,
)
_KEY = rf"(?:[\w.-]*(?:{_KINDS}|[.]sas[.])[\w.-]*|(?:[\w.-]*[._-]|D)?{_SHORT}|[\w.-]*(?-i:[a-z]Token))"
_QUOTE = r"\\?['\"]"
_VALUE = r"(?P<value>\\?'[^']*'|\\?\"[^\"]*\"|[^\s,;'\")}\]]+)"
_PROSE = (
    r"(?!(?:an?|and|are|as|at|both|cannot|does|either|else|empty|expected|for|from|give|given|has|in|is|it|known|leave|"
    r"missing|must|name|names|need(?:s|ed)?|neither|no|none|nor|not|nothing|null|of|one|or|set|should|stands?|that|the|"
    r"this|to|unknown|unset|until|value|wanted|was|which|with|without|write)\b(?![\w/+=-]))"
)
"""Words that a message goes on with behind the name of a setting."""
_IN_TEXT = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # Authorization: Bearer X · {"authorization":"Basic X"}
        rf"(?P<key>\b(?:[\w-]*-)?authorization(?:{_QUOTE})?\s*[:=]\s*(?:{_QUOTE})?(?:(?:bearer|basic|token)\s+)?)"
        r"(?P<value>[^'\"\r\n,;]+)",
        rf"(?P<key>\bbearer\s+){_PROSE}(?P<value>[\w.~+/=-]{{6,}})",
        # {"api_key":"X"} · 'secret.key' : 'X' · -Dx.password=X · --token=X
        rf"(?P<key>\b{_KEY}(?:{_QUOTE}\s*[:=]\s*|\s*=\s*)){_VALUE}",
        # secret.key: X; a file of such a name is none
        rf"(?P<key>(?<![/\w.-])(?<!unexpected ){_KEY}:\s+){_PROSE}{_VALUE}",
        # --password X · AWS_SECRET_ACCESS_KEY X · spark.ssl.keyPassword X
        rf"(?P<key>(?:(?<!\S)--?{_KEY}|(?<![/\w.-])(?-i:[A-Z][A-Z0-9]*_(?=[A-Z0-9_]+\s)){_KEY}"
        rf"|(?<![/\w.-])(?=\w+\.[\w.-]+\s){_KEY})[ \t]+)(?!-|=|:){_PROSE}{_VALUE}",
    )
)
_SHORTEST = 4
"""Characters: a shorter value would be found in every other word."""
_NO_SECRETS = {"true", "false", "none", "null", "auto", "default"}

_remembered: set[str] = set()


def is_secret(key: str) -> bool:
    """Whether the value of a setting or property of this name is a secret.

    Of a dotted property any part tells (`fs.azure.account.key.NAME.blob…`), of a plain name its end: `api_token` is
    one, `token_column` and `max_tokens` are none.
    """
    return bool((_NAMED if "." in key else _ENDS).search(key))


def remember(values: Iterable[str]) -> None:
    """From now on `hide` leaves these values out of every text of this process."""
    _remembered.update(v for v in values if len(v) >= _SHORTEST and v.lower() not in _NO_SECRETS)


def found(tree: Any, key: str = "") -> set[str]:
    """The secrets of a tree of settings: texts under secret keys, and those that a text tells. `key`: where the tree
    stands."""
    if isinstance(tree, Mapping):
        return {secret for k, v in tree.items() for secret in found(v, f"{key}/{k}")}
    if isinstance(tree, list | tuple):
        return {secret for v in tree for secret in found(v, key)}
    if not isinstance(tree, str) or not tree:
        return set()
    if _at(key):
        return {tree}
    told = [*_IN_QUERY.finditer(tree), *(m for kind in _IN_TEXT for m in kind.finditer(_addresses(tree)))]
    in_urls = {match["password"] for match in _IN_URL.finditer(tree)}
    return in_urls | {match["value"].strip("\\'\"") for match in told} - {HIDDEN}


def without(tree: Any, key: str = "") -> Any:
    """A tree of settings as others may see it: `***` for texts under secret keys and for what a text tells of them."""
    if isinstance(tree, Mapping):
        return {k: without(v, f"{key}/{k}") for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(without(v, key) for v in tree)
    if not isinstance(tree, str) or not tree:
        return tree
    return HIDDEN if _at(key) else _told(tree)


def in_address(text: str) -> bool:
    """Whether this URI holds a password, a key or a signature. What lies on this machine holds none."""
    if "://" not in text or text.startswith("file://"):
        return False
    return any(kind.search(text) for kind in (_IN_URL, _USER_OF_THE_WEB, _IN_QUERY))


def _at(place: str) -> bool:
    return is_secret(place.rpartition("/")[2])


def _addresses(text: str) -> str:
    text = _USER_OF_THE_WEB.sub(rf"\g<scheme>{HIDDEN}", _IN_URL.sub(HIDDEN, text))
    return _IN_QUERY.sub(rf"\g<key>{HIDDEN}", text)


def _told(text: str) -> str:
    """A text without the secrets that it tells for itself."""
    text = _addresses(text)
    for kind in _IN_TEXT:
        text = kind.sub(rf"\g<key>{HIDDEN}", text)
    return text


def hide(text: str) -> str:
    """A line or a trace as it may be printed and written."""
    text = _told(text)
    for value in sorted(_remembered | _of_the_environment(), key=len, reverse=True):
        if value in text:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", HIDDEN, text)
    return text


_FOLDERS = ("pwd", "oldpwd")
"""What a shell calls the working folder."""


def _of_the_environment() -> set[str]:
    named = ((key.lower().replace("_", "."), value) for key, value in os.environ.items())
    return {value for key, value in named if len(value) >= 2 * _SHORTEST and is_secret(key) and key not in _FOLDERS}


class Hiding(logging.Filter):
    """Takes secrets out of a record before a handler formats it."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if (shown := hide(said)) != said:
            record.msg, record.args = shown, ()
        return True
