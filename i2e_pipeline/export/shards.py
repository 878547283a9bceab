"""Which rows of a published dataset stand in which shard of an export, and those rows.

A plan reads the footers and two small columns, so that each shard is known before any is written: shards are made in
any order, by many threads, and again after a kill, with the same rows. Rows keep the order of the dataset's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.ids import hex_of
from i2e_pipeline.core.schemas import ID, IMAGES
from i2e_pipeline.core.splits import TEST, TRAIN, VALIDATION
from i2e_pipeline.dataset.published import ImageFile, Published

SPLITS = (TRAIN, VALIDATION, TEST)
_READS = 32
"""Files that are looked into at the same time, in a plan."""
_ROWS = 100
"""Rows that are held beside their row group."""
_ID = r"^[0-9a-f]{32}$"


class ExportError(I2EError, RuntimeError):
    """An export that cannot be made, or that would mix or destroy data; the message says the way out."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a row group: of those of the shard's split, the ones from `first` to before `stop`."""

    file: int
    """Index in Published.files."""
    group: int
    first: int
    stop: int


@dataclass(frozen=True)
class Shard:
    split: str
    number: int
    of: int
    """How many shards the split has."""
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(p.stop - p.first for p in self.pieces)


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset by file, row group and split."""

    published: Published
    schema: pa.Schema
    """IMAGES, and the columns that the dataset keeps of its source."""
    images: tuple[np.ndarray, ...]
    """Of each file, rows (row groups, SPLITS)."""
    labels: tuple[np.ndarray, ...]
    """The same of their labels."""

    def count(self, split: str) -> tuple[int, int]:
        """(images, labels) of a split."""
        at = SPLITS.index(split)
        images, labels = (sum(int(per_group[:, at].sum()) for per_group in of) for of in (self.images, self.labels))
        return images, labels

    def shards(self, split: str, shard_bytes: int) -> list[Shard]:
        """The shards of a split, all of about the same size and none much larger than `shard_bytes`; stored bytes, as
        far as the footers tell them."""
        rows, sizes, place = self._groups(split)
        if not len(rows):
            return []
        rows_to, bytes_to = (np.concatenate([[0], np.cumsum(of)]) for of in (rows, sizes))
        number = int(min(rows_to[-1], max(1, -(-bytes_to[-1] // shard_bytes))))
        ends = np.interp(np.arange(1, number) / number * bytes_to[-1], bytes_to, rows_to).astype(np.int64)
        cuts = np.unique(np.concatenate([[0], ends, [rows_to[-1]]]))
        return [
            Shard(split, n, len(cuts) - 1, tuple(self._pieces(cuts[n], cuts[n + 1], rows_to, place)))
            for n in range(len(cuts) - 1)
        ]

    def _groups(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the row groups that hold rows of the split: how many, their bytes, and (file, row group)."""
        at = SPLITS.index(split)
        rows = np.concatenate([counts[:, at] for counts in self.images])
        of_files = self.published.files
        whole = np.array([n for f in of_files for n in f.row_group_rows], dtype=np.float64)
        sizes = np.array([n for f in of_files for n in f.row_group_bytes], dtype=np.float64) * rows / whole.clip(1)
        place = np.array([(n, g) for n, f in enumerate(of_files) for g in range(len(f.row_group_rows))], dtype=np.int64)
        held = rows > 0
        return rows[held], np.maximum(sizes[held], 1), place.reshape(-1, 2)[held]

    @staticmethod
    def _pieces(first: int, stop: int, rows_to: np.ndarray, place: np.ndarray) -> Iterator[Piece]:
        begin = int(np.searchsorted(rows_to, first, side="right")) - 1
        for n in range(begin, len(place)):
            if rows_to[n] >= stop:
                return
            here = int(max(first, rows_to[n]) - rows_to[n])
            yield Piece(int(place[n, 0]), int(place[n, 1]), here, int(min(stop, rows_to[n + 1]) - rows_to[n]))

    @cached_property
    def _strings(self) -> list[int]:
        return [n for n, field in enumerate(self.schema) if pa.types.is_string(field.type)]

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        """The rows of a shard, with `schema`, some at a time: one file is open, one row group is held.

        Raises ExportError where they are not what the schema says, or an id is none that can name a file.
        """
        opened = None
        try:
            for file in dict.fromkeys(piece.file for piece in shard.pieces):
                opened = self.published.open(self.published.files[file])
                for piece in (p for p in shard.pieces if p.file == file):
                    seen = 0
                    for batch in opened.iter_batches(_ROWS, row_groups=[piece.group], use_threads=False):
                        ours = batch.filter(pc.equal(batch.column("split"), shard.split))
                        first, stop = (min(max(at - seen, 0), ours.num_rows) for at in (piece.first, piece.stop))
                        seen += ours.num_rows
                        if stop > first:
                            yield self._checked(ours.slice(first, stop - first), self.published.files[file])
                        if seen >= piece.stop:
                            break
                opened.close()
        finally:
            if opened is not None:
                opened.close()

    def _checked(self, batch: pa.RecordBatch, file: ImageFile) -> pa.RecordBatch:
        named = f"{self.published.folder}/{file.path}"
        try:
            batch = conformed(batch, self.schema)
            batch.validate(full=True)  # a text that is no UTF-8 among others
        except pa.ArrowException as error:
            raise ExportError(f"{named} holds rows that are none of a dataset ({error}): publish it again") from None
        ids = batch.column("image_id")
        if not pc.all(pc.match_substring_regex(ids, _ID)).as_py():
            wrong = ids.filter(pc.invert(pc.match_substring_regex(ids, _ID)))[0].as_py()
            raise ExportError(
                f"{named}: image_id {wrong[:80]!r} is not 32 hex digits, and files are named by it: publish it again"
            )
        return batch


