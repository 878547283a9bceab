"""Exports loaded by the tools that they are for: the same images, labels and alt-text as the dataset."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from i2e_pipeline.commands.export import FORMS
from i2e_pipeline.core.splits import TRAIN
from tests.export.odd_dataset import KEYS, digest, facts, held, labels, odd_row, small_shards, write_odd
from tests.publish.test_loads import environment
from tests.small_models import picture, stored
from tests.train.small_dataset import write_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_odd(tmp_path_factory.mktemp("odd") / "i2e")


@pytest.mark.parametrize("form", sorted(FORMS))
def test_an_export_holds_what_the_dataset_holds(form: str, dataset: str, tmp_path: Path) -> None:
    found, wanted = held(small_shards(dataset, tmp_path, form), form), facts(dataset)
    if form == "open_clip-csv":
        wanted = {i: (sha, "NA " if text == "NA" else "null " if text == "null" else text, told)
                  for i, (sha, text, told) in wanted.items()}  # fmt: skip
    assert found == wanted
    assert len(found) == 60


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_an_export_of_a_split_holds_it_alone(form: str, split: str, dataset: str, tmp_path: Path) -> None:
    made = small_shards(dataset, tmp_path, form, splits=[split])
    assert held(made, form).keys() == facts(dataset, split).keys()
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["export"]["splits"][split]["images"] == manifest["export"]["images"] == len(facts(dataset, split))


def test_webdataset_loads_it(dataset: str, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    made = small_shards(dataset, tmp_path, "webdataset")
    found, keys = {}, set()
    for split in ("train", "validation", "test"):
        shards = sorted(str(path) for path in (made / split).glob("*.tar"))
        for sample in wds.WebDataset(shards, shardshuffle=False):
            row = json.loads(sample["json"])
            assert row["split"] == split
            keys.add(row["key"])
            (stored_as,) = {"jpg", "png", "webp"} & sample.keys()
            assert Image.open(io.BytesIO(sample[stored_as])).format == {"jpg": "JPEG"}.get(stored_as, stored_as.upper())
            found[sample["__key__"]] = (digest(sample[stored_as]), sample["txt"].decode(), labels(row["labels"]))
        decoded = list(wds.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg;png;webp", "txt", "json"))
        assert {image.size for image, _, _ in decoded} == {(64, 48)}
        sizes = json.loads((made / split / "sizes.json").read_text())
        assert sizes == {"00000.tar": len(decoded)}
    assert found == facts(dataset)
    assert keys == set(KEYS)


def arguments(*given: str) -> Any:
    """Of open_clip's training, as its command line gives them, in one process."""
    params = pytest.importorskip("open_clip_train.params")
    told = params.parse_args([*given, "--workers", "0"])
    told.world_size, told.distributed = 1, False
    return told


