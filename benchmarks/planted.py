"""A verifier that knows the truth and errs as often as it is told: a server of OpenAI's protocol on this machine.

For tests, and for benchmarks/labels.py --verdicts planted: what labels gain from a verifier of a known reliability. It
says nothing of what any real model gains.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from i2e_pipeline.core.config import ImageLimits, VerifyConfig
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.verify.asking import scaled
from i2e_pipeline.verify.server import as_sent

_LINE = re.compile(r"^(\d+): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """A question as the server got it."""

    text: str
    image: str
    """The data URL."""
    headers: Mapping[str, str]
    call: int
    """How many came before it."""
    before: int
    """How many of these were the same."""

    @property
    def key(self) -> str:
        return hashlib.blake2b(f"{self.text}\0{self.image}".encode(), digest_size=16).hexdigest()


@dataclass
class Reply:
    """What the server sends."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False
    """Close the connection without a word."""
    stall: threading.Event | None = None
    """Send nothing until this is set."""


def completion(content: Any) -> Reply:
    """A reply of the protocol that says this."""
    return Reply(body=json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode())


@dataclass
class Loopback:
    """A server, what it was asked and what it said."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    """Questions by their keys: how often a completion was sent for each."""
    most_at_once: int = 0

    @property
    def settings(self) -> tuple[str, ...]:
        """Overrides of a config that asks it."""
        return (f"verify.server={self.url}", "verify.served_model=planted", "verify.timeout_s=20")


@contextmanager
def serving(answer: Callable[[Asked], Reply]) -> Iterator[Loopback]:
    """A server on a free port for as long as the block lasts."""
    lock, now, seen = threading.Lock(), 0, Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal now
            tree = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            (content,) = [m["content"] for m in tree["messages"]]
            parts = {part["type"]: part for part in content}
            with lock:
                now += 1
                told.most_at_once = max(told.most_at_once, now)
                text, image = parts["text"]["text"], parts["image_url"]["image_url"]["url"]
                one = Asked(text, image, dict(self.headers), len(told.asked), 0)
                one = Asked(text, image, dict(self.headers), len(told.asked), seen[one.key])
                seen[one.key] += 1
                told.asked.append(one)
            try:
                self._send(one, answer(one))
            finally:
                with lock:
                    now -= 1

        def _send(self, one: Asked, reply: Reply) -> None:
            if reply.stall is not None:
                reply.stall.wait(60)
            if reply.close or reply.stall is not None:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            self.wfile.flush()
            if reply.status == 200:
                with lock:
                    told.answered[one.key] += 1

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A client that was killed."""

    server = Quiet(("127.0.0.1", 0), Handler)
    told = Loopback(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Planted:
    """Answers by the truth, but for a share of questions that is drawn by their content."""

    truth: Mapping[str, int | None]
    """By image, as `shown` names it: the entity that it shows; None, none of the knowledge base."""
    entities: Mapping[int, tuple[str, str | None]]
    """Name and description."""
    noise: float
    wrong: set[str] = field(default_factory=set)
    """Keys of the questions whose answer was wrong on purpose."""

    def __call__(self, asked: Asked) -> Reply:
        return completion(json.dumps({"answer": self.number(asked), "reason": "as planted"}))

    def number(self, asked: Asked) -> int:
        lines = {int(number): line for number, line in _LINE.findall(asked.text)}
        entity = self.truth.get(digest(asked.image))
        right = next((n for n, line in lines.items() if n and entity is not None and self._is(entity, line)), 0)
        drawn = hashlib.blake2b(f"noise {asked.key}".encode(), digest_size=8).digest()
        if int.from_bytes(drawn[:4], "big") / 2**32 >= self.noise:
            return right
        self.wrong.add(asked.key)
        others = [n for n in lines if n != right]
        return others[drawn[4] % len(others)]

    def _is(self, entity: int, line: str) -> bool:
        name, description = self.entities.get(entity, ("", None))
        about = " ".join((description or "").split())[:200]
        return bool(name) and line.startswith(" ".join(name.split())) and line.endswith(about)


def digest(shown: str) -> str:
    return hashlib.blake2b(shown.encode(), digest_size=16).hexdigest()


def shown(stored: bytes, config: VerifyConfig) -> str | None:
    """How a planted verifier names an image, by what is sent of it; None of one that cannot be opened."""
    opened = open_rgb(stored, ImageLimits(min_side=1, max_aspect=1e9), config.max_side)
    if isinstance(opened, Rejected):
        return None
    return digest(as_sent(scaled(opened[0], config.max_side)))
