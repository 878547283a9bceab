"""Open files: row groups of Parquet files that are read at any place, from a disk or a store.

The files used last stay open, with their footers. What was read of them does not stay in memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.dataset.published import DatasetError, open_with_footer

_OPEN_FILES = 64


class OpenFiles:
    """For any number of threads."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, tuple[pa.NativeFile, pq.FileMetaData]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, file: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Of a row group of a file, both by number, those columns that the file has; of a struct, `name.field`. Raises
        DatasetError where it cannot be read."""
        path = self._paths[file]

        def once() -> pa.Table:
            try:
                stream, footer = self._opened(file, path)
                # The ranges that the columns lie in are asked for at the same time, and go with this object.
                with pq.ParquetFile(stream, metadata=footer, pre_buffer=True) as parquet:
                    known = set(parquet.schema_arrow.names)
                    wanted = [c for c in columns if c.partition(".")[0] in known]
                    return parquet.read_row_group(group, columns=wanted, use_threads=False)
            except (OSError, pa.ArrowException):
                self._drop(file)
                raise

        try:
            return files.patiently(once, path)
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{path}: row group {group}: {error}") from error

    def _opened(self, file: int, path: str) -> tuple[pa.NativeFile, pq.FileMetaData]:
        with self._lock:
            if file in self._open:
                self._open.move_to_end(file)
                return self._open[file]
        opened = open_with_footer(path)
        with self._lock:
            self._open[file] = opened
            while len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)  # closed when nobody reads it any more
        return opened

    def _drop(self, file: int) -> None:
        with self._lock:
            self._open.pop(file, None)

    def close(self) -> None:
        with self._lock:
            self._open.clear()
