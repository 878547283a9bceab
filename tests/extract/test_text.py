"""Cleaning: what comes out, where it came from, and that no text can stop or slow it."""

from __future__ import annotations

import hashlib
import time
import unicodedata
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.core.schemas import PAIRS, TEXTS, Reason
from i2e_pipeline.core.scripts import script, scripts
from i2e_pipeline.extract.text import clean, clean_column, clean_with_offsets, read_texts, text_id
from tests.examples import examples


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("&amp;quot;red apple&amp;quot;", "red apple"),
        ("What&#39;s for dinner?", "What's for dinner?"),
        ("Shop &raquo; Home &amp; more", "Shop » Home & more"),
        ("AT&T and R&B", "AT&T and R&B"),
        ("RÃ©f. â€“ dâ€™Anjou", "Réf. – d’Anjou"),
        ("ÃƒÂ©tÃƒÂ©", "été"),
        ("CAFÉ… «À»", "CAFÉ… «À»"),
        ("<b>Arla</b>s H<sub>2</sub>O<br/>fresh", "Arlas H2O fresh"),
        ("a < b > c", "a < b > c"),
        ("before <script>alert('x')</script> after <!-- note --> end", "before after end"),
        ("pho\0to\xa0of  leek\r\n", "photo of leek"),
        ("zero\u200bwidth \ufeffmark", "zerowidth mark"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("IMG_0234_red-apple.jpg", "IMG 0234 red apple"),
        ("water-lily.png | Shop", "water lily | Shop"),
        ("yin-yang", "yin-yang"),
        ('"quoted, by CSV"', "quoted, by CSV"),
        ('the ""big"" one', 'the "big" one'),
        ('"a" and "b"', '"a" and "b"'),
        ("e\u0301a", "éa"),
        ("ᄀ\u1161", "가"),
        ("", ""),
    ],
)
def test_what_a_reader_would_see_is_kept(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected


def test_long_texts_end_with_a_whole_word() -> None:
    assert clean("one two three", 9) == "one two"
    assert clean("onetwothree", 6) == "onetwo"


ODD = [
    *(
        "&amp;",
        "&#39;",
        "&quot;",
        '"',
        '""',
        "Ã©",
        "â€™",
        "Ã",
        "<b>",
        "</b>",
        "<br/>",
        "<",
        "&",
        "_",
        ".jpg",
        "%20",
        " ",
    ),
    *("\xa0", "\0", "\u200b", "\u200d", "-", "e\u0301", "\u0301", "IMG_", "가", "ᄀ", "ᅡ", "Å", "é", "…"),
]
MESSY = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(ODD)), max_size=12).map("".join)


@settings(max_examples=examples(500))
@given(text=MESSY, limit=st.sampled_from([5, 20, 1000]))
def test_both_ways_of_cleaning_agree_and_offsets_are_sound(text: str, limit: int) -> None:
    cleaned, spans = clean_with_offsets(text, limit)
    assert cleaned == clean(text, limit)
    assert spans.shape == (len(cleaned), 2)
    assert len(cleaned) <= limit
    assert cleaned == cleaned.strip(" ")
    assert "  " not in cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    if cleaned:
        assert (spans[:, 0] < spans[:, 1]).all()
        assert (np.diff(spans, axis=0) >= 0).all()
        assert spans.min() >= 0
        assert spans.max() <= len(text)


@settings(max_examples=examples(300))
@given(texts=st.lists(MESSY, max_size=5))
def test_the_column_is_cleaned_as_each_text_is(texts: list[str]) -> None:
    """Catches: the fast path lets through a text that the slow path would have changed."""
    texts = [t.encode("utf-8", "ignore").decode() for t in texts]
    assert clean_column(pa.array([*texts, None], pa.string())).to_pylist() == [*map(clean, texts), None]


def test_offsets_lead_back_to_the_text_as_it_was() -> None:
    text = "<b>Turkey</b> &amp; Réf_x.jpg"
    cleaned, spans = clean_with_offsets(text)
    at = cleaned.index("Turkey")
    assert text[spans[at, 0] : spans[at + 5, 1]] == "Turkey"
    at = cleaned.index("&")
    assert text[spans[at, 0] : spans[at, 1]] == "&amp;"


