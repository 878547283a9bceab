"""Wikipedia's links on Spark: files in parts, redirects in chains and circles."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from tests.wikidata.pages import FOOT, head, multistream, page
from wikidata import link_counting
from wikidata.anchors import site_of
from wikidata.source_files import PAGES, recognised

EN = site_of(head(), "pages.xml")
assert EN is not None


@pytest.fixture
def kept(tmp_path: Path) -> Callable[[DataFrame, str], DataFrame]:
    def write(frame: DataFrame, name: str) -> DataFrame:
        frame.write.parquet(f"{tmp_path}/kept/{name}")
        return frame.sparkSession.read.parquet(f"{tmp_path}/kept/{name}")

    return write


@pytest.mark.parametrize("pages_a_stream", [7, 100_000])
def test_every_page_of_a_split_file_is_read_once(spark: SparkSession, tmp_path: Path, pages_a_stream: int) -> None:
    """Catches: records at the border of two parts of a bz2 file that are read twice, or by nobody (HADOOP-13270)."""
    draw = random.Random(1)
    titles = [f"Page {n}" for n in range(1500)]
    made = [page(t, " ".join(f"{draw.getrandbits(40):x}" for _ in range(draw.randint(1, 120)))) for t in titles]
    parts = ["".join(made[i : i + pages_a_stream]) for i in range(0, len(made), pages_a_stream)]
    path = tmp_path / "enwiki-pages-articles-multistream.xml.bz2"
    path.write_bytes(multistream([head(), *parts, FOOT]))
    assert path.stat().st_size > 300_000
    sources = recognised([str(path)], PAGES)
    for size in ("3000b", "20000b", "70001b"):
        spark.conf.set("spark.sql.files.maxPartitionBytes", size)
        try:
            read = link_counting.read_pages(spark, sources, EN).select("title", "reason").collect()
        finally:
            spark.conf.unset("spark.sql.files.maxPartitionBytes")
        assert sorted(r.title for r in read if r.reason is None) == sorted(titles)
        assert {r.reason for r in read} <= {None, "frame"}


def test_pages_may_be_packed_in_any_way(spark: SparkSession, tmp_path: Path) -> None:
    """A file that Hadoop would not cut is read by one task, over the borders of its streams and pieces."""
    whole = (head() + "".join(page(f"Page {n}", "x " * n) for n in range(1, 400)) + FOOT).encode()
    for name, content in (
        ("pages.xml", whole),
        ("pages.xml.gz", gzip.compress(whole[:9000]) + gzip.compress(whole[9000:])),
        ("pages.xml.xz", lzma.compress(whole)),
        ("_hidden.xml.bz2", bz2.compress(whole)),
    ):
        (tmp_path / name).write_bytes(content)
        read = link_counting.read_pages(spark, recognised([str(tmp_path / name)], PAGES), EN).select("title", "reason")
        rows = read.collect()
        assert sorted(r.title for r in rows if r.reason is None) == sorted(f"Page {n}" for n in range(1, 400)), name
        assert [r.reason for r in rows if r.reason] == ["frame"]


def test_redirects_are_followed_and_circles_lead_nowhere(
    spark: SparkSession, kept: Callable[[DataFrame, str], DataFrame]
) -> None:
    chain = [(f"c{n}", f"c{n + 1}") for n in range(6)]
    rows = [("enwiki", *r) for r in (*chain, ("self", "self"), ("a", "b"), ("b", "a"), ("into", "a"), ("x", "c3"))]
    rows.append(("dewiki", "c0", "other"))
    redirects = spark.createDataFrame(rows, "site string, title string, redirect string")
    led = link_counting.followed(redirects, kept)
    found = {(r.site, r.title, r.redirect, r.hop) for r in led.collect()}
    assert ("enwiki", "c0", "c6", 6) in found
    assert ("enwiki", "x", "c6", 4) in found
    assert ("dewiki", "c0", "other", 1) in found
    assert not [f for f in found if f[1] == f[2]]
    titles = spark.createDataFrame(
        [("enwiki", "c6", 6), ("enwiki", "c2", 2), ("dewiki", "other", 9)],
        "site string, title string, entity_id bigint",
    )
    pages = spark.createDataFrame([], "site string, title string, reason string")
    meant = {(r.site, r.target): r.entity_id for r in link_counting.targets(titles, led, pages).collect()}
    # The first title on the way that has an item.
    assert meant[("enwiki", "c0")] == meant[("enwiki", "c1")] == meant[("enwiki", "c2")] == 2
    assert meant[("enwiki", "c3")] == meant[("enwiki", "x")] == 6
    assert meant[("dewiki", "c0")] == 9
    assert not [target for _, target in meant if target in ("a", "b", "self", "into")]


def test_pages_that_list_meanings_are_no_targets(
    spark: SparkSession, kept: Callable[[DataFrame, str], DataFrame]
) -> None:
    titles = spark.createDataFrame(
        [("enwiki", "Rose", 1), ("enwiki", "Rosa", 2)], "site string, title string, entity_id bigint"
    )
    redirects = spark.createDataFrame(
        [("enwiki", "Roses", "Rose", 1)], "site string, title string, redirect string, hop int"
    )
    pages = spark.createDataFrame([("enwiki", "Rose", "disambiguation")], "site string, title string, reason string")
    assert [r.target for r in link_counting.targets(titles, redirects, pages).collect()] == ["Rosa"]
