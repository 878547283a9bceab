"""`pairs.where`: which rows of the input are taken at all, by a simple expression over its columns.

    similarity >= 0.28 and punsafe < 0.5 and language in ("en", "de") and license is not None

Names are columns, and so is `column("aesthetic-score")`, for those whose names are no names of Python; values are
numbers, texts, True, False, None and lists of them. There are comparisons, `in`, `not in`, `is None`, `is not None`,
`and`, `or`, `not` and parentheses.

What a value is, and which are null, is kept.py's: a missing value, an empty text and NaN are null, texts are made
valid, lists and structs are JSON. A comparison with a null is not true, nor is its opposite; only "" is null
itself. Where a column of text is compared with a number, the text is read as one, and what is none counts as null.
Numbers are compared exactly: whole ones of any size, and those of a float column as that column would hold them.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.inputs import kept
from i2e_pipeline.inputs.columns import decoded, is_bytes, is_string, plain, shortened, text

_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_MIRRORED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}
_PYTHON: dict[str, Callable[[Any, Any], bool]] = {
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}
_SAID = (
    'comparisons of columns with values, `in (…)`, `is None`, joined by and, or, not; column("a-b") where a name is no '
    "name of Python"
)
_DEEPEST = 100
"""How deep an expression may be nested: Python follows it by recursion."""


class WhereError(I2EError, ValueError):
    """An expression that means nothing; the message quotes it and says what may stand in one."""


@lru_cache(maxsize=32)
def parsed(expression: str) -> ast.expr:
    """The expression as a tree that `mask` can follow. Raises WhereError."""
    said = shortened(repr(expression))
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise WhereError(f"pairs.where: {said} cannot be read ({error}): write {_SAID}") from None
    except (RecursionError, MemoryError):
        tree = None
    if tree is None or _depth(tree) > _DEEPEST:
        raise WhereError(f"pairs.where: {said} is nested too deep: write it without so many not and parentheses")
    _check(tree, said)
    return tree


def columns(expression: str) -> list[str]:
    """Names of the columns that it looks at."""
    return sorted(name for name, _ in _looks(expression))


def check(expression: str, schema: pa.Schema) -> None:
    """Raise WhereError where columns of these types cannot be compared so."""
    types = {name: schema.field(name).type for name in columns(expression)}
    for name, values in _looks(expression):
        kind = plain(types[name])
        unlike = pa.types.is_nested(kind) or (
            pa.types.is_temporal(kind) and not all(isinstance(value, str) for value in values)
        )
        if values and unlike:
            raise WhereError(
                f"pairs.where: {shortened(repr(expression))} does not fit the columns: {name!r} is "
                f"{shortened(str(kind))}, which is not compared with {shortened(repr(values[0]))}"
            )
    mask(expression, pa.RecordBatch.from_arrays([pa.array([], kind) for kind in types.values()], names=list(types)))


def mask(expression: str, batch: pa.RecordBatch) -> pa.Array:
    """bool for each row: whether it is taken. Raises WhereError where a column cannot be compared so."""
    numbers = {name for name, values in _looks(expression) if any(_is_number(value) for value in values)}
    try:
        taken = _value(parsed(expression), batch, numbers)
    except pa.ArrowException as error:
        raise WhereError(f"pairs.where: {shortened(repr(expression))} does not fit the columns: {error}") from None
    return pc.fill_null(taken, False)


def _depth(tree: ast.expr) -> int:
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]  # type: ignore[misc]
    return depth


def _check(node: ast.expr, said: str) -> None:
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value, said)
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand, said)
        return
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right, how = node.left, node.comparators[0], node.ops[0]
        if isinstance(how, ast.Is | ast.IsNot) and _name(left) is not None and _is_none(right):
            return
        if isinstance(how, ast.In | ast.NotIn) and _name(left) is not None:
            wanted = _literal(right)
            if isinstance(wanted, list):
                if len({_kind(value) for value in wanted}) > 1:
                    raise WhereError(
                        f"pairs.where: {shortened(ast.unparse(node))!r} in {said} has values of several kinds: write "
                        "numbers alone, or texts alone"
                    )
                return
        sides = (left, right) if _name(left) is not None else (right, left)
        if type(how) in _COMPARE and _name(sides[0]) is not None and isinstance(_literal(sides[1]), _SCALARS):
            return
    raise WhereError(f"pairs.where: {shortened(ast.unparse(node))!r} in {said} is not known: write {_SAID}")


_SCALARS = (str, int, float, bool)


def _kind(value: Any) -> type:
    return type(value) if isinstance(value, str | bool) else float


def _is_number(value: Any) -> bool:
    return _kind(value) is float


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _name(node: ast.expr) -> str | None:
    """The column that a name, or `column("name")`, means; None: neither."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "column":
        values = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        return values[0] if len(node.args) == len(values) == 1 and not node.keywords else None
    return None


