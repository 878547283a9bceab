"""Layouts of the user's own data sets: GPR1200's naming, folders of classes, shards, a published I2E dataset.

Reads    names and labels; images when they are asked for
Writes   ImageSet
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.core.splits import TEST, TRAIN, VALIDATION, held_out_images
from i2e_pipeline.dataset import published
from i2e_pipeline.evaluate import sharded
from i2e_pipeline.evaluate.folders import IMAGE_SUFFIXES, class_images, folders_in, images_in
from i2e_pipeline.evaluate.image_set import OF_DATASET, UNSEEN, DatasetError, Files, ImageSet, Rows, split_by_content
from i2e_pipeline.evaluate.vectors import natural

GPR_NAME = re.compile(r"(\d+)_.+")
HALVES = {"train": 0.5, "test": 0.5}
"""Of a set without splits: what neighbours and probes learn on, and what they are asked about."""
HALVES_TEXT = "half of each class, drawn by hash of the content"
_SPLITS = (TRAIN, VALIDATION, TEST)


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
        classes = sorted({path.name for split in splits for path in folders_in(root / split)})
        names: list[str] = []
        labels: list[np.ndarray] = []
        rows: dict[str, np.ndarray] = {}
        for split in splits:
            inner, labels_N = class_images(root / split, classes)
            rows[split] = np.arange(len(names), len(names) + len(inner))
            names += [f"{split}/{image}" for image in inner]
            labels.append(labels_N)
        images, labels_N, split_by = Files(root, tuple(names)), np.concatenate(labels), "its folders"
        rows = held_out(rows)
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


def shards(name: str, path: str) -> ImageSet:
    """Rows of Parquet files, or samples of WebDataset tars, with images and labels (sharded.py), split as the files'
    names say.

    `entities.jsonl` beside Parquet files, where there is one, names the labels: {"qid", "label", "description"} a line.
    Rows without a label are left out and counted, and so are truths that name no entity (`none`, `not Q42`).
    """
    found = sharded.read(name, path)
    classes = sorted(set(found.labels), key=natural)
    place = {key: i for i, key in enumerate(classes)}
    labels_N = np.array([place[key] for key in found.labels], dtype=np.int64)
    entities = _entities_beside(found.paths[0])
    known = [entities.get(str(key)) for key in classes]
    splits, split_by = held_out(found.splits), "its files' names"
    if not splits:
        splits, split_by = split_by_content(found.images.digests(), labels_N, HALVES), HALVES_TEXT
    return ImageSet(
        name, "classes", found.images, labels_N,
        tuple(about[0] if about else _called(key, found.names) for key, about in zip(classes, known, strict=True)),
        descriptions=tuple(about[1] if about else None for about in known) if any(known) else None,
        class_images_C=np.bincount(labels_N, minlength=len(classes)),
        splits=splits, split_by=split_by, left_out=found.left_out,
    )  # fmt: skip


def held_out(splits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Where only `val` is held out, it is what is measured on."""
    return {"test" if split == "val" and "test" not in splits else split: rows for split, rows in splits.items()}


def _called(key: Any, names: Sequence[str] | None) -> str:
    if names is not None and isinstance(key, int) and 0 <= key < len(names):
        key = names[key]
    return str(key).replace("_", " ")


