"""Normal forms, lookup keys, names."""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wikidata.surface import (
    Inadmissible,
    acronyms,
    choose_name,
    inadmissible,
    inflections,
    is_latin,
    length,
    lookup_keys,
    normal_form,
    normal_forms,
    parts_of_person,
    plain_words,
    short_forms,
    shorter,
    stands_alone,
    unaccented,
    without_qualifier,
)


@pytest.mark.parametrize(
    ("surface", "form"),
    [
        ("Banana", "banana"),
        ("  Golden\tDelicious\n", "golden delicious"),
        ("T-shirt", "t shirt"),
        ("granny_smith", "granny smith"),
        ("Iran's", "iran"),
        ("Iran’s", "iran"),
        ("students'", "students"),
        ("L’Oréal®", "l'oréal"),
        ("Nokia™", "nokia"),
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
        ("Straße", "strasse"),
        ("“Turku”,", "turku"),
        ("(banana)", "banana"),
        ("banana)", "banana"),
        ("Mercury (planet)", "mercury (planet)"),
        ("(500) Days of Summer", "(500) days of summer"),
        ("C++", "c++"),
        ("#sunset", "sunset"),
        ("AT&T", "at&t"),
        ("U.S.", "u.s"),
        ("a\x00b", "a b"),
        ("Norvège\u200f", "norvège"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normal_form(surface: str, form: str) -> None:
    assert normal_form(surface) == form


@given(st.text(max_size=30))
@example("ẞ'S")
@example("\u0345\u00b4(")
@example("'s's")
def test_normal_form_is_idempotent(text: str) -> None:
    """Catches: case folding and NFKC undo each other, so that text and names get different keys."""
    form = normal_form(text)
    assert normal_form(form) == form
    assert form == form.strip()


@given(
    st.text(alphabet="abcXYZ 's-.()é", max_size=20) | st.text(alphabet="iIıİ\u0307\u0301ßẞſΐΑᾳςΣǅﬁ北ʻ's", max_size=9)
)
@example("İstanbul DİYARBAKIR Diyarbakır")
def test_case_never_matters(text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    # No language sets a dot on a letter with an iota below, and in capitals it would stand on the iota.
    assume(not re.search("\u0345[\u0300-\u036f]|[\u0300-\u036f]\u0345", unicodedata.normalize("NFD", text)))
    spelled = (text, text.lower(), text.upper(), text.title())
    assert len({normal_form(s) for s in spelled}) == 1


@given(st.text(alphabet="abzAZ09éÉñşŞåÅ\u212bK\u212aſßıİœŒŀĳ -.'", max_size=12) | st.text(max_size=12))
@example("Élan Vital")
@example("\u212bngström")
def test_a_plain_name_has_the_form_that_the_long_way_gives(text: str) -> None:
    """Catches: a letter that is taken for its own form and is not. A name with a character that is dropped is never
    plain, and all steps are gone through."""
    assume(text and not unicodedata.combining(text[0]) and not unicodedata.combining(text[-1]))
    middle = len(text) // 2
    assert normal_form(text) == normal_form(f"{text[:middle]}\u200b{text[middle:]}")


_NAME_WORDS = re.findall(r"\S+", "The the FC USS River island Inc Jr III A of Duke John state X AC World Cup us van")


@given(st.lists(st.sampled_from(_NAME_WORDS), min_size=1, max_size=4).map(" ".join) | st.text("abAB1 -.", max_size=9))
def test_what_is_plain_needs_no_more_and_what_stands_alone_has_no_shorter_name(name: str) -> None:
    """Catches: a name of the knowledge base that is lost because it was held for one without short form."""
    words = plain_words(name)
    if not words:
        return
    assert " ".join(words) == name
    assert normal_form(name) == name.lower()
    assert inadmissible(name.lower()) is None
    if stands_alone(words):
        assert not short_forms(name)
        assert not acronyms(name)
    if len(words) == 1:
        assert not parts_of_person(name)


def test_each_character_has_one_form_in_all_its_cases() -> None:
    for point in (p for p in range(0x110000) if not 0xD800 <= p < 0xE000):
        char = chr(point)
        cases = {normal_form(f"x{c}y") for c in (char, char.upper(), char.lower(), char.title())}
        assert len(cases) == 1, (char, cases)


@pytest.mark.parametrize("apostrophe", list("'ʻʿʾʼ‘’‛`´′ʹ＇Ꞌꞌ"))
def test_apostrophe_like_letters_are_one(apostrophe: str) -> None:
    assert normal_form(f"{apostrophe}Iolani Palace") == "iolani palace"
    assert normal_form(f"Hawai{apostrophe}i") == "hawai'i"
    assert normal_form(f"Iran{apostrophe}S") == "iran"


@pytest.mark.parametrize(
    ("form", "letters"), [("uk", 2), ("東京", 4), ("北", 2), ("서울", 4), ("かな", 4), ("カナ", 4), ("été", 3), ("", 0)]
)
def test_length_counts_by_script(form: str, letters: int) -> None:
    assert length(form) == letters


def test_normal_forms_of_a_column() -> None:
    column = pa.chunked_array([["A", None, "b's"], ["A"]])
    assert normal_forms(column).to_pylist() == ["a", None, "b", "a"]
    assert normal_forms([]).to_pylist() == []


@pytest.mark.parametrize(
    ("surface", "key"),
    [
        ("bananas", "banana"),
        ("granny smith apples", "granny smith apple"),
        ("strawberries", "strawberry"),
        ("leaves", "leaf"),
        ("knives", "knife"),
        ("tomatoes", "tomato"),
        ("foxes", "fox"),
        ("cups of tea", "cup of tea"),
        ("snowmen", "snowman"),
        ("banana", "bananas"),
        ("T shirts", "t shirt"),
        ("t-shirt", "t shirt"),
        ("t-shirt", "tshirt"),
        ("sea horse", "seahorse"),
        ("Reykjavík", "reykjavik"),
        ("U.S.A.", "usa"),
        ("O.J. Simpson", "o. j. simpson"),
        ("Aoraki/Mount Cook", "aoraki / mount cook"),
        ("Johnson & Johnson", "johnson and johnson"),
        ("the Beatles", "beatles"),
        ("Western Digital Corp.", "western digital"),
        ("President Barack H. Obama", "barack obama"),
        ("Moody's bank", "moody bank"),
    ],
)
def test_another_spelling_finds_the_name(surface: str, key: str) -> None:
    assert key in lookup_keys(surface)


@given(st.text(max_size=30))
def test_lookup_keys_are_distinct_bounded_normal_forms_and_the_exact_one_is_first(text: str) -> None:
    keys = lookup_keys(text)
    assert keys[:1] == ([normal_form(text)] if normal_form(text) else [])
    assert len(keys) == len(set(keys)) <= 16
    assert keys == lookup_keys(text)


@pytest.mark.parametrize("form", ["glass", "bus", "iris", "paris"])
def test_words_that_only_look_plural_are_not_cut(form: str) -> None:
    assert form[:-1] not in inflections(form)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("", Inadmissible.EMPTY),
        ("x", Inadmissible.SINGLE_CHARACTER),
        ("1984", Inadmissible.NO_LETTER),
        ("24 7", Inadmissible.NO_LETTER),
        ("🇳🇴", Inadmissible.NO_LETTER),
        ("https://example.org", Inadmissible.ADDRESS),
        ("word " * 40, Inadmissible.TOO_LONG),
        ("banana", None),
        ("日本", None),
        ("200 m", None),
    ],
)
def test_what_is_admissible_as_a_name(form: str, reason: Inadmissible | None) -> None:
    assert inadmissible(form) is reason


@pytest.mark.parametrize(
    ("labels", "title", "name"),
    [
        ({"en": "a", "mul": "b"}, "c", ("a", "en")),
        ({"mul": "b", "en-gb": "d"}, "c", ("b", "mul")),
        ({"en-gb": "d", "fr": "e"}, "c", ("d", "en-gb")),
        ({"fr": "e"}, "Mercury (planet)", ("Mercury", "title")),
        ({"ru": "Меркурий", "fr": "e", "de": "f"}, None, ("f", "de")),
        ({"ru": "Меркурий"}, None, None),
        ({"en": " "}, " ", None),
        ({}, None, None),
    ],
)
def test_the_name_chain(labels: dict[str, str], title: str | None, name: tuple[str, str] | None) -> None:
    assert choose_name(labels, title) == name


def test_qualifiers_accents_and_scripts() -> None:
    assert without_qualifier("Mercury (planet)") == "Mercury"
    assert without_qualifier("(500) Days of Summer") == "(500) Days of Summer"
    assert unaccented("crème brûlée") == "creme brulee"
    assert unaccented("łódź") == "lodz"
    assert unaccented("が") == "が"
    assert is_latin("Łódź")
    assert not is_latin("Łódź 日")
    assert not is_latin("12")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Ballesteros, Cagayan", "ballesteros"),
        ("Garlic (allium sativum)", "garlic"),
        ("Celanese Corporation", "celanese"),
        ("Hiram Bingham III", "hiram bingham"),
        ("Merck & Co.", "merck"),
        ("Johnson & Johnson", "johnson and johnson"),
    ],
)
def test_short_forms(name: str, short: str) -> None:
    assert short in short_forms(name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Isabel Sarli", {"Sarli": "surname", "Isabel": "given"}),
        ("Hiram Bingham III", {"Bingham": "surname", "Hiram": "given"}),
        ("Levon Ter-Petrosyan", {"Ter-Petrosyan": "surname", "Levon": "given"}),
        ("Shaquille O'Neal", {"O'Neal": "surname", "Shaquille": "given"}),
        ("Wilhelmus van den Bergh", {"Bergh": "surname", "van den Bergh": "surname", "Wilhelmus": "given"}),
        (
            "Vicente Fox Quesada",
            {
                "Quesada": "surname", "Fox Quesada": "surname", "Vicente Fox": "part", "Vicente Quesada": "part",
                "Vicente": "given",
            },
        ),
        ("Faisal II of Iraq", {"Faisal II": "part", "Faisal": "given"}),
        ("Malcolm X", {"Malcolm": "given"}),
        (
            "Charles Monck, 4th Viscount Monck",
            {
                "4th Viscount Monck": "part", "Viscount Monck": "part", "Lord Monck": "part", "Monck": "surname",
                "Charles": "given",
            },
        ),
        ("William, Prince of Wales", {"Prince of Wales": "part", "Prince William": "part"}),
        ("red delicious", {}),
        ("Banana", {}),
        ("Route 66", {}),
    ],
)  # fmt: skip
def test_parts_by_which_texts_name_people(name: str, parts: dict[str, str]) -> None:
    assert dict(parts_of_person(name)) == parts


