"""Folders of images, each with its caption (.txt) or facts (.json) beside it.

A shard is some thousand images of one folder, in the order of their names. Which they are stands in the index that the
plan writes, so rows keep their numbers when other images come into the folder: those are shards of their own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.core.files import FileInfo
from i2e_pipeline.core.stored_image import StoredImage
from i2e_pipeline.inputs import kept, samples
from i2e_pipeline.inputs.indexed import Indexed, Parts, read_index
from i2e_pipeline.inputs.named_files import NamedFiles
from i2e_pipeline.inputs.shard import Images, Look, Shard, Source

if TYPE_CHECKING:
    from i2e_pipeline.core.config import PairsConfig

log = logging.getLogger(__name__)

IN_A_SHARD = 10_000
"""Images of one folder that are a shard."""
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
        with self.parts(shard) as read:
            facts = samples.facts_of(pairs, index, has_texts, lambda rows: read(rows, "json"))
            digest = _digest(index, source.sizes, read)
        schema = samples.schema_of(shard, facts, has_texts, True)
        kinds = kept.of_objects(facts, list(pairs.keep_columns))
        return Look(index.num_rows, schema, index, digest, kinds)

    @contextmanager
    def parts(self, shard: Shard) -> Iterator[Parts]:
        with NamedFiles(shard) as named:
            # What a link brings in from elsewhere is no text of this folder.
            yield lambda index, part: (
                stored if isinstance(stored, bytes) else None for stored in named.read(index.column(part).to_pylist())
            )

    def images(self, shard: Shard, column: str) -> Images:
        return FolderImages(shard)


def _digest(index: pa.Table, sizes: Sequence[int], read: Parts) -> str:
    """Of the images' names, sizes and first bytes, and of their texts."""
    digest = hashlib.blake2b(digest_size=16)
    names = index.column("image").to_pylist()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for name, size, first in zip(names, sizes, pool.map(_first_bytes, names), strict=True):
            digest.update(f"{name.rpartition('/')[2]}\0{size}\0".encode())
            digest.update(first)
    for part in ("text", "json"):
        for stored in read(index, part):
            digest.update(b"\0none" if stored is None else hashlib.blake2b(stored, digest_size=16).digest())
    return digest.hexdigest()


def _first_bytes(path: str) -> bytes:
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        return bytes(stream.read(_DIGESTED))


class FolderImages(Images):
    """The image files of one shard, read side by side."""

    named = True

    def __init__(self, shard: Shard) -> None:
        self.path = shard.path
        self._names: list[str] = read_index(shard).column("image").to_pylist()
        self.rows = len(self._names)
        self._files = NamedFiles(shard)

    def read(self, rows: Iterable[int]) -> Iterator[StoredImage]:
        asked = iter(rows)
        while some := list(islice(asked, _AT_ONCE // 2)):
            for row in some:
                self.check_row(row)
            yield from self._files.read([self._names[row] for row in some])

    def close(self) -> None:
        self._files.close()


# Which shards there are


def shards(images: Sequence[FileInfo], others: Iterable[FileInfo], known: Iterable[Sequence[str]] = ()) -> list[Source]:
    """Shards of images that have a text or facts beside them: those of before, and new ones of what is new.

    others   what else was listed
    known    images of the shards of before, each in its order
    """
    of_sample: dict[str, dict[str, tuple[int, FileInfo]]] = {}
    for info in sorted([*images, *others], key=lambda i: i.path):
        key, suffix = samples.split(info.path)
        if (found := samples.part_of(suffix)) is not None:
            part, rank = found
            of_key = of_sample.setdefault(key, {})
            if part not in of_key or rank < of_key[part][0]:
                of_key[part] = rank, info
    by_image = {
        parts["image"][1].path: {part: info for part, (_, info) in parts.items()}
        for parts in of_sample.values()
        if len(parts) > 1 and "image" in parts
    }
    if by_image and (alone := [p["image"][1].path for p in of_sample.values() if {*p} == {"image"}]):
        log.warning("%d images without a text beside them are passed over, such as %s", len(alone), alone[0])
    sources = []
    for before in known:
        # What is left of a shard of which something is gone keeps its name, so that its unit is known to have changed.
        if left := [by_image.pop(path) for path in before if path in by_image]:
            sources.append(_shard(left, before[0]))
    by_folder: dict[str, list[dict[str, FileInfo]]] = {}
    for path, parts in by_image.items():
        by_folder.setdefault(path.rpartition("/")[0], []).append(parts)
    for of_folder in by_folder.values():
        in_order = sorted(of_folder, key=lambda parts: parts["image"].path)
        sources += [_shard(in_order[start : start + IN_A_SHARD]) for start in range(0, len(in_order), IN_A_SHARD)]
    return sources


def _shard(rows: Sequence[dict[str, FileInfo]], name: str | None = None) -> Source:
    infos = [info for parts in rows for info in parts.values()]  # a text that changes changes the shard
    info = FileInfo(name or rows[0]["image"].path, sum(i.size for i in infos), max(i.modified for i in infos))
    members = tuple({part: info.path for part, info in parts.items()} for parts in rows)
    return Source(info, "files", members, tuple(parts["image"].size for parts in rows))
