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

from i2e_pipeline.core import files
from i2e_pipeline.core.config import DataConfig
from i2e_pipeline.dataset import published
from i2e_pipeline.dataset.split import COLUMNS, Rule, Side, split
from i2e_pipeline.evaluate import sharded
from i2e_pipeline.evaluate.folders import IMAGE_SUFFIXES, class_images, folders_in, images_in
from i2e_pipeline.evaluate.image_set import OF_DATASET, UNSEEN, DatasetError, Files, ImageSet, Rows, split_by_content
from i2e_pipeline.evaluate.vectors import natural

GPR_NAME = re.compile(r"(\d+)_.+")
HALVES = {"train": 0.5, "test": 0.5}
"""Of a set without splits: what neighbours and probes learn on, and what they are asked about."""
HALVES_TEXT = "half of each class, drawn by hash of the content"
_SIDES = {"train": Side.TRAINED, "test": Side.HELD_OUT_IMAGE, UNSEEN: Side.OF_HELD_OUT_ENTITY}


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
    among the images of held-out entities. Where that leaves too little, as a set without splits.
    """
    try:
        found = published.open_published(path)
        rule = Rule.of(found.entities, DataConfig())
        parts = []
        for file in found.files:
            with found.open(file) as opened:
                columns = [name for name in COLUMNS if name in opened.schema_arrow.names]
                parts.append(split(opened.read(columns=columns), rule, file.path))
    except published.DatasetError as error:
        raise DatasetError(f"{name}: {error}") from None
    best_N = np.concatenate([part.best_N() for part in parts])
    file_N = np.repeat(np.arange(len(parts)), [len(part.side_N) for part in parts])
    row_N = np.concatenate([np.arange(len(part.side_N)) for part in parts])
    labelled_N = best_N >= 0
    best_N, side_N = best_N[labelled_N], np.concatenate([part.side_N for part in parts])[labelled_N]
    ids_N = np.concatenate([part.ids_N2[:, 0] for part in parts])[labelled_N]
    splits = {name: np.flatnonzero(side_N == side) for name, side in _SIDES.items()}
    split_by, notes = OF_DATASET, list[str]()
    if not all(map(len, splits.values())) or len(np.unique(best_N[splits[UNSEEN]])) < 2:
        held = f"validation images: {len(splits['test'])}, held-out entities: {len(np.unique(best_N[splits[UNSEEN]]))}"
        splits, split_by = split_by_content(ids_N, best_N, HALVES), HALVES_TEXT
        trained = int((side_N[splits["test"]] == Side.TRAINED).sum())
        notes.append(
            f"the dataset's own split holds too little out to measure on ({held}): halves of each class are compared, "
            f"and of the {len(splits['test'])} images that are asked about a training on it sees {trained}"
        )
    entities = found.entities
    places = tuple(files.join(found.folder, file.path) for file in found.files)
    unlabelled = int((~labelled_N).sum())
    return ImageSet(
        name, "classes", Rows(places, "image", file_N[labelled_N], row_N[labelled_N], ids_N), best_N,
        tuple(entities.column("name").to_pylist()), tuple(entities.column("description").to_pylist()),
        class_images_C=entities.column("images").to_numpy(), of_training=True, splits=splits, split_by=split_by,
        left_out={"no label": unlabelled} if unlabelled else {}, notes=tuple(notes),
    )  # fmt: skip


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
