"""`i2e fetch`: what is asked for, what is taken of an answer, and that a run reads what it leaves."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands import doctor, fetch
from i2e_pipeline.commands.doctor import Finding
from i2e_pipeline.commands.fetching import addresses, environment, worker
from i2e_pipeline.commands.fetching.environment import FetchError
from i2e_pipeline.core.config import FetchConfig, PairsConfig
from i2e_pipeline.engine.units import Units
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.stages import from_tree, pipeline
from tests.chain import settings
from tests.inputs.forms import pairs_of
from tests.inputs.test_forms import rows_of
from tests.inputs.test_forms import with_knowledge as with_knowledge  # a fixture
from tests.marks import but_one

IMAGE = b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256)) * 40
LIMITS = worker.Limits("i2e/1 (+me@example.org)", 2.0, 5.0, 0, 1_000_000, ("noai", "noindex"), frozenset(), True)


class Site(ThreadingHTTPServer):
    """Answers by path; remembers what it was asked."""

    daemon_threads = True

    def __init__(self, images: dict[str, bytes] | None = None) -> None:
        super().__init__(("", 0), _Answers)
        self.images, self.asked = images or {}, list[tuple[str, dict[str, str]]]()
        self.closing, self.pause = threading.Event(), 0.0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"


class _Answers(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        before = [p for p, _ in self.server.asked].count(self.path)
        self.server.asked.append((self.path, dict(self.headers)))
        time.sleep(self.server.pause)
        if path in self.server.images:
            self._say(200, self.server.images[path])
        elif path == "/image":
            self._say(200, IMAGE)
        elif path == "/passing":
            self._say(200 if before else 503, IMAGE)
        elif path == "/redirect":
            self._say(302, b"", Location=self.path.partition("?")[2])
        elif path == "/robots":
            self._say(200, IMAGE, **{"X-Robots-Tag": self.path.partition("?")[2].replace("%20", " ")})
        elif path == "/page":
            self._say(200, b"\n<!doctype html><title>No longer here</title>", **{"Content-Type": "image/jpeg"})
        elif path == "/empty":
            self._say(200, b"")
        elif path == "/cut":
            self._say(200, IMAGE, **{"Content-Length": str(len(IMAGE) + 9)})
        elif path == "/silent":
            self.server.closing.wait(20)
        elif path == "/drip":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
            while not self.server.closing.wait(0.1):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
        else:
            self._say(404, b"none")

    def _say(self, code: int, content: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def open_site() -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def made(images: dict[str, bytes] | None = None) -> Site:
        sites.append(Site(images))
        return sites[-1]

    yield made
    for site in sites:
        site.closing.set()
        site.shutdown()
        site.server_close()


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    return open_site()


def ask(url: str, **limits: Any) -> bytes | str:
    """The image, or why there is none."""
    place, image, why = worker.Fetcher(replace(LIMITS, **limits))((7, url))
    assert place == 7
    assert (image is None) != (why is None)
    return image.read() if image is not None else str(why)


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
        "100.100.100.200", "169.254.169.254", "168.63.129.16", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "fe80::1%eth0", "fec0::1", "192.0.0.8", "192.88.99.1", "3fff::1", "2001:2::1", "fc00::1", "fd00:ec2::254",
        "ff02::1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::",
        "2002:a9fe:a9fe::1", "2001:db8::1", "2001:0:1::1", "100::1",
    ],
)  # fmt: skip
def test_private_addresses_are_none_of_the_open_internet(address: str) -> None:
    assert not worker.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "172.32.0.1", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"]
)
def test_public_addresses_are(address: str) -> None:
    assert worker.is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "2130706433", "017700000001", "0177.0.0.1", "0x7f000001", "0x7f.1",
        "127.1", "0", "0.0.0.0", "%31%32%37.0.0.1", "１２７.0.0.1", "127。0。0。1", "[::]", "[::1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[fe80::1]", "[fd00:ec2::254]", "169.254.169.254",
        "0xa9fea9fe", "10.0.0.1", "192.168.1.1",
    ],
)  # fmt: skip
def test_a_private_address_is_refused_however_it_is_written(site: Site, host: str) -> None:
    """Catches: a check of the text of the address."""
    said = ask(site.url("/image", host), allow_private=False)
    assert said == "refused: a private address (fetch.allow_private)"
    assert site.asked == []


@pytest.fixture
def one_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 stands for the open internet; the rest of loopback stays private."""
    real = worker.is_public
    monkeypatch.setattr(worker, "is_public", lambda address: address == "127.0.0.1" or real(address))


