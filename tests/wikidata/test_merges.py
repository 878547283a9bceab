"""Merged items are followed to their ends, and two knowledge bases are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from wikidata import merges, sources
from wikidata.schemas import ENTITIES, REDIRECTS
from wikidata.source_files import SourceError


def resolved(*pairs: tuple[int, int]) -> dict[int, int]:
    batches = [pa.RecordBatch.from_pylist([{"entity_id": old, "into": new}], REDIRECTS) for old, new in pairs]
    (made,) = merges.resolved(batches)
    return dict(zip(*(made.column(n).to_pylist() for n in range(2)), strict=True))


@given(st.permutations(range(1, 40)), st.randoms())
def test_chains_are_followed_to_their_ends(ids: list[int], random: Any) -> None:
    """Whatever their order: each id leads to one that stands behind it."""
    pairs = [(old, ids[random.randrange(n + 1, len(ids))]) for n, old in enumerate(ids[:-1]) if random.random() < 0.8]
    into = dict(pairs)

    def end(one: int) -> int:
        return end(into[one]) if one in into else one

    assert resolved(*pairs) == {old: end(old) for old in into}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([(1, 2), (2, 3), (3, 1), (9, 1)], "Q1 is merged into itself"),
        ([(5, 6), (7, 7)], "Q7 is merged into itself"),
        ([(1, 3), (2, 3), (1, 2)], "Q1 is merged into Q2 and into Q3: .* take out a row"),
    ],
)
def test_circles_and_two_targets_are_errors(pairs: list[tuple[int, int]], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        resolved(*pairs)


def test_ids_are_followed_in_columns_and_lists() -> None:
    ids, into = np.array([3, 9]), np.array([30, 90])
    column = pa.array([1, 3, None, 9, 10], pa.int64())
    assert merges.followed_in(column, ids, into).to_pylist() == [1, 30, None, 90, 10]
    lists = pa.array([[3, 4], None, [], [9]], pa.list_(pa.int64()))
    assert merges.followed_in(lists, ids, into).to_pylist() == [[30, 4], None, [], [90]]
    assert merges.followed_in(lists.slice(1), ids, into).to_pylist() == [None, [], [90]]
    assert merges.followed_in(column, ids[:0], into[:0]) == column


def test_a_bad_row_of_a_redirects_file_is_named_with_its_line(tmp_path: Path) -> None:
    from tests.wikidata.test_sources import rows

    good = "from\tinto\nQ4\tQ1\n"
    assert rows(tmp_path, good, sources._REDIRECTS) == [("Q4", "Q1")]
    assert rows(tmp_path, "Q4\tQ1\n", sources._REDIRECTS) == [("Q4", "Q1")]
    with pytest.raises(SourceError, match=r"line 3: .* is no row of a TSV .*: into is not Q and a positive number"):
        rows(tmp_path, f"{good}Q5\t6\n", sources._REDIRECTS)
    with pytest.raises(SourceError, match=r"line 3: .*: it has 1 column instead of 2; is it split by ','"):
        rows(tmp_path, f"{good}Q5,Q6\n", sources._REDIRECTS)


def entities(spark: SparkSession, **rows: dict[str, Any]) -> DataFrame:
    base = dict.fromkeys(ENTITIES.names) | {"name": "x", "name_language": "en", "aliases": [], "types": []}
    base |= {"parents": [], "sitelinks": 0, "statements": 0, "name_case": 0, "has_image": False, "visual": 0.5}
    whole = [base | {"entity_id": int(q[1:]), "is_human": False} | row for q, row in rows.items()]
    return spark.createDataFrame(whole, from_arrow_schema(ENTITIES))


def test_redirects_lead_to_entities_alone(spark: SparkSession) -> None:
    """Catches: an undone merge of an older file, which takes an entity's rows from it."""
    known = entities(spark, Q1={}, Q2={})
    of_dump = spark.createDataFrame([(4, 1)], from_arrow_schema(REDIRECTS))
    of_file = spark.createDataFrame([(4, 2), (5, 4), (5, 4), (2, 1), (6, 2), (7, 99)], from_arrow_schema(REDIRECTS))
    led = merges.led(merges.together(of_dump, of_file), known)
    assert sorted(tuple(r) for r in led.collect()) == [(4, 1), (5, 1), (6, 2)]
    rows = spark.createDataFrame([("a", 5), ("b", 1), ("c", 99)], "name string, entity_id bigint")
    assert sorted(tuple(r) for r in merges.followed(rows, led).collect()) == [("a", 1), ("b", 1), ("c", 99)]


def test_what_tells_two_knowledge_bases_apart(spark: SparkSession) -> None:
    """Catches: a hash that passes over nulls and over the borders of lists."""
    same = {"description": None, "aliases": ["a"], "types": [1, 2], "sitelinks": 1}
    older = entities(
        spark, Q1=same, Q2={"description": "old"}, Q3={}, Q4={}, Q6={"types": [1, 2]}, Q7={"aliases": []},
        Q8={"name": "n", "description": None}, Q9={"aliases": ["b", "c"]},
    )  # fmt: skip
    newer = entities(
        spark, Q1={**same, "sitelinks": 9, "fame": 2.0}, Q2={"description": "new"}, Q5={},
        Q6={"types": [1], "parents": [2]}, Q7={"has_image": True},
        Q8={"name": "n", "description": ""}, Q9={"aliases": ["b", "c"]},
    )  # fmt: skip
    led = spark.createDataFrame([(4, 1)], from_arrow_schema(REDIRECTS))
    found = merges.changes(older, newer, led, merges.COMPARED)
    assert sorted(tuple(r) for r in found.collect()) == [
        (2, "changed", None), (3, "removed", None), (4, "merged", 1), (5, "added", None), (6, "changed", None),
        (7, "changed", None), (8, "changed", None),
    ]  # fmt: skip
    assert merges.counted(found) == {"added": 1, "changed": 4, "removed": 1, "merged": 1}
    assert merges.counted(merges.changes(older, older, None, merges.COMPARED)) == dict.fromkeys(
        ("added", "changed", "removed", "merged"), 0
    )
