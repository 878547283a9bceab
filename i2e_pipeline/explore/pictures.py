"""The pictures of a published dataset: the stored bytes of one image, and thumbnails.

Row groups hold tens of megabytes of images. A picture is read by decoding batches of its row group up to its row, so
that a reader holds some images and not a row group; what was read lately stays in memory, up to a bound.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.images import thumbnails

_BATCH_BYTES, _BUFFER = 1 << 21, 1 << 20
_FOOTERS = 256
_SIDES = (160, 320, 640)
"""Longer sides of the thumbnails that there are."""


class NoPicture(I2EError):
    """The bytes are no image that can be shown; the message says why."""


class Pictures:
    def __init__(self, folder: str, cache_mb: int = 128) -> None:
        self._folder, self._budget = folder, cache_mb << 20
        self._thumbnails: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._held, self._lock = 0, threading.Lock()
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        # Decoding large pictures takes memory: as many at a time as there are cores on a laptop.
        self._decoders = threading.BoundedSemaphore(4)

    def stored(self, path: str, row: int) -> bytes:
        """The bytes of an image as they were stored. Raises NoPicture where there are none."""
        for batch, place in self._batches(path, row, ["image.bytes"]):
            value = batch.column("image").field("bytes")[place].as_py()
            if value:
                return bytes(value)
        raise NoPicture("the dataset holds no bytes of this image")

    def row(self, path: str, row: int) -> dict[str, Any]:
        """The row's other columns."""
        with self._open(path) as opened:
            names = [name for name in opened.schema_arrow.names if name != "image"]
        for batch, place in self._batches(path, row, names):
            return {name: _plain(batch.column(name)[place].as_py()) for name in names}
        raise NoPicture(f"{path} has no row {row}")

    def thumbnail(self, path: str, row: int, image_id: str, side: int) -> bytes:
        """A JPEG of at most `side` pixels. Raises NoPicture where the bytes cannot be decoded."""
        return self._kept(image_id, side, lambda: self.stored(path, row))

    def shrunk(self, stored: bytes, image_id: str, side: int) -> bytes:
        """`thumbnail` of bytes that are at hand."""
        return self._kept(image_id, side, lambda: stored)

    def _kept(self, image_id: str, side: int, stored: Callable[[], bytes]) -> bytes:
        side = next((s for s in _SIDES if s >= side), _SIDES[-1])
        with self._lock:
            if (image_id, side) in self._thumbnails:
                self._thumbnails.move_to_end((image_id, side))
                return self._thumbnails[image_id, side]
        with self._decoders:
            made = thumbnails.small(stored(), side)
        if isinstance(made, thumbnails.Thumbnail):
            raise NoPicture(f"{made.why}: {made.detail}".rstrip(": "))
        with self._lock:
            if (image_id, side) not in self._thumbnails:
                self._thumbnails[image_id, side] = made
                self._held += len(made)
            while self._held > self._budget:
                self._held -= len(self._thumbnails.popitem(last=False)[1])
        return made

    def _batches(self, path: str, row: int, columns: list[str]) -> Any:
        """The batch that holds a row, and the row's place in it."""
        with self._open(path) as opened:
            counts = [opened.metadata.row_group(g).num_rows for g in range(opened.metadata.num_row_groups)]
            ends = list(accumulate(counts))
            group = next((g for g, end in enumerate(ends) if row < end), None)
            if group is None:
                raise NoPicture(f"{path} has no row {row}: the dataset has changed; start again")
            before = ends[group] - counts[group]
            held = opened.metadata.row_group(group)
            chunks = [held.column(n) for n in range(held.num_columns)]
            wide = sum(c.total_uncompressed_size for c in chunks if _of(c.path_in_schema, columns)) / counts[group]
            size = max(1, min(4096, int(_BATCH_BYTES / max(wide, 1))))
            for batch in opened.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
                if row - before < batch.num_rows:
                    yield batch, row - before
                    return
                before += batch.num_rows

    def _open(self, path: str) -> pq.ParquetFile:
        filesystem, inner = files.open_filesystem(files.join(self._folder, path))
        with self._lock:
            known = self._footers.get(path)
        try:
            opened = pq.ParquetFile(
                filesystem.open_input_file(inner), metadata=known, pre_buffer=False, buffer_size=_BUFFER
            )
        except (OSError, pa.ArrowInvalid) as error:
            raise NoPicture(f"{path} cannot be read ({error}): the dataset has changed; start again") from None
        if known is None:
            with self._lock:
                self._footers[path] = opened.metadata
                while len(self._footers) > _FOOTERS:
                    self._footers.popitem(last=False)
        return opened


def _of(path: str, columns: list[str]) -> bool:
    return any(path == column or path.startswith(f"{column}.") for column in columns)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
