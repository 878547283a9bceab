"""Evaluation sets: what is known of the images that a training must not see.

Reads    clean.evaluation_sets: by name a folder, Parquet files or tars of images; or lists of image ids and hashes
Writes   LISTED, a file that lies on each machine, and what is asked of it: which sets hold an image, or one like it

A list is a Parquet file with a column `image_id` or `perceptual_hash` as datasets of this project have them (32 and 64
hex digits, or 16 and 32 bytes), or a .txt with one of them a line. In a folder all images, Parquet files and tars count
below it. What was made of a set is kept on the machine by the content of its files, and made again where these change.
"""

from __future__ import annotations

import itertools
import logging
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import ImageLimits, digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.ids import ID_BYTES, content_id, fixed_bytes
from i2e_pipeline.core.machine import laid_out
from i2e_pipeline.images.decode import Rejected, open_rgb, perceptual_hashes, says_something, thumbnail
from i2e_pipeline.images.near_hashes import BYTES, MIRROR, NEAR_BITS, NearHashes
from i2e_pipeline.inputs.samples import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

LISTED = pa.schema([("set", pa.string()), ("image_id", pa.binary()), ("image_hash", pa.binary())])
"""One row an image; either is null where it is not known."""
_FORMAT = 1
_LIMITS = ImageLimits(max_pixels=500_000_000, min_side=1, max_aspect=1e6, max_bytes=1 << 30)
"""All images of an evaluation set count, however they are shaped."""
_SIDE = 64
_AT_ONCE = 256
_READ_AT_ONCE = 32
_TARS = (".tar", ".tar.gz", ".tgz")


class EvaluationSetError(I2EError, ValueError):
    """A set that cannot be read; the message names it, the file and the remedy."""


@dataclass(frozen=True)
class Member:
    """A file of a set."""

    path: str
    size: int


def members(name: str, patterns: Sequence[str]) -> list[Member]:
    """The files that count, sorted. Raises EvaluationSetError where there are none."""
    try:
        found = files.find(patterns, "")
    except (FileNotFoundError, I2EError) as error:
        raise EvaluationSetError(f"clean.evaluation_sets.{name}: {error}") from None
    counting = [
        Member(f.path, f.size)
        for f in found
        if _suffix(f.path) in IMAGE_SUFFIXES or f.path.lower().endswith((*_TARS, ".parquet"))
        or (f.path.lower().endswith(".txt") and f.path in patterns)
    ]  # fmt: skip
    if not counting:
        raise EvaluationSetError(
            f"clean.evaluation_sets.{name}: {', '.join(patterns)} holds no image, Parquet file or tar: name a folder "
            "of images (what unpacks to pickled or MATLAB files is to be written as images first), or a list of "
            "perceptual hashes"
        )
    return counting


