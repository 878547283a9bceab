"""WebDataset: tars in which the files of a sample follow each other (img2dataset's form of LAION, CC12M, DataComp).

A sample is an image with a caption (.txt, .caption) or facts (.json) of the same name. The plan reads the headers once
and writes an index of the members, so that a task opens the tar where its rows lie. Nothing is ever unpacked: members'
names name samples, and no file.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.core.stored_image import NoImage, StoredImage
from i2e_pipeline.inputs import kept, samples
from i2e_pipeline.inputs.columns import shortened
from i2e_pipeline.inputs.indexed import Indexed, Parts, read_index
from i2e_pipeline.inputs.named_files import LARGEST
from i2e_pipeline.inputs.shard import Images, Look, Shard, ShardError

if TYPE_CHECKING:
    from i2e_pipeline.core.config import PairsConfig
    from i2e_pipeline.inputs.shard import Source

_GAP = 64 << 10
"""Bytes between two parts that are read along: less than another request costs."""
_SPAN = 8 << 20
"""Bytes that are read in one go."""
_AHEAD = 1 << 20
_BLOCK = 512
INDEX = pa.schema(
    [("key", pa.string()), *((f"{part}_{what}", pa.int64()) for part in samples.PARTS for what in ("offset", "size"))]
)
"""A row per sample, in the tar's order; offset and size in bytes, -1 where it has no such part."""


class WebDataset(Indexed):
    name, suffixes, kind = "webdataset", (".tar",), "tar of samples (WebDataset)"
    looks_at_all = True

    def look(self, source: Source, pairs: PairsConfig) -> Look:
        filesystem, inner = files.open_filesystem(source.path)
        with filesystem.open_input_file(inner) as stream:
            index = index_of(stream, source.path, pairs.image_column, not files.is_local(source.path))
            shard = source.shard(pairs)
            has = {part: bool(np.any(index.column(f"{part}_offset").to_numpy() >= 0)) for part in samples.PARTS}
            facts = samples.facts_of(pairs, index, has["text"], lambda rows: _parts(stream, rows, "json"))
            schema = samples.schema_of(shard, facts, has["text"], has["image"])
        return Look(index.num_rows, schema, index, kinds=kept.of_objects(facts, list(pairs.keep_columns)))

    @contextmanager
    def parts(self, shard: Shard) -> Iterator[Parts]:
        filesystem, inner = files.open_filesystem(shard.path)
        with filesystem.open_input_file(inner) as stream:
            yield partial(_parts, stream)

    def images(self, shard: Shard, column: str) -> Images:
        return TarImages(shard)


def index_of(stream: Any, path: str, image_column: str = "jpg", ahead: bool = False) -> pa.Table:
    """INDEX of a tar. Members that are no part of a sample, hidden ones among them, are passed over.

    ahead   read more than each header: where every read is a request

    Raises ShardError where the tar is cut off or damaged.
    """
    keys: list[str] = []
    parts: list[list[int]] = []
    ranks: list[dict[str, int]] = []
    rows: dict[str, int] = {}
    places: dict[str, tuple[int, int]] = {}
    size = stream.size()
    try:
        with tarfile.open(fileobj=io.BufferedReader(stream, _AHEAD) if ahead else stream, mode="r:") as tar:
            end = 0
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.issparse():
                    raise ShardError(
                        f"{path}: {member.name} is stored with holes: pack the tar anew, without --sparse, or leave it "
                        "out"
                    )
                if member.size < 0:
                    raise tarfile.ReadError(f"{shortened(member.name)} has a negative size")
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.offset_data + member.size > size:
                    raise ShardError(
                        f"{path} is cut off in {member.name}: it ends after {size:,} bytes. Fetch it again, or leave "
                        "it out"
                    )
                # A hard link has the bytes of a member before it.
                at = places.get(member.linkname) if member.islnk() else (member.offset_data, member.size)
                hidden = files.is_hidden(member.name.removeprefix("./").rpartition("/")[2])
                if at is None or hidden or not (member.isreg() or member.islnk()):
                    continue
                key, suffix = samples.split(_valid(member.name).removeprefix("./"), image_column)
                found = samples.part_of(suffix, image_column)
                if found is None:
                    continue
                places[member.name] = at
                part, rank = found
                row = rows.get(key)
                # The same part once more is of another sample of the name.
                if row is None or ranks[row].get(part) == rank:
                    rows[key] = row = len(keys)
                    keys.append(key)
                    parts.append([-1] * (2 * len(samples.PARTS)))
                    ranks.append({})
                if part not in ranks[row] or rank < ranks[row][part]:
                    ranks[row][part] = rank
                    column = 2 * samples.PARTS.index(part)
                    parts[row][column : column + 2] = at
    except ShardError:
        raise
    # Of headers that nobody has written, tarfile raises more than its own: ValueError for numbers, RecursionError for a
    # long name of a long name of …
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise ShardError(
            f"{path} is no whole tar ({shortened(str(error))}): fetch it again, or leave it out{_packed(stream)}"
        ) from None
    if end + _BLOCK > size or stream.read_at(_BLOCK, end).strip(b"\0"):
        raise ShardError(
            f"{path} has no end: after its last whole member, at byte {end:,}, neither another nor an empty block "
            "follows, so it is damaged, or its writer or the copy was cut off. Fetch it again, or leave it out"
        )
    if (behind := _behind(stream, end, size)) is not None:
        raise ShardError(
            f"{path}: its end comes before byte {behind:,}, where something else follows, such as another tar: take "
            "them apart (`tar --concatenate` joins tars, `cat` does not), or leave it out"
        )
    table = np.array(parts, dtype=np.int64).reshape(len(parts), 2 * len(samples.PARTS))
    return pa.table([pa.array(keys, pa.string()), *(pa.array(column) for column in table.T)], schema=INDEX)


