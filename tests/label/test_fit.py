from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.label.calibration import FITTED, Calibration, CalibrationError, select
from i2e_pipeline.label.fit import fit, report, rounded, shifted


def world(images: int, seed: int, known: float = 1.0) -> pa.Table:
    """Candidates of images: one is right in 4 of 5; its z is mostly high, the others' are around 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(images):
        name = rng.bytes(16)
        options = int(rng.integers(1, 5))
        right = int(rng.integers(options)) if rng.random() < 0.8 else -1
        truth = 100 + right if rng.random() < known else None
        for i in range(options):
            z = rng.normal(4.5 if i == right else 0.5, 1.6)
            mention = i // 2
            rows.append(
                {
                    "image_id": name,
                    "pair_id": name,
                    "start": mention * 10,
                    "end": mention * 10 + 5,
                    "entity_id": 100 + i,
                    "text_probability": float(rng.uniform(0.05, 1)),
                    "background_z": float(z),
                    "truth": truth,
                    "image": image,
                }
            )
    return pa.Table.from_pylist(rows).cast(
        pa.schema(
            [
                ("image_id", pa.binary(16)),
                ("pair_id", pa.binary(16)),
                ("start", pa.int32()),
                ("end", pa.int32()),
                ("entity_id", pa.int64()),
                ("text_probability", pa.float32()),
                ("background_z", pa.float32()),
                ("truth", pa.int64()),
                ("image", pa.int64()),
            ]
        )
    )


def named(table: pa.Table) -> int:
    right = table.filter(pc.equal(table["entity_id"], table["truth"]))
    return len(pc.unique(right["image_id"]))


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    return fit(world(1500, seed=1), target_precision=0.95, fitted_on="a made world")


def test_a_table_without_a_vocabulary_has_weights_of_its_own() -> None:
    """Fitted without the feature, at the same threshold: its labels are as precise, and fewer."""
    seen, fresh = world(1500, seed=1), world(3000, seed=2)
    rng = np.random.default_rng(0)

    def with_gap(table: pa.Table) -> pa.Table:
        right = pc.equal(table["entity_id"], table["truth"]).to_numpy(zero_copy_only=False)
        return table.append_column("vocabulary_gap", pa.array(np.where(right, -1, 3) + rng.normal(size=len(right))))

    both = fit(with_gap(seen), target_precision=0.95)
    other = both.without_vocabulary
    assert other is not None
    assert other.threshold == both.threshold
    assert other.without_vocabulary is None
    assert fit(seen, target_precision=0.95).without_vocabulary is None
    told, blind = report(with_gap(fresh), both, named(fresh)), report(fresh, both, named(fresh))
    assert min(told["precision"], blind["precision"]) > 0.94
    assert told["recall"] > blind["recall"] + 0.02


def test_the_bar_holds_on_images_that_were_not_fitted_on(fitted: Calibration) -> None:
    """Catches: a threshold read off the fitting set promises more than new images give."""
    fresh = world(6000, seed=2)  # so many that chance moves the precision by a third of a point
    figures = report(fresh, fitted, named(fresh))
    assert figures["precision"] >= 0.95
    assert figures["recall"] >= 0.7
    assert fitted.measured["precision"] >= 0.95


def test_the_probability_of_a_label_is_the_share_of_right_ones(fitted: Calibration) -> None:
    fresh = world(4000, seed=9)
    labels = select(fresh, fitted, threshold=0.0)
    labels = labels.filter(pc.is_null(labels["reason"]))
    p = labels["probability"].to_numpy()
    right = pc.equal(labels["entity_id"], labels["truth"]).to_numpy(zero_copy_only=False)
    for low, high in ((0.5, 0.75), (0.75, 0.9), (0.9, 0.97), (0.97, 1.0)):
        here = (p >= low) & (p < high)
        assert right[here].mean() == pytest.approx(p[here].mean(), abs=0.08)


def test_a_higher_target_costs_recall(fitted: Calibration) -> None:
    strict = fit(world(1500, seed=1), target_precision=0.98)
    assert strict.threshold > fitted.threshold
    fresh = world(1500, seed=7)
    assert report(fresh, strict, named(fresh))["recall"] < report(fresh, fitted, named(fresh))["recall"]


def test_images_of_unknown_truth_are_left_out() -> None:
    table = world(400, seed=3, known=0.5)
    known = table.filter(pc.is_valid(table["truth"]))
    assert fit(table, 0.9).weights == fit(known, 0.9).weights
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        fit(world(20, seed=3, known=0.0))


def test_the_order_of_rows_changes_nothing() -> None:
    table = world(400, seed=4)
    other = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    assert np.allclose(fit(table, 0.9).weights, fit(other, 0.9).weights)


def test_a_target_out_of_reach_says_so() -> None:
    with pytest.raises(ValueError, match=r"no threshold reaches a precision of 0\.999"):
        fit(world(200, seed=5), target_precision=0.999)


def test_figures_can_be_shortened_for_print(fitted: Calibration) -> None:
    assert fitted.features == FITTED
    assert all(w == round(w, 4) for w in rounded(fitted).weights)


def with_truths(table: pa.Table, kinds: list[str]) -> pa.Table:
    """The table with what else is known: each image is, in turn, of the next kind: "known", "none" (what it shows is no
    candidate), or "not" (its first candidate is refuted, where that is wrong)."""
    is_right = pc.fill_null(pc.equal(table["entity_id"], table["truth"]), False)
    is_none = pa.array(np.array(kinds)[table["image"].to_numpy() % len(kinds)] == "none")
    table = table.filter(pc.invert(pc.and_(is_right, is_none)))
    kind = np.array(kinds)[table["image"].to_numpy() % len(kinds)]
    known = pa.array(kind == "known")
    first = [999 if truth == 100 else 100 for truth in table["truth"].to_pylist()]
    refuted = [[entity] if k == "not" else None for k, entity in zip(kind, first, strict=True)]
    rest = table.drop_columns(["truth"])
    return (
        rest.append_column("truth", pc.if_else(known, table["truth"], pa.scalar(None, pa.int64())))
        .append_column("nothing", pa.array(kind == "none"))
        .append_column("refuted", pa.array(refuted, pa.list_(pa.int64())))
        .append_column("wider", pa.array(np.zeros(len(kind), dtype=bool)))
    )


def flagged(table: pa.Table, rows: np.ndarray) -> pa.Table:
    return table.drop_columns(["wider"]).append_column("wider", pa.array(rows))


def test_every_candidate_of_an_image_of_nothing_known_is_a_negative() -> None:
    """The same as a truth that no candidate is."""
    table = with_truths(world(600, seed=1), ["known", "known", "known", "none"])
    elsewhere = pc.if_else(table["nothing"], -1, table["truth"])
    other = table.drop_columns(["truth", "nothing"]).append_column("truth", elsewhere)
    assert fit(table, 0.8).weights == fit(other, 0.8).weights
    assert fit(table, 0.8).threshold == fit(other, 0.8).threshold
    without = table.filter(pc.invert(table["nothing"]))
    assert fit(table, 0.8).weights != fit(without, 0.8).weights


def test_labels_on_images_of_nothing_known_raise_the_threshold() -> None:
    """Catches: a precision that is measured where the answer is among the candidates, and a web where it is not."""
    table = with_truths(world(2000, seed=1), ["known", "none"])
    without = table.filter(pc.invert(table["nothing"]))
    figures = fit(table, 0.75).measured
    assert 0 < figures["wrong_on_none"] <= figures["wrong"]
    assert figures["right"] + figures["wrong"] == figures["labels"]
    assert figures["precision"] == pytest.approx(figures["right"] / figures["labels"], abs=1e-4)
    naive = fit(without, 0.9)
    assert naive.measured["wrong_on_none"] == 0
    assert report(table, naive, named(table))["precision"] < report(without, naive, named(table))["precision"]
    assert fit(table, 0.9).threshold > 0
    assert report(table, fit(table, 0.75), named(table))["precision"] >= 0.75


def test_of_an_image_that_does_not_show_one_entity_only_that_one_is_a_negative() -> None:
    """The same as if its other candidates bore wider names, of which nothing is known either."""
    table = with_truths(world(900, seed=1), ["known", "known", "not"])
    is_not = pc.is_valid(table["refuted"])
    one = pc.and_(is_not, pc.equal(table["entity_id"], pc.list_element(pc.fill_null(table["refuted"], [0]), 0)))
    as_wider = flagged(table, np.asarray(pc.and_not(is_not, one)))
    as_wider = as_wider.drop_columns(["nothing", "refuted"]).append_column("nothing", is_not)
    whole = fit(table, 0.8)
    assert whole.weights == fit(as_wider, 0.8).weights
    assert whole.threshold == fit(as_wider, 0.8).threshold
    assert whole.weights != fit(table.filter(pc.is_valid(table["truth"])), 0.8).weights
    figures = report(table, whole, named(table))
    assert figures["undecided"] > 0
    assert figures["labels"] == figures["right"] + figures["wrong"] + figures["undecided"]
    assert figures["wrong_on_none"] == 0


def test_a_row_of_a_wider_name_is_left_out_of_the_fit_and_of_the_precision() -> None:
    """Catches: the dog that is a wrong label of a beagle's photo, and pulls the weights."""
    table = with_truths(world(900, seed=2), ["known", "none"])
    first_of_none = np.asarray(pc.and_(table["nothing"], pc.equal(table["entity_id"], 100)))
    wider = flagged(table, first_of_none)
    assert fit(wider, 0.6).weights != fit(table, 0.6).weights
    calibration = fit(table, 0.6)
    before, after = report(table, calibration, named(table)), report(wider, calibration, named(table))
    assert after["undecided"] > 0
    assert before["wrong"] == after["wrong"] + after["undecided"]
    assert (before["right"], before["recall"]) == (after["right"], after["recall"])
    assert after["precision"] > before["precision"]
    whatever = fit(flagged(table, np.asarray(pc.equal(table["entity_id"], table["truth"]).fill_null(False))), 0.6)
    assert whatever.weights == calibration.weights  # a right one stays right


