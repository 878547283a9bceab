"""The client of the live service, against a server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from wikidata.api import WikidataClient, WikidataError
from wikidata.items import Item, parse

AGENT = "i2e-tests/1.0 (https://example.org; tests@example.org)"


class Service:
    """A small wbgetentities: answers from `answers` first, then with one item per id asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.agents: list[str] = []
        self.answers: list[tuple[int, dict[str, str], Any]] = []
        self.open = self.most_open = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.open += 1
                service.most_open = max(service.most_open, service.open)
                query = {k: v[0] for k, v in parse_qs(urlparse(self.path).query).items()}
                service.asked.append(query)
                service.agents.append(self.headers["User-Agent"])
                status, headers, body = service.answers.pop(0) if service.answers else (200, {}, service.items(query))
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                service.open -= 1
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/w/api.php"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @staticmethod
    def items(query: dict[str, str]) -> dict[str, Any]:
        label = {"en": {"language": "mul", "value": "a label", "for-language": "en"}}
        return {
            "entities": {i: {"type": "item", "id": i, "labels": label, "pageid": 1} for i in query["ids"].split("|")}
        }


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def client(service: Service, waits: list[float]) -> WikidataClient:
    return WikidataClient(AGENT, endpoint=service.url, sleep=waits.append)


def test_a_user_agent_without_contact_is_refused() -> None:
    with pytest.raises(ValueError, match="python-requests/2"):
        WikidataClient("python-requests/2.32")


def test_fifty_ids_a_request_with_the_parameters_the_service_wants(service: Service, client: WikidataClient) -> None:
    found = list(client.items([*range(1, 102), "Q7", 7]))
    assert [e["id"] for e in found] == [f"Q{n}" for n in range(1, 102)]
    assert [len(q["ids"].split("|")) for q in service.asked] == [50, 50, 1]
    first = service.asked[0]
    assert first["languages"] == "en|mul|en-gb|en-ca|en-us"  # a comma would ask for every language
    assert (first["languagefallback"], first["maxlag"], first["action"]) == ("1", "5", "wbgetentities")
    assert set(service.agents) == {AGENT}


def test_lines_are_dump_lines(client: WikidataClient) -> None:
    (text,) = client.dump_lines([42])
    item = parse(text)
    assert isinstance(item, Item)
    assert item.id == "Q42"
    assert item.labels
    assert item.labels["en"].value == "a label"
    assert b"pageid" not in text


def test_the_service_says_how_long_to_wait(service: Service, client: WikidataClient, waits: list[float]) -> None:
    lagged = {"error": {"code": "maxlag", "info": "Waiting for a host: 6 seconds lagged"}}
    past = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    service.answers = [
        (200, {"Retry-After": "5"}, lagged),
        (429, {"Retry-After": "7"}, ""),
        (503, past, ""),
        (200, {}, "<html>"),
    ]
    assert [e["id"] for e in client.items(["Q1"])] == ["Q1"]
    assert waits == [5.0, 7.0, 0.0, 8.0]


def test_it_gives_up_with_what_was_said(service: Service, client: WikidataClient) -> None:
    service.answers = [(503, {}, "")] * 5
    with pytest.raises(WikidataError, match="Q1 and 1 more: no answer after 5 attempts, last: HTTP 503"):
        list(client.items([1, 2]))


def test_an_error_of_ours_is_not_repeated(service: Service, client: WikidataClient, waits: list[float]) -> None:
    service.answers = [(200, {}, {"error": {"code": "no-such-entity", "info": "Could not find"}})]
    with pytest.raises(WikidataError, match="no-such-entity"):
        list(client.items([1]))
    assert waits == []
    assert len(service.asked) == 1


def test_a_server_that_is_not_there(waits: list[float]) -> None:
    client = WikidataClient(AGENT, endpoint="http://127.0.0.1:9/", attempts=2, sleep=waits.append)
    with pytest.raises(WikidataError, match="no answer after 2 attempts"):
        list(client.items([1]))
    assert len(waits) == 1


def test_missing_and_redirected_items(service: Service, client: WikidataClient) -> None:
    moved = {"type": "item", "id": "Q9", "redirects": {"from": "Q2", "to": "Q9"}}
    service.answers = [(200, {}, {"entities": {"Q1": {"id": "Q1", "missing": ""}, "Q9": moved}})]
    assert [e["id"] for e in client.items([1, 2])] == ["Q9"]


def test_one_request_at_a_time(service: Service, client: WikidataClient) -> None:
    threads = [threading.Thread(target=lambda n=n: list(client.items([n]))) for n in range(1, 6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(service.asked) == 5
    assert service.most_open == 1


@pytest.mark.parametrize("wrong", ["P31", "Q0", "42", ""])
def test_what_is_no_id_is_refused(client: WikidataClient, wrong: str) -> None:
    with pytest.raises(ValueError, match="is no item id"):
        list(client.items([wrong]))
