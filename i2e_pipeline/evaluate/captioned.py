"""Layouts of images with captions: COCO, Flickr8k and Flickr30k, as their authors, Karpathy and CLIP_benchmark have
them.

Reads    dataset_coco.json, dataset_flickr8k.json, dataset_flickr30k.json        Karpathy's splits; test is measured
         coco_test_karpathy.json, captions_val2017.json …                        COCO's form
         flickr30k_test_karpathy.txt, captions.txt                               image.jpg,caption a line
         results.csv                                                             image.jpg| number| caption a line
         results_20130124.token, Flickr8k.token.txt                              image.jpg#number, tab, caption a line
         and the images, by the names that these say, anywhere below the folder
Writes   an ImageSet of kind "captions"
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from i2e_pipeline.evaluate.folders import IMAGE_SUFFIXES
from i2e_pipeline.evaluate.image_set import DatasetError, Files, ImageSet

_SPLITS = ("test", "val", "train")
"""Whose images are measured, of several: the first that is there."""
_PIPED = re.compile(r"([^|]+?)\s*\|\s*\d+\s*\|?\s*(.*)")
"""A line of results.csv; one of Flickr30k's lacks its second bar (2199200615.jpg| 4   A dog runs …)."""


@dataclass(frozen=True)
class _Captioned:
    """One image of an annotation file."""

    names: tuple[str, ...]
    """Where it may lie below the folder, likeliest first."""
    captions: tuple[str, ...]


def annotation_files(root: Path) -> list[Path]:
    """The annotation files at a path that fit best: those of Karpathy's splits before COCO's before lists, and test
    before val before train. One where it is the file itself, whose name is then free if it ends in .json; none where
    there is none."""
    if root.is_file():
        return [root] if _reader(root.name) or root.suffix == ".json" else []
    places = [place for place in (root, root / "annotations") if place.is_dir()]
    found = [path for place in places for path in sorted(place.iterdir()) if _reader(path.name) and _looks_right(path)]
    ranks = [(_rank(path.name), path) for path in found]
    return [path for rank, path in ranks if rank == min(ranks)[0]]


def captioned(name: str, root: Path) -> ImageSet:
    """The images of an annotation file with their captions; those of its test split, where it has splits.

    root   a folder, or the annotation file, whose images then lie beside it, or beside the folder `annotations`
    Raises DatasetError where annotations cannot be told or read, or an image is missing.
    """
    found = annotation_files(root)
    if len(found) > 1:
        raise DatasetError(
            f"{name}: {root} has several annotation files, {', '.join(path.name for path in found)}: name one of them "
            f"(--data {name}={found[0]})"
        )
    (path,) = found
    folder = path.parent.parent if path.parent.name == "annotations" else path.parent
    try:
        images = list((_reader(path.name) or _by_content)(path))
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(
            f"{name}: {path} cannot be read as {_FORM.get(_reader(path.name), 'captions')} "
            f"({type(error).__name__}: {error}): unpack it again"
        ) from None
    if not images:
        raise DatasetError(f"{name}: {path} names no image with a caption")
    names, missing = _lying(folder, [image.names for image in images])
    if missing:
        raise DatasetError(
            f"{name}: {len(missing):,} of {len(images):,} images that {path} names are not below {folder}, first "
            f"{missing[0]}: unpack the images there"
        )
    counts = [len(image.captions) for image in images]
    return ImageSet(
        name, "captions", Files(folder, tuple(names)), np.full(len(images), -1, dtype=np.int64),
        captions=tuple(caption for image in images for caption in image.captions),
        image_of_T=np.repeat(np.arange(len(images)), counts), split_by=path.name,
    )  # fmt: skip


