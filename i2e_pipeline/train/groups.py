"""Groups: the images of a row group that are trained on, as they are read.

Reads    columns of a row group, those that split it included
Writes   Group: rows, ids and labels as arrays, the other columns in Arrow's memory

A row becomes a Python object only when it is decoded. Several threads read at a time.

Legend: N images of a group that are trained on, B images of a batch, K labels of the image with most labels.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.core.splits import keys
from i2e_pipeline.dataset import split
from i2e_pipeline.dataset.published import DatasetError
from i2e_pipeline.train.open_files import OpenFiles
from i2e_pipeline.train.reinforced import Reinforced, Reinforcements
from i2e_pipeline.train.samples import Samples

_MOST = 3 / 4
"""Where fewer of a row group's images are trained on, these are copied and the others let go. To copy 64 MB of photos
costs a fiftieth of decoding them."""


@dataclass(frozen=True)
class Group:
    """The images of a row group that are trained on."""

    number: int
    first: int
    """Their first sample; they are numbered through."""
    rows_N: np.ndarray
    """int64, their numbers in the dataset"""
    ids_N2: np.ndarray
    class_NK: np.ndarray
    """int64, the most probable label first, −1 beyond the last"""
    score_NK: np.ndarray
    columns: list[pa.Array]
    place_N: np.ndarray
    """Where each of them stands in the columns."""
    reinforced: Reinforcements | None = None
    """What is stored of them beside the dataset, where that is read."""

    def __len__(self) -> int:
        return len(self.rows_N)

    def value(self, column: int, sample: int) -> bytes | str | None:
        """None where the dataset holds a null."""
        value: bytes | str | None = self.columns[column][int(self.place_N[sample - self.first])].as_py()
        return value


@dataclass(frozen=True)
class Facts:
    """What is known of the images of a batch beside their pixels and texts."""

    rows_B: np.ndarray
    ids_B2: np.ndarray
    class_BK: np.ndarray
    score_BK: np.ndarray

    @staticmethod
    def of(groups: Sequence[Group], samples: Sequence[int]) -> Facts:
        """Of the sample of each group."""
        some = groups[0]
        facts = Facts(
            np.empty(len(groups), dtype=np.int64),
            np.empty((len(groups), 2), dtype=np.uint64),
            np.empty((len(groups), some.class_NK.shape[1]), dtype=np.int64),
            np.empty((len(groups), some.score_NK.shape[1]), dtype=np.float32),
        )
        places: dict[int, list[int]] = {}
        for place, group in enumerate(groups):
            places.setdefault(group.number, []).append(place)
        for here in places.values():
            group = groups[here[0]]
            within = np.array([samples[place] for place in here]) - group.first
            facts.rows_B[here], facts.ids_B2[here] = group.rows_N[within], group.ids_N2[within]
            facts.class_BK[here], facts.score_BK[here] = group.class_NK[within], group.score_NK[within]
        return facts

    def put(self, places: np.ndarray, other: Facts) -> None:
        """Takes the other's images in these places."""
        self.rows_B[places], self.ids_B2[places] = other.rows_B, other.ids_B2
        self.class_BK[places], self.score_BK[places] = other.class_BK, other.score_BK

    def keys_B(self) -> np.ndarray:
        """uint64 that stand for the image ids in hashes."""
        return keys(self.ids_B2)

    def image_ids(self) -> tuple[bytes, ...]:
        return tuple(np.ascontiguousarray(self.ids_B2).view("V16").ravel().tolist())

    def drawn_class(self, uniform_B: np.ndarray | None) -> np.ndarray:
        """class_B: the most probable label of each image; with a number in [0, 1) each, one in proportion to the
        probabilities."""
        if uniform_B is None:
            return self.class_BK[:, 0].copy()
        until_BK = np.cumsum(self.score_BK.astype(np.float64), axis=1)
        drawn_B = (until_BK <= uniform_B[:, None] * until_BK[:, -1:]).sum(axis=1)
        last_B = (self.class_BK >= 0).sum(axis=1) - 1
        return np.asarray(self.class_BK[np.arange(len(drawn_B)), np.minimum(drawn_B, last_B)])


