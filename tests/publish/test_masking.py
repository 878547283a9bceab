"""What is masked in published texts, and what is left."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.publish.masking import MASKS, mask


def masked(text: str | None, *what: str) -> str | None:
    (found,) = mask(pa.array([text], pa.string()), what or ("mail", "telephone")).to_pylist()
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Write to jane.doe+web@mail.example.co.uk now", "Write to [mail] now"),
        ("müller@bücher.example, Berlin", "[mail], Berlin"),
        ("Flat to let, +44 20 7946 0018", "Flat to let, [telephone]"),
        ("+1-555-123-4567.", "[telephone]."),
        ("+491701234567 WhatsApp", "[telephone] WhatsApp"),
        ("(555) 123-4567 plumbers", "[telephone] plumbers"),
        ("555.123.4567", "[telephone]"),
        ("Tel: 030 1234567", "Tel: [telephone]"),
        ("call 0800 111 222 today", "call [telephone] today"),
    ],
)
def test_addresses_and_numbers_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Nikon D750 24-120mm 1234567", "ISBN 978-3-16-148410-0", "12.03.2011 at 10:30", "1,234,567 people in 2011",
        "@handle on 5th Avenue", "IMG_20131204_123456", "19.99 EUR, 10 x 20 x 30 cm", "iPhone 4567 8901", "+5 more",
        "EAN 4006381333931", "51.5074, -0.1278", "555-123-45678", "tel aviv 1234", None,
    ],
)  # fmt: skip
def test_other_numbers_stay(text: str | None) -> None:
    assert masked(text) == text


def test_each_is_masked_by_itself() -> None:
    text = "a@example.org, +44 20 7946 0018"
    assert masked(text, "mail") == "[mail], +44 20 7946 0018"
    assert masked(text, "telephone") == "a@example.org, [telephone]"
    texts = pa.array([text], pa.string())
    assert mask(texts, ()) is texts


@given(st.lists(st.one_of(st.none(), st.text(alphabet="ab@.+-() 0123456789", max_size=40)), max_size=6))
def test_what_is_masked_holds_nothing_more_to_mask(texts: list[str | None]) -> None:
    once = mask(pa.array(texts, pa.string()), tuple(MASKS))
    assert len(once) == len(texts)
    assert [t is None for t in once.to_pylist()] == [t is None for t in texts]
    assert mask(once, tuple(MASKS)).equals(once)