def test_recall_is_of_images_whose_text_names_their_truth() -> None:
    table = with_truths(world(600, seed=3), ["known", "none"])
    is_right = pc.fill_null(pc.equal(table["entity_id"], table["truth"]), False)
    by_image = dict.fromkeys(table.filter(is_right)["image"].to_pylist())
    some = pa.array([n in by_image and n % 4 == 0 for n in table["image"].to_pylist()])
    told = table.append_column("named", some)
    wanted = len(pc.unique(told.filter(some)["image_id"]))
    calibration = fit(table, 0.6)
    labels = select(told, calibration)
    labels = labels.filter(pc.is_null(labels["reason"]))
    found = labels.filter(pc.and_(labels["named"], pc.equal(labels["entity_id"], labels["truth"])))
    assert report(told, calibration, wanted)["recall"] == round(len(pc.unique(found["image_id"])) / wanted, 4)
    nobody_says = table.append_column("named", pa.array(np.zeros(table.num_rows, dtype=bool)))
    assert report(nobody_says, calibration, 0)["recall"] == report(table, calibration, named(table))["recall"]


def test_images_that_are_too_few_or_have_nothing_right_say_so() -> None:
    with pytest.raises(CalibrationError, match=r"0 of \d+ candidates .* are right.*give more"):
        fit(with_truths(world(50, seed=3), ["none"]))
    table = world(50, seed=3)
    with pytest.raises(CalibrationError, match="on too few images"):
        fit(table.filter(pc.equal(table["image"], 0)))


