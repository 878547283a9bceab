"""Reads columns of input shards in bounded memory: never more than a chunk of a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files

if TYPE_CHECKING:
    from pyspark.sql import Column

_CHUNK_ROWS = 64
_TEXT_CHUNK_ROWS = 4096


class ShardChanged(RuntimeError):
    """An input shard is not what it was when the run was planned."""


class RowBlocks:
    """Rows of shards dealt to tasks: a task has a run of rows of one large shard, or several small shards whole."""

    def __init__(self, shards: Sequence[tuple[int, int, int]]) -> None:
        """`shards`: number, rows, and how many of its rows a task may have."""
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
        """The same for Spark, from the columns shard and row."""
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
