"""What names the whole content of a file: 32 hex characters (BLAKE2b, 128 bits), as `b2sum -l 128` prints them.

A length that stayed says nothing: one byte of a disk or of a copy that went wrong leaves it. `files.fingerprint` names
large inputs by windows; what the product has written itself is named by every byte.
"""

from __future__ import annotations

import hashlib
from typing import IO

import pyarrow as pa

from i2e_pipeline.core import files

_READ = 8 << 20


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
