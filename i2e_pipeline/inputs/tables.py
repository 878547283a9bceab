"""Tables of texts and paths: CSV, TSV and JSON lines, with the images in files of their own."""

from __future__ import annotations

import gzip
import io
import json
import math
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property, partial
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
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

_BLOCK = 16 << 20
"""Bytes that are parsed at a time; a row may not be longer."""
_LINES = 4096
"""Rows that are held at a time, and a row group of the index."""
_LINE = "line"
"""The column of JSON lines' index."""


class _Table(Format):
    """What these formats share: rows that are found by reading from the beginning, and images that rows name by path.

    So the plan writes all rows once more, as Parquet, from which tasks read their own.
    """

    looks_at_all = True

    @abstractmethod
    def records(self, path: str, columns: Sequence[str] | None = None) -> Generator[pa.RecordBatch, None, None]:
        """All rows of a file, _LINES at a time, as the index keeps them; of these columns (None: all). Raises
        ShardError."""

    @abstractmethod
    def parsed(self, records: pa.RecordBatch, columns: Sequence[str], shard: Shard) -> pa.RecordBatch:
        """These columns of records."""

    @abstractmethod
    def kinds_of(self, records: pa.RecordBatch, keep: Sequence[str]) -> dict[str, str]:
        """What these columns hold, that the dataset is to keep (kept.py)."""

    def indexed(self, columns: Sequence[str]) -> Sequence[str]:
        """The columns of the index that these are made of."""
        return columns

    def look(self, source: Source, pairs: PairsConfig) -> Look:
        path, keep = source.path, list(pairs.keep_columns)
        names = self.names(source.shard(pairs))
        rows, found = 0, [dict.fromkeys(keep, kept.ABSENT)]
        with closing(self.records(path, list(dict.fromkeys([pairs.text_column, *keep])))) as parts:
            for records in parts:
                rows += records.num_rows
                found.append(self.kinds_of(records, [name for name in keep if name in names]))
        schema = pa.schema([pa.field(n, pa.string()) for n in names])
        return Look(rows, schema, partial(self.records, path), kinds=kept.of_parts(found))

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

    def images(self, shard: Shard, column: str) -> Images:
        return TableImages(self, shard, column)


class Csv(_Table):
    name, suffixes, kind = (
        "csv",
        (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".tab"),
        "table of comma- or tab-separated values",
    )

    def names(self, shard: Shard) -> list[str]:
        with _opened(shard.path) as stream, closing(self._reader(shard.path, stream)) as reader:
            return list(reader.schema.names)

    def records(self, path: str, columns: Sequence[str] | None = None) -> Generator[pa.RecordBatch, None, None]:
        with _opened(path) as stream, closing(self._reader(path, stream)) as reader:
            names = list(reader.schema.names)
        # Where a name stands twice, and is used, the plan refuses the file.
        once = [name for name in names if names.count(name) == 1]
        here = [name for name in columns if name in once] if columns is not None else once
        with _opened(path) as stream, closing(self._reader(path, stream, here or once[:1] or names[:1])) as reader:
            for batch in reader:
                for start in range(0, batch.num_rows, _LINES):
                    yield batch.slice(start, _LINES)

    def parsed(self, records: pa.RecordBatch, columns: Sequence[str], shard: Shard) -> pa.RecordBatch:
        return types.only(records, columns)

    def kinds_of(self, records: pa.RecordBatch, keep: Sequence[str]) -> dict[str, str]:
        return {name: kept.of_cells(records.column(name)) for name in keep if name in records.schema.names}

    @staticmethod
    def _reader(path: str, stream: IO[bytes], columns: Sequence[str] | None = None) -> Any:
        """`columns`: as bytes, since what is no UTF-8 is mended later; None: all, with types by their first rows."""
        name = path.lower().rsplit("/", 1)[-1]
        tabs = ".tsv" in name or ".tab" in name
        if not tabs and ".csv" not in name:  # the name does not say
            first = bytes(stream.peek(1)).partition(b"\n")[0]  # type: ignore[attr-defined]
            tabs = first.count(b"\t") > first.count(b",")
        try:
            return pc_csv.open_csv(
                stream,
                read_options=pc_csv.ReadOptions(block_size=_BLOCK, use_threads=False),
                parse_options=pc_csv.ParseOptions(delimiter="\t" if tabs else ",", newlines_in_values=True),
                convert_options=pc_csv.ConvertOptions(
                    check_utf8=False,
                    column_types=None if columns is None else dict.fromkeys(columns, pa.binary()),
                    include_columns=list(columns) if columns is not None else [],
                    strings_can_be_null=False,
                    null_values=[],
                ),
            )
        except pa.ArrowInvalid as error:
            raise ShardError(f"{path} is no table of separated values: {error}") from None