def _literal(node: ast.expr) -> Any:
    """The value; a list for a list or tuple of values; None for what is no value."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
    if isinstance(value, list | tuple | set):
        return list(value) if all(isinstance(v, _SCALARS) for v in value) else None
    return value


def _sides(node: ast.Compare) -> tuple[str, str, Any]:
    """(column, how, value) of a comparison that `_check` lets pass; how: one of _COMPARE's names, is, is_not, in or
    not_in."""
    left, right, how = node.left, node.comparators[0], node.ops[0]
    others: dict[type[ast.cmpop], str] = {ast.Is: "is", ast.IsNot: "is_not", ast.In: "in", ast.NotIn: "not_in"}
    name = others.get(type(how)) or _COMPARE[type(how)]
    if _name(left) is None:
        left, right, name = right, left, _MIRRORED.get(name, name)
    return str(_name(left)), name, _literal(right)


@lru_cache(maxsize=32)
def _looks(expression: str) -> list[tuple[str, list[Any]]]:
    """Each column, and all values that it is compared with."""
    found: dict[str, list[Any]] = {}
    for node in ast.walk(parsed(expression)):
        if isinstance(node, ast.Compare):
            name, how, value = _sides(node)
            values = value if how in ("in", "not_in") else [] if how in ("is", "is_not") else [value]
            found.setdefault(name, []).extend(values)
    return list(found.items())


def _value(node: ast.expr, batch: pa.RecordBatch, numbers: set[str]) -> pa.Array:
    if isinstance(node, ast.BoolOp):
        join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
        found = _value(node.values[0], batch, numbers)
        for value in node.values[1:]:
            found = join(found, _value(value, batch, numbers))
        return found
    if isinstance(node, ast.UnaryOp):
        return pc.invert(_value(node.operand, batch, numbers))
    assert isinstance(node, ast.Compare)
    name, how, value = _sides(node)
    column = decoded(batch.column(name))
    if how in ("is", "is_not"):
        null = _is_null(column, name in numbers)
        return null if how == "is" else pc.invert(null)
    if how in ("in", "not_in"):
        inside = _inside(column, value)
        return inside if how == "in" else pc.invert(inside)
    return _compared(column, how, value)


def _inside(column: pa.Array, wanted: list[Any]) -> pa.Array:
    """Whether each value is one of these, null for a null."""
    if all(isinstance(value, str) for value in wanted):
        said = kept.values(column, pa.string())[0]
        return pc.if_else(
            pc.is_null(said), "" in wanted or pa.scalar(None, pa.bool_()), pc.is_in(said, pa.array(wanted, pa.string()))
        )
    return reduce(pc.or_kleene, (_compared(column, "equal", value) for value in wanted))


def _is_null(column: pa.Array, number: bool) -> pa.Array:
    """Whether each value is null, as kept.py has it. number: it is one, so the text "nan" is none."""
    if not (is_string(column.type) or is_bytes(column.type)):
        return pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    said = text(column)[0]
    if number:
        said = pc.utf8_lower(pc.utf8_trim_whitespace(said))
    return pc.or_(pc.is_null(said), pc.fill_null(pc.is_in(said, pa.array(["", "nan"] if number else [""])), False))


def _compared(column: pa.Array, how: str, value: Any) -> pa.Array:
    """bool for each value, null for a null."""
    if value == "" and isinstance(value, str) and how in ("equal", "not_equal"):
        null = _is_null(column, False)
        return null if how == "equal" else pc.invert(null)
    if isinstance(value, str):
        if pa.types.is_boolean(column.type):
            value = value.lower()  # Python and pandas write True
        return pc.call_function(how, [kept.values(column, pa.string())[0], pa.scalar(value)])
    if isinstance(value, bool):
        return pc.call_function(how, [kept.values(column, pa.bool_())[0], pa.scalar(value)])
    if is_string(column.type) or is_bytes(column.type):
        return _texts_compared(column, how, value)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_integer(column.type):
        return _whole_compared(column, how, value)
    if pa.types.is_floating(column.type):
        return _floats_compared(column, how, value)
    return _floats_compared(kept.values(column, pa.float64())[0], how, value)


def _floats_compared(column: pa.Array, how: str, value: float) -> pa.Array:
    """As numbers of the column's own width: 0.7 is what a float32 column holds as 0.7."""
    with np.errstate(over="ignore"):
        own = float(column.type.to_pandas_dtype()(_as_float(value)))
    if pa.types.is_float16(column.type):  # few kernels know it
        column = column.cast(pa.float32())
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return pc.call_function(how, [column, pa.scalar(own, column.type)])


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _whole_compared(column: pa.Array, how: str, value: float) -> pa.Array:
    """Integers with a number of any size, exactly."""
    bounds = np.iinfo(column.type.to_pandas_dtype())
    between = isinstance(value, float) and math.isfinite(value) and value != math.floor(value)
    if between and how in ("less", "less_equal"):
        how, value = "less_equal", math.floor(value)
    elif between and how in ("greater", "greater_equal"):
        how, value = "greater_equal", math.ceil(value)
    if not bounds.min <= value <= bounds.max or (between and how in ("equal", "not_equal")):
        # All are on one side of it: as any number on that side says.
        same = _PYTHON[how](0, value)
        return pc.if_else(pc.is_null(column), pa.scalar(None, pa.bool_()), same)
    return pc.call_function(how, [column, pa.scalar(int(value), column.type)])


_WHOLE, _FITS = r"^[+-]?[0-9]+$", r"^[+-]?[0-9]{1,18}$"


def _texts_compared(column: pa.Array, how: str, value: float) -> pa.Array:
    """Texts that are numbers, whole ones exactly; null for what is none."""
    said = pc.utf8_trim_whitespace(text(column)[0])
    found = _floats_compared(kept.values(said, pa.float64())[0], how, value)
    fits = pc.fill_null(pc.match_substring_regex(said, _FITS), False)
    small = pc.if_else(fits, pc.utf8_ltrim(said, "+"), None).cast(pa.int64())
    found = pc.if_else(fits, _whole_compared(small, how, value), found)
    large = pc.and_not(pc.fill_null(pc.match_substring_regex(said, _WHOLE), False), fits)
    if not pc.any(large).as_py():
        return found
    exact = [_PYTHON[how](_integer(one), value) for one in said.filter(large).to_pylist()]
    return pc.replace_with_mask(found, large, pa.array(exact, pa.bool_()))


def _integer(said: str) -> float:
    return int(said) if len(said) < 1000 else _as_float(float(said))