def test_a_report_on_nothing_known_has_no_figures(fitted: Calibration) -> None:
    figures = report(world(20, seed=3, known=0.0), fitted, 0)
    assert set(figures.values()) == {0}


def test_probabilities_of_the_world_that_was_fitted_on_are_believed(fitted: Calibration) -> None:
    """Catches: a calibration error over all labels but the first candidates that are none, or without weights."""
    fresh = world(4000, seed=9)
    error = report(fresh, fitted, named(fresh))["calibration_error"]
    sure = replace(fitted, bias=fitted.bias + 3)
    assert 0 < error < 0.06
    assert report(fresh, sure, named(fresh))["calibration_error"] > error + 0.05
    assert fitted.measured["calibration_error"] < 0.06


def with_weights(table: pa.Table, weight: np.ndarray) -> pa.Table:
    return table.append_column("weight", pa.array(weight, pa.float64(), mask=np.isnan(weight)))


def test_labels_that_were_drawn_more_often_count_for_less(fitted: Calibration) -> None:
    """Marks of which those below .9 were drawn five times as often give the precision of all, and a threshold that
    holds it; unweighed, both are off."""
    fresh = world(6000, seed=3)
    whole = report(fresh, fitted, 0, threshold=0.5)
    probability = fitted.probability(fresh)
    rate = np.where(probability < 0.9, 1.0, 0.2)
    drawn = np.random.default_rng(0).random(len(rate)) < rate
    weighed = with_weights(fresh, np.where(drawn, 1 / rate, np.nan))
    found = report(weighed, fitted, 0, threshold=0.5)
    assert found["precision"] == pytest.approx(whole["precision"], abs=0.008)
    assert found["labels"] < 0.8 * whole["labels"]
    alike = with_weights(fresh, np.where(drawn, 1.0, np.nan))
    assert report(alike, fitted, 0, threshold=0.5)["precision"] < whole["precision"] - 0.015
    of_all, of_drawn, of_alike = (fit(t, 0.9) for t in (fresh, weighed, alike))
    assert of_drawn.threshold == pytest.approx(of_all.threshold, abs=0.06)
    assert of_alike.threshold > of_drawn.threshold + 0.04
    assert of_drawn.weights == of_all.weights  # what is known beside is fitted on, too


