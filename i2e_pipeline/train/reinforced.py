"""Reinforced: the tables that `i2e reinforce` writes beside a dataset, as a training reads them.

    <folder>/settings.json                              what is stored: teachers, augmentations, captions; written first
    <folder>/unit=…/part-00000-DIGEST.parquet           REINFORCED: a file for each file of images, a row group for each
                                                        of its row groups, a row for each of its rows
    <folder>/entities/part-00000-DIGEST.parquet         REINFORCED_ENTITIES: the classes of a block
    <folder>/manifest.json                              what is whole; written last

DIGEST names what a file was made of: these settings and that state of the rows. So a file is whole or not there, it is
known by its name whether it is still what it should be, and a dataset that grew lacks those of its new files alone.

Vectors come with the row group of their images, which a training reads anyway: nothing is held per image.

Legend: N images of a row group that are trained on, B of a batch, K augmentations, S texts of an image (alt-text and
captions), T width of all teachers' vectors together, V the five numbers of a view, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import arrays, files
from i2e_pipeline.core.config import DataConfig, ReinforceConfig, digest
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.dataset.published import DatasetError, ImageFile, Published
from i2e_pipeline.train.batch import TeacherSpace
from i2e_pipeline.train.open_files import OpenFiles

FOLDER, SETTINGS, MANIFEST = "reinforced", "settings.json", "manifest.json"
FORMAT = 1
"""Raised when something else is made of the same images and settings."""
CLASSES_PER_FILE = 16_384
_MOST = 65_536
"""Numbers of a vector, augmentations, captions."""
NUMBER = 2
"""Bytes of a component of a vector."""
_AGAIN = "run `i2e reinforce` again"
_OF_VIEW = ("left", "top", "right", "bottom", "mirrored")
_WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0, 0.0)
_COLUMNS = ("image_id", "augmentations", "image_vectors", "captions", "text_vectors")


@dataclass(frozen=True)
class TeacherFacts:
    model: str
    fingerprint: str
    """Of weights, architecture, preprocessing and dtype (images/encoder.py)."""
    width: int
    scale: float
    """Inverse of its temperature."""


@dataclass(frozen=True)
class CaptionerFacts:
    model: str
    fingerprint: str
    captions: int
    """Of each image."""


@dataclass(frozen=True)
class Settings:
    """What is stored of each image."""

    teachers: tuple[TeacherFacts, ...]
    augmentations: int
    """K"""
    augment: Literal["crop_flip", "crop", "none"]
    crop_area: tuple[float, float]
    template: str
    """How name and description of an entity become one text."""
    captioner: CaptionerFacts | None = None

    @property
    def width(self) -> int:
        """T"""
        return sum(teacher.width for teacher in self.teachers)

    @property
    def captions(self) -> int:
        return 0 if self.captioner is None else self.captioner.captions

    @property
    def data(self) -> DataConfig:
        """The settings by which augmentations are drawn."""
        return DataConfig(augment=self.augment, crop_area=self.crop_area)

    def fingerprint(self) -> str:
        """What a model is called and where it lies changes no vector."""
        tree = self.tree()
        for named in [*tree["teachers"], *([tree["captioner"]] if tree["captioner"] else [])]:
            del named["model"]
        return digest(tree)

    def tree(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def of_tree(tree: Any, where: str) -> Settings:
        """Raises DatasetError for what is no settings of this format."""
        again = f"`i2e reinforce --restart` makes {files.folder_of(where)} anew"
        try:
            if tree["format"] != FORMAT:
                raise DatasetError(f"{where} is of format {tree['format']!r}, and {FORMAT} is read: {again}")
            teachers = tuple(TeacherFacts(**one) for one in tree["teachers"])
            captioner = None if tree["captioner"] is None else CaptionerFacts(**tree["captioner"])
            low, high = tree["crop_area"]
            data = DataConfig(augment=tree["augment"], crop_area=(low, high))  # refuses what cannot be
            found = Settings(teachers, tree["augmentations"], data.augment, data.crop_area, tree["template"], captioner)
            found._check()
        except DatasetError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DatasetError(f"{where} is not what `i2e reinforce` writes there ({error!r}): {again}") from None
        return found

    def _check(self) -> None:
        """Raises ValueError for what cannot be: the tables may be somebody else's."""
        named: list[TeacherFacts | CaptionerFacts] = [*self.teachers, *([self.captioner] if self.captioner else [])]
        if not all(isinstance(one.model, str) and isinstance(one.fingerprint, str) for one in named):
            raise ValueError("a model's name")
        counts = [len(self.teachers), self.augmentations, self.captions + 1, *(t.width for t in self.teachers)]
        if not all(type(count) is int and 0 < count <= _MOST for count in counts) or self.width > _MOST:
            raise ValueError(f"numbers: {counts}")
        if not isinstance(self.template, str) or not all(0 < t.scale < math.inf for t in self.teachers):
            raise ValueError("a template or a teacher's scale")

    def differing(self, other: Settings) -> list[str]:
        """`setting: here, there` of each that differs."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name}: {_told(mine)}, and there {_told(theirs)}" for name, mine, theirs in pairs if mine != theirs]


def _told(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], TeacherFacts):
        return " + ".join(f"{one.model} ({one.fingerprint[:8]})" for one in value)
    return (
        f"{value.model} ({value.fingerprint[:8]}) × {value.captions}"
        if isinstance(value, CaptionerFacts)
        else str(value)
    )


def beside(dataset: str) -> str:
    """Where the tables of a dataset lie unless somebody says otherwise."""
    return files.join(files.folder_of(dataset.rstrip("/")), FOLDER)


def image_targets(settings: Settings, image_files: Sequence[ImageFile]) -> list[str]:
    """Of each file of images the path of its table below the folder."""
    made, targets, numbers = settings.fingerprint(), [], dict[str, int]()
    for file in image_files:
        unit = file.path.split("/")[1]
        number = numbers[unit] = numbers.get(unit, -1) + 1
        state = digest({"settings": made, "rows": file.row_group_rows, "bytes": file.row_group_bytes})
        targets.append(f"{unit}/part-{number:05d}-{state[:16]}.parquet")
    return targets


def entity_targets(settings: Settings, entities: pa.Table) -> list[str]:
    """The same of each block of CLASSES_PER_FILE classes; entities: I2E_ENTITIES, by class index."""
    # Of the settings that change an entity's vectors, so that more augmentations leave them as they are.
    made = {"format": FORMAT, "teachers": [t.fingerprint for t in settings.teachers], "template": settings.template}
    targets = []
    for number, block in enumerate(entity_blocks(entities)):
        state = digest({**made, "texts": [block.column(name).to_pylist() for name in ("name", "description")]})
        targets.append(f"entities/part-{number:05d}-{state[:16]}.parquet")
    return targets


def entity_blocks(entities: pa.Table) -> list[pa.Table]:
    wanted = entities.select(["class_index", "name", "description"])
    return [wanted.slice(start, CLASSES_PER_FILE) for start in range(0, len(entities), CLASSES_PER_FILE)]


@dataclass(frozen=True)
class Reinforcements:
    """Of the images of a row group that are trained on."""

    view_NKV: np.ndarray
    """float32"""
    image_NKT: np.ndarray
    text_NST: np.ndarray
    """float16; zeros where there are none"""
    captions: list[list[str] | None]


class Reinforced:
    """The tables of a dataset; for any number of threads."""

    def __init__(
        self, folder: str, settings: Settings, targets: Sequence[str], entities: Sequence[str], wanted: ReinforceConfig
    ) -> None:
        self.folder, self.settings = folder, settings
        self.fingerprint = settings.fingerprint()
        scale = None if wanted.temperature is None else 1 / wanted.temperature
        self.teachers = tuple(TeacherSpace(t.width, scale or t.scale) for t in settings.teachers)
        self.centred = settings.augment == "none"
        """Whether the stored view is the plain one of evaluations."""
        vectors = settings.augmentations + 1 + settings.captions
        self.bytes_of_image = NUMBER * settings.width * vectors + 4 * len(_OF_VIEW) * settings.augmentations
        """What is held of an image, captions aside."""
        self._files = OpenFiles([files.join(folder, target) for target in targets])
        self._targets, self._entities = targets, entities
        self._of_classes: tuple[np.ndarray, np.ndarray] | None = None

    def read(self, file: int, group: int, ids_M2: np.ndarray, within: np.ndarray) -> Reinforcements:
        """Of the rows `within` of a row group of the dataset's file number `file`.

        ids_M2   of all rows of the row group
        Raises DatasetError where the tables hold other rows.
        """
        settings, where = self.settings, f"{self.folder}/{self._targets[file]}"
        table = self._files.read(file, group, _COLUMNS)
        if missing := set(_COLUMNS) - set(table.column_names):
            raise _foreign(where, f"it has no column {', '.join(sorted(missing))}")
        if not np.array_equal(_ids(table, where), ids_M2):
            raise _foreign(where, f"row group {group} is of other images")
        kept = table.take(pa.array(within))
        views, width = kept.column("augmentations").combine_chunks(), settings.width
        view_NKV = np.empty((len(within), settings.augmentations, len(_OF_VIEW)), dtype=np.float32)
        view_NKV[:] = _WHOLE_IMAGE
        counts_N = views.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        there_N = counts_N > 0
        if (counts_N[there_N] != settings.augmentations).any():
            raise _foreign(where, f"an image has not {settings.augmentations} augmentations")
        flat = views.flatten()
        for place, name in enumerate(_OF_VIEW):
            values = flat.field(name).to_numpy(zero_copy_only=False).astype(np.float32)
            view_NKV[there_N, :, place] = values.reshape(-1, settings.augmentations)
        return Reinforcements(
            view_NKV,
            _numbers(kept.column("image_vectors"), settings.augmentations, width, where),
            _numbers(kept.column("text_vectors"), 1 + settings.captions, width, where),
            kept.column("captions").to_pylist(),
        )

    def of_classes(self, class_B: np.ndarray, described_B: np.ndarray) -> np.ndarray:
        """vectors_BT, float16, of the texts of entities: of the name, or of name and description where there is one."""
        if self._of_classes is None:
            self._of_classes = self._laid_out()
        name_CT, described_CT = self._of_classes
        vectors_BT = name_CT[class_B]
        other_BT = described_CT[class_B]
        takes_B = described_B & (other_BT != 0).any(axis=1)
        vectors_BT[takes_B] = other_BT[takes_B]
        return vectors_BT

    def _laid_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Mapped, once on a machine: 4 T bytes a class."""
        width = self.settings.width
        paths = [files.join(self.folder, path) for path in self._entities]

        def lay_out(store: arrays.Writer) -> None:
            tables = [(path, _whole_table(path)) for path in paths]
            for name in _OF_CLASSES:
                parts = [_numbers(table.column(name), 1, width, path)[:, 0] for path, table in tables]
                store.save(name, np.concatenate(parts))
            store.header = {"format": FORMAT}

        key = digest([self.folder, *self._entities])
        found = arrays.shared(scratch(FOLDER), key, "entities", FORMAT, lay_out, _OF_CLASSES)
        return found[_OF_CLASSES[0]], found[_OF_CLASSES[1]]


