"""A server that errs, stalls and says nonsense: what may pass is tried again, what will not is said at once."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable

import pytest
from PIL import Image

from benchmarks.planted import Asked, Loopback, Reply, completion, serving
from i2e_pipeline.core.config import VerifyConfig
from i2e_pipeline.verify import server
from i2e_pipeline.verify.asking import Failed, Question, VerifierError
from i2e_pipeline.verify.server import LONGEST_REPLY, Server

KEY = "sk-of-this-test-7f3a9c"


def ask(told: Loopback, count: int = 1, **settings: object) -> dict[int, str | Failed]:
    config = VerifyConfig(
        server=told.url, served_model="m", **{"backoff_s": 0.01, "retries": 3, "timeout_s": 5, **settings}
    )  # type: ignore[arg-type]
    asked = Server(config)
    image = asked.prepare(Image.new("RGB", (4, 4)))
    questions = [Question(bytes([n]) * 16, f"question {n}", image) for n in range(count)]
    return {number: said for group in asked.answers(questions) for number, said in group}


def first(times: int, reply: Callable[[], Reply]) -> Callable[[Asked], Reply]:
    """A server that sends this to each question so many times before it answers."""
    return lambda asked: reply() if asked.before < times else completion(f"about {asked.text}")


def test_questions_are_asked_side_by_side_and_each_has_its_own_answer() -> None:
    together = threading.Barrier(4)

    def answer(asked: Asked) -> Reply:
        together.wait(10)
        return completion(f"about {asked.text}")

    with serving(answer) as told:
        assert ask(told, 12, requests=4) == {n: f"about question {n}" for n in range(12)}
        assert told.most_at_once == 4
    assert told.asked[0].image.startswith("data:image/jpeg;base64,")
    assert "Authorization" not in told.asked[0].headers


TRANSIENT: dict[str, Callable[[], Reply]] = {
    "500": lambda: Reply(500, b"<html>oh</html>"),
    "503": lambda: Reply(503),
    "429": lambda: Reply(429, b"slow down", {"Retry-After": "0.05"}),
    "429 with a date": lambda: Reply(429, b"", {"Retry-After": "Sat, 01 Jan 2000 00:00:00 GMT"}),
    "closed": lambda: Reply(close=True),
    "garbage": lambda: Reply(200, b"<html>it works</html>"),
    "no choices": lambda: Reply(200, b'{"choices": []}'),
    "no text": lambda: completion(17),
    "deep": lambda: Reply(200, b"[" * 100_000),
    "cut": lambda: Reply(200, b'{"choices": [', {"Content-Length": "4000"}, close=False),
    "too long": lambda: Reply(200, b" " * (LONGEST_REPLY + 1)),
}


@pytest.mark.parametrize("kind", TRANSIENT)
def test_what_may_pass_is_tried_again(kind: str) -> None:
    timeout = {"timeout_s": 0.5} if kind == "cut" else {}
    with serving(first(2, TRANSIENT[kind])) as told:
        assert ask(told, **timeout) == {0: "about question 0"}
        assert len(told.asked) == 3
        assert isinstance(ask(told, 2, retries=0, **timeout)[1], Failed)


@pytest.mark.parametrize("kind", TRANSIENT)
def test_tries_come_to_an_end_and_the_last_is_told(kind: str) -> None:
    timeout = {"timeout_s": 0.3} if kind == "cut" else {}
    with serving(first(99, TRANSIENT[kind])) as told:
        (said,) = ask(told, retries=2, **timeout).values()
        assert isinstance(said, Failed)
        assert "3 tries" in said.why
        assert len(told.asked) == 3


def test_a_server_that_stalls_costs_answers_and_no_more() -> None:
    stall = threading.Event()
    with serving(lambda a: Reply(stall=stall) if a.text == "question 1" else completion("1")) as told:
        said = ask(told, 3, timeout_s=0.3, retries=1)
        stall.set()
    assert said[0] == said[2] == "1"
    assert isinstance(said[1], Failed)
    assert "no answer within 0.3 s (2 tries)" in said[1].why


def test_a_server_that_sends_a_byte_now_and_then_costs_answers_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a time-out that starts anew with each byte."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def drip() -> None:
            while True:
                try:
                    taken, _ = listening.accept()
                except OSError:
                    return
                held.append(taken)
                threading.Thread(target=dripped, args=(taken,), daemon=True).start()

        def dripped(taken: socket.socket) -> None:
            try:
                taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while True:
                    taken.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                return

        threading.Thread(target=drip, daemon=True).start()
        told = Loopback(f"http://127.0.0.1:{listening.getsockname()[1]}")
        (said,) = ask(told, timeout_s=0.4, retries=1).values()
        for one in held:
            one.close()
    assert isinstance(said, Failed)
    assert "did not come to its end in time (2 tries)" in said.why


def test_a_head_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent before the head is whole, no time-out of a request ends: the question's own does."""
    monkeypatch.setattr(server, "_SLACK", 0.2)
    monkeypatch.setattr(server, "_LONGEST_ASKED_FOR", 0.1)
    monkeypatch.setattr(Server, "_ask", lambda self, session, question, stop: time.sleep(30))
    with serving(lambda asked: completion("1")) as told:
        (said,) = ask(told, timeout_s=0.2, retries=0).values()
    assert isinstance(said, Failed)
    assert "all tries together" in said.why


