"""Dump lines to entities, names and rejects."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wikidata.lines import aliases, batch, instance_of, line, statement
from wikidata.items import Item, parse, read_items, verdict
from wikidata.reasons import Reason
from wikidata.schemas import RAW_ENTITIES, RAW_NAMES, REJECTS
from wikidata.types import TYPES


def read(*lines: bytes, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {
        "entities": [],
        "names": [],
        "rejects": [],
        "brackets": [],
        "redirects": [],
    }
    for table, rows in read_items([batch(*lines)], **settings):
        tables[table] += rows.to_pylist()
    return tables


def entity(*lines: bytes) -> dict[str, Any]:
    (row,) = read(*lines)["entities"]
    return row


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[", Reason.BRACKET),
        (b"],\r", Reason.BRACKET),
        (b"", Reason.BLANK),
        (b" \t \r", Reason.BLANK),
        (b",", Reason.BLANK),
        (b'{"type":"item","id":"Q1"', Reason.NOT_JSON),
        (b"{'type':'item','id':'Q1'}", Reason.NOT_JSON),
        (line(1) + line(2), Reason.NOT_JSON),
        (b'{"type":"item","id":"Q1","x":"a\x00b"}', Reason.NOT_JSON),
        (b'{"type":"item","id":"Q1","labels":{"en":{"value":"\\ud83d"}}}', Reason.NOT_JSON),
        (b'{"type":"item","id":"Q1","x":' + b"[" * 20_000 + b"]" * 20_000 + b"}", Reason.NOT_JSON),
        (b'{"type":"item","id":"Q1","x":"caf\xc3"}', Reason.NOT_UTF8),
        (b'{"type":"item","id":"Q1","labels":{"xx":{"value":"\xff"}}}', Reason.NOT_UTF8),
        (b"null", Reason.BAD_SHAPE),
        (b"[1,2]", Reason.BAD_SHAPE),
        (b"{}", Reason.BAD_SHAPE),
        (line(labels="a label"), Reason.BAD_SHAPE),
        (line(labels={"fr": {"value": 3}}), Reason.BAD_SHAPE),
        (line(labels=[1]), Reason.BAD_SHAPE),
        (line(aliases={"en": {"0": {"value": "x"}}}), Reason.BAD_SHAPE),
        (line(claims="P31"), Reason.BAD_SHAPE),
        (line(claims=[[[]]]), Reason.BAD_SHAPE),
        (line(descriptions=3), Reason.BAD_SHAPE),
        (line(sitelinks="enwiki"), Reason.BAD_SHAPE),
        (line(id=5), Reason.BAD_ID),
        (line(id="Q0"), Reason.BAD_ID),
        (line(id="q5"), Reason.BAD_ID),
        (line(id="Q05"), Reason.BAD_ID),
        (line(id="Q5\n"), Reason.BAD_ID),
        (line(id="Q9223372036854775808"), Reason.BAD_ID),
        (line(id="Q" + "9" * 5000), Reason.BAD_ID),
        (line(type="property", id="P31"), Reason.PROPERTY),
        (line(type="lexeme", id="L1", claims=3), Reason.LEXEME),
        (line(type="mediainfo", id="M1"), Reason.OTHER_ENTITY_TYPE),
        (b'{"entity":"Q4","redirect":"Q1"},', Reason.REDIRECT),
    ],
)
def test_a_line_that_is_no_item_says_why(text: bytes, reason: Reason) -> None:
    parsed = parse(text)
    assert not isinstance(parsed, Item)
    assert parsed[0] is reason


@pytest.mark.parametrize(
    "text",
    [
        line(),
        line().rstrip(b","),
        b"  " + line() + b" \r",
        line(labels=[], descriptions=[], aliases=[], claims=[], sitelinks=[]),
        b'{"type":"item","id":"Q1"}',
        line(id="Q9223372036854775807"),
        line(label="test\x00item"),
        line(claims={"P31": [statement(snaktype="somevalue")], "P18": []}),
        line(lastrevid=2**70),
        line(lastrevid=True),
        line(claims={"P31": [statement({"id": "Q" + "9" * 5000}), statement({"numeric-id": 2**70})]}),
        line(claims={"P31": {"not": "a list"}, "P18": [3, None]}),  # the rule asks only that claims be a map
        line(descriptions={"en": 3}, aliases={"en": [3, {"value": "kept"}, {"value": 4}]}, lastrevid="7"),
    ],
)
def test_what_wikibase_may_write_is_an_item(text: bytes) -> None:
    assert isinstance(parse(text), Item)
    assert len(read(text)["entities"]) == 1


def test_tables_do_not_depend_on_how_lines_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a name with the line of another entity, a row that is left behind in the last batch."""
    texts = [b"[", *(line(n, f"Thing No. {n}", aliases=aliases(*["Élan"] * (n % 3))) for n in range(1, 30)), b"{", b"]"]
    texts[7] = b'{"entity":"Q4","redirect":"Q1"},'
    whole = read(*texts)
    hashes = {row["entity_id"]: row["line_id"] for row in whole["entities"]}
    assert all(row["line_id"] == hashes[row["entity_id"]] for row in whole["names"])
    assert all(whole.values())
    for at_least in (1, 5, 2048):
        monkeypatch.setattr("wikidata.items.LINES", at_least)
        tables: dict[str, list[dict[str, Any]]] = {name: [] for name in whole}
        for table, rows in read_items([batch(*texts[i : i + 4]) for i in range(0, len(texts), 4)]):
            tables[table] += rows.to_pylist()
        assert tables == whole


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_lines_of_a_part_of_a_column_and_nulls_are_read_as_they_are(kind: pa.DataType) -> None:
    column = pa.array([line(1), None, line(2), b"", line(3)], kind).slice(1, 3)
    tables = dict(read_items([pa.record_batch([column], ["value"])]))
    assert tables["entities"]["entity_id"].to_pylist() == [2]
    assert tables["rejects"]["reason"].to_pylist() == ["blank", "blank"]


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_no_bytes_raise(text: bytes) -> None:
    rows = read(text)
    assert len(rows["entities"]) + len(rows["rejects"]) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["en", "value", "P31", "mainsnak", "rank", "id", "title"]), inner, max_size=3)
    ),
    max_leaves=8,
)
PARTS = st.sampled_from(
    ["type", "id", "labels", "descriptions", "aliases", "claims", "sitelinks", "lastrevid", "redirect"]
)


