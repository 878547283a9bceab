"""Runs img2dataset, with our own way to ask for an address: what it may connect to, how much and how long it reads.

Run by path, by a Python of an environment of its own that has img2dataset and not this package. So it imports Python's
own modules alone, and img2dataset where it is used. `Guarded` travels to each fetching process and puts `Fetcher`
there before the first address is asked for: a process cannot fetch without it.

    python worker.py SETTINGS.json        # ends, with all that it started, when its standard input does
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

_CHUNK = 1 << 16
_LOOKED_AT = 64
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that another try may not meet."""
_SPECIAL = tuple(
    ipaddress.ip_network(block)
    for block in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "2001:db8::/32", "3fff::/20")
)
"""Blocks that some Pythons take for global (IANA's registries of special addresses; 192.0.0.192 is Oracle's metadata
service), and Azure's service for its machines, which is public by its number alone."""

Answer = tuple[int, "io.BytesIO | None", "str | None"]
"""(place of the row, image, why there is none), as img2dataset passes it on."""


class Refused(urllib.error.URLError):
    """An address that is not asked; no other try will be."""


class Unfit(urllib.error.URLError):
    """An answer that is not taken; no other try will be."""


@dataclass(frozen=True)
class Limits:
    """What may be asked for, and how much of it is read."""

    user_agent: str
    """The header; its first word, up to a slash, is the name that opt-out headers may address."""
    timeout: float
    """Seconds for a connection, and for each piece of an answer."""
    deadline: float
    """Seconds for an answer with all redirects."""
    retries: int
    max_bytes: int
    disallowed: tuple[str, ...]
    """Directives of X-Robots-Tag that forbid the use of an image, in lower case."""
    blocked: frozenset[str]
    """Domains that are not asked, nor what lies below them; in lower case."""
    allow_private: bool = False


# Which addresses


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet. What it carries (IPv4 in IPv6) has to be one, too."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if any(ip.version == block.version and ip in block for block in _SPECIAL):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        carried = _carried(ip)
        if carried is not None:
            return is_public(str(carried))
        # The only block of addresses that are given out.
        return ip in ipaddress.ip_network("2000::/3") and ip.is_global
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _carried(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a mapped, a translated (NAT64) or a 6to4 one leads to."""
    if ip in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def connect(place: tuple[str, int], timeout: float) -> socket.socket:
    """A connection to a public address of a host. Raises Refused where it has an address that is none.

    The name is resolved here, once, and the addresses that were checked are those that are connected to. So a name
    that resolves otherwise a moment later (DNS rebinding) gains nothing.
    """
    host, port = place
    found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    for *_, target in found:
        if not is_public(str(target[0])):
            raise Refused("refused: a private address (fetch.allow_private)")
    why: OSError = OSError("the name leads to no address")
    for family, kind, protocol, _, target in found:
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(timeout)
            opened.connect(target)
            return opened
        except OSError as error:
            opened.close()
            why = error
    raise why


class _Guarded(http.client.HTTPConnection):
    """A connection that is cut at its deadline, and that leads to public addresses alone unless others are allowed."""

    watch: Watch
    allow_private = False

    def connect(self) -> None:
        self._create_connection = self._opened
        super().connect()
        # What Python calls to connect is its own affair: should that change, this holds.
        if not self.allow_private and not is_public(str(self.sock.getpeername()[0])):
            self.close()
            raise Refused("refused: a private address (fetch.allow_private)")

    def _opened(self, place: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        opened = (socket.create_connection if self.allow_private else connect)(place, timeout)
        self.watch.add(opened)
        return opened


class _GuardedTLS(_Guarded, http.client.HTTPSConnection):
    pass


class Watch:
    """Cuts connections at a deadline. A timeout holds for one piece of an answer: who sends a byte a second could hold
    a thread for days."""

    def __init__(self, seconds: float) -> None:
        self._sockets: list[socket.socket] = []
        self._lock, self.over = threading.Lock(), False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def add(self, opened: socket.socket) -> None:
        with self._lock:
            self._sockets.append(opened.dup())  # TLS takes the socket itself away, before its handshake
            over = self.over
        if over:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            for opened in self._sockets:
                with suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for opened in self._sockets:
                opened.close()
            self._sockets.clear()


class _Http(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http: and https: with guarded connections, and refuses blocked domains, redirects to these included."""

    def __init__(self, limits: Limits, watch: Watch) -> None:
        super().__init__(context=_trusted())
        self._limits, self._watch = limits, watch

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        # What will be connected to, with its escapes undone, and not what is written: ex%61mple.org.
        if is_blocked(_ascii(urllib.parse.urlsplit(f"//{request.host}").hostname or ""), self._limits.blocked):
            raise Refused("refused: a blocked domain (fetch.blocked_domains)")
        return self.do_request_(request)

    https_request = http_request

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._made(_Guarded), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._made(_GuardedTLS), request, context=_trusted())

    def _made(self, kind: type[_Guarded]) -> Any:
        def connection(host: str, **arguments: Any) -> _Guarded:
            made = kind(host, **arguments)
            made.watch, made.allow_private = self._watch, self._limits.allow_private
            return made

        return connection


@lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    return ssl.create_default_context()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows, within reason; each step is a request as any other, and is checked as one."""

    max_repeats, max_redirections = 2, 8


def opener(limits: Limits, watch: Watch) -> urllib.request.OpenerDirector:
    """Knows http: and https: alone: Python's own would open file:, ftp: and data:, too."""
    made = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        _Http(limits, watch),
        _Redirects(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ]
    if limits.allow_private:  # a proxy decides by itself what it connects to
        handlers.append(urllib.request.ProxyHandler())
    for handler in handlers:
        made.add_handler(handler)
    made.addheaders = [("User-Agent", limits.user_agent), ("Accept", "image/*,*/*;q=0.5")]
    return made


def _ascii(host: str) -> str:
    """The host as names are looked up: letters of other scripts, widths and dots brought to ASCII."""
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise Refused("refused: no name of a host") from None


def is_blocked(host: str, blocked: frozenset[str]) -> bool:
    """Whether a host, or a domain that it lies in, is among the blocked ones."""
    parts = host.lower().rstrip(".").split(".")
    return any(".".join(parts[n:]) in blocked for n in range(len(parts)))


# What is taken of an answer


def forbidden(headers: Sequence[str], name: str, disallowed: Sequence[str]) -> str | None:
    """The directive of X-Robots-Tag headers that forbids the use, or None. `otherbot: noai` speaks to that bot alone.

    headers     values of the header
    name        of this program, in lower case, as a header would address it
    """
    for value in headers:
        addressed: str | None = None
        for part in value.lower().split(","):
            agent, colon, rest = part.partition(":")
            if colon and agent.strip() not in _WITH_VALUES:
                addressed, part = agent.strip(), rest
            if addressed in (None, "*", name) and part.strip() in disallowed:
                return part.strip()
    return None


_WITH_VALUES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
"""Directives of X-Robots-Tag that have a colon of their own."""


def is_text(beginning: bytes) -> bool:
    """Whether content begins as a text does: a page where an image was. Images have control characters at once."""
    text = beginning.removeprefix(b"\xef\xbb\xbf")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        if error.start < len(text) - 3:  # else a letter that was cut
            return False
    return not any(byte < 9 or 13 < byte < 32 or byte == 127 for byte in text)


