"""How the index of a dataset is made: each of those who make it looks at a share of the files, and one of them puts
together what they saw.

Reads    the footer of every file, and image_id, labels and split of every row, twice: which classes are asked for is
         known when all files were seen
Writes   the index's bytes (index.py)

A part is bounded as soon as its file is read (chosen.py), and the index is the same however files were dealt.

Legend: F files, G row groups, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.core.splits import keys
from i2e_pipeline.dataset import published, split
from i2e_pipeline.dataset.published import DatasetError, ImageFile
from i2e_pipeline.dataset.split import Labelled, Rule, Side
from i2e_pipeline.train.chosen import OF_A_CLASS, Chosen
from i2e_pipeline.train.index import KINDS, NEIGHBOURS, Index

FILES_AT_ONCE = 16
_MERGED_AT_ONCE = 64
_FILE_BITS = 40
"""Of a row's number while it is not known how many rows are in the files before: file · 2⁴⁰ + row."""

Together = Callable[[Callable[[int, int], Any]], list[Any]]
"""Has work(i, n) done for each share i of n, wherever that is; returns what each came to, in order."""


@dataclass(frozen=True)
class Look:
    """What was seen in some files, by their numbers."""

    files: dict[int, tuple[ImageFile, np.ndarray]]
    """With the training images of each of its row groups."""
    sides: np.ndarray
    labels: int
    labels_per_image: int
    classes_C: np.ndarray
    """uint8: 1 where an image of the class is trained on."""
    chosen: dict[str, Chosen]


@dataclass(frozen=True)
class Making:
    """What all who make an index know. Goes to them as it is: some nine bytes a class."""

    folder: str
    paths: Sequence[str]
    entity_ids_C: np.ndarray
    rule: Rule
    limit: int

    @staticmethod
    def of(folder: str, entities: pa.Table, paths: Sequence[str], config: TrainConfig) -> Making:
        ids_C = entities.column("entity_id").to_numpy()
        return Making(folder, paths, ids_C, Rule.of(entities, config.data), config.evaluate_images)

    def look(self, share: int, shares: int) -> Look:
        """What a share of the files shows."""
        classes = len(self.entity_ids_C)
        nothing = {kind: Chosen.none() for kind in KINDS}
        found = Look({}, np.zeros(len(Side), dtype=np.int64), 0, 0, np.zeros(classes, dtype=np.uint8), nothing)
        mine = range(share, len(self.paths), shares)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for start in range(0, len(mine), _MERGED_AT_ONCE):
                looks = pool.map(self._look, mine[start : start + _MERGED_AT_ONCE])
                found = _together([found, *looks], self.limit)
        return found

    def asked(self, looks: Sequence[Look]) -> np.ndarray:
        """Classes of the held-out images that are looked at."""
        return np.unique(Chosen.merged([look.chosen["images"] for look in looks]).first(self.limit).class_N)

    def neighbours(self, asked_C: np.ndarray, share: int, shares: int) -> Chosen:
        """Images of a share of the files that are trained on, of the classes that are asked for."""
        found = Chosen.none()
        mine = range(share, len(self.paths), shares)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for start in range(0, len(mine), _MERGED_AT_ONCE):
                some = pool.map(lambda n: self._neighbours(n, asked_C), mine[start : start + _MERGED_AT_ONCE])
                found = Chosen.merged([found, *some]).bounded(self.limit, _each(self.limit, asked_C))
        return found

    def whole(
        self, looks: Sequence[Look], classes: int, asked_C: np.ndarray, neighbours: Sequence[Chosen]
    ) -> tuple[list[ImageFile], Index]:
        """The files in their order, and the index.

        classes   that are trained on
        """
        all_files = {number: file for look in looks for number, file in look.files.items()}
        in_order = [all_files[number] for number in range(len(all_files))]
        first_F = np.cumsum([0, *(file.rows for file, _ in in_order)])

        def in_dataset(chosen: Chosen) -> Chosen:
            row_N = first_F[chosen.rows_N >> _FILE_BITS] + (chosen.rows_N & ((1 << _FILE_BITS) - 1))
            return replace(chosen, rows_N=row_N)

        chosen = {k: in_dataset(Chosen.merged([look.chosen[k] for look in looks]).first(self.limit)) for k in KINDS}
        nearest = Chosen.merged(neighbours).first(self.limit, _each(self.limit, asked_C))
        return [file for file, _ in in_order], Index(
            trained_G=np.concatenate([np.empty(0, dtype=np.int64), *(trained_G for _, trained_G in in_order)]),
            sides=tuple(np.sum([look.sides for look in looks], axis=0).tolist()),
            labels=sum(look.labels for look in looks),
            labels_per_image=max(look.labels_per_image for look in looks),
            trained_classes=classes,
            chosen={**chosen, NEIGHBOURS: in_dataset(nearest)},
        )

    def made(self, together: Together) -> tuple[list[ImageFile], Index]:
        """The index by workers that hand what they saw to this process."""
        looks = together(self._packed_look)
        classes_C = np.bitwise_or.reduce([look.classes_C for look in looks])
        asked_C = self.asked(looks)
        neighbours = together(_Neighbours(self, asked_C))
        return self.whole(looks, int(np.unpackbits(classes_C).sum()), asked_C, neighbours)

    def _packed_look(self, share: int, shares: int) -> Look:
        """classes_C: a bit a class"""
        look = self.look(share, shares)
        return replace(look, classes_C=np.packbits(look.classes_C))

    def _look(self, number: int) -> Look:
        path = self.paths[number]
        image_file, table = _read(self.folder, path)
        rows = split.split(table, self.rule, f"{self.folder}/{path}")
        chosen = {
            kind: _of_side(rows, side, number, self.entity_ids_C).bounded(self.limit) for kind, side in KINDS.items()
        }
        trained_N = rows.side_N == Side.TRAINED
        ends_G = np.cumsum(image_file.row_group_rows, dtype=np.int64)
        trained_until = np.concatenate([[0], np.cumsum(trained_N)])[np.concatenate([[0], ends_G]).astype(np.int64)]
        classes_C = np.zeros(len(self.entity_ids_C), dtype=np.uint8)
        classes_C[rows.class_M[np.repeat(trained_N, rows.count_N)]] = 1
        return Look(
            files={number: (image_file, np.diff(trained_until))},
            sides=np.bincount(rows.side_N, minlength=len(Side)),
            labels=rows.labels,
            labels_per_image=int(rows.count_N[trained_N].max(initial=0)),
            classes_C=classes_C,
            chosen=chosen,
        )

    def _neighbours(self, number: int, asked_C: np.ndarray) -> Chosen:
        path = self.paths[number]
        rows = split.split(_read(self.folder, path)[1], self.rule, f"{self.folder}/{path}")
        some = _of_side(rows, Side.TRAINED, number, self.entity_ids_C)
        asked = some.take(np.flatnonzero(np.isin(some.class_N, asked_C)))
        return asked.bounded(self.limit, _each(self.limit, asked_C))


