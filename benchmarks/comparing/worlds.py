"""The datasets that recipes are compared on, and the same images with their true labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from comparing.outcomes import MAIN
from i2e_pipeline.core import files
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.schemas import IMAGE_LABELS
from i2e_pipeline.dataset.published import open_published
from i2e_pipeline.sample import embedded

REAL_DATA = "I2E_REAL_DATA"


@dataclass(frozen=True)
class Images:
    """A dataset whose images are known."""

    name: str
    dataset: Path
    corrected: Path
    """The same with the true labels."""
    truth: Mapping[str, int]
    """image_id to entity; −1: none that the knowledge base has. Images that nobody looked at are not there."""
    settings: tuple[str, ...] = ()


def sample(folder: Path, dataset: str | None = None) -> Images:
    """The embedded sample's, made where it is not there."""
    tree = embedded.composed([])
    place = Path(dataset or f"{tree['output']}/i2e")
    if not (place / "manifest.json").is_file():
        _run()
    return _of("sample", place, tree["pairs"]["path"], folder, ())


def photos(folder: Path, data: Path) -> Images:
    """That of the real photos below a folder (I2E_REAL_DATA), trained with the sample's settings, 12 passes."""
    output = folder / "photos" / "out"
    pairs = f"{data}/pairs/0*.parquet"
    if not (output / "i2e" / "manifest.json").is_file():
        tree = {
            "output": str(output),
            "pairs": {"path": pairs},
            "knowledge_base": {
                "dump": f"{data}/wikidata/sample-dump.json.bz2",
                "popularity": f"{data}/wikidata/popularity.csv",
                "anchors": f"{data}/wikidata/mention_counts.tsv",
            },
            "extract": {"recognizer": f"{data}/ner/model"},
            "score": {"model": f"local-dir:{data}/models/scorer"},
            "select": {"min_images_per_entity": 1},
        }
        config = folder / "photos" / "config.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(tree))
        _run("--config", str(config))
    return _of("photos", output / "i2e", [pairs], folder, ("train.epochs=12",))


def wanted(names: list[str], folder: Path) -> list[Images]:
    """Those of the names that can be had here; says which cannot."""
    found = [sample(folder)] if "sample" in names else []
    if "photos" in names:
        if data := os.environ.get(REAL_DATA):
            found.append(photos(folder, Path(data)))
        else:
            print(f"photos are left out: {REAL_DATA} names no folder of real data", file=sys.stderr)
    return found


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", MAIN, "run", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"i2e run {' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def _of(name: str, dataset: Path, pairs: Sequence[str], folder: Path, settings: tuple[str, ...]) -> Images:
    truth = truth_of(pairs)
    corrected = folder / name / "corrected"
    correct(dataset, corrected, truth)
    return Images(name, dataset, corrected, truth, settings)


def truth_of(pairs: Sequence[str]) -> dict[str, int]:
    """image_id to the entity that the input says is shown, of rows that say it; −1 for "none"."""
    found = {}
    for file in files.find(pairs, ".parquet"):
        table = pq.read_table(file.path, columns=["jpg", "truth_qid"])
        for image, entity in zip(table["jpg"].to_pylist(), table["truth_qid"].to_pylist(), strict=True):
            if image is not None and entity is not None:
                found[content_id(image).hex()] = int(entity[1:]) if entity.startswith("Q") else -1
    return found


def correct(dataset: Path, target: Path, truth: Mapping[str, int]) -> None:
    """Copy a dataset; of each image whose truth is known its one label is that, of probability 1, or it has none where
    no entity of the dataset is shown. Class indices, images and their order stay."""
    if (target / "manifest.json").is_file():
        return
    shutil.rmtree(target, ignore_errors=True)
    published = open_published(str(dataset))
    shutil.copytree(dataset / "entities", target / "entities")
    index = {
        entity: number
        for number, entity in zip(
            *(published.entities.column(c).to_pylist() for c in ("class_index", "entity_id")), strict=True
        )
    }
    for file in published.files:
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetFile(dataset / file.path) as stored, pq.ParquetWriter(place, stored.schema_arrow) as writer:
            for group in range(stored.num_row_groups):
                rows = stored.read_row_group(group)
                labels = pa.chunked_array([_corrected(rows, truth, index)])
                writer.write_table(
                    rows.set_column(rows.schema.get_field_index("labels"), stored.schema_arrow.field("labels"), labels)
                )
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["dataset"] = f"{manifest['dataset']}, true labels"
    (target / "manifest.json").write_text(json.dumps(manifest))


def _corrected(rows: pa.Table, truth: Mapping[str, int], index: Mapping[int, int]) -> pa.Array:
    made = []
    for image, labels in zip(rows["image_id"].to_pylist(), rows["labels"].to_pylist(), strict=True):
        shown = truth.get(image)
        if shown is None:
            made.append(labels)
        elif shown not in index:
            made.append([])
        else:
            one = {"entity_id": shown, "class_index": index[shown], "score": 1.0, "clip_score": 1.0, "mention": ""}
            made.append([one])
    return pa.array(made, IMAGE_LABELS)


def wrong_labels(images: Images) -> tuple[int, int]:
    """Images whose most probable label is not what they show, and those whose truth is known."""
    wrong = known = 0
    for file in open_published(str(images.dataset)).files:
        table = pq.read_table(images.dataset / file.path, columns=["image_id", "labels"])
        for image, labels in zip(table["image_id"].to_pylist(), table["labels"].to_pylist(), strict=True):
            if image in images.truth and labels:
                known += 1
                wrong += max(labels, key=lambda label: label["score"])["entity_id"] != images.truth[image]
    return wrong, known
