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

import codecs
import csv
import filecmp
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from i2e_pipeline.evaluate.folders import IMAGE_SUFFIXES, images_below
from i2e_pipeline.evaluate.image_set import DatasetError, Files, ImageSet

_SPLITS = ("test", "val", "train")
"""Whose images are measured, of several: the first that is there."""
_PIPED = re.compile(r"([^|]+?)\s*\|\s*\d+\s*\|?\s*(.*)")
"""A line of results.csv; one of Flickr30k's lacks its second bar (2199200615.jpg| 4   A dog runs …)."""


UNCAPTIONED = "an image without a caption"
STRAY = "a caption of no image"


@dataclass(frozen=True)
class _Captioned:
    """One image of an annotation file."""

    names: tuple[str, ...]
    """Where it may lie below the folder, likeliest first; none for captions of no image."""
    captions: tuple[str, ...]

    @property
    def left_out(self) -> tuple[str, int] | None:
        """Why it is not measured, and how many images or captions that are; None where it is."""
        if not self.names:
            return STRAY, len(self.captions)
        return None if self.captions else (UNCAPTIONED, 1)


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
    Images without a caption and captions of no image are left out and counted. Raises DatasetError where annotations
    cannot be told or read, an image is missing or stands twice, or other images bear its name.
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
        told = list((_reader(path.name) or _by_content)(path))
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(
            f"{name}: {path} cannot be read as {_FORM.get(_reader(path.name), 'captions')} "
            f"({type(error).__name__}: {error}): unpack it again"
        ) from None
    left_out: Counter[str] = Counter()
    for reason, count in filter(None, (image.left_out for image in told)):
        left_out[reason] += count
    images = [image for image in told if image.left_out is None]
    if not images:
        raise DatasetError(f"{name}: {path} names no image with a caption")
    said = re.fullmatch(r"captions_(.+)\.json", path.name)
    names, missing = _lying(folder, [image.names for image in images], said[1] if said else "")
    if missing:
        raise DatasetError(
            f"{name}: {len(missing):,} of {len(images):,} images that {path} names are not below {folder}, first "
            f"{missing[0]}: unpack the images there"
        )
    if twice := [file for file, times in Counter(names).items() if times > 1]:
        raise DatasetError(
            f"{name}: {path} names {twice[0]} as {Counter(names)[twice[0]]} images ({len(twice):,} such in all): leave "
            "one of them out, or name images by folder and file"
        )
    counts = [len(image.captions) for image in images]
    return ImageSet(
        name, "captions", Files(folder, tuple(names)), np.full(len(images), -1, dtype=np.int64),
        captions=tuple(caption for image in images for caption in image.captions),
        image_of_T=np.repeat(np.arange(len(images)), counts), split_by=path.name,
        left_out=dict(left_out),
    )  # fmt: skip


