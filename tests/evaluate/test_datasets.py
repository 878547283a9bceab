"""Layouts: what lies on the disk becomes images, classes and splits; what is missing is named."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from i2e_pipeline.core.config import EvaluateConfig, TrainConfig
from i2e_pipeline.dataset.published import open_published
from i2e_pipeline.evaluate import known as known_sets
from i2e_pipeline.evaluate.class_prompts import class_names, prompts
from i2e_pipeline.evaluate.datasets import KNOWN, check, open_dataset
from i2e_pipeline.evaluate.embed import Embedded
from i2e_pipeline.evaluate.image_set import OF_DATASET, UNSEEN, DatasetError, ImageSet, split_by_content
from i2e_pipeline.evaluate.task import Task
from i2e_pipeline.train.samples import Samples
from tests.small_models import picture, stored
from tests.train.small_dataset import entity_row, image_row, write_dataset


def tiny(number: int) -> bytes:
    """A PNG of two pixels, another for each number below 2^24."""
    pixels = np.array([[list(number.to_bytes(3, "big")), [0, 0, 0]]], dtype=np.uint8)
    return stored(Image.fromarray(pixels))


def write(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny(number))
    return root


def shrunk(monkeypatch: pytest.MonkeyPatch, name: str, images: int, **splits: int) -> None:
    """Let a known data set be as small as the test's."""
    changed = replace(KNOWN[name], images=images, splits=splits)
    monkeypatch.setitem(known_sets._ALL, name, changed)


# -- published sets -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gpr1200")
    (root / "images").mkdir()
    content = tiny(0)
    for category in range(1200):
        for number in range(10):
            (root / "images" / f"{category}_{number * 97}.jpg").write_bytes(content)
    return root


@pytest.mark.slow
def test_gpr1200_takes_classes_and_domains_from_its_file_names(gpr_folder: Path) -> None:
    data = open_dataset("gpr1200", str(gpr_folder))
    assert (len(data), data.kind, data.fixed) == (12_000, "gpr", True)
    assert np.array_equal(data.labels_N, np.repeat(np.arange(1200), 10))
    assert data.domains_N is not None
    assert data.domains_N[[0, 1999, 2000, 11_999]].tolist() == ["landmarks", "landmarks", "nature", "faces"]


@pytest.mark.slow
def test_gpr1200_with_an_image_missing_says_so_and_where_it_is_to_be_had(gpr_folder: Path) -> None:
    lost = gpr_folder / "images" / "7_97.jpg"
    lost.rename(gpr_folder / "lost.jpg")
    try:
        with pytest.raises(DatasetError, match=r"gpr1200: 11,999 images instead of 12,000.*Visual-Computing/GPR1200"):
            open_dataset("gpr1200", str(gpr_folder))
        shutil.copy(gpr_folder / "images" / "8_97.jpg", gpr_folder / "images" / "8_5.jpg")
        with pytest.raises(DatasetError, match="category 7 has not ten images"):
            open_dataset("gpr1200", str(gpr_folder))
    finally:
        (gpr_folder / "images" / "8_5.jpg").unlink(missing_ok=True)
        (gpr_folder / "lost.jpg").rename(lost)


def test_roxford_puts_queries_first_with_their_boxes(real_data: Path, tmp_path: Path) -> None:
    truth = real_data / "eval" / "revisitop" / "gnd_roxford5k.pkl"
    shutil.copy(truth, tmp_path)
    published = json.loads(truth.with_suffix(".json").read_text())
    with pytest.raises(DatasetError, match=r"has no jpg/all_souls_000013.jpg.* and 5060 more.*robots.ox.ac.uk"):
        open_dataset("roxford5k", str(tmp_path))
    (tmp_path / "jpg").mkdir()
    for name in (*published["qimlist"], *published["imlist"]):
        (tmp_path / "jpg" / f"{name}.jpg").write_bytes(b"")
    data = open_dataset("roxford5k", str(tmp_path))
    assert (len(data), len(data.splits["query"]), len(data.splits["gallery"])) == (5063, 70, 4993)
    assert data.images.name(0) == f"jpg/{published['qimlist'][0]}.jpg"
    assert data.images.name(70) == f"jpg/{published['imlist'][0]}.jpg"
    assert {row: list(box) for row, box in data.boxes.items()} == {
        row: query["bbx"] for row, query in enumerate(published["gnd"])
    }


def test_a_ground_truth_of_another_data_set_is_refused(real_data: Path, tmp_path: Path) -> None:
    shutil.copy(real_data / "eval" / "revisitop" / "gnd_roxford5k.pkl", tmp_path / "gnd_rparis6k.pkl")
    with pytest.raises(DatasetError, match="4,993 in gallery instead of 6,322"):
        open_dataset("rparis6k", str(tmp_path))


