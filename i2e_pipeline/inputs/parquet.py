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
            return Look(footer.metadata.num_rows, schema, kinds=kinds)

    def batches(self, shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        filesystem, inner = files.open_filesystem(shard.path)
        with filesystem.open_input_file(inner) as stream:
            file, start = pq.ParquetFile(stream), 0
            here, folders = [c for c in columns if c in file.schema_arrow.names], types.of_folders(shard.path)
            for batch in file.iter_batches(_TEXT_CHUNK_ROWS, columns=here, use_threads=False):
                yield start, types.only(batch, columns, folders)
                start += batch.num_rows

    def rows(self, shard: Shard, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Row groups that hold none of the rows are not read."""
        yield from selected_rows(shard.path, rows, columns)

    def names(self, shard: Shard) -> list[str]:
        filesystem, inner = files.open_filesystem(shard.path)
        with filesystem.open_input_file(inner) as stream:
            return list(dict.fromkeys([*pq.read_schema(stream).names, *types.of_folders(shard.path)]))

    def images(self, shard: Shard, column: str) -> Images:
        return ParquetImages(shard, column)


def selected_rows(path: str, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """These rows of a Parquet file, in rising order, of these columns. Raises ShardChanged where a row is not there."""
    wanted = np.asarray(rows, dtype=np.int64)
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        here, folders = [c for c in columns if c in file.schema_arrow.names], types.of_folders(path)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        if len(wanted) and wanted[-1] >= sum(sizes):
            raise ShardChanged(f"{path} has {sum(sizes)} rows and row {wanted[-1]} was wanted: it has changed")
        start = 0
        for group, size in enumerate(sizes):
            inside = wanted[(wanted >= start) & (wanted < start + size)]
            if len(inside):
                offset = start
                for batch in file.iter_batches(_CHUNK_ROWS, row_groups=[group], columns=here, use_threads=False):
                    now = inside[(inside >= offset) & (inside < offset + batch.num_rows)] - offset
                    if len(now):
                        yield types.only(batch, columns, folders).take(pa.array(now))
                    offset += batch.num_rows
            start += size


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
        except pa.ArrowInvalid as error:
            self._source.close()
            raise ShardError(f"input shard {path} is not a Parquet file: {error}") from None
        except ShardError:
            self._source.close()
            raise
        groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.metadata.num_row_groups)]
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
            batch_size=int(np.clip(CHUNK_BYTES // per_row, 1, 1024)),
            row_groups=[group],
            columns=self._columns,
            use_threads=False,
        )

    def _next_chunk(self) -> None:
        self._chunk = self._names = None  # let go of the old chunk before the next one is decoded
        batch = next(self._chunks)
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
