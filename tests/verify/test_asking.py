"""The kernel: bytes in, verdicts out, with a verifier that a test writes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from i2e_pipeline.core.config import VerifyConfig
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import Shard
from i2e_pipeline.verify.answers import Answers
from i2e_pipeline.verify.asking import Failed, Question, VerifierError, ask, scaled
from i2e_pipeline.verify.question import Template
from tests.small_models import picture, stored, write_shard

SHOWN = [(1, "apple", "Apple", "a fruit"), (2, "apple", "Apple", "a company"), (3, "apple", "Fiona", None)]


class Says:
    """A verifier that says what a function makes of a question, in groups of two."""

    name, at_once = "a test", 2

    def __init__(self, answer: Callable[[Question], str | Failed]) -> None:
        self.answer, self.asked = answer, list[Question]()

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def answers(
        self, asked: Sequence[Question], enough: Callable[[], bool] = lambda: False
    ) -> Generator[list[tuple[int, str | Failed]], None, None]:
        for start in range(0, len(asked), 2):
            if enough():
                return
            some = asked[start : start + 2]
            self.asked += some
            yield [(start + n, self.answer(one)) for n, one in enumerate(some)]


def rows(images: list[bytes | None], shown: int | None = 3) -> pa.RecordBatch:
    options = [{"entity_id": e, "probability": 0.5 - e / 10, "surface": s} for e, s, _, _ in SHOWN]
    texts = ((name, pa.string()) for name in ("surface", "name", "description"))
    told = [{"entity_id": e, "surface": s, "name": n, "description": d} for e, s, n, d in SHOWN[:shown]]
    return pa.RecordBatch.from_pydict(
        {
            "pair_id": pa.array([n.to_bytes(16, "big") for n in range(len(images))], pa.binary()),
            "image_id": pa.array([content_id(image or b"") for image in images], pa.binary()),
            "shard": pa.array([0] * len(images), pa.int32()),
            "row": pa.array(range(len(images)), pa.int64()),
            "of_unit": ["u"] * len(images),
            "text": ["an apple"] * len(images),
            "options": [options] * len(images),
            "shown": pa.array(
                [None if shown is None else told] * len(images),
                pa.list_(pa.struct([("entity_id", pa.int64()), *texts])),
            ),
        }
    )  # fmt: skip


def run(
    tmp_path: Path, images: list[bytes | None], verifier: Says, batch: pa.RecordBatch | None = None, **settings: Any
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    shard = write_shard(tmp_path / "a.parquet", images)
    found: list[dict[str, Any]] = []
    notes: dict[str, int] = {}
    for table, made in ask(
        iter([rows(images) if batch is None else batch]), lambda _: formats.images(Shard(shard), "jpg"), verifier,
        Template.read(None, False), "identity", lambda unit: Answers(str(tmp_path / unit)), VerifyConfig(**settings),
    ):  # fmt: skip
        if table == "verdicts":
            found += made.to_pylist()
        else:
            notes = dict(zip(*(column.to_pylist() for column in made.columns), strict=True))
    return found, notes


def number(question: Question, description: str) -> str:
    """The number of the line that ends so."""
    return next(line.partition(":")[0] for line in question.text.splitlines() if line.endswith(description))


def test_a_choice_is_a_verdict_about_each_that_was_shown(tmp_path: Path) -> None:
    says = Says(lambda q: f'{{"answer": {number(q, "a company")}, "reason": "a logo"}}')
    found, notes = run(tmp_path, [stored(picture(1))], says)
    assert [(r["entity_id"], r["verdict"], r["state"]) for r in found] == [
        (1, -1, "other"), (2, 1, "chosen"), (3, -1, "other"),
    ]  # fmt: skip
    assert {r["explanation"] for r in found} == {"a logo"}
    assert notes == {"questions asked": 1, "images of which a candidate was chosen": 1}
    found, _ = run(tmp_path, [stored(picture(2))], Says(lambda q: "0"), rows([stored(picture(2))], shown=2))
    assert [(r["verdict"], r["state"]) for r in found] == [(-1, "none"), (-1, "none"), (None, "not_shown")]


def test_equal_questions_are_asked_once_and_images_of_known_answers_are_not_opened(tmp_path: Path) -> None:
    one, two = stored(picture(1)), stored(picture(2))
    says = Says(lambda q: "0")
    found, notes = run(tmp_path, [one, two, one, one], says)
    assert (len(says.asked), len(found)) == (2, 12)
    assert notes == {"questions asked": 2, "questions answered before": 2, "images of which none was chosen": 4}
    # The answers are there; the images are gone, and nobody notices.
    silent = Says(lambda q: pytest.fail("asked again"))
    (tmp_path / "a.parquet").unlink()
    again, notes = run(tmp_path, [None] * 4, silent, rows([one, two, one, one]))
    assert again == found
    assert notes["questions answered before"] == 4


def test_what_has_no_image_or_no_budget_is_no_verdict(tmp_path: Path) -> None:
    says = Says(lambda q: pytest.fail("asked"))
    found, notes = run(tmp_path, [b"no image", None], says)
    assert {(r["verdict"], r["state"]) for r in found} == {(None, "no_image")}
    assert notes == {"images that could not be opened for a question": 2}
    found, notes = run(tmp_path, [stored(picture(1))], says, rows([stored(picture(1))], shown=None))
    assert [(r["verdict"], r["state"]) for r in found] == [(None, "over_budget")] * 3
    assert notes == {}


def test_a_share_may_fail_and_more_may_not(tmp_path: Path) -> None:
    images: list[bytes | None] = [stored(picture(n)) for n in range(12)]
    first = content_id(images[0] or b"")

    def one_fails(question: Question) -> str | Failed:
        return Failed("HTTP 500") if question.key == key else "0"

    from i2e_pipeline.verify.question import Candidate, in_drawn_order, key_of

    text = Template.read(None, False).filled("an apple", in_drawn_order((Candidate(*c) for c in SHOWN), first))
    key = key_of("identity", text, first)
    says = Says(one_fails)
    found, notes = run(tmp_path, images, says)
    assert notes["questions without an answer after all tries"] == 1
    assert [r["state"] for r in found[:3]] == ["failed"] * 3
    with pytest.raises(VerifierError, match=r"a test: 2 of 2 questions have no answer.*HTTP 500.*verify.max_failed"):
        run(tmp_path, [stored(picture(n)) for n in (20, 21)], Says(lambda q: Failed("HTTP 500")))
    found, _ = run(tmp_path, [stored(picture(n)) for n in (20, 21)], Says(lambda q: Failed("x")), max_failed=1)
    assert {r["state"] for r in found} == {"failed"}
    # With nobody there not every question is tried to the end.
    gone = Says(lambda q: Failed("no connection"))
    with pytest.raises(VerifierError, match=r"8 of 8 questions"):
        run(tmp_path, [stored(picture(n)) for n in range(30, 60)], gone)
    assert len(gone.asked) == 8


class SaysOn(Says):
    """One whose questions under way are answered after all, when enough have failed: as a server that comes back."""

    def answers(
        self, asked: Sequence[Question], enough: Callable[[], bool] = lambda: False
    ) -> Generator[list[tuple[int, str | Failed]], None, None]:
        for number, one in enumerate(asked):
            if enough():
                yield [(number + n, '{"answer": 0}') for n in range(12)]
                return
            yield [(number, self.answer(one))]


def test_a_server_that_comes_back_while_a_task_gives_up_is_no_question_without_a_state(tmp_path: Path) -> None:
    images = [stored(picture(n)) for n in range(100, 140)]
    with pytest.raises(VerifierError, match=r"a test: 8 of 20 questions have no answer"):
        run(tmp_path, images, SaysOn(lambda q: Failed("HTTP 503")), max_failed=0.5)


def test_large_images_are_scaled_and_small_ones_stay() -> None:
    assert scaled(Image.new("RGB", (3000, 10)), 600).size == (600, 2)
    assert scaled(Image.new("RGB", (9000, 1)), 90).size == (90, 1)
    small = Image.new("RGB", (30, 20))
    assert scaled(small, 600) is small
