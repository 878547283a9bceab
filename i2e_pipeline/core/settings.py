"""Settings as a user writes them, before they are validated: YAML, and `section.key=value` of a command line.

What a scalar is depends on the setting that it is for. `no`, `4` and `1e3` are text where text is wanted, and a truth
value or numbers elsewhere; so a scalar is kept as it was `Written` until `settled` knows the setting. A value of a
command line is for a text setting taken whole, whatever YAML thinks of its `#`, `: ` and quotes.
"""

from __future__ import annotations

import re
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from i2e_pipeline.core import files, secrets
from i2e_pipeline.core.errors import I2EError

_UNKNOWN = object()
"""In place of a type: nobody has said yet what is wanted."""
_NULL = ("", "~", "null", "Null", "NULL")
_OF_YAML_1_1 = re.compile(r"[+-]?0[0-9_]+|.*[0-9]:[0-9].*")
"""What only old YAML takes for a number, and for one that nobody means: 017 is 15 there, and 1:30 is 90."""
_MOST_VALUES = 100_000
_TOO_MANY = f"its anchors (&, *) make more than {_MOST_VALUES:,} values of what is written: write what is meant, once"
"""A few lines of anchors that hold anchors are 10⁹ values written out ("billion laughs")."""
_WHOLE = re.compile(r"[+-]?\d+(?:\.\d*)?[eE][+-]?\d+")
_OCTAL = re.compile(r"0o[0-7]+")


class SettingsError(I2EError, ValueError):
    """What cannot be read as settings; the message names the file and the lines."""


@dataclass(frozen=True)
class Written:
    """A value as it stands there, and what YAML takes it for."""

    text: str
    value: Any


class _Loader(yaml.SafeLoader):
    """YAML whose scalars are kept as they are written, whose keys are text, and in which no key stands twice."""

    merged = 0
    """Settings that merges (`<<: *a`) have brought in so far."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        before = len(node.value)
        super().flatten_mapping(node)
        self.merged += max(0, len(node.value) - before)
        if self.merged > _MOST_VALUES:
            raise SettingsError(_TOO_MANY)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):  # `!!map` before something else
            raise yaml.constructor.ConstructorError(None, None, "a mapping is said to stand here", node.start_mark)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise SettingsError(f"line {line}: a list or a mapping is no name of a setting")
            if key.value in lines:
                raise SettingsError(
                    f"`{key.value}` stands in line {lines[key.value]} and again in line {line}, and only one can hold: "
                    "put together what belongs together, or leave one out"
                )
            lines[key.value] = line
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def construct_written(self, node: yaml.Node) -> Any:
        assert isinstance(node, yaml.ScalarNode)
        kind = node.tag.rpartition(":")[2]
        if kind == "timestamp" or _OF_YAML_1_1.fullmatch(node.value):
            return Written(node.value, node.value)
        try:
            value = getattr(yaml.SafeLoader, f"construct_yaml_{kind}")(self, node)
        except ValueError:  # `0x_`, or thousands of digits
            value = node.value
        return Written(node.value, value)


for _kind in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_written)


def read(file: str) -> dict[str, Any]:
    """The tree of a YAML file, on this machine or in a store; an empty one for an empty file. Raises SettingsError."""
    local = Path(file.removeprefix("file://")) if files.is_local(file) else None
    if local is not None and local.is_dir():
        raise SettingsError(f"--config {file} is a folder: name the YAML file in it")
    if local is not None and not local.exists():
        raise SettingsError(f"--config {file}: no such file")
    try:
        # A pipe has no size, and is read to its end: --config <(…), /dev/stdin.
        content = files.read_bytes(file) if local is None else local.read_bytes()
    except (OSError, files.StoreError) as error:
        raise SettingsError(f"--config {secrets.hide(file)} cannot be read: {error}") from None
    return parsed(content, file)


def parsed(content: bytes, file: str) -> dict[str, Any]:
    """The tree of what such a file holds; `file` says in messages where it is from. Raises SettingsError."""
    try:
        tree = _load(content.decode("utf-8"))
    except SettingsError as error:
        raise SettingsError(f"{file}: {error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SettingsError(
            f"{file}, line {line}: byte 0x{error.object[error.start]:02x} is no UTF-8: save the file as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{file}{_said(error)}") from None
    if isinstance(tree, Written):
        tree = tree.text
    if tree is not None and not isinstance(tree, dict):
        held = "a list" if isinstance(tree, list) else f"{str(tree)[:40]!r}"
        raise SettingsError(
            f"{file} must hold sections of settings (`score:` and below it `  batch_size: 8`), not {held}"
        )
    return tree or {}


def _load(text: str) -> Any:
    try:
        tree = yaml.load(text, _Loader)
        written: dict[int, int | None] = {}
        values = _values(tree, written)
    except RecursionError:
        raise SettingsError("lists and mappings lie too deep in one another: no setting is as deep") from None
    if values > _MOST_VALUES and values > 2 * len(written):
        raise SettingsError(_TOO_MANY)
    return tree


def _values(value: Any, known: dict[int, int | None]) -> int:
    """How many values a tree has with all anchors written out, in the time of what is written.

    known   of each list or mapping, by its id, how many it has; None: it is being counted
    Raises SettingsError for an anchor that holds itself.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) in known:
        counted = known[id(value)]
        if counted is None:
            raise SettingsError("an anchor (&) holds itself (*), which no setting can")
        return counted
    known[id(value)] = None
    counted = 1 + sum(_values(below, known) for below in (value.values() if isinstance(value, dict) else value))
    known[id(value)] = counted
    return counted


