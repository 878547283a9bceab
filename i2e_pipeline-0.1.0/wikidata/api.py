"""Single items from Wikidata's live service, in the form of dump lines.

For a handful of items; a knowledge base comes from the dump. The client keeps to the service's etiquette: a User-Agent
with a contact, one request at a time, at most 50 ids a request, `maxlag=5`, and the waiting time that Retry-After
names. https://www.mediawiki.org/wiki/API:Etiquette ·
https://www.wikidata.org/w/api.php?action=help&modules=wbgetentities
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from wikidata.surface import LANGUAGES

ENDPOINT = "https://www.wikidata.org/w/api.php"
MAX_IDS = 50
"""The service's limit for callers without a bot flag."""
PROPERTIES = ("info", "labels", "descriptions", "aliases", "claims", "sitelinks")

_CONTACT = re.compile(r"https?://\S+|\S+@\S+\.\S+")
_RETRIED = (429, 500, 502, 503, 504)


class WikidataError(RuntimeError):
    """The service refused a request, or did not answer in time; the message names the ids and what it said."""


class WikidataClient:
    """Fetches items from wbgetentities.

    user_agent    names the program and how to reach its owner, e.g. "my-tool/1.0 (https://example.org;
                  me@example.org)"; one without an address is refused here, as the service refuses it there
    languages     labels, descriptions and aliases to ask for
    sleep         waits so many seconds; a test passes its own
    Raises ValueError for a user agent without contact.
    """

    def __init__(
        self,
        user_agent: str,
        languages: Sequence[str] = LANGUAGES,
        endpoint: str = ENDPOINT,
        timeout: float = 30.0,
        attempts: int = 5,
        max_wait: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not _CONTACT.search(user_agent):
            raise ValueError(
                f"user_agent: {user_agent!r} has no contact: Wikimedia wants an address, "
                "e.g. 'my-tool/1.0 (me@example.org)'"
            )
        self._languages, self._endpoint, self._timeout = tuple(languages), endpoint, timeout
        self._attempts, self._max_wait, self._sleep = attempts, max_wait, sleep
        self._session = requests.Session()
        self._session.headers["User-Agent"] = user_agent
        self._one_at_a_time = threading.Lock()

    def items(self, ids: Iterable[str | int]) -> Iterator[dict[str, Any]]:
        """The entities of these ids ("Q42" or 42) as the service gives them, in the order asked, equal ids once.

        Ids that do not exist are left out; a redirect yields the item it leads to.
        Raises WikidataError after the last attempt, ValueError for what is no id.
        """
        wanted = list(dict.fromkeys(_qid(i) for i in ids))
        for start in range(0, len(wanted), MAX_IDS):
            chunk = wanted[start : start + MAX_IDS]
            found = self._ask(chunk)
            for qid in chunk:
                entity = found.get(qid)
                if entity is not None and "missing" not in entity:
                    yield entity

    def dump_lines(self, ids: Iterable[str | int]) -> Iterator[bytes]:
        """The same as lines of a dump, without comma and newline: `items.parse` reads them.

        The service's own language fallback is resolved: a label found in another language stands under the language
        asked.
        """
        for entity in self.items(ids):
            for part in ("labels", "descriptions"):
                texts = entity.get(part) or {}
                entity[part] = {asked: {"language": asked, "value": text["value"]} for asked, text in texts.items()}
            for extra in ("pageid", "ns", "redirects"):
                entity.pop(extra, None)
            yield json.dumps(entity, separators=(",", ":")).encode()

    def _ask(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        parameters: dict[str, str | int] = {
            "action": "wbgetentities",
            "format": "json",
            "ids": "|".join(ids),
            "props": "|".join(PROPERTIES),
            "languages": "|".join(self._languages),  # a comma would silently return all languages
            "languagefallback": 1,
            "maxlag": 5,
        }
        said = ""
        for attempt in range(self._attempts):
            try:
                with self._one_at_a_time:
                    answer = self._session.get(self._endpoint, params=parameters, timeout=self._timeout)
            except requests.RequestException as fault:
                said = str(fault)
                if attempt + 1 < self._attempts:
                    self._sleep(min(2.0**attempt, self._max_wait))
                continue
            wait = _retry_after(answer.headers.get("Retry-After"), 2.0**attempt)
            if answer.status_code in _RETRIED:
                said = f"HTTP {answer.status_code}"
            elif answer.status_code != 200:
                raise WikidataError(f"{self._named(ids)}: HTTP {answer.status_code}: {answer.text[:200]}")
            else:
                try:
                    body = answer.json()
                except ValueError:
                    body = {"error": {"code": "no-json", "info": answer.text[:200]}}
                error = body.get("error")
                if not error:
                    return _by_asked_id(ids, body.get("entities") or {})
                said = f"{error.get('code')}: {error.get('info')}"
                if error.get("code") not in ("maxlag", "ratelimited", "no-json", "readonly"):
                    raise WikidataError(f"{self._named(ids)}: {said}")
            if attempt + 1 < self._attempts:
                self._sleep(min(wait, self._max_wait))
        raise WikidataError(f"{self._named(ids)}: no answer after {self._attempts} attempts, last: {said}")

    def _named(self, ids: Sequence[str]) -> str:
        return f"{self._endpoint} for {ids[0]}" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")


def _qid(value: str | int) -> str:
    qid = f"Q{value}" if isinstance(value, int) else value
    if not re.fullmatch(r"Q[1-9][0-9]*", qid):
        raise ValueError(f"{value!r} is no item id (Q42, or 42)")
    return qid


def _by_asked_id(ids: Sequence[str], entities: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Entities under the ids that were asked; a redirected one carries `redirects.from`."""
    found = dict(entities)
    for entity in entities.values():
        source = (entity.get("redirects") or {}).get("from")
        if isinstance(source, str) and source in ids:
            found[source] = entity
    return found


def _retry_after(header: str | None, default: float) -> float:
    """Seconds to wait: the header counts them, or names a date."""
    if not header:
        return default
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return default
    if then.tzinfo is None:
        then = then.replace(tzinfo=timezone.utc)
    return max(0.0, (then - datetime.now(timezone.utc)).total_seconds())