def i2e(name: str, path: str) -> ImageSet:
    """A published I2E dataset; an image's class is its most probable label.

    Split as a training splits it: neighbours and probes learn on `train` and are asked about `validation`, retrieval is
    among the images of held-out entities. Where one of these has no image, as a set without splits.
    """
    try:
        found = published.open_published(path)
        held_out_C = pc.equal(found.entities.column("split"), TEST).to_numpy()
        parts = []
        for file in found.files:
            with found.open(file) as opened:
                columns = [c for c in ("image_id", "labels", "split") if c in opened.schema_arrow.names]
                parts.append(_best_labels(opened.read(columns=columns), held_out_C, file.path))
    except published.DatasetError as error:
        raise DatasetError(f"{name}: {error}") from None
    best_N, split_N, ids_N = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    file_N = np.repeat(np.arange(len(parts)), [len(best) for best, _, _ in parts])
    row_N = np.concatenate([np.arange(len(best)) for best, _, _ in parts])
    labelled_N = best_N >= 0
    best_N, split_N, ids_N = best_N[labelled_N], split_N[labelled_N], ids_N[labelled_N]
    splits, split_by = _of_dataset(best_N, split_N, held_out_C)
    if not splits:
        splits, split_by = split_by_content(ids_N, best_N, HALVES), HALVES_TEXT
    entities = found.entities
    places = tuple(files.join(found.folder, file.path) for file in found.files)
    unlabelled = int((~labelled_N).sum())
    return ImageSet(
        name, "classes", Rows(places, "image", file_N[labelled_N], row_N[labelled_N], ids_N), best_N,
        tuple(entities.column("name").to_pylist()), tuple(entities.column("description").to_pylist()),
        class_images_C=entities.column("images").to_numpy(), splits=splits, split_by=split_by,
        left_out={"no label": unlabelled} if unlabelled else {},
    )  # fmt: skip


def _best_labels(table: pa.Table, held_out_C: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row the class of its most probable label (−1: none), its split (its place in _SPLITS, −1: another word),
    and a number that stands for its id.

    table   image_id, labels and, where the dataset has it, split
    Raises published.DatasetError, which begins with `where`, for labels without a score or a class.
    """
    lists = table.column("labels").combine_chunks()
    count_N = np.asarray(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    flat = lists.flatten()
    score_M = np.asarray(flat.field("score").to_numpy(zero_copy_only=False), dtype=np.float32)
    if flat.field("class_index").null_count or not np.isfinite(score_M).all():
        raise published.DatasetError(f"{where}: a label has no score, or a class index is missing")
    class_M = flat.field("class_index").to_numpy(zero_copy_only=False).astype(np.int64)
    if len(class_M) and not 0 <= class_M.min() <= class_M.max() < len(held_out_C):
        raise published.DatasetError(f"{where}: a label names a class that the table of entities has not")
    row_M = np.repeat(np.arange(len(count_N)), count_N)
    best_first_M = np.lexsort((class_M, -score_M, row_M))
    best_N = np.full(len(count_N), -1, dtype=np.int64)
    best_N[count_N > 0] = class_M[best_first_M[(np.cumsum(count_N) - count_N)[count_N > 0]]]
    halves_N2 = id_halves(table.column("image_id"))
    if "split" in table.column_names:
        words = pc.index_in(table.column("split").combine_chunks(), pa.array(_SPLITS))
        split_N = pc.fill_null(words, -1).to_numpy(zero_copy_only=False).astype(np.int8)
    else:
        shows_held_N = np.bincount(row_M, weights=held_out_C[class_M], minlength=len(count_N)) > 0
        drawn_N = np.where(held_out_images(halves_N2), _SPLITS.index(VALIDATION), _SPLITS.index(TRAIN))
        split_N = np.where(shows_held_N, _SPLITS.index(TEST), drawn_N).astype(np.int8)
    return best_N, split_N, halves_N2[:, 0]


def _of_dataset(best_N: np.ndarray, split_N: np.ndarray, held_out_C: np.ndarray) -> tuple[dict[str, np.ndarray], str]:
    """Rows by split, empty where one has none or retrieval would have a single entity."""
    splits = {
        "train": np.flatnonzero(split_N == _SPLITS.index(TRAIN)),
        "test": np.flatnonzero(split_N == _SPLITS.index(VALIDATION)),
        UNSEEN: np.flatnonzero((split_N == _SPLITS.index(TEST)) & held_out_C[best_N]),
    }
    enough = all(len(rows) for rows in splits.values()) and len(np.unique(best_N[splits[UNSEEN]])) > 1
    return (splits, OF_DATASET) if enough else ({}, "")


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
