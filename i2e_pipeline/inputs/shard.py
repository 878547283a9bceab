"""The seam between input formats and everything else: a shard, its columns, and its rows' stored images.

Rows are addressed by (shard, row) whatever the format. What knows a format is a `Format`, a file each in this package;
formats.py names them all. A `Shard` is small and travels to workers, which open it there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import FileInfo
from i2e_pipeline.core.stored_image import StoredImage

if TYPE_CHECKING:
    from i2e_pipeline.core.config import PairsConfig

Captions = Literal["first", "join"]


class ShardError(I2EError, ValueError):
    """An input file that is not what the run was planned on; the message names file, value and way out."""


class ShardChanged(ShardError):
    """An input shard is not what it was when the run was planned."""


@dataclass(frozen=True)
class Shard:
    """An input shard, as a worker opens it."""

    path: str
    format: str = "parquet"
    index: str | None = None
    """Path of the index that the plan has written beside the unit, where the format has one."""
    roots: tuple[str, ...] = ()
    """Folders or URIs below which images lie that rows name by path; empty: the folder of the shard."""
    key_column: str | None = "key"
    text_column: str = "caption"
    image_column: str = "jpg"
    captions: Captions = "first"
    """What becomes of a list of captions: the first of them that holds text, or all, joined by a blank."""
    kept: tuple[str, ...] = ()
    """Columns whose values are read as they are, for the dataset to keep; of JSON, those that are no text as JSON."""


@dataclass(frozen=True)
class Source:
    """A shard as the listing finds it."""

    info: FileInfo
    format: str = "parquet"
    members: tuple[dict[str, str], ...] = ()
    """Of a shard of many files: the paths of each row's parts (samples.PARTS)."""
    sizes: tuple[int, ...] = ()
    """Bytes of their images."""

    @property
    def path(self) -> str:
        return self.info.path

    def shard(self, pairs: PairsConfig, index: str | None = None) -> Shard:
        """As workers open it."""
        return shard_of(self.path, self.format, index, pairs)


SHARD_COLUMNS = pa.schema([("path", pa.string()), ("format", pa.string()), ("index", pa.string())])
"""What a row says of its shard, where shards are many: all of them in a closure would be sent with each task."""


def of_row(row: Mapping[str, Any], settings: Shard) -> Shard:
    """The shard that a row with SHARD_COLUMNS names. `settings`: any shard read by the same settings."""
    return replace(settings, **{name: row[name] for name in SHARD_COLUMNS.names})


def shard_of(path: str, format_: str, index: str | None, pairs: PairsConfig) -> Shard:
    """A shard with what the settings say of its columns."""
    return Shard(
        path, format_, index, pairs.image_root, pairs.key_column, pairs.text_column, pairs.image_column, pairs.captions
    )


@contextmanager
def opened_index(shard: Shard) -> Iterator[pq.ParquetFile]:
    """What the plan has written of a shard. Raises ShardError where it is gone."""
    if shard.index is None:
        raise ShardError(f"{shard.path} has no index: it was not planned in this form")
    filesystem, inner = files.open_filesystem(shard.index)
    try:
        stream = filesystem.open_input_file(inner)
    except FileNotFoundError:
        raise ShardError(
            f"the index of {shard.path} is gone ({shard.index}): put it back, or use another output"
        ) from None
    with stream:
        yield pq.ParquetFile(stream, pre_buffer=False)


@dataclass(frozen=True)
class Look:
    """What a plan learns of a shard without reading its images."""

    rows: int
    schema: pa.Schema
    """Types of its columns; of those of formats without types, what the first rows show."""
    index: pa.Table | Callable[[], Iterator[pa.RecordBatch]] | None = None
    """What workers need to find rows, where the format does not say it; of what does not fit into memory, how to make
    it, at least one batch."""
    digest: str | None = None
    """32 hex characters that name the content; None: those of the file at the path."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """What the columns of `pairs.keep_columns` hold (kept.py)."""


class Images(ABC):
    """The stored images of one shard, by row number, read forward in bounded memory. A context."""

    path: str
    rows: int
    named: bool = False
    """Whether they lie in files that rows name: these may change while the shard stays what it is."""

    @abstractmethod
    def read(self, rows: Iterable[int]) -> Iterator[StoredImage]:
        """The stored image of each row, in the order asked. Rows that grow are read in one pass.

        Raises ShardChanged for a row that the shard does not have.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what is open."""

    def check_row(self, row: int) -> None:
        if not 0 <= row < self.rows:
            raise ShardChanged(
                f"input shard {self.path} has {self.rows} rows, and row {row} was asked for: "
                "the file changed since the run began"
            )

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Format(ABC):
    """One way in which people keep pairs of image and text."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """Endings of its files' names, in lower case."""
    kind: ClassVar[str]
    """What a message calls such a file."""
    looks_at_all: ClassVar[bool] = False
    """Whether a look reads a file from its beginning to its end, where it lies in an object store."""

    @abstractmethod
    def look(self, source: Source, pairs: PairsConfig) -> Look:
        """Rows, columns and content of a shard. Raises pa.ArrowException, OSError or ShardError where it cannot be
        read."""

    @abstractmethod
    def batches(self, shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, batch) over all rows, of these columns, as they are stored. Those that the shard does not have
        are null."""

    @abstractmethod
    def names(self, shard: Shard) -> list[str]:
        """Names of its columns; of formats without a schema, of those that its first rows have."""

    @abstractmethod
    def images(self, shard: Shard, column: str) -> Images:
        """The stored images. Raises ShardError where the shard cannot be opened or has none."""

    def emptied(self, records: pa.RecordBatch, mask: pa.Array) -> pa.RecordBatch | None:
        """Rows of the index, those that the mask takes without what they repeat of the input. None: the index says
        only where rows lie."""
        return None

    def rows(self, shard: Shard, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The same as `batches` for some rows, in rising order. Raises ShardChanged where one is not there."""
        wanted = np.asarray(rows, dtype=np.int64)
        seen = 0
        for start, batch in self.batches(shard, columns):
            seen = start + batch.num_rows
            here = wanted[(wanted >= start) & (wanted < seen)] - start
            if len(here):
                yield batch.take(pa.array(here))
            if len(wanted) and seen > wanted[-1]:
                return
        if len(wanted) and wanted[-1] >= seen:
            raise ShardChanged(f"{shard.path} has {seen} rows and row {wanted[-1]} was wanted: it has changed")
