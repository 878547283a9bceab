from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.label.calibration import (
    DEFAULT,
    FEATURES,
    FITTED,
    FURTHER_LABEL,
    OPTIONAL,
    Calibration,
    Verdict,
    features,
    select,
)
from tests.examples import examples

SCHEMA = pa.schema(
    [
        ("pair_id", pa.binary(16)),
        ("image_id", pa.binary(16)),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("entity_id", pa.int64()),
        ("text_probability", pa.float32()),
        ("background_z", pa.float32()),
        ("described", pa.bool_()),
        *((name, pa.float32()) for name in OPTIONAL),
    ]
)
BY_Z = Calibration(("background_z",), (1.0,), -4.0, 0.5)
"""Sure above z = 4."""


def row(entity: int, z: float, start: int = 0, end: int = 5, pair: int = 1, image: int = 1, **more: object) -> dict:
    base = {"text_probability": 0.5, "described": True}
    ids = {"pair_id": pair.to_bytes(16, "big"), "image_id": image.to_bytes(16, "big")}
    return {**base, **ids, "start": start, "end": end, "entity_id": entity, "background_z": z, **more}


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def verdicts(selected: pa.Table) -> dict[int, str | None]:
    return dict(zip(selected["entity_id"].to_pylist(), selected["reason"].to_pylist(), strict=True))


def feature(name: str, *rows: dict) -> list[float]:
    return features(table(*rows), (name,))[:, 0].tolist()


# -- features ------------------------------------------------------------------------------------------------------


def test_the_share_is_against_the_best_other_entity_of_the_pair() -> None:
    rows = [row(1, 5.0), row(2, 3.0), row(1, 5.0, start=10, end=12), row(3, 4.0, pair=2)]
    assert feature("share_against_best_other", *rows) == pytest.approx(
        [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2)), 1.0]
    )


def test_readings_and_mentions_are_counted_per_pair() -> None:
    rows = [row(1, 1), row(2, 1), row(3, 1, start=6, end=9), row(1, 1, pair=2)]
    assert np.exp(feature("log_readings_of_mention", *rows)) == pytest.approx([2, 2, 1, 1])
    assert np.exp(feature("log_mentions_of_text", *rows)) == pytest.approx([2, 2, 2, 1])


def test_extreme_numbers_are_bounded() -> None:
    x = features(table(row(1, 1e6, text_probability=0.0), row(2, -1e6)))
    assert np.isfinite(x).all()
    assert np.abs(x).max() <= 12


def test_features_do_not_depend_on_other_pairs_or_on_order() -> None:
    mine = [row(1, 4.0), row(2, 2.0), row(3, 1.0, start=4, end=9)]
    others = [row(4, 9.0, pair=7, image=7), row(1, 8.0, pair=8, image=8)]
    alone = features(table(*mine))
    together = features(table(others[0], mine[2], others[1], mine[0], mine[1]))
    assert np.allclose(together[[3, 4, 1]], alone)


def test_a_table_without_the_column_counts_every_entity_as_described() -> None:
    whole = table(row(1, 5.0), row(2, 1.0))
    assert np.array_equal(features(whole), features(whole.drop_columns(["described"])))


def test_what_a_table_does_not_know_counts_as_in_one_that_lacks_the_columns() -> None:
    whole = table(row(1, 5.0), row(2, 1.0, described=False))
    x = features(whole)
    assert np.isfinite(x).all()
    assert np.array_equal(x, features(whole.drop_columns(list(OPTIONAL))))


def test_a_description_that_does_not_fit_costs_and_one_that_fits_gains() -> None:
    """The image fits the word in both; only the sense differs."""
    word = {"name_z": 7.0, "visual": 0.5, "fame": 2.0}
    right = row(1, 7.0, description_z=6.0, type_z=2.0, type_gap=0.0, **word)
    wrong = row(1, 5.0, description_z=0.0, type_z=-1.0, type_gap=3.0, **word)
    fits, misses = (DEFAULT.probability(table(one))[0] for one in (right, wrong))
    assert fits > 0.6 > 0.2 > misses
    seen, mistaken = {**right, "vocabulary_gap": -1.0}, {**right, "vocabulary_gap": 4.0}
    assert DEFAULT.probability(table(seen))[0] > 0.9 > 0.2 > DEFAULT.probability(table(mistaken))[0]