@given(st.dictionaries(PARTS, JSON, max_size=3))
def test_no_json_raises(parts: dict[str, Any]) -> None:
    """Catches: a part of another type than expected stops the job (one bad line of 110 million)."""
    rows = read(line(**parts))
    assert len(rows["entities"]) + len(rows["rejects"]) == 1


def test_lines_in_equal_entities_and_rejects() -> None:
    lines = [b"[", line(1), line(2), b"junk", b"", line(3, claims=instance_of(4167410)), b"]"]
    rows = read(*lines)
    assert [e["entity_id"] for e in rows["entities"]] == [1, 2]
    reasons = Counter(r["reason"] for r in rows["rejects"])
    assert reasons == {"bracket": 2, "not_json": 1, "blank": 1, "disambiguation": 1}
    assert rows["rejects"][3]["detail"] == "Q3"


ONE, TWO, PROPERTY = (text.removesuffix(b",") for text in (line(1), line(2), line(3, type="property", id="P3")))


@pytest.mark.parametrize(
    ("lines", "brackets"),
    [
        ([b"[", ONE + b",", TWO, b"]"], [(True, False), (False, True)]),
        ([b"\xef\xbb\xbf[\r", ONE + b",\r", TWO + b"\r", b"]\r", b""], [(True, False), (False, True)]),
        ([b"[" + ONE + b",", TWO + b"]"], [(True, False), (False, True)]),
        ([b" [ " + ONE + b" , ", TWO + b" ] "], [(True, False), (False, True)]),
        ([b"[" + ONE + b"]", TWO], [(True, True)]),
        ([b"\xef\xbb\xbf" + ONE, TWO], []),
        ([b"[", ONE + b",", TWO + b","], [(True, False)]),
        ([b"[" + PROPERTY + b",", ONE + b",", TWO, b"],"], [(True, False), (False, True)]),
    ],
)
def test_brackets_marks_and_line_ends_around_items_cost_none(
    lines: list[bytes], brackets: list[tuple[bool, bool]]
) -> None:
    """Catches: the first item is lost where it shares its line with the bracket or follows a byte order mark."""
    rows = read(*lines)
    assert [e["entity_id"] for e in rows["entities"]] == [1, 2]
    assert [(b["opens"], b["closes"]) for b in rows["brackets"]] == brackets
    assert {r["reason"] for r in rows["rejects"]} <= {"bracket", "blank", "property"}


def test_tables_have_their_schemas_and_rows_know_their_line() -> None:
    tables = dict(read_items([batch(line(1), b"[")]))
    assert tables["entities"].schema == RAW_ENTITIES
    assert tables["names"].schema == RAW_NAMES
    assert tables["rejects"].schema == REJECTS
    assert tables["entities"]["line_id"][0] == tables["names"]["line_id"][0]


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.large_binary(), pa.large_string()])
def test_string_and_binary_columns_read_alike(kind: pa.DataType) -> None:
    column = pa.array([line(1), b"["], pa.binary()).cast(kind)
    tables = dict(read_items([pa.record_batch([column], ["value"])]))
    assert tables["entities"].num_rows == tables["rejects"].num_rows == 1


