"""Words that look like names and are no mention."""

from __future__ import annotations

import pytest

from i2e_pipeline.extract.overlooked import LONGEST, name_like, parts


@pytest.mark.parametrize(
    ("text", "mentions", "expected"),
    [
        ("Sunset over the Bay of Biscay, by Anna", [], ["Sunset", "Bay of Biscay", "Anna"]),
        ("New York City Hall at night", [(0, 13)], ["Hall"]),
        ("the red apple pie", [(8, 13)], []),
        ("walrus in the zoo", [], ["walrus"]),
        ("富士山 at dawn", [], ["富士山"]),
        ("IMG 1234", [], ["IMG"]),
        ("", [], []),
    ],
)
def test_runs_of_words_that_look_like_names(text: str, mentions: list[tuple[int, int]], expected: list[str]) -> None:
    runs = [text[run[0][0] : run[-1][1]] for run in name_like(text, mentions)]
    assert [name for name in expected if name not in runs] == []
    taken = [text[s:e] for s, e in mentions]
    assert not any(mention in run for mention in taken for run in runs)


def test_parts_of_a_run_are_names_by_themselves() -> None:
    """Catches: "of Biscay" looked up and explained."""
    text = "Bay of Biscay"
    (run,) = name_like(text, [])
    assert [text[s:e] for s, e in parts(text, run)] == ["Bay of Biscay", "Bay", "Biscay"]
    many = " ".join(["Name"] * 40)
    (run,) = name_like(many, [])
    assert max(many[s:e].count(" ") for s, e in parts(many, run)) == LONGEST - 1
