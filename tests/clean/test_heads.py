"""Heads: files of them round trip, odd ones are refused by name; fitting finds what is there; kernels lose no row."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from i2e_pipeline.clean import fitting, heads, policy
from i2e_pipeline.clean.heads import About, Head, HeadError, HeadFailed, Judge
from i2e_pipeline.clean.stages import Policy, without_people
from i2e_pipeline.core.config import CleanConfig, ConfigError, PolicyHead, ScoreConfig
from i2e_pipeline.core.domains import Domains
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.schemas import IMAGE_VECTORS
from i2e_pipeline.images.kept import KeptVectors
from i2e_pipeline.sample.train_heads import FLAGS
from i2e_pipeline.stages import from_tree
from tests.small_models import write_model

ABOUT = About(finds="watermarks", model="scorer", vectors_of="ab", width=3, threshold=0.5)
LAYER = (np.array([[1.0, -1.0, 0.5]], np.float32), np.array([0.25], np.float32))


def stored(about: Any, tensors: dict[str, Any], path: Path) -> str:
    path.write_bytes(save(tensors, metadata={"i2e_head": json.dumps(about)}))
    return str(path)


def about(**other: Any) -> dict[str, Any]:
    return {"format": 1, "finds": "w", "model": "m", "vectors_of": "v", "width": 3, "threshold": 0.5, **other}


TENSORS = {"0.weight": LAYER[0], "0.bias": LAYER[1]}
finite = st.floats(-100, 100, width=32)
OUTPUTS = ("probability", "number")


@settings(max_examples=30, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_a_file_gives_back_the_head_that_was_written(
    data: st.DataObject, sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    widths = [*sizes, 1]
    numbers = st.integers(-1000, 1000)
    layers = [
        (
            np.array(
                data.draw(st.lists(st.lists(numbers, min_size=i, max_size=i), min_size=o, max_size=o)), np.float32
            ),
            np.array(data.draw(st.lists(numbers, min_size=o, max_size=o)), np.float32),
        )
        for i, o in itertools.pairwise(widths)
    ]
    said = About(
        finds=data.draw(st.text()),
        model=data.draw(st.text()),
        vectors_of="ab",
        width=sizes[0],
        threshold=data.draw(finite if (output := data.draw(st.sampled_from(OUTPUTS))) == "number" else st.floats(0, 1)),
        drops=data.draw(st.sampled_from(["above", "below"])),
        output=output,
        activation=data.draw(st.sampled_from(["relu", "none"])),
        measured={"precision": 0.5},
    )
    path = str(tmp_path_factory.mktemp("heads") / "a.safetensors")
    heads.write(path, Head(said, layers))
    back = heads.read(path)
    assert back.about == said
    vectors = np.arange(2 * sizes[0], dtype=np.float32).reshape(2, -1)
    np.testing.assert_array_equal(back(vectors), Head(said, layers)(vectors))


@pytest.mark.parametrize(
    ("said", "tensors", "why"),
    [
        (about(format=2), TENSORS, "format is 2"),
        (about(extra=1), TENSORS, "extra is not known"),
        (about(threshold="high"), TENSORS, "threshold is no number"),
        (about(threshold=math.inf), TENSORS, "threshold is no number"),
        (about(threshold=1.5), TENSORS, "threshold is 1.5, and its numbers lie between 0 and 1"),
        (about(output="number", scale=[1, 10]), TENSORS, "threshold is 0.5, and its numbers lie between 1 and 10"),
        (about(output="number", scale=[1]), TENSORS, "no two numbers"),
        (about(drops="left"), TENSORS, "drops is 'left'"),
        (about(width=4), TENSORS, "width is 4, and its first layer takes 3"),
        ({"format": 1}, TENSORS, "missing"),
        ([1], TENSORS, "is no object"),
        (about(), {"weight": LAYER[0]}, "its tensors are weight"),
        (about(), {**TENSORS, "2.weight": LAYER[0], "2.bias": LAYER[1]}, "its tensors are"),
        (about(), {"0.weight": np.ones((2, 3), np.float32), "0.bias": np.ones(2, np.float32)}, "2 outputs"),
        (about(), {**TENSORS, "0.bias": np.ones(2, np.float32)}, "does not fit"),
        (about(), {**TENSORS, "0.bias": np.array([np.nan], np.float32)}, "not finite"),
    ],
)
def test_an_odd_file_is_refused_with_its_name_and_the_remedy(
    said: Any, tensors: dict[str, Any], why: str, tmp_path: Path
) -> None:
    path = stored(said, tensors, tmp_path / "odd.safetensors")
    with pytest.raises(HeadError, match=rf"odd\.safetensors.*{why}.*`i2e head train`"):
        heads.read(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Catches: an error of the reader's own, without the name of the file."""
    path = tmp_path_factory.mktemp("damaged") / "a.safetensors"
    whole = Path(stored(about(), TENSORS, path)).read_bytes()
    end = data.draw(st.integers(0, len(whole)))
    damaged = bytearray(whole[:end])
    for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(HeadError):
        heads.read(str(path))


