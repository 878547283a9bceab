"""Layouts of the known data sets: what their archives unpack to -> an image set. One function per layout.

Reads    the folder of a data set of known.py; labels and lists now, images when they are asked for
Writes   ImageSet, with the counts that the benchmark has, or a DatasetError that says what is missing and wanted
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from i2e_pipeline.evaluate import sharded
from i2e_pipeline.evaluate.class_prompts import class_names
from i2e_pipeline.evaluate.folders import class_images, folders_in
from i2e_pipeline.evaluate.gpr1200 import DOMAINS
from i2e_pipeline.evaluate.image_set import (
    DatasetError,
    Files,
    ImageSet,
    ImageSource,
    Members,
    Pixels,
    split_by_content,
)
from i2e_pipeline.evaluate.known import KNOWN, wanted
from i2e_pipeline.evaluate.own_layouts import gpr, held_out
from i2e_pipeline.evaluate.revisited import read_ground_truth, read_pickle

_VAL_ARCHIVE, _TRAIN_ARCHIVE = "ILSVRC2012_img_val.tar", "ILSVRC2012_img_train.tar"
_KIT = "ILSVRC2012_devkit_t12.tar.gz"
_OF_KIT = ("ILSVRC2012_validation_ground_truth.txt", "meta.mat")


def open_known(name: str, root: Path) -> ImageSet:
    """A known data set, in whichever of its forms lies in a folder."""
    if name == "imagenet" and (root / _VAL_ARCHIVE).is_file():
        return imagenet_archives(name, root)
    if KNOWN[name].classes and name != "gpr1200" and sharded.found(str(root)):
        return shards(name, root)
    return LAYOUTS[name](name, root)


def shards(name: str, root: Path) -> ImageSet:
    """Parquet files or tars as hubs have them. Where the authors left the splits to others, ours are drawn."""
    found = sharded.read(name, str(root))
    labels_N = sharded.as_known(name, found.labels, found.names, class_names(name))
    if KNOWN[name].drawn is not None or name == "caltech101":
        return _drawn(name, found.images, labels_N)
    wanted_splits = KNOWN[name].splits.keys() | KNOWN[name].optional.keys()
    splits = found.splits or {"test": np.arange(len(labels_N))}
    splits = splits if "val" in wanted_splits else held_out(splits)
    odd = [split for split in splits if split not in wanted_splits]
    if odd:
        raise DatasetError(f"{name}: the files' names tell a split {odd[0]}, which it has not. {wanted(name)}")
    return _known(name, found.images, labels_N, splits, "its files' names")


def gpr1200(name: str, root: Path) -> ImageSet:
    data = gpr(name, _place(name, root, "images"))
    _counted(name, len(data), len(data.class_names), {})
    odd = [c for c, n in enumerate(np.bincount(data.labels_N)) if n != 10]
    if odd:
        raise DatasetError(f"{name}: category {odd[0]} has not ten images. {wanted(name)}")
    return ImageSet(
        name, "gpr", data.images, data.labels_N, data.class_names,
        domains_N=np.array(DOMAINS)[data.labels_N // 200], known=name,
    )  # fmt: skip


def revisited(name: str, root: Path) -> ImageSet:
    truths = [root / f"gnd_{name}.{kind}" for kind in ("pkl", "json")]
    found = [path for path in truths if path.is_file()]
    if not found:
        raise DatasetError(f"{name}: {truths[0]} does not exist. {wanted(name)}")
    truth = read_ground_truth(str(found[0]))
    queries, gallery = truth.query_names, truth.gallery_names
    _counted(name, len(queries) + len(gallery), 0, {"query": len(queries), "gallery": len(gallery)})
    names = [f"jpg/{image}.jpg" for image in (*queries, *gallery)]
    _all_there(name, root, names)
    boxes = {row: query.box for row, query in enumerate(truth.queries) if query.box is not None}
    if len(boxes) < len(queries):
        raise DatasetError(f"{found[0]}: {len(queries) - len(boxes)} queries have no box `bbx` to be cut to")
    return ImageSet(
        name, "revisited", Files(root, tuple(names)), np.full(len(names), -1),
        splits={"query": np.arange(len(queries)), "gallery": np.arange(len(queries), len(names))},
        split_by="ground truth", boxes=boxes, truth=found[0], known=name,
    )  # fmt: skip


def imagenet(name: str, root: Path) -> ImageSet:
    """The validation images, and train/ where it lies beside val/."""
    if not (root / "val").is_dir() or not (root / "train").is_dir():
        place = root / "val" if (root / "val").is_dir() else root
        names, labels_N = _all_classes(name, place)
        without = _known(name, Files(place, names), labels_N, {"test": np.arange(len(names))})
        why = f"no training images: they are wanted in {place.parent if place != root else root}/train/WNID"
        return replace(without, lacks=dict.fromkeys(("knn", "linear_probe"), why))
    parts = {split: _all_classes(name, root / split) for split in ("train", "val")}
    names = tuple(f"{split}/{image}" for split, (inside, _) in parts.items() for image in inside)
    splits = _one_after_another([len(inside) for inside, _ in parts.values()], ("train", "test"))
    return _known(name, Files(root, names), np.concatenate([labels_N for _, labels_N in parts.values()]), splits)


def imagenet_archives(name: str, root: Path) -> ImageSet:
    """The archives as they are downloaded, read where they lie: val, its truth in the development kit, and train where
    it is there, too."""
    _all_there(name, root, [_VAL_ARCHIVE, _KIT])
    truth, wnids = _of_kit(root / _KIT)
    place = {wnid: i for i, wnid in enumerate(class_names(name))}
    parts = {"test": sorted(sharded.members(str(root / _VAL_ARCHIVE)))}
    _counted(name, len(truth), len(wnids), {"test": len(parts["test"])})
    labels = [place[wnids[number]] for number in truth]  # images are numbered in the order of the truth
    paths = [root / _VAL_ARCHIVE]
    if (root / _TRAIN_ARCHIVE).is_file():
        parts["train"] = list(sharded.members(str(root / _TRAIN_ARCHIVE)))
        labels += _labels(name, [one.name.split("/")[0] for one in parts["train"]]).tolist()
        paths.append(root / _TRAIN_ARCHIVE)
    counts = [len(part) for part in parts.values()]
    inside = sharded.places([one for part in parts.values() for one in part])
    images = Members(tuple(map(str, paths)), np.repeat(np.arange(len(parts)), counts), *inside)
    found = _known(name, images, np.array(labels, dtype=np.int64), _one_after_another(counts, list(parts)))
    if "train" in parts:
        return found
    why = f"no training images: {root / _TRAIN_ARCHIVE} is not there"
    return replace(found, lacks=dict.fromkeys(("knn", "linear_probe"), why))


def _of_kit(kit: Path) -> tuple[list[int], dict[int, str]]:
    """ILSVRC2012_ID of each validation image, and the synset of each id."""
    content = {
        name.rpartition("/")[2]: inside
        for name, _, _, inside in sharded.members(str(kit), lambda name: name.endswith(_OF_KIT))
        if inside is not None
    }
    if missing := [file for file in _OF_KIT if file not in content]:
        raise DatasetError(f"{kit} holds no {missing[0]}: download it again. {wanted('imagenet')}")
    synsets = _matlab(io.BytesIO(content["meta.mat"]), f"{kit} meta.mat")["synsets"].ravel()
    wnids = {
        int(np.asarray(one["ILSVRC2012_ID"]).item()): str(np.asarray(one["WNID"]).item())
        for one in synsets
        if not int(np.asarray(one["num_children"]).item())
    }
    return [int(line) for line in content["ILSVRC2012_validation_ground_truth.txt"].split()], wnids


def caltech101(name: str, root: Path) -> ImageSet:
    place = _place(name, root, "101_ObjectCategories")
    names, labels_N = _all_classes(name, place)
    return _drawn(name, Files(place, names), labels_N)


def _drawn(name: str, images: ImageSource, labels_N: np.ndarray) -> ImageSet:
    """Splits that the authors left to others: shares of each class, or of Caltech-101 30 images to train on."""
    _counted(name, len(images), len(class_names(name)), {})
    digests_N = images.digests()
    shares = KNOWN[name].drawn
    if shares is not None:
        by = "60, 20 and 20 % of each class, drawn by hash of the content"
        return _known(name, images, labels_N, split_by_content(digests_N, labels_N, shares), by)
    splits: dict[str, list[int]] = {"train": [], "test": []}
    for label in range(len(class_names(name))):
        rows = np.flatnonzero(labels_N == label)
        rows = rows[np.argsort(digests_N[rows], kind="stable")]
        splits["train"] += rows[:30].tolist()
        splits["test"] += rows[30:].tolist()
    parts = {split: np.sort(np.array(rows, dtype=np.int64)) for split, rows in splits.items()}
    return _known(name, images, labels_N, parts, "30 of each class to train on, drawn by hash of the content")


def cifar100(name: str, root: Path) -> ImageSet:
    place = _below(root, "cifar-100-python")
    _all_there(name, place, ["train", "test", "meta"])
    # read_pickle finds arrays and containers, and runs nothing.
    parts = {split: read_pickle((place / split).read_bytes(), str(place / split)) for split in ("train", "test")}
    fine = _texts(read_pickle((place / "meta").read_bytes(), str(place / "meta"))["fine_label_names"])
    if fine != list(class_names(name)):
        raise DatasetError(f"{name}: {place / 'meta'} names other classes than CIFAR-100's. {wanted(name)}")
    pixels = [np.asarray(p["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for p in parts.values()]
    labels_N = np.concatenate([np.asarray(p["fine_labels"], dtype=np.int64) for p in parts.values()])
    images = Pixels(tuple(pixels), tuple(str(place / split) for split in parts))
    return _known(name, images, labels_N, _one_after_another([len(p) for p in pixels], ("train", "test")))


def svhn(name: str, root: Path) -> ImageSet:
    paths = [root / f"{split}_32x32.mat" for split in ("train", "test")]
    _all_there(name, root, [path.name for path in paths])
    parts = [_matlab(path) for path in paths]
    pixels = tuple(part["X"].transpose(3, 0, 1, 2) for part in parts)
    labels_N = np.concatenate([part["y"].ravel().astype(np.int64) for part in parts]) % 10  # the file calls zero 10
    images = Pixels(pixels, tuple(map(str, paths)))
    return _known(name, images, labels_N, _one_after_another([len(p) for p in pixels], ("train", "test")))


def dtd(name: str, root: Path) -> ImageSet:
    place = _below(root, "dtd/dtd", "dtd")
    lists = {split: f"labels/{split}1.txt" for split in ("train", "val", "test")}
    _all_there(name, place, list(lists.values()))
    listed = {split: (place / file).read_text().split() for split, file in lists.items()}
    names = [f"images/{image}" for part in listed.values() for image in part]
    _all_there(name, place, names)
    labels_N = _labels(name, [image.split("/")[1] for image in names])
    splits = _one_after_another([len(part) for part in listed.values()], tuple(listed))
    return _known(name, Files(place, tuple(names)), labels_N, splits)


def pets(name: str, root: Path) -> ImageSet:
    place = _below(root, "oxford-iiit-pet")
    lists = ["annotations/trainval.txt", "annotations/test.txt"]
    _all_there(name, place, lists)
    listed = [
        [line.split()[0] for line in (place / file).read_text().splitlines() if line and not line.startswith("#")]
        for file in lists
    ]
    stems = [stem for part in listed for stem in part]
    names = [f"images/{stem}.jpg" for stem in stems]
    _all_there(name, place, names)
    labels_N = _labels(name, [stem.rsplit("_", 1)[0].casefold() for stem in stems])
    splits = _one_after_another([len(part) for part in listed], ("train", "test"))
    return _known(name, Files(place, tuple(names)), labels_N, splits)


def flowers102(name: str, root: Path) -> ImageSet:
    place = _below(root, "flowers-102")
    _all_there(name, place, ["imagelabels.mat", "setid.mat"])
    labels_N = _matlab(place / "imagelabels.mat")["labels"].ravel().astype(np.int64) - 1
    ids = _matlab(place / "setid.mat")
    names = [f"jpg/image_{number:05d}.jpg" for number in range(1, len(labels_N) + 1)]
    _all_there(name, place, names)
    splits = {
        split: np.sort(ids[key].ravel().astype(np.int64)) - 1
        for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }
    return _known(name, Files(place, tuple(names)), labels_N, splits)


def drawn_splits(name: str, root: Path) -> ImageSet:
    """EuroSAT and RESISC45: folders of classes, without splits."""
    inner = {"eurosat": ("2750", "EuroSAT", "eurosat/2750", "EuroSAT_RGB"), "resisc45": ("NWPU-RESISC45",)}[name]
    place = _below(root, *inner)
    names, labels_N = _all_classes(name, place)
    return _drawn(name, Files(place, names), labels_N)


def camelyon(name: str, root: Path) -> ImageSet:
    try:
        import h5py
    except ImportError:
        raise DatasetError(f"{name} comes as HDF5 files, and h5py is not installed: pip install h5py") from None
    place = _below(root, "pcam")
    stems = [f"camelyonpatch_level_2_split_{split}" for split in ("train", "valid", "test")]
    _all_there(name, place, [f"{stem}_{kind}.h5" for stem in stems for kind in "xy"])
    paths = [place / f"{stem}_x.h5" for stem in stems]
    pixels = tuple(h5py.File(path, "r")["x"] for path in paths)
    labels = []
    for stem in stems:
        with h5py.File(place / f"{stem}_y.h5", "r") as file:
            labels.append(np.asarray(file["y"], dtype=np.int64).ravel())
    images = Pixels(pixels, tuple(map(str, paths)))
    splits = _one_after_another([len(p) for p in pixels], ("train", "val", "test"))
    return _known(name, images, np.concatenate(labels), splits)


LAYOUTS: MappingProxyType[str, Callable[[str, Path], ImageSet]] = MappingProxyType({
    "gpr1200": gpr1200, "roxford5k": revisited, "rparis6k": revisited, "imagenet": imagenet, "caltech101": caltech101,
    "cifar100": cifar100, "svhn": svhn, "dtd": dtd, "pets": pets, "flowers102": flowers102, "eurosat": drawn_splits,
    "resisc45": drawn_splits, "camelyon": camelyon,
})  # fmt: skip


def _all_classes(name: str, place: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Images and labels of the data set's class folders, each of which must be there."""
    classes = list(class_names(name))
    missing = [c for c in classes if not (place / c).is_dir()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DatasetError(f"{name}: {place} has no folder {', '.join(missing[:3])}{more}. {wanted(name)}")
    return class_images(place, classes)


def _known(
    name: str,
    images: ImageSource,
    labels_N: np.ndarray,
    splits: dict[str, np.ndarray],
    split_by: str = "its authors",
) -> ImageSet:
    classes = tuple(class_names(name).values())
    _counted(name, len(images), len(classes), {split: len(rows) for split, rows in splits.items()})
    if len(np.unique(labels_N)) != len(classes) or labels_N.min() < 0 or labels_N.max() >= len(classes):
        raise DatasetError(
            f"{name}: its labels are {len(np.unique(labels_N))} classes, {labels_N.min()} to {labels_N.max()}; "
            f"0 to {len(classes) - 1} are wanted. {wanted(name)}"
        )
    return ImageSet(
        name, "classes", images, labels_N, classes, splits=splits, split_by=split_by, known=name,
        class_images_C=np.bincount(labels_N, minlength=len(classes)),
    )  # fmt: skip


def _counted(name: str, images: int, classes: int, splits: dict[str, int]) -> None:
    """Raises DatasetError where the counts are not the benchmark's."""
    known = KNOWN[name]
    expected = known.images + sum(count for split, count in known.optional.items() if split in splits)
    wrong = [] if images == expected else [f"{images:,} images instead of {expected:,}"]
    wrong += [] if classes == known.classes else [f"{classes:,} classes instead of {known.classes:,}"]
    by_split = known.splits | known.optional
    wrong += [
        f"{count:,} in {split} instead of {by_split[split]:,}"
        for split, count in splits.items()
        if count != by_split[split]
    ]
    if wrong:
        raise DatasetError(f"{name}: {', '.join(wrong)}. {wanted(name)}")


def _all_there(name: str, root: Path, names: Iterable[str]) -> None:
    missing = [file for file in names if not (root / file).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DatasetError(f"{name}: {root} has no {', '.join(missing[:3])}{more}. {wanted(name)}")


def _below(root: Path, *parts: str) -> Path:
    """The first of these folders that is there, as an archive or torchvision has unpacked it; else the root."""
    return next((root / part for part in parts if (root / part).is_dir()), root)


def _place(name: str, root: Path, inner: str) -> Path:
    """The folder whose part `inner` is there: the root, one folder below it, or its parent."""
    for place in (root, *(folders_in(root))):
        if (place / inner).is_dir():
            return place if name == "gpr1200" else place / inner
    if root.name == inner:
        return root
    raise DatasetError(f"{name}: {root} has no folder {inner}. {wanted(name)}")


def _labels(name: str, keys: Sequence[str]) -> np.ndarray:
    place = {key: i for i, key in enumerate(class_names(name))}
    unknown = sorted({key for key in keys if key not in place})
    if unknown:
        raise DatasetError(f"{name} has no class {', '.join(unknown[:3])}. {wanted(name)}")
    return np.array([place[key] for key in keys], dtype=np.int64)


def _one_after_another(counts: Sequence[int], names: Sequence[str]) -> dict[str, np.ndarray]:
    ends = np.cumsum([0, *counts])
    return {name: np.arange(start, end) for name, start, end in zip(names, ends[:-1], ends[1:], strict=True)}


def _matlab(path: Path | io.BytesIO, called: str = "") -> dict[str, np.ndarray]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DatasetError(f"{called or path} needs scipy to be read: pip install 'i2e-pipeline[evaluate]'") from None
    try:
        found: dict[str, np.ndarray] = loadmat(path)
    except Exception as error:  # scipy raises many kinds for damaged files
        raise DatasetError(
            f"{called or path} cannot be read ({type(error).__name__}: {error}): download it again"
        ) from None
    return found


def _texts(values: Sequence[Any]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
