"""Images with captions, in each form in which people have COCO and Flickr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from i2e_pipeline.evaluate.captioned import STRAY, UNCAPTIONED, _comma, annotation_files
from i2e_pipeline.evaluate.datasets import DatasetError, check, open_dataset
from tests.evaluate.small_sets import coloured

CAPTIONS = {
    "b.jpg": ["a dog, on grass", "a dog runs"],
    "a.jpg": ["two cats"],
    "c.jpg": ["a bus", "a red bus", "the bus stops"],
}


def images(folder: Path, names: Any = CAPTIONS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        Image.new("RGB", (20, 16), (40 * n, 0, 0)).save(folder / name)
    return folder


def read(path: Path) -> dict[str, list[str]]:
    """Captions by image of the set at a path."""
    data = open_dataset("mine", str(path))
    assert data.kind == "captions"
    assert data.image_of_T is not None
    found: dict[str, list[str]] = {data.images.name(n): [] for n in range(len(data))}
    for caption, row in zip(data.captions, data.image_of_T.tolist(), strict=True):
        found[data.images.name(row)].append(caption)
    assert list(data.image_of_T) == sorted(data.image_of_T)
    return found


def below(folder: str) -> dict[str, list[str]]:
    return {f"{folder}/{name}": said for name, said in CAPTIONS.items()}


def karpathy(root: Path) -> dict[str, list[str]]:
    images(root / "val2014")
    images(root / "train2014", ["d.jpg"])
    rows = [
        {"filename": name, "filepath": "val2014", "split": "test", "sentences": [{"raw": s + " "} for s in said]}
        for name, said in CAPTIONS.items()
    ]
    rows.insert(1, {"filename": "d.jpg", "filepath": "train2014", "split": "restval", "sentences": [{"raw": "x"}]})
    rows.insert(1, {"filename": "d.jpg", "filepath": "train2014", "split": "val", "sentences": [{"raw": "x"}]})
    (root / "dataset_coco.json").write_text(json.dumps({"images": rows, "dataset": "coco"}))
    return below("val2014")


def coco(root: Path) -> dict[str, list[str]]:
    images(root / "val2017")
    (root / "annotations").mkdir()
    ids = {"b.jpg": 30, "a.jpg": 7, "c.jpg": 9}
    said = [(ids[name], caption) for name, of in CAPTIONS.items() for caption in of]
    said = [said[n] for n in (3, 0, 5, 2, 1, 4)]  # annotations of an image do not stand together
    tree = {
        "images": [{"id": n, "file_name": name} for name, n in ids.items()] + [{"id": 1, "file_name": "none.jpg"}],
        "annotations": [{"image_id": n, "caption": caption} for n, caption in said],
    }
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(tree))
    train = {"images": [{"id": 1, "file_name": "d.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(train))
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    order = {name: [caption for n, caption in said if n == ids[name]] for name in ("a.jpg", "c.jpg", "b.jpg")}
    return {f"val2017/{name}": of for name, of in order.items()}


def comma(root: Path) -> dict[str, list[str]]:
    images(root / "Images")
    lines = [f"{name},{caption}" for name, said in CAPTIONS.items() for caption in said]
    lines[1] = 'b.jpg,"a dog runs"'  # as programs that write CSV quote it
    (root / "captions.txt").write_text("image,caption\n" + "\n".join(lines) + "\n\n")
    return below("Images")


def of_clip_benchmark(root: Path) -> dict[str, list[str]]:
    images(root)
    lines = [f"{name},{caption}" for name, said in CAPTIONS.items() for caption in said]
    for split in ("test", "val"):
        some = lines if split == "test" else lines[:1]
        (root / f"flickr30k_{split}_karpathy.txt").write_text("image,caption\n" + "\n".join(some) + "\n")
    return dict(CAPTIONS)


def pipe(root: Path) -> dict[str, list[str]]:
    images(root / "flickr30k_images")
    lines = [f"{name}| {n}| {caption}" for name, said in CAPTIONS.items() for n, caption in enumerate(said)]
    lines[3] = lines[3].replace("| a bus", "   a bus")  # a line of Flickr30k's lacks its second bar
    (root / "results.csv").write_text("image_name| comment_number| comment\n" + "\n".join(lines) + "\n")
    return below("flickr30k_images")


def token(root: Path) -> dict[str, list[str]]:
    images(root / "Flicker8k_Dataset", [*CAPTIONS, "d.jpg"])
    lines = [f"{name}#{n}\t{caption}" for name, said in CAPTIONS.items() for n, caption in enumerate(said)]
    lines += ["d.jpg#0\tof no test image", "e.jpg.1#0\ta name that is no image's"]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (root / "Flickr_8k.testImages.txt").write_text("\n".join(CAPTIONS) + "\n")
    return below("Flicker8k_Dataset")


FORMS = [karpathy, coco, comma, of_clip_benchmark, pipe, token]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_images_with_their_captions(
    form: Callable[[Path], dict[str, list[str]]], tmp_path: Path
) -> None:
    expected = form(tmp_path)
    assert read(tmp_path) == expected
    assert list(read(tmp_path)) == list(expected)
    left_out = {coco: f", 1 left out: {UNCAPTIONED}", token: f", 1 left out: {STRAY}"}  # as these two have such a line
    assert check("mine", str(tmp_path)) == "3 images with 6 captions" + left_out.get(form, "")


def test_annotations_may_be_named_themselves(tmp_path: Path) -> None:
    expected = coco(tmp_path)
    (tmp_path / "annotations" / "captions_val2017.json").rename(tmp_path / "annotations" / "ours.json")
    assert read(tmp_path / "annotations" / "ours.json") == expected
    tree = json.loads((tmp_path / "annotations" / "ours.json").read_text())
    assert open_dataset("mine", str(tmp_path / "annotations" / "ours.json")).split_by == "ours.json"
    assert len(tree["images"]) == 4  # the one without a caption is no image of the set


def test_a_results_csv_of_something_else_and_a_hubs_infos_are_no_captions(tmp_path: Path) -> None:
    """Catches: a folder of classes that is no longer read, since a table of somebody's lies in it."""
    folder = coloured(tmp_path / "colours", classes=2, each=2)
    (folder / "results.csv").write_text("model,accuracy\nours,.5\n")
    (folder / "dataset_infos.json").write_text("{}")
    assert open_dataset("mine", str(folder)).kind == "classes"
    assert annotation_files(folder) == []


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    comma(tmp_path)
    (tmp_path / "Images" / "a.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 images that .*captions\.txt names are not below .*, first a\.jpg"):
        open_dataset("mine", str(tmp_path))