class Fetcher:
    """Fetches images as `limits` allow."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._name = limits.user_agent.partition("/")[0].lower()

    def __call__(self, row: tuple[int, str], *_: Any, **__: Any) -> Answer:
        """In the place of img2dataset.downloader.download_image_with_retry."""
        place, url = row
        why = ""
        for attempt in range(self._limits.retries + 1):
            if attempt:
                time.sleep(min(2**attempt, 8) / 4)
            try:
                return place, io.BytesIO(self.fetch(url)), None
            except (Refused, Unfit) as error:
                return place, None, str(error.reason)
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}"
                error.close()
                if error.code not in _MAY_PASS:
                    break
            except Exception as error:
                if isinstance(cause := getattr(error, "reason", None), Refused | Unfit):
                    return place, None, str(cause.reason)
                why = _said(error)
        return place, None, why

    def fetch(self, url: str) -> bytes:
        """The content at an address. Raises Refused, Unfit, or what urllib raises."""
        if urllib.parse.urlsplit(url).scheme.lower() not in ("http", "https"):
            raise Refused("refused: no address of http or https")
        with Watch(self._limits.deadline) as watch:
            try:
                return self._read(opener(self._limits, watch).open(_quoted(url), timeout=self._limits.timeout))
            except Exception:
                if watch.over:
                    raise Unfit(f"no whole answer in {self._limits.deadline:g} s (fetch.deadline)") from None
                raise

    def _read(self, answer: Any) -> bytes:
        with answer:
            if said := forbidden(answer.headers.get_all("X-Robots-Tag", []), self._name, self._limits.disallowed):
                raise Unfit(f"its X-Robots-Tag says {said} (fetch.disallowed_directives)")
            most, parts, size = self._limits.max_bytes, [], 0
            while part := answer.read(_CHUNK):
                parts.append(part)
                size += len(part)
                if size > most:
                    raise Unfit(f"more than {most:,} bytes (fetch.max_bytes)")
            if answer.length:  # http.client says nothing of an answer that ends too early
                raise http.client.IncompleteRead(b"", answer.length)
        content = b"".join(parts)
        if not content:
            raise Unfit("an empty answer")
        if is_text(content[:_LOOKED_AT]):
            raise Unfit("a text, and no image")
        return content


def _quoted(url: str) -> str:
    """The address with what URLs cannot hold escaped, as browsers do; what is escaped stays."""
    parts = urllib.parse.urlsplit(url.strip())
    host = parts.netloc
    if not host.isascii():
        host = host.encode("idna").decode()
    path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
    return urllib.parse.urlunsplit((parts.scheme, host, path or "/", query, ""))


def _said(error: Exception) -> str:
    """One of a few sentences, which can be counted."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "no answer in time (fetch.timeout)"
    if isinstance(cause, http.client.IncompleteRead):
        return "a cut answer"
    if isinstance(cause, socket.gaierror):
        return "the name leads to no address"
    if isinstance(cause, ssl.SSLError):
        return "a faulty certificate or TLS"
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    return f"{type(error).__name__}: {error}"[:200]


# What img2dataset does with it

_UNFIT = ("image too small", "image area too large", "aspect ratio too large")
"""What img2dataset says of images that its limits leave out."""


class Resizer:
    """img2dataset's resizer of an image as it is displayed.

    img2dataset passes over EXIF's orientation, and what it encodes has no EXIF: a photo would lie on its side.

    as_it_came   only leave out what the limits leave out, and else give the bytes that came
    """

    def __init__(self, resizer: Any, as_it_came: bool) -> None:
        self._resizer, self._as_it_came = resizer, as_it_came

    def __call__(self, stream: io.BytesIO, boxes: Any = None) -> tuple[Any, ...]:
        """Image, width, height, width and height before, and why there is none, as img2dataset passes it on."""
        content = stream.read()
        image, *sizes, why = self._resizer(io.BytesIO(content if self._as_it_came else upright(content)), boxes)
        if self._as_it_came and why not in _UNFIT:  # what cannot be decoded here, a run may read
            return content, None, None, None, None, None
        return image, *sizes, why


def upright(content: bytes) -> bytes:
    """The image with its pixels as they are displayed, where EXIF says that they are stored in another order."""
    if content[:2] != b"\xff\xd8" or b"Exif\0\0" not in content[: 1 << 16]:
        return content
    exifread: Any = import_module("exifread")
    try:
        said = exifread.process_file(io.BytesIO(content), details=False).get("Image Orientation")
        if said is None or said.values[0] not in range(2, 9):
            return content
    except Exception:  # whatever it comes to grief over in damaged EXIF
        return content
    cv2, numpy = import_module("cv2"), import_module("numpy")
    turned = cv2.imdecode(numpy.frombuffer(content, numpy.uint8), cv2.IMREAD_ANYCOLOR)  # which turns it
    return content if turned is None else bytes(cv2.imencode(".bmp", turned)[1])


