"""The knowledge base on Spark: a dump in, entities, names and surfaces out."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from i2e_pipeline.core import files
from tests.wikidata.lines import aliases, batch, line
from wikidata import knowledge_base, sources
from wikidata.items import read_items
from wikidata.priors import PriorWeights
from wikidata.schemas import ANCHORS, ENTITIES, NAMES, POPULARITY, RAW_ENTITIES, RAW_NAMES, SURFACES
from wikidata.source_files import DUMP, SourceError, recognised


def frame(spark: SparkSession, rows: list[Any], schema: Any) -> DataFrame:
    return spark.createDataFrame(rows, from_arrow_schema(schema))


def raw(spark: SparkSession, *lines: bytes) -> tuple[DataFrame, DataFrame]:
    tables: dict[str, list[Any]] = {"entities": [], "names": [], "rejects": [], "brackets": [], "redirects": []}
    for table, rows in read_items([batch(*lines)]):
        tables[table] += rows.to_pylist()
    return frame(spark, tables["entities"], RAW_ENTITIES), frame(spark, tables["names"], RAW_NAMES)


def in_members(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Several streams one after the other, one of them empty."""
    return lambda text: pack(text[:40]) + pack(b"") + pack(text[40:])


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "json": bytes,
    "json.bz2": bz2.compress,
    "json.gz": gzip.compress,
    "members.json.bz2": in_members(bz2.compress),
    "members.json.gz": in_members(gzip.compress),
    "garbage.json.bz2": lambda text: bz2.compress(text) + b"what bunzip2 passes over",
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_line_of_a_dump_is_read_as_it_is(spark: SparkSession, tmp_path: Path, packing: str) -> None:
    lines = [b"[", line(1, "a"), b"", b'{"id":"Q7","x":"\xff"},\r', line(2, "b"), b"]"]
    text = b"\n".join(lines) + b"\n"
    path = tmp_path / f"dump.{packing}"
    path.write_bytes(PACKINGS[packing](text))

    def reasons(batches: Any) -> Any:
        import pyarrow as pa

        for table, rows in read_items(batches):
            what = rows["reason"] if table == "rejects" else pa.array([table] * rows.num_rows)
            yield pa.record_batch([what.cast(pa.string())], ["what"])

    dump = recognised([str(path)], DUMP)
    found = knowledge_base.read_dump(spark, dump, partitions=2).mapInArrow(reasons, "what string")
    kinds = sorted(r.what for r in found.collect() if r.what not in ("names", "brackets"))
    assert kinds == ["blank", "bracket", "bracket", "entities", "entities", "not_utf8"]


NAMES_OF_FOLDERS = (
    "10:30",
    "a,b",
    "{x}",
    "[1]",
    "date=2024-01-01",
    "with space",
    "50%",
    "%20",
    "#1",
    "é",
    "a\\b",
    "?*",
    "run [10:30]",
    "{a,b}:*?\\ é#%20",
)


def test_the_listed_files_are_read_wherever_they_lie(spark: SparkSession, tmp_path: Path) -> None:
    """Catches: names that Hadoop takes for globs, a folder that becomes a column, a colon beside the file."""
    paths = []
    for n, folder in enumerate(NAMES_OF_FOLDERS):
        path = tmp_path / folder / "more" / f"dump {folder}.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(line(n + 1) + b"\n")
        (path.parent / "other.json").write_bytes(line(99) + b"\n")
        paths.append(str(path))
    (tmp_path / "_hidden.json").write_bytes(line(98) + b"\n")
    dump = recognised([*paths, str(tmp_path / "_hidden.json")], DUMP)
    read = knowledge_base.read_dump(spark, dump, for_spark=files.for_spark)
    assert read.columns == ["value"]
    assert sorted(bytes(r.value) for r in read.collect()) == sorted(
        line(n) for n in (*range(1, len(NAMES_OF_FOLDERS) + 1), 98)
    )


