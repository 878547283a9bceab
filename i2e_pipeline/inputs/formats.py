"""All formats of input, and the calls through which everything else reads shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import pyarrow as pa

from i2e_pipeline.core.stored_image import StoredImage
from i2e_pipeline.inputs import columns as types
from i2e_pipeline.inputs.parquet import Parquet
from i2e_pipeline.inputs.shard import Format, Images, Shard
from i2e_pipeline.inputs.sidecars import Sidecars
from i2e_pipeline.inputs.tables import Csv, JsonLines
from i2e_pipeline.inputs.webdataset import WebDataset

FORMATS: dict[str, Format] = {f.name: f for f in (Parquet(), WebDataset(), Csv(), JsonLines(), Sidecars())}
"""By the name that `pairs.format` and a unit's record give it."""


def columns(shard: Shard, names: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, batch) over all rows of a shard, of these columns as they are stored; null where it has none."""
    yield from FORMATS[shard.format].batches(shard, names)


def names(shard: Shard) -> set[str]:
    """Names of the columns of a shard."""
    return set(FORMATS[shard.format].names(shard))


def rows(shard: Shard, numbers: Sequence[int], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The same of some rows, in rising order. Raises ShardChanged where one is not there."""
    yield from FORMATS[shard.format].rows(shard, numbers, names)


def texts(shard: Shard, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
    """The batch with each column as valid text, and how many values of which columns had to be mended."""
    made = [types.text(column, shard.captions) for column in batch.columns]
    names = batch.schema.names
    mended = {name: count for name, (_, count) in zip(names, made, strict=True) if count}
    return pa.RecordBatch.from_arrays([column for column, _ in made], names=names), mended


def images(shard: Shard, column: str | None = None) -> Images:
    """The stored images of a shard. Raises ShardError where it cannot be opened or has none."""
    return FORMATS[shard.format].images(shard, column or shard.image_column)


class StoredImages:
    """The stored images of rows of several shards, one shard open at a time. A context: it closes what it opened."""

    def __init__(self, open_shard: Callable[[int], Images]) -> None:
        self._open_shard = open_shard
        self._shard: int | None = None
        self._reader: Images | None = None
        self.named: dict[int, bool] = {}
        """Of each shard that was opened, `Images.named`."""

    def of(self, rows: pa.RecordBatch) -> Iterator[StoredImage]:
        """The stored image of each row of a batch with the columns shard and row, in its order.

        Rows in the order of shard and row (`Run.in_shard_order`) are read in one pass over the files.
        """
        return self.at(list(zip(rows.column("shard").to_pylist(), rows.column("row").to_pylist(), strict=True)))

    def at(self, places: Sequence[tuple[int, int]]) -> Iterator[StoredImage]:
        """The same for (shard, row) places."""
        for shard, of_shard in groupby(places, key=lambda place: place[0]):
            if shard != self._shard or self._reader is None:
                self.close()
                self._reader, self._shard = self._open_shard(shard), shard
                self.named[shard] = self._reader.named
            yield from self._reader.read([row for _, row in of_shard])

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> StoredImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
