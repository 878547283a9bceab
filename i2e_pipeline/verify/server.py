"""A server that speaks OpenAI's protocol (vLLM and others), asked over HTTP: POST <server>/v1/chat/completions.

Writes   answers; what could not be had after all tries, as Failed

Several questions are under way at a time, each on a thread of its own. What may pass (no connection, no answer in time,
HTTP 408, 409, 429 and 5xx, a reply that is no completion) is tried again after a wait that doubles; its random part is
drawn by the question's content, so that many tasks do not come back together and a run is the same each time. What will
not pass (401, 403, 404, a redirect) ends the task at once. No question takes longer than all of its tries and waits
together: a server that stalls, or sends a byte a minute, costs answers and never hangs a run.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import io
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from PIL import Image

from i2e_pipeline.core import secrets
from i2e_pipeline.core.config import VerifyConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.verify.asking import Failed, Question, VerifierError

PATH = "/v1/chat/completions"
LONGEST_REPLY = 1 << 20
"""Bytes of a reply that are read; one that is longer is none."""
_LONGEST_WAIT, _LONGEST_ASKED_FOR = 60.0, 300.0
"""Seconds between two tries, by ourselves and as a server may ask for."""
_MAY_PASS = (408, 409, 425, 429)
_FINAL = {
    401: "it wants a key, or another one: set verify.api_key_env to the variable that holds it",
    403: "the key may not use it: look at verify.api_key_env and at the server's settings",
    404: "there is no such address or model: look at verify.server (without /v1) and verify.served_model",
    405: "the address takes no questions: look at verify.server",
}
_JPEG_QUALITY = 92
_SLACK = 5.0


class _MayPass(I2EError):
    """A try that failed for what may pass."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.wait = why, wait


