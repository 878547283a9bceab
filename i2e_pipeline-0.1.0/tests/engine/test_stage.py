from __future__ import annotations

import pytest

from i2e_pipeline.engine.stage import RowsLost, check_rows, difference


def test_rows_that_went_missing_stop_the_stage() -> None:
    check_rows("score", "u", 10, 7, {"empty_image": 3}, 10)
    with pytest.raises(RowsLost, match="10 rows in, 7 out"):
        check_rows("score", "u", 10, 7, {"empty_image": 2}, 10)
    with pytest.raises(RowsLost, match="11 rows were passed to it and 10 arrived"):
        check_rows("score", "u", 10, 10, {}, 11)


def test_a_difference_names_what_changed() -> None:
    old = {"settings": {"bar": 0.5, "model": "a"}, "version": 1}
    new = {"settings": {"bar": 0.6, "model": "a"}, "version": 1}
    assert difference(old, new) == ["settings.bar: 0.5, now 0.6"]
    assert difference(old, new, names={"settings.bar": "label.threshold"}) == ["label.threshold: 0.5, now 0.6"]
    assert difference(old, old) == []
    assert difference({"after": {"link": "a" * 32}}, {"after": {"link": "b" * 32}}) == ["after.link"]
