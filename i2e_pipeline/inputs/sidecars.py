"""Folders of images, each with its caption (.txt) or facts (.json) beside it.

A shard is some thousand images of one folder, in the order of their names. Which they are stands in the index that the
plan writes, so rows keep their numbers when other images come into the folder: those are shards of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.core.stored_image import NoImage, StoredImage
from i2e_pipeline.inputs import samples
from i2e_pipeline.inputs.indexed import Indexed, Parts, read_index
from i2e_pipeline.inputs.shard import Images, Look, Shard

if TYPE_CHECKING:
    from i2e_pipeline.core.config import PairsConfig
    from i2e_pipeline.inputs.shard import Source

_AT_ONCE = 32
_DIGESTED = 4096
"""Bytes of each image that its shard is named by, beside its name and size."""
INDEX = pa.schema([("key", pa.string()), *((part, pa.string()) for part in samples.PARTS)])
"""A row per image, in the order of names: its name without folder and suffix, and the paths of its parts."""


class Sidecars(Indexed):
    name, kind = "files", "folder of images with captions beside them"
    suffixes = tuple(f".{suffix}" for suffix in samples.IMAGE_SUFFIXES)

    def look(self, source: Source, pairs: PairsConfig) -> Look:
        rows = [{"key": samples.split(member["image"])[0].rpartition("/")[2], **member} for member in source.members]
        index = pa.Table.from_pylist(rows, schema=INDEX)
        shard = source.shard(pairs)
        has_texts = index.column("text").null_count < index.num_rows
        facts = samples.facts_of(pairs, index, has_texts, lambda rows: _read(rows.column("json").to_pylist()))
        schema = samples.schema_of(shard, facts, has_texts, True)
        kinds = samples.kinds_of(facts, list(pairs.keep_columns))
        return Look(index.num_rows, schema, index, _digest(index, source.sizes), kinds)

    @contextmanager
    def parts(self, shard: Shard) -> Iterator[Parts]:
        yield lambda index, part: _read(index.column(part).to_pylist())

    def images(self, shard: Shard, column: str) -> Images:
        return FolderImages(shard)


def _read(paths: Sequence[str | None]) -> Iterator[bytes | None]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda path: None if path is None else files.read_bytes(path), paths)


def _digest(index: pa.Table, sizes: Sequence[int]) -> str:
    """Of the images' names, sizes and first bytes, and of their texts."""
    digest = hashlib.blake2b(digest_size=16)
    names = index.column("image").to_pylist()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for name, size, first in zip(names, sizes, pool.map(_first_bytes, names), strict=True):
            digest.update(f"{name.rpartition('/')[2]}\0{size}\0".encode())
            digest.update(first)
    for part in ("text", "json"):
        for stored in _read(index.column(part).to_pylist()):
            digest.update(b"\0none" if stored is None else hashlib.blake2b(stored, digest_size=16).digest())
    return digest.hexdigest()


def _first_bytes(path: str) -> bytes:
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        return bytes(stream.read(_DIGESTED))


class FolderImages(Images):
    """The image files of one shard, read side by side."""

    def __init__(self, shard: Shard) -> None:
        self.path = shard.path
        self._names: list[str] = read_index(shard).column("image").to_pylist()
        self.rows = len(self._names)
        self._pool = ThreadPoolExecutor(_AT_ONCE // 2, thread_name_prefix="images")

    def read(self, rows: Iterable[int]) -> Iterator[StoredImage]:
        asked = iter(rows)
        while some := list(islice(asked, _AT_ONCE // 2)):
            for row in some:
                self.check_row(row)
            yield from self._pool.map(_image, [self._names[row] for row in some])

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _image(path: str) -> StoredImage:
    try:
        return files.read_bytes(path)
    except OSError as error:
        return NoImage(Reason.MISSING_IMAGE, f"{path}: {error}")
