"""Wider labels through the whole chain: texts that name what no image shows, below things that the images do show."""

from __future__ import annotations

import bz2
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands.explain import explain
from i2e_pipeline.commands.summary import print_explanation
from i2e_pipeline.core import files
from i2e_pipeline.stages import pipeline
from tests.chain import content, explained_as_stored, rows, run, settings

pytestmark = pytest.mark.slow

FIRST = 990_000_001
"""Id of the first made-up item; each stands below one that the pictures show, by P279 and by P31 in turn."""


@pytest.fixture(scope="module")
def renamed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, int]]:
    """The world whose second and third shard name a made-up thing instead of the one that is seen; what is above it."""
    folder = tmp_path_factory.mktemp("renamed") / "input"
    shutil.copytree(world, folder)
    above: dict[int, int] = {}
    for shard in sorted((folder / "pairs").iterdir())[1:]:
        table = pq.read_table(shard)
        captions = []
        for caption, truth in zip(*(table[c].to_pylist() for c in ("caption", "truth_qid")), strict=True):
            if truth is not None:
                place = above.setdefault(int(truth[1:]), FIRST + len(above))
                caption = f"photo of a {word(place)}"
            captions.append(caption)
        column = table.schema.get_field_index("caption")
        pq.write_table(table.set_column(column, "caption", pa.array(captions, pa.string())), shard)
    lines = bz2.decompress((folder / "dump.json.bz2").read_bytes()).decode().splitlines()
    made = [json.dumps(item(n, up, ("P279", "P31")[n % 2])) + "," for up, n in above.items()]
    lines = [lines[0], *made, *lines[1:]]
    (folder / "dump.json.bz2").write_bytes(bz2.compress("\n".join(lines).encode() + b"\n"))
    return folder, {n: up for up, n in above.items()}


def word(number: int) -> str:
    return "zorb" + "".join(chr(ord("a") + int(d)) for d in str(number - FIRST)) + "lix"


def item(number: int, up: int, by: str) -> dict[str, Any]:
    value = {"entity-type": "item", "numeric-id": up, "id": f"Q{up}"}
    snak = {
        "snaktype": "value", "property": by, "datatype": "wikibase-item",
        "datavalue": {"value": value, "type": "wikibase-entityid"},
    }  # fmt: skip
    return {
        "type": "item", "id": f"Q{number}", "labels": {"en": {"language": "en", "value": word(number)}},
        "descriptions": {"en": {"language": "en", "value": "paragraph of a contract that regulates arrears"}},
        "aliases": [], "sitelinks": [],
        "claims": {by: [{"mainsnak": snak, "type": "statement", "id": f"Q{number}$1", "rank": "normal"}]},
    }  # fmt: skip


@pytest.mark.long
def test_an_image_gets_what_stands_above_what_its_text_names(
    renamed: tuple[Path, dict[int, int]], tmp_path: Path, spark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    world, above = renamed
    of_config = ("label.threshold=0.7", "pairs.files_per_unit=2")
    off = settings(world, tmp_path / "off", *of_config)
    run(off, spark)
    on = settings(world, tmp_path / "on", *of_config, "label.wider=true")
    run(on, spark)
    without, whole = pipeline(off), pipeline(on, lambda: pytest.fail("Spark was started"))
    whole.open([])  # knows the tables as this config has them

    # Off, there is nothing of it.
    assert rows(without, "wider") == []
    assert "wider_of" not in without.tables.catalogue.schema("labels").names
    assert not (tmp_path / "off" / "kb" / "above").exists()

    # On, labels by name are the same, and pairs that had none have what stands above.
    by_name = [{k: v for k, v in r.items() if k != "wider_of"} for r in rows(whole, "labels", wider_of=None)]
    key = ("pair_id", "entity_id")
    assert sorted(by_name, key=lambda r: [r[k] for k in key]) == sorted(
        rows(without, "labels"), key=lambda r: [r[k] for k in key]
    )
    labelled = {r["pair_id"] for r in by_name if r["reason"] is None}
    wider = [r for r in rows(whole, "labels", reason=None) if r["wider_of"] is not None]
    assert len(wider) > 20
    assert labelled.isdisjoint(r["pair_id"] for r in wider)
    assert all(above[r["wider_of"]] == r["entity_id"] for r in wider)
    assert {r["wider_of"] % 2 for r in wider} == {0, 1}
    images, entities = content(tmp_path / "on")
    assert {r["image_id"].hex() for r in wider} <= images.keys()
    assert {r["entity_id"] for r in wider} <= entities.keys()
    assert len(images) > len(content(tmp_path / "off")[0])
    manifest = files.read_json(str(tmp_path / "on" / "i2e" / "manifest.json"))
    named = {r["image_id"] for r in by_name if r["reason"] is None}  # by another pair with the same image, too
    assert manifest["wider_labels"] == len(
        {(r["image_id"], r["entity_id"]) for r in wider if r["image_id"] not in named}
    )
    assert "wider_labels" not in files.read_json(str(tmp_path / "off" / "i2e" / "manifest.json"))

    # What is told of an image is what was stored.
    assert explained_as_stored(whole) > 50
    told = explain(whole, wider[0]["pair_id"].hex())
    print_explanation(told)
    assert f"(wider of Q{wider[0]['wider_of']})" in " ".join(capsys.readouterr().out.split())

    # Other units and partitions: the same.
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        apart = settings(world, tmp_path / "apart", "label.threshold=0.7", "label.wider=true", "score.rows_per_task=40")
        run(apart, spark)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
    assert content(tmp_path / "apart") == content(tmp_path / "on")

    # Off again in the same output, as if it had never been on.
    run(settings(world, tmp_path / "on", *of_config), spark)
    assert content(tmp_path / "on") == content(tmp_path / "off")
    schema = pq.read_schema(next((tmp_path / "on" / "labels").rglob("*.parquet")))
    assert "wider_of" not in schema.names
