"""Parquet: img2dataset's, Hugging Face's, and whatever else has a text and an image column.

Columns are read in bounded memory: never more than a chunk of a row group at a time. An image column holds bytes,
Hugging Face's struct<bytes, path>, or the path of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.stored_image import StoredImage
from i2e_pipeline.inputs import columns as types
from i2e_pipeline.inputs import kept
from i2e_pipeline.inputs.named_files import NamedFiles
from i2e_pipeline.inputs.shard import Format, Images, Look, Shard, ShardChanged, ShardError

if TYPE_CHECKING:
    from i2e_pipeline.core.config import PairsConfig
    from i2e_pipeline.inputs.shard import Source

CHUNK_BYTES = 16 << 20
"""About how much of the image column is held decoded at a time."""
_CHUNK_ROWS = 64
_TEXT_CHUNK_ROWS = 4096
MOST_BYTES = 1 << 28
"""What decoded rows may hold together at most. A file of a megabyte can say one value of 100 MB a million times."""


class Parquet(Format):
    name, suffixes, kind = "parquet", (".parquet", ".pq", ".parq"), "Parquet file"

    def look(self, source: Source, pairs: PairsConfig) -> Look:
        filesystem, inner = files.open_filesystem(source.path)
        with filesystem.open_input_file(inner) as stream:
            footer = pq.ParquetFile(stream)
            schema, folders = footer.schema_arrow, types.of_folders(source.path)
            further = [name for name in folders if name not in schema.names]
            kinds = kept.of_schema(schema, pairs, source.path)
            kinds |= {n: kept.of_cells(pa.array([folders[n]], pa.string())) for n in further if n in kinds}
            schema = pa.schema([*schema, *(pa.field(name, pa.string()) for name in further)])
            _check_rows(source.path, footer.metadata.num_rows, sum(_rows_of_groups(footer)))
            return Look(footer.metadata.num_rows, schema, kinds=kinds)

    def batches(self, shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        filesystem, inner = files.open_filesystem(shard.path)
        with filesystem.open_input_file(inner) as stream:
            file, start = pq.ParquetFile(stream), 0
            here, folders = [c for c in columns if c in file.schema_arrow.names], types.of_folders(shard.path)
            for batch in _named(shard.path, _together(_decoded(stream, file, here))):
                yield start, types.only(batch, columns, folders)
                start += batch.num_rows
            if here:
                _check_rows(shard.path, file.metadata.num_rows, start)

    def rows(self, shard: Shard, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Row groups that hold none of the rows are not read."""
        yield from selected_rows(shard.path, rows, columns)

    def names(self, shard: Shard) -> list[str]:
        filesystem, inner = files.open_filesystem(shard.path)
        with filesystem.open_input_file(inner) as stream:
            return list(dict.fromkeys([*pq.read_schema(stream).names, *types.of_folders(shard.path)]))

    def images(self, shard: Shard, column: str) -> Images:
        return ParquetImages(shard, column)


def _rows_of_groups(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]


def _check_rows(path: str, said: int, found: int) -> None:
    """Raise ShardError where a footer says another number of rows than there are: none of them is lost in silence."""
    if said != found:
        raise ShardError(f"{path} says that it has {said} rows, and has {found}: mend it, or leave it out")