def conformed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows with exactly these columns: ids in hex digits, null where a column is missing."""
    columns = []
    for field in schema:
        if field.name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(field.name)
        if pa.types.is_string(field.type) and (column.type == ID or pa.types.is_binary(column.type)):
            column = hex_of(column)
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def rows_of(published: Published) -> Rows:
    """Looks into every file of a dataset, some at a time. Raises ExportError for a format without the column `split`,
    and for a split that is none."""
    with ThreadPoolExecutor(_READS) as pool:
        looks = list(pool.map(lambda file: _look(published, file), published.files))
    own = pa.unify_schemas([IMAGES, *dict.fromkeys(schema for schema, _, _ in looks)], promote_options="permissive")
    return Rows(published, own, tuple(images for _, images, _ in looks), tuple(labels for _, _, labels in looks))


def _look(published: Published, file: ImageFile) -> tuple[pa.Schema, np.ndarray, np.ndarray]:
    """The columns of a file that are its source's, and the counts of `Rows`."""
    shape = (len(file.row_group_rows), len(SPLITS))
    images, labels = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    with published.open(file) as opened:
        if "split" not in opened.schema_arrow.names:
            raise ExportError(
                f"{published.folder} is of format 1, which has no splits: `i2e run` makes it one of today's. As plain "
                "Parquet, and whole, it is exported as it is"
            )
        for group in range(len(images)):
            table = opened.read_row_group(group, columns=["split", "labels"])
            per_row = pc.fill_null(pc.list_value_length(table.column("labels")), 0)
            split = table.column("split")
            for n, name in enumerate(SPLITS):
                here = pc.fill_null(pc.equal(split, name), False)
                images[group, n] = pc.sum(here).as_py() or 0
                labels[group, n] = pc.sum(per_row.filter(here)).as_py() or 0
            if images[group].sum() != table.num_rows:
                other = sorted({str(value) for value in pc.unique(split).to_pylist()} - {*SPLITS})
                raise ExportError(f"{published.folder}/{file.path}: split {other[0]!r} is none of {', '.join(SPLITS)}")
        further = [f for f in opened.schema_arrow if f.name not in IMAGES.names and f.name != "unit"]
    return pa.schema(further).remove_metadata(), images, labels


def in_order(splits: Sequence[str]) -> tuple[str, ...]:
    """The splits that are named, each once, as SPLITS has them. Raises ExportError for one that is none."""
    if wrong := [split for split in splits if split not in SPLITS]:
        raise ExportError(f"--split {wrong[0]}: it is one of {', '.join(SPLITS)}")
    return tuple(split for split in SPLITS if split in splits)