class Writer:
    """A writer of img2dataset's whose shard fails where a sample could not be written (a full disk): img2dataset
    goes on without the sample, and counts the shard as done."""

    def __init__(self, made: Any, *arguments: Any) -> None:
        self._writer, self._why = made(*arguments), ""

    def write(self, *sample: Any) -> None:
        try:
            self._writer.write(*sample)
        except Exception as error:
            self._why = self._why or f"{type(error).__name__}: {error}"
            raise

    def close(self) -> None:
        self._writer.close()
        if self._why:
            raise RuntimeError(f"a sample could not be written: {self._why}")


class Guarded:
    """img2dataset's downloader of a shard, as it travels to fetching processes."""

    def __init__(self, downloader: Any, limits: Limits, as_it_came: bool) -> None:
        self._downloader, self._limits, self._as_it_came = downloader, limits, as_it_came

    def __call__(self, shard: tuple[int, str]) -> tuple[bool, Any]:
        """Whether the shard is whole, and the shard."""
        downloader: Any = import_module("img2dataset.downloader")
        if not hasattr(downloader, "download_image_with_retry"):
            raise RuntimeError("this img2dataset fetches in another way than the one that was checked")
        downloader.download_image_with_retry = Fetcher(self._limits)
        made = copy(self._downloader)
        # A folder of a shard that was killed: images that are not to be had any more would stay in it.
        shutil.rmtree(f"{made.output_folder}/{shard[0]:0{made.oom_shard_count}d}", ignore_errors=True)
        made.sample_writer_class = partial(Writer, made.sample_writer_class)
        if not made.resizer.disable_all_reencoding:
            made.resizer = Resizer(made.resizer, self._as_it_came)
        whole, _ = made(shard)
        return bool(whole), shard


def distribute(processes: int, downloader: Any, shards: Iterable[Any], _: Any, tries: int) -> None:
    """A process for each shard, in the place of img2dataset's pool, which waits for ever for a shard whose process was
    killed (for its memory, mostly). Shards that fail are tried again at the end."""
    failed = _each(processes, downloader, shards)
    for _ in range(tries):
        failed = _each(processes, downloader, failed)
    if failed:
        print(f"{len(failed)} shards failed")


def _each(processes: int, downloader: Any, shards: Iterable[Any]) -> list[Any]:
    context, running, failed = get_context("spawn"), dict[Any, tuple[Any, Any]](), list[Any]()

    def settle() -> None:
        for sentinel in wait(list(running)):
            process, shard = running.pop(sentinel)
            process.join()
            if process.exitcode:
                print(f"shard {shard[0]}: its process ended with {process.exitcode}")
                failed.append(shard)

    for shard in shards:
        process = context.Process(target=_one, args=(downloader, shard), daemon=True)
        process.start()
        running[process.sentinel] = process, shard
        while len(running) >= processes:
            settle()
    while running:
        settle()
    return failed


def _one(downloader: Any, shard: Any) -> None:
    end_with_caller()
    whole, _ = downloader(shard)
    sys.exit(0 if whole else 1)


def end_with_caller() -> None:
    """End this process and those of its group when standard input does, which the caller holds open while it lives.

    A caller that is killed could not do it, and img2dataset would fetch on beside its successor.
    """

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1):
                pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def read_limits(tree: dict[str, Any]) -> Limits:
    """`Limits` of the settings' file."""
    return Limits(**{**tree, "disallowed": tuple(tree["disallowed"]), "blocked": frozenset(tree["blocked"])})


def as_tree(limits: Limits) -> dict[str, Any]:
    """The same, for the settings' file."""
    return {**asdict(limits), "blocked": sorted(limits.blocked)}


def main(settings: str) -> None:
    end_with_caller()
    img2dataset: Any = import_module("img2dataset.main")  # the package calls a function of it `main`
    with open(settings, encoding="utf-8") as file:
        tree = json.load(file)
    if not hasattr(img2dataset, "multiprocessing_distributor"):
        raise RuntimeError("this img2dataset starts its processes in another way than the one that was checked")
    limits, made, as_it_came = read_limits(tree["limits"]), img2dataset.Downloader, tree["as_it_came"]
    img2dataset.Downloader = lambda **arguments: Guarded(made(**arguments), limits, as_it_came)
    img2dataset.multiprocessing_distributor = distribute
    img2dataset.download(**tree["arguments"])


if __name__ == "__main__":
    main(sys.argv[1])