def test_several_annotation_files_of_one_rank_are_not_chosen_from(tmp_path: Path) -> None:
    karpathy(tmp_path)
    (tmp_path / "dataset_flickr8k.json").write_text((tmp_path / "dataset_coco.json").read_text())
    with pytest.raises(DatasetError, match=r"several annotation files, dataset_coco\.json, .*--data mine=.*_coco"):
        open_dataset("mine", str(tmp_path))
    assert len(open_dataset("mine", str(tmp_path / "dataset_coco.json"))) == 3


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "x/../../a.jpg"])
def test_an_image_that_lies_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    """Catches: somebody's annotations that make a page show files of the user's."""
    images(tmp_path / "set")
    images(tmp_path)
    rows = [{"filename": name, "split": "test", "sentences": [{"raw": "x"}]}]
    (tmp_path / "set" / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    with pytest.raises(DatasetError, match="does not lie below"):
        open_dataset("mine", str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("captions.txt", "image,caption\na.jpg\n", r"captions\.txt, line 2: no image's name and caption"),
        ("captions.txt", "image,caption\na.jpg,\n", r"a\.jpg: a caption is missing or empty"),
        ("captions.txt", "image,caption\n", r"names no image with a caption"),
        ("captions_val.json", "[1]", r"captions_val\.json has no list `images`"),
        ("captions_val.json", '{"images": [{"id": 1}]}', r"COCO's captions, .*KeyError: 'annotations'"),
        ("captions_val.json", '{"images": [', r"captions_val\.json cannot be read as COCO's .*JSONDecodeError"),
        ("dataset_coco.json", '{"images": [{"split": "test"}]}', r"Karpathy's splits, .*KeyError"),
    ],
)
def test_broken_annotations_are_named(file: str, content: str, said: str, tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(DatasetError, match=said):
        open_dataset("mine", str(tmp_path))


def in_coco(root: Path, images_: list[tuple[int, str]], said: list[tuple[int, Any]]) -> Path:
    """COCO's form: (id, file) and (image_id, caption); pictures of these files in val2017."""
    images(root / "val2017", [name for _, name in images_])
    tree = {
        "images": [{"id": n, "file_name": name} for n, name in images_],
        "annotations": [{"image_id": n, "caption": caption} for n, caption in said],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(tree))
    return root


def test_what_has_no_counterpart_is_left_out_and_counted(tmp_path: Path) -> None:
    """Catches: a set that is smaller than its annotations, without a word."""
    files = [(1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg")]
    coco_ = in_coco(tmp_path / "coco", files, [(1, "x"), (9, "y"), (9, "z"), (2, "x")])
    assert open_dataset("mine", str(coco_)).left_out == {UNCAPTIONED: 1, STRAY: 2}
    karpathy_ = images(tmp_path / "karpathy")
    rows = [
        {"filename": name, "split": "test", "sentences": [{"raw": said} for said in of]}
        for name, of in {**CAPTIONS, "a.jpg": []}.items()
    ]
    (karpathy_ / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    assert open_dataset("mine", str(karpathy_)).left_out == {UNCAPTIONED: 1}
    token(tmp_path / "flickr8k")
    with (tmp_path / "flickr8k" / "Flickr_8k.testImages.txt").open("a") as file:
        file.write("f.jpg\ng.jpg\n")
    assert open_dataset("mine", str(tmp_path / "flickr8k")).left_out == {UNCAPTIONED: 2, STRAY: 1}


@pytest.mark.parametrize(
    ("files", "captions", "said"),
    [
        ([(1, "a.jpg"), (1, "b.jpg")], [(1, "x")], r"two images have the id 1"),
        ([(1, "a.jpg"), (2, "a.jpg")], [(1, "x"), (2, "y")], r"names val2017/a\.jpg as 2 images \(1 such in all\)"),
        ([(1, "a.jpg")], [(1, "x"), (1, None)], r"a\.jpg: a caption is missing or empty"),
    ],
)
def test_images_and_captions_that_cannot_be_told_apart_are_named(
    files: list[tuple[int, str]], captions: list[tuple[int, Any]], said: str, tmp_path: Path
) -> None:
    """Catches: captions given to two images, of which one is another picture; a caption "None"."""
    with pytest.raises(DatasetError, match=said):
        open_dataset("mine", str(in_coco(tmp_path, files, captions)))


def test_of_several_images_of_one_name_the_annotations_own_folder_counts(tmp_path: Path) -> None:
    """Catches: the training's picture of that name, which comes first in order, measured against val's captions."""
    root = in_coco(tmp_path, [(1, "b.jpg"), (2, "a.jpg")], [(1, "x"), (2, "y")])
    images(root / "train2017", ["a.jpg"])
    assert read(root) == {"val2017/b.jpg": ["x"], "val2017/a.jpg": ["y"]}
    (root / "val2017").rename(root / "validation")
    with pytest.raises(DatasetError, match=r"train2017/a\.jpg and validation/a\.jpg are other images of one name"):
        read(root)
    (root / "train2017" / "a.jpg").write_bytes((root / "validation" / "a.jpg").read_bytes())  # a copy does not matter
    assert read(root) == {"validation/b.jpg": ["x"], "train2017/a.jpg": ["y"]}


def test_splits_that_are_none_are_named(tmp_path: Path) -> None:
    images(tmp_path)
    rows = [
        {"filename": f"{x}.jpg", "split": split, "sentences": [{"raw": x}]} for x, split in (("a", "dev"), ("b", "x"))
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    with pytest.raises(DatasetError, match=r"its splits are dev, x, and none of test, val, train is there"):
        open_dataset("mine", str(tmp_path))


@pytest.mark.parametrize("first", ["", "image,caption\n", "\ufeffimage,caption\r\n"])
def test_a_list_may_name_its_columns_or_not(first: str, tmp_path: Path) -> None:
    """Catches: the first caption of a list without a header, which is taken for one."""
    images(tmp_path)
    (tmp_path / "captions.txt").write_text(first + 'b.jpg,one\u2028line\n"a.jpg",two\n', encoding="utf-8")
    assert read(tmp_path) == {"b.jpg": ["one\u2028line"], "a.jpg": ["two"]}


def test_results_csv_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    expected = pipe(tmp_path)
    content = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text("\ufeff" + content, encoding="utf-8")
    assert read(tmp_path) == expected


words = st.text(st.characters(codec="utf-8", exclude_characters='"\r\n'), min_size=1).filter(lambda x: x == x.strip())


@given(st.lists(st.tuples(st.sampled_from(["a.jpg", "b.png", "c.jpg"]), words), min_size=1))
def test_captions_of_a_list_come_back_in_order(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    path = tmp_path_factory.mktemp("list") / "captions.txt"
    path.write_text("image,caption\n" + "".join(f"{image},{caption}\n" for image, caption in rows), encoding="utf-8")
    found = {image.names[0]: list(image.captions) for image in _comma(path)}
    assert found == {image: [c for i, c in rows if i == image] for image in dict.fromkeys(i for i, _ in rows)}