def _said(error: yaml.YAMLError) -> str:
    """Where a file is no YAML, and why, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f" is not YAML: {' '.join(str(error).split())}"
    problem = " ".join(filter(None, (error.context, error.problem)))
    remedy = next((remedy for part, remedy in _REMEDIES if part in problem), "")
    return f", line {error.problem_mark.line + 1}: this is not YAML ({problem})" + (f": {remedy}" if remedy else "")


_REMEDIES = (
    (r"'\t'", "blanks indent and part there, and no tabs"),
    ("cannot start any token", "put a text that begins with such a sign in quotes"),
    ("scanning an alias", "put a text that begins with * in quotes"),
    ("undefined alias", "put a text that begins with * in quotes, or name the anchor (&) that it means"),
    ("mapping values are not allowed", "put a text with a colon and a blank in quotes"),
    ("quoted scalar", "a quotation mark is not closed"),
    ("but found another document", "keep the settings of one run, without a second `---`"),
    ("constructor for the tag", "put a text of such signs in quotes"),
    ("found '<scalar>'", "put a text that holds quotation marks in those of the other kind"),
    ("parsing a flow sequence", "put a text with brackets or commas in quotes"),
)


def put(tree: dict[str, Any], path: str, text: str, model: type[BaseModel]) -> None:
    """Set `section.key` of a tree to a value of a command line.

    model   says where a section ends: behind it the rest of the path is the key, dots and all (`session.conf.spark.x`)
    Raises SettingsError where a value stands in the place of a section, or for a key that stands in the value twice.
    """
    try:
        value = _load(text)
    except yaml.YAMLError:
        value = text
    if not all(part.strip() for part in path.split(".")):
        raise SettingsError("a name is missing beside a dot: write it as section.key=value")
    *sections, leaf = _parts(path, model)
    kind = _wanted(model, (*sections, leaf))
    if isinstance(value, str) and kind is not _UNKNOWN and not _is_text(kind) and (closing := _unclosed(text)):
        raise SettingsError(
            f"a bracket is not closed: end the list with {closing}, or put a name of such signs in quotes"
        )
    node = tree
    for section in sections:
        below = node.get(section)
        if isinstance(below, Written):
            below = below.value
        node[section] = {} if below is None else below
        node = node[section]
        if not isinstance(node, dict):
            raise SettingsError(f"{section} is a value, not a section")
    node[leaf] = Written(text, value.value if isinstance(value, Written) else value)


def _parts(path: str, model: type[BaseModel]) -> list[str]:
    parts = path.split(".")
    kind: Any = model
    for n, part in enumerate(parts):
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
        if part not in fields:
            return parts
        kind = fields[part].annotation
        if _origin(kind) is dict and n + 1 < len(parts):
            return [*parts[: n + 1], ".".join(parts[n + 1 :])]
    return parts


def _wanted(model: Any, parts: Sequence[str]) -> Any:
    """The type of a setting; _UNKNOWN where nobody has said it."""
    for part in parts:
        if _origin(model) is dict:
            return get_args(_plain(model))[1]
        if not (isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields):
            return _UNKNOWN
        model = model.model_fields[part].annotation
    return model


def _unclosed(text: str) -> str:
    """The bracket that a list or mapping of several lacks at its end; empty where it lacks none. A name may begin with
    one."""
    for opening, closing in (("[", "]"), ("{", "}")):
        if text.lstrip().startswith(opening) and "," in text and text.count(opening) > text.count(closing):
            return closing
    return ""


def settled(value: Any, kind: Any) -> Any:
    """A tree with all that was `Written` as its settings want it.

    kind   a model, or the type of the value. Of a model, what is none of its fields stays as it was written: a section
           of a stage from outside is not known yet
    Numbers and truth values become text where text alone is wanted.
    """
    if kind is _UNKNOWN:
        return value
    kind = _plain(kind)
    if value is None and isinstance(kind, type) and issubclass(kind, BaseModel):
        return {}  # a section of which every line is commented out
    if isinstance(value, Written):
        whole = value.value
        if whole is None and value.text.strip() in _NULL and _takes_none(kind):
            return None
        listed = isinstance(whole, list) and (value.text.lstrip().startswith("[") or not _wants_text(kind))
        if (listed and not _is_text(kind)) or (isinstance(whole, Mapping) and not _wants_text(kind)):
            return settled(whole, kind)
        return settled(value.text, kind) if _wants_text(kind) else settled(whole, kind)
    if isinstance(value, Mapping):
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
        below = get_args(kind)[1] if _origin(kind) is dict and get_args(kind) else None
        elsewhere = _UNKNOWN if fields else below
        return {k: settled(v, fields[k].annotation if k in fields else elsewhere) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [settled(v, _element(kind, n)) for n, v in enumerate(value)]
    if isinstance(value, str | int | float) and not isinstance(value, bool) and _is_many(kind) and str(value).strip():
        return [settled(value, _element(kind, 0))]  # one may stand alone
    if isinstance(value, str) and _is_whole(kind):
        return _whole(value)
    if isinstance(value, bool | int | float) and _is_text(kind):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return value


def _plain(kind: Any) -> Any:
    return _plain(get_args(kind)[0]) if get_origin(kind) is Annotated else kind


def _origin(kind: Any) -> Any:
    return get_origin(_plain(kind))


def _ways(kind: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type, itself."""
    kind = _plain(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(way for member in get_args(kind) for way in _ways(member))
    return (kind,)


def _takes_none(kind: Any) -> bool:
    return type(None) in _ways(kind)


def _is_text(kind: Any) -> bool:
    """Is a single text wanted, and nothing else (but None)?"""
    ways = [way for way in _ways(kind) if way is not type(None)]
    return bool(ways) and all(
        way is str or (get_origin(way) is Literal and all(isinstance(a, str) for a in get_args(way))) for way in ways
    )


def _is_many(kind: Any) -> bool:
    """Is a list of any length wanted, and nothing else (but None)?"""
    ways = [way for way in _ways(kind) if way is not type(None)]
    return bool(ways) and all(
        get_origin(way) in (list, set, frozenset) or (get_origin(way) is tuple and Ellipsis in get_args(way))
        for way in ways
    )


def _is_whole(kind: Any) -> bool:
    """Is a whole number wanted, and nothing else (but None)?"""
    return {way for way in _ways(kind) if way is not type(None)} == {int}


def _whole(text: str) -> int | str:
    """1e6 and 0o17 as the numbers that they are; any other text as it is."""
    if _WHOLE.fullmatch(text) and float(text).is_integer():
        return int(float(text))
    return int(text, 8) if _OCTAL.fullmatch(text) else text


def _wants_text(kind: Any) -> bool:
    """Is a text wanted, or a list of texts, of which one may stand alone?"""
    ways = [way for way in _ways(kind) if way is not type(None)]
    return bool(ways) and all(
        _is_text(way) or (get_origin(way) in (tuple, list, set, frozenset) and _is_text(_element(way, 0)))
        for way in ways
    )


def _element(kind: Any, n: int) -> Any:
    for way in _ways(kind):
        arguments = [a for a in get_args(way) if a is not Ellipsis]
        if get_origin(way) in (tuple, list, set, frozenset) and arguments:
            return arguments[min(n, len(arguments) - 1)]
    return None
