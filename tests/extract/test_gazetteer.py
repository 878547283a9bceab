"""The gazetteer against a brute-force reading of what it promises."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from i2e_pipeline.extract.gazetteer import FORMAT, MAX_TOKENS, MIN_LENGTH, Gazetteer, build, hashes, refused
from tests.examples import examples
from wikidata import priors
from wikidata.priors import NAME_ROWS, is_common
from wikidata.schemas import SURFACES
from wikidata.surface import inadmissible, inflections, length, normal_form


def surfaces(*names: str, **values: Any) -> pa.RecordBatch:
    """Rows of kb/surfaces, one per normal form, admitted unless said otherwise."""
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(normal_form(name), []).append(name)
    rows = [
        {
            "normal_form": form,
            "candidates": [{"entity_id": 1, "prior": 1.0, "kind": values.get("kind", "label")}],
            "link_probability": values.get("link_probability", 0.5),
            "forms": sorted(spelled),
            "gazetteer": values.get("gazetteer", True),
        }
        for form, spelled in forms.items()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SURFACES)


def gazetteer(folder: Path, *batches: pa.RecordBatch) -> Gazetteer:
    build(batches, folder / "g")
    return Gazetteer(folder / "g")


def found(names: Gazetteer, text: str) -> list[str]:
    rows, starts, ends = names.find([text])
    assert not rows.any()
    return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a Granny Smith, peeled", ["Granny Smith"]),
        ("GRANNY SMITH APPLES", ["GRANNY SMITH APPLES"]),
        ("two bananas", ["bananas"]),
        ("bananarama", []),
        ("yin-yang and yin yang", ["yin-yang", "yin yang"]),
        ("New York Times Square", ["New York Times", "Times Square"]),
        ("the New York Times", ["New York Times"]),
        ("Straße", ["Straße"]),
        ("STRASSE", ["STRASSE"]),
        ("𝐁𝐞𝐫𝐥𝐢𝐧 by night", ["𝐁𝐞𝐫𝐥𝐢𝐧"]),
        ("北京市大学", ["北京市"]),
        ("去東京的火車", ["東京"]),
        ("서울 여행", ["서울"]),
        ("北", []),
        ("Visit İstanbul!", ["İstanbul"]),
        ("ISTANBUL, istanbul, i̇stanbul", ["ISTANBUL", "istanbul", "i̇stanbul"]),
        ("DİYARBAKIR and Diyarbakır", ["DİYARBAKIR", "Diyarbakır"]),
        ("'Iolani Palace, ʻIolani Palace, ʿIolani Palace", ["Iolani Palace"] * 3),
        ("Hawai'i, Hawai‘i, Hawai`i, Hawaiʻi", ["Hawai'i", "Hawai‘i", "Hawai`i", "Hawaiʻi"]),
        ("ｶﾞｰﾅ", ["ｶﾞｰﾅ"]),
        ("L’Oréal", ["L’Oréal"]),
        ("(500) Days of Summer", ["(500) Days of Summer"]),
        ("...", []),
        ("", []),
    ],
)
def test_names_match_at_whole_words(tmp_path: Path, text: str, expected: list[str]) -> None:
    names = surfaces(
        "Granny Smith", "Granny Smith apple", "banana", "yin yang", "New York", "New York Times", "Times Square",
        "Straße", "Berlin", "北京市", "L'Oréal", "(500) Days of Summer", "東京", "서울", "北", "İstanbul", "DİYARBAKIR",
        "ʻIolani Palace", "Hawaiʻi", "ガーナ",
    )  # fmt: skip
    assert found(gazetteer(tmp_path, names), text) == expected


def test_names_below_the_gate_are_not_admitted(tmp_path: Path) -> None:
    improbable = surfaces("walrus", link_probability=0.01)
    refused = surfaces("penguin", gazetteer=False)
    assert found(gazetteer(tmp_path, improbable, refused, surfaces("seal")), "walrus, penguin, seal") == ["seal"]


def test_a_surname_alone_needs_its_capital_in_a_text_with_small_words(tmp_path: Path) -> None:
    """Catches: every "baker" is Josephine Baker, and every Title Case Shop Text names ten people."""
    names = gazetteer(tmp_path, surfaces("Vergara", "Baker", kind="surname", gazetteer=False))
    assert found(names, "his wife Mercedes Vergara") == ["Vergara"]
    assert found(names, "a baker in his shop with vergara") == []
    assert found(names, "BAKER SHOP") == []
    assert found(names, "Baker Shop In A Box") == []


def test_a_surname_that_stands_as_a_name_needs_no_other_words(tmp_path: Path) -> None:
    """Catches: "Bokassa in 1939" names nobody, for there is no word in small letters."""
    names = gazetteer(tmp_path, surfaces("Bokassa", "Merkley", "van den Bergh", kind="surname", gazetteer=False))
    for text in ("Bokassa in 1939", "Bokassa, 2008", "Bokassa (1976)", "President Bokassa", "Gen. Bokassa"):
        assert found(names, text) == ["Bokassa"], text
    assert found(names, "Van den Bergh in 1947") == ["Van den Bergh"]
    assert found(names, "Lamp Bokassa in White") == found(names, "BOKASSA in 1939") == found(names, "Bokassa Rug") == []
    rows, _, _ = names.find(["Senator", "Merkley Rug"])
    assert not len(rows), "a title in the text before is none"


def test_two_capitals_match_as_capitals_alone(tmp_path: Path) -> None:
    names = gazetteer(tmp_path, surfaces("UK"), surfaces("US", "us"), surfaces("uk gold"))
    assert found(names, "ties of the US and the UK, between us") == ["US", "UK"]
    assert found(names, "between us and uk") == []
    assert found(names, "TIES OF THE US") == []


def test_emphasis_is_no_name(tmp_path: Path) -> None:
    """Of function words in capitals, those are names that links have in capitals (wikidata/priors.py)."""
    rows: list[dict[str, Any]] = []
    for form, spelled, count in (("and", "and", 1), ("and", "AND", 0), ("us", "US", 54), ("us", "us", 0)):
        rows.append({"normal_form": form, "surface": spelled, "entity_id": 1, "kind": "alias", "count": count})
    table = pa.Table.from_pylist([{**row, "fame": 0.0, "links": row["count"]} for row in rows], NAME_ROWS)
    names = gazetteer(tmp_path, *priors.surfaces(table.to_batches()))
    assert found(names, "KEEP CALM AND make it SNOW in the US!") == ["US"]


def test_a_plural_of_a_common_name_is_not_hidden_by_an_equal_surname(tmp_path: Path) -> None:
    names = gazetteer(tmp_path, surfaces("banana"), surfaces("Bananas", kind="surname", gazetteer=False))
    assert found(names, "bananas") == ["bananas"]


def test_known_tells_names_from_their_inflections(tmp_path: Path) -> None:
    names = gazetteer(tmp_path, surfaces("banana", "glasses"))
    assert names.known(["banana", "bananas", "glasses", "glass", ""]).tolist() == [True, False, True, False, False]
    spelled = gazetteer(tmp_path, surfaces("Baker", kind="surname", gazetteer=False), surfaces("banana"))
    assert spelled.known(["baker", "baker", "banana"], [False, True, True]).tolist() == [True, False, True]
    assert spelled.personal(["baker", "banana"]).tolist() == [True, False]


def test_the_file_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    names = surfaces("banana", "bananas", "Berlin", "New York", "New York Times")
    backwards = names.take(pa.array(range(names.num_rows - 1, -1, -1)))
    build([names], tmp_path / "a")
    build([backwards.slice(0, 2), backwards.slice(2)], tmp_path / "b")
    assert Gazetteer(tmp_path / "a").fingerprint == Gazetteer(tmp_path / "b").fingerprint
    assert not list(tmp_path.glob("*.tmp"))


def test_building_again_replaces_what_was_there(tmp_path: Path) -> None:
    build([surfaces("banana")], tmp_path / "g")
    build([surfaces("cherry")], tmp_path / "g")
    assert found(Gazetteer(tmp_path / "g"), "banana cherry") == ["cherry"]


def test_an_empty_gazetteer_finds_nothing(tmp_path: Path) -> None:
    assert found(gazetteer(tmp_path), "anything at all") == []


def test_another_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    build([surfaces("banana")], tmp_path / "g")
    sidecar = tmp_path / "g" / "gazetteer.json"
    sidecar.write_text(sidecar.read_text().replace(f'"format": {FORMAT}', '"format": 0'))
    with pytest.raises(ValueError, match="build it again"):
        Gazetteer(tmp_path / "g")


def test_hashes_of_equal_strings_are_equal_wherever_they_stand() -> None:
    assert hashes(["a", "bb", "a"])[0] == hashes(["xxx", "", "a"])[2]
    assert len(np.unique(hashes([f"{a} {b}" for a in range(100) for b in range(100)]))) == 10_000


def test_results_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    names = gazetteer(tmp_path, surfaces("banana", "New York"))
    texts = ["New", "York", "New York", "", "bananas in New\tYork", "é", "🍌 banana"] * 400
    together = list(zip(*(a.tolist() for a in names.find(texts)), strict=True))
    alone = [
        (i, s, e) for i, t in enumerate(texts) for _, s, e in zip(*(a.tolist() for a in names.find([t])), strict=True)
    ]
    assert together == alone


NAMES = ["banana", "red banana", "t shirt", "new york", "york", "l'or", "o'neil", "straße", "c#", "a b c d"]
PIECES = [
    *NAMES,
    "bananas",
    "T-Shirt",
    "red",
    "New",
    " ",
    " ",
    "-",
    "'",
    ",",
    "(",
    "ß",
    "İ",
    "ﬁ",
    "é",
    "北",
    "C#",
    "a",
    "b",
]


def brute(names: Iterable[str], text: str) -> list[tuple[int, int]]:
    """All runs of whole words that are a name or the inflection of one, without those inside a longer one."""
    keys = {*names, *(v for name in names for v in inflections(name) if len(v) > 2)}
    word = re.compile(r"\w", re.UNICODE)

    def edge(i: int) -> bool:
        return (
            i in (0, len(text)) or not (word.match(text[i - 1]) and word.match(text[i])) or "北" in text[i - 1 : i + 1]
        )

    runs = [
        (i, j)
        for i in range(len(text))
        for j in range(i + 1, len(text) + 1)
        if edge(i) and edge(j) and not text[i].isspace() and text[i] not in "-_" and fold(text[i:j]) in keys
    ]
    runs = [(i, j) for i, j in runs if fold(text[i]) and fold(text[j - 1])]
    return [r for r in runs if not any(o != r and o[0] <= r[0] and r[1] <= o[1] for o in runs)]


def fold(text: str) -> str:
    """What `normal_form` does inside a name: the guards keep its stripping of edges away."""
    return normal_form(f"一{text}一")[1:-1]


@settings(max_examples=examples(400))
@given(text=st.lists(st.sampled_from(PIECES), max_size=7).map("".join))
def test_equals_brute_force(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "brute"
    if not folder.exists():
        build([surfaces(*NAMES)], folder)
    _, starts, ends = Gazetteer(folder).find([text])
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == brute(
        [n for n in map(normal_form, NAMES) if len(n) > 2], text
    )


SCRIPTS = "aZéßıİiIſŉ ́̈̇ΑαςΣΐᾳЙйёЁÅå北京東京서울ガｶﾞハﾟかがﾊภาษาहिन्दीعربيעִבْ𝐁𞤀ʻʿʼ’'`´′-–.,()[]{}&+#\"0189ǅﬁẞ½№€™\u200d·・"


@settings(max_examples=examples(600))
@given(name=st.text(alphabet=SCRIPTS, min_size=1, max_size=14) | st.text(max_size=10))
@example(name="İstanbul")
@example(name="DİYARBAKIR")
@example(name="Diyarbakır")
@example(name="Hawaiʻi")
@example(name="ｶﾞｰﾅ")
@example(name="[REC] 2")
@example(name="東京")
@example(name="서울")
def test_every_admitted_name_is_found_in_a_text_that_is_just_that_name(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """In each of its cases. Catches: a key and a text that fold apart (a dotted I, wide letters with accents)."""
    text = unicodedata.normalize("NFC", name)
    form = normal_form(text)
    assume(inadmissible(form) is None and length(form) >= MIN_LENGTH and not is_common(form))
    assume("\u0345" not in unicodedata.normalize("NFD", text))  # Python's capitals of several marks are no spelling
    build([surfaces(text)], folder := tmp_path_factory.getbasetemp() / "found")
    names = Gazetteer(folder)
    assume(len(names._keys))  # of at most MAX_TOKENS tokens
    for spelled in (text, text.upper(), text.lower(), text.title()):
        spelled = unicodedata.normalize("NFC", spelled)
        assert [normal_form(part) for part in found(names, spelled)] == [form]


def test_longer_names_than_the_limit_are_left_out(tmp_path: Path) -> None:
    long = " ".join(f"w{i}" for i in range(MAX_TOKENS + 1))
    fits = " ".join(f"v{i}" for i in range(MAX_TOKENS))
    names = gazetteer(tmp_path, surfaces(long, fits))
    assert found(names, f"{long} {fits}") == [fits]


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("seal", {}, None),
        ("seal", {"link_probability": 0.01}, r"link probability 0.010 is below extract.min_link_probability \(0.05\)"),
        ("seal", {"gazetteer": False, "link_probability": 0.02}, "below the gate of the knowledge base itself"),
        ("the", {}, "a common word"),
        ("2019", {}, "a number"),
        ("x", {}, "shorter than 3"),
        (" ".join(["seal"] * (MAX_TOKENS + 1)), {}, f"longer than {MAX_TOKENS} words"),
        ("Baker", {"kind": "surname", "gazetteer": False}, r"only as spelled \(Baker\)"),
    ],
)
def test_a_name_that_is_not_looked_for_has_its_reason(
    tmp_path: Path, name: str, values: dict[str, Any], why: str | None
) -> None:
    """Catches: an explanation that says other than what `build` decides."""
    batch = surfaces(name, **values)
    told = refused(batch.to_pylist()[0], 0.05)
    assert (told is None) == (why is None)
    assert why is None or re.search(why, str(told))
    build([batch], tmp_path / "g", 0.05)
    assert (found(Gazetteer(tmp_path / "g"), name.upper()) == [name.upper()]) == (why is None)