def _looks_right(path: Path) -> bool:
    """Whether it is a file, and not a results.csv of something else."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.name.lower() != "results.csv" or file.readline(200).startswith(b"image_name|")


def _by_content(path: Path) -> Iterator[_Captioned]:
    """A .json of any name: of COCO's form, or of Karpathy's."""
    return _coco(path) if "annotations" in _json(path) else _karpathy(path)


def _reader(file: str) -> Callable[[Path], Iterator[_Captioned]] | None:
    """What reads an annotation file of that name; None for any other file."""
    lower = file.lower()
    if re.fullmatch(r"dataset_(coco|flickr8k|flickr30k)\.json", lower):  # hubs have dataset_infos.json
        return _karpathy
    if re.fullmatch(r"captions_.*\.json|\w+_karpathy\.json", lower):
        return _coco
    if re.fullmatch(r"captions\.txt|\w+_karpathy\.txt", lower):
        return _comma
    if re.fullmatch(r".+\.token(\.txt)?", lower):
        return _token
    return _pipe if lower == "results.csv" else None


def _rank(file: str) -> tuple[int, int]:
    kinds = (_karpathy, _coco, _comma, _pipe, _token)
    read = _reader(file)
    split = next((n for n, word in enumerate(_SPLITS) if word in file.lower()), 0)
    return kinds.index(read), split


def _karpathy(path: Path) -> Iterator[_Captioned]:
    tree = _json(path)
    splits = {row.get("split") for row in tree["images"]}
    wanted = next((split for split in _SPLITS if split in splits), None)
    for row in tree["images"]:
        if row.get("split") == wanted:
            file = str(row["filename"])
            below = [f"{row['filepath']}/{file}"] if row.get("filepath") else []
            captions = [str(sentence["raw"]) for sentence in row["sentences"]]
            yield _of((*below, file), captions, f"{path}, {file}")


def _coco(path: Path) -> Iterator[_Captioned]:
    tree = _json(path)
    captions: dict[Any, list[str]] = {}
    for row in tree["annotations"]:
        captions.setdefault(row["image_id"], []).append(str(row["caption"]))
    for image in sorted(tree["images"], key=lambda row: row["id"]):  # as pycocotools and torchvision order them
        if image["id"] in captions:
            yield _of((str(image["file_name"]),), captions[image["id"]], f"{path}, {image['file_name']}")


def _comma(path: Path) -> Iterator[_Captioned]:
    def pair(line: str) -> tuple[str, str] | None:
        image, comma, caption = line.partition(",")
        if caption[:1] == '"' == caption[-1:]:
            caption = next(csv.reader([caption]))[0]
        return (image, caption) if comma else None

    yield from _listed(path, pair, header=True)


def _pipe(path: Path) -> Iterator[_Captioned]:
    def pair(line: str) -> tuple[str, str] | None:
        match = _PIPED.fullmatch(line)
        return (match[1], match[2]) if match else None

    yield from _listed(path, pair, header=True)


def _token(path: Path) -> Iterator[_Captioned]:
    def pair(line: str) -> tuple[str, str] | None:
        image, tab, caption = line.partition("\t")
        return (image.rpartition("#")[0], caption) if tab and "#" in image else None

    asked = path.parent / "Flickr_8k.testImages.txt"
    only = set(asked.read_text(encoding="utf-8").split()) if asked.is_file() else None
    yield from _listed(path, pair, header=False, only=only)


def _listed(
    path: Path, pair: Callable[[str], tuple[str, str] | None], header: bool, only: set[str] | None = None
) -> Iterator[_Captioned]:
    """Images in the order of their first line.

    only   names that count; None: all that are an image's (Flickr8k has captions of 2258277193_586949ec62.jpg.1)
    """
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if (header and number == 1) or not line.strip():
            continue
        found = pair(line.strip())
        if found is None:
            raise DatasetError(f"{path}, line {number}: no image's name and caption: mend the line or leave it out")
        image, caption = found
        if PurePosixPath(image).suffix.lower() in IMAGE_SUFFIXES and (only is None or image in only):
            captions.setdefault(image, []).append(caption)
    for image, of in captions.items():
        yield _of((image,), of, f"{path}, {image}")


_FORM: dict[Any, str] = {
    _karpathy: 'Karpathy\'s splits, {"images": [{"filename", "split", "sentences": [{"raw"}]}]}',
    _coco: 'COCO\'s captions, {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}',
}


def _of(names: Sequence[str], captions: Sequence[str], where: str) -> _Captioned:
    told = tuple(caption.strip() for caption in captions)
    if not told or not all(told):
        raise DatasetError(f"{where}: a caption is missing or empty: leave the image out of the annotations")
    return _Captioned(tuple(names), told)


def _json(path: Path) -> Any:
    tree = json.loads(path.read_bytes())
    lacking = [key for key in ("images",) if not isinstance(tree, dict) or not isinstance(tree.get(key), list)]
    if lacking:
        raise DatasetError(f"{path} has no list `{lacking[0]}`: it is no annotation file of captions")
    return tree


def _lying(folder: Path, wanted: Sequence[tuple[str, ...]]) -> tuple[list[str], list[str]]:
    """Where each image lies, relative to the folder, and the names of those that do not."""
    below: dict[str, str] | None = None
    found, missing = [], []
    for names in wanted:
        for name in names:
            _refuse_away(name, folder)
        here = next((name for name in names if (folder / name).is_file()), None)
        if here is None:
            below = _below(folder) if below is None else below
            here = below.get(PurePosixPath(names[-1]).name)
        if here is None:
            missing.append(names[0])
        else:
            found.append(here)
    return found, missing


def _refuse_away(name: str, folder: Path) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DatasetError(f"an annotation names {name!r}, which does not lie below {folder}: mend the annotations")


def _below(folder: Path) -> dict[str, str]:
    """Path relative to the folder by name of each image below it; of equal names the first in order."""
    found: dict[str, str] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES):
                found.setdefault(name, (Path(place) / name).relative_to(folder).as_posix())
    return found
