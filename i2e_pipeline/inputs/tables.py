"""Tables of texts and paths: CSV, TSV and JSON lines, with the images in files of their own."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import math
import re
import zlib
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.stored_image import StoredImage
from i2e_pipeline.inputs import columns as types
from i2e_pipeline.inputs import kept
from i2e_pipeline.inputs.named_files import NamedFiles
from i2e_pipeline.inputs.parquet import selected_rows
from i2e_pipeline.inputs.shard import Format, Images, Look, Shard, ShardError, opened_index

if TYPE_CHECKING:
    from i2e_pipeline.core.config import PairsConfig
    from i2e_pipeline.inputs.shard import Source

log = logging.getLogger(__name__)

_BLOCK = 16 << 20
"""Bytes that are parsed at a time; a row may not be longer."""
_LINES = 4096
"""Rows that are held at a time, and a row group of the index."""
_FIRST = 100
"""Rows that tell which columns of JSON lines are lists or objects."""
_LINE = "line"
"""The column of JSON lines' index."""


class _Table(Format):
    """What these formats share: rows that are found by reading from the beginning, and images that rows name by path.

    So the plan writes all rows once more, as Parquet, from which tasks read their own.
    """

    looks_at_all = True
    empty: bytes | None = None
    """A cell of the index that says nothing."""

    @abstractmethod
    def records(self, path: str, columns: Sequence[str] | None = None) -> Generator[pa.RecordBatch, None, None]:
        """All rows of a file, _LINES at a time, as the index keeps them; of these columns (None: all). Raises
        ShardError."""

    @abstractmethod
    def parsed(self, records: pa.RecordBatch, columns: Sequence[str], shard: Shard) -> pa.RecordBatch:
        """These columns of records."""

    def indexed(self, columns: Sequence[str]) -> Sequence[str]:
        """The columns of the index that these are made of."""
        return columns

    def batches(self, shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        start = 0
        with closing(self._all_records(shard, columns)) as parts:
            for records in parts:
                yield start, self.parsed(records, columns, shard)
                start += records.num_rows

    def _all_records(self, shard: Shard, columns: Sequence[str]) -> Generator[pa.RecordBatch, None, None]:
        if shard.index is None:
            yield from self.records(shard.path, columns)
            return
        with opened_index(shard) as file:
            here = [c for c in self.indexed(columns) if c in file.schema_arrow.names]
            yield from file.iter_batches(_LINES, columns=here, use_threads=False)

    def rows(self, shard: Shard, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if shard.index is None:
            yield from super().rows(shard, rows, columns)
            return
        for records in selected_rows(shard.index, rows, self.indexed(columns)):
            yield self.parsed(records, columns, shard)

    def emptied(self, records: pa.RecordBatch, mask: pa.Array) -> pa.RecordBatch | None:
        empty = [pc.if_else(mask, pa.scalar(self.empty, c.type), c) for c in records.columns]
        return pa.RecordBatch.from_arrays(empty, schema=records.schema)

    def images(self, shard: Shard, column: str) -> Images:
        return TableImages(self, shard, column)


@dataclass(frozen=True)
class _Dialect:
    """How a table of separated values is written."""

    delimiter: str
    quoted: bool = True
    escape: str | None = None
    """What stands before a quotation mark inside a quoted cell: Spark writes a backslash; None: another one."""


class Csv(_Table):
    name, suffixes, kind = (
        "csv",
        (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".tab"),
        "table of comma- or tab-separated values",
    )

    def look(self, source: Source, pairs: PairsConfig) -> Look:
        path, keep = source.path, list(pairs.keep_columns)
        dialect = _dialect_of(path)
        names = _names(path, dialect)
        rows, found = 0, [dict.fromkeys(keep, kept.ABSENT)]
        columns = list(dict.fromkeys([pairs.text_column, *keep]))
        with closing(self._records(path, dialect, columns)) as parts:
            for records in parts:
                rows += records.num_rows
                found.append({n: kept.of_cells(records.column(n)) for n in keep if n in records.schema.names})
        schema = pa.schema([pa.field(n, pa.string()) for n in names])
        return Look(rows, schema, partial(self._records, path, dialect), kinds=kept.of_parts(found))

    def names(self, shard: Shard) -> list[str]:
        if shard.index is None:
            return _names(shard.path, _dialect_of(shard.path))
        with opened_index(shard) as file:  # how a table is written, only all of it says
            return list(file.schema_arrow.names)

    def records(self, path: str, columns: Sequence[str] | None = None) -> Generator[pa.RecordBatch, None, None]:
        return self._records(path, _dialect_of(path), columns)

    @staticmethod
    def _records(
        path: str, dialect: _Dialect, columns: Sequence[str] | None = None
    ) -> Generator[pa.RecordBatch, None, None]:
        written = _header(path, dialect)
        names = [name if dialect.quoted else _unquoted_name(name) for name in written]
        # Where a name stands twice, and is used, the plan refuses the file.
        once = [name for name in names if names.count(name) == 1]
        here = [name for name in columns if name in once] if columns is not None else once
        here = here or once[:1] or names[:1]
        with _opened(path) as stream:
            for batch in _batches(path, stream, dialect, [written[names.index(name)] for name in here]):
                if not dialect.quoted:
                    batch = pa.RecordBatch.from_arrays([_unquoted(cells) for cells in batch.columns], names=here)
                for start in range(0, batch.num_rows, _LINES):
                    yield batch.slice(start, _LINES)

    def parsed(self, records: pa.RecordBatch, columns: Sequence[str], shard: Shard) -> pa.RecordBatch:
        return types.only(records, columns)


def _dialect_of(path: str) -> _Dialect:
    """How a file is written. Raises ShardError where no reading fits all of it.

    Tables split by tabs are mostly written without quoting (CC3M, CC12M, SBU), so that a quotation mark that begins a
    caption is a character like others. Read otherwise it would swallow the rows up to the next one.
    """
    tabs, wrong = _split_by_tabs(path), None
    if tabs:
        dialect = _Dialect("\t", quoted=False)
        try:
            with _opened(path) as stream:
                for _ in _batches(path, stream, dialect, _header(path, dialect)[:1]):
                    pass
            return dialect
        except ShardError as error:
            wrong = error
    delimiter = "\t" if tabs else ","
    if not _has_quotes(path):
        return _Dialect(delimiter)
    doubled, escaped = _Dialect(delimiter), _Dialect(delimiter, escape="\\")
    faults = [_fault(path, doubled)]
    if not any(faults):
        return doubled
    if _fault(path, escaped) is None:
        return escaped
    if wrong is None and _fault(path, doubled, lenient=True) is None:
        log.warning("%s, %s, among others: such marks are left out; double those inside of quoted cells", path, *faults)
        return doubled
    raise wrong or ShardError(
        f"{path}, {faults[0]}: close the cell, or double the quotation marks inside of quoted cells"
    )


def _split_by_tabs(path: str) -> bool:
    """By its name, or by its first line where that does not say it."""
    name = path.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv", ".tab")):
        return not name.endswith(".csv")
    with _opened(path) as stream:
        first = bytes(stream.peek(1)).partition(b"\n")[0]  # type: ignore[attr-defined]
    return first.count(b"\t") > first.count(b",")


def _has_quotes(path: str) -> bool:
    with _opened(path) as stream:
        return any(b'"' in block for block in iter(partial(stream.read, _BLOCK), b""))


def _fault(path: str, dialect: _Dialect, lenient: bool = False) -> str | None:
    """Where quotation marks do not close as they open, and how; Arrow passes over it, and rows are lost.

    lenient   text behind a closing mark is no fault where the row is one line, since then no other row is lost
    """
    csv.field_size_limit(_BLOCK)
    last = 1
    with _opened(path) as stream, io.TextIOWrapper(stream, "latin-1") as lines:
        rows = csv.reader(
            (line.replace("\0", " ") for line in _bounded(lines)),
            delimiter=dialect.delimiter,
            escapechar=dialect.escape,
            strict=True,
        )
        while True:
            try:
                for _ in rows:
                    last = rows.line_num + 1
                return None
            except csv.Error as error:
                if "expected after" not in str(error):  # it ends, or a cell grows beyond all bounds
                    return (
                        f"line {last}: a quotation mark opens a cell and is not closed for {_BLOCK >> 20} MiB, "
                        "or at all"
                    )
                if not lenient or rows.line_num > last:
                    return f"line {last}: a quotation mark stands where none may ({error})"
                last = rows.line_num + 1


def _bounded(lines: IO[str]) -> Iterator[str]:
    """Raises csv's error for a line that may not be parsed: a few kilobytes of gzip may be gigabytes without an end."""
    for line in iter(partial(lines.readline, _BLOCK + 1), ""):
        if len(line) > _BLOCK:
            raise csv.Error("it is too long")
        yield line


def _header(path: str, dialect: _Dialect) -> list[str]:
    """The cells of the first row, as they are written."""
    with _opened(path) as stream, closing(_reader(path, stream, dialect)) as reader:
        try:
            return list(reader.schema.names)
        except UnicodeDecodeError:
            raise ShardError(
                f"{path}: the first row, with the columns' names, is no UTF-8: convert the file, as by "
                "`iconv -f LATIN1 -t UTF-8`"
            ) from None


def _names(path: str, dialect: _Dialect) -> list[str]:
    return [name if dialect.quoted else _unquoted_name(name) for name in _header(path, dialect)]


def _batches(
    path: str, stream: IO[bytes], dialect: _Dialect, columns: Sequence[str]
) -> Generator[pa.RecordBatch, None, None]:
    with closing(_reader(path, stream, dialect, columns)) as reader:
        try:
            yield from reader
        except pa.ArrowInvalid as error:
            raise _no_table(path, error) from None


def _reader(path: str, stream: IO[bytes], dialect: _Dialect, columns: Sequence[str] | None = None) -> Any:
    """`columns`: as bytes, since what is no UTF-8 is mended later; None: all, with types by their first rows."""
    try:
        return pc_csv.open_csv(
            stream,
            read_options=pc_csv.ReadOptions(block_size=_BLOCK, use_threads=False),
            parse_options=pc_csv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char='"' if dialect.quoted else False,
                escape_char=dialect.escape or False,
                newlines_in_values=dialect.quoted,
            ),
            convert_options=pc_csv.ConvertOptions(
                check_utf8=False,
                column_types=None if columns is None else dict.fromkeys(columns, pa.binary()),
                include_columns=list(columns) if columns is not None else [],
                strings_can_be_null=False,
                null_values=[],
            ),
        )
    except pa.ArrowInvalid as error:
        raise _no_table(path, error) from None


def _no_table(path: str, error: pa.ArrowInvalid) -> ShardError:
    if "straddling" in str(error):
        said = f"a row is longer than {_BLOCK >> 20} MiB: shorten it, or leave it out"
    else:
        said = f"{error}" + (": mend the row, or leave it out" if "Row #" in str(error) else "")
    return ShardError(f"{path} is no table of separated values: {said}")


_WHOLE = r'^"([^"]|"")*"$'
_ESCAPED = r'^"([^"\\]|\\[\x00-\xff])*"$'


def _unquoted(cells: pa.Array) -> pa.Array:
    """Cells that were read as they stand, without the quotes of those that are quoted whole, and whose quotation marks
    inside are doubled, or escaped as Spark does; bytes."""
    quoted = pc.starts_with(cells, b'"')
    if not pc.any(quoted).as_py():
        return cells
    doubled, escaped = (pc.match_substring_regex(cells, form) for form in (_WHOLE, _ESCAPED))
    inside = pc.binary_slice(cells, 1, -1)
    plain = pc.replace_substring(inside, b'""', b'"')
    unescaped = pc.replace_substring(inside, b'\\"', b'"')
    return pc.if_else(doubled, plain, pc.if_else(escaped, unescaped, cells))


def _unquoted_name(name: str) -> str:
    return str(_unquoted(pa.array([name.encode()], pa.binary()))[0].as_py().decode())


class JsonLines(_Table):
    name, suffixes, kind = "jsonl", (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"), "file of JSON lines"
    empty = b"{}"

    def look(self, source: Source, pairs: PairsConfig) -> Look:
        path, keep = source.path, list(pairs.keep_columns)
        rows, names = 0, dict[str, None]()
        first: list[dict[str, Any]] = []
        found = [dict.fromkeys(keep, kept.ABSENT)]
        with closing(json_lines(path)) as lines:
            while part := [row for _, _, row in islice(lines, _LINES)]:
                first += part[: max(0, _FIRST - len(first))]
                rows += len(part)
                names |= {name: None for row in part if not row.keys() <= names.keys() for name in row}
                found.append(kept.of_objects(part if keep else [], keep))
        schema = schema_of_objects(first, names)
        return Look(rows, schema, partial(self.records, path), kinds=kept.of_parts(found))

    def names(self, shard: Shard) -> list[str]:
        with closing(json_lines(shard.path)) as lines:
            return list(dict.fromkeys(name for _, _, row in islice(lines, _FIRST) for name in row))

    def records(self, path: str, columns: Sequence[str] | None = None) -> Generator[pa.RecordBatch, None, None]:
        with closing(json_lines(path)) as lines:
            while part := [line for _, line, _ in islice(lines, _LINES)]:
                yield pa.RecordBatch.from_arrays([pa.array(part, pa.binary())], [_LINE])

    def indexed(self, columns: Sequence[str]) -> Sequence[str]:
        return [_LINE]

    def parsed(self, records: pa.RecordBatch, columns: Sequence[str], shard: Shard) -> pa.RecordBatch:
        rows = [json_of(line) for line in records.column(_LINE).to_pylist()]
        return from_objects(rows, columns, shard.kept, shard.text_column)


def json_lines(path: str) -> Generator[tuple[int, bytes, dict[str, Any]], None, None]:
    """The lines of a file of JSON lines, packed or not: number from 1, bytes, object; blank lines are none. Raises
    ShardError with the line's number."""
    with _opened(path) as stream:
        for number, line in enumerate(iter(partial(stream.readline, _BLOCK + 1), b""), 1):
            if len(line) > _BLOCK:
                raise ShardError(
                    f"{path}, line {number}: it is longer than {_BLOCK >> 20} MiB: shorten it, or leave it out"
                )
            line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not line:
                continue
            try:
                row = json_of(line)
            except ValueError as error:
                raise ShardError(f"{path}, line {number}: no JSON ({error}): mend the line or leave it out") from None
            if not isinstance(row, dict):
                raise ShardError(f"{path}, line {number}: an object is wanted in each line, not {type(row).__name__}")
            yield number, line, row


def json_of(stored: bytes) -> Any:
    """The value of a JSON text, whose bytes need not be UTF-8, and whose numbers may be NaN as Python writes it.

    In the place of a byte that is wrong, and of half a character (`\\ud83d` alone), a text has a surrogate, which
    `from_objects` leaves to be mended and counted at the door. Raises ValueError where it is no JSON.
    """
    try:
        return msgspec.json.decode(stored)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        value = json.loads(stored.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if isinstance(value, dict):  # names of columns are valid
        return {_SURROGATE.sub("\ufffd", name): held for name, held in value.items()}
    return value


_SURROGATE = re.compile("[\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates that stand for no byte."""


def from_objects(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], kept: Sequence[str] = (), text_column: str | None = None
) -> pa.RecordBatch:
    """Columns of JSON objects: texts and lists of texts as they are, all else as JSON; null where it is missing.

    kept          of these, lists are JSON, too
    text_column   of this, objects and nested lists are null: they are no captions
    """
    made = []
    for name in columns:
        values = [row.get(name) for row in rows]
        if name in kept:
            made.append(_texts([_said(v) for v in values]))
        else:
            made.append(_column([_caption(v) for v in values] if name == text_column else values))
    return pa.RecordBatch.from_arrays(made, names=list(columns))


def schema_of_objects(rows: Iterable[Mapping[str, Any]], names: Iterable[str] = ()) -> pa.Schema:
    """The columns of JSON objects, and these: lists and objects where a value is one, texts else."""
    found: dict[str, pa.DataType] = dict.fromkeys(names, pa.string())
    for row in rows:
        for name, value in row.items():
            kind = _type(value)
            if name not in found or (pa.types.is_nested(kind) and not _is_nested_twice(found[name])):
                found[name] = kind
    return pa.schema(list(found.items()))


def _type(value: Any) -> pa.DataType:
    if isinstance(value, dict):
        return pa.map_(pa.string(), pa.string())
    if isinstance(value, list):
        inner = [kind for v in value if pa.types.is_nested(kind := _type(v))]
        return pa.list_(inner[0] if inner else pa.string())
    return pa.string()


def _is_nested_twice(kind: pa.DataType) -> bool:
    return pa.types.is_map(kind) or (pa.types.is_list(kind) and pa.types.is_nested(kind.value_type))


def _caption(value: Any) -> Any:
    if isinstance(value, list):
        return [None if isinstance(v, dict | list) else v for v in value]
    return None if isinstance(value, dict) else value


def _column(values: list[Any]) -> pa.Array:
    lists = [isinstance(v, list) for v in values]
    if any(lists):
        as_lists = [v if isinstance(v, list) else None if v is None else [v] for v in values]
        said = [v and [_said(x) for x in v] for v in as_lists]
        try:
            return pa.array(said, pa.list_(pa.string()))
        except UnicodeEncodeError:
            return pa.array([v and [_bytes(x) for x in v] for v in said], pa.list_(pa.binary()))
    if any(isinstance(v, bool) for v in values) and all(v is None or isinstance(v, bool) for v in values):
        return pa.array(values, pa.bool_())
    return _texts([_said(v) for v in values])


def _texts(said: list[str | None]) -> pa.Array:
    """As text, or as bytes where some are no valid text."""
    try:
        return pa.array(said, pa.string())
    except UnicodeEncodeError:
        return pa.array([_bytes(one) for one in said], pa.binary())


def _bytes(said: str | None) -> bytes | None:
    """With a wrong byte for each surrogate."""
    return None if said is None else _HALF.sub("\udcff", said).encode("utf-8", "surrogateescape")


def _said(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)  # NaN: as programs write that there is none
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        if not path.lower().endswith(".gz"):
            with io.BufferedReader(stream, 1 << 20) as buffered:  # Arrow's own files have no lines
                _refuse_wide(path, buffered)
                yield buffered
            return
        try:
            with io.BufferedReader(gzip.GzipFile(fileobj=stream)) as unpacked:
                _refuse_wide(path, unpacked)
                yield unpacked
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ShardError(f"{path} is not whole gzip ({error}): fetch it again, or leave it out") from None


def _refuse_wide(path: str, stream: io.BufferedReader[Any]) -> None:
    first = stream.peek(4)[:4]
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first[:2]:
        raise ShardError(f"{path} is UTF-16: convert it, as by `iconv -f UTF-16 -t UTF-8`")


class TableImages(Images):
    """Files that a column of a table names. The names of a chunk of rows are held at a time."""

    named = True

    def __init__(self, table: _Table, shard: Shard, column: str) -> None:
        self.path = shard.path
        self._table, self._shard, self._column = table, shard, column
        self._files = NamedFiles(shard)
        self._names: list[str | None] = []
        self._start = 0
        """Row of the first of these names."""
        self._index = ExitStack()
        self._file: pq.ParquetFile | None = None
        if shard.index is not None:
            self._file = self._index.enter_context(opened_index(shard))
            sizes = [self._file.metadata.row_group(g).num_rows for g in range(self._file.metadata.num_row_groups)]
            self._ends = np.cumsum(sizes, dtype=np.int64)

    @cached_property
    def rows(self) -> int:  # type: ignore[override]
        if self._file is not None:
            return int(self._file.metadata.num_rows)
        return sum(b.num_rows for _, b in self._table.batches(self._shard, [self._column]))

    def read(self, rows: Iterable[int]) -> Iterator[StoredImage]:
        asked = iter(rows)
        while some := list(islice(asked, 16)):
            yield from self._files.read([self._name(row) for row in some])

    def _name(self, row: int) -> str | None:
        if not self._start <= row < self._start + len(self._names):
            self.check_row(row)
            self._go_to(row)
        return self._names[row - self._start]

    def _go_to(self, row: int) -> None:
        if self._file is not None:
            group = int(np.searchsorted(self._ends, row, side="right"))
            self._start = int(self._ends[group - 1]) if group else 0
            here = [c for c in self._table.indexed([self._column]) if c in self._file.schema_arrow.names]
            table = self._file.read_row_group(group, columns=here, use_threads=False).combine_chunks()
            chunk = self._table.parsed(table.to_batches()[0], [self._column], self._shard)
        else:
            batches = self._table.batches(self._shard, [self._column])
            self._start, chunk = next((n, b) for n, b in batches if row < n + b.num_rows)
        self._names = types.text(chunk.column(0))[0].to_pylist()

    def close(self) -> None:
        self._files.close()
        self._index.close()