def test_layers_are_as_written_by_hand() -> None:
    hidden = (np.array([[1.0, 0, 0], [0, -1.0, 0]], np.float32), np.array([0, 0], np.float32))
    last = (np.array([[2.0, 3.0]], np.float32), np.array([1.0], np.float32))
    plain = About("a", "m", "v", 3, 0.5, output="number")
    vectors = np.array([[1, 1, 0], [-1, -1, 9]], np.float16)
    assert Head(plain, [hidden, last])(vectors).tolist() == [3.0, 4.0]
    linear = About("a", "m", "v", 3, 0.5, output="number", activation="none")
    assert Head(linear, [hidden, last])(vectors).tolist() == [0.0, 2.0]
    assert Head(ABOUT, [LAYER])(np.zeros((1, 3), np.float16))[0] == pytest.approx(1 / (1 + math.exp(-0.25)), abs=1e-5)


def test_a_score_does_not_depend_on_its_batch() -> None:
    vectors = np.random.default_rng(0).normal(size=(257, 3)).astype(np.float16)
    whole = Head(ABOUT, [LAYER])(vectors)
    assert [float(Head(ABOUT, [LAYER])(one[None])[0]) for one in vectors] == whole.tolist()


# Fitting


def separable(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    wanted = draw.random(count) < 0.4
    vectors = draw.normal(size=(count, 8)) + 3 * wanted[:, None] * np.eye(8)[0]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16), wanted


def test_newton_finds_the_weights_that_gradients_agree_on() -> None:
    """At the minimum the slope is 0: residuals are in balance with what draws weights to 0."""
    vectors, wanted = separable(500)
    weight, bias = fitting.fit(vectors, wanted, 1.0)
    p = 1 / (1 + np.exp(-(vectors.astype(np.float64) @ weight[0] + bias[0])))
    assert abs((p - wanted).sum()) < 1e-2
    spread = vectors.astype(np.float64).std(axis=0)
    centred = (vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)) / spread
    np.testing.assert_allclose(centred.T @ (p - wanted) + weight[0] * spread, 0, atol=1e-2)


def test_what_can_be_told_apart_wholly_gives_finite_weights() -> None:
    vectors = np.array([[1, 0], [0, 1]] * 50, np.float16)
    weight, bias = fitting.fit(vectors, np.array([True, False] * 50), 1.0)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
    constant, _ = fitting.fit(np.ones((10, 2), np.float16), np.array([True] * 5 + [False] * 5), 1.0)
    assert np.abs(constant).max() < 1e-3


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40), st.floats(0.1, 1))
def test_the_threshold_is_the_lowest_that_is_precise_enough(rows: list[tuple[int, bool]], precision: float) -> None:
    numbers, wanted = np.array([n for n, _ in rows], float), np.array([w for _, w in rows])

    def precise(threshold: float) -> bool:
        return bool(wanted[numbers >= threshold].mean() >= precision)

    good = [t for t in sorted(set(numbers.tolist())) if precise(t)]
    assert fitting.threshold_for(numbers, wanted, precision) == (good[0] if good else None)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    numbers, wanted = np.array([n for n, _ in rows], float), np.array([w for _, w in rows])
    pairs = [(a > b) + 0.5 * (a == b) for a in numbers[wanted] for b in numbers[~wanted]]
    assert fitting.auc(numbers, wanted) == pytest.approx(np.mean(pairs) if pairs else 0.0)


def test_a_group_is_in_one_part_and_the_parts_are_as_large_as_said() -> None:
    parts = fitting.parts([f"Q{n % 700}" for n in range(2100)])
    assert all(len(set(parts[n::700].tolist())) == 1 for n in range(700))
    shares = np.bincount(parts, minlength=3) / len(parts)
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.05)