def test_imagenet_orders_classes_by_synset_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk(monkeypatch, "imagenet", 1000, test=1000)
    root = write(tmp_path, [f"val/{wnid}/image.JPEG" for wnid in reversed(class_names("imagenet"))])
    data = open_dataset("imagenet", str(root))
    assert data.class_names[:2] == ("tench", "goldfish")
    assert data.images.name(1).startswith("n01443537/")
    assert np.array_equal(data.labels_N, np.arange(1000))
    shutil.rmtree(root / "val" / "n01443537")
    with pytest.raises(DatasetError, match=r"has no folder n01443537.*image-net.org"):
        open_dataset("imagenet", str(root))


def test_imagenet_takes_its_training_images_where_they_are_and_says_so_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrunk(monkeypatch, "imagenet", 1000, test=1000)
    monkeypatch.setitem(known_sets._ALL, "imagenet", replace(KNOWN["imagenet"], optional={"train": 2000}))
    wnids = list(class_names("imagenet"))
    root = write(tmp_path, [f"val/{wnid}/image.JPEG" for wnid in wnids])
    alone = open_dataset("imagenet", str(root))
    assert set(alone.splits) == {"test"}
    assert (
        alone.lacks["knn"]
        == alone.lacks["linear_probe"]
        == (f"no training images: they are wanted in {root}/train/WNID")
    )
    write(tmp_path, [f"train/{wnid}/{n}.JPEG" for wnid in wnids for n in range(2)])
    data = open_dataset("imagenet", str(root))
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 2000, "test": 1000}
    assert not data.lacks
    assert {data.images.name(int(row)).split("/")[0] for row in data.splits["test"]} == {"val"}
    assert [data.labels_N[data.splits[split]].tolist() for split in ("train", "test")] == [
        np.repeat(np.arange(1000), 2).tolist(), list(range(1000)),
    ]  # fmt: skip
    (root / "train" / wnids[3] / "1.JPEG").unlink()
    with pytest.raises(DatasetError, match="1,999 in train instead of 2,000"):
        open_dataset("imagenet", str(root))


def test_cifar100_is_read_from_its_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk(monkeypatch, "cifar100", 200, train=100, test=100)
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (100, 3072), dtype=np.uint8)
    for split in ("train", "test"):
        content = {"data": rows, "fine_labels": list(range(100)), "coarse_labels": [0] * 100}
        (root / split).write_bytes(pickle.dumps(content, protocol=2))
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": list(class_names("cifar100"))}, protocol=2))
    data = open_dataset("cifar100", str(tmp_path))
    assert data.splits["test"].tolist() == list(range(100, 200))
    red = np.asarray(data.image(3))[:, :, 0]
    assert np.array_equal(red.ravel(), rows[3, :1024])
    assert data.class_names[data.labels_N[1]] == "aquarium fish"


class _Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harm-was-done"),)  # type: ignore[return-value]


def test_a_cifar_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test", "meta"):
        (tmp_path / name).write_bytes(pickle.dumps(_Harm()))
    with pytest.raises(DatasetError, match="train"):
        open_dataset("cifar100", str(tmp_path))
    assert not (tmp_path / "harm-was-done").exists()