def test_a_redirect_to_a_private_address_is_refused(site: Site, one_is_public: None) -> None:
    assert ask(site.url("/image"), allow_private=False) == IMAGE
    assert ask(site.url("/redirect?/image"), allow_private=False) == IMAGE
    asked = len(site.asked)
    behind = site.url(f"/redirect?{site.url('/image', '127.0.0.2')}")  # a chain, of which the first step is public
    for target in (
        site.url("/image", "127.0.0.2"), site.url("/image", "[::1]"), site.url("/image", "2130706434"), behind,
        site.url("/image", "0177.0.0.2"), site.url("/image", "[::ffff:127.0.0.2]"), "http://169.254.169.254/latest",
        site.url("/image", "127.0.0.2").replace("http:", ""),
    ):  # fmt: skip
        assert "private address" in str(ask(site.url(f"/redirect?{target}"), allow_private=False))
    assert [path for path, _ in site.asked[asked:] if path == "/image"] == []


@pytest.mark.parametrize(
    "found",
    [
        ["127.0.0.2"], ["10.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:10.0.0.1"], ["fe80::1%lo"],
        ["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"],
    ],
)  # fmt: skip
def test_a_name_that_leads_to_a_private_address_is_refused(
    found: list[str], site: Site, one_is_public: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(host: str, port: int, *_: Any) -> list[Any]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in found]
        return [(f, socket.SOCK_STREAM, 6, "", (address, port)) for f, address in zip(families, found, strict=True)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for url in (site.url("/image", "name.example"), site.url("/image", "name.example").replace("http:", "https:")):
        assert ask(url, allow_private=False) == "refused: a private address (fetch.allow_private)"
    assert site.asked == []


def test_a_proxy_of_the_environment_is_not_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would connect where it will."""
    monkeypatch.setenv("http_proxy", site.url(""))
    assert ask("http://10.0.0.1/image", allow_private=False) == "refused: a private address (fetch.allow_private)"
    assert site.asked == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:image/gif;base64,R0lGODdh"])
def test_no_other_scheme_is_opened(site: Site, target: str) -> None:
    assert ask(target) == "refused: no address of http or https"
    assert isinstance(ask(site.url(f"/redirect?{target}")), str)


def test_a_name_that_resolves_otherwise_a_moment_later_gains_nothing(
    site: Site, one_is_public: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the address that was checked is the one that is connected to."""
    answers, asked = [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1", "127.0.0.2"]], []

    def resolve(host: str, port: int, *_: Any) -> list[Any]:
        asked.append(host)
        found = answers[len(asked) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert ask(site.url("/image", "rebinding.example"), allow_private=False) == IMAGE
    assert asked == ["rebinding.example"]
    assert "private" in str(ask(site.url("/image", "rebinding.example"), allow_private=False))
    # One public address among private ones opens no door.
    assert "private" in str(ask(site.url("/image", "rebinding.example"), allow_private=False))


def test_a_python_that_connects_by_itself_is_noticed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: another http.client, which no longer asks our function to connect, and connects anywhere."""
    monkeypatch.setattr(worker, "connect", socket.create_connection)
    assert "private" in str(ask(site.url("/image"), allow_private=False))
    assert site.asked == []


def test_tls_is_guarded_alike(site: Site) -> None:
    """The site speaks no TLS: a handshake that fails shows that one was tried."""
    url = site.url("/image").replace("http:", "https:")
    assert ask(url) == "a faulty certificate or TLS"
    assert ask(url, allow_private=False) == "refused: a private address (fetch.allow_private)"


def test_blocked_domains_and_what_lies_below_them_are_not_asked(site: Site, tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text("# ours\nexample.org\n*.Example.COM # all\n\nbücher.example\nlocalhost\n")
    blocked = fetch.limits_of(FetchConfig(contact="me", blocked_domains=str(tmp_path / "blocked.txt"))).blocked
    assert blocked == {"example.org", "example.com", "xn--bcher-kva.example", "localhost"}
    assert worker.is_blocked("a.b.EXAMPLE.org.", blocked)
    assert not worker.is_blocked("notexample.org", blocked)
    assert not worker.is_blocked("org", blocked)
    for host in ("localhost", "LocalHost.", "local%68ost", "%6cocalhost", "ｌocalhost"):  # as it is connected to
        assert ask(site.url("/image", host), blocked=blocked) == "refused: a blocked domain (fetch.blocked_domains)"
    for url in (site.url("/image", "localhost"), site.url(f"/redirect?{site.url('/image', 'local%68ost')}")):
        assert ask(url, blocked=blocked) == "refused: a blocked domain (fetch.blocked_domains)"
    assert "/image" not in [path for path, _ in site.asked]


def test_a_line_that_is_no_domain_is_named(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("example.org\nhttp://example.com/x\n")
    with pytest.raises(FetchError, match=r"b, line 2: 'http://example.com/x' is no domain"):
        fetch.limits_of(FetchConfig(contact="me", blocked_domains=str(tmp_path / "b")))
    with pytest.raises(FetchError, match="does not exist"):
        fetch.limits_of(FetchConfig(contact="me", blocked_domains=str(tmp_path / "none")))


# Answers


def test_who_asks_is_said(site: Site) -> None:
    limits = fetch.limits_of(FetchConfig(contact="mailto:me@example.org", allow_private=True))
    assert worker.Fetcher(limits)((0, site.url("/image")))[2] is None
    headers = site.asked[0][1]
    assert headers["User-Agent"].startswith("i2e/")
    assert headers["User-Agent"].endswith(" (+mailto:me@example.org)")


@pytest.mark.parametrize("contact", [None, " ", "me\r\nX-Evil: 1", "mé"])
def test_nobody_is_asked_without_a_contact(contact: str | None) -> None:
    with pytest.raises(FetchError, match=r"fetch\.contact"):
        fetch.limits_of(FetchConfig(contact=contact))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/missing", "HTTP 404"),
        ("/page", "a text, and no image"),
        ("/empty", "an empty answer"),
        ("/cut", "a cut answer"),
        ("/redirect?/redirect?/redirect", "HTTP 302"),
    ],
)
def test_what_is_no_image_has_its_reason(site: Site, path: str, said: str) -> None:
    assert ask(site.url(path)) == said


def test_large_answers_are_not_read_on(site: Site) -> None:
    assert ask(site.url("/image"), max_bytes=len(IMAGE)) == IMAGE
    assert ask(site.url("/image"), max_bytes=len(IMAGE) - 1) == f"more than {len(IMAGE) - 1:,} bytes (fetch.max_bytes)"


def test_slow_answers_end(site: Site) -> None:
    """Catches: a site that sends a byte now and then, which no timeout of a socket ends."""
    start = time.monotonic()
    assert ask(site.url("/silent"), timeout=0.3) == "no answer in time (fetch.timeout)"
    assert ask(site.url("/drip"), timeout=1.0, deadline=0.6) == "no whole answer in 0.6 s (fetch.deadline)"
    assert time.monotonic() - start < 4


def test_another_try_is_made_of_what_may_pass_alone(site: Site) -> None:
    assert ask(site.url("/passing"), retries=1) == IMAGE
    assert ask(site.url("/missing"), retries=2) == "HTTP 404"
    assert [path for path, _ in site.asked] == ["/passing", "/passing", "/missing"]


@pytest.mark.parametrize(
    ("header", "directive"),
    [
        ("noai", "noai"), ("all, NoIndex", "noindex"), ("i2e: noai", "noai"), ("*: noai", "noai"),
        ("otherbot: all, i2e: nofollow, noai", "noai"), ("unavailable_after: 25 Jun 2030, noai", "noai"),
        ("max-image-preview:large, noindex", "noindex"), ("otherbot: noai", None), ("otherbot: noai, noindex", None),
        ("nofollow", None), ("", None), ("noarchive, all", None),
    ],
)  # fmt: skip
def test_opt_out_headers_are_honoured(site: Site, header: str, directive: str | None) -> None:
    said = ask(site.url(f"/robots?{header.replace(' ', '%20')}"))
    assert said == (IMAGE if directive is None else f"its X-Robots-Tag says {directive} (fetch.disallowed_directives)")
    assert ask(site.url(f"/robots?{header.replace(' ', '%20')}"), disallowed=()) == IMAGE


@pytest.mark.parametrize(
    ("beginning", "text"),
    [
        (b"<html>", True), (b'{"error": 1}', True), ("Größe".encode(), True), (("x" * 63 + "ö").encode()[:64], True),
        (b"\xef\xbb\xbf<?xml", True), (IMAGE[:64], False), (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", False),
        (b"GIF89a\x01\x00\x01\x00", False), (b"RIFF$\x1a\x00\x00WEBPVP8 ", False), (b"BM\x36\x00\x00\x00", False),
    ],
)  # fmt: skip
def test_texts_are_told_from_images(beginning: bytes, text: bool) -> None:
    assert worker.is_text(beginning) == text


@pytest.mark.parametrize("url", ["/a b.jpg", "/größe.jpg?x=ö y", "/a%20b.jpg", "/image#part"])
def test_addresses_are_asked_as_browsers_do(open_site: Callable[..., Site], url: str) -> None:
    names = {"/a%20b.jpg": IMAGE, "/gr%C3%B6%C3%9Fe.jpg": IMAGE, "/image": IMAGE}
    assert ask(open_site(names).url(url)) == IMAGE


# The table


def rows(folder: Path) -> list[tuple[str, str, str | None]]:
    found = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return [tuple(row.values()) for table in found for row in table.to_pylist()]  # type: ignore[misc]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_form_of_table_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    """Catches: a caption that reads as a number, and becomes one."""
    table = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "link": [" http://x/1 ", "http://x/2", "", "http://x/4"],
            "alt": ["1984", "two\nlines", "three", " "],
        }
    )
    path, out = tmp_path / f"t.{form}", tmp_path / "out"
    out.mkdir()
    if form == "parquet":
        pq.write_table(table, path)
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    else:
        pc_csv.write_csv(table, path, pc_csv.WriteOptions(delimiter="\t" if form == "tsv" else ","))
    pairs = PairsConfig(path=str(path), url_column="link", text_column="alt", key_column="id")
    counts = addresses.write(addresses.tables(pairs), pairs, out, None)
    assert rows(out) == [("http://x/1", "1984", "a"), ("http://x/2", "two\nlines", "b")]
    wanted = {"rows": 4, "without an address": 1, "without a text": 1, "to fetch": 2, "with a key": 2}
    assert {name: n for name, n in counts.items() if n} == wanted


def test_columns_that_are_kept_are_fetched_along(tmp_path: Path) -> None:
    lines = [{"url": f"http://x/{n}", "caption": "a", "likeness": value} for n, value in enumerate([1, 0.5, "high"])]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    keep = {"likeness": "double", "sha256": None, "original_width": None}  # img2dataset writes the last two
    pairs = PairsConfig(path=f"{tmp_path}/t.jsonl", keep_columns=keep)
    counts = addresses.write(addresses.tables(pairs), pairs, tmp_path, None)
    assert [row["likeness"] for row in pq.read_table(tmp_path / "000000.parquet").to_pylist()] == [1.0, 0.5, None]
    assert counts["whose likeness is no double"] == 1
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"], "status": [7]}), tmp_path / "own.parquet")
    with pytest.raises(InputError, match=r"column 'status' \(pairs.keep_columns\) would be lost"):
        addresses.tables(PairsConfig(path=f"{tmp_path}/own.parquet", keep_columns=["status"]))
    with pytest.raises(InputError, match="no input file has a column 'licence'"):
        addresses.tables(PairsConfig(path=f"{tmp_path}/t.jsonl", keep_columns=["licence"]))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"caption": ["a"]}, r"t\.parquet has no column 'url' \(pairs\.url_column\); it has caption"),
        ({"url": ["a"]}, r"t\.parquet has no column 'caption' \(pairs\.text_column\)"),
    ],
)
def test_a_table_without_addresses_or_texts_is_named(columns: dict[str, Any], said: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=said):
        addresses.tables(PairsConfig(path=str(tmp_path / "t.parquet")))


def test_rows_that_are_not_taken_are_not_fetched(tmp_path: Path) -> None:
    """Catches: `pairs.where` on a table of addresses, whose columns are gone when a run comes to it."""
    table = pa.table(
        {"url": [f"http://x/{n}" for n in range(4)], "caption": ["a", "b", "", "d"], "likeness": [1, 3, 5, 7]}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    tree = {"pairs": {"path": f"{tmp_path}/t.parquet", "where": "likeness > 2", "format": "parquet"}}
    config = from_tree(tree, "test")
    counts = fetch._prepare(pipeline(config), tmp_path / "in", addresses.tables(config.pairs))
    assert [caption for _, caption, _ in rows(tmp_path / "in" / "_fetch" / "tables")] == ["b", "d"]
    assert {name: n for name, n in counts.items() if n} == {
        "rows": 4, "not taken (pairs.where)": 1, "without a text": 1, "to fetch": 2,
    }  # fmt: skip
    assert fetch._settings_of_a_run(config, Path("in"), counts) == {
        "pairs.path": "in", "pairs.text_column": "caption", "pairs.where": "null", "pairs.format": "null",
    }  # fmt: skip
    other = from_tree({"pairs": {**tree["pairs"], "where": "likeness > 3"}}, "test")
    with pytest.raises(FetchError, match="with other columns or rows"):
        fetch._prepare(pipeline(other), tmp_path / "in", addresses.tables(other.pairs))


def test_a_run_is_told_of_columns_that_the_config_calls_otherwise(tmp_path: Path) -> None:
    """Catches: a run with the same config, in which `pairs.url_column` is that of the table."""
    pairs = {"url_column": "URL", "text_column": "TEXT", "key_column": "id"}
    sizes = {"resize_mode": "border", "encode_format": "png"}
    assert fetch._settings_of_a_run(from_tree({"pairs": pairs, "fetch": sizes}, "test"), tmp_path, {}) == {
        "pairs.path": str(tmp_path), "pairs.text_column": "caption", "pairs.url_column": "url",
        "pairs.key_column": "key", "pairs.image_column": "png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"encode_format": "png"}, r"set fetch\.resize_mode"),
        ({"encode_quality": 80}, r"set fetch\.resize_mode"),
        ({"resize_mode": "border", "encode_format": "png", "encode_quality": 80}, r"80 is not allowed for PNG"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(FetchError, match=said):
        fetch.sizes_of(FetchConfig(**sizes))


def test_folders_of_others_and_of_another_table_stay(tmp_path: Path) -> None:
    """Catches: shards of two tables under the same numbers."""
    table = tmp_path / "t.csv"
    table.write_text("url,caption\nhttp://x/1,one\n")

    def prepared(*overrides: str) -> dict[str, int]:
        config = from_tree({"pairs": {"path": str(table)}, "output": str(tmp_path / "out")}, "test")
        config = config.model_copy(update={"fetch": FetchConfig(**dict(o.split("=") for o in overrides))})
        return dict(fetch._prepare(pipeline(config), tmp_path / "in", addresses.tables(config.pairs)))

    first = prepared()
    assert first == prepared("threads=3") == prepared("timeout=4")
    with pytest.raises(FetchError, match="filled from another table"):
        prepared("resize_mode=border")
    table.write_text("url,caption\nhttp://x/2,two\n")
    with pytest.raises(FetchError, match="filled from another table"):
        prepared()
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mine.txt").write_text("")
    with pytest.raises(FetchError, match=r"holds other files \(mine.txt\)"):
        prepared()


def test_only_texts_that_lead_to_an_entity_are_fetched(
    world: Path,
    with_knowledge: Path,
    tmp_path: Path,
    spark: Any,
) -> None:
    """On a table that has no images at all."""
    known = [pair for shard in sorted((world / "pairs").glob("*.parquet")) for pair in pairs_of(shard)][:40]
    table = tmp_path / "t.parquet"
    captions = [p.caption for p in known] + ["zzyzx qwrt", "zzyzx qwrt", "..."]
    pq.write_table(pa.table({"url": [f"http://x/{n}" for n in range(len(captions))], "caption": captions}), table)
    config = settings(world, with_knowledge, f"pairs.path={table}", "fetch.linked_only=true", "pairs.where=url != ''")
    counts = fetch._prepare(pipeline(config, lambda: spark), tmp_path / "in", addresses.tables(config.pairs))
    kept = {caption for _, caption, _ in rows(tmp_path / "in" / "_fetch" / "tables")}
    assert counts["asked"] == len(captions)
    assert 10 < counts["linked"] == counts["to fetch"] <= 40
    assert "zzyzx qwrt" not in kept
    assert kept < set(captions)
    # Nothing of it is left in the output, which a run then fills.
    assert Units(str(with_knowledge)).known() == []
    assert not list(with_knowledge.glob("_texts/*.parquet"))


# With img2dataset


@pytest.fixture(scope="session")
def python() -> str:
    """A Python that has img2dataset."""
    try:
        return environment.python_for(None)
    except FetchError as error:
        pytest.skip(f"no environment with img2dataset can be made: {error}")


@pytest.mark.parametrize("with_uv", [True, False], ids=["uv", "pip"])
def test_what_to_do_is_said_where_nothing_can_be_installed(
    with_uv: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_uv:
        monkeypatch.setattr(environment, "_uv", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in {"UV_CACHE_DIR": str(tmp_path / "uv"), "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FetchError, match=r"no environment for img2dataset at .*pip install -r .*fetch\.python"):
        environment.python_for(None)


@pytest.mark.parametrize("named", [sys.executable, "/no/such/python"])
def test_a_python_without_img2dataset_is_refused(named: str) -> None:
    with pytest.raises(FetchError, match=r"fetch\.python=.*pip install -r"):
        environment.python_for(named)


def doctor_says(**tree: Any) -> list[str]:
    checks = dict(doctor.checks(from_tree(tree, "test")))
    return [str(Finding("fetch", "ok", checks["fetch"]()))] if "fetch" in checks else []


def test_doctor_speaks_of_fetching_where_it_is_of_use(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: an environment of 650 MB that is made by a question, and a line for who has images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "t.csv").write_text("url,caption\nhttp://x/1,one\n")
    for tree in ({"pairs": {"path": str(tmp_path / "t.csv")}}, {"fetch": {"folder": str(tmp_path / "in")}}):
        (said,) = doctor_says(**tree)
        assert re.search(r"not there yet: `i2e fetch` installs img2dataset into .*/cache/i2e-pipeline/fetch/\w+", said)
    assert not (tmp_path / "cache").exists()
    assert doctor_says(pairs={"path": str(world / "pairs")}) == []
    assert doctor_says(pairs={"path": str(tmp_path / "nothing")}) == []
    with pytest.raises(FetchError, match=r"no img2dataset. fetch\.python=.*pip install -r"):
        doctor_says(fetch={"folder": "in", "python": sys.executable})


@pytest.mark.env
def test_doctor_says_which_img2dataset_there_is(python: str) -> None:
    (said,) = doctor_says(fetch={"folder": "in"})
    assert re.search(rf"img2dataset \d+\.\d+\.\d+ in {Path(python).parents[1]}$", said)
    (said,) = doctor_says(fetch={"folder": "in", "python": python})
    assert said.endswith(f"of {python} (fetch.python)")


def fetched(
    table: Path, folder: Path, python: str, keep: Sequence[str] = (), **more: Any
) -> tuple[fetch.Fetched, PairsConfig]:
    """What a fetch comes to, and the settings that it tells for a run."""
    made = from_tree(
        {
            "pairs": {"path": str(table), "keep_columns": list(keep)},
            "output": str(folder.parent / "out"),
            "fetch": {
                "folder": str(folder), "contact": "me@example.org", "python": python, "processes": 1, "threads": 8,
                "allow_private": True, "retries": 0, "timeout": 2, "deadline": 4, **more,
            },
        },
        "test",
    )  # fmt: skip
    found = fetch.fetch(pipeline(made))
    said: list[str] = []
    fetch.told(found, said.append)
    settings_of_a_run = said[-1].partition("--set ")[2].split()
    return found, PairsConfig(**dict(part.removeprefix("pairs.").split("=") for part in settings_of_a_run))


@pytest.mark.env
@pytest.mark.slow
@pytest.mark.parametrize("form", but_one("webdataset", ["parquet", "webdataset", "files"]))
def test_what_img2dataset_leaves_is_read_and_gives_the_same_rows(
    form: str, world: Path, open_site: Callable[..., Site], python: str, tmp_path: Path
) -> None:
    # The sample has pages in the place of images, too.
    known = [p for p in pairs_of(world / "pairs" / "00000.parquet") if not worker.is_text(p.image[:64])]
    assert len(known) > 30
    site = open_site({f"/{p.key}": p.image for p in known})
    urls = {p.key: site.url(f"/{p.key}") for p in known}
    table = tmp_path / "t.csv"
    columns = {"key": [p.key for p in known], "caption": [p.caption for p in known], "url": list(urls.values())}
    pc_csv.write_csv(pa.table(columns), table)
    found, pairs = fetched(table, tmp_path / "in", python, output_format=form)
    assert found.images == len(known) == len(site.asked)
    wanted = [(urls[p.key], p.caption, hashlib.sha256(p.image).hexdigest()) for p in known]
    assert rows_of(Units(str(tmp_path / "out")), pairs) == sorted(wanted, key=repr)
    if form == "parquet":  # the same command finds all done
        assert fetched(table, tmp_path / "in", python, output_format=form)[0].images == len(known)
        assert len(site.asked) == len(known)
        stats = tmp_path / "in" / "00000_stats.json"
        stats.write_text(stats.read_text()[:40])  # killed while it wrote them: the shard is not done
        assert fetched(table, tmp_path / "in", python, output_format=form)[0].images == len(known)
        assert len(site.asked) == 2 * len(known)


@pytest.mark.env
@pytest.mark.slow
def test_every_row_has_an_image_or_a_reason(site: Site, python: str, tmp_path: Path) -> None:
    """In img2dataset's own processes: the limits hold there."""
    paths = ["/image", "/missing", "/page", "/cut", "/drip", "/robots?noai", "/redirect?/image"]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(json.dumps({"url": site.url(p), "caption": f"of {p}"}) for p in paths))
    found, _ = fetched(table, tmp_path / "in", python, deadline=1)
    assert found.results == {
        "success": 2, "HTTP 404": 1, "a text, and no image": 1, "a cut answer": 1,
        "no whole answer in 1 s (fetch.deadline)": 1, "its X-Robots-Tag says noai (fetch.disallowed_directives)": 1,
    }  # fmt: skip
    asked = len(site.asked)
    refused, _ = fetched(table, tmp_path / "refused", python, allow_private=False)
    assert refused.results == {"refused: a private address (fetch.allow_private)": len(paths)}
    assert len(site.asked) == asked


@pytest.mark.env
@pytest.mark.slow
def test_the_command_says_what_came_of_it(site: Site, python: str, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(f"url\tcaption\n{site.url('/image')}\tone\n{site.url('/no')}\ttwo\n\tthree\n")
    done = subprocess.run(
        [sys.executable, "-m", "i2e_pipeline.cli", "fetch", "--set", f"pairs.path={tmp_path}/t.tsv",
         f"output={tmp_path}", "fetch.contact=me@example.org", f"fetch.python={python}", "fetch.allow_private=true"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "3 rows, left out 1 without an address" in said
    assert "1 of 2 images fetched" in said
    assert "1  HTTP 404" in said
    assert f"pairs.path={tmp_path}/fetched pairs.text_column=caption" in said
    assert "asked for before" not in said
    asked = len(site.asked)
    done = subprocess.run(done.args, capture_output=True, text=True, timeout=120)
    assert f"are not again: remove {tmp_path}/fetched to fetch all anew" in done.stdout + done.stderr
    assert len(site.asked) == asked


@pytest.mark.env
@pytest.mark.slow
def test_a_fetch_that_is_stopped_leaves_nothing_that_runs_and_goes_on(site: Site, python: str, tmp_path: Path) -> None:
    """Catches: processes that fetch on after Ctrl-C."""
    rows_ = [{"url": site.url(f"/drip?{n}"), "caption": "a"} for n in range(200)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows_))
    command = [
        sys.executable, "-m", "i2e_pipeline.cli", "fetch", "--set", f"pairs.path={tmp_path}/t.jsonl",
        f"output={tmp_path}", "fetch.contact=me@example.org", f"fetch.python={python}", "fetch.allow_private=true",
        "fetch.threads=2", "fetch.deadline=0.5", "fetch.processes=1",
    ]  # fmt: skip
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    while not site.asked and running.poll() is None and time.monotonic() - began < 90:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130, said
    time.sleep(1)
    asked = len(site.asked)
    assert 0 < asked < 200
    time.sleep(2)
    assert len(site.asked) == asked
    site.images |= {"/drip": IMAGE}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "200 of 200 images fetched" in done.stdout + done.stderr
