"""Columns that people filter by, carried into the published dataset by name (`pairs.keep_columns`).

A column has one kind in the whole dataset: the one that the settings name, or what fits all that the files hold. So the
same rows give the same column, whichever forms they come in. A missing value, an empty text and NaN are null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.config import Kind, PairsConfig
from i2e_pipeline.inputs.columns import InputError, decoded, is_bytes, is_list, is_string, plain, text

ABSENT = "absent"
"""In the place of a kind: the file has no such column."""
NOTHING = "nothing"
"""In the place of a kind: the column holds no value."""
TYPES: Mapping[Kind, pa.DataType] = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
}
_INTEGER = r"^[+-]?\d+$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_LARGEST = 2**63 - 1


def of_type(kind: pa.DataType) -> str:
    """Kind of a column that has a type. Lists and structs are text: they become JSON."""
    kind = plain(kind)
    if pa.types.is_null(kind):
        return NOTHING
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "string" if pa.types.is_uint64(kind) else "int64"  # its upper half fits no int64
    return "double" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "string"


def of_cells(cells: pa.Array) -> str:
    """Kind of a column of a table without types, by all its cells. A number that would be written otherwise (007) is
    text."""
    said = text(cells)[0]
    said = said.filter(pc.fill_null(pc.not_equal(said, ""), False))
    if not len(said):
        return NOTHING
    if pc.all(pc.is_in(said, value_set=pa.array(["true", "false", "True", "False", "TRUE", "FALSE"]))).as_py():
        return "bool"
    if pc.all(pc.match_substring_regex(said, r"^(0|-?[1-9]\d{0,17})$")).as_py():
        return "int64"
    whole = pc.match_substring_regex(said, r"^-?0\d")
    number = pc.or_(pc.match_substring_regex(said, _NUMBER), pc.is_in(pc.utf8_lower(said), value_set=_NAN))
    return "double" if pc.all(pc.and_(number, pc.invert(whole))).as_py() else "string"


_NAN = pa.array(["nan", "inf", "-inf"])


def of_value(value: Any) -> str:
    """Kind of a JSON value."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -_LARGEST <= value <= _LARGEST else "string"
    return "double" if isinstance(value, float) else "string"


def joined(kinds: Iterable[str]) -> str:
    """The kind that holds values of all these."""
    found = {*kinds} - {ABSENT, NOTHING}
    if len(found) > 1:
        return "double" if found == {"int64", "double"} else "string"
    return found.pop() if found else NOTHING