def _valid(name: str) -> str:
    """A member's name; one that is no UTF-8 as Latin-1, which every name is."""
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("latin-1")


def _behind(stream: Any, end: int, size: int) -> int | None:
    """The place of the first byte that is not empty behind a tar's end."""
    for start in range(end, size, _AHEAD):
        block = bytes(stream.read_at(min(_AHEAD, size - start), start))
        if left := len(block.lstrip(b"\0")):
            return start + len(block) - left
    return None


def _packed(stream: Any) -> str:
    first = stream.read_at(6, 0)
    packed = (
        first[:2] == b"\x1f\x8b"
        or first[:3] == b"BZh"
        or first[:6] == b"\xfd7zXZ\0"
        or first[:4] == b"\x28\xb5\x2f\xfd"
    )
    return ". It is compressed: unpack it, since tasks read at their rows' places" if packed else ""


def _parts(stream: Any, index: pa.Table, part: str) -> Iterator[bytes | None]:
    """The bytes of one part of each of these samples."""
    offsets, sizes = (index.column(f"{part}_{what}").to_numpy() for what in ("offset", "size"))
    yield from ranges(stream, offsets, sizes)


def ranges(stream: Any, offsets: np.ndarray, sizes: np.ndarray) -> Iterator[bytes | None]:
    """The bytes at these places, in their order; None for an offset below 0. Places that lie close are read at once."""
    n, count = 0, len(offsets)
    while n < count:
        if offsets[n] < 0:
            yield None
            n += 1
            continue
        start, end, last = int(offsets[n]), int(offsets[n] + sizes[n]), n + 1
        while last < count:
            if offsets[last] >= 0:
                if not end <= offsets[last] <= end + _GAP or offsets[last] + sizes[last] - start > _SPAN:
                    break
                end = int(offsets[last] + sizes[last])
            last += 1
        read = memoryview(stream.read_at(end - start, start))
        if len(read) < end - start:
            raise ShardError(f"the file ends before byte {end:,}: it changed since the run was planned")
        for at in range(n, last):
            yield None if offsets[at] < 0 else bytes(read[offsets[at] - start : offsets[at] - start + sizes[at]])
        n = last


class TarImages(Images):
    """The images of one tar."""

    def __init__(self, shard: Shard) -> None:
        self.path = shard.path
        index = read_index(shard)
        self._offsets, self._sizes = (index.column(f"image_{what}").to_numpy() for what in ("offset", "size"))
        self.rows = index.num_rows
        filesystem, inner = files.open_filesystem(shard.path)
        try:
            self._stream = filesystem.open_input_file(inner)
        except FileNotFoundError:
            raise ShardError(f"input shard {shard.path}: no such file") from None

    def read(self, rows: Iterable[int]) -> Iterator[StoredImage]:
        asked = iter(rows)
        while some := list(islice(asked, 64)):
            for row in some:
                self.check_row(row)
            sizes = self._sizes[some]
            stored = ranges(self._stream, np.where(sizes > LARGEST, -1, self._offsets[some]), sizes)
            for size, image in zip(sizes, stored, strict=True):
                yield NoImage(Reason.TOO_MANY_BYTES, f"it has {size:,} bytes") if size > LARGEST else image

    def close(self) -> None:
        self._stream.close()
