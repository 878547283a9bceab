"""Tables of texts and paths: CSV, TSV and JSON lines, with the images in files of their own."""

from __future__ import annotations

import gzip
import io
import json
import math
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.csv as pc_csv

from i2e_pipeline.core import files
from i2e_pipeline.core.stored_image import StoredImage
from i2e_pipeline.inputs import columns as types
from i2e_pipeline.inputs import kept
from i2e_pipeline.inputs.named_files import NamedFiles
from i2e_pipeline.inputs.shard import Format, Images, Look, Shard, ShardError

if TYPE_CHECKING:
    from i2e_pipeline.core.config import PairsConfig
    from i2e_pipeline.inputs.shard import Source

_BLOCK = 16 << 20
"""Bytes that are parsed at a time; a row may not be longer."""
_LINES = 4096


class _Table(Format):
    """What these formats share: no types, and images that rows name by path."""

    looks_at_all = True

    def look(self, source: Source, pairs: PairsConfig) -> Look:
        shard = source.shard(pairs)
        names = self.names(shard)
        rows, kinds = self.looked_through(shard, pairs.text_column, list(pairs.keep_columns))
        return Look(rows, pa.schema([pa.field(n, pa.string()) for n in names]), kinds=kinds)

    @abstractmethod
    def looked_through(self, shard: Shard, text_column: str, keep: Sequence[str]) -> tuple[int, dict[str, str]]:
        """How many rows it has, and what the columns `keep` hold (kept.py)."""

    def images(self, shard: Shard, column: str) -> Images:
        return TableImages(self, shard, column)


class Csv(_Table):
    name, suffixes, kind = (
        "csv",
        (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".tab"),
        "table of comma- or tab-separated values",
    )

    def names(self, shard: Shard) -> list[str]:
        with _opened(shard.path) as stream, closing(self._reader(shard.path, stream, None)) as reader:
            return list(reader.schema.names)

    def batches(self, shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        has = self.names(shard)
        here, start = [c for c in columns if c in has], 0
        with _opened(shard.path) as stream, closing(self._reader(shard.path, stream, here or has[:1])) as reader:
            for batch in reader:
                yield start, types.only(batch, columns)
                start += batch.num_rows

    def looked_through(self, shard: Shard, text_column: str, keep: Sequence[str]) -> tuple[int, dict[str, str]]:
        rows, found = 0, [dict.fromkeys(keep, kept.ABSENT)]
        here = [name for name in keep if name in self.names(shard)]
        for start, batch in self.batches(shard, list(dict.fromkeys([text_column, *here]))):
            rows = start + batch.num_rows
            found.append({name: kept.of_cells(batch.column(name)) for name in here})
        return rows, kept.of_parts(found)

    @staticmethod
    def _reader(path: str, stream: IO[bytes], columns: Sequence[str] | None) -> Any:
        tabs = any(part in path.lower().rsplit("/", 1)[-1] for part in (".tsv", ".tab"))
        kinds = None if columns is None else dict.fromkeys(columns, pa.binary())  # what is no UTF-8 is mended later
        try:
            return pc_csv.open_csv(
                stream,
                read_options=pc_csv.ReadOptions(block_size=_BLOCK, use_threads=False),
                parse_options=pc_csv.ParseOptions(delimiter="\t" if tabs else ",", newlines_in_values=True),
                convert_options=pc_csv.ConvertOptions(
                    check_utf8=False,
                    column_types=kinds,
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
        with closing(_objects(shard.path)) as lines:
            return list(dict.fromkeys(name for row in islice(lines, 100) for name in row))

    def batches(self, shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        start = 0
        with closing(_objects(shard.path)) as lines:
            while rows := list(islice(lines, _LINES)):
                yield start, from_objects(rows, columns, shard.kept)
                start += len(rows)

    def looked_through(self, shard: Shard, text_column: str, keep: Sequence[str]) -> tuple[int, dict[str, str]]:
        count, found = 0, [dict.fromkeys(keep, kept.ABSENT)]
        with closing(_objects(shard.path)) as lines:
            while rows := list(islice(lines, _LINES)):
                count += len(rows)
                found.append(kept.of_objects(rows, keep))
        return count, kept.of_parts(found)


def _objects(path: str) -> Generator[dict[str, Any], None, None]:
    """The objects of a file of JSON lines; blank lines are none. Raises ShardError with the line's number."""
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
            yield row


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
    """Files that a column of a table names."""

    def __init__(self, table: Format, shard: Shard, column: str) -> None:
        self.path = shard.path
        self._table, self._shard, self._column = table, shard, column
        self._files = NamedFiles(shard)
        self._names: list[str | None] | None = None

    @property
    def rows(self) -> int:  # type: ignore[override]
        return len(self._all())

    def _all(self) -> list[str | None]:
        """All names: they are short, and a table is read from its start in any case."""
        if self._names is None:
            parts = [types.text(b.column(0))[0] for _, b in self._table.batches(self._shard, [self._column])]
            self._names = [name for part in parts for name in part.to_pylist()]
        return self._names

    def read(self, rows: Iterable[int]) -> Iterator[StoredImage]:
        asked, names = iter(rows), self._all()
        while some := list(islice(asked, 16)):
            for row in some:
                self.check_row(row)
            yield from self._files.read([names[row] for row in some])

    def close(self) -> None:
        self._files.close()