class JsonLines(_Table):
    name, suffixes, kind = "jsonl", (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"), "file of JSON lines"

    def names(self, shard: Shard) -> list[str]:
        with closing(_lines(shard.path)) as lines:
            return list(dict.fromkeys(name for _, row in islice(lines, 100) for name in row))

    def records(self, path: str, columns: Sequence[str] | None = None) -> Generator[pa.RecordBatch, None, None]:
        with closing(_lines(path)) as lines:
            while part := [line for line, _ in islice(lines, _LINES)]:
                yield pa.RecordBatch.from_arrays([pa.array(part, pa.binary())], [_LINE])

    def indexed(self, columns: Sequence[str]) -> Sequence[str]:
        return [_LINE]

    def parsed(self, records: pa.RecordBatch, columns: Sequence[str], shard: Shard) -> pa.RecordBatch:
        return from_objects([json_of(line) for line in records.column(_LINE).to_pylist()], columns, shard.kept)

    def kinds_of(self, records: pa.RecordBatch, keep: Sequence[str]) -> dict[str, str]:
        return kept.of_objects([json_of(line) for line in records.column(_LINE).to_pylist()] if keep else [], keep)


def _lines(path: str) -> Generator[tuple[bytes, dict[str, Any]], None, None]:
    """The lines of a file of JSON lines, each with its object; blank lines are none. Raises ShardError with the line's
    number."""
    with _opened(path) as stream:
        for number, line in enumerate(stream, 1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not line:
                continue
            try:
                row = json_of(line)
            except ValueError as error:
                raise ShardError(f"{path}, line {number}: no JSON ({error}): mend the line or leave it out") from None
            if not isinstance(row, dict):
                raise ShardError(f"{path}, line {number}: an object is wanted in each line, not {type(row).__name__}")
            yield line, row


def json_of(stored: bytes) -> Any:
    """The value of a JSON text, whose bytes need not be UTF-8, and whose numbers may be NaN as Python writes it.

    Raises ValueError where it is none.
    """
    try:
        return msgspec.json.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return json.loads(stored.decode("utf-8", "replace"))


def from_objects(rows: Sequence[dict[str, Any]], columns: Sequence[str], kept: Sequence[str] = ()) -> pa.RecordBatch:
    """Columns of JSON objects: texts and lists of texts as they are, all else as JSON; null where it is missing.

    kept   of these, lists are JSON, too
    """
    made = []
    for name in columns:
        values = [row.get(name) for row in rows]
        made.append(pa.array([_said(v) for v in values], pa.string()) if name in kept else _column(values))
    return pa.RecordBatch.from_arrays(made, names=list(columns))


def _column(values: list[Any]) -> pa.Array:
    lists = [isinstance(v, list) for v in values]
    if any(lists):
        as_lists = [v if isinstance(v, list) else None if v is None else [v] for v in values]
        return pa.array([v and [_said(x) for x in v] for v in as_lists], pa.list_(pa.string()))
    if any(isinstance(v, bool) for v in values) and all(v is None or isinstance(v, bool) for v in values):
        return pa.array(values, pa.bool_())
    return pa.array([_said(v) for v in values], pa.string())


def _said(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None  # as programs write that there is none
    return msgspec.json.encode(value).decode()


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        if not path.lower().endswith(".gz"):
            yield io.BufferedReader(stream, 1 << 20)  # Arrow's own files have no lines
            return
        try:
            with io.BufferedReader(gzip.GzipFile(fileobj=stream)) as unpacked:
                yield unpacked
        except (gzip.BadGzipFile, EOFError) as error:
            raise ShardError(f"{path} is not whole gzip: {error}") from None


class TableImages(Images):
    """Files that a column of a table names. The names of a chunk of rows are held at a time."""

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