def shas(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def pixels_and_texts(dataset: str, split: str) -> set[tuple[str, str]]:
    import pyarrow.dataset as ds

    rows = ds.dataset(f"{dataset}/images", format="parquet").to_table(filter=ds.field("split") == split).to_pylist()
    return {(shas(Image.open(io.BytesIO(r["image"]["bytes"]))), r["alt_text"]) for r in rows}


OPEN_CLIP = """
import hashlib, json, sys
from open_clip_train.data import get_data
from open_clip_train.params import parse_args

def sha(image):
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()

told = parse_args([*sys.argv[1:], "--dataset-type", "webdataset", "--batch-size", "4", "--workers", "0"])
told.world_size, told.distributed = 1, False
loaders = get_data(told, (sha, sha), tokenizer=lambda text: [text])
print(json.dumps({
    "samples": loaders["train"].dataloader.num_samples,
    **{name: [p for images, texts in one.dataloader for p in zip(images, texts)] for name, one in loaders.items()},
}))
"""


@pytest.mark.long
@pytest.mark.env
@pytest.mark.slow
def test_open_clip_trains_on_the_tars(dataset: str, tmp_path: Path) -> None:
    """With the newest webdataset that open_clip_torch[training] takes: its loader fails with 1.0 on any tar, since that
    marks the end of each."""
    pytest.importorskip("open_clip_train")
    older = str(tmp_path / "older")
    install = ["install", "-q", "--no-deps", "--target", older, "webdataset==0.2.86"]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    made = small_shards(dataset, tmp_path, "webdataset")
    which = ["--train-data", f"{made}/train/{{00000..00000}}.tar", "--val-data", f"{made}/test/00000.tar"]
    done = subprocess.run(
        [sys.executable, "-c", OPEN_CLIP, *which], capture_output=True, text=True, env={"PYTHONPATH": older}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["samples"] == 36  # of sizes.json, in whole batches
    for name, split in (("train", "train"), ("val", "test")):
        assert {(sha, text) for sha, text in told[name]} == pixels_and_texts(dataset, split)


def test_open_clip_trains_on_the_table(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("open_clip_train.data")
    monkeypatch.chdir(small_shards(dataset, tmp_path, "open_clip-csv"))
    told = arguments("--train-data", "train.tsv", "--dataset-type", "csv", "--batch-size", "36")
    loader = data.get_data(told, (shas, shas), tokenizer=lambda texts: texts)["train"].dataloader
    ((images, texts),) = list(loader)
    # What pandas would take for nothing has a blank behind it.
    wanted = {(sha, f"{t} " if t in ("NA", "null") else t) for sha, t in pixels_and_texts(dataset, "train")}
    assert set(zip(images, texts, strict=True)) == wanted


def test_a_nul_ends_no_title(tmp_path: Path) -> None:
    """Catches: pandas, which ends a text there."""
    pandas = pytest.importorskip("pandas")
    dataset = write_dataset(tmp_path / "i2e", [odd_row(0, alt_text="before\0behind", split=TRAIN)])
    made = small_shards(dataset, tmp_path / "to", "open_clip-csv")
    assert pandas.read_csv(made / "train.tsv", sep="\t")["title"].tolist() == ["before\ufffdbehind"]
    with (made / "train.tsv").open(newline="") as lines:
        (row,) = csv.DictReader(lines, delimiter="\t")
    assert row["class_index"] == "0"


def test_files_end_as_what_their_bytes_are(tmp_path: Path) -> None:
    """Catches: a GIF that is called .jpg since most are."""
    pytest.importorskip("PIL.AvifImagePlugin")
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tiff", "BMP": "bmp", "AVIF": "avif",
             "PPM": "ppm", "ICO": "ico", "JPEG2000": "jp2"}  # fmt: skip
    rows = [odd_row(n, bytes=stored(picture(n), kind), split=TRAIN) for n, kind in enumerate(kinds)]
    rows.append(odd_row(len(kinds), bytes=b"nothing known", split=TRAIN))
    made = small_shards(write_dataset(tmp_path / "i2e", rows), tmp_path / "to", "open_clip-csv")
    found = sorted(path.suffix[1:] for path in made.glob("images/*/*"))
    assert found == sorted([*kinds.values(), "bin"])


DATASETS = """
import json, sys
import datasets
folder = sys.argv[1]
images = datasets.load_dataset(folder)
entities = datasets.load_dataset(folder, "entities", split="train")
rows = [row for split in images.values() for row in split]
raw = [row for split in images.values() for row in split.cast_column("image", datasets.Image(decode=False))]
import hashlib
print(json.dumps({
    "splits": {name: split.num_rows for name, split in images.items()},
    "sizes": sorted({row["image"].size for row in rows}),
    "held": {r["image_id"]: [hashlib.sha256(r["image"]["bytes"]).hexdigest(), r["alt_text"],
             [[l["entity_id"], l["class_index"], round(l["score"], 6)] for l in r["labels"]]] for r in raw},
    "names": entities["name"][:],
}))
"""


@pytest.mark.env
@pytest.mark.slow
@pytest.mark.parametrize("version", [pytest.param("3.6.0", marks=pytest.mark.long), "5.0.0"])
def test_datasets_loads_splits_with_pictures_and_labels(version: str, dataset: str, tmp_path: Path) -> None:
    python = environment(tmp_path / "python", f"datasets=={version}", "pillow", "webdataset")
    made = small_shards(dataset, tmp_path, "hf")
    run = [python, "-c", DATASETS, str(made)]
    done = subprocess.run(run, capture_output=True, text=True, env={"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["splits"] == {"train": 36, "validation": 12, "test": 12}
    assert told["sizes"] == [[64, 48]]
    assert {i: (sha, text, [tuple(one) for one in of]) for i, (sha, text, of) in told["held"].items()} == facts(dataset)
    assert told["names"] == [f"entity {c}" for c in range(4)]


def blocks(page: str, heading: str) -> list[str]:
    """The Python of a section."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    (found,) = [part for part in section if part.startswith(heading)]
    return re.findall(r"```python\n(.*?)```", found, re.DOTALL)


@pytest.mark.parametrize("number", [0, 1])
def test_the_training_loops_of_the_page_run(
    number: int, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader pastes them, on a small dataset at the paths that they name."""
    pytest.importorskip("webdataset")
    loops = blocks("docs/outputs.md", "Train on it in plain torch")
    assert len(loops) == 2
    (tmp_path / "out" / "sample").mkdir(parents=True)
    (tmp_path / "out" / "sample" / "i2e").symlink_to(dataset)
    small_shards(dataset, tmp_path / "out" / "tars", "webdataset")
    monkeypatch.chdir(tmp_path)
    count = "\nseen = 0\n" + loops[number].replace(
        "...  # your model", "seen += len(classes)\n    shape = pixels.shape"
    )
    (tmp_path / "loop.py").write_text(count)
    found = runpy.run_path(str(tmp_path / "loop.py"))
    assert found["seen"] == 36
    assert tuple(found["shape"][1:]) == (3, 224, 224)


def test_an_export_of_the_sample_runs_from_the_command_line(dataset: str, tmp_path: Path) -> None:
    """Without Spark, without any extra."""
    from tests.commands.test_without_spark import OF_SPARK, bare

    missing = (*OF_SPARK, "torch", "open_clip", "webdataset", "huggingface_hub", "datasets")
    for form in sorted(FORMS):
        done = bare(
            tmp_path, missing, "export", "--set", f"output={Path(dataset).parent}", "--to", form, "--format", form
        )
        assert done.returncode == 0, done.stderr
        assert f"60 images exported to {form}/i2e" in done.stderr + done.stdout
    done = bare(
        tmp_path, missing, "export", "--set", f"output={Path(dataset).parent}", "--to", "hf", "--format", "hf",
        "--push-to-hub", "org/name",
    )  # fmt: skip
    assert done.returncode == 2
    assert "huggingface_hub is not installed: pip install 'i2e-pipeline[export]'" in done.stderr