_OF_CLASSES = ("name_vectors", "described_vectors")


def read_settings(folder: str) -> Settings | None:
    """What is made in a folder; None where nothing was begun there. Raises DatasetError for what is no settings."""
    place = files.join(folder, SETTINGS)
    return Settings.of_tree(files.record(place, _AGAIN), place) if files.exists(place) else None


def read_manifest(folder: str) -> tuple[Settings, set[str]] | None:
    """What is whole in a folder: settings, and the paths of files, which are compared and never opened for what they
    say; None where nothing is. Raises DatasetError for what is no manifest."""
    place = files.join(folder, MANIFEST)
    if not files.exists(place):
        return None
    tree: Any = files.record(place, _AGAIN)
    lists = [tree.get(name) for name in ("images", "entities")] if isinstance(tree, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(path, str) for path in one) for one in lists):
        raise DatasetError(f"{place} is not what `i2e reinforce` writes there: run it again")
    return Settings.of_tree(tree.get("settings"), place), {path for one in lists for path in one or ()}


def open_reinforced(wanted: ReinforceConfig, published: Published) -> Reinforced:
    """The tables of a dataset. Raises DatasetError where they are not there, or not whole for this state of it."""
    folder = wanted.folder or beside(published.folder)
    found = read_manifest(folder)
    again = f"`i2e reinforce {published.folder}` with the same teachers makes what is missing"
    if found is None:
        raise DatasetError(
            f"{folder} holds no reinforced tables ({MANIFEST} is not there): `i2e reinforce {published.folder} "
            "--teacher MODEL` makes them, and goes on with what was begun; or set train.reinforce.folder"
        )
    settings, whole = found
    if wanted.captions and not settings.captions:
        raise DatasetError(
            f"train.reinforce.captions={wanted.captions:g}, and {folder} has no captions: set it to 0, or reinforce "
            "with --captioner"
        )
    targets, entities = image_targets(settings, published.files), entity_targets(settings, published.entities)
    lacking = [target for target in targets if target not in whole]
    if lacking:
        units = sorted({target.split("/")[0].removeprefix("unit=") for target in lacking})
        raise DatasetError(
            f"{folder}: {len(lacking):,} of the {len(targets):,} files of {published.folder} are not reinforced in the "
            f"state that they have (units {', '.join(units[:3])}{' …' if len(units) > 3 else ''}): the dataset is "
            f"another one, has grown or was published again; {again}"
        )
    if set(entities) - whole:
        raise DatasetError(f"{folder}: texts of entities of {published.folder} have changed since: {again}")
    return Reinforced(folder, settings, targets, entities, wanted)