def test_a_head_is_measured_on_images_that_chose_nothing() -> None:
    vectors, wanted = separable(2000)
    part = fitting.parts([str(n) for n in range(2000)])
    asked = {"finds": "x", "model": "m", "vectors_of": "v", "precision": 0.9, "l2": 1.0, "on": "draws"}
    head, measured = fitting.trained(vectors, wanted, part, **asked)
    assert measured.images == (part == fitting.MEASURE).sum()
    assert measured.precision is not None
    assert measured.precision > 0.8
    assert head.about.measured["recall"] == measured.recall
    # Other labels of the images that it is measured on change the figures, and not the head.
    other = wanted ^ (part == fitting.MEASURE)
    again, worse = fitting.trained(vectors, other, part, **asked)
    np.testing.assert_array_equal(again.layers[0][0], head.layers[0][0])
    assert again.about.threshold == head.about.threshold
    assert worse.auc == pytest.approx(1 - measured.auc, abs=2e-3)
    with pytest.raises(HeadError, match="at least 20 of each"):
        fitting.trained(vectors[:60], wanted[:60], part[:60], **asked)
    noise = np.random.default_rng(1).random(2000) < 0.5
    with pytest.raises(HeadError, match=r"no threshold gives a precision of 0\.95"):
        fitting.trained(vectors, noise, part, **{**asked, "precision": 0.95})


# What a config names


def test_a_head_that_was_made_for_other_vectors_is_refused_before_anything_runs(tmp_path: Path) -> None:
    score = ScoreConfig(model=write_model(tmp_path / "vit", "vit"))
    path = str(tmp_path / "w.safetensors")
    heads.write(path, Head(ABOUT, [LAYER]))
    named = PolicyHead(reason="watermark", head=path)
    with pytest.raises(HeadError, match=r"clean\.heads\.0\.head=.*reads vectors of scorer.*set clean\.heads\.0\.model"):
        heads.judge(named, 0, score)
    with pytest.raises(HeadError, match=r"clean\.heads\.1\.model=local-dir"):
        heads.judge(PolicyHead(reason="watermark", head=path, model=score.model), 1, ScoreConfig())
    fitting_one = About("w", "clip", heads.vectors_of(score), 3, 0.25)
    heads.write(path, Head(fitting_one, [LAYER]))
    assert heads.judge(named, 0, score).threshold == 0.25
    bfloat16 = score.model_copy(update={"dtype": "bfloat16"})
    assert heads.judge(named.model_copy(update={"threshold": 0.75}), 0, bfloat16).threshold == 0.75
    for beyond in (5.0, -0.1):
        with pytest.raises(
            HeadError, match=rf"clean\.heads\.2\.threshold={beyond:g}: .*between 0 and 1; its own threshold is 0\.25"
        ):
            heads.judge(named.model_copy(update={"threshold": beyond}), 2, score)
    score_of_10 = About(
        "beauty", "clip", heads.vectors_of(score), 3, 5.0, drops="below", output="number", scale=(1, 10)
    )
    heads.write(f"{tmp_path}/ten", Head(score_of_10, [LAYER]))
    assert heads.judge(PolicyHead(reason="low_aesthetic", head=f"{tmp_path}/ten"), 0, score).threshold == 5.0
    with pytest.raises(HeadError, match=r"threshold=0\.5: the numbers of .*ten \(beauty\) lie between 1 and 10"):
        heads.judge(PolicyHead(reason="low_aesthetic", head=f"{tmp_path}/ten", threshold=0.5), 0, score)
    with pytest.raises(HeadError, match="reason=low_aesthetic those below"):
        heads.judge(PolicyHead(reason="low_aesthetic", head=path), 0, score)
    with pytest.raises(HeadError, match=r"w\.safetensors fails on float32 vectors \(2, 7\)"):
        policy.fits(heads.judge(named, 0, score), 7)


def test_a_function_of_somebodys_own_is_a_head(tmp_path: Path) -> None:
    (tmp_path / "own_head.py").write_text("def bright(vectors):\n    return vectors[:, 0]\n")
    place = f"{tmp_path}/own_head.py:bright"
    with pytest.raises(ValueError, match="set threshold"):
        PolicyHead(reason="unsafe", head=place)
    named = PolicyHead(reason="low_aesthetic", head=place, threshold=0.5)
    judge = heads.judge(named, 0, ScoreConfig())
    numbers, gone = judge(np.array([[0.25, 9], [0.5, 9]], np.float16))
    assert (numbers.tolist(), gone.tolist()) == ([0.25, 0.5], [True, False])
    before = heads.content_of(named, 0)
    (tmp_path / "own_head.py").write_text("def bright(vectors):\n    return -vectors[:, 0]\n")
    assert heads.content_of(named, 0) != before
    bad = Judge("unsafe", "bad", lambda vectors: vectors, 0.5, "above")
    with pytest.raises(HeadError, match="bad gave 4 numbers for 2 vectors"):
        bad(np.zeros((2, 2), np.float16))