def test_svhn_calls_zero_ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    shrunk(monkeypatch, "svhn", 20, train=10, test=10)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
    for split in ("train", "test"):
        labels = np.arange(1, 11, dtype=np.uint8)[:, None]
        scipy_io.savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": labels})
    data = open_dataset("svhn", str(tmp_path))
    assert data.labels_N[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert np.array_equal(np.asarray(data.image(12)), pixels[..., 2])
    with pytest.raises(DatasetError, match="has not the MD5 sum e26dedcc434d2e4c54c9b2d4a06d8373"):
        check("svhn", str(tmp_path))


def test_dtd_pets_and_flowers_follow_their_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    shrunk(monkeypatch, "dtd", 141, train=47, val=47, test=47)
    root = write(tmp_path / "dtd", [f"dtd/images/{c}/{c}_{s}.jpg" for c in class_names("dtd") for s in ("a", "b", "c")])
    (root / "dtd" / "labels").mkdir()
    for split, suffix in (("train", "b"), ("val", "a"), ("test", "c")):
        (root / "dtd" / "labels" / f"{split}1.txt").write_text(
            "".join(f"{c}/{c}_{suffix}.jpg\n" for c in class_names("dtd"))
        )
    data = open_dataset("dtd", str(root))
    assert data.images.name(int(data.splits["val"][0])) == "images/banded/banded_a.jpg"
    assert np.array_equal(data.labels_N[data.splits["test"]], np.arange(47))

    shrunk(monkeypatch, "pets", 74, train=37, test=37)
    breeds = ["Abyssinian" if c == "abyssinian" else c for c in class_names("pets")]
    root = write(tmp_path / "pets", [f"images/{b}_{n}.jpg" for b in breeds for n in (1, 2)])
    (root / "annotations").mkdir()
    (root / "annotations" / "trainval.txt").write_text("# a comment\n" + "".join(f"{b}_1 1 1 1\n" for b in breeds))
    (root / "annotations" / "test.txt").write_text("".join(f"{b}_2 1 1 1\n" for b in breeds))
    data = open_dataset("pets", str(root))
    assert np.array_equal(data.labels_N[data.splits["train"]], np.arange(37))
    (root / "images" / "beagle_2.jpg").unlink()
    with pytest.raises(DatasetError, match=r"has no images/beagle_2.jpg\. Oxford-IIIT Pet is to be had at"):
        open_dataset("pets", str(root))

    shrunk(monkeypatch, "flowers102", 204, train=51, val=51, test=102)
    root = write(tmp_path / "flowers", [f"jpg/image_{n:05d}.jpg" for n in range(1, 205)])
    numbers = np.arange(1, 205)
    scipy_io.savemat(root / "imagelabels.mat", {"labels": (numbers - 1) % 102 + 1})
    scipy_io.savemat(root / "setid.mat", {"trnid": numbers[:51], "valid": numbers[51:102], "tstid": numbers[102:]})
    data = open_dataset("flowers102", str(root))
    assert data.class_names[data.labels_N[103]] == "hard-leaved pocket orchid"
    assert data.splits["val"].tolist() == list(range(51, 102))


def test_sets_without_splits_of_their_own_are_split_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk(monkeypatch, "eurosat", 100, train=60, val=20, test=20)
    root = write(tmp_path / "a", [f"2750/{c}/{c}_{n}.jpg" for c in class_names("eurosat") for n in range(10)])
    data = open_dataset("eurosat", str(root))
    assert [np.bincount(data.labels_N[data.splits[s]]).tolist() for s in ("train", "val", "test")] == [
        [6] * 10, [2] * 10, [2] * 10,
    ]  # fmt: skip
    shrunk(monkeypatch, "resisc45", 450, train=270, val=90, test=90)
    names = [f"NWPU-RESISC45/{c}/{c}_{n:03d}.jpg" for c in class_names("resisc45") for n in range(10)]
    root = write(tmp_path / "b", names)
    assert "hash" in open_dataset("resisc45", str(root)).split_by


def test_caltech101_trains_on_thirty_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk(monkeypatch, "caltech101", 102 * 31, train=102 * 30, test=102)
    names = [f"101_ObjectCategories/{c}/image_{n:04d}.jpg" for c in class_names("caltech101") for n in range(31)]
    root = write(tmp_path / "caltech101", names)
    (root / "101_ObjectCategories" / "BACKGROUND_Google" / "tmp").write_bytes(b"the archive has this file")
    for place in (root, tmp_path, root / "101_ObjectCategories"):
        data = open_dataset("caltech101", str(place))
        assert np.bincount(data.labels_N[data.splits["train"]]).tolist() == [30] * 102


def test_camelyon_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    shrunk(monkeypatch, "camelyon", 12, train=4, val=4, test=4)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    (tmp_path / "pcam").mkdir()
    for split in ("train", "valid", "test"):
        with h5py.File(tmp_path / "pcam" / f"camelyonpatch_level_2_split_{split}_x.h5", "w") as file:
            file["x"] = pixels
        with h5py.File(tmp_path / "pcam" / f"camelyonpatch_level_2_split_{split}_y.h5", "w") as file:
            file["y"] = np.array([0, 1, 1, 0], dtype=np.uint8).reshape(4, 1, 1, 1)
    data = open_dataset("camelyon", str(tmp_path))
    assert np.array_equal(np.asarray(data.image(6)), pixels[2])
    assert data.labels_N.tolist() == [0, 1, 1, 0] * 3
    assert data.splits["val"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_each_known_set_says_what_is_wanted_where_the_folder_is_missing(name: str) -> None:
    with pytest.raises(DatasetError, match=r"is no folder\. .*is to be had at http.*Wanted in the folder"):
        open_dataset(name, "no/such/folder")


@pytest.mark.parametrize("name", sorted(n for n in KNOWN if KNOWN[n].classes and n != "gpr1200"))
def test_class_names_and_templates_are_whole(name: str) -> None:
    told = prompts(name)
    assert len(told["classes"]) == KNOWN[name].classes
    assert all(told["classes"].values())
    assert told["templates"]
    assert all(template.count("{c}") == 1 for template in told["templates"])
    assert "MIT" in told["source"]


# -- published sets as hubs and torchvision have them ---------------------------------------------------------------


def hub_file(
    path: Path, labels: list[int], names: list[str] | None, image: str = "image", label: str = "label"
) -> None:
    """Rows as `datasets` writes them to Parquet; each file has other images."""
    begin = zlib.crc32(path.stem.encode()) % 10_000
    rows = [{"bytes": tiny(begin + n), "path": None} for n in range(len(labels))]
    table = pa.table({image: rows, label: pa.array(labels, pa.int64())})
    features = {
        image: {"_type": "Image"},
        label: {"_type": "ClassLabel", "names": names} if names else {"_type": "Value", "dtype": "int64"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def tar_of(path: Path, members: dict[str, bytes]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.read_bytes()


@pytest.mark.parametrize("root", ["", "dtd", "dtd/dtd"])
def test_dtd_is_found_below_torchvisions_root(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk(monkeypatch, "dtd", 141, train=47, val=47, test=47)
    place = write(tmp_path / root, [f"images/{c}/{c}_{s}.jpg" for c in class_names("dtd") for s in "abc"])
    (place / "labels").mkdir()
    for split, suffix in (("train", "b"), ("val", "a"), ("test", "c")):
        lines = "".join(f"{c}/{c}_{suffix}.jpg\n" for c in class_names("dtd"))
        (place / "labels" / f"{split}1.txt").write_text(lines)
    assert len(open_dataset("dtd", str(tmp_path))) == 141


def test_a_known_set_in_a_hubs_parquet_has_its_authors_splits_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: train and test mixed and halved by hash; labels in the order of the file's names, not of ours."""
    shrunk(monkeypatch, "dtd", 141, train=47, val=47, test=47)
    names = [name.title() for name in reversed(class_names("dtd"))]
    for split in ("train", "validation", "test"):
        hub_file(tmp_path / "data" / f"{split}-00000-of-00001.parquet", list(range(47)), names)
    data = open_dataset("dtd", str(tmp_path))
    assert {split: len(rows) for split, rows in data.splits.items()} == {"test": 47, "train": 47, "val": 47}
    assert data.labels_N[data.splits["val"]].tolist() == list(reversed(range(47)))
    assert "validation" in data.images.name(int(data.splits["val"][0]))
    assert data.class_names == tuple(class_names("dtd").values())
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DatasetError, match="94 images instead of 141"):
        open_dataset("dtd", str(tmp_path))


def test_cifar100_of_a_hub_has_other_column_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk(monkeypatch, "cifar100", 200, train=100, test=100)
    for split in ("train", "test"):
        path = tmp_path / "cifar100" / f"{split}-00000-of-00001.parquet"
        hub_file(path, list(range(100)), list(class_names("cifar100")), "img", "fine_label")
    data = open_dataset("cifar100", str(tmp_path))
    assert data.labels_N[data.splits["test"]].tolist() == list(range(100))
    assert data.image(0).size == (2, 1)


def test_imagenet_of_a_hub_is_numbered_by_synsets_and_its_unlabelled_test_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrunk(monkeypatch, "imagenet", 1000, test=1000)
    monkeypatch.setitem(known_sets._ALL, "imagenet", replace(KNOWN["imagenet"], optional={"train": 2000}))
    names = [f"{name}, otherwise called" for name in class_names("imagenet").values()]
    hub_file(tmp_path / "data" / "train-00000-of-00001.parquet", [*range(1000), *range(1000)], names)
    hub_file(tmp_path / "data" / "validation-00000-of-00001.parquet", list(range(1000)), names)
    hub_file(tmp_path / "data" / "test-00000-of-00001.parquet", [-1] * 5, names)
    data = open_dataset("imagenet", str(tmp_path))
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 2000, "test": 1000}
    assert data.labels_N[data.splits["test"]].tolist() == list(range(1000))


def test_imagenet_as_webdataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk(monkeypatch, "imagenet", 1000, test=1000)
    for shard in range(2):
        members = {}
        for n in range(500 * shard, 500 * shard + 500):
            members |= {f"val_{n:04d}.jpg": tiny(n), f"val_{n:04d}.cls": str(n).encode()}
        tar_of(tmp_path / f"imagenet1k-validation-0{shard}.tar", members)
    data = open_dataset("imagenet", str(tmp_path))
    assert data.labels_N.tolist() == list(range(1000))
    assert np.asarray(data.image(777))[0, 0].tolist() == list((777).to_bytes(3, "big"))
    assert len(np.unique(data.images.digests())) == 1000


def test_imagenet_is_read_from_its_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: 150 GB that must be unpacked and sorted by hand before anything can be measured."""
    scipy_io = pytest.importorskip("scipy.io")
    shrunk(monkeypatch, "imagenet", 1000, test=1000)
    monkeypatch.setitem(known_sets._ALL, "imagenet", replace(KNOWN["imagenet"], optional={"train": 2000}))
    wnids = list(class_names("imagenet"))
    ids = np.random.default_rng(0).permutation(1000) + 1  # the kit's own numbers are in another order
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.array(
        [(int(ids[c]), wnids[c], "a word", "", 0) for c in range(1000)] + [(1001, "n1", "up", "", 3)], kinds
    )
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": synsets[:, None]})
    order = np.random.default_rng(1).permutation(1000)
    truth = "".join(f"{ids[c]}\n" for c in order)
    inside = "ILSVRC2012_devkit_t12/data"
    kit = {f"{inside}/meta.mat": meta.getvalue(), f"{inside}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    val = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": tiny(n) for n in reversed(range(1000))}
    tar_of(tmp_path / "ILSVRC2012_img_val.tar", val)
    with pytest.raises(DatasetError, match=r"has no ILSVRC2012_devkit_t12\.tar\.gz"):
        open_dataset("imagenet", str(tmp_path))
    tar_of(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", kit)
    data = open_dataset("imagenet", str(tmp_path))
    assert data.labels_N.tolist() == order.tolist()
    assert np.asarray(data.image(5))[0, 0].tolist() == [0, 0, 5]
    assert "ILSVRC2012_img_train.tar is not there" in data.lacks["knn"]

    tars = {}
    for c, wnid in enumerate(wnids):
        members = {f"{wnid}_{n}.JPEG": tiny(10_000 + 2 * c + n) for n in range(2)}
        tars[f"{wnid}.tar"] = tar_of(tmp_path / "inner.tar", members)
    (tmp_path / "inner.tar").unlink()
    tar_of(tmp_path / "ILSVRC2012_img_train.tar", tars)
    data = open_dataset("imagenet", str(tmp_path))
    train = data.splits["train"]
    assert data.labels_N[train].tolist() == np.repeat(np.arange(1000), 2).tolist()
    assert np.asarray(data.image(int(train[301])))[0, 0].tolist() == list((10_301).to_bytes(3, "big"))
    assert not data.lacks


def test_labels_that_are_no_class_of_a_known_set_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk(monkeypatch, "dtd", 47, test=47)
    names = [*list(class_names("dtd"))[:40], *(f"other {n}" for n in range(7))]
    rng = np.random.default_rng(0)
    hub_file(tmp_path / "test-0.parquet", list(range(47)), [names[i] for i in rng.permutation(47)])
    with pytest.raises(
        DatasetError, match="dtd: it has no class other 0, other 1, other 2: give these files under anot"
    ):
        open_dataset("dtd", str(tmp_path))


def test_splits_that_are_drawn_are_ours_whatever_the_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk(monkeypatch, "eurosat", 100, train=60, val=20, test=20)
    for split, count in (("train", 8), ("test", 2)):
        hub_file(
            tmp_path / f"{split}.parquet", [c for c in range(10) for _ in range(count)], list(class_names("eurosat"))
        )
    data = open_dataset("eurosat", str(tmp_path))
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 60, "val": 20, "test": 20}


# -- the user's own -----------------------------------------------------------------------------------------------


def test_folders_of_classes_keep_their_splits(tmp_path: Path) -> None:
    names = ["train/red_fox/1.png", "train/cat/2.PNG", "val/cat/3.jpg", "val/cat/notes.txt", "x/y/1.png"]
    root = write(tmp_path, names)
    data = open_dataset("mine", str(root))
    assert data.class_names == ("cat", "red fox")
    assert [data.images.name(int(row)) for row in data.splits["test"]] == ["val/cat/3.jpg"]
    assert not data.fixed


def test_halves_do_not_depend_on_names_or_order(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [f"cat/{n}.png" for n in range(9)])
    (tmp_path / "b" / "cat").mkdir(parents=True)
    for n in range(9):
        shutil.copy(a / "cat" / f"{n}.png", tmp_path / "b" / "cat" / f"{chr(ord('z') - n)}.png")

    def chosen(data: ImageSet) -> set[bytes]:
        return {(data.images.root / data.images.name(int(r))).read_bytes() for r in data.splits["train"]}  # type: ignore

    first, second = open_dataset("mine", str(a)), open_dataset("mine", str(tmp_path / "b"))
    assert chosen(first) == chosen(second)
    assert len(chosen(first)) in (4, 5)
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("place", [60, 9_000, -1])
def test_an_image_that_changed_anywhere_is_another_image_and_its_date_and_folder_are_not_it(
    place: int, tmp_path: Path
) -> None:
    """Catches: digests of a part of each file, so that stored vectors of the old image are taken for the new."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    (tmp_path / "a" / "cat").mkdir(parents=True)
    file = tmp_path / "a" / "cat" / "1.bmp"
    Image.fromarray(pixels).save(file)
    first = open_dataset("mine", str(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    os.utime(tmp_path / "b" / "cat" / "1.bmp", (1, 1))
    second = open_dataset("mine", str(tmp_path / "b"))
    assert (second.fingerprint, second.images.digests().tolist()) == (
        first.fingerprint, first.images.digests().tolist(),
    )  # fmt: skip
    content = bytearray(file.read_bytes())
    content[place] ^= 255
    file.write_bytes(content)
    assert open_dataset("mine", str(tmp_path / "a")).fingerprint != first.fingerprint


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=60))
def test_splits_part_the_rows_and_keep_equal_images_together(rows: list[tuple[int, int]]) -> None:
    labels, digests = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=np.uint64)
    parts = split_by_content(digests, labels, {"train": 0.6, "val": 0.2, "test": 0.2})
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(rows)))
    side = {row: name for name, some in parts.items() for row in some.tolist()}
    for i, one in enumerate(rows):
        assert all(side[i] == side[j] for j, other in enumerate(rows) if other == one)


def test_images_in_gpr_naming_with_their_domains(tmp_path: Path) -> None:
    root = write(tmp_path, [f"images/{c}_{n}.png" for c in (2, 10) for n in range(4)])
    assert open_dataset("mini", str(root)).domains_N is None
    about = {"names": {"2": "Mars"}, "domains": {"2": "space", "10": "food"}}
    (root / "domains.json").write_text(json.dumps(about))
    data = open_dataset("mini", str(root))
    assert data.class_names == ("Mars", "category 10")
    assert data.domains_N is not None
    assert data.domains_N.tolist() == ["space"] * 4 + ["food"] * 4
    del about["domains"]["10"]
    (root / "domains.json").write_text(json.dumps(about))
    with pytest.raises(DatasetError, match="names no domain of category 10"):
        open_dataset("mini", str(root))


def write_pairs(path: Path, labels: list[str | None], as_struct: bool = False) -> str:
    images = [stored(picture(i)) for i in range(len(labels))]
    if as_struct:
        column = pa.array([{"bytes": image, "path": None} for image in images])
        table = pa.table({"image": column, "label": labels})
    else:
        table = pa.table({"jpg": images, "truth_qid": pa.array(labels, pa.string())})
    pq.write_table(table, path, row_group_size=2)
    return str(path)


def test_parquet_rows_without_label_are_counted(tmp_path: Path) -> None:
    write_pairs(tmp_path / "0.parquet", ["Q10", None, "Q9"])
    write_pairs(tmp_path / "1.parquet", ["Q9", "Q9"])
    (tmp_path / "entities.jsonl").write_text('{"qid": "Q9", "label": "fox", "description": "an animal"}\n')
    data = open_dataset("mine", str(tmp_path))
    assert data.class_names == ("fox", "Q10")
    assert data.descriptions == ("an animal", None)
    assert data.labels_N.tolist() == [1, 0, 0, 0]
    assert data.left_out == {"no label": 1}
    assert np.array_equal(np.asarray(data.image(1)), np.asarray(picture(2)))
    assert data.images.name(3) == f"{tmp_path}/1.parquet row 1"
    assert check("mine", str(tmp_path)).endswith("1 left out: no label")


def test_a_truth_that_names_no_entity_is_no_class(tmp_path: Path) -> None:
    """Catches: photos of a hundred things as one class, because none of them is in the knowledge base."""
    path = write_pairs(tmp_path / "0.parquet", ["Q9", "none", "not Q9", "cat", "None"])
    data = open_dataset("mine", path)
    assert (data.class_names, data.left_out) == (("Q9", "cat"), {"no label": 3})
    assert data.labels_N.tolist() == [0, 1]


def test_parquet_of_hugging_face_keeps_labels_that_are_numbers(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "0.parquet", ["10", "9"], as_struct=True)
    assert open_dataset("mine", path).class_names == ("9", "10")
    pq.write_table(pa.table({"jpg": [b""], "answer": ["a"]}), path)
    with pytest.raises(DatasetError, match=r"no column of labels: looked for truth_qid.*; it has jpg, answer"):
        open_dataset("mine", path)


def test_a_published_dataset_gives_its_best_labels(tmp_path: Path) -> None:
    rows = [image_row(i) for i in range(8)]
    rows[3] = image_row(3, labels=[(0, 0.6), (2, 0.8)])
    write_dataset(tmp_path / "i2e", rows)
    data = open_dataset("mine", str(tmp_path / "i2e"))
    assert (len(data), data.class_names[2], data.descriptions) == (8, "entity 2", tuple(
        f"thing of kind {c}" for c in range(4)
    ))  # fmt: skip
    by_picture = {np.asarray(data.image(row)).tobytes(): int(data.labels_N[row]) for row in range(8)}
    assert by_picture[np.asarray(picture(3)).tobytes()] == 2
    (tmp_path / "i2e" / "manifest.json").unlink()
    with pytest.raises(DatasetError, match=r"has no manifest\.json: nothing was published there"):
        open_dataset("mine", str(tmp_path / "i2e"))


@pytest.mark.parametrize("format_version", [1, 2])
def test_a_published_dataset_is_split_as_trainings_split_it(tmp_path: Path, format_version: int) -> None:
    """Catches: neighbours, probes and retrieval that are measured on what a training has seen."""
    rows = [image_row(i, labels=[(i % 60, 0.9), ((i + 1) % 60, 0.2)]) for i in range(600)]
    entities = [entity_row(c) for c in range(60)]
    path = write_dataset(tmp_path / "i2e", rows, entities=entities, format_version=format_version)
    data, trained = open_dataset("mine", path), Samples.open(open_published(path), TrainConfig())
    held = trained.held_out
    assert len(held.image_rows) > 5
    assert len(held.entity_rows) > 10
    assert data.splits["test"].tolist() == sorted(held.image_rows.tolist())
    assert data.splits[UNSEEN].tolist() == sorted(held.entity_rows.tolist())
    assert len(data.splits["train"]) == len(trained)
    assert not set(data.labels_N[data.splits["train"]]) & set(trained.held_out_entities)
    assert data.split_by == OF_DATASET
    vectors = Embedded(np.zeros((600, 2), np.float32), np.arange(600), {}, cached=False)
    task = Task(None, data, vectors, EvaluateConfig())  # type: ignore[arg-type]  # no encoder is asked
    assert task.retrieved.tolist() == data.splits[UNSEEN].tolist()


def test_an_unknown_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(DatasetError, match=r"Looked for images/.*parquet.*CATEGORY.*a folder of images per class"):
        open_dataset("mine", str(tmp_path))
    with pytest.raises(DatasetError, match="does not exist"):
        open_dataset("mine", str(tmp_path / "none"))


def test_benchmarks_are_read_as_stored_and_own_images_upright(tmp_path: Path) -> None:
    """Catches: a query's box, in stored pixels, cut out of an image that EXIF has turned."""
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, (64, 48)).save(tmp_path / "a" / "1.jpg", exif=exif)
    data = open_dataset("mine", str(tmp_path))
    assert data.image(0).size == (48, 64)
    assert replace(data, known="dtd").image(0).size == (64, 48)
    assert replace(data, known="dtd", boxes={0: (10.4, 0.0, 20.6, 30.5)}).image(0).size == (11, 30)


