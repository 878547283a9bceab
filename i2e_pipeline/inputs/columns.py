"""Columns from outside, made into what the pipeline reads: valid text, or an error that names file, column and remedy.

This is the door: what people have in a column for texts (bytes, views, dictionaries, lists of captions, numbers as
names) becomes valid UTF-8 here, once, wherever a column enters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.inputs.shard import Captions

_QUOTED = 200
"""Characters of a value that a message quotes at most: a cell may hold a whole image as text."""
_DEFAULTS = {name: PairsConfig.model_fields[name].default for name in ("key_column", "url_column")}


class InputError(I2EError, RuntimeError):
    """Input that cannot be used; the message names the file and the remedy."""


def shortened(value: str) -> str:
    """The value as a message quotes it."""
    return value if len(value) <= _QUOTED else f"{value[: _QUOTED - 1]}…"


def check(schema: pa.Schema, pairs: PairsConfig, path: str) -> None:
    """Raise InputError where a shard with these columns cannot be read as `pairs` says."""
    for setting, column, wanted in _wanted(pairs):
        if column is None:
            continue
        found = schema.get_all_field_indices(column)
        if not found:
            if column == _DEFAULTS.get(setting):  # both may be missing
                continue
            raise InputError(
                f"{path} has no column {column!r} (pairs.{setting}); {has(schema)}{_hint(setting, schema)}"
            )
        if len(found) > 1:
            raise InputError(f"{path} has {len(found)} columns named {column!r} (pairs.{setting}): leave one of them")
        kind = schema.field(found[0]).type
        if not (_is_image(kind) if wanted == "image" else _is_text(kind, lists=setting == "text_column")):
            raise InputError(
                f"{path}: column {column!r} (pairs.{setting}) is {shortened(str(kind))}, and {_MAY_BE[wanted]} is "
                "wanted: convert the column, or name another one"
            )


def _wanted(pairs: PairsConfig) -> Iterable[tuple[str, str | None, str]]:
    yield "key_column", pairs.key_column, "text"
    yield "url_column", pairs.url_column, "text"
    yield "group_column", pairs.group_column, "text"
    yield "text_column", pairs.text_column, "text"
    yield "image_column", pairs.image_column, "image"


_MAY_BE = {
    "text": "text (string, bytes, a number, or for captions a list of strings)",
    "image": "bytes, Hugging Face's struct<bytes, path>, or a string with the path of a file",
}


def has(schema: pa.Schema) -> str:
    """Which columns a file has, where one is missing, and why it may be."""
    said = f"it has {shortened(', '.join(dict.fromkeys(schema.names))) or 'no column'}"
    other = next((mark for mark in (";", "\t", "|", ",") if len(schema) == 1 and mark in schema.names[0]), None)
    if other is None:
        return said
    return (
        f"{said}: is it split by {other!r}? Columns of .csv are split by commas, those of .tsv by tabs: write it so, "
        "or name the file by what splits it"
    )


def named(pairs: PairsConfig) -> list[str]:
    """Columns that the settings name and that a file must have, other than the image's."""
    columns = (getattr(pairs, setting) for setting in ("key_column", "url_column", "group_column", "text_column"))
    optional = [None, *_DEFAULTS.values()]
    return [column for column in columns if column not in optional]


def or_null(values: pa.Array) -> pa.Array:
    """Texts, null where they are empty: a table of texts cannot say null otherwise."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(values), ""), pa.scalar(None, values.type), values)


def _hint(setting: str, schema: pa.Schema) -> str:
    if setting == "image_column" and any(n.lower() in ("url", "image_url", "img_url") for n in schema.names):
        return ". A table of addresses without images: fetch them first (`i2e fetch`), and name the folder it fills"
    if any(re.match(r"https?://", name) for name in schema.names):
        return ". That is a row and no header: put one before it that names the columns"
    return ""


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without what merely stores them otherwise."""
    while pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type)
    return kind


