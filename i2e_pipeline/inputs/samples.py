"""Samples of several files that share a name: an image, its caption as .txt, its facts as .json.

WebDataset's tars hold them as members, folders as files. The plan writes an index of where each part lies; here are
the columns that such samples have.
"""

from __future__ import annotations

import codecs
import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.inputs import columns, kept, where
from i2e_pipeline.inputs.shard import Shard
from i2e_pipeline.inputs.tables import from_objects, json_of, schema_of_objects

IMAGE_SUFFIXES = (
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "jxl", "jp2", "jpe", "jfif",
)  # fmt: skip
"""Of images, the ones that are preferred first."""
TEXT_SUFFIXES = ("txt", "caption", "text", "cap")
_KNOWN = (*IMAGE_SUFFIXES, *TEXT_SUFFIXES, "json")
PARTS = ("image", "text", "json")
LOOKED_AT = 20
"""Samples whose .json tells which columns there are."""


def split(path: str, image_column: str | None = None) -> tuple[str, str]:
    """(key, suffix) of a path, as WebDataset has it: the name up to its first dot, and what comes behind it.

    Where that is no suffix of ours, but what comes behind the last dot is, the key has dots (`St. Louis.jpg`). A text
    or facts may be named after the whole name of their image (`a.jpg.json`).
    """
    folder, _, name = path.rpartition("/")
    stem, _, suffix = name.partition(".")
    if suffix.lower() not in (*_KNOWN, (image_column or "").lower()):
        dotted, _, last = name.rpartition(".")
        if dotted and last.lower() in _KNOWN:
            stem, suffix = dotted, last
            before, _, image = dotted.rpartition(".")
            if before and last.lower() not in IMAGE_SUFFIXES and image.lower() in IMAGE_SUFFIXES:
                stem = before
    return posixpath.join(folder, stem), suffix.lower()


def part_of(suffix: str, image_column: str | None = None) -> tuple[str, int] | None:
    """Which part of a sample a member is, and how far behind others of the kind it stands; None: none of them."""
    if image_column and suffix == image_column.lower() and suffix not in (*TEXT_SUFFIXES, "json"):
        return "image", -1
    if suffix in IMAGE_SUFFIXES:
        return "image", IMAGE_SUFFIXES.index(suffix)
    if suffix in TEXT_SUFFIXES:
        return "text", TEXT_SUFFIXES.index(suffix)
    return ("json", 0) if suffix == "json" else None


def columns_of(
    shard: Shard,
    keys: Sequence[str],
    texts: Sequence[bytes | None],
    facts: Sequence[bytes | None],
    names: Sequence[str],
) -> pa.RecordBatch:
    """These columns of samples. A column is a field of the .json; where a sample's has none of that name, the key
    column is the sample's own name, and the text column its .txt."""
    rows = [_facts(stored) for stored in facts]
    for row, key in zip(rows, keys, strict=True):
        if shard.key_column is not None and row.get(shard.key_column) is None:
            row[shard.key_column] = key
    batch = from_objects(rows, names, shard.kept, shard.text_column)
    if shard.text_column in names and any(t is not None for t in texts):
        batch = _with_texts(batch, shard.text_column, texts)
    return batch


def _facts(stored: bytes | None) -> dict[str, Any]:
    """The fields of a .json; none where it is broken, and then its row has no text, or that of the .txt."""
    if stored is None:
        return {}
    try:
        found = json_of(stored)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _with_texts(batch: pa.RecordBatch, column: str, texts: Sequence[bytes | None]) -> pa.RecordBatch:
    """The batch with a sample's .txt where it has no value in this column."""
    said = batch.column(column)
    texts = [None if t is None else _text_of_file(t) for t in texts]
    if pa.types.is_list(said.type):
        lists = zip(said.to_pylist(), texts, strict=True)
        new = pa.array([[t] if v is None and t is not None else v for v, t in lists], pa.list_(pa.binary()))
    else:
        # As bytes: what is no UTF-8 is mended, and counted, at the door.
        stored = said if pa.types.is_binary(said.type) else said.cast(pa.string()).cast(pa.binary())
        raw = zip(stored.to_pylist(), texts, strict=True)
        new = pa.array([t if v is None else v for v, t in raw], pa.binary())
    return batch.set_column(batch.schema.get_field_index(column), column, new)


def _text_of_file(stored: bytes) -> bytes:
    """Without the line break that editors end a file with; of UTF-16, which says so at its beginning, as UTF-8."""
    if stored.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        stored = stored.decode("utf-16", "replace").encode("utf-8", "replace")
    return stored.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")


def names_of(facts: Sequence[bytes | None]) -> list[str]:
    """Names of all fields of these .json."""
    return list(dict.fromkeys(name for stored in facts for name in _facts(stored)))


def facts_of(
    pairs: PairsConfig, index: pa.Table, has_texts: bool, read: Callable[[pa.Table], Iterable[bytes | None]]
) -> list[dict[str, Any]]:
    """The fields of the .json of as many samples as tell what columns there are: the first, or all where what these
    columns hold is asked, or where the settings name a column that the first do not have.

    read   the .json of rows of the index
    """
    facts = [_facts(stored) for stored in read(index.slice(0, LOOKED_AT))]
    wanted = {*columns.named(pairs), *(where.columns(pairs.where) if pairs.where else ())} - {pairs.key_column}
    if has_texts:
        wanted -= {pairs.text_column}
    if kept.to_be_found(pairs) or wanted.difference(*facts):
        facts += (_facts(stored) for stored in read(index.slice(LOOKED_AT)))
    return facts


def schema_of(shard: Shard, facts: Sequence[dict[str, Any]], has_texts: bool, has_images: bool) -> pa.Schema:
    """The columns that samples like these have."""
    found = schema_of_objects(facts)
    fields = dict(zip(found.names, found.types, strict=True))
    if shard.key_column is not None:
        fields.setdefault(shard.key_column, pa.string())
    if has_texts:
        fields.setdefault(shard.text_column, pa.string())
    fields.pop(shard.image_column, None)
    return pa.schema([*fields.items(), *([pa.field(shard.image_column, pa.binary())] if has_images else [])])
