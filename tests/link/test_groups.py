"""Texts that belong together, from the input's column to the links of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands.explain import explain
from i2e_pipeline.commands.link import explain_texts, link_texts, plain
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.stages import pipeline
from tests.chain import rows, settings
from tests.wikidata.lines import aliases, instance_of, line

TOWN, CHANCELLOR, CAPITAL = 979_000, 567, 64
MERKEL, FULL = "Merkel seen in Berlin", "Angela Merkel at work"
PAGE: dict[str, tuple[pa.DataType, list[tuple[str, Any, str]]]] = {
    # Numbers in one file and text in the other are the same keys.
    "0.parquet": (pa.int64(), [("full", 3, FULL), ("alone", None, MERKEL), ("other page", 4, MERKEL)]),
    "1.parquet": (pa.string(), [("same page", "3", MERKEL), ("no page", None, MERKEL), ("blank page", " ", MERKEL)]),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of pairs with pages, and a knowledge base where Merkel is a town first, and then the chancellor."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "pairs").mkdir()
    for name, (of_page, pairs) in PAGE.items():
        keys, page, captions = ([pair[n] for pair in pairs] for n in range(3))
        table = {"key": keys, "url": pa.nulls(len(keys), pa.string()), "page": pa.array(page, of_page)}
        table |= {"caption": captions, "jpg": pa.nulls(len(keys), pa.binary())}
        pq.write_table(pa.table(table), folder / "pairs" / name)
    items = [
        line(TOWN, "Merkel", claims=instance_of(515)),
        line(CHANCELLOR, "Angela Merkel", aliases=aliases("Merkel"), claims=instance_of(5)),
        line(CAPITAL, "Berlin", claims=instance_of(515)),
    ]
    (folder / "dump.json").write_bytes(b"[\n" + b"\n".join(items).removesuffix(b",") + b"\n]\n")
    (folder / "popularity.csv").write_text(f"Q{TOWN},10\nQ{CHANCELLOR},200\nQ{CAPITAL},250\n")
    counts = [("Merkel", TOWN, 900), ("Merkel", CHANCELLOR, 100), ("Angela Merkel", CHANCELLOR, 500)]
    counts.append(("Berlin", CAPITAL, 900))
    (folder / "anchors.tsv").write_text("".join(f"{form}\tQ{entity}\t{n}\n" for form, entity, n in counts))
    return folder


def linked(pages: Path, output: Path, spark: Any, *overrides: str) -> Pipeline:
    """The stages up to the links, run."""
    dump = f"knowledge_base.dump={pages}/dump.json"
    whole = pipeline(settings(pages, output, dump, "pairs.files_per_unit=2", *overrides), lambda: spark)
    whole.run(whole.names[: whole.names.index(whole.writer("candidates")) + 1])
    return whole


@pytest.fixture(scope="module")
def grouped(pages: Path, tmp_path_factory: pytest.TempPathFactory, spark: Any) -> Pipeline:
    return linked(pages, tmp_path_factory.mktemp("grouped") / "out", spark, "pairs.group_column=page")


def of_key(whole: Pipeline) -> dict[str, dict[str, list[int]]]:
    """Of each pair what it names, by surface, the likeliest first."""
    found: dict[tuple[bytes, int, int], list[tuple[int, int]]] = {}
    for c in rows(whole, "candidates"):
        found.setdefault((c["text_id"], c["start"], c["end"]), []).append((c["rank"], c["entity_id"]))
    told: dict[str, dict[str, list[int]]] = {}
    for pair in rows(whole, "pairs"):
        mentions = [m for m in rows(whole, "mentions") if m["text_id"] == pair["text_id"]]
        told[pair["key"]] = {
            m["surface"]: [entity for _, entity in sorted(found[m["text_id"], m["start"], m["end"]])] for m in mentions
        }
    return told


def first(told: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[str, int]:
    return {key: of_text["Merkel"][0] for key, of_text in told.items() if "Merkel" in of_text}


@pytest.mark.slow
def test_a_short_name_is_who_its_page_names_in_full(grouped: Pipeline, pages: Path, tmp_path: Path, spark: Any) -> None:
    """Catches: groups that the input's reader, the plan or the join loses, or that hang on the partitions."""
    told = of_key(grouped)
    alone = dict.fromkeys(["alone", "other page", "no page", "blank page"], TOWN)
    assert first(told) == alone | {"same page": CHANCELLOR}
    assert told["full"]["Angela Merkel"] == [CHANCELLOR]
    ids = {p["key"]: p["text_id"] for p in rows(grouped, "pairs")}
    assert ids["alone"] == ids["no page"] == ids["blank page"]
    assert len({ids[key] for key in ("alone", "same page", "other page")}) == 3

    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        again = linked(pages, tmp_path / "5", spark, "pairs.group_column=page")
        without = linked(pages, tmp_path / "without", spark)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)

    def links(whole: Pipeline) -> list[dict[str, Any]]:
        return sorted(rows(whole, "candidates"), key=lambda c: (c["text_id"], c["start"], c["end"], c["rank"]))

    assert links(again) == links(grouped)
    assert first(of_key(without)) == alone | {"same page": TOWN}


@pytest.mark.slow
def test_lines_of_a_group_belong_together(grouped: Pipeline, tmp_path: Path) -> None:
    """With Spark and without. Catches: a group that is read of the lines and then dropped."""
    lines: list[dict[str, Any]] = [
        {"id": "full", "group": "p", "text": FULL},
        {"id": "same page", "group": "p", "text": MERKEL},
        {"id": "other page", "group": 7, "text": MERKEL},
        {"id": "alone", "text": MERKEL},
        {"id": "null", "group": None, "text": MERKEL},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert link_texts(grouped, str(tmp_path / "t.jsonl"), str(tmp_path / "l.jsonl")) == len(lines)
    written = [json.loads(one) for one in (tmp_path / "l.jsonl").read_text().splitlines()]
    told = {
        text["id"]: {m["surface"]: [c["entity_id"] for c in m["candidates"]] for m in text["mentions"]}
        for text in written
    }
    alone = dict.fromkeys(["other page", "alone", "null"], TOWN)
    assert first(told) == alone | {"same page": CHANCELLOR}
    assert [plain(text) for text in explain_texts(grouped, lines)] == written


def test_what_a_page_makes_of_a_name_is_explained(grouped: Pipeline) -> None:
    """Catches: an explanation of the text as if it stood alone, which differs from what the run stored."""
    for key, meant in (("same page", CHANCELLOR), ("other page", TOWN), ("no page", TOWN)):
        told = explain(grouped, key)
        (pair,) = told["pairs"]
        merkel = next(m for m in pair["mentions"] if m["surface"] == "Merkel")
        assert merkel["candidates"][0]["entity_id"] == meant
        assert merkel["candidates"][0]["stored"]["rank"] == 1
        assert told["notes"] == []