def test_without_a_vocabulary_other_weights_count_and_no_label_is_surer() -> None:
    """Catches: a gap that is unknown and counts as none, to which every candidate is what the image fits best."""
    without = DEFAULT.without_vocabulary
    assert without is not None
    assert without.threshold == DEFAULT.threshold
    assert "vocabulary_gap" not in without.features
    rows = [row(1, 6.0, name_z=6.0, description_z=4.0, visual=0.5, fame=2.0), row(2, 1.0, name_z=1.0)]
    blind = DEFAULT.probability(table(*rows))
    assert blind.tolist() == without.probability(table(*rows)).tolist()
    lacking = table(*rows).drop_columns(["vocabulary_gap", "description_gap"])
    assert DEFAULT.probability(lacking).tolist() == blind.tolist()
    assert blind[0] < DEFAULT.probability(table(*({**r, "vocabulary_gap": 0.0} for r in rows)))[0]


def test_an_image_that_fits_nothing_gets_no_label() -> None:
    """Catches: a fit on captions that all say what is seen, to which a photo of something else is as good as any."""
    known = {"visual": 0.85, "fame": 3.0, "type_z": 1.0, "type_gap": 0.3, "text_probability": 0.95}
    low = [
        float(DEFAULT.probability(table(row(1, z, name_z=z, description_z=z, **known)))[0]) for z in (-3, -1, 0, 1, 6)
    ]
    assert low[:4] == sorted(low[:4])
    assert low[2] < DEFAULT.threshold < low[4]


def test_what_cannot_be_seen_or_is_heard_of_by_nobody_is_less_likely() -> None:
    def p(**more: float) -> float:
        base = {"name_z": 6.0, "description_z": 3.0, "type_z": 1.0, "type_gap": 0.5, "visual": 0.5, "fame": 2.0}
        return float(DEFAULT.probability(table(row(1, 6.0, **{**base, **more})))[0])

    assert p() > p(visual=0.1) > p(visual=0.03)
    assert p() > p(fame=0.3)


def test_the_fit_weighs_known_features_only() -> None:
    assert set(FITTED) <= set(FEATURES)
    assert set(DEFAULT.features) <= set(FEATURES)


def test_a_table_that_cannot_be_weighed_says_why() -> None:
    with pytest.raises(ValueError, match="needs the columns background_z"):
        features(table(row(1, 1)).drop_columns(["background_z"]))
    with pytest.raises(ValueError, match=r"score\.background_entities >= 2"):
        features(table(row(1, 1, background_z=None)))


def test_no_row_is_no_error() -> None:
    assert features(table()).shape == (0, len(FEATURES))
    assert select(table(), DEFAULT).num_rows == 0


# -- the choice ----------------------------------------------------------------------------------------------------


def test_the_best_reading_of_a_mention_is_the_label() -> None:
    assert verdicts(select(table(row(1, 6.0), row(2, 5.9)), BY_Z)) == {1: None, 2: Verdict.RIVAL}


def test_overlapping_mentions_are_readings_of_the_same_words() -> None:
    rows = [row(1, 6.0, 0, 5), row(2, 6.1, 3, 9), row(3, 5.9, 9, 12)]
    assert verdicts(select(table(*rows), BY_Z)) == {2: None, 1: Verdict.RIVAL, 3: None}


def test_below_the_bar_there_is_no_label() -> None:
    assert verdicts(select(table(row(1, 3.9)), BY_Z)) == {1: Verdict.BELOW_BAR}
    assert verdicts(select(table(row(1, 3.9)), BY_Z, threshold=0.4)) == {1: None}
    assert verdicts(select(table(row(1, 4.0)), BY_Z)) == {1: None}


def test_a_further_label_is_about_as_sure_as_the_first() -> None:
    near, far = 4.0 + math.log(9), 4.0 + math.log(2)  # p = .9 and .67
    rows = [row(1, near + 0.1), row(2, near, 10, 15), row(3, far, 20, 25)]
    assert verdicts(select(table(*rows), BY_Z)) == {1: None, 2: None, 3: Verdict.LESS_SURE}


def test_an_image_has_at_most_so_many_labels() -> None:
    rows = [row(i, 9.0 - i / 100, 10 * i, 10 * i + 5) for i in range(5)]
    assert verdicts(select(table(*rows), BY_Z, max_labels=3)) == {
        0: None,
        1: None,
        2: None,
        3: "too_many",
        4: "too_many",
    }


def test_an_entity_stands_once_with_its_best_mention() -> None:
    rows = [row(1, 5.0, 0, 5, text_probability=0.2), row(1, 5.0, 10, 15, text_probability=0.9)]
    by_text = Calibration(("background_z", "log_text_probability"), (1.0, 1.0), -3.0, 0.5)
    chosen = select(table(*rows), by_text)
    assert chosen["start"].to_pylist() == [10]
    assert chosen["reason"].to_pylist() == [None]


