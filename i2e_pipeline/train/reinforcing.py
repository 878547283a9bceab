"""Reinforcing: what teachers and a captioner say of each image of a dataset, stored once and used in every training.

Reads    row groups of the dataset's images; its entities; teachers, which are open_clip models; a captioner
Writes   REINFORCED, a row for each image, and REINFORCED_ENTITIES (reinforced.py says where)

Dataset reinforcement (MobileCLIP, arXiv 2311.17049, §3.2 and §4): a teacher sees each of K augmentations once, and a
training that draws one of them knows what the teacher makes of just these pixels, at the price of reading it.

Augmentations are the trainer's own (augment.py), drawn by hash of image id and number, so that nothing depends on
order, batches or who asks. Each row stands where its image stands: whoever reads the one file reads the other beside.

Legend: N images or texts, K augmentations, V the five numbers of a view, T width of all teachers' vectors together.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from i2e_pipeline.core import files
from i2e_pipeline.core.config import ImageLimits, ModelConfig
from i2e_pipeline.core.draws import hashed
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.core.schemas import REINFORCED, REINFORCED_ENTITIES
from i2e_pipeline.core.splits import keys
from i2e_pipeline.dataset.published import DatasetError, open_parquet
from i2e_pipeline.images import encoder, models
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.train.augment import centred, decoded_side, draws, view_of, viewed
from i2e_pipeline.train.captioner import Captioner, CaptionerConfig
from i2e_pipeline.train.captioner import load as load_captioner
from i2e_pipeline.train.dataset import share_of_cores
from i2e_pipeline.train.groups import column_of
from i2e_pipeline.train.reinforced import Settings, TeacherFacts
from i2e_pipeline.train.texts import described

IMAGES_AT_ONCE = 16
"""Whose augmentations are in memory at a time: 25 MB for ten of 224 x 224."""
TEXTS_AT_ONCE = 1024
FACTS = b"i2e.reinforced"
"""Under this name a file says in its footer what was counted while it was made."""


class TeacherConfig(ModelConfig):
    section = "teacher"


class Teaching(Protocol):
    """What the kernel asks of a teacher; images/encoder.py has it."""

    side: int
    width: int

    def prepare(self, image: Image.Image) -> np.ndarray: ...
    def images(self, pixels: np.ndarray) -> np.ndarray: ...
    def texts(self, texts: list[str]) -> np.ndarray: ...


# -- the kernel -----------------------------------------------------------------------------------------------------


def reinforce(
    batches: Iterable[pa.RecordBatch],
    teachers: Sequence[Teaching],
    settings: Settings,
    limits: ImageLimits,
    captioner: Captioner | None = None,
    threads: int = 1,
) -> Iterator[pa.RecordBatch]:
    """batches   image_id, image struct<bytes>, alt_text
    yields    REINFORCED, a row for each row and in their order
    threads   that decode and cut images while nobody encodes

    A batch's texts are encoded together: of those of one length a forward pass has as many as it can take. An image
    that cannot be decoded has its reason; nothing raises for one bad row.
    """
    with ThreadPoolExecutor(threads, "cut") as pool:
        for batch in batches:
            yield _reinforced(batch, teachers, settings, limits, captioner, pool)


@dataclass(frozen=True)
class _Seen:
    """Of one image."""

    image: Image.Image
    view_KV: np.ndarray
    pixels: list[list[np.ndarray]]
    """For each teacher the augmentations, prepared."""


@dataclass(frozen=True)
class _Row:
    """What an image comes to, its alt-text aside."""

    views: list[dict[str, Any]] | None = None
    vectors: bytes | None = None
    captions: list[str] | None = None
    reason: str | None = None


def _reinforced(
    rows: pa.RecordBatch,
    teachers: Sequence[Teaching],
    settings: Settings,
    limits: ImageLimits,
    captioner: Captioner | None,
    pool: ThreadPoolExecutor,
) -> pa.RecordBatch:
    table = pa.Table.from_batches([rows])
    keys_N = keys(id_halves(table.column("image_id")))
    drawn = [draws(hashed(keys_N, "reinforced", number), settings.data) for number in range(settings.augmentations)]
    seeds_N = hashed(keys_N, "captions")
    stored = column_of(table, "image.bytes")

    def see(number: int) -> _Seen | Rejected:
        drawn_KF = [None if drawn_NF is None else drawn_NF[number] for drawn_NF in drawn]
        return _see(stored[number].as_py(), drawn_KF, teachers, settings, limits)

    found: list[_Row] = []
    for start in range(0, rows.num_rows, IMAGES_AT_ONCE):
        numbers = range(start, min(start + IMAGES_AT_ONCE, rows.num_rows))
        seen = list(pool.map(see, numbers))
        whole = [(number, one) for number, one in zip(numbers, seen, strict=True) if not isinstance(one, Rejected)]
        vectors = iter(_encoded_images([one for _, one in whole], teachers, settings))
        said = iter(
            captioner.captions([one.image for _, one in whole], [int(seeds_N[number]) for number, _ in whole])
            if captioner
            else [None] * len(whole)
        )
        for one in seen:
            if isinstance(one, Rejected):
                found.append(_Row(reason=str(one.reason)))
            else:
                found.append(_Row(_views(one.view_KV), next(vectors).tobytes(), next(said)))
    alt_texts = [text or "" for text in table.column("alt_text").to_pylist()]
    texts = [[text, *(row.captions or ())] for text, row in zip(alt_texts, found, strict=True)]
    columns = {
        "image_id": table.column("image_id").to_pylist(),
        "augmentations": [row.views for row in found],
        "image_vectors": [row.vectors for row in found],
        "captions": [row.captions for row in found],
        "text_vectors": _encoded_texts(texts, teachers),
        "reason": [row.reason for row in found],
    }
    return pa.RecordBatch.from_pydict(columns, schema=REINFORCED)


def _see(
    stored: bytes | None,
    drawn_KF: Sequence[np.ndarray | None],
    teachers: Sequence[Teaching],
    settings: Settings,
    limits: ImageLimits,
) -> _Seen | Rejected:
    opened = open_rgb(stored, limits, decoded_side(max(t.side for t in teachers), settings.data))
    if isinstance(opened, Rejected):
        return opened
    image, displayed = opened
    views = [_central(displayed) if f is None else view_of(displayed, f, settings.crop_area) for f in drawn_KF]
    cut = [
        [
            centred(image, teacher.side) if f is None else viewed(image, teacher.side, view_V)
            for f, view_V in zip(drawn_KF, views, strict=True)
        ]
        for teacher in teachers
    ]
    # Of the teacher's own steps scaling and cutting find nothing to do, and whatever else there is counts.
    pixels = [[t.prepare(Image.fromarray(one)) for one in mine] for t, mine in zip(teachers, cut, strict=True)]
    return _Seen(image, np.stack(views), pixels)


def _central(size: tuple[int, int]) -> np.ndarray:
    """The view of augment.centred."""
    width, height = size
    across, down = (1 - min(size) / width) / 2, (1 - min(size) / height) / 2
    return np.array([across, down, 1 - across, 1 - down, 0], dtype=np.float32)


def _views(view_KV: np.ndarray) -> list[dict[str, Any]]:
    names = ("left", "top", "right", "bottom")
    return [{**dict(zip(names, one[:4].tolist(), strict=True)), "mirrored": bool(one[4])} for one in view_KV]


def _encoded_images(whole: Sequence[_Seen], teachers: Sequence[Teaching], settings: Settings) -> np.ndarray:
    """float16 (M, K, T), of M images"""
    if not whole:
        return np.empty((0, settings.augmentations, settings.width), dtype="<f2")
    parts = []
    for number, teacher in enumerate(teachers):
        pixels = np.stack([view for one in whole for view in one.pixels[number]])
        parts.append(teacher.images(pixels).reshape(len(whole), settings.augmentations, teacher.width))
    return np.ascontiguousarray(np.concatenate(parts, axis=2).astype("<f2"))


def _encoded_texts(texts: Sequence[Sequence[str]], teachers: Sequence[Teaching]) -> list[bytes]:
    """Of each image its texts' vectors, float16 (S, T), as bytes."""
    flat = [text for own in texts for text in own]
    distinct = list(dict.fromkeys(flat))
    place = {text: n for n, text in enumerate(distinct)}
    vectors_NT = text_vectors(distinct, teachers)
    return [vectors_NT[[place[text] for text in own]].tobytes() for own in texts]


