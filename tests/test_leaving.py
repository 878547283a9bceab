"""The right to leave: what a list names is gone at the next run, and nothing is scored again for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.dataset as ds
import pytest

from i2e_pipeline.core import files
from i2e_pipeline.inputs.marks import Mark, append
from i2e_pipeline.stages import pipeline
from tests.chain import content, run, settings

pytestmark = pytest.mark.slow


def images_of(output: Path) -> dict[str, dict[str, Any]]:
    columns = ["image_id", "url", "perceptual_hash", "labels"]
    return {
        r["image_id"]: r for r in ds.dataset(f"{output}/i2e/images", format="parquet").to_table(columns).to_pylist()
    }


def test_what_is_listed_is_gone_and_comes_back(world: Path, whole: Path, tmp_path: Path, spark: Any) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    before, entities = images_of(output), content(output)[1]
    ids = sorted(before)
    by_id, by_url, by_hash = ids[0], before[ids[1]]["url"], before[ids[2]]["perceptual_hash"]
    domain = urlsplit(before[ids[3]]["url"]).hostname
    entity = before[ids[4]]["labels"][0]["entity_id"]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.txt").write_text(f"{by_id}\n{by_url}\n{domain}\n")
    (tmp_path / "lists" / "b.csv").write_text(f"entity_id,perceptual_hash\nQ{entity},{by_hash}\n")
    config = settings(world, output, f"select.exclude={tmp_path}/lists")
    worked = run(config, spark)
    assert {s for s, n in worked.items() if n} == {"select", "publish", "finish"}

    after = images_of(output)
    assert not {ids[0], ids[1], ids[2], ids[3]} & after.keys()
    assert not any(urlsplit(r["url"]).hostname == domain for r in after.values())
    assert not any(label["entity_id"] == entity for r in after.values() for label in r["labels"])
    gone = before.keys() - after.keys()
    for image in gone - set(ids[:4]):
        row = before[image]
        listed = urlsplit(row["url"]).hostname == domain or {x["entity_id"] for x in row["labels"]} == {entity}
        differ = (int(row["perceptual_hash"], 16) ^ int(by_hash, 16)).bit_count()
        assert listed or differ <= 31, row
    manifest = files.read_json(str(output / "i2e" / "manifest.json"))
    rejected = {s["stage"]: s for s in manifest["funnel"]}["select"]["rejected"]
    for reason in ("excluded_url", "excluded_domain", "excluded_image", "excluded_hash"):
        assert rejected[reason] >= 1
    # The class index of what left stays taken, and says no name.
    (row,) = [e for e in _entities(output) if e["entity_id"] == entity]
    assert (row["name"], row["description"], row["retired"], row["images"]) == (f"Q{entity}", None, True, 0)
    assert entity not in content(output)[1]

    # Nothing to do for the same lists; without them everything is back, with the same class indices.
    assert not any(run(config, spark).values())
    run(settings(world, output), spark)
    assert content(output) == content(whole)
    index = [{e["entity_id"]: e["class_index"] for e in _entities(o)} for o in (output, whole)]
    assert index[0] == index[1]
    assert entities.keys() == index[0].keys()


def test_a_label_that_is_marked_as_wrong_is_gone_alone_and_comes_back(
    world: Path, whole: Path, tmp_path: Path, spark: Any
) -> None:
    output, marks = tmp_path / "out", str(tmp_path / "marks.jsonl")
    shutil.copytree(whole, output)
    before, entities = images_of(output), content(output)[1]
    one, another = min(before), max(before)
    (mine,), (theirs,) = ([label["entity_id"] for label in before[image]["labels"]] for image in (one, another))
    append(marks, Mark(one, mine, "other", other=1))
    append(marks, Mark(another, 5, "wrong"))  # no label of it
    append(marks, Mark(another, theirs, "right"))
    config = settings(world, output, f"select.exclude={marks}")
    worked = run(config, spark)
    assert {s for s, n in worked.items() if n} == {"select", "publish", "finish"}
    after, now = images_of(output), content(output)[1]
    assert before.keys() - after.keys() == {one}
    assert {image: _ids(row) for image, row in after.items()} == {i: _ids(before[i]) for i in after}
    manifest = files.read_json(str(output / "i2e" / "manifest.json"))
    rejected = {s["stage"]: s for s in manifest["funnel"]}["select"]["rejected"]
    assert rejected["excluded_label"] >= 1
    # What the texts proposed is counted as before.
    assert entities[mine]["images"] - (now[mine]["images"] if mine in now else 0) == 1
    assert mine not in now or now[mine]["pairs_proposed"] == entities[mine]["pairs_proposed"]

    append(marks, Mark(another, theirs, "unsure"))
    assert not any(run(config, spark).values())
    append(marks, Mark(one, mine, "cleared"))
    run(config, spark)
    assert content(output) == content(whole)


def _ids(row: dict[str, Any]) -> list[int]:
    return [label["entity_id"] for label in row["labels"]]


def _entities(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ds.dataset(f"{output}/i2e/entities", format="parquet").to_table().to_pylist()
    return found


def test_a_list_that_cannot_be_read_stops_the_run_before_any_work(world: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "list.txt").write_text("not one of these\n")
    config = settings(world, tmp_path / "out", f"select.exclude={tmp_path}/list.txt")
    with pytest.raises(Exception, match=r"list\.txt, line 1: 'not one of these' is no domain"):
        pipeline(config, lambda: pytest.fail("Spark was started")).run()
    assert json.loads((tmp_path / "out" / "i2e" / "manifest.json").read_text())
