"""What the input says of the truth of its images: columns from outside, made into ids and names.

A truth is `Q42` (or 42): the image shows that entity. `none`: it shows no entity of the knowledge base. `not Q42 Q43`:
it shows neither, and more is not known. Null or blank: nothing is known. Upper and lower case are one.
"""

from __future__ import annotations

import ast
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.inputs import columns
from i2e_pipeline.inputs.columns import decoded, is_list, is_string, or_null, plain, shortened

REMEDY = (
    "write Q42 for what the image shows, none where it shows no entity of the knowledge base, not Q42 where it does "
    "not show that one, and leave it empty where nothing is known"
)
_ID = r"q?0*[1-9][0-9]{0,17}"
_NOT = rf"^not([\s,]+{_ID})+$"
_SEPARATED = r"[^a-z0-9]+"
_NAMES_SEPARATED = r"\s*[|;]\s*"


def truths(column: pa.Array) -> pa.RecordBatch:
    """What each value of a truth column says.

    returns   truth: int64; nothing: bool, whether it says `none`; refuted: list<int64>, of `not …`, else null; unread:
              string, the value as a message quotes it where it is none of these, else null
    """
    said = or_null(_text(column))
    low = pc.utf8_lower(pc.utf8_trim_whitespace(said))
    is_id, nothing = _matches(low, f"^{_ID}$"), pc.fill_null(pc.equal(low, "none"), False)
    is_not = _matches(low, _NOT)
    truth = pc.replace_substring_regex(_where(is_id, low), "^q?0*", "").cast(pa.int64())
    ids = pc.replace_substring_regex(_where(is_not, low), r"^not[\s,]+q?", "")
    refuted = pc.split_pattern_regex(ids, r"[\s,]+q?").cast(pa.list_(pa.int64()))
    strange = pc.and_not(pc.is_valid(low), pc.or_(pc.or_(is_id, nothing), is_not))
    quoted = [None if v is None else repr(shortened(v)) for v in _where(strange, said).to_pylist()]
    return pa.RecordBatch.from_arrays(
        [truth, nothing, refuted, pa.array(quoted, pa.string())], names=["truth", "nothing", "refuted", "unread"]
    )


def ids(column: pa.Array) -> pa.ListArray:
    """list<int64> of lists of ids ("Q42" or 42), or of texts that hold several; what is no id is left out.

    Null, and in a table of texts blank, stays null: it is not known.
    """
    lists = _as_lists(column)
    if lists is None:
        lists = pc.split_pattern_regex(pc.utf8_lower(or_null(_text(column))), _SEPARATED)
    low = pc.utf8_lower(pc.utf8_trim_whitespace(_text(lists.flatten())))
    is_id = _matches(low, f"^{_ID}$")
    numbers = pc.replace_substring_regex(low.filter(is_id), "^q?0*", "").cast(pa.int64())
    return _lists(numbers, _parents(lists)[is_id.to_numpy(zero_copy_only=False)], lists)


def names(column: pa.Array) -> pa.ListArray:
    """list<string> of lists of names, or of texts with names between `|` or `;`, or of a JSON list; all case-folded."""
    lists = _as_lists(column)
    if lists is None:
        said = or_null(_text(column))
        lists = pc.split_pattern_regex(said, _NAMES_SEPARATED)
        written = pc.fill_null(pc.starts_with(said, "["), False)
        if pc.any(written).as_py():
            made = lists.to_pylist()
            for row in np.flatnonzero(written.to_numpy(zero_copy_only=False)):
                made[row] = _written_list(said[row].as_py()) or made[row]
            lists = pa.array(made, pa.list_(pa.string()))
    folded = casefolded(_text(lists.flatten()))
    named = pc.fill_null(pc.not_equal(folded, ""), False)
    return _lists(folded.filter(named), _parents(lists)[named.to_numpy(zero_copy_only=False)], lists)


def casefolded(said: pa.Array) -> pa.Array:
    """Texts without case and without blanks around them, each distinct one folded once."""
    distinct = (said.combine_chunks() if isinstance(said, pa.ChunkedArray) else said).dictionary_encode()
    folded = [text.strip().casefold() for text in distinct.dictionary.to_pylist()]
    return pa.array(folded, pa.string()).take(distinct.indices)


def _written_list(said: str) -> list[str] | None:
    """Of a cell like `["tea", "green tea"]`, or as Python prints lists; None where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            found: Any = read(said)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return [str(name) for name in found] if isinstance(found, list) else None
    return None


def _text(column: pa.Array) -> pa.Array:
    column = decoded(column)
    if pa.types.is_nested(column.type) and not is_list(column.type):
        return pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())
    if pa.types.is_floating(column.type):  # what pandas makes of whole numbers with gaps; its NaN is a gap
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if is_list(column.type) and not is_string(plain(column.type).value_type):
        made = [None if v is None else " ".join(str(e) for e in v if e is not None) for v in column.to_pylist()]
        return pa.array(made, pa.string())
    return columns.text(column, "join")[0]


def _as_lists(column: pa.Array) -> pa.Array | None:
    """The column where it holds lists, else None."""
    column = decoded(column)
    if pa.types.is_fixed_size_list(column.type):
        return column.cast(pa.list_(column.type.value_type))
    return column if is_list(column.type) else None


def _matches(said: pa.Array, pattern: str) -> pa.Array:
    return pc.fill_null(pc.match_substring_regex(said, pattern), False)


def _where(mask: pa.Array, said: pa.Array) -> pa.Array:
    return pc.if_else(mask, said, pa.scalar(None, said.type))


def _parents(lists: pa.Array) -> np.ndarray:
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0), dtype=np.int64)
    return np.repeat(np.arange(len(lists)), lengths)


def _lists(values: pa.Array, parents: np.ndarray, like: pa.Array) -> pa.ListArray:
    """Lists of values that belong to these rows, in their order; null where `like` is."""
    ends = np.cumsum(np.bincount(parents, minlength=len(like)))
    offsets = pa.array(np.append(0, ends), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=pc.is_null(like))
