"""`pairs.where`: which rows of the input are taken at all, by a simple expression over its columns.

    similarity >= 0.28 and punsafe < 0.5 and language in ("en", "de") and license is not None

Names are columns; values are numbers, texts, True, False, None and lists of them. There are comparisons, `in`,
`not in`, `is None`, `is not None`, `and`, `or`, `not` and parentheses. A comparison with a null is not true. Where a
column of text is compared with a number, the text is read as one, and what is none counts as null.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.inputs.columns import decoded, is_bytes, is_string

_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_MIRRORED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}
_SAID = "comparisons of columns with values, `in (…)`, `is None`, joined by and, or, not"


class WhereError(I2EError, ValueError):
    """An expression that means nothing; the message quotes it and says what may stand in one."""


@lru_cache(maxsize=32)
def parsed(expression: str) -> ast.expr:
    """The expression as a tree that `mask` can follow. Raises WhereError."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise WhereError(f"pairs.where: {expression!r} cannot be read ({error}): write {_SAID}") from None
    _check(tree, expression)
    return tree


def columns(expression: str) -> list[str]:
    """Names of the columns that it looks at."""
    return sorted({node.id for node in ast.walk(parsed(expression)) if isinstance(node, ast.Name)})


def mask(expression: str, batch: pa.RecordBatch) -> pa.Array:
    """bool for each row: whether it is taken. Raises WhereError where a column cannot be compared so."""
    try:
        taken = _value(parsed(expression), batch)
    except pa.ArrowException as error:
        raise WhereError(f"pairs.where: {expression!r} does not fit the columns: {error}") from None
    return pc.fill_null(taken, False)


def _check(node: ast.expr, expression: str) -> None:
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value, expression)
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand, expression)
        return
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right, how = node.left, node.comparators[0], node.ops[0]
        if isinstance(how, ast.Is | ast.IsNot) and isinstance(left, ast.Name) and _is_none(right):
            return
        if isinstance(how, ast.In | ast.NotIn) and isinstance(left, ast.Name) and isinstance(_literal(right), list):
            return
        sides = (left, right) if isinstance(left, ast.Name) else (right, left)
        if type(how) in _COMPARE and isinstance(sides[0], ast.Name) and isinstance(_literal(sides[1]), _SCALARS):
            return
    raise WhereError(f"pairs.where: {ast.unparse(node)!r} in {expression!r} is not known: write {_SAID}")


_SCALARS = (str, int, float, bool)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _literal(node: ast.expr) -> Any:
    """The value; a list for a list or tuple of values; None for what is no value."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    if isinstance(value, list | tuple | set):
        return list(value) if all(isinstance(v, _SCALARS) for v in value) else None
    return value


def _value(node: ast.expr, batch: pa.RecordBatch) -> pa.Array:
    if isinstance(node, ast.BoolOp):
        join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
        found = _value(node.values[0], batch)
        for value in node.values[1:]:
            found = join(found, _value(value, batch))
        return found
    if isinstance(node, ast.UnaryOp):
        return pc.invert(_value(node.operand, batch))
    assert isinstance(node, ast.Compare)
    left, right, how = node.left, node.comparators[0], node.ops[0]
    if isinstance(how, ast.Is | ast.IsNot):
        null = pc.is_null(_column(left, batch), nan_is_null=True)
        return null if isinstance(how, ast.Is) else pc.invert(null)
    if isinstance(how, ast.In | ast.NotIn):
        wanted = _literal(right)
        column = _as(_column(left, batch), wanted[0] if wanted else "")
        inside = (
            pc.is_in(column, value_set=pa.array(wanted, column.type)) if wanted else pa.array([False] * len(column))
        )
        inside = pc.if_else(pc.is_null(column), None, inside)
        return inside if isinstance(how, ast.In) else pc.invert(inside)
    name = _COMPARE[type(how)]
    if not isinstance(left, ast.Name):
        left, right, name = right, left, _MIRRORED.get(name, name)
    value = _literal(right)
    column = _as(_column(left, batch), value)
    return pc.call_function(name, [column, pa.scalar(value, column.type)])


def _column(node: ast.expr, batch: pa.RecordBatch) -> pa.Array:
    assert isinstance(node, ast.Name)
    return decoded(batch.column(node.id))


def _as(column: pa.Array, value: Any) -> pa.Array:
    """The column as what it is compared with."""
    kind = column.type
    if isinstance(value, str):
        return column.cast(pa.binary()).cast(pa.string()) if is_bytes(kind) else column.cast(pa.string())
    if isinstance(value, bool):
        if is_string(kind) or is_bytes(kind):
            said = pc.utf8_lower(column.cast(pa.string()))
            yes, no = (pc.is_in(said, value_set=pa.array(words)) for words in (["true", "1"], ["false", "0"]))
            return pc.if_else(yes, True, pc.if_else(no, False, None))
        return column.cast(pa.bool_())
    if is_string(kind) or is_bytes(kind):
        said = pc.utf8_trim_whitespace(column.cast(pa.string()))
        number = pc.match_substring_regex(said, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        return pc.if_else(number, said, None).cast(pa.float64())
    return column.cast(pa.float64())