def is_string(kind: pa.DataType) -> bool:
    """Whether it holds text, in whichever layout."""
    kind = plain(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether it holds bytes, in whichever layout."""
    kind = plain(kind)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def is_list(kind: pa.DataType) -> bool:
    """Whether it holds lists."""
    of_any_size = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    return pa.types.is_fixed_size_list(kind) or any(test(kind) for test in of_any_size)


def _is_text(kind: pa.DataType, lists: bool) -> bool:
    bare = plain(kind)
    if lists and is_list(bare):
        return _is_text(bare.value_type, lists=False)
    number = pa.types.is_integer(bare) or pa.types.is_floating(bare) or pa.types.is_boolean(bare)
    return bool(is_string(bare) or is_bytes(bare) or pa.types.is_null(bare) or number)


def _is_image(kind: pa.DataType) -> bool:
    bare = plain(kind)
    if pa.types.is_struct(bare):
        held = {field.name: field.type for field in bare}
        return is_bytes(held["bytes"]) if "bytes" in held else is_string(held.get("path", pa.null()))
    return bool(is_bytes(bare) or is_string(bare) or pa.types.is_null(bare))


def text(values: pa.Array, captions: Captions = "first") -> tuple[pa.Array, int]:
    """Valid UTF-8 of any column that `check` lets in, and how many values had to be mended.

    What is not UTF-8 gets U+FFFD in the place of each wrong byte. Of lists, the first text that is not blank is
    taken, or all are joined by a blank. Numbers are written as they are.
    """
    values = decoded(values)
    kind = values.type
    if is_list(kind):
        return _of_lists(values, captions)
    if is_string(kind) or is_bytes(kind):
        # Arrow takes bytes for text unseen; so bytes first, and then what is right of them.
        raw = values if is_bytes(kind) else values.cast(pa.large_binary())
        return _valid(raw.cast(pa.binary()))
    if pa.types.is_null(kind):
        return values.cast(pa.string()), 0
    return values.cast(pa.string()), 0


def decoded(values: pa.Array) -> pa.Array:
    """The values themselves, of dictionaries, runs, views and extension types."""
    if isinstance(values, pa.ExtensionArray):
        return decoded(values.storage)
    if isinstance(values, pa.DictionaryArray):
        return decoded(values.dictionary_decode())
    if pa.types.is_run_end_encoded(values.type):
        return decoded(pc.run_end_decode(values))
    without = _without_views(values.type)
    if pa.types.is_list_view(values.type) or pa.types.is_large_list_view(values.type):
        return pa.array(values.to_pylist(), without)  # Arrow's own cast makes lists that are not valid (pyarrow 26)
    return values if without == values.type else values.cast(without)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """The type with large strings and bytes for views, inside lists and structs too: few kernels know views."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_without_views(kind.key_type), _without_views(kind.item_type))
    if is_list(kind):
        inner = kind.value_field.with_type(_without_views(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(inner, kind.list_size)
        large = pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind)
        return pa.large_list(inner) if large else pa.list_(inner)
    return kind


def only(
    batch: pa.RecordBatch, columns: Sequence[str], constant: Mapping[str, str | None] | None = None
) -> pa.RecordBatch:
    """The batch with exactly these columns, their values as Arrow's kernels take them. One that it has not holds the
    constant of its name, or null."""
    has, same = batch.schema.names, constant or {}
    arrays = [
        decoded(batch.column(c)) if c in has else pa.repeat(pa.scalar(same.get(c), pa.string()), batch.num_rows)
        for c in columns
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def of_folders(path: str) -> dict[str, str | None]:
    """The columns that folders of a file's path name, as Hive, Spark and Delta partition tables: `language=en/`."""
    found: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        name, is_column, value = folder.partition("=")
        if name and is_column:
            found[unquote(name)] = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
    return found


def _valid(raw: pa.Array) -> tuple[pa.Array, int]:
    try:
        return raw.cast(pa.string()), 0  # checks every byte
    except pa.ArrowInvalid:
        mended, count = [], 0
        for value in raw.to_pylist():
            said = None if value is None else value.decode("utf-8", "replace")
            count += said is not None and said.encode() != value
            mended.append(said)
        return pa.array(mended, pa.string()), count


def _of_lists(values: pa.Array, captions: Captions) -> tuple[pa.Array, int]:
    lists = values if pa.types.is_list(values.type) else values.cast(pa.list_(values.type.value_type))
    if lists.null_count:  # such a list may hold values all the same
        lists = lists.take(pa.array(np.arange(len(lists))))
    lengths = pc.list_value_length(lists)
    flat, mended = text(pc.list_flatten(lists))
    flat = flat.filter(keep := pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(flat), ""), False))
    parents = pc.list_parent_indices(lists).filter(keep)
    chosen: list[str | None] = [None if n is None else "" for n in lengths.to_pylist()]
    for parent, said in zip(parents.to_pylist(), flat.to_pylist(), strict=True):
        if captions == "join" and chosen[parent]:
            chosen[parent] = f"{chosen[parent]} {said}"
        elif not chosen[parent]:
            chosen[parent] = said
    return pa.array(chosen, pa.string()), mended
