"""The index of a dataset: what a training has to know before it reads an image, and can start from.

Reads    once: the footer of every file, and image_id, labels and split of every row
Writes   <dataset>/_index/NAME.npz, or where the dataset cannot be written, or each machine has its own copy,
         <train.folder>/_index/NAME.npz

Of a row group it knows how many images are trained on, of the whole dataset what an evaluation looks at. Which images
these are, their ids and labels come with the row group, when it is read for its images (split.py). So the index has 24
bytes a row group of some 64 MB and nothing per image: every rank holds all of it, in some 70 bytes a row group.

Ranks that make it look at a share of the files each. A part is bounded as soon as its file is read (chosen.py).

Legend: F files, G row groups, C classes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from i2e_pipeline.core import files
from i2e_pipeline.core.config import TrainConfig, digest
from i2e_pipeline.core.splits import keys
from i2e_pipeline.dataset import published
from i2e_pipeline.dataset.published import DatasetError, ImageFile, Published
from i2e_pipeline.train import split
from i2e_pipeline.train.chosen import OF_A_CLASS, Chosen
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.split import Labelled, Rule, Side

FOLDER = "_index"
_FORMAT = 1
_FILES_AT_ONCE = 16
_MERGED_AT_ONCE = 64
_FILE_BITS = 40
"""Of a row's number while it is not known how many rows are in the files before: file · 2⁴⁰ + row."""
_NO_CLASSES = np.empty(0, dtype=np.uint8)
_OF_CHOSEN = tuple(field.name for field in fields(Chosen))
_KINDS = {"entities": Side.OF_HELD_OUT_ENTITY, "images": Side.HELD_OUT_IMAGE}
_NEIGHBOURS = "trained"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Index:
    trained_G: np.ndarray
    """int64, images of each row group that are trained on."""
    sides: tuple[int, ...]
    """Images on each Side."""
    labels: int
    """All of them."""
    labels_per_image: int
    """The most that an image of the training has."""
    trained_classes: int
    chosen: dict[str, Chosen]
    """For the evaluation, by kind: `entities` and `images` that are held out, and `trained` ones. Rows are numbers of
    the dataset's images, in the order of the files."""

    @property
    def images(self) -> int:
        """Of the dataset."""
        return sum(self.sides)


def build(dataset: Published, config: TrainConfig) -> Index:
    """The index of a dataset that is open, made by this process and kept nowhere."""
    paths, limit = [file.path for file in dataset.files], config.evaluate_images
    how = dataset.folder, dataset.entities, paths, config, World()
    look = _look_at(*how)
    asked_C = _asked([look], limit)
    return _whole([look], int(look.classes_C.sum()), limit, asked_C, [_neighbours_at(*how, asked_C)])[1]


def open_indexed(folder: str, config: TrainConfig, world: World, keep_in: str) -> tuple[Published, Index]:
    """A dataset and its index, as it lies there, or made by all ranks together and kept.

    keep_in   a folder for it where that of the dataset cannot be written
    Raises DatasetError, on every rank, where the dataset cannot be read.
    """
    manifest, entities = world.on_each(
        lambda: files.patiently(lambda: (published.manifest_of(folder), published.entities_of(folder)), folder)
    )
    name, place, paths = world.broadcast(lambda: find(folder, manifest, config, keep_in))
    if place is None:
        mine: list[_Look] = []

        def look() -> _Look:
            mine.append(_look_at(folder, entities, paths, config, world))
            return replace(mine[0], classes_C=_NO_CLASSES)

        started = time.monotonic()
        parts = world.to_first(look)
        classes = int(world.max(torch.from_numpy(mine[0].classes_C)).sum())  # by a reduction: a byte a class and rank
        limit = config.evaluate_images
        # Which classes are asked for is known when all files were seen, so labels are read twice.
        asked_C = world.broadcast(lambda: _asked(parts or [], limit))
        neighbours = world.to_first(lambda: _neighbours_at(folder, entities, paths, config, world, asked_C))
        place = world.broadcast(
            lambda: _keep(
                to_bytes(*_whole(parts or [], classes, limit, asked_C, neighbours or [])), name, folder, keep_in
            )
        )
        if world.first:
            log.info(f"index of {len(paths):,} files made in {time.monotonic() - started:.0f} s, kept in {place}")
    image_files, index = from_bytes(_read_by_all(place, files.join(keep_in, FOLDER, name), world))
    return published.of_parts(folder, manifest, entities, image_files), index


# One file


@dataclass(frozen=True)
class _Look:
    """What was seen in some files, by their numbers."""

    files: dict[int, tuple[ImageFile, np.ndarray]]
    """With the training images of each of its row groups."""
    sides: np.ndarray
    labels: int
    labels_per_image: int
    classes_C: np.ndarray
    """uint8: 1 where an image of the class is trained on."""
    chosen: dict[str, Chosen]


