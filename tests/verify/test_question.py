"""Questions are what they say, and an answer is a number or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.verify.question import (
    LONGEST_REASON,
    Answer,
    Candidate,
    PromptError,
    Template,
    in_drawn_order,
    key_of,
    read_answer,
)
from tests.examples import examples

BIRD = Candidate(43794, "Turkey", "turkey", "large bird\n of the genus Meleagris")
STATE = Candidate(43, "Turkey", "Republic of Türkiye", None)


def test_a_question_shows_caption_candidates_and_none_of_them() -> None:
    said = Template.read(None, reason=False).filled("A  turkey\n{candidates} {form}", [BIRD, STATE])
    assert 'this caption beside it: "A turkey {candidates} {form}"' in said
    lines = said.splitlines()
    at = lines.index("1: turkey: large bird of the genus Meleagris")
    assert lines[at + 1] == '2: Republic of Türkiye ("Turkey" in the caption)'
    assert lines[at + 2].startswith("0: none of these")
    assert said.endswith('{"answer": NUMBER}')
    assert '"reason"' in Template.read(None, reason=True).filled("x", [BIRD])


@pytest.mark.parametrize(
    ("text", "said"),
    [("{text}", r"has no \{candidates\}"), ("{candidates}", r"has no \{text\}"),
     ("{text} {candidates} {entity}", r"has \{entity\}, which nothing fills")],
)  # fmt: skip
def test_a_template_that_cannot_be_filled_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(PromptError, match=f"p.txt {said}"):
        Template.read(str(tmp_path / "p.txt"), False)
    with pytest.raises(PromptError, match="cannot be read"):
        Template.read(str(tmp_path / "none.txt"), False)


def test_json_in_a_template_stays_as_it_is() -> None:
    assert Template('{text} {candidates} {"answer": 1}', False).filled("a", []).endswith('{"answer": 1}')


def test_the_order_of_candidates_is_the_images_own() -> None:
    """Catches: an order by probability, by which a model that favours the first would repeat what is known."""
    orders = {tuple(c.entity_id for c in in_drawn_order([BIRD, STATE], bytes([n]) * 16)) for n in range(40)}
    assert len(orders) == 2
    assert in_drawn_order([STATE, BIRD], b"x") == in_drawn_order([BIRD, STATE], b"x")
    assert len({key_of(*of) for of in (("m", "t", b"i"), ("n", "t", b"i"), ("m", "u", b"i"), ("m", "t", b"j"))}) == 4


READ = {
    '{"answer": 2}': (2, None),
    ' {"answer": "2", "reason": "a bird"} ': (2, "a bird"),
    '```json\n{"answer": 0}\n```': (0, None),
    '{"answer": 1, "reason": "the flag\\n\\u0000 of 2 states"}': (1, "the flag of 2 states"),
    '{"answer": 1, "reason": "the bird ha': (1, "the bird ha"),
    "2": (2, None),
    "2.": (2, None),
    "3": (3, None),
    "Answer: 2": (2, None),
    "1: a bird": (1, "a bird"),
    "0\nIt is a chair.": (0, "It is a chair."),
}
UNREAD = (
    "", "a bird", "1 or 2", "1, 2", "1/2", "1-2", "1 2", "12", "4", "-1", "1.5", "1%", "Answer:", "It is 2", "two",
    '{"answer": 4}', '{"answer": -1}', '{"answer": 1.0}', '{"answer": true}', '{"answer": null}', '{"answer": [1]}',
    '{"answer": 1, "answer": 2}', '{"answer": "1 or 2"}', '{"number": 1}', '[1]', '{"answer": 1} {"answer": 2}',
    '{"answer": 1} or 2', '{"answer": 1, "reason": "a", "answer', "1: rather 2", "1. or maybe 0", '{"answer": 1',
    '{"answer": ' + "1" * 5000 + "}", "[" * 5000, "{" * 5000, "1" * 5000, "٣", '{"answer": "٣"}',
)  # fmt: skip


@pytest.mark.parametrize("said", READ)
def test_an_answer_is_read(said: str) -> None:
    assert read_answer(said, 3) == Answer(*READ[said])


@pytest.mark.parametrize("said", UNREAD)
def test_what_may_mean_several_things_is_no_answer(said: str) -> None:
    assert read_answer(said, 3) is None


@settings(max_examples=examples(300))
@given(st.text(max_size=60) | st.from_regex(r"\A\W*\{.{0,40}\Z") | st.from_regex(r"\A\d.{0,30}\Z"), st.integers(0, 9))
def test_nothing_crashes_and_every_number_stands_there(said: str, candidates: int) -> None:
    answer = read_answer(said, candidates)
    if answer is not None:
        assert 0 <= answer.number <= candidates
        assert str(answer.number) in said or any(c.isdigit() for c in said)
        assert answer.reason is None or (answer.reason.isprintable() and len(answer.reason) <= LONGEST_REASON)
        if answer.reason is not None:
            answer.reason.encode()


@settings(max_examples=examples(200))
@given(st.integers(0, 6), st.none() | st.text(max_size=400), st.booleans(), st.integers(0, 400))
def test_a_reply_of_the_form_is_read_and_one_cut_short_says_the_same_or_nothing(
    number: int, reason: str | None, fenced: bool, cut: int
) -> None:
    tree = {"answer": number} if reason is None else {"answer": number, "reason": reason}
    said = json.dumps(tree)
    whole = read_answer(f"```json\n{said}\n```" if fenced else said, 6)
    assert whole is not None
    assert whole.number == number
    part = read_answer(said[:cut], 6)
    assert part is None or part.number == number


@settings(max_examples=examples(200))
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=4, unique=True), st.sampled_from([" or ", ", ", " ", "/", "; "])
)
def test_two_numbers_are_none(numbers: list[int], between: str) -> None:
    assert read_answer(between.join(map(str, numbers)), 6) is None
