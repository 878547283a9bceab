"""The join of distinct mentions with the knowledge base."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from i2e_pipeline.link.candidates import (
    GROUP_NAMES,
    KEYS,
    LINK_ROWS,
    explode_keys,
    in_order,
    keys_of,
    link_rows,
    with_candidates,
)
from tests.link.link_texts import resolve

SURFACES = "normal_form string, candidates array<struct<entity_id: bigint, prior: float, kind: string>>"
MENTIONS = "text_id binary, start int, end int, surface string, normal_form string, label string, source string"


def known(form: str, *entities: int) -> dict[str, Any]:
    share = 1 / len(entities)
    return {"normal_form": form, "candidates": [{"entity_id": e, "prior": share, "kind": "label"} for e in entities]}


def mention(text: bytes, start: int, form: str, **values: Any) -> dict[str, Any]:
    row = {"text_id": text, "start": start, "end": start + len(form), "surface": form, "normal_form": form}
    return row | {"label": None, "source": "gazetteer"} | values


def test_keys_start_with_the_form_and_try_its_article_last() -> None:
    assert keys_of("bananas")[0] == ("bananas", False)
    assert ("banana", True) in keys_of("bananas")
    assert ("the beatles", False) in keys_of("beatles")
    assert ("hague", False) in keys_of("the hague")


def test_keys_are_one_row_per_form_and_key() -> None:
    forms = pa.RecordBatch.from_pydict({"normal_form": ["bananas", "é"]})
    (keys,) = explode_keys([forms])
    assert keys.schema == KEYS
    rows = keys.to_pylist()
    assert len({(r["normal_form"], r["key"]) for r in rows}) == len(rows)
    assert [r["step"] for r in rows if r["normal_form"] == "bananas"] == list(range(len(keys_of("bananas"))))
    assert next(iter(explode_keys([forms.slice(0, 0)]))).num_rows == 0


@pytest.fixture(scope="module")
def linked(spark: Any) -> dict[bytes, dict[str, Any]]:
    from pyspark.sql import functions as F

    surfaces = spark.createDataFrame(
        [known("banana", 503), known("bananas", 1), known("turkey", 43, 43794), known("the beatles", 1299)], SURFACES
    )
    mentions = spark.createDataFrame(
        [
            mention(b"a" * 16, 10, "bananas"),
            mention(b"a" * 16, 0, "turkey", label="LOC", source="both"),
            mention(b"b" * 16, 0, "bananas"),
            mention(b"b" * 16, 20, "nothing known"),
            mention(b"c" * 16, 0, "beatles"),
        ],
        MENTIONS,
    )
    texts = spark.createDataFrame(
        [(b"a" * 16, "turkey and bananas"), (b"b" * 16, "bananas"), (b"c" * 16, "beatles"), (b"d" * 16, "no mention")],
        "text_id binary, text string",
    )
    mentions, texts = (frame.withColumn("unit", F.lit("u-1")) for frame in (mentions, texts))
    frame = with_candidates(mentions, texts, surfaces)
    assert frame.columns == ["unit", *LINK_ROWS.names]
    frame = frame.drop("unit")
    return {bytes(row["text_id"]): row.asDict(recursive=True) for row in frame.collect()}


def test_texts_without_mentions_have_no_row(linked: dict[bytes, dict[str, Any]]) -> None:
    assert set(linked) == {b"a" * 16, b"b" * 16, b"c" * 16}
    assert linked[b"a" * 16]["text"] == "turkey and bananas"


def test_mentions_stand_in_order_with_all_they_had(linked: dict[bytes, dict[str, Any]]) -> None:
    first, second = linked[b"a" * 16]["mentions"]
    assert (first["start"], first["surface"], first["label"], first["source"]) == (0, "turkey", "LOC", "both")
    assert second["start"] == 10


def test_a_plural_that_is_a_name_also_means_its_singular(linked: dict[bytes, dict[str, Any]]) -> None:
    """Catches: "bananas" in a shop's alt-text means the film only, because its exact form is known."""
    found = linked[b"b" * 16]["mentions"][0]["candidates"]
    assert [(c["entity_id"], c["inflected"]) for c in found] == [(1, False), (503, True)]


def test_a_mention_without_candidates_stays_with_an_empty_list(linked: dict[bytes, dict[str, Any]]) -> None:
    assert linked[b"b" * 16]["mentions"][1]["candidates"] == []