def _foreign(where: str, why: str) -> DatasetError:
    return DatasetError(f"{where}: {why}, so it is not of this dataset: remove it and run `i2e reinforce` again")


def _ids(table: pa.Table, where: str) -> np.ndarray:
    try:
        return id_halves(table.column("image_id"))
    except (ValueError, pa.ArrowException) as error:
        raise _foreign(where, f"image_id: {error}") from None


def _whole_table(path: str) -> pa.Table:
    def read() -> pa.Table:
        filesystem, inner = files.open_filesystem(path)
        with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
            return file.read(columns=list(_OF_CLASSES))

    try:
        return files.patiently(read, path)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: {error}: run `i2e reinforce` again") from error


def _numbers(column: pa.ChunkedArray, rows: int, width: int, where: str) -> np.ndarray:
    """float16 (N, rows, width) of binary; zeros for null, and beyond the end of a shorter value of whole vectors."""
    values = column.combine_chunks().cast(pa.large_binary())
    found = np.zeros((len(values), rows * width), dtype=np.float16)
    if not len(values):
        return found.reshape(0, rows, width)
    ends = np.frombuffer(values.buffers()[1], dtype=np.int64)[values.offset : values.offset + len(values) + 1]
    lengths_N = np.diff(ends)
    wrong = np.flatnonzero((lengths_N % (NUMBER * width) != 0) | (lengths_N > NUMBER * rows * width))
    if len(wrong):
        raise _foreign(where, f"vectors of {lengths_N[wrong[0]]} bytes, where {rows} × {width} numbers are wanted")
    if lengths_N.sum():
        numbers = np.frombuffer(values.buffers()[2], dtype=np.uint8)[ends[0] : ends[-1]].view("<f2")
        found[np.arange(rows * width) < lengths_N[:, None] // NUMBER] = numbers
    return found.reshape(len(values), rows, width)
