"""An image set: images that are read when asked for, what they are of, and how they are split.

Reads    files of a folder, rows of Parquet files, or rows of an array in memory
Writes   nothing

Legend: N images, C classes, H W pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from i2e_pipeline.core import files
from i2e_pipeline.core.config import ImageLimits, digest
from i2e_pipeline.core.draws import mixed
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.stored_image import NoImage
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import Images, Shard

Kind = Literal["gpr", "revisited", "classes", "captions", "oven"]
"""Which protocols fit: gpr1200.py alone, revisited.py alone, all those for images with classes, text_image.py alone, or
oven.py alone."""
Stored = bytes | Path | Image.Image | None
"""An image before it is decoded: its bytes, the file that holds them, pixels, or a null."""

LIMITS = ImageLimits(max_pixels=500_000_000, min_side=1, max_aspect=1e6, max_bytes=1 << 30)
"""A benchmark's images are all measured, however they are shaped; the limits only stop what would fill the memory."""
UNSEEN = "of held-out entities"
"""The split of images whose entities no image is trained on: what retrieval is asked about."""
OF_DATASET = "the dataset's own split"
"""`ImageSet.split_by` of a published dataset."""
_READ = 1 << 20
"""Bytes of a file that are read at once for its digest."""


class DatasetError(I2EError, ValueError):
    """A data set that cannot be measured on; the message names it, what is wrong with it and the way out."""


@dataclass(frozen=True)
class Examples:
    """What OVEN asks of images: E examples in the order of their lines."""

    files: tuple[str, ...]
    """Annotation files …"""
    ends: tuple[int, ...]
    """… and the number of examples up to the end of each."""
    data_ids: tuple[str, ...]
    row_E: np.ndarray
    """int64 row of each example's image; -1 where there is no such file."""
    questions: tuple[str, ...]
    """Each once …"""
    question_E: np.ndarray
    """… and which of them an example of the query set asks; -1 in the entity set."""
    entities: tuple[str, ...]
    """The right Q-id of each example, "" where the annotations do not say it."""

    @property
    def answered(self) -> bool:
        """Whether the annotations say the right entities: the authors keep those of the test split."""
        return all(self.entities)


class ImageSource(Protocol):
    """N stored images by number."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What messages call the image: its path, or file and row."""

    def read(self, rows: Sequence[int]) -> Iterator[Stored]:
        """The images, in the order asked; quickest where rows grow."""

    def digests(self) -> np.ndarray:
        """uint64 (N,): equal images have equal ones."""

    def fingerprint(self) -> str:
        """32 hex characters that change with the images, and not with the folder they lie in."""


@dataclass(frozen=True)
class Files:
    """Images in files of their own, below a folder."""

    root: Path
    names: tuple[str, ...]
    """Paths relative to the root, with slashes."""

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row]

    def read(self, rows: Sequence[int]) -> Iterator[Stored]:
        return (self.root / self.names[row] for row in rows)

    @cached_property
    def _digests(self) -> np.ndarray:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="digest") as pool:
            return np.fromiter(pool.map(_file_digest, (self.root / name for name in self.names)), dtype=np.uint64)

    def digests(self) -> np.ndarray:
        return self._digests

    def fingerprint(self) -> str:
        return digest([list(self.names), self._digests.tolist()])


def _file_digest(path: Path) -> int:
    """64 bits of the whole content, so that a change anywhere in a file is seen.

    The data set is read a second time for it: a few seconds for GPR1200. Reading a part of each file would be quicker
    and would miss changes in the rest.
    """
    found = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while part := file.read(_READ):
            found.update(part)
    return int.from_bytes(found.digest(), "little")