def test_a_function_that_raises_is_named_with_its_rows_and_keeps_what_it_raised() -> None:
    """Catches: `KeyError: 3` of a unit, and nobody knows which of five functions it was, nor on which images."""

    def mine(vectors: Any) -> Any:
        if (vectors[:, 0] > 0.6).any():
            raise KeyError(3)
        return vectors[:, 0]

    judge = Judge("unsafe", "my_package.policy:mine", mine, 0.5, "above")
    vectors = Given({0: 0.25, 1: 0.25, 2: 0.75})
    rows = batches([None] * 3, 2)
    with pytest.raises(
        HeadFailed,
        match=r"^my_package\.policy:mine fails on float32 vectors \(1, 1\) of shard 0, row 2, to shard 0, row 2: Key",
    ) as raised:
        list(policy.permitted(rows, Domains(()), [policy.Looked(vectors, [(0, judge)])], []))
    assert isinstance(raised.value.__cause__, KeyError)
    assert not isinstance(raised.value, I2EError), "Spark tries such a task again"
    assert vectors.closed
    odd = Judge("unsafe", "odd", lambda vectors: vectors * np.nan, 0.5, "above")
    with pytest.raises(HeadError, match=r"odd gave 2 numbers .* of shard 0, row 0, to shard 0, row 1, or some that"):
        list(policy.permitted(batches([None] * 2, 2), Domains(()), [policy.Looked(vectors, [(0, odd)])], []))


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        (np.array([np.nan, 1], "<f2").tobytes(), "has NaN or infinity"),
        (np.array([1, np.inf], "<f2").tobytes(), "has NaN or infinity"),
        (np.array([1], "<f2").tobytes(), "is not as wide as the others"),
        (b"abc", "is not as wide as the others"),
    ],
)
def test_a_stored_vector_that_is_none_is_named_with_file_shard_and_row(spoilt: bytes, why: str, tmp_path: Path) -> None:
    path = str(tmp_path / "vectors.parquet")
    good = np.array([1, 0], "<f2").tobytes()
    rows = [{"shard": 4, "row": n, "image_id": bytes([n]) * 16, "width": 1, "height": 1, "image_hash": b"h" * 32,
             "named": False, "vector": spoilt if n in (7, 8) else good} for n in range(10)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, IMAGE_VECTORS), path)

    def no_model() -> Any:
        raise AssertionError("no image is encoded")

    def no_shard(shard: int) -> Any:
        raise AssertionError("no image is opened")

    kept = policy.Kept(KeptVectors({4: [path]}), policy.Encoded(no_shard, no_model, ScoreConfig()))

    def asked(numbers: list[int]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"shard": pa.array([4] * len(numbers), pa.int32()), "row": pa.array(numbers)})

    vectors, refused = kept.of(asked([6, 0]))
    assert (vectors.tolist(), refused) == ([[1.0, 0.0]] * 2, {})
    said = rf"vectors\.parquet: the stored vector of shard 4, row 8 \(and of 1 more\) {why}: `i2e run --redo score`"
    with pytest.raises(HeadError, match=said):
        kept.of(asked([8, 7, 3, 4, 5]))


def test_people_and_heads_must_agree() -> None:
    head = {"reason": "person_photo", "head": "p.safetensors"}
    for clean, why in (
        ({"people": "drop_photos"}, "wants a head that finds people"),
        ({"people": "drop_labels", "heads": [head]}, "people=drop_photos or people=drop"),
        ({"only_domains": ["no domain"]}, "is no domain"),
    ):
        with pytest.raises(ConfigError, match=why):
            from_tree({"clean": clean}, "test")
    assert CleanConfig().people == "keep"
    found = from_tree({"clean": {"people": "drop", "heads": [head], "only_domains": ["*.Example.org"]}}, "test").clean
    assert found.only_domains == ("example.org",)
    # In another order, twice, and in other letters they are the same list, and cost nothing again.
    lists = (["b.org", "m\u00fcnchen.de", "a.org"], ["xn--mnchen-3ya.de", "a.org", "B.org", "a.org."])
    one, two = (from_tree({"clean": {"only_domains": some}}, "test") for some in lists)
    assert one.clean.only_domains == ("a.org", "b.org", "xn--mnchen-3ya.de")
    assert Policy().settings(one) == Policy().settings(two)
    assert found.drops_labels_of_people


# Kernels