class Server:
    """One server; it may be asked from one thread, and asks on several."""

    def __init__(self, config: VerifyConfig) -> None:
        """Raises VerifierError where the environment lacks the key's variable."""
        self.name = f"verify.server={config.server}"
        self.at_once = config.requests
        self._config = config
        self._url = config.server.removesuffix("/v1") + PATH
        self._key = key_of(config)
        tries = config.retries + 1
        waits = sum(min(_LONGEST_WAIT, config.backoff_s * 2**n) for n in range(config.retries))
        # Until the answer's head is there requests waits for each piece by itself, and a server may send many.
        self._longest = tries * (2 * config.timeout_s + _SLACK) + waits
        self._patience = self._longest + config.retries * _LONGEST_ASKED_FOR

    def prepare(self, image: Image.Image) -> str:
        return as_sent(image)

    def answers(
        self, asked: Sequence[Question], enough: Callable[[], bool] = lambda: False
    ) -> Generator[list[tuple[int, str | Failed]], None, None]:
        """Raises VerifierError for what will not pass, when what is under way has been answered and handed out."""
        todo, done = deque(range(len(asked))), queue.SimpleQueue[tuple[int, str | Failed | BaseException]]()
        started: dict[int, float] = {}
        stop, lock = threading.Event(), threading.Lock()

        def work() -> None:
            with requests.Session() as session:
                while True:
                    with lock:
                        if not todo or stop.is_set():
                            return
                        number = todo.popleft()
                        started[number] = time.monotonic()
                    try:
                        done.put((number, self._ask(session, asked[number], stop)))
                    except BaseException as error:
                        stop.set()  # what ends the task is no reason to ask anything more
                        done.put((number, error))

        def begin() -> None:
            # Daemons: one that a server holds must not hold the process.
            threading.Thread(target=work, name="verifier", daemon=True).start()

        for _ in range(min(self.at_once, len(asked))):
            begin()
        left, fault = set(range(len(asked))), None
        try:
            while left:
                group: list[tuple[int, str | Failed]] = []
                for number, said in _arrived(done):
                    if number in left:
                        left.discard(number)
                        if isinstance(said, BaseException):
                            fault = fault or said
                        else:
                            group.append((number, said))
                now = time.monotonic()
                for number in [n for n in left if now - started.get(n, now) > self._patience]:
                    left.discard(number)
                    group.append((number, Failed(f"no answer within {self._patience:.0f} s, all tries together")))
                    begin()  # the thread that asked is still held
                if group:
                    yield group
                if fault is not None or enough():
                    stop.set()
                if stop.is_set():
                    with lock:
                        left &= started.keys()
        finally:
            stop.set()
        if fault is not None:
            raise fault

    def _ask(self, session: requests.Session, question: Question, stop: threading.Event) -> str | Failed:
        for attempt in range(self._config.retries + 1):
            try:
                return self._tried(session, question)
            except _MayPass as error:
                if attempt == self._config.retries or stop.is_set():
                    tries = f"{attempt + 1} tries" if attempt else "one try"
                    return Failed(f"{error.why} ({tries})")
                wait = max(error.wait, self._pause(question.key, attempt))
                if stop.wait(wait):
                    return Failed(error.why)
        raise AssertionError("every try returns or raises")

    def _pause(self, key: bytes, attempt: int) -> float:
        """Seconds before the next try: doubled with each, and between half of that and all by the question's
        content."""
        drawn = hashlib.blake2b(key + bytes([attempt]), digest_size=4).digest()
        share = 0.5 + 0.5 * int.from_bytes(drawn, "big") / 2**32
        return min(_LONGEST_WAIT, self._config.backoff_s * 2**attempt) * share

    def _tried(self, session: requests.Session, question: Question) -> str | Failed:
        body = {
            "model": self._config.served_model,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": question.image}},
                        {"type": "text", "text": question.text},
                    ],
                }
            ],
            "temperature": 0,
            "max_tokens": self._config.max_tokens,
        }
        ends = time.monotonic() + self._config.timeout_s
        try:
            with session.post(
                self._url,
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                auth=self._authorize,  # also keeps requests from what ~/.netrc has for the host
                timeout=self._config.timeout_s,
                allow_redirects=False,
                stream=True,
            ) as reply:
                content = _read(reply, ends)
                return self._said(reply, content)
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            raise _MayPass(f"no answer within {self._config.timeout_s:g} s") from None
        except requests.exceptions.SSLError as error:
            raise VerifierError(f"{self.name}: its certificate is not trusted here ({_why(error)})") from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _MayPass(f"no connection, or one that broke ({_why(error)})") from None

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _said(self, reply: requests.Response, content: bytes) -> str | Failed:
        status = reply.status_code
        if status in _FINAL:
            raise VerifierError(f"{self.name} says {status}{_excerpt(content)}: {_FINAL[status]}")
        if 300 <= status < 400:
            to = urlsplit(reply.headers.get("Location", "")).netloc or "another address"
            raise VerifierError(
                f"{self.name} says {status} and sends on to {to}, where nobody is asked: name it itself"
            )
        if status in _MAY_PASS or status >= 500:
            raise _MayPass(f"HTTP {status}{_excerpt(content)}", _asked_for(reply.headers.get("Retry-After")))
        if status != 200:
            return Failed(f"HTTP {status}{_excerpt(content)}")  # it will not take this question
        try:
            said = json.loads(content)["choices"][0]["message"]["content"]
            if isinstance(said, list):
                said = "".join(part["text"] for part in said if part.get("type") == "text")
            if said is None:  # refused, or nothing but thoughts
                said = ""
            if not isinstance(said, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _MayPass(f"a reply that is no chat completion{_excerpt(content)}") from None
        return said


def _arrived(done: queue.SimpleQueue[Any]) -> list[Any]:
    """What has come by now; the first of it is waited for, a second at most."""
    found: list[Any] = []
    with suppress(queue.Empty):
        found.append(done.get(timeout=1.0))
        while True:
            found.append(done.get_nowait())
    return found


def as_sent(image: Image.Image) -> str:
    """A data URL of the image as JPEG, which every server reads."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def key_of(config: VerifyConfig) -> str | None:
    """The key, from the environment of this process; from now on it is left out of all that is said here. Raises
    VerifierError."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise VerifierError(
            f"verify.api_key_env names the variable {config.api_key_env}, which is not set here: export it; on a "
            "cluster, where workers have an environment of their own, by their container or node, or with "
            f"spark.executorEnv.{config.api_key_env}"
        )
    secrets.remember([key])
    return key


def _read(reply: requests.Response, ends: float) -> bytes:
    """The reply's body. Raises _MayPass where it is too long, or does not come to its end in time."""
    content = bytearray()
    # What is there, as it comes: a reader of whole blocks would wait for each as long as a server likes.
    while part := reply.raw.read1(1 << 16, decode_content=True):
        content += part
        if len(content) > LONGEST_REPLY:
            raise _MayPass(f"a reply of more than {LONGEST_REPLY:,} bytes")
        if time.monotonic() > ends:
            raise _MayPass("an answer that did not come to its end in time")
    return bytes(content)


def _asked_for(header: str | None) -> float:
    """Seconds of a Retry-After, within bounds: a number, or a date."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_ASKED_FOR) if seconds == seconds else 0.0


def _excerpt(content: bytes) -> str:
    """The beginning of what a server says of an error, in a line; it may repeat what it was sent."""
    text = secrets.hide(" ".join(content[:2000].decode("utf-8", "replace").split()))
    shown = "".join(c for c in text if c.isprintable())[:160]
    return f" ({shown})" if shown else ""


def _why(error: Exception) -> str:
    return secrets.hide(str(error).strip().split("\n")[0])[:200]
