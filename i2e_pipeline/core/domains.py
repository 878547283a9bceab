"""Domains of addresses. A domain stands for all below it."""

from __future__ import annotations

import re
from collections.abc import Set
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

_DOMAIN = re.compile(r"(?:[\w-]+\.)+[\w-]+\Z")


def checked(text: str) -> str:
    """A domain as it is compared: `*.Example.org` is example.org. Raises ValueError for what is none."""
    domain = text.strip().lower().removeprefix("*.").strip(".")
    if not _DOMAIN.match(domain):
        raise ValueError(f"{text!r} is no domain: write example.org")
    return domain


def within(urls: pa.Array, domains: Set[str]) -> np.ndarray:
    """bool: which addresses (string or null) are in one of the domains."""
    addresses = urls.to_pylist() if domains else [None] * len(urls)
    return np.array([u is not None and not domains.isdisjoint(_above(u)) for u in addresses], dtype=bool)


def _above(url: str) -> list[str]:
    """The host of an address and every domain that it is below."""
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname
    except ValueError:
        return []
    parts = (host or "").rstrip(".").split(".")
    return [".".join(parts[n:]) for n in range(len(parts))]
