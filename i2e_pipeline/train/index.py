"""The index of a dataset: what a training has to know before it reads an image, and can start from.

Of a row group it knows how many images are trained on, of the whole dataset what an evaluation looks at. Which images
these are, their ids and labels come with the row group, when it is read for its images (dataset/split.py). So the index
has 24 bytes a row group of some 64 MB and nothing per image: every rank holds all of it, in some 70 bytes a row group.

How it is made: index_making.py. Where it lies: indexed.py.

Legend: F files, G row groups.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from i2e_pipeline.dataset.published import ImageFile
from i2e_pipeline.dataset.split import Side
from i2e_pipeline.train.chosen import Chosen

FORMAT = 1
KINDS = {"entities": Side.OF_HELD_OUT_ENTITY, "images": Side.HELD_OUT_IMAGE}
NEIGHBOURS = "trained"
_OF_CHOSEN = tuple(field.name for field in fields(Chosen))


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


def to_bytes(image_files: Sequence[ImageFile], index: Index) -> bytes:
    header = {
        "format": FORMAT, "paths": [f.path for f in image_files], "sides": index.sides, "labels": index.labels,
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
        chosen={kind: Chosen(*(arrays[f"{kind}.{field}"] for field in _OF_CHOSEN)) for kind in (*KINDS, NEIGHBOURS)},
    )
