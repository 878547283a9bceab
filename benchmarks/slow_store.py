"""A store far away, for benchmarks: every request waits, and a connection carries so many bytes a second.

    with SlowStore({"i2e/manifest.json": b"…", "i2e/images/…": Path("…")}, latency=0.04, bandwidth=80e6):
        open_published("slow://bucket/i2e")

Objects are bytes, files of this machine, or numbers: sizes of objects that are listed and never read. A listing is a
request per 1,000 names, as S3 has it. Reads of one file come one after the other, each over one connection; those of
several files do not wait for each other.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from i2e_pipeline.core import stores

_NAMES_A_REQUEST = 1000


class SlowStore(pafs.FileSystemHandler):
    """While it is entered, slow://bucket/NAME is its object of that name."""

    def __init__(self, objects: Mapping[str, bytes | Path | int], latency: float, bandwidth: float) -> None:
        """latency: seconds a request; bandwidth: bytes a second and connection"""
        self.objects, self.latency, self.bandwidth = dict(objects), latency, bandwidth
        self.requests = 0
        self._lock = threading.Lock()

    def __enter__(self) -> SlowStore:
        self._before = stores.filesystem
        filesystem = pafs.PyFileSystem(self)

        def opened(uri: str) -> tuple[pafs.FileSystem, str] | None:
            return (filesystem, uri.removeprefix("slow://")) if uri.startswith("slow://") else self._before(uri)

        stores.filesystem = opened
        return self

    def __exit__(self, *_: object) -> None:
        stores.filesystem = self._before

    def wait(self, size: int = 0) -> None:
        with self._lock:
            self.requests += 1
        time.sleep(self.latency + size / self.bandwidth)

    def _of(self, path: str) -> bytes | Path | int | None:
        return self.objects.get(path.removeprefix("bucket/"))

    def _info(self, path: str) -> pafs.FileInfo:
        found = self._of(path)
        if found is not None:
            return pafs.FileInfo(path, pafs.FileType.File, size=_size(found))
        below = path.removeprefix("bucket").lstrip("/") + "/"
        there = any(name.startswith(below) for name in self.objects)
        return pafs.FileInfo(path, pafs.FileType.Directory if there else pafs.FileType.NotFound)

    # -- what pyarrow asks for ------------------------------------------------------------------------------------

    def get_type_name(self) -> str:
        return "slow"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        for _ in paths:
            self.wait()
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        below = selector.base_dir.removeprefix("bucket").strip("/") + "/"
        found = [name for name in self.objects if name.startswith(below)]
        for _ in range(0, max(1, len(found)), _NAMES_A_REQUEST):
            self.wait()
        return [pafs.FileInfo(f"bucket/{name}", pafs.FileType.File, size=_size(self.objects[name])) for name in found]

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.wait()
        found = self._of(path)
        if not isinstance(found, bytes | Path):
            raise FileNotFoundError(path)
        return pa.PythonFile(_Object(self, found), mode="r")

    open_input_stream = open_input_file

    def create_dir(self, path: str, recursive: bool) -> None:
        del path, recursive  # a store has none

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        del metadata
        self.wait()
        return pa.PythonFile(_Upload(self, path.removeprefix("bucket/")), mode="w")

    def _refused(self, *_: Any) -> None:
        raise NotImplementedError("this store is read, and written whole objects")

    copy_file = move = delete_dir = delete_dir_contents = delete_root_dir_contents = open_append_stream = _refused

    def delete_file(self, path: str) -> None:
        self.wait()
        del self.objects[path.removeprefix("bucket/")]


def _size(found: bytes | Path | int) -> int:
    return found if isinstance(found, int) else len(found) if isinstance(found, bytes) else found.stat().st_size


class _Object(io.RawIOBase):
    """One opened object: each read is a request."""

    def __init__(self, store: SlowStore, content: bytes | Path) -> None:
        self._store = store
        self._file = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._store.wait(len(content))
        return content

    def close(self) -> None:
        self._file.close()
        super().close()


class _Upload(io.BytesIO):
    """An object that is there when it is closed."""

    def __init__(self, store: SlowStore, name: str) -> None:
        super().__init__()
        self._store, self._name = store, name

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            self._store.wait(len(content))
            self._store.objects[self._name] = content
        super().close()
