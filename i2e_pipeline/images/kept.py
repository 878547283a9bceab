"""Kept vectors: what is known of images that an earlier run has encoded.

Reads    image_vectors of units, whatever links they were scored with

A vector depends on the image's bytes and the model alone, so other candidates need no encoding. A task finds its rows
by the statistics of the files' row groups: no byte of an image is read, and no vector crosses a shuffle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.ids import ID_BYTES
from i2e_pipeline.core.schemas import ID, IMAGE_VECTORS

_GROUPS_HELD = 4
"""Row groups that a task holds: its rows lie in one or two, which follow each other."""


@dataclass(frozen=True)
class _Group:
    """A row group: where it is, and the shards and rows between which its rows lie."""

    path: str
    number: int
    rows: int
    shards: tuple[int, int]
    row_numbers: tuple[int, int]

    def may_hold(self, shard: int, first: int, last: int) -> bool:
        low, high = self.shards
        if not low <= shard <= high:
            return False
        return low < high or (self.row_numbers[0] <= last and first <= self.row_numbers[1])


class KeptVectors:
    """Rows of image_vectors, by place or by the image's content. Files that are gone raise FileNotFoundError."""

    def __init__(self, paths: Mapping[int, Sequence[str]]) -> None:
        """`paths`: shard to the files that hold rows of it. Footers are read as shards are asked for."""
        self._paths = paths
        self._held: OrderedDict[_Group, pa.Table] = OrderedDict()
        self._known: tuple[Sequence[str], np.ndarray, np.ndarray] | None = None

    def paths(self, shard: int) -> Sequence[str]:
        """The files that hold rows of a shard."""
        return self._paths.get(shard, ())

    def at(self, shard_N: np.ndarray, row_N: np.ndarray) -> pa.Table:
        """IMAGE_VECTORS of these places, in no order; places that have none are passed over."""
        found = [IMAGE_VECTORS.empty_table()]
        for shard in np.unique(shard_N).tolist():
            wanted = row_N[shard_N == shard]
            first, last = int(wanted.min()), int(wanted.max())
            for group in (group for path in self._paths.get(shard, ()) for group in _groups(path)):
                if group.may_hold(shard, first, last):
                    held = self._table(group)
                    here = (held["shard"].to_numpy() == shard) & np.isin(held["row"].to_numpy(), wanted)
                    found.append(held.filter(pa.array(here)))
        return pa.concat_tables(found)

    def of(self, shard: int, image_ids: Sequence[bytes]) -> pa.Table:
        """IMAGE_VECTORS of these images in the files of a shard, one row of each, in no order; images that have none
        are passed over.

        The first call reads the ids of all rows of these files: 24 bytes of each stay in memory until other files are
        asked for. A row group is read at most once a call.
        """
        found = [IMAGE_VECTORS.empty_table()]
        paths = self._paths.get(shard, ())
        known, place_N = self._ids(paths)
        wanted = np.unique(_comparable(pa.array(image_ids, ID)))
        if not len(known) or not len(wanted):
            return found[0]
        at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        places = np.sort(place_N[at[known[at] == wanted]])
        end = 0
        for group in _all_groups(paths):
            start, end = end, end + group.rows
            inside = places[(places >= start) & (places < end)] - start
            if len(inside):
                found.append(self._table(group).take(pa.array(inside)))
        return pa.concat_tables(found)

    def _ids(self, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all rows, sorted, and which row each is of."""
        if self._known is None or self._known[0] != paths:
            parts = [
                _comparable(_read(group, ("image_id",))["image_id"].combine_chunks()) for group in _all_groups(paths)
            ]
            ids = np.concatenate(parts) if parts else np.empty(0, f"S{ID_BYTES}")
            order = np.argsort(ids, kind="stable")
            self._known = paths, ids[order], order
        return self._known[1:]

    def _table(self, group: _Group) -> pa.Table:
        if group not in self._held:
            self._held[group] = _read(group, IMAGE_VECTORS.names)
            if len(self._held) > _GROUPS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        return self._held[group]


def _all_groups(paths: Sequence[str]) -> list[_Group]:
    return [group for path in paths for group in _groups(path)]


def _comparable(ids: pa.Array) -> np.ndarray:
    """Ids as fixed bytes, which numpy sorts and compares."""
    fixed = ids.cast(ID)
    return np.frombuffer(fixed.buffers()[1], f"S{ID_BYTES}")[fixed.offset : fixed.offset + len(fixed)]


@lru_cache(maxsize=4096)
def _groups(path: str) -> tuple[_Group, ...]:
    """The row groups of a file. It is never written again under its name, so a worker reads its footer once."""
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        footer = pq.read_metadata(stream)
    place = [footer.schema.names.index(name) for name in ("shard", "row")]
    found = []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        shards, rows = (_bounds(group.column(column).statistics) for column in place)
        found.append(_Group(path, number, group.num_rows, shards, rows))
    return tuple(found)


def _bounds(statistics: pq.Statistics | None) -> tuple[int, int]:
    if statistics is None or not statistics.has_min_max:
        return (0, 1 << 62)
    return (statistics.min, statistics.max)


def _read(group: _Group, columns: Sequence[str]) -> pa.Table:
    filesystem, inner = files.open_filesystem(group.path)
    with filesystem.open_input_file(inner) as stream:
        table = pq.ParquetFile(stream, pre_buffer=False).read_row_group(group.number, list(columns))
    return table.cast(pa.schema([IMAGE_VECTORS.field(name) for name in columns]))