def test_a_wait_that_a_server_asks_for_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server._asked_for("7") == 7
    assert server._asked_for("1e9") == server._asked_for("inf") == 300
    assert server._asked_for("Fri, 31 Dec 9999 23:59:59 GMT") == 300
    for nothing in (None, "", "soon", "-5", "nan", "Sat, 01 Jan 2000 00:00:00 GMT", "Sat, 99 Jan 2000 00:00:00 GMT"):
        assert server._asked_for(nothing) == 0
    with serving(first(1, lambda: Reply(429, b"", {"Retry-After": "0.6"}))) as told:
        started = time.monotonic()
        assert ask(told) == {0: "about question 0"}
        assert time.monotonic() - started >= 0.6


def test_waits_double_up_to_a_minute_and_differ_by_question() -> None:
    with serving(lambda asked: completion("1")) as told:
        waiting = Server(VerifyConfig(server=told.url, served_model="m", backoff_s=1))
    pauses = [waiting._pause(b"k" * 16, n) for n in range(12)]
    for n, pause in enumerate(pauses):
        assert min(60, 2**n) / 2 <= pause <= min(60, 2**n)
    assert pauses == [waiting._pause(b"k" * 16, n) for n in range(12)]
    assert len({waiting._pause(bytes([n]) * 16, 3) for n in range(20)}) == 20


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(401, b'{"error": "no key"}'), r"says 401 \(.*no key.*\): it wants a key.*verify.api_key_env"),
        (Reply(403), r"says 403: the key may not use it"),
        (Reply(404, b"model m does not exist"), r"says 404 \(model m does not exist\): .*verify.served_model"),
        (Reply(302, b"", {"Location": "http://elsewhere.example/v1"}), r"sends on to elsewhere.example, where nobody"),
    ],
)
def test_what_will_not_pass_ends_the_task_at_once(reply: Reply, said: str) -> None:
    with serving(lambda asked: reply) as told, pytest.raises(VerifierError, match=rf"^verify.server=http.*{said}"):
        ask(told, 20, requests=2)
    assert len(told.asked) <= 4


def test_answers_that_came_before_the_end_are_handed_out_first() -> None:
    """Catches: answers that were paid for and thrown away, because another question ended the task."""
    gate = threading.Event()

    def answer(asked: Asked) -> Reply:
        if asked.text == "question 0":
            gate.wait(10)
            return Reply(401)
        if asked.text == "question 5":
            gate.set()
        return completion("1")

    got: list[int] = []
    with serving(answer) as told:
        config = VerifyConfig(server=told.url, served_model="m", requests=2)
        questions = [Question(bytes([n]), f"question {n}", "data:,") for n in range(6)]
        groups = Server(config).answers(questions)
        with pytest.raises(VerifierError):
            got.extend(number for group in groups for number, _ in group)
    assert {1, 2, 3, 4} <= set(got)


def test_a_question_that_a_server_will_not_take_is_asked_once() -> None:
    with serving(lambda asked: Reply(400, b"image too small")) as told:
        (said,) = ask(told).values()
    assert said == Failed("HTTP 400 (image too small)")
    assert len(told.asked) == 1


def test_a_server_that_is_not_there_costs_its_tries() -> None:
    with serving(lambda asked: completion("1")) as told:
        pass
    (said,) = ask(told, retries=1).values()
    assert isinstance(said, Failed)
    assert "no connection" in said.why


@pytest.mark.parametrize(("content", "said"), [(None, ""), ([{"type": "text", "text": "1"}, {"type": "x"}], "1")])
def test_forms_of_an_answer_that_servers_send(content: object, said: str) -> None:
    with serving(lambda asked: completion(content)) as told:
        assert ask(told) == {0: said}


def test_the_key_comes_from_the_environment_and_is_told_to_nobody_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_VLM", KEY)
    caplog.set_level(logging.DEBUG)

    def echo(asked: Asked) -> Reply:  # as some servers do
        return Reply(401, json.dumps({"error": f"wrong key: {asked.headers['Authorization']}"}).encode())

    with serving(echo) as told, pytest.raises(VerifierError) as raised:
        ask(told, api_key_env="MY_VLM")
    assert told.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(raised.value)
    assert KEY not in caplog.text
    with serving(lambda asked: Reply(500, asked.headers["Authorization"].encode())) as told:
        (said,) = ask(told, api_key_env="MY_VLM", retries=0).values()
    assert isinstance(said, Failed)
    assert KEY not in said.why
    monkeypatch.delenv("MY_VLM")
    with pytest.raises(VerifierError, match=r"the variable MY_VLM, which is not set here.*spark\.executorEnv\.MY_VLM"):
        ask(told, api_key_env="MY_VLM")


@pytest.mark.parametrize(
    "address", ["host:8000", "ftp://host", "http://me:secret@host", "http://host?key=1", "http://host#a", "http://"]
)
def test_an_address_holds_no_secret(address: str) -> None:
    with pytest.raises(ValueError, match=r"server"):
        VerifyConfig(server=address)