def _look(folder: str, path: str, number: int, entity_ids_C: np.ndarray, rule: Rule, limit: int) -> _Look:
    image_file, table = _read(folder, path)
    rows = split.split(table, rule, f"{folder}/{path}")
    chosen = {kind: _of_side(rows, side, number, entity_ids_C).bounded(limit) for kind, side in _KINDS.items()}
    trained_N = rows.side_N == Side.TRAINED
    ends_G = np.cumsum(image_file.row_group_rows, dtype=np.int64)
    trained_until = np.concatenate([[0], np.cumsum(trained_N)])[np.concatenate([[0], ends_G]).astype(np.int64)]
    classes_C = np.zeros(len(entity_ids_C), dtype=np.uint8)
    classes_C[rows.class_M[np.repeat(trained_N, rows.count_N)]] = 1
    return _Look(
        files={number: (image_file, np.diff(trained_until))},
        sides=np.bincount(rows.side_N, minlength=len(Side)),
        labels=rows.labels,
        labels_per_image=int(rows.count_N[trained_N].max(initial=0)),
        classes_C=classes_C,
        chosen=chosen,
    )


def _of_side(rows: Labelled, side: Side, number: int, entity_ids_C: np.ndarray) -> Chosen:
    """The images of a file on one side, with their most probable classes."""
    at = np.flatnonzero(rows.side_N == side)
    class_N = rows.best_N()[at]
    return Chosen.of((number << _FILE_BITS) + at, class_N, entity_ids_C[class_N], keys(rows.ids_N2[at]))


def _neighbours(
    folder: str, path: str, number: int, entity_ids_C: np.ndarray, rule: Rule, limit: int, asked_C: np.ndarray
) -> Chosen:
    """Images of a file that are trained on, of the classes that are asked for."""
    rows = split.split(_read(folder, path)[1], rule, f"{folder}/{path}")
    some = _of_side(rows, Side.TRAINED, number, entity_ids_C)
    return some.take(np.flatnonzero(np.isin(some.class_N, asked_C))).bounded(limit, _each(limit, asked_C))