def text_vectors(texts: list[str], teachers: Sequence[Teaching]) -> np.ndarray:
    """vectors_NT, float16, the teachers' side by side."""
    return np.concatenate([teacher.texts(texts) for teacher in teachers], axis=1).astype("<f2")


def reinforce_entities(block: pa.Table, teachers: Sequence[Teaching], settings: Settings) -> pa.Table:
    """REINFORCED_ENTITIES of a block of class_index, name and description."""
    names, descriptions = block.column("name").to_pylist(), block.column("description").to_pylist()
    texts = [described(settings.template, *pair) for pair in zip(names, descriptions, strict=True)]
    distinct = list(dict.fromkeys([*names, *(text for text in texts if text is not None)]))
    vectors: dict[str, bytes] = {}
    for start in range(0, len(distinct), TEXTS_AT_ONCE):
        some = distinct[start : start + TEXTS_AT_ONCE]
        vectors |= zip(some, (one.tobytes() for one in text_vectors(some, teachers)), strict=True)
    columns = {
        "class_index": block.column("class_index"),
        "name_vectors": [vectors[name] for name in names],
        "described_vectors": [None if text is None else vectors[text] for text in texts],
    }
    return pa.table(columns, schema=REINFORCED_ENTITIES)


# -- pieces of the work ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """What reinforces, by name: it travels to whoever does the work, and is loaded there once."""

    teachers: tuple[TeacherConfig, ...]
    captioner: CaptionerConfig | None = None
    device: str | None = None
    """In place of the configs' own."""
    threads: int | None = None
    """CPU threads of a forward pass. None: as torch finds them."""

    def loaded(self) -> tuple[list[encoder.Encoder], Captioner | None]:
        """Kept for the life of the process. Raises ModelError for a teacher that reads no texts."""
        with _loading:
            key = (os.getpid(), self)
            if _loaded.get("key") != key:
                _loaded.clear()
                teachers = [encoder.load(one, threads=self.threads, device=self.device) for one in self.teachers]
                captioner = load_captioner(self.captioner, self.device) if self.captioner else None
                _loaded.update(key=key, models=(teachers, captioner))
            found: tuple[list[encoder.Encoder], Captioner | None] = _loaded["models"]
            return found

    def at(self, folders: Mapping[str, Local], device: str, threads: int) -> Models:
        """The same for a worker: models that are folders are read where its machine has them.

        folders   by the model's name
        """

        def moved(model: str) -> str:
            return f"local-dir:{folders[model].local()}" if model in folders else model

        teachers = tuple(one.model_copy(update={"model": moved(one.model)}) for one in self.teachers)
        by = None if self.captioner is None else replace(self.captioner, model=moved(self.captioner.model))
        return Models(teachers, by, device, threads)


