"""Names in the scripts of the world, in running text: found, with the right offsets, and not where they are none."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from i2e_pipeline.extract.gazetteer import Gazetteer, build
from i2e_pipeline.extract.mentions import find_mentions
from i2e_pipeline.extract.recognizer import BLANK, Recognizer
from tests.examples import examples
from tests.extract.test_gazetteer import found, gazetteer, surfaces
from wikidata.function_words import OF_LANGUAGES
from wikidata.inflection import bases, signs_in
from wikidata.priors import base_link_probability
from wikidata.surface import length, normal_form, short_forms

NONE: list[str] = []

IN_RUNNING_TEXT = [
    # language, text, name in the knowledge base, what is found
    ("zh", "我们在东京住了三天", "东京", ["东京"]),
    ("zh", "北京大学的图书馆", "北京大学", ["北京大学"]),
    ("zh", "馬可‧波羅雕像", "馬可·波羅", ["馬可‧波羅"]),
    ("zh", "一只猫", "猫", NONE),
    ("zh", "没有人", "没有", NONE),
    ("ja", "京都から奈良へ", "奈良", ["奈良"]),
    ("ja", "古いパリスの港", "パリ", NONE),
    ("ja", "パリの港", "パリ", ["パリ"]),
    ("ja", "新しいロンドンバス", "ロンドン", ["ロンドン"]),
    ("ja", "インドアの庭", "インド", NONE),
    ("ja", "森のうさぎたち", "うさぎ", ["うさぎ"]),
    ("ja", "見つめる人", "つめる", NONE),
    ("ja", "ここにいるいぬ", "いる", NONE),
    ("ja", "かにをたべる", "かに", NONE),
    ("ja", "カメラParisパリ", "パリ", ["パリ"]),
    ("ja", "ジョン レノンの歌", "ジョン・レノン", ["ジョン レノン"]),
    ("ja", "東-京都の道", "東京", NONE),
    ("ja", "ｶﾞｰﾅの海", "ガーナ", ["ｶﾞｰﾅ"]),
    ("ko", "서울에서 찍은 사진", "서울", ["서울"]),
    ("ko", "서울은 크다", "서울", ["서울"]),
    ("ko", "서울시의 밤", "서울", ["서울"]),
    ("ko", "이탈리아풍 식당", "이탈리아", ["이탈리아"]),
    ("ko", "새서울 식당", "서울", NONE),
    ("ko", "가나다라", "가나", NONE),
    ("ko", "이 천 개의 섬", "이천", NONE),
    ("ko", "존레논의 노래", "존 레논", ["존레논"]),
    ("ko", "새 에어버스380 도착", "에어버스 380", ["에어버스380"]),
    ("th", "ถนนในปารีสยามค่ำ", "ปารีส", ["ปารีส"]),
    ("th", "วัดในลาวใต้", "ลาว", ["ลาว"]),
    ("th", "ภูเขาไฟลาวา", "ลาว", NONE),
    ("th", "งูบนหิน", "งู", NONE),
    ("th", "เสาไฟ", "สาไฟ", NONE),
    ("lo", "ຖະໜົນໃນປາຣີ", "ປາຣີ", ["ປາຣີ"]),
    ("km", "ផ្លូវក្នុងភ្នំពេញចាស់", "ភ្នំពេញ", ["ភ្នំពេញ"]),
    ("my", "ရန်ကုန်မြို့", "ရန်ကုန်", ["ရန်ကုန်"]),
]

FOLDED = [
    ("tr", "ISPARTA, Isparta, ısparta, İsparta", "Isparta", ["ISPARTA", "Isparta", "ısparta", "İsparta"]),
    ("de", "GIESSEN und Gießen", "Gießen", ["GIESSEN", "Gießen"]),
    ("el", "ΚΡΗΤΗ, Κρήτη", "Κρήτη", ["ΚΡΗΤΗ", "Κρήτη"]),
    ("el", "ΠΑΡΟΣ και Πάρος", "Πάρος", ["ΠΑΡΟΣ", "Πάρος"]),
    ("ru", "Орел и Орёл", "Орёл", ["Орел", "Орёл"]),
    ("ru", "Москва\u0301 река", "Москва", ["Москва\u0301"]),
    ("uk", "Київ, Киів", "Київ", ["Київ"]),  # ї is a letter
    ("ar", "إيران، ايران، اِيران", "إيران", ["إيران", "ايران", "اِيران"]),
    ("ar", "بـغـداد ليلا", "بغداد", ["بـغـداد"]),
    ("ar", "صورة بغدادٌ", "بغداد", ["بغدادٌ"]),
    ("ar", "ﺑﻐﺪاد", "بغداد", ["ﺑﻐﺪاد"]),
    ("ar", "القاهره", "القاهرة", ["القاهره"]),
    ("fa", "كراچي، کراچی", "کراچی", ["كراچي", "کراچی"]),
    ("fa", "ایرباس ۳۸۰", "ایرباس 380", ["ایرباس ۳۸۰"]),
    ("he", "חֵיפָה בלילה", "חיפה", ["חֵיפָה"]),
    ("he", "תל־אביב", "תל אביב", ["תל־אביב"]),
    ("hi", "क़ुतुब मीनार, कुतुब मीनार", "क़ुतुब मीनार", ["क़ुतुब मीनार", "कुतुब मीनार"]),
    ("hi", "झारखण्ड का नक्शा, झारखंड", "झारखंड", ["झारखण्ड", "झारखंड"]),
    ("hi", "एयरबस ३८०", "एयरबस 380", ["एयरबस ३८०"]),
    ("bn", "ব্যাঙ্কক শহর", "ব্যাংকক", ["ব্যাঙ্কক"]),
    ("en", "ＴＯＫＹＯ by night", "Tokyo", ["ＴＯＫＹＯ"]),
]

INFLECTED = [
    ("tr", "Konya'da sabah, Konya’nın", "Konya", ["Konya", "Konya"]),
    ("tr", "Konyada yağmur", "Konya", ["Konyada"]),
    ("pl", "podróż do Krakowa", "Kraków", NONE),  # a vowel that changes
    ("pl", "wieża w Lublinie nocą", "Lublin", ["Lublinie"]),
    ("cs", "mlha v Ostravě", "Ostrava", ["Ostravě"]),
    ("hu", "séta Szegedben és Prágában", "Prága", ["Prágában"]),
    ("fi", "yö Torniossa pimeällä", "Tornio", ["Torniossa"]),
    ("ru", "вид из Самары", "Самара", ["Самары"]),
    ("ru", "поезд до Казани", "Казань", ["Казани"]),
    ("ru", "корзина яблок и груши", "груша", ["груши"]),
    ("uk", "вечір у Полтаві", "Полтава", ["Полтаві"]),
    ("el", "δρόμος της Πάτρας", "Πάτρα", ["Πάτρας"]),
    ("ar", "رحلة إلى باريس وبغداد", "بغداد", ["بغداد"]),
    ("ar", "صورة من ببغداد", "بغداد", ["بغداد"]),
    ("ar", "قطة على الجبل", "جبل", ["الجبل"]),
    ("ar", "والجبل العالي", "جبل", ["الجبل"]),
    ("ar", "وردة", "ردة", NONE),  # rose is no "and …"
    ("he", "טיול לחיפה ובחיפה", "חיפה", ["חיפה", "חיפה"]),
    ("he", "ליד ההר", "הר", NONE),
    ("he", "החתולים ישנים", "חתול", ["החתולים"]),
    ("fa", "اسب‌ها و اسبها", "اسب", ["اسب‌ها", "اسبها"]),
    ("bn", "ঢাকার রাস্তা", "ঢাকা", ["ঢাকার"]),
    ("bn", "কলকাতায় বৃষ্টি", "কলকাতা", ["কলকাতায়"]),
    ("hi", "किताबें मेज पर", "किताब", ["किताबें"]),
]


@pytest.mark.parametrize(("language", "text", "name", "expected"), IN_RUNNING_TEXT + FOLDED + INFLECTED)
def test_a_name_is_found_in_its_language(
    tmp_path: Path, language: str, text: str, name: str, expected: list[str]
) -> None:
    assert found(gazetteer(tmp_path, surfaces(name)), text) == expected, language


@pytest.mark.parametrize(("language", "text", "name", "expected"), [row for row in FOLDED + INFLECTED if row[3]])
def test_the_mention_says_the_name_that_the_knowledge_base_has(
    tmp_path: Path, language: str, text: str, name: str, expected: list[str]
) -> None:
    """Catches: a span that is found under a key under which nothing is linked."""
    names = gazetteer(tmp_path, surfaces(name))
    texts = pa.record_batch([pa.array([bytes(16)], pa.binary(16)), pa.array([text])], names=["text_id", "text"])
    tables = dict(find_mentions([texts], Recognizer(None, BLANK), names))
    assert tables["mentions"].column("surface").to_pylist() == expected, language
    assert set(tables["mentions"].column("normal_form").to_pylist()) == {normal_form(name)}


@pytest.mark.parametrize(
    "text",
    [
        "She went over the hill to Romania with a Parisian", "Urban Taliban in Durban", "Kenya and Sonya",
        "Un café en París con Esteban", "Der Bär lief über die Straße", "Małe domy przy drodze", "Ve küçük bir ev",
        "мы гуляли по городу", "ο μικρός στον δρόμο", "ولد صغير في البيت", "ילד קטן בבית", "एक छोटा घर",
        "一个男人在雨中走路", "ここにあるものをみている", "작은 집에 있는 아이", "บ้านหลังเล็กบนภูเขา",
    ],
)  # fmt: skip
def test_a_plain_sentence_has_no_name_in_it(tmp_path: Path, text: str) -> None:
    """Each of these names begins, ends or stands across words of one of the sentences."""
    names = surfaces(
        "Roma", "Paris", "Tali", "Durb", "Ke", "Son", "Este", "Bär des Jahres", "Dom", "Roga", "Küçükköy", "городок",
        "Δρόμωνας", "يتيم", "בית לחם", "छोटानागपुर", "男子", "雨中曲", "みて", "작은집", "ใจ", "เขาใหญ่",
    )  # fmt: skip
    assert found(gazetteer(tmp_path, names), text) == []


@pytest.mark.parametrize("language", sorted(OF_LANGUAGES))
def test_function_words_are_never_names(tmp_path: Path, language: str) -> None:
    words = sorted(OF_LANGUAGES[language])
    assert len(words) > 10
    assert {base_link_probability(word, "label", [word]) for word in words} == {0.0}
    assert found(gazetteer(tmp_path, surfaces(*words)), " , ".join(words)) == []


@pytest.mark.parametrize(
    ("form", "admitted"),
    [
        ("東京", True), ("北京", True), ("서울", True), ("京", False), ("จีน", True), ("งู", False), ("سگ", True),
        ("ים", True), ("ي", False), ("рим", True), ("ра", False), ("रोम", True),
    ],
)  # fmt: skip
def test_how_long_a_name_must_be_in_its_script(tmp_path: Path, form: str, admitted: bool) -> None:
    form = normal_form(form)
    assert (base_link_probability(form, "alias", [form]) >= 0.05) == admitted
    assert (length(form) >= 3) == admitted
    assert (found(gazetteer(tmp_path, surfaces(form)), form) == [form]) == admitted


def test_the_kind_of_a_place_may_be_left_out_in_thai() -> None:
    assert short_forms("ประเทศลาว") == ["ลาว"]
    assert short_forms("ลาว") == []


def test_languages_in_latin_letters_need_a_sign() -> None:
    assert bases("lublinie", True, signs_in("deszcz w Lublinie")) == []
    assert "lublin" in bases("lublinie", True, signs_in("wieża w Lublinie"))
    assert bases("the", True, signs_in("The İstanbul")) == []


NAMES = [
    "東京", "北京大学", "ジョン・レノン", "うさぎ", "서울", "존 레논", "ปารีส", "ลาว", "بغداد", "إيران", "חיפה",
    "Κρήτη", "Орёл", "झारखंड", "ঢাকা", "İstanbul", "Gießen", "Самара", "Prága", "القاهرة",
]  # fmt: skip
PIECES = [
    *NAMES, "東", "京", "の", "ー", "에서", "의", " ", " ", "-", "・", "ใ", "า", "์", "ال", "و", "ب", "ـ", "ٌ", "ל", "ה",
    "ς", "ы", "у", "े", "्", "न", "দ", "র", "'da", "ş", "ben", "\u0301", "\u200c", "a", "ß", "İ", "ﷺ", "①", "ﾞ",
]  # fmt: skip


@pytest.fixture(scope="module")
def of_all(tmp_path_factory: pytest.TempPathFactory) -> Gazetteer:
    folder = tmp_path_factory.mktemp("scripts") / "g"
    build([surfaces(*NAMES)], folder)
    return Gazetteer(folder)


@settings(max_examples=examples(600))
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
@example("بغدادٌ")
@example("東 京")
@example("البغدادها")
def test_a_span_is_a_spelling_of_a_name_or_of_an_inflected_form_of_one(of_all: Gazetteer, text: str) -> None:
    """Catches: offsets that are off by a mark, a ligature or a blank that the fold left out."""
    text = unicodedata.normalize("NFC", text)
    keys = set(map(normal_form, NAMES))
    for part in found(of_all, text):
        form = normal_form(part)
        assert keys & {form, *bases(form, True, signs_in(text))}, (text, part)


@settings(max_examples=examples(300))
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), max_size=6))
def test_a_text_does_not_depend_on_its_neighbours(of_all: Gazetteer, texts: list[str]) -> None:
    """Catches: signs of a language, or a boundary, that leak from one text of a batch into the next."""
    together = list(zip(*(a.tolist() for a in of_all.find(texts)), strict=True))
    alone = [
        (i, start, end)
        for i, text in enumerate(texts)
        for _, start, end in zip(*(a.tolist() for a in of_all.find([text])), strict=True)
    ]
    assert together == alone


@settings(max_examples=examples(300))
@given(st.sampled_from(NAMES), st.sampled_from(["", " ", ", ", "(", "«"]), st.sampled_from(["", " ", ".", ")", "»"]))
def test_a_name_by_itself_is_found_in_each_of_its_cases_and_forms(
    of_all: Gazetteer, name: str, before: str, behind: str
) -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        for spelled in {name, name.upper(), name.lower(), name.title()}:
            spelled = unicodedata.normalize(form, spelled)
            assert found(of_all, before + spelled + behind) == [spelled]