def test_labels_of_people_go_and_pairs_without_another_are_rejects() -> None:
    rows = pa.table(
        {
            "pair_id": pa.array([b"a" * 16, b"b" * 16, b"c" * 16], pa.binary()),
            "shard": pa.array([0, 0, 0], pa.int32()),
            "row": pa.array([1, 2, 3]),
            "labels": [
                [{"entity_id": 1, "human": False}, {"entity_id": 2, "human": True}],
                [{"entity_id": 2, "human": True}, {"entity_id": 5, "human": True}],
                [{"entity_id": 3, "human": False}],
            ],
        }
    )
    found = list(without_people(iter(rows.to_batches())))
    kept = found[0][1].to_pydict()
    assert list(zip(kept["pair_id"], kept["entity_id"], strict=True)) == [(b"a" * 16, 1), (b"c" * 16, 3)]
    (gone,) = found[1][1].to_pylist()
    assert (gone["id"], gone["reason"], gone["detail"], gone["row"]) == (b"b" * 16, "person_entity", "Q2, Q5", 2)
    assert found[2][1].to_pylist() == [{"note": "labels of people", "rows": 3}]


class Given:
    """Vectors by row."""

    def __init__(self, by_row: dict[int, Any]) -> None:
        self.by_row, self.asked, self.closed = by_row, [], False  # type: ignore[var-annotated]

    def of(self, rows: pa.RecordBatch) -> tuple[np.ndarray, dict[int, Any]]:
        numbers = rows.column("row").to_pylist()
        self.asked += numbers
        refused = {i: self.by_row[n] for i, n in enumerate(numbers) if not isinstance(self.by_row[n], float)}
        values = [0.0 if i in refused else self.by_row[n] for i, n in enumerate(numbers)]
        return np.array(values, np.float16)[:, None], refused

    def close(self) -> None:
        self.closed = True


def batches(urls: list[str | None], size: int) -> Iterator[pa.RecordBatch]:
    table = pa.table(
        {
            "pair_id": pa.array([b"%016d" % n for n in range(len(urls))], pa.binary()),
            "shard": pa.array([0] * len(urls), pa.int32()),
            "row": pa.array(range(len(urls)), pa.int64()),
            "url": pa.array(urls, pa.string()),
        }
    )
    return iter(table.to_batches(size))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_first_reason_stands_and_no_row_is_lost(size: int) -> None:
    refused = policy.Rejected("not_an_image", "html")  # type: ignore[arg-type]
    urls = ["https://a.example.org/1", "https://other.example/2", None, *["http://example.org/x"] * 3]
    vectors = Given({0: 0.25, 1: 0.75, 2: 0.75, 3: 0.75, 4: refused, 5: 0.5})
    first: Callable[[Any], Any] = lambda v: v[:, 0]
    judges = [(0, Judge("unsafe", "a", first, 0.7, "above")), (1, Judge("low_aesthetic", "b", first, 0.4, "below"))]
    out = list(policy.permitted(batches(urls, size), Domains(["example.org"]), [policy.Looked(vectors, judges)], []))
    rejects = [row for table, batch in out if table == "rejects" for row in batch.to_pylist()]
    kept = [row for table, batch in out if table == "permitted" for row in batch.to_pylist()]
    assert {row["row"]: (row["reason"], row["detail"]) for row in rejects} == {
        0: ("low_aesthetic", "b gives 0.25000, bar 0.4"),
        1: ("other_domain", None),
        2: ("other_domain", "it has no address"),
        3: ("unsafe", "a gives 0.75000, bar 0.7"),
        4: ("not_an_image", "html"),
    }
    assert kept == [{"pair_id": b"%016d" % 5, "scores": [0.5, 0.5]}]
    assert sorted(vectors.asked) == [0, 3, 4, 5]
    assert vectors.closed


def test_domains_alone_ask_no_head() -> None:
    out = list(policy.permitted(batches(["http://a.b/1"], 5), Domains(["a.b"]), [], []))
    assert out[0][1].to_pylist() == [{"pair_id": b"%016d" % 0, "scores": []}]


def test_the_shipped_head_reads_the_sample_s_vectors() -> None:
    head = heads.read(str(FLAGS))
    scorer = ScoreConfig(model=f"local-dir:{FLAGS.parent.parent}/scorer")
    assert head.about.vectors_of == heads.vectors_of(scorer)
    assert heads.judge(PolicyHead(reason="unwanted", head=str(FLAGS)), 0, scorer).threshold == head.about.threshold
    assert FLAGS.stat().st_size < 10_000
    for measured in (head.about.measured, head.about.measured["in_the_held_out_style"]):
        assert measured["precision"] >= 0.85
        assert measured["recall"] >= 0.7