def test_tasks_read_the_lines_that_spark_reads(spark: SparkSession, tmp_path: Path) -> None:
    """Catches: another hash of a line, and so another id in `rejects`, by the way that it was read."""
    for n, text in enumerate(
        (b"\xef\xbb\xbf[\r\n" + line(1) + b"\r\n]\r\n", b"\n\n" + line(2) + b"\n\xff\n\n" + line(3))
    ):
        (tmp_path / f"{n}.json").write_bytes(text)
    dump = recognised([str(tmp_path / f"{n}.json") for n in range(2)], DUMP)
    read = knowledge_base.read_dump(spark, dump, for_spark=files.for_spark)
    in_tasks = knowledge_base.read_in_tasks(spark, dump)
    assert in_tasks is not None
    found = in_tasks[0].mapInArrow(in_tasks[1], "value binary")
    assert sorted(bytes(r.value) for r in found.collect()) == sorted(bytes(r.value) for r in read.collect())


def test_of_two_lines_with_one_id_the_newer_wins_and_the_other_is_rejected(spark: SparkSession) -> None:
    old, new = line(1, "old", lastrevid=5), line(1, "new", lastrevid=6)
    same = line(3, "twice")
    entities, names = raw(spark, old, new, old, line(2, "other"), same, same)
    kept, kept_names, rejects = knowledge_base.without_duplicates(entities, names)
    assert sorted((r.entity_id, r.name) for r in kept.collect()) == [(1, "new"), (2, "other"), (3, "twice")]
    assert {r.normal_form for r in kept_names.collect()} == {"new", "other", "twice"}
    assert sorted((r.reason, r.detail) for r in rejects.collect()) == [
        ("duplicate_id", "Q1"),
        ("duplicate_id", "Q1"),
        ("duplicate_id", "Q3"),
    ]
    assert kept.columns == ENTITIES.names
    assert kept_names.columns == NAMES.names


@pytest.fixture(scope="module")
def small(spark: SparkSession) -> dict[str, DataFrame]:
    entities, names = raw(
        spark,
        line(308, "Mercury", aliases=aliases("first planet")),
        line(925, "mercury", aliases=aliases("Hg", "quicksilver")),
        line(503, "banana"),
        line(1, "Obama Castle", claims={}),
    )
    kept, kept_names, _ = knowledge_base.without_duplicates(entities, names)
    anchors = [
        {"normal_form": "mercury", "surface": "Mercury", "entity_id": 308, "count": 9},
        {"normal_form": "innermost planet", "surface": "innermost planet", "entity_id": 308, "count": 2},
        {"normal_form": "mercury", "surface": "Mercury", "entity_id": 404, "count": 99},
    ]
    popularity = [{"entity_id": 308, "popularity": 8.0}, {"entity_id": 503, "popularity": 2.0}]
    return {
        "entities": kept.cache(),
        "names": kept_names.cache(),
        "anchors": frame(spark, anchors, ANCHORS),
        "popularity": frame(spark, popularity, POPULARITY),
    }


def test_surfaces_join_names_anchors_and_popularity(small: dict[str, DataFrame]) -> None:
    result = knowledge_base.surfaces(**small)
    assert result.schema == from_arrow_schema(SURFACES)
    found = {r.normal_form: r for r in result.collect()}
    assert [(c.entity_id, c.kind) for c in found["mercury"].candidates] == [(308, "label"), (925, "label")]
    assert found["mercury"].forms == ["Mercury", "mercury"]
    assert [(c.entity_id, c.kind) for c in found["innermost planet"].candidates] == [(308, "anchor")]
    assert found["banana"].gazetteer
    assert not found["hg"].gazetteer


def test_surfaces_do_not_depend_on_partitions(spark: SparkSession, small: dict[str, DataFrame]) -> None:
    def content() -> list[Any]:
        return sorted(knowledge_base.surfaces(**small).collect())

    before = spark.conf.get("spark.sql.shuffle.partitions")
    expected = content()
    try:
        for partitions in (1, 7):
            spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
            small["names"] = small["names"].repartition(partitions)
            assert content() == expected
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", str(before))


def test_popularity_is_unknown_where_the_file_has_none(small: dict[str, DataFrame]) -> None:
    joined = knowledge_base.with_popularity(small["entities"], small["popularity"])
    assert joined.columns == ENTITIES.names
    assert {r.entity_id: r.popularity for r in joined.collect()} == {308: 8.0, 503: 2.0, 925: None, 1: None}