def _digest64(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Rows:
    """Images in rows of Parquet files."""

    paths: tuple[str, ...]
    column: str
    """binary, or Hugging Face's struct<bytes, path>"""
    file_N: np.ndarray
    """Which of the files holds the image …"""
    row_N: np.ndarray
    """… and in which row."""
    ids_N: np.ndarray | None = None
    """uint64 that equal images share, where the files tell."""

    def __len__(self) -> int:
        return len(self.file_N)

    def name(self, row: int) -> str:
        return f"{self.paths[self.file_N[row]]} row {self.row_N[row]}"

    def read(self, rows: Sequence[int]) -> Iterator[Stored]:
        reader: Images | None = None
        at = -1
        try:
            for row in rows:
                if self.file_N[row] != at:
                    if reader is not None:
                        reader.close()
                    at = int(self.file_N[row])
                    reader = formats.images(Shard(self.paths[at]), self.column)
                assert reader is not None
                (stored,) = reader.read([int(self.row_N[row])])
                yield None if isinstance(stored, NoImage) else stored
        finally:
            if reader is not None:
                reader.close()

    @cached_property
    def _digests(self) -> np.ndarray:
        if self.ids_N is not None:
            return self.ids_N
        return np.array(
            [_digest64(stored if isinstance(stored, bytes) else b"") for stored in self.read(range(len(self)))],
            dtype=np.uint64,
        )

    def digests(self) -> np.ndarray:
        return self._digests

    def fingerprint(self) -> str:
        named = [files.fingerprint(path) for path in self.paths]
        return digest([named, self.column, self.file_N.tolist(), self.row_N.tolist()])


@dataclass(frozen=True)
class Members:
    """Images in files within tars, which stay packed."""

    paths: tuple[str, ...]
    file_N: np.ndarray
    """Which of the tars holds the image …"""
    start_N: np.ndarray
    """… from which byte on …"""
    size_N: np.ndarray
    """… and how many."""
    names: tuple[str, ...]
    """What each is called in its tar."""

    def __len__(self) -> int:
        return len(self.file_N)

    def name(self, row: int) -> str:
        return f"{self.paths[self.file_N[row]]} {self.names[row]}"

    def read(self, rows: Sequence[int]) -> Iterator[bytes]:
        with ExitStack() as opened:
            at, stream = -1, None
            for row in rows:
                if self.file_N[row] != at:
                    opened.close()
                    at = int(self.file_N[row])
                    filesystem, inner = files.open_filesystem(self.paths[at])
                    stream = opened.enter_context(filesystem.open_input_file(inner))
                assert stream is not None
                yield bytes(stream.read_at(int(self.size_N[row]), int(self.start_N[row])))

    @cached_property
    def _digests(self) -> np.ndarray:
        return np.fromiter((_digest64(image) for image in self.read(range(len(self)))), np.uint64, len(self))

    def digests(self) -> np.ndarray:
        return self._digests

    def fingerprint(self) -> str:
        named = [files.fingerprint(path) for path in self.paths]
        return digest([named, self.file_N.tolist(), self.start_N.tolist()])


@dataclass(frozen=True)
class Pixels:
    """Images as arrays: what CIFAR, SVHN and PatchCamelyon come as."""

    parts: tuple[Any, ...]
    """uint8 arrays (H, W, 3) by row, or what behaves like one (an HDF5 data set), one after the other."""
    paths: tuple[str, ...]
    """The file of each part."""

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def _place(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, row, side="right"))
        return part, row - (int(self._ends[part - 1]) if part else 0)

    def name(self, row: int) -> str:
        part, inner = self._place(row)
        return f"{self.paths[part]} row {inner}"

    def read(self, rows: Sequence[int]) -> Iterator[Stored]:
        for row in rows:
            part, inner = self._place(row)
            yield Image.fromarray(np.ascontiguousarray(self.parts[part][inner]))

    @cached_property
    def _digests(self) -> np.ndarray:
        return np.array(
            [_digest64(np.ascontiguousarray(image).tobytes()) for part in self.parts for image in part], dtype=np.uint64
        )

    def digests(self) -> np.ndarray:
        return self._digests

    def fingerprint(self) -> str:
        return digest([files.fingerprint(path) for path in self.paths])


