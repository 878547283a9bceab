"""Data sets by name and path; nothing is ever fetched.

gpr1200 roxford5k rparis6k imagenet caltech101 cifar100 svhn dtd pets flowers102 eurosat resisc45 camelyon
                 the published data sets (known.py), in the layout that their archives unpack to, below torchvision's
                 root, or in shards as hubs have them; ImageNet also in its archives
any other name   what lies at its path tells the layout: a published I2E dataset, OVEN, images with captions (COCO,
                 Flickr), Parquet files or WebDataset tars with images and labels, images in GPR1200's naming, a folder
                 per class
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from i2e_pipeline.core import files
from i2e_pipeline.evaluate import captioned, oven, own_layouts, sharded
from i2e_pipeline.evaluate.folders import IMAGE_SUFFIXES
from i2e_pipeline.evaluate.image_set import DatasetError, ImageSet
from i2e_pipeline.evaluate.known import KNOWN, VTAB, wanted
from i2e_pipeline.evaluate.layouts import open_known
from i2e_pipeline.inputs.shard import ShardError

__all__ = ["KNOWN", "VTAB", "DatasetError", "ImageSet", "check", "open_dataset"]


def open_dataset(name: str, path: str) -> ImageSet:
    """The data set at a path, checked for what its layout wants. Raises DatasetError.

    name   of a known data set, which must be that one whole; any other name is free
    path   a folder; for Parquet files also a file, a glob or a URI
    """
    known = name.casefold()
    if known in KNOWN:
        root = Path(path)
        if not root.is_dir():
            raise DatasetError(f"{name}: {path} is no folder. {wanted(known)}")
        return _read(name, lambda: open_known(known, root))
    return _read(name, lambda: _by_looks(name, path))


def _read(name: str, read: Callable[[], ImageSet]) -> ImageSet:
    try:
        return read()
    except DatasetError:
        raise
    except (OSError, ValueError, KeyError, ShardError) as error:
        # FileNotFoundError, GroundTruthError, a list file with other columns …
        raise DatasetError(f"{name}: {error}") from error


def _by_looks(name: str, path: str) -> ImageSet:
    if all(files.exists(files.join(path, part)) for part in ("images", "entities")):
        return own_layouts.i2e(name, path)
    root = Path(path)
    if oven.annotation_files(root):
        return oven.oven(name, root)
    if captioned.annotation_files(root):
        return captioned.captioned(name, root)
    if sharded.found(path):
        return own_layouts.shards(name, path)
    if not root.is_dir():
        raise DatasetError(f"{name}: {path} does not exist, or is no folder")
    place = root / "images" if (root / "images").is_dir() else root
    inside = sorted(entry.name for entry in place.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
    if inside and all(own_layouts.GPR_NAME.match(entry) for entry in inside):
        return own_layouts.gpr(name, root)
    if any(entry.is_dir() for entry in root.iterdir()) and not inside:
        return own_layouts.folder(name, root)
    raise DatasetError(
        f"{name}: {path} has no layout that is known here. Looked for images/ and entities/ (a published I2E dataset); "
        "oven_entity_val.jsonl, oven_query_val.jsonl (OVEN); dataset_coco.json, "
        "captions_val2017.json, captions.txt, results.csv, *.token (captions of COCO or Flickr); "
        "*.parquet (images and labels by row) or *.tar (KEY.jpg and KEY.cls); CATEGORY_ANYTHING.jpg, CATEGORY a "
        "number, here or in images/ (GPR1200's naming); a folder of images per class, perhaps below train/ and val/ or "
        "test/. "
        f"Known by name: {', '.join(KNOWN)}"
    )


def check(name: str, path: str) -> str:
    """What `i2e doctor` says of a data set; raises DatasetError with the remedy. Compares MD5 sums where there are any.

    Names and counts are looked at, images are not decoded.
    """
    data = open_dataset(name, path)
    known = KNOWN.get(name.casefold())
    compared = 0
    for file, md5 in (known.files if known else {}).items():
        place = next(iter(sorted(Path(path).rglob(file))), None)
        if place is None or _md5(place) != md5:
            raise DatasetError(f"{name}: {place or file} has not the MD5 sum {md5}: download it again. {wanted(name)}")
        compared += 1
    said = f"{len(data):,} images"
    said += f" of {len(data.class_names):,} classes" if data.class_names else ""
    said += f" with {len(data.captions):,} captions" if data.captions else ""
    said += f" for {len(data.examples.data_ids):,} examples" if data.examples else ""
    said += "".join(f", {split} {len(rows):,}" for split, rows in data.splits.items())
    said += "".join(f", {count:,} left out: {why}" for why, count in data.left_out.items())
    return said + (f", MD5 of {compared} files" if compared else "")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