def _looks_right(path: Path) -> bool:
    """Whether it is a file, and not a results.csv of something else."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(200).removeprefix(codecs.BOM_UTF8)
    return path.name.lower() != "results.csv" or first.startswith(b"image_name|")


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
    if wanted is None and splits - {None}:
        raise DatasetError(
            f"{path}: its splits are {', '.join(sorted(map(str, splits)))}, and none of {', '.join(_SPLITS)} is there: "
            "call the images to measure `test`"
        )
    for row in tree["images"]:
        if row.get("split") == wanted:
            file = str(row["filename"])
            below = [f"{row['filepath']}/{file}"] if row.get("filepath") else []
            captions = [sentence["raw"] for sentence in row["sentences"]]
            yield _of((*below, file), captions, f"{path}, {file}")


def _coco(path: Path) -> Iterator[_Captioned]:
    tree = _json(path)
    captions: dict[Any, list[Any]] = {}
    for row in tree["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    known = set()
    for image in sorted(tree["images"], key=lambda row: row["id"]):  # as pycocotools and torchvision order them
        if image["id"] in known:
            raise DatasetError(f"{path}: two images have the id {image['id']!r}: mend the annotations")
        known.add(image["id"])
        yield _of((str(image["file_name"]),), captions.pop(image["id"], []), f"{path}, {image['file_name']}")
    for image_id, of in captions.items():
        yield _of((), of, f"{path}, image_id {image_id!r}")


def _comma(path: Path) -> Iterator[_Captioned]:
    def pair(line: str) -> tuple[str, str] | None:
        image, comma, caption = line.partition(",")
        if caption[:1] == '"' == caption[-1:]:
            caption = next(csv.reader([caption]))[0]
        return (image.strip('"'), caption) if comma else None

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

    header   whether the first line may name the columns, and is then of no image
    only   names that count; None: all that are an image's (Flickr8k has captions of 2258277193_586949ec62.jpg.1)
    """
    captions: dict[str, list[str]] = {}
    stray: list[str] = []
    with path.open(encoding="utf-8-sig") as file:  # splitlines() would end a line at a caption's U+2028, too
        for number, line in enumerate(file, 1):
            found = pair(line.strip())
            if not line.strip() or (header and number == 1 and (found is None or not _is_image(found[0]))):
                continue
            if found is None:
                raise DatasetError(f"{path}, line {number}: no image's name and caption: mend the line or leave it out")
            image, caption = found
            if not _is_image(image):
                stray.append(caption)
            elif only is None or image in only:
                captions.setdefault(image, []).append(caption)
    for image, of in captions.items():
        yield _of((image,), of, f"{path}, {image}")
    for image in sorted((only or set()) - captions.keys()):
        yield _Captioned((image,), ())
    if stray:
        yield _Captioned((), tuple(stray))


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


_FORM: dict[Any, str] = {
    _karpathy: 'Karpathy\'s splits, {"images": [{"filename", "split", "sentences": [{"raw"}]}]}',
    _coco: 'COCO\'s captions, {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}',
}


def _of(names: Sequence[str], captions: Sequence[Any], where: str) -> _Captioned:
    told = tuple("" if caption is None else str(caption).strip() for caption in captions)
    if names and not all(told):
        raise DatasetError(f"{where}: a caption is missing or empty: leave it out of the annotations")
    return _Captioned(tuple(names), told)


def _json(path: Path) -> Any:
    tree = json.loads(path.read_bytes())
    lacking = [key for key in ("images",) if not isinstance(tree, dict) or not isinstance(tree.get(key), list)]
    if lacking:
        raise DatasetError(f"{path} has no list `{lacking[0]}`: it is no annotation file of captions")
    return tree


def _lying(folder: Path, wanted: Sequence[tuple[str, ...]], split: str) -> tuple[list[str], list[str]]:
    """Where each image lies, relative to the folder, and the names of those that do not.

    split   what the annotations are of: of several places of one name that below a folder of this name counts
    """
    below: dict[str, list[str]] | None = None
    found, missing = [], []
    for names in wanted:
        for name in names:
            _refuse_away(name, folder)
        here = next((name for name in names if (folder / name).is_file()), None)
        if here is None:
            below = _below(folder) if below is None else below
            here = _only(below.get(PurePosixPath(names[-1]).name, []), folder, split)
        if here is None:
            missing.append(names[0])
        else:
            found.append(here)
    return found, missing


def _only(places: Sequence[str], folder: Path, split: str) -> str | None:
    """Of the places of a name the one to read, None where there is none; raises DatasetError where other images bear
    the same name."""
    likely = [place for place in places if split in PurePosixPath(place).parts] or places
    for other in likely[1:]:
        if not filecmp.cmp(folder / likely[0], folder / other, shallow=False):
            raise DatasetError(
                f"{folder}: {likely[0]} and {other} are other images of one name, and the annotations do not say "
                "which: let them name images by folder and file, or move one of the folders away"
            )
    return likely[0] if likely else None


def _refuse_away(name: str, folder: Path) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DatasetError(f"an annotation names {name!r}, which does not lie below {folder}: mend the annotations")


def _below(folder: Path) -> dict[str, list[str]]:
    """By name of each image below a folder its paths, relative to it, in order."""
    found: dict[str, list[str]] = {}
    for path in images_below(folder):
        found.setdefault(PurePosixPath(path).name, []).append(path)
    return found