def test_two_texts_of_an_image_do_not_overlap() -> None:
    rows = [row(1, 6.0, pair=1), row(2, 6.0, pair=2)]
    assert verdicts(select(table(*rows), BY_Z)) == {1: None, 2: None}


ROWS = st.lists(
    st.builds(
        row,
        entity=st.integers(1, 5),
        z=st.integers(0, 8).map(float),
        start=st.integers(0, 6),
        end=st.integers(7, 12) | st.integers(3, 6),
        pair=st.integers(1, 3),
        image=st.just(1),
    ).filter(lambda r: r["end"] > r["start"]),
    max_size=10,
    unique_by=lambda r: (r["pair_id"], r["start"], r["end"], r["entity_id"]),
)


@settings(max_examples=examples(200))
@given(ROWS, st.integers(1, 4), st.integers(1, 3))
def test_labels_reach_the_threshold_and_never_overlap(rows: list[dict], max_labels: int, images: int) -> None:
    rows = [{**r, "image_id": (r["pair_id"][-1] % images).to_bytes(16, "big")} for r in rows]
    selected = select(table(*rows), BY_Z, max_labels=max_labels).to_pylist()
    assert len(selected) == len({(r["image_id"], r["entity_id"]) for r in rows})
    for image in {r["image_id"] for r in rows}:
        here = [s for s in selected if s["image_id"] == image]
        labels = [s for s in here if s["reason"] is None]
        top = max(s["probability"] for s in here)
        assert len(labels) <= max_labels
        assert bool(labels) == (top >= 0.5)
        for i, a in enumerate(labels):
            assert a["probability"] >= max(0.5, FURTHER_LABEL * top) - 1e-6
            for b in labels[:i]:
                apart = a["pair_id"] != b["pair_id"] or a["end"] <= b["start"] or b["end"] <= a["start"]
                assert apart
                assert a["entity_id"] != b["entity_id"]


@settings(max_examples=examples(50))
@given(ROWS, st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_rows(rows: list[dict], random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert select(table(*rows), BY_Z).to_pylist() == select(table(*shuffled), BY_Z).to_pylist()


# -- the file ------------------------------------------------------------------------------------------------------


def test_a_calibration_survives_its_file(tmp_path) -> None:
    DEFAULT.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == DEFAULT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"features": ["x"], "weights": [1], "bias": 0, "bar": 5}'])
def test_a_file_that_holds_none_is_named(tmp_path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json holds no calibration"):
        Calibration.load(tmp_path / "c.json")


def test_a_file_from_before_the_threshold_had_its_name_is_read(tmp_path) -> None:
    (tmp_path / "c.json").write_text('{"features": ["background_z"], "weights": [1], "bias": 0, "bar": 0.5}')
    assert Calibration.load(tmp_path / "c.json").threshold == 0.5


def test_a_feature_from_outside_is_a_column_of_the_table() -> None:
    """Null and NaN count as 0; one that no stage gives is an error and not a silent 0."""
    rows = table(row(1, 3.0), row(2, 3.0), row(3, 3.0))
    with pytest.raises(ValueError, match="weighs sharpness, which no stage gives"):
        Calibration(("sharpness",), (1.0,), 0.0, 0.5).probability(rows)
    given = rows.append_column("sharpness", pa.array([2.0, None, float("nan")]))
    assert Calibration(("sharpness",), (1.0,), 0.0, 0.5).probability(given).round(4).tolist() == [0.8808, 0.5, 0.5]


def test_figures_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="2 weights for 1 features"):
        Calibration(("background_z",), (1.0, 2.0), 0.0, 0.5)
    with pytest.raises(ValueError, match="not between 0 and 1"):
        Calibration(("background_z",), (1.0,), 0.0, 1.5)


def test_the_default_prefers_what_it_should() -> None:
    """More z, more text, a description: each alone makes a label more probable."""
    base = DEFAULT.probability(table(row(1, 4.0), row(2, 1.0)))[0]
    for better in (
        [row(1, 6.0), row(2, 1.0)],
        [row(1, 4.0, text_probability=0.9), row(2, 1.0)],
        [row(1, 4.0), row(2, -1.0)],
    ):
        assert DEFAULT.probability(table(*better))[0] > base
    assert DEFAULT.probability(table(row(1, 4.0, described=False), row(2, 1.0)))[0] < base
