"""Reads columns of input shards in bounded memory: never more than a chunk of a row group at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError

if TYPE_CHECKING:
    from pyspark.sql import Column

CHUNK_BYTES = 16 << 20
"""About how much of the image column is held decoded at a time."""
_CHUNK_ROWS = 64
_TEXT_CHUNK_ROWS = 4096


class ShardChanged(I2EError, RuntimeError):
    """An input shard is not what it was when the run was planned."""


class RowBlocks:
    """How rows of shards are dealt to tasks: a task has rows of one large shard that follow each other, or several
    small shards as a whole."""

    def __init__(self, shards: Sequence[tuple[int, int, int]]) -> None:
        """`shards`: of each its number, its rows, and how many of its rows one task may have."""
        self.first: dict[int, int] = {}
        self.size: dict[int, int] = {}
        self.count = 0
        room = 0.0
        for shard, rows, size in shards:
            share = rows / size
            if share <= room:
                self.first[shard] = self.count - 1
                room -= share
            else:
                self.first[shard] = self.count
                blocks = max(1, -(-rows // size))
                self.count += blocks
                room = 1 - share if blocks == 1 else 0.0
            self.size[shard] = size

    def task(self, shard: int, row: int) -> int:
        """The task that has a row, from 0 to `count` - 1."""
        return self.first[shard] + row // self.size[shard]

    def column(self) -> Column:
        """`task` as a Spark expression over the columns shard and row."""
        from pyspark.sql import functions as F

        first, size = (
            F.create_map(*(F.lit(x) for pair in numbers.items() for x in pair)) for numbers in (self.first, self.size)
        )
        return first[F.col("shard")] + F.floor(F.col("row") / size[F.col("shard")]).cast("int")


def text_columns(path: str, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, batch) over all rows of a shard; only these columns are read."""
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        start = 0
        for batch in pq.ParquetFile(stream).iter_batches(_TEXT_CHUNK_ROWS, columns=list(columns), use_threads=False):
            yield start, batch
            start += batch.num_rows


