"""What a plan learns of each shard, and whether it can be read at all: before any stage runs, and by `i2e doctor`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.stored_image import NoImage, StoredImage
from i2e_pipeline.inputs import columns, formats, where
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.shard import Look, ShardError, Source

__all__ = ["Look", "look", "look_at_images"]

_SHARDS_SAMPLED = 8
_ROWS_SAMPLED = 16
_ADDRESS = re.compile(rb"(?:https?:)?//", re.IGNORECASE)
_BASE64 = re.compile(rb"(?:data:[\w/+.-]*;base64,)?(?:/9j/|iVBORw0KGgo|UklGR|R0lGOD)[A-Za-z0-9+/_-]")
"""How base64 of JPEG, PNG, WebP and GIF begins."""


def look(source: Source, pairs: PairsConfig) -> Look:
    """Rows, columns and content of a shard; its digest is always set. Raises InputError where it cannot be read as
    `pairs` says."""
    kind = formats.FORMATS[source.format].kind
    try:
        found = formats.FORMATS[source.format].look(source, pairs)
        if found.rows:
            columns.check(found.schema, pairs, source.path)
            _check_where(found.schema, pairs.where, source.path)
        return found if found.digest else replace(found, digest=files.fingerprint(source.path))
    except InputError:
        raise
    except I2EError as error:
        raise InputError(str(error)) from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source.path} is not a readable {kind} ({error}): mend it or leave it out") from None


def _check_where(schema: pa.Schema, expression: str | None, path: str) -> None:
    if expression is None:
        return
    looked_at = where.columns(expression)
    if missing := [c for c in looked_at if c not in schema.names]:
        raise InputError(f"{path} has no column {missing[0]!r} (pairs.where); it has {', '.join(schema.names)}")
    none = [pa.array([], schema.field(c).type) for c in looked_at]
    try:
        where.mask(expression, pa.RecordBatch.from_arrays(none, names=looked_at))
    except where.WhereError as error:
        raise InputError(f"{path}: {error}") from None


def look_at_images(shards: Sequence[tuple[Source, int]], pairs: PairsConfig, most: int = _SHARDS_SAMPLED) -> None:
    """Look at the first images of some shards. Raises InputError where none of a shard's is there or could be one.

    shards   each with its rows
    """
    step = max(1, len(shards) // most)
    for source, rows in shards[::step]:
        stored = _first_images(source, min(rows, _ROWS_SAMPLED), pairs)
        why = _why_none(stored)
        if why:
            raise InputError(
                f"{source.path}: column {pairs.image_column!r} (pairs.image_column) holds no image in its first "
                f"{len(stored)} rows that have one: {why}"
            )


def _first_images(source: Source, rows: int, pairs: PairsConfig) -> list[StoredImage]:
    """Those of the first rows that the input says are there."""
    form = formats.FORMATS[source.format]
    try:
        with TemporaryDirectory() as place:
            index = None
            if (table := form.look(source, pairs).index) is not None:
                index = f"{place}/index.parquet"
                pq.write_table(table.slice(0, rows), index)
            with formats.images(source.shard(pairs, index)) as reader:
                return [s for s in islice(reader.read(range(rows)), rows) if s is not None]
    except ShardError as error:
        raise InputError(str(error)) from None


def _why_none(stored: Sequence[StoredImage]) -> str | None:
    if not stored:
        return None
    missing = [s for s in stored if isinstance(s, NoImage)]
    held = [s for s in stored if isinstance(s, bytes)]
    if len(missing) == len(stored):
        said = missing[0].detail
        if _ADDRESS.match(said.encode()):
            return (
                f"{said}: these are addresses of the web; fetch them first (`i2e fetch`), and name the folder it fills"
            )
        return f"{said}. Paths count from the table's folder, or from pairs.image_root"
    if held and all(_ADDRESS.match(s) for s in held):
        return "these are addresses of the web as bytes; fetch them first (`i2e fetch`)"
    if held and all(_BASE64.match(s) for s in held):
        return "this is base64: decode it into bytes first"
    return None