def test_the_only_image_of_a_class_is_for_training() -> None:
    """Catches: neighbours and probes asked about classes that nothing can be learnt of."""
    parts = split_by_content(np.arange(3, dtype=np.uint64), np.arange(3), {"train": 0.5, "test": 0.5})
    assert parts["train"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["data/train-00000-of-00001", "data/validation-00000-of-00001"], {"train": 4, "test": 4}),
        (["default/train/0000", "default/test/0000"], {"train": 4, "test": 4}),
        (["training_1", "dev_1", "eval_1", "extra_1"], {"train": 4, "val": 4, "test": 4}),
        (["train-0", "train-1"], {"train": 4, "test": 4}),  # nothing is held out: halves
        (["contest", "trained"], {"train": 4, "test": 4}),  # words, not letters
    ],
)
def test_the_names_of_parquet_files_tell_their_splits(files: list[str], splits: dict[str, int], tmp_path: Path) -> None:
    """Catches: official train and test files, mixed and halved by hash."""
    for file in files:
        hub_file(tmp_path / "test" / f"{file}.parquet", [0, 0, 1, 1], ["red_fox", "cat"])
    data = open_dataset("mine", str(tmp_path / "test"))
    assert {split: len(rows) for split, rows in data.splits.items()} == splits
    assert data.class_names == ("red fox", "cat")
    assert data.left_out == ({"in no split": 4} if "extra_1" in files else {})