def _each(limit: int, asked_C: np.ndarray) -> int:
    """Neighbours of a class."""
    return min(OF_A_CLASS, max(1, limit // max(1, len(asked_C))))


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


# Many


def _look_at(folder: str, entities: pa.Table, paths: Sequence[str], config: TrainConfig, world: World) -> _Look:
    """What this rank's share of the files shows."""
    rule = Rule.of(entities, config.data)
    entity_ids_C = entities.column("entity_id").to_numpy()
    limit = config.evaluate_images
    mine = range(world.rank, len(paths), world.size)
    nothing = {kind: Chosen.none() for kind in _KINDS}
    found = _Look({}, np.zeros(len(Side), dtype=np.int64), 0, 0, np.zeros(len(entity_ids_C), dtype=np.uint8), nothing)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for start in range(0, len(mine), _MERGED_AT_ONCE):
            numbers = mine[start : start + _MERGED_AT_ONCE]
            looks = pool.map(lambda n: _look(folder, paths[n], n, entity_ids_C, rule, limit), numbers)
            found = _together([found, *looks], limit)
    return found


def _together(looks: Sequence[_Look], limit: int) -> _Look:
    return _Look(
        files={number: file for look in looks for number, file in look.files.items()},
        sides=np.sum([look.sides for look in looks], axis=0),
        labels=sum(look.labels for look in looks),
        labels_per_image=max(look.labels_per_image for look in looks),
        classes_C=np.maximum.reduce([look.classes_C for look in looks]),
        chosen={kind: Chosen.merged([look.chosen[kind] for look in looks]).bounded(limit) for kind in _KINDS},
    )


def _neighbours_at(
    folder: str, entities: pa.Table, paths: Sequence[str], config: TrainConfig, world: World, asked_C: np.ndarray
) -> Chosen:
    """What this rank's share of the files has."""
    rule, limit = Rule.of(entities, config.data), config.evaluate_images
    entity_ids_C = entities.column("entity_id").to_numpy()
    found = Chosen.none()
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        numbers = range(world.rank, len(paths), world.size)
        for start in range(0, len(numbers), _MERGED_AT_ONCE):
            part = numbers[start : start + _MERGED_AT_ONCE]
            some = pool.map(lambda n: _neighbours(folder, paths[n], n, entity_ids_C, rule, limit, asked_C), part)
            found = Chosen.merged([found, *some]).bounded(limit, _each(limit, asked_C))
    return found


def _asked(looks: Sequence[_Look], limit: int) -> np.ndarray:
    """Classes of the held-out images that are looked at."""
    return np.unique(Chosen.merged([look.chosen["images"] for look in looks]).first(limit).class_N)


def _whole(
    looks: Sequence[_Look], classes: int, limit: int, asked_C: np.ndarray, neighbours: Sequence[Chosen]
) -> tuple[list[ImageFile], Index]:
    """The files in their order, and the index, the same however files were dealt to ranks."""
    all_files = {number: file for look in looks for number, file in look.files.items()}
    in_order = [all_files[number] for number in range(len(all_files))]
    first_F = np.cumsum([0, *(file.rows for file, _ in in_order)])

    def in_dataset(chosen: Chosen) -> Chosen:
        row_N = first_F[chosen.rows_N >> _FILE_BITS] + (chosen.rows_N & ((1 << _FILE_BITS) - 1))
        return replace(chosen, rows_N=row_N)

    chosen = {k: in_dataset(Chosen.merged([look.chosen[k] for look in looks]).first(limit)) for k in _KINDS}
    chosen[_NEIGHBOURS] = in_dataset(Chosen.merged(neighbours).first(limit, _each(limit, asked_C)))
    return [file for file, _ in in_order], Index(
        trained_G=np.concatenate([np.empty(0, dtype=np.int64), *(trained_G for _, trained_G in in_order)]),
        sides=tuple(np.sum([look.sides for look in looks], axis=0).tolist()),
        labels=sum(look.labels for look in looks),
        labels_per_image=max(look.labels_per_image for look in looks),
        trained_classes=classes,
        chosen=chosen,
    )


# Where it lies


def find(folder: str, manifest: dict[str, Any], config: TrainConfig, keep_in: str) -> tuple[str, str | None, list[str]]:
    """The name of the index, where it lies (None: nowhere), and the paths of the dataset's files."""
    parts = published.image_parts(folder, manifest)
    data = config.data
    of_dataset = digest({"manifest": manifest, "parts": parts, "entities": published.parts_of(f"{folder}/entities")})
    of_config = digest({
        "format": _FORMAT, "hold_out_entities": data.hold_out_entities, "hold_out_images": data.hold_out_images,
        "min_label_score": data.min_label_score, "evaluate_images": config.evaluate_images,
    })  # fmt: skip
    name = f"{of_dataset[:16]}-{of_config[:16]}.npz"
    for place in (files.join(folder, FOLDER, name), files.join(keep_in, FOLDER, name)):
        if files.exists(place):
            content = files.read_bytes(place)
            try:
                from_bytes(content)
            except Exception as error:  # whatever a damaged archive leads to
                log.warning(f"{place} is damaged ({error!r}) and is made again")
            else:
                return name, place, []
    return name, None, [path for path, _ in parts]


def _keep(content: bytes, name: str, folder: str, keep_in: str) -> str:
    """Writes an index, and removes those of another state of the dataset; returns where it lies."""
    place = files.join(folder, FOLDER, name)
    try:
        files.write_bytes(place, content)
        for info in files.list_files(files.join(folder, FOLDER)):
            if info.path.endswith(".npz") and info.path.partition("-")[0] != name.partition("-")[0]:
                files.remove(files.join(folder, FOLDER, info.path))
    except OSError as error:
        place = files.join(keep_in, FOLDER, name)
        log.info(f"{folder} cannot be written ({error}): its index is kept in {place}, for this training alone")
        files.write_bytes(place, content)
    return place


def _read_by_all(place: str, shared: str, world: World) -> bytes:
    """The index that lies where rank 0 has it; every rank calls it.

    shared   where all of them see it if each machine has a dataset of its own, and rank 0's is not there for the others
    """
    content = None
    with contextlib.suppress(OSError):
        content = files.patiently(lambda: files.read_bytes(place), place)
    if not all(world.gather_objects(content is not None)):
        world.broadcast(lambda: files.write_bytes(shared, content or files.read_bytes(place)))
        place, content = shared, None
    return files.read_bytes(place) if content is None else content


def to_bytes(image_files: Sequence[ImageFile], index: Index) -> bytes:
    header = {
        "format": _FORMAT, "paths": [f.path for f in image_files], "sides": index.sides, "labels": index.labels,
        "labels_per_image": index.labels_per_image, "trained_classes": index.trained_classes,
    }  # fmt: skip
    arrays = {
        "rows_F": np.array([f.rows for f in image_files], dtype=np.int64),
        "groups_F": np.array([len(f.row_group_rows) for f in image_files], dtype=np.int64),
        "rows_G": np.array([n for f in image_files for n in f.row_group_rows], dtype=np.int64),
        "bytes_G": np.array([n for f in image_files for n in f.row_group_bytes], dtype=np.int64),
        "trained_G": index.trained_G,
        **{f"{kind}.{field}": getattr(c, field) for kind, c in index.chosen.items() for field in _OF_CHOSEN},
    }
    content = io.BytesIO()
    np.savez(content, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
    return content.getvalue()


def from_bytes(content: bytes) -> tuple[list[ImageFile], Index]:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    header = json.loads(arrays.pop("header").tobytes())
    ends_F = np.cumsum(arrays["groups_F"])
    # Split after every file, the last one too: so none has nothing.
    rows = [tuple(part.tolist()) for part in np.split(arrays["rows_G"], ends_F)[:-1]]
    sizes = [tuple(part.tolist()) for part in np.split(arrays["bytes_G"], ends_F)[:-1]]
    image_files = [
        ImageFile(*file) for file in zip(header["paths"], arrays["rows_F"].tolist(), rows, sizes, strict=True)
    ]
    return image_files, Index(
        trained_G=arrays["trained_G"],
        sides=tuple(header["sides"]),
        labels=header["labels"],
        labels_per_image=header["labels_per_image"],
        trained_classes=header["trained_classes"],
        chosen={kind: Chosen(*(arrays[f"{kind}.{field}"] for field in _OF_CHOSEN)) for kind in (*_KINDS, _NEIGHBOURS)},
    )
