"""What teachers and a captioner say of a dataset's images, stored beside it (`i2e reinforce`).

Reads    a published dataset, or an export of it; models
Writes   <folder of the dataset>/../reinforced (train/reinforced.py has the layout)

The work is cut into files of images and blocks of classes. Each becomes one file that is whole or not there, and whose
name says what it was made of: the same command goes on after a kill, and of a dataset that has grown it makes what is
new. This process makes one after the other, or Spark's workers each some of them; nothing is shuffled.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core import files, lock
from i2e_pipeline.core.config import Config, DataConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.model_name import parse
from i2e_pipeline.dataset.place import Place
from i2e_pipeline.dataset.published import Published, open_parquet, open_published
from i2e_pipeline.images import encoder, hugging_face
from i2e_pipeline.images.encoder import Encoder
from i2e_pipeline.train import captioner
from i2e_pipeline.train.captioner import CaptionerConfig
from i2e_pipeline.train.reinforced import (
    MANIFEST,
    NUMBER,
    SETTINGS,
    CaptionerFacts,
    Settings,
    beside,
    entity_blocks,
    entity_targets,
    image_targets,
    read_settings,
)
from i2e_pipeline.train.reinforcing import (
    FACTS,
    EntitiesPiece,
    ImagesPiece,
    Made,
    Models,
    Piece,
    Runner,
    TeacherConfig,
    facts_of,
    here,
)
from i2e_pipeline.train.samples import limits_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_READS = 32
_PIECES_AT_ONCE = 4

log = logging.getLogger(__name__)


class ReinforceError(I2EError, ValueError):
    """A reinforcement that cannot begin or go on; the message says the way out."""


@dataclass(frozen=True)
class Wanted:
    """What is to be stored of each image."""

    models: Models
    augmentations: int
    data: DataConfig
    """By which augmentations are drawn."""
    template: str

    def settings(self, loaded: Sequence[Encoder]) -> Settings:
        names = zip(self.models.teachers, loaded, strict=True)
        by = self.models.captioner
        return Settings(
            tuple(facts_of(config, teacher) for config, teacher in names),
            self.augmentations,
            self.data.augment,
            self.data.crop_area,
            self.template,
            None if by is None else CaptionerFacts(by.model, captioner.fingerprint(by), by.captions),
        )


@dataclass(frozen=True)
class Reinforcement:
    """What was done, and what lies there by now."""

    folder: str
    images: int
    files: int
    made: int
    """Files of this call."""
    undecodable: dict[str, int]
    bytes: int
    """Of all files."""
    settings: Settings
    seconds: float

    @property
    def vector_bytes(self) -> int:
        """Of the vectors of an image: what is stored before compression."""
        return NUMBER * self.settings.width * (self.settings.augmentations + 1 + self.settings.captions)

    def as_json(self) -> dict[str, Any]:
        tree = {name: value for name, value in asdict(self).items() if name != "settings"}
        return {**tree, "vector_bytes_per_image": self.vector_bytes, "settings": self.settings.tree()}


def reinforce(
    dataset: str, wanted: Wanted, folder: str | None = None, runner: Runner = here, restart: bool = False,
    loaded: Callable[[Models], Sequence[Encoder]] | None = None,
) -> Reinforcement:  # fmt: skip
    """Reinforces a dataset, or what of it is not reinforced yet.

    folder    where the tables lie; None: beside the dataset
    runner    does the pieces of the work, and hands each back when it is whole
    restart   forget what lies there
    loaded    gives the teachers of which this process learns widths and temperatures

    Raises DatasetError where there is no whole dataset, ModelError for a model that cannot be had, ReinforceError where
    the folder holds what other settings made, or what is no reinforcement; Held while another process writes it.
    """
    started = time.monotonic()
    published = open_published(dataset)
    folder = folder or beside(dataset)
    _refuse_foreign(folder)
    settings = wanted.settings((loaded or _loaded_here)(wanted.models))
    with lock.exclusive(folder):
        _begin(folder, settings, restart)
        for left in files.left_unfinished(folder):
            files.remove(files.join(folder, left.path))
        pieces = _pieces(published, folder, settings)
        there = {info.path for info in files.list_files(folder)}
        to_do = [piece for piece in pieces if piece.target not in there]
        if len(to_do) < len(pieces):
            log.info(f"{len(pieces) - len(to_do):,} of {len(pieces):,} files are there")
        made = _all_made(to_do, runner(to_do, settings, wanted.models), len(pieces))
        facts = _facts(folder, pieces)
        undecodable = Counter[str]()
        for one in facts:
            undecodable.update(one["undecodable"])
        manifest = {
            "settings": settings.tree(),
            "dataset": published.fingerprint,
            "rows": published.rows,
            "undecodable": dict(sorted(undecodable.items())),
            "images": [p.target for p in pieces if isinstance(p, ImagesPiece)],
            "entities": [p.target for p in pieces if isinstance(p, EntitiesPiece)],
        }
        files.write_json(files.join(folder, MANIFEST), manifest)
        current = {piece.target for piece in pieces}
        for path in sorted(there - current):
            if path.endswith(".parquet") and not files.is_hidden(path):
                files.remove(files.join(folder, path))
        sizes = files.sizes([piece.place for piece in pieces])
    return Reinforcement(
        folder, published.rows, len(pieces), made, dict(sorted(undecodable.items())),
        sum(size or 0 for size in sizes.values()), settings, time.monotonic() - started,
    )  # fmt: skip


def _loaded_here(models: Models) -> Sequence[Encoder]:
    return models.loaded()[0]


def _refuse_foreign(folder: str) -> None:
    """Raises ReinforceError for a folder with something else in it: its files might be removed."""
    if files.exists(files.join(folder, SETTINGS)) or not files.exists(folder):
        return
    if other := [info.path for info in files.list_files(folder) if not info.path.startswith("_lock")]:
        raise ReinforceError(
            f"{folder} holds {other[0]} and no {SETTINGS}: it is no folder of `i2e reinforce`; name another by --to"
        )


def _begin(folder: str, settings: Settings, restart: bool) -> None:
    """Notes what is made here. Raises ReinforceError where it was something else."""
    place = files.join(folder, SETTINGS)
    if files.exists(place) and restart:
        files.remove(files.join(folder, MANIFEST))
        for name in files.list_folders(folder):
            if name.startswith("unit=") or name == "entities":
                files.remove(files.join(folder, name))
        files.remove(place)
    if (before := read_settings(folder)) is not None:
        if before.fingerprint() != settings.fingerprint():
            raise ReinforceError(
                f"{folder} was begun with other settings: {'; '.join(settings.differing(before))}. Ask for those, name "
                "another folder by --to, or begin anew with --restart"
            )
        return
    files.write_json(place, settings.tree())


def _pieces(published: Published, folder: str, settings: Settings) -> list[Piece]:
    limits = limits_of(published)
    entities = entity_targets(settings, published.entities)
    pieces: list[Piece] = [
        EntitiesPiece(block, target, files.join(folder, target))
        for block, target in zip(entity_blocks(published.entities), entities, strict=True)
    ]
    targets = image_targets(settings, published.files)
    for file, target in zip(published.files, targets, strict=True):
        source = files.join(published.folder, file.path)
        pieces.append(ImagesPiece(source, target, files.join(folder, target), limits))
    return pieces


def _all_made(to_do: Sequence[Piece], made: Iterable[Made], of: int) -> int:
    done, images, started = 0, 0, time.monotonic()
    for one in made:
        done += 1
        images += one.rows
        rate = images / max(1e-9, time.monotonic() - started)
        log.info(f"{of - len(to_do) + done:,} of {of:,} files, {rate:,.1f} rows/s: {one.target}")
    return done


def _facts(folder: str, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """What each file of images says of itself, those that were there before among them."""

    def facts(piece: ImagesPiece) -> dict[str, Any]:
        with open_parquet(piece.place) as file:
            try:
                found: dict[str, Any] = {"undecodable": dict(json.loads(file.metadata.metadata[FACTS])["undecodable"])}
            except (KeyError, TypeError, ValueError) as error:
                raise ReinforceError(
                    f"{piece.place} does not say what was counted while it was made ({error!r}): remove it, and "
                    "reinforce again"
                ) from None
            return found

    with ThreadPoolExecutor(_READS) as pool:
        return list(pool.map(facts, [piece for piece in pieces if isinstance(piece, ImagesPiece)]))


def asked(options: argparse.Namespace, config: Config) -> tuple[str, Wanted, str | None]:
    """The dataset, what is wanted of it, and the folder that is named. Raises NotPublished, ModelError, ReinforceError;
    loads no model."""
    dataset = Place.of(options.folder).dataset if options.folder else config.train.dataset
    dataset = dataset or files.join(config.output, "i2e")
    run = {"device": options.device, "dtype": options.dtype, "batch_size": options.batch_size}
    teachers = tuple(TeacherConfig.model_validate({"model": name, **run}) for name in options.teacher)
    for teacher in teachers:
        encoder.check(teacher, at_hand=True)
    if len({encoder.fingerprint(teacher) for teacher in teachers}) < len(teachers):
        raise ReinforceError("--teacher names one model twice: leave one out")
    by = None
    if options.captioner:
        by = CaptionerConfig(options.captioner, options.captions, device=options.device, dtype=options.dtype)
        hugging_face.transformers(captioner.SETTING)
        hugging_face.check(by.model, captioner.SETTING)
    data = config.train.data
    if data.augment == "none" and options.augmentations > 1:
        raise ReinforceError(
            f"--augmentations {options.augmentations}: with train.data.augment=none all of them are the same: ask for 1"
        )
    wanted = Wanted(Models(teachers, by), options.augmentations, data, config.train.text.template)
    return dataset, wanted, options.to or config.train.reinforce.folder


def on_workers_of(config: Config, dataset: str, wanted: Wanted, folder: str | None, restart: bool) -> Reinforcement:
    """The same by Spark's workers: each task makes some files, one after the other, with models that its process loads
    once. The dataset and the folder must be seen by all of them."""
    from i2e_pipeline.engine import cluster
    from i2e_pipeline.engine.session import build

    cluster.refuse_relative(config)
    spark = build(config, "i2e reinforce")
    folder = folder or beside(dataset)
    cluster.check(spark, config, [("--to", folder)], [("FOLDER", dataset)])
    runner = partial(_by_workers, spark=spark, folder=folder, config=config)
    return reinforce(dataset, wanted, folder, runner, restart, _loaded_on_the_driver)


def _loaded_on_the_driver(models: Models) -> Sequence[Encoder]:
    """On its processor, and not kept: the driver asks them for nothing but their width and temperature."""
    return [encoder.load(teacher, device="cpu") for teacher in models.teachers]


def _by_workers(
    pieces: Sequence[Piece], settings: Settings, models: Models, *, spark: SparkSession, folder: str, config: Config
) -> Iterator[Made]:
    from i2e_pipeline.engine import cluster
    from i2e_pipeline.engine.shipping import Shipped, ship
    from i2e_pipeline.engine.workers import on_workers, tasks_for

    shared, device = config.session.shared_folders, models.teachers[0].device
    names = [teacher.model for teacher in models.teachers] + ([models.captioner.model] if models.captioner else [])
    folders: dict[str, Shipped] = {
        name: ship(spark, where, folder, shared) for name in names if (where := parse(name).folder) is not None
    }

    def make(piece: Piece) -> Made:
        own = models.at(folders, cluster.task_device(device), cluster.task_cores(1))
        return piece.make(settings, own)

    yield from on_workers(spark, make, pieces, tasks_for(spark, len(pieces), _PIECES_AT_ONCE))