def test_capitals_and_figures_that_stand_for_a_name() -> None:
    assert acronyms("Food and Drug Administration") == ["FDA"]
    assert acronyms("The Museum of Modern Art") == ["MMA"]
    assert acronyms("Boeing B-2 Spirit") == ["B-2", "B-2 Spirit", "BBS"]
    assert acronyms("Airbus A320") == ["A320"]
    assert acronyms("red delicious apple") == acronyms("New York") == acronyms("Boeing 747") == acronyms("") == []


def test_how_a_text_goes_on_to_name_what_it_has_named() -> None:
    told = dict(shorter("angela dorothea merkel"))
    assert told == {
        "angela": False, "merkel": False, "dorothea merkel": False, "angela dorothea": False, "adm": True
    }  # fmt: skip
    assert dict(shorter("united nations"))["un"] is True
    assert dict(shorter("bank of america"))["ba"] is True
    assert shorter("merkel") == ()


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Shamrock Rovers F.C.", "shamrock rovers"),
        ("FC Bayern Munich", "bayern munich"),
        ("MV Sirius Star", "sirius star"),
        ("Little Missouri River", "little missouri"),
        ("2006 FIFA World Cup", "2006 world cup"),
    ],
)
def test_what_texts_leave_out_of_a_name(name: str, short: str) -> None:
    assert short in short_forms(name)
    assert "nile" not in short_forms("Nile River")


@pytest.mark.parametrize(
    ("surface", "key"),
    [
        ("U.S. Federal Reserve", "united states federal reserve"),
        ("St Lucia", "saint lucia"),
        ("Likud Party", "likud"),
        ("Province of Xinjiang", "xinjiang"),
        ("Prime Minister Yukio Hatoyama", "yukio hatoyama"),
        ("Secretary of State Haig", "haig"),
    ],
)
def test_what_texts_add_to_a_name_is_tried_without(surface: str, key: str) -> None:
    assert key in lookup_keys(surface)
