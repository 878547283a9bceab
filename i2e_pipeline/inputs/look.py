"""What a plan learns of each shard, and whether it can be read at all: before any stage runs, and by `i2e doctor`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory

import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.stored_image import NoImage, StoredImage
from i2e_pipeline.inputs import columns, formats, where
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.shard import Look, Source

__all__ = ["Look", "look", "sampled"]

_SHARDS_SAMPLED = 8
_ROWS_SAMPLED = 16
_ADDRESS = re.compile(rb"(?:https?:)?//", re.IGNORECASE)
_BASE64 = re.compile(rb"(?:data:[\w/+.-]*;base64,)?(?:/9j/|iVBORw0KGgo|UklGR|R0lGOD)[A-Za-z0-9+/_-]")
"""How base64 of JPEG, PNG, WebP and GIF begins."""
_IS_BASE64 = "this is base64: decode it into bytes first"


def sampled(count: int) -> set[int]:
    """Which of so many shards have their images looked at."""
    return set(range(0, count, max(1, count // _SHARDS_SAMPLED)))


def look(source: Source, pairs: PairsConfig, images: bool = False) -> Look:
    """Rows, columns and content of a shard; its digest is always set. Raises InputError where it cannot be read as
    `pairs` says.

    images   look at the first images, too: whether any is there and could be one
    """
    kind = formats.FORMATS[source.format].kind
    try:
        found = formats.FORMATS[source.format].look(source, pairs)
        if found.rows:
            columns.check(found.schema, pairs, source.path)
            _check_where(found.schema, pairs, source.path)
            if images:
                _check_images(source, found, pairs)
        return found if found.digest else replace(found, digest=files.fingerprint(source.path))
    except InputError:
        raise
    except I2EError as error:
        raise InputError(str(error)) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # that one of names of columns
        raise InputError(f"{source.path} is not a readable {kind} ({error}): mend it or leave it out") from None


def _check_where(schema: pa.Schema, pairs: PairsConfig, path: str) -> None:
    if pairs.where is None:
        return
    for name in where.columns(pairs.where):
        found = schema.get_all_field_indices(name)
        if len(found) != 1:
            few = f"has {len(found)} columns" if found else "has no column"
            raise InputError(f"{path} {few} {name!r} (pairs.where); {columns.has(schema)}")
        kind = columns.plain(schema.field(found[0]).type)
        if name == pairs.image_column and (columns.is_bytes(kind) or pa.types.is_struct(kind)):
            raise InputError(
                f"{path}: pairs.where looks at {name!r}, which holds the images: each would be loaded before any is "
                "wanted. Leave it out; rows without an image are rejected anyway"
            )
    try:
        where.check(pairs.where, schema)
    except where.WhereError as error:
        raise InputError(f"{path}: {error}") from None


def _check_images(source: Source, found: Look, pairs: PairsConfig) -> None:
    rows = min(found.rows, _ROWS_SAMPLED)
    with TemporaryDirectory() as place:
        index = None
        if isinstance(found.index, pa.Table):
            index = f"{place}/index.parquet"
            files.write_table(index, found.index.slice(0, rows))
        with formats.images(source.shard(pairs, index)) as reader:
            stored = [s for s in reader.read(range(rows)) if s is not None]
    if why := _why_none(stored):
        raise InputError(
            f"{source.path}: column {pairs.image_column!r} (pairs.image_column) holds no image in its first "
            f"{len(stored)} rows that have one: {why}"
        )


def _why_none(stored: Sequence[StoredImage]) -> str | None:
    if not stored:
        return None
    missing = [s for s in stored if isinstance(s, NoImage)]
    held = [s for s in stored if isinstance(s, bytes)]
    if len(missing) == len(stored):
        said = columns.shortened(missing[0].detail)
        if all(_BASE64.match(s.detail.encode()) for s in missing):
            return _IS_BASE64
        if _ADDRESS.match(said.encode()):
            return (
                f"{said}: these are addresses of the web; fetch them first (`i2e fetch`), and name the folder it fills"
            )
        return f"{said}. Paths count from the table's folder, or from pairs.image_root"
    if held and all(_ADDRESS.match(s) for s in held):
        return "these are addresses of the web as bytes; fetch them first (`i2e fetch`)"
    if held and all(_BASE64.match(s) for s in held):
        return _IS_BASE64
    return None
