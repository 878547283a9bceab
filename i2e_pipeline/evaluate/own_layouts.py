"""Layouts of the user's own data sets: GPR1200's naming, folders of classes, Parquet files, a published I2E dataset.

Reads    names and labels; images when they are asked for
Writes   ImageSet
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.dataset import published
from i2e_pipeline.evaluate.folders import IMAGE_SUFFIXES, class_images, folders_in, images_in
from i2e_pipeline.evaluate.image_set import DatasetError, Files, ImageSet, Rows, split_by_content
from i2e_pipeline.evaluate.vectors import natural
from i2e_pipeline.inputs.truth import truths

GPR_NAME = re.compile(r"(\d+)_.+")
HALVES = {"train": 0.5, "test": 0.5}
"""Of a set without splits: what neighbours and probes learn on, and what they are asked about."""
HALVES_TEXT = "half of each class, drawn by hash of the content"
IMAGE_COLUMNS = ("jpg", "image", "png", "webp")
_TRUTH_COLUMN = "truth_qid"
LABEL_COLUMNS = (_TRUTH_COLUMN, "label", "class", "cls", "entity_id", "qid")
"""Columns of Parquet files that are looked for, in this order."""


def gpr(name: str, root: Path) -> ImageSet:
    """Images named CATEGORY_ANYTHING.jpg, in `images/` or in the folder itself.

    domains.json beside them, where there is one: {"names": {category: name}, "descriptions": {category: text},
    "domains": {category: domain}}, each of them as far as it is known.
    """
    place = root / "images" if (root / "images").is_dir() else root
    found = [(int(match[1]), path.name) for path in images_in(place) if (match := GPR_NAME.match(path.name))]
    if not found:
        raise DatasetError(f"{name}: {place} holds no image named CATEGORY_ANYTHING.jpg, CATEGORY a number")
    found.sort()
    categories, labels_N = np.unique([category for category, _ in found], return_inverse=True)
    images = Files(place, tuple(file for _, file in found))
    about: dict[str, dict[str, Any]] = {}
    if (root / "domains.json").is_file():
        about = json.loads((root / "domains.json").read_text(encoding="utf-8"))
    domains = about.get("domains")
    missing = [c for c in categories if domains is not None and str(c) not in domains]
    if missing:
        raise DatasetError(f"{name}: {root / 'domains.json'} names no domain of category {missing[0]}")
    names, told = about.get("names", {}), about.get("descriptions")
    return ImageSet(
        name, "classes", images, labels_N.astype(np.int64),
        tuple(names.get(str(c), f"category {c}") for c in categories),
        tuple(told.get(str(c)) for c in categories) if told is not None else None,
        np.bincount(labels_N),
        domains_N=np.array([domains[str(c)] for c in categories])[labels_N] if domains is not None else None,
        splits=split_by_content(images.digests(), labels_N, HALVES), split_by=HALVES_TEXT,
    )  # fmt: skip


def folder(name: str, root: Path) -> ImageSet:
    """A folder per class; below train/ and val/ or test/ where there are such folders."""
    splits = [part for part in ("train", "val", "test") if (root / part).is_dir()]
    if splits and splits != ["train"]:
        # Where only `val` is held out, it is what is measured on.
        calls = {split: "test" if split == "val" and "test" not in splits else split for split in splits}
        classes = sorted({path.name for split in splits for path in folders_in(root / split)})
        names: list[str] = []
        labels: list[np.ndarray] = []
        rows: dict[str, np.ndarray] = {}
        for split in splits:
            inner, labels_N = class_images(root / split, classes)
            rows[calls[split]] = np.arange(len(names), len(names) + len(inner))
            names += [f"{split}/{image}" for image in inner]
            labels.append(labels_N)
        images, labels_N, split_by = Files(root, tuple(names)), np.concatenate(labels), "its folders"
    else:
        place = root / "train" if splits else root
        classes = [path.name for path in folders_in(place)]
        inner, labels_N = class_images(place, classes)
        images, split_by = Files(place, inner), HALVES_TEXT
        rows = split_by_content(images.digests(), labels_N, HALVES)
    if not len(images):
        raise DatasetError(f"{name}: no folder below {root} holds an image ({', '.join(IMAGE_SUFFIXES)})")
    return ImageSet(
        name, "classes", images, labels_N, tuple(c.replace("_", " ") for c in classes),
        class_images_C=np.bincount(labels_N, minlength=len(classes)), splits=rows, split_by=split_by,
    )  # fmt: skip


def parquet(name: str, path: str) -> ImageSet:
    """Rows of Parquet files with an image column and a label column (IMAGE_COLUMNS, LABEL_COLUMNS).

    `entities.jsonl` beside the files, where there is one, names the labels: {"qid", "label", "description"} a line.
    Rows without a label are left out and counted, and so are truths that name no entity (`none`, `not Q42`).
    """
    paths = [info.path for info in files.find((path,), ".parquet")]
    schema = _schema(paths[0])
    column, label = _column(schema, IMAGE_COLUMNS, _holds_images), _column(schema, LABEL_COLUMNS, lambda kind: True)
    if column is None or label is None:
        what = "image" if column is None else "label"
        looked_for = IMAGE_COLUMNS if column is None else LABEL_COLUMNS
        raise DatasetError(
            f"{name}: {paths[0]} has no column of {what}s: looked for {', '.join(looked_for)}; it has "
            f"{', '.join(schema.names)}"
        )
    keys: list[Any] = []
    file_N: list[int] = []
    row_N: list[int] = []
    unlabelled = 0
    for number, file in enumerate(paths):
        found = _schema(file)
        if label not in found.names or column not in found.names:
            raise DatasetError(f"{name}: {file} has no column {column} or {label}, and {paths[0]} has both")
        column_L = pq.read_table(file, columns=[label]).column(0).combine_chunks()
        if label == _TRUTH_COLUMN:  # what an image does not show is no class
            said = truths(column_L)
            no_class = pc.or_(said["nothing"], pc.is_valid(said["refuted"]))
            column_L = pc.if_else(no_class, pa.scalar(None, column_L.type), column_L)
        for row, key in enumerate(column_L.to_pylist()):
            if key is None:
                unlabelled += 1
                continue
            keys.append(key)
            file_N.append(number)
            row_N.append(row)
    if not keys:
        raise DatasetError(f"{name}: {path} has no row with a label in {label}")
    classes = sorted(set(keys), key=natural)
    place = {key: i for i, key in enumerate(classes)}
    labels_N = np.array([place[key] for key in keys], dtype=np.int64)
    images = Rows(tuple(paths), column, np.array(file_N), np.array(row_N))
    entities = _entities_beside(paths[0])
    known = [entities.get(str(key)) for key in classes]
    return ImageSet(
        name, "classes", images, labels_N,
        tuple(about[0] if about else str(key).replace("_", " ") for key, about in zip(classes, known, strict=True)),
        descriptions=tuple(about[1] if about else None for about in known) if any(known) else None,
        class_images_C=np.bincount(labels_N, minlength=len(classes)),
        splits=split_by_content(images.digests(), labels_N, HALVES), split_by=HALVES_TEXT,
        left_out={"no label": unlabelled} if unlabelled else {},
    )  # fmt: skip


def i2e(name: str, path: str) -> ImageSet:
    """A published I2E dataset; an image's class is its most probable label."""
    try:
        found = published.open_published(path)
        labels: list[int] = []
        file_N: list[int] = []
        row_N: list[int] = []
        ids: list[int] = []
        unlabelled = 0
        for number, file in enumerate(found.files):
            with found.open(file) as opened:
                table = opened.read(columns=["image_id", "labels"])
            keys = id_halves(table.column("image_id"))[:, 0].tolist()
            for row, (key, given) in enumerate(zip(keys, table.column("labels").to_pylist(), strict=True)):
                if not given:
                    unlabelled += 1
                    continue
                labels.append(max(given, key=lambda one: one["score"])["class_index"])
                file_N.append(number)
                row_N.append(row)
                ids.append(key)
    except published.DatasetError as error:
        raise DatasetError(f"{name}: {error}") from None
    labels_N = np.array(labels, dtype=np.int64)
    ids_N = np.array(ids, dtype=np.uint64)
    entities = found.entities
    places = tuple(files.join(found.folder, file.path) for file in found.files)
    return ImageSet(
        name, "classes", Rows(places, "image", np.array(file_N), np.array(row_N), ids_N), labels_N,
        tuple(entities.column("name").to_pylist()), tuple(entities.column("description").to_pylist()),
        class_images_C=entities.column("images").to_numpy(),
        splits=split_by_content(ids_N, labels_N, HALVES), split_by=HALVES_TEXT,
        left_out={"no label": unlabelled} if unlabelled else {},
    )  # fmt: skip


def _schema(path: str) -> pa.Schema:
    filesystem, inner = files.open_filesystem(path)
    try:
        return pq.read_schema(inner, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path} is not a Parquet file: {error}") from None


def _column(schema: pa.Schema, names: Sequence[str], fits: Callable[[pa.DataType], bool]) -> str | None:
    return next((name for name in names if name in schema.names and fits(schema.field(name).type)), None)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _entities_beside(path: str) -> dict[str, tuple[str, str | None]]:
    """Name and description by label of the entities.jsonl in the folder of a file; empty where there is none."""
    place = files.join(path.rpartition("/")[0] or ".", "entities.jsonl")
    if not files.exists(place):
        return {}
    found = {}
    for number, line in enumerate(files.read_bytes(place).decode("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            key = row.get("qid", row.get("id"))
            found[str(key)] = (str(row.get("label", row.get("name", key))), row.get("description"))
        except (ValueError, AttributeError) as error:
            raise DatasetError(f"{place} line {number} is no JSON object: {error}") from None
    return found