def test_invalid_utf8_in_a_string_column_is_a_reject() -> None:
    """Catches: Spark hands bytes on as a string without looking at them; reading it as text would raise."""
    binary = pa.array([b'{"id":"Q7","x":"\xff"}'], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 1, binary.buffers())
    tables = dict(read_items([pa.record_batch([column], ["value"])]))
    assert tables["rejects"].to_pylist()[0]["reason"] == "not_utf8"
    assert tables["rejects"].to_pylist()[0]["detail"].startswith("Q7: ")


def test_a_line_of_more_than_a_megabyte_keeps_a_bounded_number_of_aliases() -> None:
    text = line(1, aliases=aliases(*(f"alias number {i}" for i in range(40_000))))
    assert len(text) > 1_000_000
    assert len(entity(text)["aliases"]) == 200


def of_class(number: int, rank: str = "normal") -> dict[str, Any]:
    return statement({"numeric-id": number}, rank)


COUNTRY, DISAMBIGUATION = 6256, 4167410


@pytest.mark.parametrize(
    ("statements", "types"),
    [
        ([of_class(3, "deprecated"), of_class(1), of_class(2, "preferred"), of_class(4), statement()], [2]),
        ([of_class(3, "deprecated"), of_class(1), of_class(2), of_class(1), statement()], [1, 2]),
        ([of_class(2, "preferred"), of_class(1, "preferred")], [2, 1]),
        ([of_class(3, "deprecated")], []),
        ([of_class(DISAMBIGUATION), of_class(COUNTRY, "preferred")], [COUNTRY]),
        ([of_class(1), statement(rank="preferred")], []),
    ],
)
def test_the_best_rank_alone_counts(statements: list[dict[str, Any]], types: list[int]) -> None:
    """Catches: a country is dropped, because it once shared its item with a disambiguation page."""
    assert entity(line(claims={"P31": statements}))["types"] == types


def test_the_best_rank_alone_counts_for_names_and_images() -> None:
    def called(text: str, rank: str) -> dict[str, Any]:
        return statement({"text": text, "language": "en"}, rank)

    official = [called("Kingdom of X", "normal"), called("Republic of X", "preferred"), called("Y", "deprecated")]
    text = line(1, "X", claims={"P1448": official, "P18": [statement("old.jpg"), statement(rank="preferred")]})
    assert names(text).keys() == {"republic of x"}
    assert not entity(text)["has_image"]


def test_facts_of_an_entity() -> None:
    row = entity(
        line(
            42,
            None,
            labels={"mul": {"value": "Douglas Adams"}},
            descriptions={"en": {"value": "English writer"}},
            aliases=aliases("DNA", "Douglas Noel Adams"),
            claims={**instance_of(5), "P18": [statement("Adams.jpg")]},
            sitelinks={"enwiki": {"title": "Douglas Adams (author)"}, "dewiki": {"title": "Douglas Adams"}},
            lastrevid=7,
        )
    )
    assert row.pop("visual") == pytest.approx(TYPES.mean_visual)
    assert {k: v for k, v in row.items() if k != "line_id"} == {
        "entity_id": 42,
        "name": "Douglas Adams",
        "name_language": "mul",
        "description": "English writer",
        "aliases": ["DNA", "Douglas Noel Adams"],
        "types": [5],
        "parents": [],
        "coarse_type": None,
        "sitelinks": 2,
        "statements": 2,
        "popularity": None,
        "fame": None,
        "name_case": 0,
        "has_image": True,
        "is_human": True,
        "wikipedia_title": "Douglas Adams (author)",
        "revision": 7,
    }


def test_lines_of_merged_items_say_what_they_are_now() -> None:
    lines = [
        b'{"entity":"Q4","redirect":"Q1"},',
        b' {"id":"Q5", "type":"item", "redirect":"Q1"}\r',
        b'{"entity":"P4","redirect":"P1"},',
        b'{"entity":"Q6","redirect":3},',
        b'{"entity":"Q0","redirect":"Q1"},',
    ]
    found = read(*lines)
    assert [(r["entity_id"], r["into"]) for r in found["redirects"]] == [(4, 1), (5, 1)]
    assert [r["reason"] for r in found["rejects"]] == ["redirect"] * 5


def test_statements_of_all_properties_and_ranks_are_counted() -> None:
    claims = {
        **instance_of(5, 6),
        "P9999": [statement("x", rank="deprecated"), statement(snaktype="novalue")],
        "P1": [{**statement("mainsnak"), "qualifiers": {"P2": [{"snaktype": "somevalue"}]}}],
    }
    text = line(42, 'Says "mainsnak":', claims=claims)
    spaced = text.replace(b'"mainsnak":', b'"mainsnak" :')
    assert [read(t)["entities"][0]["statements"] for t in (text, spaced, line(42))] == [5, 5, 0]