def test_popularities_of_other_scales_have_each_its_share(spark: SparkSession, small: dict[str, DataFrame]) -> None:
    """Catches: the source of the larger numbers decides alone; unknown to one source counts as 0."""
    degrees = frame(spark, [(308, 4000.0), (925, 1000.0), (1, 0.0), (77, 1e9)], POPULARITY)
    importance = frame(spark, [(308, 0.4), (503, 0.1)], POPULARITY)
    both = knowledge_base.with_popularity(small["entities"], degrees, importance)
    assert both.columns == ENTITIES.names
    found = {r.entity_id: r.popularity for r in both.collect()}
    # References 2,000 (of the dump's entities alone) and 0.2: twice both, half of each, nothing.
    assert found == {308: pytest.approx(2), 925: pytest.approx(0.5), 503: pytest.approx(0.5), 1: 0.0}
    swapped = knowledge_base.with_popularity(small["entities"], importance, degrees)
    assert {r.entity_id: r.popularity for r in swapped.collect()} == pytest.approx(found)
    none = frame(spark, [(308, 0.0)], POPULARITY)
    zero = knowledge_base.with_popularity(small["entities"], none, none)
    assert {r.entity_id: r.popularity for r in zero.collect()} == {308: 0.0, 925: None, 503: None, 1: None}


def fames(spark: SparkSession, rows: list[dict[str, Any]], **weights: float) -> list[float | None]:
    base = {"name": "x", "name_language": "en", "aliases": [], "types": [5], "parents": [], "sitelinks": 0}
    base |= {"statements": 1, "popularity": None, "name_case": 0, "has_image": False, "visual": 0.5, "is_human": False}
    whole = [dict.fromkeys(ENTITIES.names) | base | {"entity_id": n} | row for n, row in enumerate(rows, 1)]
    made = knowledge_base.with_fame(frame(spark, whole, ENTITIES), PriorWeights(**weights))
    assert made.columns == ENTITIES.names
    return [r.fame for r in sorted(made.collect(), key=lambda r: r.entity_id)]


def test_fame_is_the_documented_formula(spark: SparkSession) -> None:
    """Catches: an unknown popularity that counts as 0."""
    rows: list[dict[str, Any]] = [
        {"popularity": 8.0, "sitelinks": 3, "statements": 9, "has_image": True},
        {"popularity": 2.0},
        {"popularity": None},
        {"popularity": 0.0},
    ]
    found = fames(spark, rows, popularity=0.5, sitelinks=2.0, statements=0.25, image=1.5)
    of_one = 0.25 * log(2)
    assert found == pytest.approx(
        [
            0.5 * log(1 + 2) + 2 * log(4) + 0.25 * log(10) + 1.5,
            0.5 * log(1 + 0.5) + of_one,
            0.5 * log(1 + 1) + of_one,
            of_one,
        ]
    )
    assert fames(spark, rows) == pytest.approx(
        [0.3 * log(3) + 0.75 * log(4), 0.3 * log(1.5), 0.3 * log(2), 0], abs=1e-6
    )


def test_what_a_dump_does_not_know_says_nothing(spark: SparkSession) -> None:
    """Catches: classes that another source gave pass for statements, and items of the few that have more win."""
    few = [{"sitelinks": 1, "statements": 9, "has_image": n == 0} if n < 1 else {} for n in range(20)]
    assert fames(spark, few) == [None] * 20
    linked = [{**row, "sitelinks": 1} for row in few]
    assert len(set(fames(spark, linked, statements=1.0, image=1.0))) == 1
    described = [{**row, "statements": 2 if n % 5 else 9} for n, row in enumerate(linked)]
    assert len(set(fames(spark, described, statements=1.0, image=1.0))) == 3


def test_names_of_another_source_stand_once_and_only_of_known_entities(
    spark: SparkSession, small: dict[str, DataFrame]
) -> None:
    more = [
        ("mercury", "Mercury", 308, "title", "en"),  # the dump's own
        ("planet mercury", "Planet Mercury", 308, "redirect", "en"),
        ("planet mercury", "Planet Mercury", 308, "title", "de"),
        ("planet mercury", "Planet Mercury", 308, "redirect", "de"),
        ("venus", "Venus", 313, "title", "en"),
    ]
    whole = knowledge_base.with_names(small["names"], frame(spark, more, NAMES), small["entities"])
    before = {tuple(r) for r in small["names"].collect()}
    assert whole.columns == NAMES.names
    assert {tuple(r) for r in whole.collect()} - before == {more[2]}
    assert whole.count() == len(before) + 1


