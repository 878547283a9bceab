"""What names the whole content of a file: 32 hex characters (BLAKE2b, 128 bits), as `b2sum -l 128` prints them.

A length that stayed says nothing: one byte of a disk or of a copy that went wrong leaves it. `files.fingerprint` names
large inputs by windows; what the product has written itself is named by every byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import IO

import pyarrow as pa

from i2e_pipeline.core import files

_READ = 8 << 20
LIST = "b2sums.txt"
"""Beside a dataset's files: their digests. `b2sum -l 128 -c b2sums.txt` in the same folder compares them."""
_LINE = re.compile(r"([0-9a-f]{32})  ([^\n]+)")


def of_bytes(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def of_file(path: str) -> str:
    """Reads all of it, in bounded memory. Raises FileNotFoundError, or OSError where it cannot be read."""
    filesystem, inner = files.open_filesystem(path)
    digest = hashlib.blake2b(digest_size=16)
    with filesystem.open_input_stream(inner, compression=None) as stream:
        while part := stream.read(_READ):
            digest.update(part)
    return digest.hexdigest()


def of_readable(path: str) -> str | None:
    """The same; None where it cannot be read."""
    try:
        return of_file(path)
    except OSError:
        return None


def listing(by_path: Mapping[str, str]) -> bytes:
    """Digests by path as `b2sum` writes and reads them, in the order of the paths."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(by_path.items())).encode()


def listed(content: bytes) -> dict[str, str]:
    """Digests by path, of what `listing` wrote. Raises ValueError with the line that is none."""
    found = {}
    for n, line in enumerate(content.decode().removesuffix("\n").split("\n") if content else (), 1):
        parts = _LINE.fullmatch(line)
        if parts is None or not files.is_below(parts[2]) or parts[2] in found:
            raise ValueError(f"line {n} does not name a file and its digest: {line[:100]!r}")
        found[parts[2]] = parts[1]
    return found


class Digested:
    """A stream that is written through this one, and named when all is written. For writers that go forward alone."""

    def __init__(self, stream: IO[bytes] | pa.NativeFile) -> None:
        self._stream = stream
        self._digest = hashlib.blake2b(digest_size=16)
        self.bytes = 0

    def write(self, part: bytes) -> int:
        self._stream.write(part)
        self._digest.update(part)
        self.bytes += len(part)
        return len(part)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        """What was written is whole when it is closed, and not before."""

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return bool(self._stream.closed)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()
