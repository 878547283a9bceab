"""Images that rows name by path: which files they may be, and their bytes.

A table from outside must not read a worker's files. So a path counts from the folder of the table, or from the first
folder of `pairs.image_root`, and what leads out of these folders, by `..`, by a symlink or by a URI of somewhere else,
is not read.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urlsplit

from i2e_pipeline.core import files
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.core.stored_image import NoImage, StoredImage
from i2e_pipeline.inputs.columns import shortened
from i2e_pipeline.inputs.shard import Shard

_AT_ONCE = 16
"""Files that are read side by side: a store answers each after tens of milliseconds."""
LARGEST = 1 << 28
"""Bytes of a file that is read at all; score.max_bytes is far below."""


class NamedFiles:
    """Reads files by the names that the rows of a shard give. A context."""

    def __init__(self, shard: Shard) -> None:
        self._roots = tuple(r.rstrip("/") for r in shard.roots) or (folder_of(shard.path),)
        self._real = tuple(os.path.realpath(_bare(r)) if files.is_local(r) else r for r in self._roots)
        self._pool: ThreadPoolExecutor | None = None

    def read(self, names: Sequence[str | None]) -> Iterator[StoredImage]:
        """The bytes of each file, in the order of the names; None for no name."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="images")
        yield from self._pool.map(self._one, names)

    def _one(self, name: str | None) -> StoredImage:
        if name is None or not name.strip():
            return None
        place = self.place(name)
        if place is None:
            roots = ", ".join(self._roots)
            return NoImage(Reason.MISSING_IMAGE, f"{shortened(name)} is not below {roots} (pairs.image_root)")
        try:
            if files.is_local(place) and not os.path.isfile(place):  # a pipe would be waited for, for ever
                why = "it is no file" if os.path.exists(place) else os.strerror(errno.ENOENT)
                return NoImage(Reason.MISSING_IMAGE, f"{name}: {why}")
            filesystem, inner = files.open_filesystem(place)
            with filesystem.open_input_file(inner) as stream:
                if stream.size() > LARGEST:
                    return NoImage(Reason.TOO_MANY_BYTES, f"{shortened(name)} has {stream.size():,} bytes")
                return bytes(stream.read())
        except (OSError, files.StoreError) as error:
            why = shortened(str(error) or type(error).__name__)
            return NoImage(Reason.MISSING_IMAGE, f"{shortened(name)}: {why}")

    def place(self, name: str) -> str | None:
        """Where the file of that name lies; None where it would be outside of the folders."""
        name = name.strip()
        if "\0" in name:
            return None
        if name.startswith("file:"):
            name = unquote(urlsplit(name).path)
        if "://" in name:
            whole = _normal(name)
            return whole if any(_below(whole, root) for root in self._roots if "://" in root) else None
        if files.is_local(self._roots[0]):
            whole = os.path.normpath(os.path.join(_bare(self._roots[0]), name))
            real = os.path.realpath(whole)
            return real if any(_below(real, root) for root in self._real) else None
        whole = _normal(posixpath.join(self._roots[0], name.lstrip("/")))
        return whole if any(_below(whole, root) for root in self._roots) else None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> NamedFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def folder_of(path: str) -> str:
    """The folder that a file lies in; an absolute path where it is local."""
    if files.is_local(path):
        return os.path.dirname(os.path.abspath(_bare(path)))
    return path.rpartition("/")[0]


def _bare(path: str) -> str:
    return path.removeprefix("file://")


def _normal(uri: str) -> str:
    """The URI with `.` and `..` resolved; they never lead above the bucket."""
    scheme, _, rest = uri.partition("://")
    authority, _, path = rest.partition("/")
    return f"{scheme}://{authority}{posixpath.normpath('/' + path)}"


def _below(path: str, root: str) -> bool:
    root = root.rstrip("/")
    return path.startswith(root + "/") or not root
