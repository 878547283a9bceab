"""On which side of the split an image lies, whatever else the dataset holds."""

from __future__ import annotations

import bz2
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.splits import held_out_entities
from tests.chain import run, settings

VENUS = 313
ALL = "label.threshold=0"
RULES = {
    "floor": ("select.min_images_per_entity=5",),
    "cap": ("select.max_images_per_entity=2",),
    "fewer labels and a list": ("label.max_labels_per_image=2", "select.exclude={list}"),
    "people": ("clean.people=drop_labels",),
}


def _with_a_held_out_human(dump: bytes) -> bytes:
    """The world has no humans among the entities that are held out; Venus becomes one."""
    changed = []
    for line in dump.split(b"\n"):
        if line.startswith(b"{"):
            item = json.loads(line.rstrip(b","))
            if item["id"] == f"Q{VENUS}":
                item["claims"]["P31"][0]["mainsnak"]["datavalue"]["value"] |= {"id": "Q5", "numeric-id": 5}
                line = json.dumps(item).encode() + b","
        changed.append(line)
    return b"\n".join(changed)


def sides(output: Path) -> dict[str, str]:
    table = ds.dataset(str(output / "i2e" / "images"), format="parquet").to_table(["image_id", "split"])
    return dict(zip(table["image_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def held_out(output: Path) -> list[int]:
    ids = ds.dataset(str(output / "i2e" / "entities"), format="parquet").to_table(["entity_id"])["entity_id"].to_numpy()
    return sorted(ids[held_out_entities(ids)].tolist())


def hiding(output: Path) -> int:
    """Images that lie in `test` though no label of theirs says so."""
    table = ds.dataset(str(output / "i2e" / "images"), format="parquet").to_table(["labels", "split"])
    labels = table["labels"].combine_chunks()
    entities = pc.struct_field(pc.list_flatten(labels), "entity_id").to_numpy()
    says = np.zeros(len(table), bool)
    says[pc.list_parent_indices(labels).to_numpy()[held_out_entities(entities)]] = True
    return int((~says & (np.array(table["split"].to_pylist()) == "test")).sum())


@pytest.fixture
def crowded(world: Path, tmp_path: Path) -> Path:
    """The world's input, each image with the texts of some others, too: images of several entities, entities of several
    images. All pairs of an image are in one file."""
    place = tmp_path / "crowded"
    shutil.copytree(world, place, ignore=shutil.ignore_patterns("pairs"))
    (place / "dump.json.bz2").write_bytes(
        bz2.compress(_with_a_held_out_human(bz2.decompress((world / "dump.json.bz2").read_bytes())))
    )
    (place / "pairs").mkdir()
    files = sorted((world / "pairs").iterdir())
    table = pa.concat_tables([pq.read_table(file) for file in files])
    place_N, text_N = np.arange(len(table)), table.column("caption")
    captions = [text_N.take((place_N + further) % len(table)) for further in (0, 1, 3, 7)]
    pairs = pa.concat_tables([table.set_column(2, "caption", caption) for caption in captions])
    of_file_N = np.tile(place_N * len(files) // len(table), len(captions))
    for n in range(len(files)):
        pq.write_table(pairs.filter(pa.array(of_file_N == n)), place / "pairs" / f"{n:05}.parquet")
    return place


@pytest.mark.slow
def test_no_rule_and_no_growth_moves_an_image(crowded: Path, tmp_path: Path, spark: Any) -> None:
    """Catches: an image that was trained on and is tested with in the next build, or the other way around, because a
    floor, a cap, a bound, a list or a stage took its label of a held-out entity, or gave it back."""
    output, listed = tmp_path / "out", tmp_path / "list.txt"
    run(settings(crowded, output, ALL), spark)
    before, tested = sides(output), held_out(output)
    assert {"train", "validation", "test"} == set(before.values())
    listed.write_text("".join(f"Q{entity}\n" for entity in tested[::2]))
    hidden = {}
    for name, rule in RULES.items():
        run(settings(crowded, output, ALL, *(word.format(list=listed) for word in rule)), spark)
        now = sides(output)
        assert len(now) > 20, name
        assert now.keys() <= before.keys(), name
        assert {i: side for i, side in now.items() if before[i] != side} == {}, name
        hidden[name] = hiding(output)
    assert all(hidden.values()), hidden

    grown, floor = tmp_path / "grown", "select.min_images_per_entity=5"
    run(settings(crowded, grown, ALL, floor, shards="00000"), spark)
    first = sides(grown)
    run(settings(crowded, grown, ALL, floor), spark)
    now = sides(grown)
    assert len(first.keys() & now.keys()) > 10
    assert {i: side for i, side in now.items() if first.get(i, side) != side} == {}
