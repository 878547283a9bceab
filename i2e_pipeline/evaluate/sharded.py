"""Image sets in shards with the split in each file's name, as hubs publish them.

data/train-00000-of-00294.parquet     rows with an image and a label; the schema's metadata name the labels of Hugging
                                      Face's ClassLabel
train/0000.tar, validation-01.tar     WebDataset: KEY.jpg and KEY.cls; classnames.txt, a line per label, beside or above

Reads    labels and names; images when they are asked for
Writes   Sharded: rows with a label, their splits and what their labels are called
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.evaluate.folders import IMAGE_SUFFIXES
from i2e_pipeline.evaluate.image_set import DatasetError, ImageSource, Members, Rows
from i2e_pipeline.inputs.truth import truths

IMAGE_COLUMNS = ("jpg", "image", "img", "png", "webp", "jpeg", "picture", "photo")
TRUTH_COLUMN = "truth_qid"
LABEL_COLUMNS = (
    TRUTH_COLUMN, "label", "labels", "fine_label", "class", "cls", "entity_id", "qid", "category", "target",
)  # fmt: skip
"""Columns of Parquet files that are looked for, in this order; those that Hugging Face's metadata call Image and
ClassLabel come before others."""
SPLITS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words that name a split in a path, as Hugging Face's `datasets` takes them (docs, "Structure your repository")."""
_WORDS = re.compile(r"[a-z]+")
_LABEL_MEMBERS = ("cls", "cls.txt")
SUFFIXES = (".parquet", ".tar")
_LARGEST = 16 << 20
"""Bytes of a label, or of a list of them, in a tar."""


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    start: int
    """Its first byte."""
    size: int
    content: bytes | None
    """Where it was asked for."""


@dataclass(frozen=True)
class Sharded:
    """N labelled images."""

    images: ImageSource
    labels: Sequence[Any]
    """Label of each image, as it is stored: a number, a text."""
    splits: dict[str, np.ndarray]
    """Rows (int64, growing) by split, where the files' names tell splits; empty where they tell none, or one alone."""
    paths: Sequence[str]
    """The shards."""
    names: Sequence[str] | None
    """What the labels 0, 1, … are called, where the files say so."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Images that are there and have no label or belong to no split, by reason."""


def found(path: str) -> list[str]:
    """Parquet files, else tars, that lie in a folder or up to two folders below it, or that a file's name or a glob
    means; sorted. Empty: there are none."""
    if _is_pattern(path):
        return [info.path for info in files.find((path,), ".tar" if path.endswith(".tar") else ".parquet")]
    there = _suffixes(Path(path), depth=2) if Path(path).is_dir() else set()
    suffix = next((suffix for suffix in SUFFIXES if suffix in there), None)
    return [info.path for info in files.find((path,), suffix)] if suffix else []


def _is_pattern(path: str) -> bool:
    """Also a file's name. A folder is itself, whatever signs it is called by."""
    return (path.endswith(SUFFIXES) or any(c in path for c in "*?[")) and not Path(path).is_dir()


def _suffixes(folder: Path, depth: int) -> set[str]:
    """Which kinds of shards lie in a folder; folders of images, of which there may be thousands, are not read whole."""
    there: set[str] = set()
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                return there
            if suffix in SUFFIXES:
                there.add(suffix)
            elif depth and not files.is_hidden(entry.name) and entry.is_dir():
                below.append(Path(entry.path))
    return there.union(*(_suffixes(inner, depth - 1) for inner in below))


def read(name: str, path: str) -> Sharded:
    """The set at a path. Raises DatasetError where there is no shard, or no image or label in it."""
    paths = found(path)
    if not paths:
        raise DatasetError(f"{name}: {path} holds neither Parquet files nor tars")
    reader = _parquet if paths[0].endswith(".parquet") else _tars
    images, labels, file_N, names, unlabelled = reader(name, paths)
    if not labels:
        raise DatasetError(f"{name}: {path} has no image with a label")
    if names is not None:
        _refuse_unnamed(name, labels, names, images)
    of_file = [split_of(file, _root(path)) for file in paths]
    of_row = np.array([split or "" for split in of_file])[file_N]
    splits = {split: np.flatnonzero(of_row == split) for split in SPLITS if (of_row == split).any()}
    left_out = {"no label": unlabelled} if unlabelled else {}
    if len(splits) < 2:
        return Sharded(images, labels, {}, paths, names, left_out)
    if without := int((of_row == "").sum()):
        left_out["in no split"] = without
    return Sharded(images, labels, splits, paths, names, left_out)


