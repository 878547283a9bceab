"""Formats whose rows are samples of several parts, found through an index that the plan has written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa

from i2e_pipeline.inputs import samples
from i2e_pipeline.inputs.shard import Format, Shard, ShardChanged, opened_index

_ROWS = 1024
"""Samples whose texts are held at a time."""

Parts = Callable[[pa.Table, str], Iterator[bytes | None]]
"""(rows of the index, one of samples.PARTS) to the bytes of that part of each; None where a sample lacks it."""


class Indexed(Format):
    """What they share. The index has a column `key` and a row per sample."""

    @abstractmethod
    def parts(self, shard: Shard) -> AbstractContextManager[Parts]:
        """A shard that is open for its parts."""

    def batches(self, shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        index = read_index(shard)
        yield from self._of(shard, index, np.arange(index.num_rows), columns)

    def rows(self, shard: Shard, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        index, wanted = read_index(shard), np.asarray(rows, dtype=np.int64)
        if len(wanted) and wanted[-1] >= index.num_rows:
            raise ShardChanged(
                f"{shard.path} has {index.num_rows} rows and row {wanted[-1]} was wanted: it has changed"
            )
        for _, batch in self._of(shard, index, wanted, columns):
            yield batch

    def names(self, shard: Shard) -> list[str]:
        with self.parts(shard) as read:
            return samples.names_of(list(read(read_index(shard).slice(0, samples.LOOKED_AT), "json")))

    def _of(
        self, shard: Shard, index: pa.Table, rows: np.ndarray, columns: Sequence[str]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        with self.parts(shard) as read:
            for at in range(0, len(rows), _ROWS):
                of_rows = index.take(pa.array(rows[at : at + _ROWS]))
                texts, facts = (list(read(of_rows, part)) for part in ("text", "json"))
                keys = of_rows.column("key").to_pylist()
                yield int(rows[at]), samples.columns_of(shard, keys, texts, facts, columns)


def read_index(shard: Shard) -> pa.Table:
    """What the plan has written of a shard. Raises ShardError where it is gone."""
    with opened_index(shard) as file:
        return file.read()
