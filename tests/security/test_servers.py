"""What is served is served on this machine, and gives away no file; what is fetched is not unpacked."""

from __future__ import annotations

import ast
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands.fetch import limits_of
from i2e_pipeline.commands.fetching import worker
from i2e_pipeline.core.config import FetchConfig

ROOT = Path(__file__).parent.parent.parent


def test_the_explorer_binds_to_loopback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    explore = pytest.importorskip("i2e_pipeline.commands.explore")
    bound: list[Any] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda _, sockets: bound.extend(s.getsockname() for s in sockets))
    monkeypatch.setattr(explore, "app", lambda _: None)

    class Nothing:
        class queries:
            facts = {"images": 0}

    explore.serve(Nothing(), 0, False)
    assert [host for host, _ in bound] == ["127.0.0.1"]
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_nothing_else_listens() -> None:
    """Catches: another server, which nobody has told to stay on this machine."""
    found = set()
    for path in sorted((ROOT / "i2e_pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called.endswith((".bind", "HTTPServer", "create_server", "uvicorn.run", "serve_forever")):
                    found.add((path.relative_to(ROOT).as_posix(), ast.unparse(node)))
    assert found == {("i2e_pipeline/commands/explore.py", "bound.bind(('127.0.0.1', port))")}


UNPACKED = 300 << 20


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = gzip.compress(bytes(UNPACKED), 1)
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.jpg"
    server.shutdown()
    server.server_close()


def test_a_compressed_answer_stays_compressed(site: str) -> None:
    """Catches: a client that unpacks by itself, and 300 MB of zeros where the limit is on what travelled."""
    config = FetchConfig(contact="me@example.org", allow_private=True, max_bytes=1 << 20, retries=0)
    assert len(gzip.compress(bytes(UNPACKED), 1)) > config.max_bytes
    _, stream, why = worker.Fetcher(limits_of(config))((0, site))
    assert stream is None
    assert "more than 1,048,576 bytes" in str(why)
    large = config.model_copy(update={"max_bytes": 1 << 22})
    _, stream, why = worker.Fetcher(limits_of(large))((0, site))
    assert why is None
    assert stream is not None
    assert stream.getvalue()[:2] == b"\x1f\x8b"
    assert len(stream.getvalue()) < 1 << 22