def _refuse_unnamed(name: str, labels: Sequence[Any], names: Sequence[str], images: ImageSource) -> None:
    """Raises DatasetError for a number that the names of the classes, which the set brings itself, do not reach."""
    for row, label in enumerate(labels):
        if isinstance(label, int) and not 0 <= label < len(names):
            raise DatasetError(
                f"{name}: {images.name(row)} has the label {label}, and the set names {len(names):,} classes "
                f"(0 to {len(names) - 1}): mend the label or the list of names (-1 says that there is no label)"
            )


def split_of(path: str, root: str) -> str | None:
    """The split that a path below `root` names; the file's own name says it before the folders do."""
    below = path.removeprefix(root).lower()
    for part in reversed(below.split("/")):
        words = _WORDS.findall(part)
        for split, known in SPLITS.items():
            if any(word in known for word in words):
                return split
    return None


def _root(path: str) -> str:
    """What of a path all its files share: a folder of that name tells no split."""
    if _is_pattern(path):
        path = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
    return path


# -- Parquet ------------------------------------------------------------------------------------------------------


def _parquet(name: str, paths: Sequence[str]) -> tuple[ImageSource, list[Any], np.ndarray, Sequence[str] | None, int]:
    schema = _schema(paths[0])
    features = _features(schema)
    column = _column(schema, IMAGE_COLUMNS, lambda field: _holds_images(field.type), _of_type(features, "Image"))
    label = _column(schema, LABEL_COLUMNS, lambda field: True, _of_type(features, "ClassLabel"))
    if column is None or label is None:
        what, looked_for = ("image", IMAGE_COLUMNS) if column is None else ("label", LABEL_COLUMNS)
        raise DatasetError(
            f"{name}: {paths[0]} has no column of {what}s: looked for {', '.join(looked_for)}; it has "
            f"{', '.join(schema.names)}"
        )
    names = features.get(label, {}).get("names")
    labels: list[Any] = []
    file_N: list[int] = []
    row_N: list[int] = []
    unlabelled = 0
    for number, file in enumerate(paths):
        there = _schema(file).names
        if label not in there or column not in there:
            raise DatasetError(f"{name}: {file} has no column {column} or {label}, and {paths[0]} has both")
        column_L = pq.read_table(file, columns=[label]).column(0).combine_chunks()
        if label == TRUTH_COLUMN:  # what an image does not show is no class
            said = truths(column_L)
            no_class = pc.or_(said["nothing"], pc.is_valid(said["refuted"]))
            column_L = pc.if_else(no_class, pa.scalar(None, column_L.type), column_L)
        for row, key in enumerate(column_L.to_pylist()):
            if key is None or (names is not None and key == -1):  # a ClassLabel of -1: it is kept from us
                unlabelled += 1
                continue
            labels.append(key)
            file_N.append(number)
            row_N.append(row)
    files_N = np.array(file_N, dtype=np.int64)
    return Rows(tuple(paths), column, files_N, np.array(row_N, dtype=np.int64)), labels, files_N, names, unlabelled


def _schema(path: str) -> pa.Schema:
    filesystem, inner = files.open_filesystem(path)
    try:
        return pq.read_schema(inner, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path} is not a Parquet file: {error}") from None


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What `datasets` writes of the columns; empty where it wrote none."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told.get("info", {}).get("features", {})
        return {name: about for name, about in features.items() if isinstance(about, dict) and name in schema.names}
    except (ValueError, AttributeError):
        return {}


def _of_type(features: dict[str, dict[str, Any]], kind: str) -> list[str]:
    return [name for name, about in features.items() if about.get("_type") == kind]


def _column(
    schema: pa.Schema, names: Sequence[str], fits: Callable[[pa.Field], bool], called: Sequence[str]
) -> str | None:
    """The first of the known names among the columns that the metadata call so, else the only one that they call so,
    else the first of the known names that fits."""
    known = next((name for name in names if name in called), None)
    if known is None and len(called) == 1:
        known = called[0]
    return known or next((n for n in names if n in schema.names and fits(schema.field(n))), None)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


# -- tars ---------------------------------------------------------------------------------------------------------