def digest_of(name: str, patterns: Sequence[str]) -> str:
    """Of the content of a set's files, whatever they are called."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return digest([_FORMAT, *sorted(pool.map(lambda m: files.fingerprint(m.path), members(name, patterns)))])


def laid_out_sets(sets: Mapping[str, Sequence[str]], digests: Mapping[str, str]) -> str:
    """A folder on this machine with a file of LISTED for each set, made where it is not there yet."""

    def fill(folder: Path) -> None:
        for name, patterns in sets.items():
            one = laid_out("evaluation-sets", digests[name], partial(_make, name, patterns))
            table = pq.read_table(one / "listed.parquet")
            named = pa.array([name] * table.num_rows, pa.string())
            files.write_table(str(folder / f"{digest(name)}.parquet"), table.set_column(0, "set", named))

    return str(laid_out("evaluation-sets", f"all-{digest([dict(digests), _FORMAT])}", fill))


def _make(name: str, patterns: Sequence[str], folder: Path) -> None:
    log.info("evaluation set %s: looking at %s files", name, f"{len(members(name, patterns)):,}")
    with ThreadPoolExecutor() as pool:
        parts = list(_rows(name, patterns, pool))
    table = pa.concat_tables([LISTED.empty_table(), *parts])
    unread = pc.sum(pc.is_null(table["image_hash"])).as_py() or 0
    log.info("evaluation set %s: %s images, %s of them without a perceptual hash", name, f"{table.num_rows:,}", unread)
    files.write_table(str(folder / "listed.parquet"), table)


def _rows(name: str, patterns: Sequence[str], pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
    """LISTED of a set, in parts."""
    images: list[str] = []
    for member in members(name, patterns):
        where = f"clean.evaluation_sets.{name}: {member.path}"
        lowered = member.path.lower()
        if lowered.endswith(".txt"):
            yield _of_lines(files.read_bytes(member.path).decode("utf-8-sig", "replace"), where)
        elif lowered.endswith(".parquet"):
            yield from _of_parquet(member.path, where, pool)
        elif lowered.endswith(_TARS):
            yield from _hashed(_in_tar(member.path, where), pool)
        else:
            images.append(member.path)
    for start in range(0, len(images), _AT_ONCE):  # not all are read before the first is looked at
        yield from _hashed(pool.map(files.read_bytes, images[start : start + _AT_ONCE]), pool)


def _hashed(stored: Iterator[bytes], pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
    while some := list(itertools.islice(stored, _AT_ONCE)):
        thumbs = list(pool.map(_thumbnail, some))
        known = [thumb for thumb in thumbs if thumb is not None]
        hashes = iter(perceptual_hashes(np.stack(known)) if known else ())
        yield _table(
            [content_id(one) for one in some],
            [None if thumb is None else next(hashes).tobytes() for thumb in thumbs],
        )


def _thumbnail(stored: bytes) -> np.ndarray | None:
    opened = open_rgb(stored, _LIMITS, _SIDE)
    return None if isinstance(opened, Rejected) else thumbnail(opened[0])


def _in_tar(path: str, where: str) -> Iterator[bytes]:
    filesystem, inner = files.open_filesystem(path)
    try:
        with (
            filesystem.open_input_stream(inner, compression=None) as stream,
            tarfile.open(fileobj=stream, mode="r|*") as tar,
        ):
            for entry in tar:
                if entry.isfile() and _suffix(entry.name) in IMAGE_SUFFIXES:
                    content = tar.extractfile(entry)
                    assert content is not None
                    yield content.read()
    except tarfile.TarError as error:
        raise EvaluationSetError(f"{where} is no tar: {error}") from None


def _of_parquet(path: str, where: str, pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
    filesystem, inner = files.open_filesystem(path)
    try:
        with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as parquet:
            schema = parquet.schema_arrow
            listed = [f.name for f in schema if f.name in ("image_id", "perceptual_hash") and _may_be_id(f.type)]
            if listed:
                for batch in parquet.iter_batches(columns=listed):
                    yield _of_columns(batch, where)
                return
            column = next((f.name for f in schema if _is_image(f)), None)
            if column is None:
                raise EvaluationSetError(
                    f"{where} has neither perceptual_hash nor image_id (hex digits or bytes) nor a column of images; "
                    f"it has {', '.join(schema.names)}"
                )
            stored = itertools.chain.from_iterable(
                _stored(batch.column(0)) for batch in parquet.iter_batches(64, columns=[column])
            )
            yield from _hashed(stored, pool)
    except pa.ArrowInvalid as error:
        raise EvaluationSetError(f"{where} is no Parquet file: {error}") from None


def _may_be_id(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_fixed_size_binary)
    )


def _is_image(column: pa.Field) -> bool:
    kind = column.type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _stored(column: pa.Array) -> Iterator[bytes]:
    values = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    yield from (value for value in values.to_pylist() if value)


def _of_columns(batch: pa.RecordBatch, where: str) -> pa.Table:
    def column(name: str, width: int) -> list[bytes | None]:
        if name not in batch.schema.names:
            return [None] * batch.num_rows
        return [_id(value, width, where) for value in batch.column(name).to_pylist()]

    return _table(column("image_id", ID_BYTES), column("perceptual_hash", BYTES))


def _of_lines(text: str, where: str) -> pa.Table:
    items = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    items = [(n, item) for n, item in items if item and not item.startswith("#")]
    ids = [_id(i, ID_BYTES, f"{where}, line {n}") if len(i) == 2 * ID_BYTES else None for n, i in items]
    hashes = [_id(i, BYTES, f"{where}, line {n}") if len(i) != 2 * ID_BYTES else None for n, i in items]
    return _table(ids, hashes)


def _id(value: Any, width: int, where: str) -> bytes | None:
    if value is None or value == "":
        return None
    if isinstance(value, bytes) and len(value) == width:
        return value
    if isinstance(value, str) and re.fullmatch(rf"[0-9a-fA-F]{{{2 * width}}}", value):
        return bytes.fromhex(value)
    raise EvaluationSetError(f"{where}: {value!r} is no {'image_id' if width == ID_BYTES else 'perceptual_hash'}: "
                             f"{2 * width} hex digits or {width} bytes are")  # fmt: skip


def _table(ids: Sequence[bytes | None], hashes: Sequence[bytes | None]) -> pa.Table:
    names = pa.nulls(len(ids), pa.string())
    return pa.table([names, pa.array(ids, pa.binary()), pa.array(hashes, pa.binary())], schema=LISTED)


def _suffix(path: str) -> str:
    return path.rpartition(".")[2].lower()


class Listed:
    """The images of all sets, to be asked."""

    def __init__(self, listed: pa.Table, mirrored: bool) -> None:
        """mirrored   images whose mirror image is in a set look the same, too"""
        self.names = sorted(set(listed["set"].to_pylist()))
        place = {name: n for n, name in enumerate(self.names)}
        self._by_id: dict[bytes, set[int]] = {}
        for name, image_id in zip(listed["set"].to_pylist(), listed["image_id"].to_pylist(), strict=True):
            if image_id is not None:
                self._by_id.setdefault(image_id, set()).add(place[name])
        known = listed.filter(pc.is_valid(listed["image_hash"]))
        hashes_K32 = fixed_bytes(known["image_hash"].combine_chunks(), BYTES)
        set_K = np.array([place[name] for name in known["set"].to_pylist()], dtype=np.int64)
        telling_K = says_something(hashes_K32)
        hashes_K32, set_K = hashes_K32[telling_K], set_K[telling_K]
        self._set_K = np.concatenate([set_K, set_K]) if mirrored else set_K
        self._near = NearHashes(np.concatenate([hashes_K32, hashes_K32 ^ MIRROR]) if mirrored else hashes_K32)

    def named(self, image_ids: pa.Array, hashes: pa.Array) -> list[dict[str, bool]]:
        """Of each image the sets that hold it (True), or one within NEAR_BITS of it (False)."""
        found: list[dict[str, bool]] = [{} for _ in range(len(image_ids))]
        known = np.flatnonzero(np.asarray(pc.is_valid(hashes)))
        hashes_N32 = fixed_bytes(hashes.take(pa.array(known)), BYTES)
        for row, listed in zip(*self._near.find(hashes_N32), strict=True):
            found[known[row]][self.names[self._set_K[listed]]] = False
        for row, image_id in enumerate(image_ids.cast(pa.binary()).to_pylist()):
            for place in self._by_id.get(image_id, ()):
                found[row][self.names[place]] = True
        return found


@lru_cache(maxsize=2)
def read(folder: str, mirrored: bool) -> Listed:
    """The sets in a folder of `laid_out_sets`."""
    parts = [pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))]
    return Listed(pa.concat_tables([LISTED.empty_table(), *parts]), mirrored)


def detail(sets: Mapping[str, bool]) -> str | None:
    """What a reader of rejects is told: which sets hold the image, and which one that looks the same."""
    if not sets:
        return None
    said = [name if exact else f"{name}: within {NEAR_BITS} bits of 256" for name, exact in sorted(sets.items())]
    return ", ".join(said)