@pytest.mark.parametrize("evil", ["<a ", "<!--", "&", "_", "a", "<script>", ".jpg", '"', " ", "e\u0301", "Ã©", "&amp;"])
def test_ten_megabytes_cost_no_more_than_some_kilobytes(evil: str) -> None:
    text = evil * (10_000_000 // len(evil))
    started = time.process_time()
    cleaned = clean(text)
    clean_with_offsets(text)
    assert time.process_time() - started < 2
    assert len(cleaned) <= 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red apple", "Latin"),
        ("Красный apple", "Cyrillic"),
        ("購入 送料無料 ok", "Han"),
        ("りんごです", "Kana"),
        ("12 €", "Common"),
        ("سيب", "Arabic"),
        ("사과", "Hangul"),
        ("μῆλον", "Greek"),
        ("", "Common"),
    ],
)
def test_script_is_that_of_most_letters(text: str, expected: str) -> None:
    assert script(text) == expected
    assert scripts(pa.array([text, "zzz", text])).to_pylist() == [expected, "Latin", expected]


def test_text_id_is_the_content() -> None:
    ids = text_id(pa.array(["é", None]))
    assert ids.to_pylist() == [hashlib.blake2b("é".encode(), digest_size=16).digest(), None]


def rows(*captions: str | bytes | None, **columns: Any) -> pa.RecordBatch:
    count = len(captions)
    kind = pa.binary() if any(isinstance(c, bytes) for c in captions) else pa.string()
    return pa.RecordBatch.from_pydict(
        {
            "shard": pa.array([3] * count, pa.int32()),
            "row": pa.array(range(count), pa.int64()),
            "pair_id": pa.array([i.to_bytes(16, "big") for i in range(count)], pa.binary(16)),
            "key": pa.array([str(i) for i in range(count)], pa.string()),
            "url": pa.nulls(count, pa.string()),
            "caption": pa.array(captions, kind),
        }
        | columns
    )


def tables(*batches: pa.RecordBatch) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {"pairs": [], "texts": [], "rejects": []}
    for name, batch in read_texts(batches):
        assert name == "rejects" or batch.schema == {"pairs": PAIRS, "texts": TEXTS}[name]
        out[name] += batch.to_pylist()
    return out


def test_every_row_is_a_pair_or_a_reject() -> None:
    """Catches: rows with an odd caption vanish without a word (data-juicer, clip-retrieval)."""
    captions = ["apple", None, "", "  \0", "nan", "NaN", "None", "12 €", "🍎", "a" * 2_000_000, "pho\0to of leek"]
    out = tables(rows(*captions))
    assert len(out["pairs"]) + len(out["rejects"]) == len(captions)
    reasons = {r["row"]: r["reason"] for r in out["rejects"]}
    empty = dict.fromkeys(range(2, 7), Reason.EMPTY_TEXT)
    assert reasons == {1: Reason.NULL_TEXT, **empty, 7: Reason.NO_LETTERS, 8: Reason.NO_LETTERS}
    assert all(r["shard"] == 3 and r["id"] == r["row"].to_bytes(16, "big") for r in out["rejects"])


def test_equal_texts_are_one_text_with_their_number_of_pairs() -> None:
    out = tables(rows("red apple", "red  apple", "<b>red apple</b>", "pear"))
    assert [(t["text"], t["pairs"]) for t in out["texts"]] == [("red apple", 3), ("pear", 1)]
    assert len({p["text_id"] for p in out["pairs"]}) == 2


def test_equal_texts_of_two_groups_are_two_texts() -> None:
    """Catches: what one page says of its Merkel is taken for what another page says of its own."""
    group = pa.array(["a", "b", "a", None])
    out = tables(rows("Merkel", "Merkel", "Merkel", "Merkel", group=group))
    assert sorted(t["pairs"] for t in out["texts"]) == [1, 1, 2]
    assert [t["group_id"] is None for t in sorted(out["texts"], key=lambda t: t["group_id"] or b"")] == [1, 0, 0]
    ids = [p["text_id"] for p in out["pairs"]]
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3
    assert ids[3] == tables(rows("Merkel"))["pairs"][0]["text_id"]


def test_bytes_that_are_no_utf8_do_not_stop_the_batch() -> None:
    out = tables(rows(b"caf\xe9", b"tea", None))
    assert [t["text"] for t in out["texts"]] == ["caf\ufffd", "tea"]
    offsets = pa.array([0, 4, 7], pa.int32()).buffers()[1]
    broken = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"caf\xe9tea"))
    assert [t["text"] for t in tables(rows("a", "b", caption=broken))["texts"]] == ["caf\ufffd", "tea"]


def test_an_empty_batch_gives_empty_tables() -> None:
    assert tables(rows()) == {"pairs": [], "texts": [], "rejects": []}