def test_a_form_unknown_as_it_stands_takes_the_first_key_that_is_known(linked: dict[bytes, dict[str, Any]]) -> None:
    assert [c["entity_id"] for c in linked[b"c" * 16]["mentions"][0]["candidates"]] == [1299]


def test_rows_fit_the_kernel(linked: dict[bytes, dict[str, Any]]) -> None:
    assert pa.RecordBatch.from_pylist(list(linked.values()), schema=LINK_ROWS).num_rows == 3


def test_one_form_is_resolved_as_spark_does(linked: dict[bytes, dict[str, Any]]) -> None:
    base = {
        row["normal_form"]: row["candidates"]
        for row in (known("banana", 503), known("bananas", 1), known("the beatles", 1299))
    }
    for form, text, place in (("bananas", b"b" * 16, 0), ("beatles", b"c" * 16, 0)):
        assert resolve(form, lambda f: base.get(f, [])) == linked[text]["mentions"][place]["candidates"]


def test_rows_of_a_few_texts_are_those_of_spark(linked: dict[bytes, dict[str, Any]]) -> None:
    """Catches: `i2e explain` told of other candidates, or another order of mentions, than the run had."""
    mentions = [{"text_id": i, **m} for i, row in linked.items() for m in reversed(row["mentions"])]
    base = {
        row["normal_form"]: row["candidates"]
        for row in (known("banana", 503), known("bananas", 1), known("turkey", 43, 43794), known("the beatles", 1299))
    }
    rows = link_rows({i: row["text"] for i, row in linked.items()}, mentions, base)
    assert rows.schema == LINK_ROWS
    assert {bytes(row.pop("text_id")): row for row in rows.to_pylist()} == {
        i: {k: v for k, v in row.items() if k != "text_id"} for i, row in linked.items()
    }


def test_names_of_a_group_are_bounded_and_those_of_spark(spark: Any) -> None:
    """Catches: a group of a million texts in one task's memory, or a choice that hangs on the partitions."""
    many = [f"angela{n} merkel" for n in range(GROUP_NAMES + 9)]
    base = {form: known(form, n + 1) for n, form in enumerate([*many, "merkel"])}
    of_text = {bytes([n]) * 16: [form] for n, form in enumerate(many)} | {b"m" * 16: ["merkel"], b"x" * 16: ["merkel"]}
    of_text |= {b"p" * 16: ["angela7"], b"q" * 16: ["dog"]}
    base |= {form: known(form, 999) for form in ("angela7", "dog")}
    groups = {i: b"g" * 16 if i != b"x" * 16 else None for i in of_text}
    mentions = [mention(i, 0, form) for i, forms in of_text.items() for form in forms]
    texts = {i: " ".join(forms) for i, forms in of_text.items()}
    rows = link_rows(texts, mentions, {form: row["candidates"] for form, row in base.items()}, groups)
    of_group = {row["text_id"]: row["group_names"] for row in rows.to_pylist()}
    names = [name["normal_form"] for name in of_group[b"m" * 16]]
    assert len(names) == GROUP_NAMES
    assert names == sorted(names)
    assert "merkel" not in names
    assert [name["normal_form"] for name in of_group[b"p" * 16]] == (["angela7 merkel"] if many[7] in names else [])
    assert of_group[b"x" * 16] == of_group[b"q" * 16] == [], "in no group, and none of its names"
    of_one = [m for m in mentions if m["text_id"] == b"m" * 16]
    texts_alone = {b"m" * 16: texts[b"m" * 16]}
    in_base = {form: row["candidates"] for form, row in base.items()}
    for elsewhere in (many, in_order(many)[:GROUP_NAMES], {*many, "unknown to it"}):
        (told,) = link_rows(texts_alone, of_one, in_base, {b"m" * 16: b"g" * 16}, {b"g" * 16: elsewhere}).to_pylist()
        assert told["group_names"] == of_group[b"m" * 16], "of the other texts the names are enough"
    frame = with_candidates(
        spark.createDataFrame([{**m, "unit": "u"} for m in mentions], f"{MENTIONS}, unit string").repartition(3),
        spark.createDataFrame(
            [(i, text, groups[i], "u") for i, text in texts.items()],
            "text_id binary, text string, group_id binary, unit string",
        ),
        spark.createDataFrame([*base.values()], SURFACES),
        grouped=True,
    )
    found = {bytes(r["text_id"]): r.asDict(recursive=True)["group_names"] for r in frame.collect()}
    assert found == of_group
