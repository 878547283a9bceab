from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.evaluate import compare
from i2e_pipeline.evaluate.compare import CompareError, bootstrap
from i2e_pipeline.evaluate.results import Data, Model, Result, Results
from tests.examples import examples


def measured(label: str, values: list[float | None], classes: list[int] | None = None, **fields: Any) -> Results:
    known = [v for v in values if v is not None]
    result = Result(label, "set", "gpr", {"mAP": sum(known) / len(known)}, {}, {"mAP": values})
    clusters = {} if classes is None else {"set/gpr": classes}
    data = (Data("set", "gpr", "/set", "fingerprint", len(values), 1),)
    return Results(
        **{
            "models": (Model(label, label, "", "model", 4),),
            "data": data,
            "results": (result,),
            "clusters": clusters,
            **fields,
        }
    )


def only(differences: list[compare.Difference]) -> compare.Difference:
    (difference,) = differences
    return difference


def test_interval_of_independent_queries_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 4000)
    interval = bootstrap(values, np.arange(4000))
    assert interval is not None
    half = 1.96 * values.std() / np.sqrt(4000)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_copies_of_a_query_do_not_narrow_the_interval() -> None:
    """Catches: resampling images, which takes ten images of a class for ten independent draws."""
    values = np.random.default_rng(0).random(200)
    once, tenfold = bootstrap(values, np.arange(200)), bootstrap(values.repeat(10), np.arange(200).repeat(10))
    assert once is not None
    assert tenfold is not None
    assert tenfold.low == pytest.approx(once.low, abs=1e-12)
    assert tenfold.high == pytest.approx(once.high, abs=1e-12)
    assert tenfold.clusters == 200


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    clusters = np.arange(60).repeat(5)
    hits = 0
    for seed in range(200):
        values = rng.normal(size=60).repeat(5) + rng.normal(size=300)
        interval = bootstrap(values, clusters, draws=500, seed=seed)
        assert interval is not None
        hits += interval.low <= 0 <= interval.high
    assert 180 <= hits <= 199


def test_interval_does_not_depend_on_the_order_of_draws_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = np.random.default_rng(2).random(300), np.arange(300) // 3
    whole = bootstrap(values, clusters)
    monkeypatch.setattr(compare, "_BLOCK", 777)
    assert bootstrap(values, clusters) == whole


def test_seeds_differ_and_a_seed_is_repeated() -> None:
    values, clusters = np.random.default_rng(2).random(300), np.arange(300)
    assert bootstrap(values, clusters, seed=1) == bootstrap(values, clusters, seed=1)
    assert bootstrap(values, clusters, seed=1) != bootstrap(values, clusters, seed=2)


@settings(max_examples=examples(40))
@given(st.lists(st.floats(0, 1), min_size=20, max_size=60), st.integers(1, 3))
def test_interval_lies_among_the_values(values: list[float], per_class: int) -> None:
    interval = bootstrap(np.array(values), np.arange(len(values)) // per_class, draws=200)
    if interval is not None:
        assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_queries_that_do_not_count_change_nothing() -> None:
    values = np.random.default_rng(0).random(50)
    with_gaps = np.concatenate([values, [np.nan, np.nan]])
    assert bootstrap(with_gaps, np.arange(52)) == bootstrap(values, np.arange(50))


def test_few_classes_give_no_interval() -> None:
    assert bootstrap(np.random.default_rng(0).random(90), np.arange(90) % 9) is None
    difference = only(compare.compare(measured("a", [0.1, 0.2], [0, 1]), measured("b", [0.9, 0.9], [0, 1])))
    assert difference.verdict == "too few to tell"


def test_a_model_against_itself_shows_no_difference() -> None:
    values = np.random.default_rng(0).random(40).tolist()
    difference = only(compare.compare(measured("a", values), measured("b", values)))
    assert difference.difference == 0
    assert difference.verdict == "no difference seen"
    assert difference.by == "queries"


@pytest.mark.parametrize(("step", "verdict"), [(0.2, "b is better"), (-0.2, "b is worse")])
def test_a_difference_at_every_query_is_seen(step: float, verdict: str) -> None:
    values = np.random.default_rng(0).random(40)
    difference = only(compare.compare(measured("a", values.tolist()), measured("b", (values + step).tolist())))
    assert difference.verdict == verdict
    assert difference.difference == pytest.approx(step)


def test_pairing_sees_what_two_separate_intervals_would_not() -> None:
    values = np.random.default_rng(0).random(200)
    difference = only(compare.compare(measured("a", values.tolist()), measured("b", (values + 0.01).tolist())))
    assert difference.verdict == "b is better"


def test_results_on_other_data_are_refused() -> None:
    a, b = measured("a", [0.5] * 12), measured("b", [0.5] * 12)
    other = measured("b", [0.5] * 12, data=(Data("set", "gpr", "/elsewhere", "another", 12, 1),))
    with pytest.raises(CompareError, match=r"set is not the same data.*/elsewhere"):
        compare.compare(a, other)
    renamed = Results(b.models, b.data, (Result("b", "set", "knn", {"k=10": 0.5}),))
    with pytest.raises(CompareError, match="nothing was measured in both: set gpr in the first file, set knn"):
        compare.compare(a, renamed)


def test_other_numbers_of_queries_are_refused() -> None:
    with pytest.raises(CompareError, match="12 queries of a and 13 of b"):
        compare.compare(measured("a", [0.5] * 12), measured("b", [0.5] * 13))


def test_files_of_several_models_are_paired_by_label() -> None:
    one = measured("a", [0.5] * 12)
    two = Results((*one.models, Model("c", "c", "", "model", 4)), one.data, one.results)
    assert only(compare.compare(one, two)).second == "a (second file)"
    with pytest.raises(CompareError, match="no model is in both files"):
        compare.compare(two, measured("b", [0.5] * 12))


def test_models_of_one_file_are_compared_with_its_first() -> None:
    a, b = measured("a", [0.4] * 12), measured("b", [0.6] * 12)
    both = Results(a.models + b.models, a.data, a.results + b.results)
    difference = only(compare.between(both))
    assert (difference.first, difference.second, difference.verdict) == ("a", "b", "b is better")
    assert "+20.00" in compare.table([difference])


def test_a_figure_that_is_no_mean_over_queries_is_not_tested() -> None:
    a, b = (
        Results((Model(m, m, "", "model", 4),), (), (Result(m, "set", "knn", {"x": v}),))
        for m, v in (("a", 0.1), ("b", 0.9))
    )
    assert only(compare.compare(a, b)).verdict == "not tested"


def test_domains_are_compared_on_their_own_queries() -> None:
    values = np.random.default_rng(0).random(40)
    groups = {"set/gpr": {"domain": ["a", "b"] * 20}}
    better = values + np.array([0.2, 0.0] * 20)
    one, two = (
        Results(
            r.models,
            r.data,
            (replace(r.results[0], parts={"domain": {"a": v[::2].mean(), "b": v[1::2].mean()}}),),
            groups=groups,
        )
        for r, v in ((measured("x", values.tolist()), values), (measured("y", better.tolist()), better))
    )
    found = {d.figure: d for d in compare.compare(one, two)}
    assert list(found) == ["mAP", "mAP, a", "mAP, b"]
    assert (found["mAP, a"].verdict, found["mAP, a"].queries) == ("y is better", 20)
    assert found["mAP, b"].verdict == "no difference seen"