def test_popularity_file(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "popularity.csv"
    path.write_text("Entity,QRank\nQ2,42\nQ3,0.5\nQ2,7\n")
    assert {tuple(r) for r in sources.read_popularity(spark, [str(path)]).collect()} == {(2, 42.0), (3, 0.5)}


def test_anchors_file(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "anchors.tsv"
    path.write_text('surface\tqid\tcount\n"Fireside Chat"\tQ4\t1\nIran\tQ794\t2\nIran\tQ794\t3\n$\tQ5\t9\n', "utf-8")
    rows = {tuple(r) for r in sources.read_anchors(spark, [str(path)]).collect()}
    assert rows == {("fireside chat", '"Fireside Chat"', 4, 1, None), ("iran", "Iran", 794, 5, None)}


def test_an_anchors_file_may_say_how_often_a_surface_is_no_link(spark: SparkSession, tmp_path: Path) -> None:
    """Each surface's own number stands in all its rows; what several files say of it is added up."""
    counted, other, plain = (tmp_path / f"{name}.tsv" for name in ("counted", "other", "plain"))
    counted.write_text("surface\tqid\tcount\tunlinked\nJava\tQ251\t6\t40\nJava\tQ3757\t4\t40\nrare\tQ9\t1\t\n")
    other.write_text("Java\tQ3757\t1\t2\n")
    plain.write_text("Java\tQ251\t1\nplain\tQ8\t3\n")
    found = sources.read_anchors(spark, [str(p) for p in (counted, other, plain)])
    assert found.columns == ANCHORS.names
    assert {(r.surface, r.entity_id, r["count"], r.unlinked) for r in found.collect()} == {
        ("Java", 251, 7, 42),
        ("Java", 3757, 5, 42),
        ("rare", 9, 1, None),
        ("plain", 8, 3, None),
    }


def test_of_several_files_the_first_bad_row_is_named_before_any_is_used(spark: SparkSession, tmp_path: Path) -> None:
    paths = []
    for name, row in (("a", "Q2,2"), ("b", "Q2,many"), ("c", "Q2,-1")):
        paths.append(str(tmp_path / f"{name}.csv"))
        Path(paths[-1]).write_text(f"qid,number\nQ1,1\n{row}\n")
    with pytest.raises(SourceError, match=r"b\.csv, line 3: 'Q2,many' is no row"):
        sources.read_popularity(spark, paths)
    assert {tuple(r) for r in sources.read_popularity(spark, paths[:1]).collect()} == {(1, 1.0), (2, 2.0)}


def test_a_file_of_a_header_alone_is_an_error(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "popularity.csv"
    path.write_text("qid,number\n")
    with pytest.raises(SourceError, match=r"popularity\.csv has no row, it begins with 'qid,number'"):
        sources.read_popularity(spark, [str(path)])


def test_anchors_that_are_not_utf8_are_counted_and_said(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "anchors.tsv"
    path.write_bytes("surface\tqid\tcount\nIran\tQ1\t1\nCafé\tQ2\t1\nÉté\tQ3\t1\n".encode("latin-1"))
    said: list[str] = []
    found = sources.read_anchors(spark, [str(path)], said.append)
    assert len(said) == 1
    assert f"{path}: 2 of 3 rows are not UTF-8, the first in line 3" in said[0]
    assert {r.entity_id for r in found.collect()} == {1, 2, 3}


def test_importance_file(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "importance.tsv"
    path.write_text(
        "language\ttype\ttitle\timportance\twikidata_id\n"
        "en\ta\tMercury_(planet)\t0.6\tQ308\nen\tr\tPlanet_Mercury\t0.6\tQ308\nde\ta\tMerkur\t0.7\tQ308\nen\ta\tX\t0.1\t\n"
    )
    popularity, names = sources.read_importance(spark, [str(path)], ["en-gb", "mul"])
    assert [tuple(r) for r in popularity.collect()] == [(308, 0.7)]
    assert {(r.normal_form, r.kind) for r in names.collect()} == {("mercury", "title"), ("planet mercury", "redirect")}
