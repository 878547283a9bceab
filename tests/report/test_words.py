from __future__ import annotations

from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.engine.pipeline import stages
from i2e_pipeline.report.words import REASONS, STAGES, explain
from wikidata.reasons import Reason as LineReason


def test_every_reason_has_a_sentence() -> None:
    """Catches: a new reason that the report would show without saying what it means."""
    assert {*REASONS} == {*Reason, *LineReason}
    assert all(s.endswith((".", "!", "?", "”.")) and len(s) > 10 for s in REASONS.values())


def test_every_stage_has_its_words_in_the_order_of_the_walk() -> None:
    assert list(STAGES) == [s.name for s in stages()]


def test_reasons_are_found_by_the_name_in_the_table() -> None:
    assert explain("below_bar") == REASONS[Reason.BELOW_BAR]
    assert explain("eaten_by_dog") == "Eaten by dog."
