"""The published dataset where people load it: each library in an environment of its own, as its users install it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core.config import PublishConfig
from i2e_pipeline.core.schemas import IMAGES
from i2e_pipeline.publish.card import card
from i2e_pipeline.publish.croissant import croissant
from tests.train.small_dataset import image_row, write_dataset

pytestmark = [pytest.mark.env, pytest.mark.slow]

DATASETS = """
import io, json, sys
import datasets
told = []
for folder in sys.argv[1:]:
    images = datasets.load_dataset(folder, split="train")
    entities = datasets.load_dataset(folder, "entities", split="train")
    told.append({
        "rows": images.num_rows, "ids": sorted(images["image_id"]),
        "sizes": sorted({tuple(image.size) for image in images["image"]}),
        "labels": images[0]["labels"], "names": entities["name"][:],
    })
print(json.dumps(told, default=list))
"""
CROISSANT = """
import json, sys
import mlcroissant
found = mlcroissant.Dataset(jsonld=f"{sys.argv[1]}/croissant.json")
images, entities = list(found.records("images")), list(found.records("entities"))
print(json.dumps({
    "ids": sorted(r["images/image_id"].decode() for r in images),
    "sizes": sorted({r["images/image"].size for r in images}),
    "labels": sorted(e for r in images for e in r["images/labels"]["images/labels/entity_id"]),
    "names": sorted(r["entities/name"].decode() for r in entities),
}))
"""
OTHERS = """
import io, json, sys
import duckdb, polars
import PIL.Image
folder = sys.argv[1]
files = f"{folder}/images/*/*.parquet"
ducks = duckdb.sql(f"select image_id, labels[1].entity_id from '{files}' order by 1").fetchall()
bears = polars.scan_parquet(files).select("image_id", "labels", "image").collect().sort("image_id")
first = bears.row(0, named=True)
print(json.dumps({
    "ducks": ducks, "bears": [[r["image_id"], r["labels"][0]["entity_id"]] for r in bears.to_dicts()],
    "size": PIL.Image.open(io.BytesIO(first["image"]["bytes"])).size,
}))
"""


def environment(folder: Path, *packages: str) -> str:
    """A python that has these packages and nothing of ours."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def dataset(folder: Path, first: int, rows: int) -> str:
    """A small dataset with its card."""
    place = write_dataset(folder, [image_row(first + i) for i in range(rows)])
    facts = {
        "images": rows, "labels": rows, "entities": 4, "storage": "parquet", "funnel": [], "dataset": f"{first:032x}",
        "format_version": 2,
    }  # fmt: skip
    (folder / "croissant.json").write_text(json.dumps(croissant(facts, PublishConfig(), IMAGES)), encoding="utf-8")
    (folder / "README.md").write_text(card(facts, [], PublishConfig(), IMAGES), encoding="utf-8")
    return place


def told(python: str, script: str, home: Path, *arguments: str) -> Any:
    run = [python, "-c", script, *arguments]
    done = subprocess.run(run, capture_output=True, text=True, env={"HF_HOME": str(home), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "version", [pytest.param("3.6.0", marks=pytest.mark.long), pytest.param("4.8.4", marks=pytest.mark.long), "5.0.0"]
)
def test_datasets_shows_pictures_and_keeps_datasets_apart(version: str, tmp_path: Path) -> None:
    """Catches: `Arrow type fixed_size_binary[16] does not have a datasets dtype equivalent`; structs of bytes instead
    of pictures; a second dataset whose load returns the first one from the cache."""
    python = environment(tmp_path / "python", f"datasets=={version}", "pillow")
    a, b = dataset(tmp_path / "a" / "i2e", 0, 12), dataset(tmp_path / "b" / "i2e", 100, 9)
    of_a, of_b = told(python, DATASETS, tmp_path / "home", a, b)
    assert (of_a["rows"], of_b["rows"]) == (12, 9)
    assert of_a["ids"] == sorted(image_row(i)["image_id"].hex() for i in range(12))
    assert of_b["ids"] == sorted(image_row(i)["image_id"].hex() for i in range(100, 109))
    assert of_a["sizes"] == [[64, 48]]
    assert set(of_a["labels"][0]) == {"entity_id", "class_index", "score", "clip_score", "mention"}
    assert of_a["names"] == [f"entity {c}" for c in range(4)]


def test_croissant_is_valid_and_reads_the_rows(tmp_path: Path) -> None:
    python = environment(tmp_path / "python", "mlcroissant[parquet]==1.1.1", "pyarrow", "pillow")
    found = told(python, CROISSANT, tmp_path, dataset(tmp_path / "i2e", 0, 12))
    assert found["ids"] == sorted(image_row(i)["image_id"].hex() for i in range(12))
    assert found["sizes"] == [[64, 48]]
    assert found["labels"] == sorted(100 + i % 4 for i in range(12))
    assert found["names"] == [f"entity {c}" for c in range(4)]


@pytest.mark.long
def test_other_readers_of_parquet(tmp_path: Path) -> None:
    python = environment(tmp_path / "python", "duckdb", "polars", "pillow")
    found = told(python, OTHERS, tmp_path, dataset(tmp_path / "i2e", 0, 12))
    expected = sorted([image_row(i)["image_id"].hex(), 100 + i % 4] for i in range(12))
    assert found["ducks"] == found["bears"] == expected
    assert found["size"] == [64, 48]