@dataclass(frozen=True)
class _Neighbours:
    """`Making.neighbours` as work for others."""

    making: Making
    asked_C: np.ndarray

    def __call__(self, share: int, shares: int) -> Chosen:
        return self.making.neighbours(self.asked_C, share, shares)


def alone(work: Callable[[int, int], Any]) -> list[Any]:
    """All by this process."""
    return [work(0, 1)]


def _of_side(rows: Labelled, side: Side, number: int, entity_ids_C: np.ndarray) -> Chosen:
    """The images of a file on one side, with their most probable classes."""
    at = np.flatnonzero(rows.side_N == side)
    class_N = rows.best_N()[at]
    return Chosen.of((number << _FILE_BITS) + at, class_N, entity_ids_C[class_N], keys(rows.ids_N2[at]))


def _each(limit: int, asked_C: np.ndarray) -> int:
    """Neighbours of a class."""
    return min(OF_A_CLASS, max(1, limit // max(1, len(asked_C))))


def _together(looks: Sequence[Look], limit: int) -> Look:
    return Look(
        files={number: file for look in looks for number, file in look.files.items()},
        sides=np.sum([look.sides for look in looks], axis=0),
        labels=sum(look.labels for look in looks),
        labels_per_image=max(look.labels_per_image for look in looks),
        classes_C=np.maximum.reduce([look.classes_C for look in looks]),
        chosen={kind: Chosen.merged([look.chosen[kind] for look in looks]).bounded(limit) for kind in KINDS},
    )


def _read(folder: str, path: str) -> tuple[ImageFile, pa.Table]:
    try:
        return files.patiently(lambda: _read_once(folder, path), files.join(folder, path))
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{folder}/{path}: {error}") from error


def _read_once(folder: str, path: str) -> tuple[ImageFile, pa.Table]:
    stream, footer = published.open_with_footer(files.join(folder, path))
    # The ranges that the columns lie in are asked for at the same time.
    with stream, pq.ParquetFile(stream, metadata=footer, pre_buffer=True) as parquet:
        image_file = published.as_image_file(folder, path, parquet)
        columns = [c for c in split.COLUMNS if c in parquet.schema_arrow.names]
        return image_file, parquet.read(columns=columns, use_threads=False)
