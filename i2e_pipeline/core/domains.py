"""Domains of addresses: the one place that parts an address. A domain stands for all below it.

A host is compared as names are looked up: in small letters, and in ASCII (`xn--…`, RFC 3490) where it has other
letters, so that `münchen.de` and `xn--mnchen-3ya.de` are one. That is Python's own codec, which parts what connections
are opened to: of `ß` it makes `ss`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_DOMAIN = re.compile(r"(?:[\w-]+\.)+[\w-]+\Z")
_LONGEST = 253
"""Letters of a host in ASCII (RFC 1035)."""
_NAME, _DOT = r"[^/?#\\:@\x00-\x20]*", r"[.\x{3002}\x{ff0e}\x{ff61}]"
_USER, _END = r"(?:[^/?#\\]*@)?", r"(?:[/?#\\]|$)"
_HOST = (
    r"^[\x00-\x20]*(?:"
    rf"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//{_USER}(?P<host>\[[^\]]*\]|[^/?#\\:@]*)"
    rf"|{_USER}(?P<bare>{_NAME}{_DOT}{_NAME})(?::[0-9]*)?{_END})"
)
"""RE2. With `//`, alone or behind a scheme, what follows is a host. Without, what stands before the first slash is one
where it has a dot: `example.org/a`, and neither `data:image/png` nor `pictures//a`. Browsers take `\\` for a slash."""


def checked(text: str) -> str:
    """A domain as it is compared: `*.Example.org` is example.org. Raises ValueError for what is none."""
    domain = in_ascii(text.strip().lower().removeprefix("*.").strip(".")).strip(".")
    if not _DOMAIN.match(domain):
        raise ValueError(f"{text!r} is no domain: write example.org")
    return domain


def in_ascii(host: str) -> str:
    """A host as names are looked up: letters of other scripts, widths and dots brought to ASCII. Raises ValueError for
    what no name can be."""
    try:
        return (host if host.isascii() else host.encode("idna").decode()).lower()
    except UnicodeError as error:
        raise ValueError(f"{host!r} is no name of a host: {error}") from None


def hosts(urls: pa.Array) -> pa.Array:
    """The host of each address (string or null) as it is compared, without user, port and brackets; null where it has
    none."""
    found = pc.extract_regex(urls.cast(pa.string()), _HOST)
    behind, bare = (pc.struct_field(found, name) for name in ("host", "bare"))
    host = pc.utf8_rtrim(pc.utf8_lower(pc.if_else(pc.equal(bare, ""), behind, bare)), ".")
    odd = pc.or_(pc.invert(pc.string_is_ascii(host)), pc.match_substring(host, "%"))
    if pc.any(odd).as_py():
        named = pa.array([_undone(one) for one in host.filter(odd).to_pylist()], pa.string())
        host = pc.replace_with_mask(host, pc.fill_null(odd, False), named)
    host = pc.utf8_trim(host, "[]")
    is_one = pc.and_(pc.greater(pc.binary_length(host), 0), pc.less_equal(pc.binary_length(host), _LONGEST))
    return pc.if_else(is_one, host, pa.scalar(None, pa.string()))


def _undone(host: str) -> str | None:
    """With its escapes undone and in ASCII; None: no name can be that."""
    try:
        return in_ascii(unquote(host).lower()).rstrip(".")
    except ValueError:
        return None


def bare_hosts(urls: pa.Array) -> pa.Array:
    """The same without a leading "www.", which the same site has and has not. A list that names one takes out all
    that is counted under it."""
    return pc.replace_substring_regex(hosts(urls), r"^www\.(.*\..*)$", r"\1")


class Domains:
    """A list of domains, as `checked` gives them, to be asked about many addresses."""

    def __init__(self, names: Iterable[str]) -> None:
        by_dots: dict[int, list[str]] = {}
        for name in sorted(set(names)):
            by_dots.setdefault(name.count("."), []).append(name)
        self._by_dots = {dots: pa.array(same, pa.string()) for dots, same in by_dots.items()}

    def __bool__(self) -> bool:
        return bool(self._by_dots)

    def hold(self, urls: pa.Array) -> np.ndarray:
        """bool: which addresses (string or null) lie in one of them."""
        found = np.zeros(len(urls), dtype=bool)
        host = hosts(urls) if self else None
        for dots, names in self._by_dots.items():
            above = pc.struct_field(pc.extract_regex(host, rf"(?:^|\.)(?P<d>(?:[^.]*\.){{{dots}}}[^.]*)$"), "d")
            found |= pc.is_in(above, names).to_numpy(zero_copy_only=False)
        return found