def test_equal_weights_change_no_threshold(fitted: Calibration) -> None:
    table = world(1500, seed=1)
    again = fit(with_weights(table, np.full(table.num_rows, 3.0)), target_precision=0.95)
    assert (again.threshold, again.weights) == (fitted.threshold, fitted.weights)


def drawn_of(table: pa.Table, number: int) -> pa.Table:
    weight = np.full(table.num_rows, np.nan)
    weight[:number] = 1.0
    return with_weights(table, weight)


def test_a_shift_finds_how_far_a_calibration_is_off(fitted: Calibration) -> None:
    off = replace(fitted, bias=fitted.bias + 1.0)
    table = world(3000, seed=5)
    made = shifted(drawn_of(table, 2_000), off, "here")
    assert (made.weights, made.threshold, made.fitted_on) == (off.weights, off.threshold, "here")
    assert made.bias == pytest.approx(fitted.bias, abs=3 * made.measured["shift_error"] + 0.1)
    assert made.measured["marks"] == 2_000
    assert made.measured["calibration_error"] < made.measured["before_calibration_error"]
    ten = shifted(drawn_of(table, 10), off)
    assert abs(ten.bias - off.bias) < 0.5
    with pytest.raises(CalibrationError, match="nothing to shift"):
        shifted(drawn_of(table, 0), off)


def test_a_shift_moves_both_ways_of_weighing() -> None:
    inner = Calibration(FITTED[:1], (1.0,), 0.25, 0.5)
    base = Calibration(FITTED[:1], (1.0,), 0.5, 0.5, without_vocabulary=inner)
    made = shifted(drawn_of(world(200, seed=5), 100), base)
    assert made.without_vocabulary is not None
    assert made.without_vocabulary.bias - inner.bias == pytest.approx(made.bias - base.bias)


@given(st.integers(0, 40), st.integers(0, 40))
def test_marks_pull_a_shift_their_way(right: int, wrong: int) -> None:
    """One more wrong mark never raises a bias."""
    if not right + wrong:
        return
    base = Calibration(("log_text_probability",), (0.0,), 0.0, 0.5)

    def shift(right: int, wrong: int) -> float:
        n = right + wrong
        ids = pa.array([i.to_bytes(16, "big") for i in range(n)], pa.binary(16))
        table = pa.table(
            {
                "image_id": ids, "pair_id": ids, "start": [0] * n, "end": [1] * n, "entity_id": [1] * n,
                "text_probability": [0.5] * n, "background_z": [1.0] * n, "weight": [1.0] * n,
                "truth": [1] * right + [2] * wrong,
            }
        )  # fmt: skip
        return shifted(table, base).bias

    now = shift(right, wrong)
    assert shift(right, wrong + 1) < now < shift(right + 1, wrong)
    assert (now > 0) == (right > wrong) or right == wrong