def of_parts(parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Kinds of columns by those of parts of a file."""
    kinds = {name: {part.get(name, ABSENT) for part in parts} for part in parts for name in part}
    return {name: joined(found) if found != {ABSENT} else ABSENT for name, found in kinds.items()}


def of_objects(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, str]:
    """Kinds of fields of JSON objects, by all of these."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for row in rows:
        for name in names:
            if name in row:
                found[name].add(of_value(row[name]))
    return {name: joined(kinds) if kinds else ABSENT for name, kinds in found.items()}


def of_schema(schema: pa.Schema, pairs: PairsConfig, path: str) -> dict[str, str]:
    """Kinds of the kept columns of a table with types. Raises InputError where one stands twice, or can be no value of
    the kind that the settings name."""
    kinds = {}
    for name, named in pairs.keep_columns.items():
        found = schema.get_all_field_indices(name)
        if len(found) > 1:
            raise InputError(f"{path} has {len(found)} columns named {name!r} (pairs.keep_columns): leave one of them")
        kinds[name] = of_type(stored := schema.field(found[0]).type) if found else ABSENT
        if found and named not in (None, "string") and not _may_be_number(stored):
            raise InputError(
                f"{path}: column {name!r} (pairs.keep_columns) is {stored}, which is no {named}: keep it as string, or "
                "leave it out"
            )
    return kinds


def _may_be_number(kind: pa.DataType) -> bool:
    """Whether its values are numbers or truth values, or texts that may be some."""
    kind = plain(kind)
    return is_string(kind) or is_bytes(kind) or of_type(kind) != "string" or pa.types.is_uint64(kind)


def schema(of_files: Sequence[tuple[str, Mapping[str, str]]], pairs: PairsConfig) -> pa.Schema:
    """The columns that the dataset gets, in the order of the settings.

    of_files   of each input file its path, and the kinds of its columns

    Raises InputError for a column that no file has and whose kind is not named.
    """
    fields = []
    for name, named in pairs.keep_columns.items():
        kinds = {kinds.get(name, ABSENT) for _, kinds in of_files}
        if of_files and named is None and kinds <= {ABSENT}:
            raise InputError(
                f"no input file has a column {name!r} (pairs.keep_columns); the first is {of_files[0][0]}. Where only "
                f"files to come have it, say what it holds: pairs.keep_columns={{{name}: string}}"
            )
        kind = named or joined(kinds)
        fields.append(pa.field(name, TYPES["string" if kind == NOTHING else kind]))  # type: ignore[index]
    return pa.schema(fields)


def unknown(kinds: Mapping[str, str], pairs: PairsConfig) -> list[str]:
    """Columns of which it was not looked at what a file holds."""
    return [name for name in pairs.keep_columns if name not in kinds]


def to_be_found(pairs: PairsConfig) -> bool:
    """Whether what a column holds has to be found in all its values, since the settings do not say it."""
    return None in pairs.keep_columns.values()


def values(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, int]:
    """A column as it is stored, as one of TYPES; and how many values are none of that kind, which become null."""
    column = decoded(column)
    if pa.types.is_string(kind):
        said = _as_text(column)
        return pc.if_else(pc.equal(said, ""), None, said), 0
    if is_string(column.type) or is_bytes(column.type):
        said = pc.utf8_trim_whitespace(text(column)[0])
        said = pc.if_else(pc.is_in(pc.utf8_lower(said), value_set=pa.array(["", "nan"])), None, said)
        made = _parsed(said, kind)
        return made, made.null_count - said.null_count
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    made = _cast(column, kind)
    return made, made.null_count - column.null_count


def _as_text(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(column), None, column).cast(pa.string())
    if is_list(kind) or pa.types.is_nested(kind):
        rows = column.to_pylist()
        return pa.array([None if row is None else msgspec.json.encode(row).decode() for row in rows], pa.string())
    return text(column)[0]


def _parsed(said: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values of a kind from texts, null for those that are none."""
    if pa.types.is_boolean(kind):
        low = pc.utf8_lower(said)
        yes, no = (pc.is_in(low, value_set=pa.array(words)) for words in (["true", "1"], ["false", "0"]))
        return pc.if_else(yes, True, pc.if_else(no, False, pa.scalar(None, pa.bool_())))
    if pa.types.is_integer(kind):
        whole = pc.if_else(pc.match_substring_regex(said, _INTEGER), said, None)
        try:
            return pc.utf8_ltrim(whole, "+").cast(kind)
        except pa.ArrowInvalid:  # one that does not fit
            numbers = [None if one is None else int(one) for one in whole.to_pylist()]
            return pa.array([n if n is not None and abs(n) <= _LARGEST else None for n in numbers], kind)
    number = pc.or_(pc.match_substring_regex(said, _NUMBER), pc.is_in(pc.utf8_lower(said), value_set=_NAN))
    return pc.utf8_ltrim(pc.if_else(number, said, None), "+").cast(kind)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Numbers and truth values as another kind of them, null for those that are none."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        if pa.types.is_uint64(column.type):
            fits = pc.less_equal(column, pa.scalar(_LARGEST, pa.uint64()))
        else:
            fits = pc.equal(column.cast(kind, safe=False).cast(column.type, safe=False), column)
        return pc.if_else(fits, column, None).cast(kind, safe=False)