@dataclass(frozen=True)
class ImageSet:
    """N images of C classes, as a data set's folder gives them."""

    name: str
    """As the results call it: gpr1200, dtd, or a name of the user's."""
    kind: Kind
    images: ImageSource
    labels_N: np.ndarray
    """int64 class of each image; -1 for those of a revisited set, whose truth is in a file, and for those with
    captions."""
    class_names: tuple[str, ...] = ()
    """C names, as a prompt says them."""
    descriptions: tuple[str | None, ...] | None = None
    """Of entities: what the knowledge base says of each class."""
    class_images_C: np.ndarray | None = None
    """int64: images of each class in the data that was trained on (i2e), else in this set; for the long tail."""
    of_training: bool = False
    """Whether class_images_C counts what trainings learn from, and not this set alone."""
    domains_N: np.ndarray | None = None
    """Name (str) of each image's domain."""
    splits: dict[str, np.ndarray] = field(default_factory=dict)
    """Rows (int64, growing) by split: train, val, test; query and gallery for a revisited set; UNSEEN."""
    split_by: str = ""
    """Where the splits come from, as the tables say it."""
    boxes: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)
    """Left, top, right, bottom in pixels of what is cut out of the image before anything else."""
    truth: Path | None = None
    """Ground truth of a revisited set (revisited.read_ground_truth)."""
    captions: tuple[str, ...] = ()
    """T texts that describe images …"""
    image_of_T: np.ndarray | None = None
    """… and the row of each one's image."""
    examples: Examples | None = None
    """What OVEN asks of the images."""
    known: str | None = None
    """Its name in known.py, which also names its class names and templates; None: a set of the user's."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Images that are there and not measured on, by reason."""
    lacks: dict[str, str] = field(default_factory=dict)
    """Protocols that would be measured if more of the benchmark were there, with what is missing."""
    notes: tuple[str, ...] = ()
    """What a reader of figures on it must know, whatever was measured."""

    def __post_init__(self) -> None:
        if len(self.labels_N) != len(self.images):
            raise DatasetError(f"{self.name}: {len(self.images)} images and {len(self.labels_N)} labels")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fixed(self) -> bool:
        """Whether the benchmark says which images there are, so that none may be left out."""
        return self.known is not None

    @property
    def has_classes(self) -> bool:
        """Whether its images are told apart by class."""
        return self.kind in ("gpr", "classes")

    @cached_property
    def fingerprint(self) -> str:
        """32 hex characters that change with images and boxes; labels are not what vectors are made of."""
        return digest([self.images.fingerprint(), sorted((row, list(box)) for row, box in self.boxes.items())])

    def rows(self, *names: str) -> np.ndarray:
        """Rows of some splits together, growing; raises DatasetError where one is missing."""
        for name in names:
            if name not in self.splits:
                raise DatasetError(f"{self.name} has no split {name}: it has {', '.join(self.splits) or 'none'}")
        return np.sort(np.concatenate([self.splits[name] for name in names]))

    def probe_rows(self, share: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows to fit on, to choose on, to measure on. A set without `val` gives `share` of each class of `train`."""
        train, test = self.rows("train"), self.rows("test")
        if "val" in self.splits:
            return train, self.rows("val"), test
        parts = split_by_content(self.images.digests()[train], self.labels_N[train], {"val": share, "train": 1 - share})
        return train[parts["train"]], train[parts["val"]], test

    def decoded(self, row: int, stored: Stored) -> Image.Image | Rejected:
        """RGB pixels of an image that was read, cut to its box; or why there are none.

        Upright, but in a benchmark as stored: there EXIF is not looked at, and boxes are of the stored pixels.
        """
        if isinstance(stored, Image.Image):
            image = stored.convert("RGB")
        else:
            content = stored.read_bytes() if isinstance(stored, Path) else stored
            opened = open_rgb(content, LIMITS, upright=not self.fixed)
            if isinstance(opened, Rejected):
                return opened
            image, _ = opened
        box = self.boxes.get(row)
        return image if box is None else image.crop(box)

    def image(self, row: int) -> Image.Image:
        """One image, RGB, upright, cut to its box; raises DatasetError where it cannot be decoded."""
        (stored,) = self.images.read([row])
        opened = self.decoded(row, stored)
        if isinstance(opened, Rejected):
            raise DatasetError(f"{self.name}: {self.images.name(row)} cannot be decoded: {opened.reason}")
        return opened


def split_by_content(digests_N: np.ndarray, labels_N: np.ndarray, shares: dict[str, float]) -> dict[str, np.ndarray]:
    """Rows by split, in the given shares of each class, drawn by hash of the content.

    The same images give the same splits in any order and under any names. Equal images of a class are in one split. The
    only image of a class goes where the middle of the shares lies: of two halves the first, where something is learnt.
    """
    side_N = np.zeros(len(digests_N), dtype=np.int64)
    bounds = np.cumsum(list(shares.values()))[:-1]
    # Mixed: digests decide elsewhere too, and two draws by one digest must not agree.
    mixed_N = mixed(digests_N)
    for label in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == label)
        hashes = mixed_N[rows]
        rank = np.searchsorted(np.sort(hashes), hashes, side="left")
        side_N[rows] = np.searchsorted(bounds, (rank + 0.5) / len(rows), side="left")
    return {name: np.flatnonzero(side_N == i) for i, name in enumerate(shares)}
