"""A dataset with its index, which is made once and kept beside it: by the run that publishes the dataset, on Spark's
workers, or by the ranks of the first training.

Reads    the dataset's manifest, entities and index
Writes   <dataset>/_index/NAME.npz, or where the dataset cannot be written, or each machine has its own copy,
         <train.folder>/_index/NAME.npz

NAME says of which state of the dataset the index is, and of which settings; one of another state is made anew.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from i2e_pipeline.core import files
from i2e_pipeline.core.config import TrainConfig, digest
from i2e_pipeline.dataset import published
from i2e_pipeline.dataset.published import ImageFile, Published
from i2e_pipeline.train.index import FORMAT, Index, from_bytes, to_bytes
from i2e_pipeline.train.index_making import Look, Making, Together, alone

if TYPE_CHECKING:  # torch takes seconds to import, and a run that keeps an index needs none of it
    from i2e_pipeline.train.parallel import World

FOLDER = "_index"
_NO_CLASSES = np.empty(0, dtype=np.uint8)

log = logging.getLogger(__name__)

Opened = tuple[bytes, tuple[list[ImageFile], Index]]
"""An index as it is stored, and read."""


class Found(NamedTuple):
    name: str
    place: str | None
    """Where it lies; None: nowhere."""
    paths: list[str]
    """Of the dataset's files, where there is no index."""
    opened: Opened | None = None


def build(dataset: Published, config: TrainConfig) -> Index:
    """The index of a dataset that is open, made by this process and kept nowhere."""
    paths = [file.path for file in dataset.files]
    return Making.of(dataset.folder, dataset.entities, paths, config).made(alone)[1]


def keep(folder: str, config: TrainConfig, by: Callable[[int], Together] = lambda _: alone) -> str:
    """Where the index of a dataset lies beside it: it is made where none is there.

    by   who makes the index of so many files
    Raises DatasetError where the dataset cannot be read or is not whole, OSError where it cannot be written.
    """
    manifest = published.manifest_of(folder)
    name, place, paths, _ = find(folder, manifest, config)
    if place is None:
        started = time.monotonic()
        making = Making.of(folder, published.entities_of(folder), paths, config)
        image_files, index = making.made(by(len(paths)))
        published.refuse_lacking(folder, manifest["units"], image_files)
        place = _write(to_bytes(image_files, index), name, folder)
        _say(paths, started, place)
    return place


def open_indexed(folder: str, config: TrainConfig, world: World, keep_in: str) -> tuple[Published, Index]:
    """A dataset and its index, as it lies there, or made by all ranks together and kept.

    keep_in   a folder for it where that of the dataset cannot be written
    Raises DatasetError, on every rank, where the dataset cannot be read or is not whole.
    """
    import torch

    manifest, entities = world.on_each(
        lambda: files.patiently(lambda: (published.manifest_of(folder), published.entities_of(folder)), folder)
    )
    opened: list[Opened] = []  # on rank 0, where it was looked at already
    name, place, paths = world.broadcast(lambda: _noted(find(folder, manifest, config, keep_in), opened))
    if place is None:
        making = Making.of(folder, entities, paths, config)
        mine: list[Look] = []

        def look() -> Look:
            mine.append(making.look(world.rank, world.size))
            return replace(mine[0], classes_C=_NO_CLASSES)

        started = time.monotonic()
        parts = world.to_first(look)
        # Before the labels are read again, and before the index of the whole dataset gives way to one of a part.
        world.broadcast(lambda: published.refuse_lacking(folder, manifest["units"], _seen(parts or [])))
        classes = int(world.max(torch.from_numpy(mine[0].classes_C)).sum())  # by a reduction: a byte a class and rank
        # Which classes are asked for is known when all files were seen, so labels are read twice.
        asked_C = world.broadcast(lambda: making.asked(parts or []))
        neighbours = world.to_first(lambda: making.neighbours(asked_C, world.rank, world.size))

        def keep_whole() -> str:
            whole = making.whole(parts or [], classes, asked_C, neighbours or [])
            return _keep(to_bytes(*whole), name, folder, keep_in)

        place = world.broadcast(keep_whole)
        if world.first:
            _say(paths, started, place)
    shared = files.join(keep_in, FOLDER, name)
    content = _read_by_all(place, shared, world, opened[0][0] if opened else None)
    image_files, index = opened[0][1] if opened else from_bytes(content)
    return published.of_parts(folder, manifest, entities, image_files), index


def _seen(parts: list[Look]) -> list[ImageFile]:
    return [file for look in parts for file, _ in look.files.values()]


def _say(paths: list[str], started: float, place: str) -> None:
    log.info(f"index of {len(paths):,} files made in {time.monotonic() - started:.0f} s, kept in {place}")


def _noted(found: Found, opened: list[Opened]) -> tuple[str, str | None, list[str]]:
    """What other ranks are told of it: they read the index themselves."""
    if found.opened is not None:
        opened.append(found.opened)
    return found[:3]


def find(folder: str, manifest: dict[str, Any], config: TrainConfig, keep_in: str | None = None) -> Found:
    """The index of a dataset, where there is one."""
    parts = published.image_parts(folder, manifest)
    data = config.data
    of_dataset = digest({"manifest": manifest, "parts": parts, "entities": published.parts_of(f"{folder}/entities")})
    salted = {} if data.hold_out_salt is None else {"hold_out_salt": data.hold_out_salt}
    of_config = digest({
        "format": FORMAT, "hold_out_entities": data.hold_out_entities, "hold_out_images": data.hold_out_images,
        "min_label_score": data.min_label_score, "evaluate_images": config.evaluate_images, **salted,
    })  # fmt: skip
    name = f"{of_dataset[:16]}-{of_config[:16]}.npz"
    for place in [files.join(place, FOLDER, name) for place in (folder, keep_in) if place is not None]:
        if files.exists(place):
            content = files.read_bytes(place)
            try:
                known = from_bytes(content)
            except Exception as error:  # whatever a damaged archive leads to
                log.warning(f"{place} is damaged ({error!r}) and is made again")
            else:
                return Found(name, place, [], (content, known))
    return Found(name, None, [path for path, _ in parts])


def _keep(content: bytes, name: str, folder: str, keep_in: str) -> str:
    """Writes an index, where the dataset lies or else in another folder; returns where it lies."""
    try:
        return _write(content, name, folder)
    except OSError as error:
        place = files.join(keep_in, FOLDER, name)
        log.info(f"{folder} cannot be written ({error}): its index is kept in {place}, for this training alone")
        files.write_bytes(place, content)
        return place


def _write(content: bytes, name: str, folder: str) -> str:
    """Beside a dataset; removes those of another state of it."""
    place = files.join(folder, FOLDER, name)
    files.write_bytes(place, content)
    for info in files.list_files(files.join(folder, FOLDER)):
        if info.path.endswith(".npz") and info.path.partition("-")[0] != name.partition("-")[0]:
            files.remove(files.join(folder, FOLDER, info.path))
    return place


def _read_by_all(place: str, shared: str, world: World, content: bytes | None = None) -> bytes:
    """The index that lies where rank 0 has it; every rank calls it.

    content   of a rank that has read it
    shared   where all of them see it if each machine has a dataset of its own, and rank 0's is not there for the others
    """
    if content is None:
        with contextlib.suppress(OSError):
            content = files.patiently(lambda: files.read_bytes(place), place)
    if not all(world.gather_objects(content is not None)):
        world.broadcast(lambda: files.write_bytes(shared, content or files.read_bytes(place)))
        place, content = shared, None
    return files.read_bytes(place) if content is None else content