class Groups:
    """Reads row groups of the training; for any number of threads."""

    def __init__(self, samples: Samples, columns: list[str], reinforced: Reinforced | None = None) -> None:
        """columns      those of Group.columns; of a struct, `name.field`
        reinforced   tables that are read with them"""
        self._samples, self._columns, self._reinforced = samples, columns, reinforced
        self._files = OpenFiles([files.join(samples.published.folder, f.path) for f in samples.published.files])
        self._ends_G = np.cumsum(samples.sizes_G)
        self.reads = 0
        """Row groups read so far."""
        self._counting = threading.Lock()

    def __len__(self) -> int:
        return len(self._ends_G)

    def of(self, samples: np.ndarray) -> np.ndarray:
        """The number of each sample's row group."""
        return np.searchsorted(self._ends_G, samples, side="right")

    def bytes_of(self, number: int) -> int:
        """What a row group takes in memory, about."""
        stored = int(self._samples.group_bytes_G[number])
        if self._reinforced is not None:
            stored += int(self._samples.sizes_G[number]) * self._reinforced.bytes_of_image
        return stored

    def read(self, number: int) -> Group:
        """Raises DatasetError where it cannot be read, or is not what the index says."""
        with self._counting:
            self.reads += 1
        samples, file = self._samples, int(self._samples.group_file_G[number])
        where = samples.published.files[file].path
        table = self._table(number, [*split.COLUMNS, *self._columns])
        labelled = split.split(table, samples.rule, f"{samples.published.folder}/{where}")
        within = np.flatnonzero(labelled.side_N == split.Side.TRAINED)
        if len(within) != samples.sizes_G[number]:
            raise DatasetError(
                f"{samples.published.folder}/{where}: row group {samples.group_number_G[number]} has {len(within):,} "
                f"images to train on, and the index of the dataset says {samples.sizes_G[number]:,}: it was written "
                f"over after that; remove {samples.published.folder}/_index (where that cannot be written, it lies in "
                "train.folder) and start again"
            )
        class_NK, score_NK = labelled.padded(within, samples.labels_per_image)
        columns, place_N = [column_of(table, column) for column in self._columns], within
        if len(within) < _MOST * table.num_rows:
            columns, place_N = [column.take(pa.array(within)) for column in columns], np.arange(len(within))
        reinforced = None
        if self._reinforced is not None:
            place = int(samples.group_number_G[number])
            reinforced = self._reinforced.read(file, place, labelled.ids_N2, within)
        return Group(
            number,
            int(self._ends_G[number - 1]) if number else 0,
            within + samples.group_start_G[number],
            labelled.ids_N2[within],
            class_NK,
            score_NK,
            columns,
            place_N,
            reinforced,
        )

    def stored(self, number: int, within: np.ndarray) -> list[bytes | None]:
        """Stored bytes of any rows of a row group, counted within it."""
        table = self._table(number, ["image.bytes"])
        stored: list[bytes | None] = column_of(table, "image.bytes").take(pa.array(within)).to_pylist()
        return stored

    def _table(self, number: int, columns: Sequence[str]) -> pa.Table:
        samples = self._samples
        return self._files.read(int(samples.group_file_G[number]), int(samples.group_number_G[number]), columns)

    def close(self) -> None:
        self._files.close()


def column_of(table: pa.Table, column: str) -> pa.Array:
    name, _, child = column.partition(".")
    values = table.column(name).combine_chunks()
    # Of a struct that is null the field is not: flatten gives nulls where the image is one.
    values = values.flatten()[values.type.get_field_index(child)] if child else values
    # What is taken of a column of photos may exceed the 2 GiB that offsets of 32 bits reach.
    return values.cast(pa.large_binary()) if pa.types.is_binary(values.type) else values