def test_names_of_class_labels_are_what_prompts_say(tmp_path: Path) -> None:
    """Catches: prompts "a photo of a 0"."""
    hub_file(tmp_path / "train.parquet", [1, 0, 2], ["n0", "n1", "n2"], "img", "fine_label")
    assert open_dataset("mine", str(tmp_path)).class_names == ("n0", "n1", "n2")
    hub_file(tmp_path / "train.parquet", [1, 0, 2], None)
    assert open_dataset("mine", str(tmp_path)).class_names == ("0", "1", "2")


@pytest.mark.parametrize(("label", "names"), [(3, ["n0", "n1", "n2"]), (-2, ["n0", "n1", "n2"]), (0, [])])
def test_a_label_beyond_the_names_of_its_set_is_named_with_file_and_row(
    label: int, names: list[str], tmp_path: Path
) -> None:
    """Catches: a damaged row of a hub's file that becomes a class of its own, with prompts "a photo of a 3"."""
    hub_file(tmp_path / "train.parquet", [-1, -1, label], ["n0", "n1", "n2"])
    if not names:
        tar_of(tmp_path / "tars" / "0.tar", {"a.png": tiny(1), "a.cls": b"7"})
        (tmp_path / "tars" / "classnames.txt").write_text("cat\n")
        with pytest.raises(DatasetError, match=r"mine: .*0\.tar a\.png has the label 7, and the set names 1 classes"):
            open_dataset("mine", str(tmp_path / "tars"))
        return
    said = rf"mine: .*train\.parquet row 2 has the label {label}, and the set names 3 classes \(0 to 2\): mend"
    with pytest.raises(DatasetError, match=said):
        open_dataset("mine", str(tmp_path))