def _tars(name: str, paths: Sequence[str]) -> tuple[ImageSource, list[Any], np.ndarray, Sequence[str] | None, int]:
    labels: list[Any] = []
    file_N: list[int] = []
    found: list[Member] = []
    unlabelled = 0
    for number, path in enumerate(paths):
        image_of: dict[str, Member] = {}
        label_of: dict[str, str] = {}
        for member in members(path, lambda name: name.endswith(_LABEL_MEMBERS)):
            folder, slash, file = member.name.rpartition("/")
            stem, _, suffix = file.partition(".")
            key = f"{folder}{slash}{stem}"
            if member.content is not None and suffix in _LABEL_MEMBERS:
                label_of[key] = member.content.decode("utf-8", "replace").strip()
            elif f".{suffix.lower()}" in IMAGE_SUFFIXES:
                image_of[key] = member
        for key, member in image_of.items():
            if key not in label_of or label_of[key] == "-1":
                unlabelled += 1
                continue
            labels.append(int(label_of[key]) if label_of[key].isdecimal() else label_of[key])
            file_N.append(number)
            found.append(member)
    files_N = np.array(file_N, dtype=np.int64)
    images = Members(tuple(paths), files_N, *places(found))
    return images, labels, files_N, _classnames(paths[0]), unlabelled


def members(path: str, wanted: Callable[[str], bool] = lambda name: False) -> Iterator[Member]:
    """The files in a tar, those of the tars in it among them, with the content of those that are `wanted` by name; or
    in a .tar.gz, where they begin at no byte of the file. Nothing is written. Raises DatasetError."""
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:gz" if path.endswith(".gz") else "r:") as tar:
                yield from _inside(tar, 0, wanted)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise DatasetError(f"{path} is no whole tar ({error}): download it again") from None


def places(found: Sequence[Member]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """First bytes (int64), sizes (int64) and names, as Members has them."""
    starts, sizes = (np.array([one[n] for one in found], dtype=np.int64) for n in (1, 2))
    return starts, sizes, tuple(one.name for one in found)


def _inside(tar: tarfile.TarFile, begin: int, wanted: Callable[[str], bool]) -> Iterator[Member]:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        name = member.name.removeprefix("./")
        if not member.isreg() or member.issparse() or files.is_hidden(name.rpartition("/")[2]):
            continue
        if name.endswith(".tar"):  # as ImageNet's training images are
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as within:
                for one in _inside(within, begin + member.offset_data, wanted):
                    yield one._replace(name=f"{name.removesuffix('.tar')}/{one.name}")
            continue
        file = tar.extractfile(member) if wanted(name) else None
        if file is not None and member.size > _LARGEST:
            raise tarfile.ReadError(f"{name} has {member.size:,} bytes, {_LARGEST:,} at most are read")
        yield Member(name, begin + member.offset_data, member.size, file.read() if file is not None else None)


def _classnames(path: str) -> list[str] | None:
    """Of classnames.txt in the tar's folder or one of the two above it."""
    folder = path
    for _ in range(3):
        folder = folder.rpartition("/")[0] or "."
        place = files.join(folder, "classnames.txt")
        if files.exists(place):
            return [line.strip() for line in files.read_bytes(place).decode("utf-8").splitlines() if line.strip()]
    return None


# -- labels -------------------------------------------------------------------------------------------------------


def as_known(name: str, labels: Sequence[Any], names: Sequence[str] | None, classes: dict[str, str]) -> np.ndarray:
    """Class indices (int64) of labels of a known data set. Raises DatasetError where they cannot be told.

    classes   on the disk → in a prompt, in the order of their indices

    Names are looked up among both. Numbers are the set's own indices where nothing names them, or where half of their
    names are those of the same index: ClassLabels may be in another order, and may be worded otherwise.
    """
    place = {_plain(text): i for texts in (classes.values(), classes) for i, text in enumerate(texts)}

    def looked_up(text: str) -> int | None:
        """`tench, Tinca tinca` as a whole, and by its first name."""
        return place.get(_plain(text), place.get(_plain(text.split(",")[0])))

    said = {label: str(label) for label in set(labels)}
    if all(isinstance(label, int) for label in said):
        if names is None or 2 * sum(looked_up(text) == i for i, text in enumerate(names)) >= len(classes):
            return np.array(labels, dtype=np.int64)
        said = {label: names[label] if 0 <= label < len(names) else str(label) for label in said}
    index = {label: looked_up(text) for label, text in said.items()}
    unknown = sorted(said[label] for label, at in index.items() if at is None)
    if unknown or len(set(index.values())) < len(index):
        what = f"it has no class {', '.join(unknown[:3])}" if unknown else "two of the labels here are one class"
        raise DatasetError(f"{name}: {what}: give these files under another name, to be measured as a set of your own")
    return np.array([index[label] for label in labels], dtype=np.int64)


def _plain(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