def test_an_item_without_usable_label_is_named_by_its_id_and_has_no_names() -> None:
    rows = read(line(8, None, labels={"ja": {"value": "日本語"}}))
    assert (rows["entities"][0]["name"], rows["entities"][0]["name_language"]) == ("Q8", "")
    assert rows["names"] == []


def names(text: bytes) -> dict[str, str]:
    return {n["normal_form"]: n["kind"] for n in read(text)["names"]}


def test_names_and_their_kinds() -> None:
    claims = {
        **instance_of(6256),
        "P297": [statement("TR")],
        "P1549": [statement({"text": "Turkish", "language": "en"}), statement({"text": "Türk", "language": "tr"})],
        "P487": [statement("🇹🇷")],
    }
    text = line(
        43, "Turkey", aliases=aliases("Türkiye", "TR", "🇹🇷", "90", "Republic of Turkey"), claims=claims,
        sitelinks={"enwiki": {"title": "Turkey (country)"}},
    )  # fmt: skip
    assert names(text) == {
        "turkey": "label",
        "türkiye": "alias",
        "tr": "code",
        "republic of turkey": "alias",
        "turkish": "demonym",
        "turkiye": "unaccented",
    }


def test_title_loses_its_qualifier() -> None:
    assert names(line(308, None, sitelinks={"enwiki": {"title": "Mercury (planet)"}})) == {"mercury": "label"}
    found = names(line(308, "Merkur", sitelinks={"enwiki": {"title": "Mercury (planet)"}}))
    assert found == {"merkur": "label", "mercury": "title"}


def test_people_and_things_of_unknown_class_that_look_like_people_get_a_surname() -> None:
    assert names(line(1, "Isabel Sarli", claims=instance_of(5)))["sarli"] == "surname"
    assert names(line(1, "Isabel Sarli"))["sarli"] == "surname"
    brand = names(line(1, "Gato Preto", descriptions={"en": {"language": "en", "value": "interior decoration brand"}}))
    assert "gato" not in brand
    assert "tower" not in names(line(1, "Eiffel Tower", claims=instance_of(1440476)))


def test_people_have_the_parts_of_their_names_as_texts_spell_them() -> None:
    """Catches: a name of two parts that is spelled "Ter Petrosyan", and so found in no text."""
    rows = read(line(1, "Levon Ter-Petrosyan", claims=instance_of(5)))["names"]
    spelled = {(r["surface"], r["normal_form"], r["kind"]) for r in rows}
    assert {("Ter-Petrosyan", "ter petrosyan", "surname"), ("Levon", "levon", "given")} <= spelled
    assert "iraq" not in names(line(2, "Faisal II of Iraq", claims=instance_of(5)))


def test_organisations_have_their_initials_and_people_none() -> None:
    assert names(line(1, "Food and Drug Administration"))["fda"] == "acronym"
    assert "ans" not in names(line(2, "Anna Nicole Smith", claims=instance_of(5)))
    assert "ans" not in names(line(2, "Anna Nicole Smith"))
    assert names(line(3, "Boeing B-2 Spirit"))["b 2"] == "acronym"


def test_dots_may_be_left_out_of_a_name() -> None:
    assert names(line(1, "St. Louis Cardinals"))["st louis cardinals"] == "unaccented"


def test_the_languages_are_a_parameter() -> None:
    labels = {"de": {"value": "Apfel"}, "en": {"value": "apple"}}
    text = line(1, None, labels=labels, aliases=aliases("x1", language="de"))
    rows = read(text, languages=("de",))
    assert rows["entities"][0]["name"] == "Apfel"
    assert {n["normal_form"] for n in rows["names"]} == {"apfel", "x1"}


def test_the_kernel_and_its_reasons_survive_pickling() -> None:
    assert pickle.loads(pickle.dumps(read_items)) is read_items
    assert pickle.loads(pickle.dumps(Reason.NAME)) is Reason.NAME


def test_verdicts_on_malformed_lines_are_the_expected_ones(real_data: Path) -> None:
    expected = json.loads((real_data / "wikidata/malformed.expected.json").read_text())
    lines = (real_data / "wikidata/malformed.json").read_bytes().split(b"\n")[: expected["lines"]]
    for text, detail in zip(lines, expected["detail"], strict=True):
        if detail["verdict"] != "either":
            assert verdict(text) == (detail["verdict"], detail["id"]), detail["kind"]
    rows = read(*lines)
    assert expected["valid_items"] <= len(rows["entities"]) <= expected["valid_items_at_most"]
    assert len({e["entity_id"] for e in rows["entities"]}) == expected["distinct_valid_ids"]
    assert len(rows["entities"]) + len(rows["rejects"]) == expected["lines"]