ODD_FOLDERS = ("lang=en/split=7", "two words", "ü ✓", "run@v2", "a[1]b{c,d}", "it's #1; 50 %", "x.parquet")
"""As Hive, file managers and people call them."""


@pytest.mark.parametrize("folder", ODD_FOLDERS)
def test_a_folder_may_be_called_anything(folder: str, tmp_path: Path) -> None:
    """Catches: a folder lang=en that becomes a column, brackets that are taken for a glob."""
    place = tmp_path / folder
    hub_file(place / "parquet" / "data" / "train-0.parquet", [0, 0, 1, 1], ["red_fox", "cat"])
    hub_file(place / "parquet" / "data" / "test-0.parquet", [0, 1, 1, 1], ["red_fox", "cat"])
    members = {f"{n}.{kind}": content for n in range(4) for kind, content in (("png", tiny(n)), ("cls", b"1"))}
    tar_of(place / "tars" / "0.tar", members | {"9.png": tiny(9), "9.cls": b"0"})
    write(place / "classes", [f"{c}/{n}.png" for c in ("cat", "fox") for n in range(4)])
    write_dataset(place / "i2e", [image_row(i) for i in range(8)])
    for form, images in (("parquet", 8), ("tars", 5), ("classes", 8), ("i2e", 8)):
        data = open_dataset("mine", str(place / form))
        assert len(data) == images
        assert data.image(images - 1).size[0] > 0
    assert {split: len(rows) for split, rows in open_dataset("mine", str(place / "parquet")).splits.items()} == {
        "train": 4,
        "test": 4,
    }


def test_a_users_webdataset_has_names_beside_its_tars(tmp_path: Path) -> None:
    for split in ("train", "test"):
        members = {f"s/{n}.{kind}": content for n in range(3) for kind, content in (("png", tiny(n)), ("cls", b"1"))}
        tar_of(tmp_path / split / "0.tar", members | {"s/9.png": tiny(9), "s/9.txt": b"no label"})
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    data = open_dataset("mine", str(tmp_path))
    assert data.class_names == ("dog",)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 3, "test": 3}
    assert data.left_out == {"no label": 2}
    (tmp_path / "test" / "0.tar").write_bytes((tmp_path / "test" / "0.tar").read_bytes()[:700])
    with pytest.raises(DatasetError, match=r"0\.tar is no whole tar"):
        open_dataset("mine", str(tmp_path))
