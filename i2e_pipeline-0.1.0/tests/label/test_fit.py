from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from i2e_pipeline.label.calibration import FEATURES, Calibration, select
from i2e_pipeline.label.fit import fit, report, rounded


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


def test_the_bar_holds_on_images_that_were_not_fitted_on(fitted: Calibration) -> None:
    """Catches: a threshold read off the fitting set promises more than new images give."""
    for seed in range(2, 6):
        fresh = world(1500, seed)
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
    assert fitted.features == tuple(FEATURES)
    assert all(w == round(w, 4) for w in rounded(fitted).weights)