def selected_rows(path: str, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """These rows of a Parquet file, in rising order, of these columns. Raises ShardChanged where a row is not there."""
    wanted = np.asarray(rows, dtype=np.int64)
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        here, folders = [c for c in columns if c in file.schema_arrow.names], types.of_folders(path)
        sizes = _rows_of_groups(file)
        if len(wanted) and wanted[-1] >= sum(sizes):
            raise ShardChanged(f"{path} has {sum(sizes)} rows and row {wanted[-1]} was wanted: it has changed")
        start = 0
        for group, size in enumerate(sizes):
            inside = wanted[(wanted >= start) & (wanted < start + size)]
            if len(inside):
                offset = start
                at_once = rows_at_once(stream, file.metadata.row_group(group), here, _CHUNK_ROWS)
                decoded = file.iter_batches(at_once, row_groups=[group], columns=here, use_threads=False)
                for batch in _named(path, decoded):
                    now = inside[(inside >= offset) & (inside < offset + batch.num_rows)] - offset
                    if len(now):
                        yield types.only(batch, columns, folders).take(pa.array(now))
                    offset += batch.num_rows
            start += size


def _named(path: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches; what Arrow says of a damaged page names the file."""
    while True:
        try:
            batch = next(batches, None)
        except MemoryError:
            raise
        except (OSError, pa.ArrowException) as error:
            said = f"input shard {path} cannot be read ({error}): mend it, or leave it out"
            # What a store says may pass, and is tried again.
            may_pass = isinstance(error, OSError) and not files.is_local(path)
            raise (OSError(said) if may_pass else ShardError(said)) from None
        if batch is None:
            return
        yield batch


def _decoded(stream: Any, file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for group in range(file.metadata.num_row_groups):
        rows = rows_at_once(stream, file.metadata.row_group(group), columns, _TEXT_CHUNK_ROWS)
        yield from file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)


def _together(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about _TEXT_CHUNK_ROWS, as long as what they hold is no more than a chunk."""
    waiting: list[pa.RecordBatch] = []
    rows = held = 0
    for batch in batches:
        if waiting and (rows + batch.num_rows > _TEXT_CHUNK_ROWS or held + batch.nbytes > CHUNK_BYTES):
            yield _joined(waiting)
            waiting, rows, held = [], 0, 0
        waiting.append(batch)
        rows, held = rows + batch.num_rows, held + batch.nbytes
    if waiting:
        yield _joined(waiting)


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def rows_at_once(stream: Any, group: pq.RowGroupMetaData, columns: Sequence[str], most: int) -> int:
    """How many rows of a row group may be decoded together, at most `most`, so that they hold about MOST_BYTES at most.

    A value of a dictionary is stored once and decoded for each row that has it, and so is the beginning that a value
    shares with the one before (DELTA_BYTE_ARRAY). So each row may be as large as the largest value that is stored.
    """
    each = 0
    for number in range(group.num_columns):
        chunk = group.column(number)
        path = chunk.path_in_schema
        if not any(path == column or path.startswith(f"{column}.") for column in columns):
            continue
        shared = "DELTA_BYTE_ARRAY" in chunk.encodings
        stored = chunk.total_uncompressed_size
        each += stored if shared else stored // max(1, group.num_rows) + _of_dictionary(stream, chunk)
    return int(np.clip(MOST_BYTES // max(1, each), 1, most))


def _of_dictionary(stream: Any, chunk: pq.ColumnChunkMetaData) -> int:
    """Bytes of a chunk's dictionary, unpacked, as its page says; 0 where it begins with another page.

    Of the page's header (Thrift's compact protocol) these are the first two fields: its type, its size unpacked.
    """
    starts = [at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at]
    if not starts:
        return 0
    head = bytes(stream.read_at(16, min(starts)))
    if head[:3] != b"\x15\x04\x15":  # an i32, of which 2 is a dictionary page; another i32
        return 0
    size = 0
    for place, byte in enumerate(head[3:8]):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            break
    return size >> 1  # zigzag


class ParquetImages(Images):
    """The stored images of one Parquet file.

    `read` may be called again and again with growing row numbers and goes on where it was: a row group is decoded once,
    a chunk of about CHUNK_BYTES at a time, up to the last row that is asked for.
    """

    def __init__(self, shard: Shard, column: str) -> None:
        self.path = path = shard.path
        filesystem, inner = files.open_filesystem(path)
        try:
            self._source = filesystem.open_input_file(inner)
        except FileNotFoundError:
            raise ShardError(f"input shard {path}: no such file") from None
        try:
            # buffer_size: a column chunk is streamed page by page instead of being held whole (1 GB per 10,000 photos).
            self._file = pq.ParquetFile(self._source, buffer_size=1 << 20, pre_buffer=False)
            self._columns, self._named = _image_columns(self._file.schema_arrow, column, path)
        except pa.ArrowException as error:
            self._source.close()
            raise ShardError(f"input shard {path} is not a Parquet file: {error}") from None
        except OSError as error:
            self._source.close()
            if files.is_local(path):
                raise ShardError(f"input shard {path} is not a Parquet file: {error}") from None
            raise
        except ShardError:
            self._source.close()
            raise
        groups = _rows_of_groups(self._file)
        self._ends = np.cumsum(groups, dtype=np.int64)
        self.rows = int(self._ends[-1]) if groups else 0
        self._files = NamedFiles(shard)
        self.named = self._named
        self._group = -1
        self._chunks: Iterator[pa.RecordBatch] = iter(())
        self._chunk: Any = None
        self._names: Any = None
        """Paths of the chunk's rows, where the column has them."""
        self._chunk_start = 0
        self._chunk_end = 0

    def read(self, rows: Iterable[int]) -> Iterator[StoredImage]:
        if self._named:
            yield from self._read_named(rows)
            return
        for row in rows:
            self._go_to(row)
            yield self._chunk[row - self._chunk_start].as_py() if self._chunk is not None else None

    def _read_named(self, rows: Iterable[int]) -> Iterator[StoredImage]:
        """Of rows of a chunk, those without bytes are files, which are read side by side."""
        waiting: list[tuple[bytes | None, str | None]] = []
        chunk = -1
        for row in rows:
            if len(waiting) >= _CHUNK_ROWS // 4 or chunk != self._chunk_start:
                yield from self._resolved(waiting)
                waiting = []
            self._go_to(row)
            chunk, at = self._chunk_start, row - self._chunk_start
            stored = self._chunk[at].as_py() if self._chunk is not None else None
            waiting.append((stored, self._names[at].as_py() if stored is None else None))
        yield from self._resolved(waiting)

    def _resolved(self, waiting: list[tuple[bytes | None, str | None]]) -> Iterator[StoredImage]:
        read = self._files.read([name for stored, name in waiting if stored is None])
        for stored, _ in waiting:
            yield next(read) if stored is None else stored

    def _go_to(self, row: int) -> None:
        self.check_row(row)
        group = int(np.searchsorted(self._ends, row, side="right"))
        if group != self._group or row < self._chunk_start:
            self._open_group(group)
        while row >= self._chunk_end:
            self._next_chunk()

    def _open_group(self, group: int) -> None:
        self._group = group
        self._chunk = self._names = None
        self._chunk_start = self._chunk_end = int(self._ends[group - 1]) if group else 0
        metadata = self._file.metadata.row_group(group)
        stored = sum(
            metadata.column(c).total_uncompressed_size
            for c in range(metadata.num_columns)
            if metadata.column(c).path_in_schema in self._columns
        )
        per_row = max(1, stored // max(1, metadata.num_rows))
        self._chunks = self._file.iter_batches(
            batch_size=min(
                int(np.clip(CHUNK_BYTES // per_row, 1, 1024)),
                rows_at_once(self._source, metadata, self._columns, 1024),
            ),
            row_groups=[group],
            columns=self._columns,
            use_threads=False,
        )

    def _next_chunk(self) -> None:
        self._chunk = self._names = None  # let go of the old chunk before the next one is decoded
        batch = next(_named(self.path, self._chunks), None)
        if batch is None:
            raise ShardError(f"input shard {self.path} has fewer rows than it says: mend it, or leave it out")
        values = types.decoded(batch.column(0))
        if pa.types.is_struct(values.type):
            held = {field.name: n for n, field in enumerate(values.type)}
            # A row whose struct is null has neither.
            fields = values.flatten()
            self._chunk = fields[held["bytes"]] if "bytes" in held else None
            self._names = types.text(fields[held["path"]])[0] if self._named else None
        elif self._named:
            self._names = types.text(values)[0]
        else:
            self._chunk = values
        self._chunk_start, self._chunk_end = self._chunk_end, self._chunk_end + batch.num_rows

    def close(self) -> None:
        self._chunks = iter(())
        self._chunk = None
        self._files.close()
        self._source.close()


def _image_columns(schema: pa.Schema, name: str, path: str) -> tuple[list[str], bool]:
    """The leaves of the image column that are read, and whether they hold paths."""
    if name not in schema.names:
        raise ShardError(
            f"input shard {path} has no column `{name}` (pairs.image_column); it has {', '.join(schema.names)}"
        )
    kind = types.plain(schema.field(name).type)
    if types.is_bytes(kind) or pa.types.is_null(kind):
        return [name], False
    if types.is_string(kind):
        return [name], True
    if pa.types.is_struct(kind):
        held = {field.name: field.type for field in kind}
        with_path = "path" in held and types.is_string(held["path"])
        if ("bytes" in held and types.is_bytes(held["bytes"])) or with_path:
            leaves = [part for part in ("bytes", "path") if part in held and (part == "bytes" or with_path)]
            return [f"{name}.{leaf}" for leaf in leaves], with_path
    raise ShardError(
        f"input shard {path}: column `{name}` is {schema.field(name).type}; images are binary, struct<bytes, path>, or "
        "paths of files"
    )