def selected_rows(path: str, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """These rows of a shard, in rising order, of these columns. Row groups that hold none of them are not read.

    Raises ShardChanged where a row is not there.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        if len(wanted) and wanted[-1] >= sum(sizes):
            raise ShardChanged(f"{path} has {sum(sizes)} rows and row {wanted[-1]} was wanted: it has changed")
        start = 0
        for group, size in enumerate(sizes):
            inside = wanted[(wanted >= start) & (wanted < start + size)]
            if len(inside):
                offset = start
                for batch in file.iter_batches(
                    _CHUNK_ROWS, row_groups=[group], columns=list(columns), use_threads=False
                ):
                    here = inside[(inside >= offset) & (inside < offset + batch.num_rows)] - offset
                    if len(here):
                        yield batch.take(pa.array(here))
                    offset += batch.num_rows
            start += size


class ShardError(I2EError, ValueError):
    """An input file that is not what the run was planned on; the message names file, value and way out."""


class ShardReader:
    """The stored images of one input file, by row number, read forward in bounded memory.

    `read` may be called again and again with growing row numbers and goes on where it was: a row group is decoded once,
    a chunk of about CHUNK_BYTES at a time, up to the last row that is asked for.
    """

    def __init__(self, path: str, column: str) -> None:
        """`path`: a local file or a URI that pyarrow.fs knows; `column`: binary, or Hugging Face's struct<bytes, path>.

        Raises ShardError where the file is no Parquet or has no such column.
        """
        self.path = path
        filesystem, inner = files.open_filesystem(path)
        try:
            self._source = filesystem.open_input_file(inner)
        except FileNotFoundError:
            raise ShardError(f"input shard {path}: no such file") from None
        try:
            # buffer_size: a column chunk is streamed page by page instead of being held whole (1 GB per 10,000 photos).
            self._file = pq.ParquetFile(self._source, buffer_size=1 << 20, pre_buffer=False)
            self._column = _image_column(self._file.schema_arrow, column, path)
        except pa.ArrowInvalid as error:
            self._source.close()
            raise ShardError(f"input shard {path} is not a Parquet file: {error}") from None
        except ShardError:
            self._source.close()
            raise
        groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.metadata.num_row_groups)]
        self._ends = np.cumsum(groups, dtype=np.int64)
        self.rows = int(self._ends[-1]) if groups else 0
        self._group = -1
        self._chunks: Iterator[pa.RecordBatch] = iter(())
        self._chunk: Any = None
        self._chunk_start = 0
        self._chunk_end = 0

    def read(self, rows: Iterable[int]) -> Iterator[bytes | None]:
        """The stored bytes of each row, in the order asked; None where the file holds a null.

        Rows that grow are read in one pass. Raises ShardError for a row that the file does not have.
        """
        for row in rows:
            if not 0 <= row < self.rows:
                raise ShardError(
                    f"input shard {self.path} has {self.rows} rows, and row {row} was asked for: "
                    "the file changed since the run began"
                )
            group = int(np.searchsorted(self._ends, row, side="right"))
            if group != self._group or row < self._chunk_start:
                self._open_group(group)
            while row >= self._chunk_end:
                self._next_chunk()
            yield self._chunk[row - self._chunk_start].as_py()

    def _open_group(self, group: int) -> None:
        self._group = group
        self._chunk = None
        self._chunk_start = self._chunk_end = int(self._ends[group - 1]) if group else 0
        metadata = self._file.metadata.row_group(group)
        stored = sum(
            metadata.column(c).total_uncompressed_size
            for c in range(metadata.num_columns)
            if metadata.column(c).path_in_schema == self._column
        )
        per_row = max(1, stored // max(1, metadata.num_rows))
        self._chunks = self._file.iter_batches(
            batch_size=int(np.clip(CHUNK_BYTES // per_row, 1, 1024)),
            row_groups=[group],
            columns=[self._column],
            use_threads=False,
        )

    def _next_chunk(self) -> None:
        self._chunk = None  # let go of the old chunk before the next one is decoded
        batch = next(self._chunks)
        values = batch.column(0)
        self._chunk = values.field("bytes") if pa.types.is_struct(values.type) else values
        self._chunk_start, self._chunk_end = self._chunk_end, self._chunk_end + batch.num_rows

    def close(self) -> None:
        self._chunks = iter(())
        self._chunk = None
        self._source.close()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _image_column(schema: pa.Schema, name: str, path: str) -> str:
    if name not in schema.names:
        raise ShardError(
            f"input shard {path} has no column `{name}` (pairs.image_column); it has {', '.join(schema.names)}"
        )
    kind = schema.field(name).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return name
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{name}.bytes"
    raise ShardError(f"input shard {path}: column `{name}` is {kind}; images are binary or struct<bytes, path>")


class StoredImages:
    """The stored images of rows of several shards, one shard open at a time. A context: it closes what it opened."""

    def __init__(self, open_shard: Callable[[int], ShardReader]) -> None:
        self._open_shard = open_shard
        self._shard: int | None = None
        self._reader: ShardReader | None = None

    def of(self, rows: pa.RecordBatch) -> Iterator[bytes | None]:
        """The bytes of each row of a batch with the columns shard and row, in its order; None for a null.

        Rows in the order of shard and row (`Run.in_shard_order`) are read in one pass over the files.
        """
        return self.at(list(zip(rows.column("shard").to_pylist(), rows.column("row").to_pylist(), strict=True)))

    def at(self, places: Sequence[tuple[int, int]]) -> Iterator[bytes | None]:
        """The same for (shard, row) places."""
        for shard, of_shard in groupby(places, key=lambda place: place[0]):
            if shard != self._shard or self._reader is None:
                self.close()
                self._reader, self._shard = self._open_shard(shard), shard
            yield from self._reader.read([row for _, row in of_shard])

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> StoredImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
