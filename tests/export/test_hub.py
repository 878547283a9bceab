"""`i2e export --push-to-hub` against a server of this machine that speaks what the Hub's client asks for.

It is the Hub as its client sees it: it makes a repository, says which files are large, takes their bytes and one
commit. Nothing here speaks to huggingface.co, and the transfer by chunks (Xet) is off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_without_spark import ROOT
from tests.export.odd_dataset import facts, held, write_odd

pytest.importorskip("huggingface_hub")
REPO = "org/i2e-small"
TOKEN = "hf_of-this-test-alone"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with its files, and what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[dict[str, list[str]]] = []
        self.fails_with: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, told: Any, code: int = 200) -> None:
        content = json.dumps(told).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _sent(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.fails_with or (REPO in path and REPO not in self.server.repos):
            self._answer({"error": "not yours"}, self.server.fails_with or 404)
        elif path == "/api/whoami-v2":
            self._answer({"name": "tester", "type": "user", "orgs": []})
        elif path.startswith(f"/api/datasets/{REPO}/tree/"):
            self._answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in self.server.repos[REPO].items()
                ]
            )
        elif path.startswith(f"/api/datasets/{REPO}"):
            self._answer({"id": REPO, "sha": "0" * 40, "siblings": []})
        else:
            self._answer({"error": f"no {path}"}, 404)

    def do_PUT(self) -> None:
        self.server.large[self.path.rpartition("/")[2]] = self._sent()
        self._answer({})

    def do_POST(self) -> None:
        hub, path, sent = self.server, self.path.partition("?")[0], self._sent()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "no such token"}, 401)
        elif hub.fails_with:
            self._answer({"error": "not yours"}, hub.fails_with)
        elif path == "/api/repos/create":
            told = json.loads(sent)
            repo = f"{told['organization']}/{told['name']}"
            known = repo in hub.repos
            hub.repos.setdefault(repo, {".gitattributes": b""})
            hub.private.setdefault(repo, bool(told.get("private")) or told.get("visibility") == "private")
            self._answer({"url": f"{hub.address}/datasets/{repo}", "id": repo}, 409 if known else 200)
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == f"/api/datasets/{REPO}/preupload/main":
            files = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".parquet") else "regular"}
                for f in json.loads(sent)["files"]
            ]  # fmt: skip
            self._answer({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                one if one["oid"] in hub.large else
                one | {"actions": {"upload": {"href": f"{hub.address}/large/{one['oid']}"}}}
                for one in json.loads(sent)["objects"]
            ]  # fmt: skip
            self._answer({"transfer": "basic", "objects": objects})
        elif path == f"/api/datasets/{REPO}/commit/main":
            self._commit([json.loads(line) for line in sent.splitlines()])
        else:
            self._answer({"error": f"no {path}"}, 404)

    def _commit(self, operations: list[dict[str, Any]]) -> None:
        held, seen = self.server.repos[REPO], {"added": [], "deleted": []}  # type: ignore[var-annotated]
        for one in operations:
            told = one["value"]
            if one["key"] == "file":
                held[told["path"]] = base64.b64decode(told["content"])
            elif one["key"] == "lfsFile":
                held[told["path"]] = self.server.large[told["oid"]]
            elif one["key"] == "deletedFile":
                del held[told["path"]]
            if one["key"] != "header":
                seen["deleted" if one["key"] == "deletedFile" else "added"].append(told["path"])
        self.server.commits.append(seen)
        self._answer(
            {
                "success": True,
                "commitOid": "1" * 40,
                "commitUrl": f"{self.server.address}/datasets/{REPO}/commit/{'1' * 40}",
            }
        )


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def pushed(
    hub: Hub, dataset: str, to: Path, *more: str, repo: str = REPO, token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    theirs |= {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(to / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    if token:
        theirs["HF_TOKEN"] = token
    command = ["export", "--set", f"output={Path(dataset).parent}", "--to", str(to), "--format", "hf", *more]
    return subprocess.run(
        [sys.executable, "-m", "i2e_pipeline.cli", *command, "--push-to-hub", repo],
        env=theirs, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def on_disk(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_what_is_uploaded_is_the_export_and_a_later_one_takes_its_place(hub: Hub, tmp_path: Path) -> None:
    """Catches: shards of two exports that one pattern matches, and so twice the rows."""
    dataset = write_odd(tmp_path / "odd" / "i2e")
    done = pushed(hub, dataset, tmp_path / "to", "--private")
    assert done.returncode == 0, done.stderr
    assert f"60 images exported to {tmp_path}/to/i2e, and to {hub.address}/datasets/{REPO}" in done.stderr + done.stdout
    assert TOKEN not in done.stderr + done.stdout
    here = {str(p.relative_to(tmp_path / "to" / "i2e")) for p in (tmp_path / "to" / "i2e").rglob("*") if p.is_file()}
    assert hub.repos[REPO].keys() - {".gitattributes"} == here - {"_exported"}
    assert hub.private == {REPO: True}
    assert held(on_disk(hub.repos[REPO], tmp_path / "first"), "hf") == facts(dataset)
    done = pushed(hub, dataset, tmp_path / "to", "--split", "train")
    assert done.returncode == 0, done.stderr
    assert held(on_disk(hub.repos[REPO], tmp_path / "second"), "hf") == facts(dataset, "train")
    assert len(hub.commits) == 2
    gone = ["data/test-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"]
    assert sorted(hub.commits[1]["deleted"]) == gone


def test_what_cannot_be_pushed_is_said_before_the_export(hub: Hub, tmp_path: Path) -> None:
    dataset = write_odd(tmp_path / "odd" / "i2e")
    for options, says in (
        ({"token": None}, f"--push-to-hub {REPO}: there is no token of the Hub here: `hf auth login`, or set HF_TOKEN"),
        ({"repo": "nobody"}, "--push-to-hub nobody: name a repository as ORG/NAME"),
    ):
        done = pushed(hub, dataset, tmp_path / "to", **options)  # type: ignore[arg-type]
        assert done.returncode != 0
        assert says in done.stderr
    done = pushed(hub, dataset, tmp_path / "to", "--format", "webdataset")
    assert "--push-to-hub goes with --format hf, not webdataset" in done.stderr
    assert not (tmp_path / "to" / "i2e").exists()


def test_what_the_hub_refuses_leaves_a_whole_export(hub: Hub, tmp_path: Path) -> None:
    hub.fails_with = 403
    done = pushed(hub, write_odd(tmp_path / "odd" / "i2e"), tmp_path / "to")
    assert done.returncode == 1
    assert f"--push-to-hub {REPO}: the Hub did not take it (" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "to" / "i2e" / "manifest.json").exists()