class Local(Protocol):
    """What knows where a file lies on this machine: engine/shipping.py has it."""

    def local(self) -> str: ...


_loaded: dict[str, Any] = {}
_loading = threading.Lock()


def facts_of(config: TeacherConfig, teacher: encoder.Encoder) -> TeacherFacts:
    if not teacher.has_text:
        raise models.ModelError(f"teacher {config.model} encodes images alone: a model with both towers is wanted")
    name = f"{config.model}@{config.pretrained}" if config.pretrained else config.model
    return TeacherFacts(name, teacher.fingerprint, teacher.width, teacher.scale)


@dataclass(frozen=True)
class Made:
    """What a piece came to."""

    target: str
    rows: int


@dataclass(frozen=True)
class ImagesPiece:
    """A file of images, to be reinforced."""

    source: str
    target: str
    """Below the folder of the tables."""
    place: str
    """Where that is."""
    limits: ImageLimits

    def make(self, settings: Settings, models: Models) -> Made:
        """Writes it: whole, or not at all. Raises DatasetError where the source cannot be read."""
        teachers, captioner = models.loaded()
        threads = models.threads or share_of_cores(1)
        undecodable: Counter[str] = Counter()
        rows = 0
        try:
            with (
                open_parquet(self.source) as source,
                files.fresh_stream(self.place) as stream,
                pq.ParquetWriter(stream, REINFORCED, compression="zstd") as writer,
            ):
                for number in range(source.num_row_groups):
                    read = source.read_row_group(number, columns=["image_id", "image.bytes", "alt_text"])
                    batches = read.combine_chunks().to_batches()
                    done = list(reinforce(batches, teachers, settings, self.limits, captioner, threads))
                    table = pa.Table.from_batches(done, REINFORCED)
                    # As many rows in a group as there are images in theirs, so that both are read together.
                    writer.write_table(table, row_group_size=max(1, len(table)))
                    undecodable.update(reason for reason in table.column("reason").to_pylist() if reason is not None)
                    rows += len(table)
                writer.add_key_value_metadata({FACTS.decode(): json.dumps({"undecodable": undecodable})})
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self.source}, reinforced into {self.place}: {error}") from error
        return Made(self.target, rows)


@dataclass(frozen=True)
class EntitiesPiece:
    """Some classes, whose texts are to be encoded."""

    block: pa.Table
    target: str
    place: str

    def make(self, settings: Settings, models: Models) -> Made:
        teachers, _ = models.loaded()
        table = reinforce_entities(self.block, teachers, settings)
        files.write_table(self.place, table)
        return Made(self.target, len(table))


Piece = ImagesPiece | EntitiesPiece
Runner = Callable[[Sequence[Piece], Settings, Models], Iterable[Made]]


def here(pieces: Sequence[Piece], settings: Settings, models: Models) -> Iterator[Made]:
    """Does the pieces in this process, one after the other: the models use all of its cores, or its card."""
    for piece in pieces:
        yield piece.make(settings, models)
