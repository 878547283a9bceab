"""ROxford's and RParis's figures are their authors', and a ground truth cannot run code."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.evaluate.from_vectors import measure_vectors
from i2e_pipeline.evaluate.revisited import (
    GroundTruth,
    GroundTruthError,
    Query,
    lowered,
    precision_at,
    read_ground_truth,
    read_pickle,
    revisited,
    trapezoid_average_precision,
)
from i2e_pipeline.evaluate.vectors import VectorsError
from tests.examples import examples


def indices(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def truth(gallery: int, *queries: tuple[list[int], list[int], list[int]]) -> GroundTruth:
    names = tuple(f"image{i}" for i in range(gallery))
    return GroundTruth(
        names,
        tuple(f"query{i}" for i in range(len(queries))),
        tuple(Query(indices(*easy), indices(*hard), indices(*junk)) for easy, hard, junk in queries),
    )


def content(**changes: Any) -> dict[str, Any]:
    """A ground truth of five images and two queries, with changes of the first query."""
    first = {"bbx": [1.0, 2.0, 30.5, 40.0], "easy": [0, 1], "hard": [2], "junk": [4]}
    second = {"bbx": [0, 0, 5, 5], "easy": [], "hard": [3], "junk": []}
    return {"imlist": list("abcde"), "qimlist": ["q", "r"], "gnd": [first | changes, second]}


def brute(order: list[int], relevant: set[int], ignored: set[int]) -> tuple[float | None, list[float]]:
    """The protocol in its plainest form: the ignored are struck from the list, then it is read from the top."""
    kept = [item for item in order if item in relevant or item not in ignored]
    if not relevant:
        return None, []
    area, hits = 0.0, 0
    for place, item in enumerate(kept):
        before = hits / place if place else 1.0
        if item in relevant:
            hits += 1
            area += (before + hits / (place + 1)) / 2 / len(relevant)
    last = max(kept.index(item) for item in relevant) + 1
    at = [len(relevant.intersection(kept[: min(last, k)])) / min(last, k) for k in (1, 5, 10)]
    return area, at


# Figures


def test_figures_equal_the_authors_code(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "eval" / "revisitop"
    golden = json.loads((folder / "golden.json").read_text())["roxford5k"]
    for suffix, block_mb in ((".pkl", 256.0), (".json", 0.5)):
        vectors, ground_truth = str(folder / "features_roxford5k.npz"), str(folder / f"gnd_roxford5k{suffix}")
        result = measure_vectors(vectors, "revisited", ground_truth, block_mb)
        for name, figures in golden.items():
            found = result["results"]["revisited"][name]
            assert found["mAP"] == pytest.approx(figures["mAP"], abs=1e-6)
            assert found["mP@k"] == pytest.approx(figures["mP@k"], abs=1e-6)
            assert found["queries_without_positives"] == figures["queries_without_positives"]
            assert [ap is None for ap in found["ap"]] == [ap is None for ap in figures["ap"]]
        (tmp_path / "result.json").write_text(json.dumps(result))
        script = real_data.parent / "accept" / "retrieval.py"
        if not script.is_file():
            pytest.skip("no accept/retrieval.py beside I2E_REAL_DATA")
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "result.json"), str(folder / "golden.json"), "--set",
             "roxford5k"], capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_hand_cases_with_junk_equal_the_authors_code(real_data: Path) -> None:
    for case in json.loads((real_data / "eval/revisitop/tiny_cases.json").read_text()):
        place = {item: rank for rank, item in enumerate(case["ranks"])}
        positive = lowered(indices(*(place[i] for i in case["ok"])), indices(*(place[i] for i in case["junk"])))
        assert trapezoid_average_precision(positive) == pytest.approx(case["ap"])
        if len(positive):
            assert [precision_at(positive, k) for k in (1, 5, 10)] == pytest.approx(case["p_at_1_5_10"])


@settings(max_examples=examples(80))
@given(
    scores=st.lists(st.integers(-2, 2), min_size=1, max_size=25),
    roles=st.lists(st.sampled_from(["easy", "hard", "junk", "none"]), min_size=25, max_size=25),
)
def test_any_ranking_with_ties_equals_brute_force(scores: list[int], roles: list[str]) -> None:
    """Queries without positives and galleries of junk alone among them."""
    of = {role: [i for i in range(len(scores)) if roles[i] == role] for role in ("easy", "hard", "junk")}
    gallery = np.array(scores, dtype=np.float32)[:, None] + 10
    found = revisited(np.ones((1, 1)), gallery, truth(len(scores), (of["easy"], of["hard"], of["junk"])), metric="dot")
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    easy, hard, junk = (set(of[role]) for role in ("easy", "hard", "junk"))
    for name, relevant, ignored in (
        ("easy", easy, junk | hard),
        ("medium", easy | hard, junk),
        ("hard", hard, junk | easy),
    ):
        area, at = brute(order, relevant, ignored)
        assert found[name]["ap"] == [None if area is None else pytest.approx(area)]
        assert found[name]["mAP"] == (None if area is None else pytest.approx(area))
        assert list(found[name]["mP@k"].values()) == ([None] * 3 if area is None else pytest.approx(at))
        assert found[name]["queries_without_positives"] == (area is None)


def test_queries_without_positives_are_left_out_of_the_mean() -> None:
    x = np.eye(4, dtype=np.float32)
    found = revisited(x[:2], x, truth(4, ([0], [], []), ([], [3], [])))
    assert found["easy"] == {
        "mAP": 1.0,
        "mP@k": {"1": 1.0, "5": 1.0, "10": 1.0},
        "ap": [1.0, None],
        "precision at": {"1": [1.0, None], "5": [1.0, None], "10": [1.0, None]},
        "queries_without_positives": 1,
    }
    assert found["medium"]["queries_without_positives"] == 0


def test_precision_at_k_ends_at_the_last_positive() -> None:
    """Catches: mP@10 divided by 10 although the third and last positive stands at rank 4."""
    assert precision_at(indices(0, 2, 3), 10) == 3 / 4
    assert precision_at(indices(0, 2, 30), 10) == 2 / 10


def test_images_named_twice_are_noted_and_scored_as_the_authors_code_does(tmp_path: Path) -> None:
    """Its recall divides by the length of the list, its ranks are lowered by all that the ignored lists name."""
    (tmp_path / "g.json").write_text(json.dumps(content(easy=[1, 1, 0], hard=[0], junk=[4])))
    read = read_ground_truth(str(tmp_path / "g.json"))
    assert read.notes == ("gnd[0]: easy lists image 1 more than once", "gnd[0]: image 0 is both easy and hard")
    found = revisited(np.ones((2, 1)), np.arange(9, 4, -1)[:, None], read, metric="dot")
    # easy: hits at rank 0, and at 1, lowered to 0 by image 0 that is also hard; three are listed.
    assert found["easy"]["ap"][0] == pytest.approx(((1 + 1) / 2 + (1 + 2) / 2) / 3)


def test_stored_vectors_are_ranked_by_their_inner_product(tmp_path: Path) -> None:
    """As the authors' example does; the suite asks for the cosine."""
    gallery = np.array([[9.0, 9.0], [1.0, 0.0]])
    np.savez(tmp_path / "v.npz", queries=np.array([[1.0, 0.0]]), gallery=gallery)
    ground = {"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [{"easy": [1], "hard": [], "junk": []}]}
    (tmp_path / "g.json").write_text(json.dumps(ground))
    result = measure_vectors(str(tmp_path / "v.npz"), "revisited", str(tmp_path / "g.json"))
    assert result["results"]["revisited"]["easy"]["ap"] == [0.25]
    cosine = revisited(np.array([[1.0, 0.0]]), gallery, read_ground_truth(str(tmp_path / "g.json")))
    assert cosine["easy"]["ap"] == [1.0]


@pytest.mark.parametrize(
    ("queries", "gallery", "says"),
    [
        (3, 5, "queries: 3 vectors .* but the ground truth has 2"),
        (2, 4, "gallery: 4 vectors .* but the ground truth has 5"),
    ],
)
def test_vectors_of_other_images_are_refused(queries: int, gallery: int, says: str) -> None:
    with pytest.raises(VectorsError, match=says):
        revisited(np.ones((queries, 7)), np.ones((gallery, 7)), truth(5, ([0], [], []), ([1], [], [])))


def test_vectors_the_wrong_way_round_are_named() -> None:
    with pytest.raises(VectorsError, match=r"queries: 7 vectors \(shape \(7, 2\), which looks transposed\)"):
        revisited(np.ones((7, 2)), np.ones((7, 5)), truth(5, ([0], [], []), ([1], [], [])))


def test_the_protocol_needs_its_ground_truth() -> None:
    with pytest.raises(VectorsError, match="needs --ground-truth"):
        measure_vectors("v.npz", "revisited")


# The ground truth's file


def as_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return collections.OrderedDict((key, as_arrays(item)) for key, item in value.items())
    if isinstance(value, list) and all(isinstance(item, (int, float)) for item in value):
        return np.array(value, dtype=np.float64 if value and isinstance(value[0], float) else np.int64)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return np.array(value)
    return [as_arrays(item) for item in value]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("make", [lambda value: value, as_arrays])
def test_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int, make: Callable[[Any], Any]) -> None:
    """Lists as the authors wrote them, and numpy arrays."""
    (tmp_path / "g.pkl").write_bytes(pickle.dumps(make(content()), protocol))
    read = read_ground_truth(str(tmp_path / "g.pkl"))
    assert read.gallery_names == tuple("abcde")
    assert read.query_names == ("q", "r")
    assert [list(part) for part in (read.queries[0].easy, read.queries[0].hard, read.queries[0].junk)] == [
        [0, 1],
        [2],
        [4],
    ]
    assert read.queries[0].box == (1.0, 2.0, 30.5, 40.0)
    assert list(read.queries[1].easy) == []


def test_other_byte_orders_columns_and_numpys_numbers_are_read(tmp_path: Path) -> None:
    box = np.array([1, 2, 3, 4], np.float32)
    numbers = content(easy=np.array([[0, 1]], dtype=">i2", order="F"), hard=[np.int32(2)], bbx=box)
    (tmp_path / "g.pkl").write_bytes(pickle.dumps(numbers, 2))
    query = read_ground_truth(str(tmp_path / "g.pkl")).queries[0]
    assert (query.easy.tolist(), query.hard.tolist(), query.box) == ([0, 1], [2], (1.0, 2.0, 3.0, 4.0))


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """Texts are byte strings there (opcode SHORT_BINSTRING), arrays name numpy.core.multiarray."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02tcnumpy\ndtype\n(U\x02i8K\x00"
        b"K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10"
        + np.array([0, 1], dtype="<i8").tobytes()
        + b"tb"
    )
    row = b"}(U\x04easy" + array + b"U\x04hard]U\x04junk]u"
    data = b"\x80\x02}(U\x06imlist](U\x03a\xe9bU\x01be" + b"U\x07qimlist]U\x01qaU\x03gnd]" + row + b"au."
    (tmp_path / "g.pkl").write_bytes(data)
    read = read_ground_truth(str(tmp_path / "g.pkl"))
    assert read.gallery_names == ("aéb", "b")
    assert read.queries[0].easy.tolist() == [0, 1]


class Calls:
    """Pickles as a call of the function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def marker(path: str) -> None:
    Path(path).write_text("run")


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "builtins.eval"),
        (exec, ("open('{}', 'w')",), "builtins.exec"),
        (getattr, ({}, "{}"), "builtins.getattr"),
        (marker, ("{}",), "tests.evaluate.test_revisited.marker"),
        (subprocess.Popen, (["touch", "{}"],), "subprocess.Popen"),
        (np.load, ("{}",), "numpy.load"),
        (bytearray, (10**12,), "builtins.bytearray"),
        (collections.defaultdict, (list,), "collections.defaultdict"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_asks_for_code_is_refused_and_not_run(
    tmp_path: Path, function: Any, arguments: tuple[Any, ...], name: str, protocol: int, nested: bool
) -> None:
    trace = tmp_path / "trace"
    filled = tuple(a.format(trace) if isinstance(a, str) else a for a in arguments)
    call = Calls(
        function, *([str(trace) if part == "{}" else part for part in a] if isinstance(a, list) else a for a in filled)
    )
    stored = content(bbx=[Calls(collections.OrderedDict, [("x", call)])]) if nested else call
    path = tmp_path / "gnd_evil.pkl"
    path.write_bytes(pickle.dumps(stored, protocol))
    with pytest.raises(GroundTruthError) as raised:
        read_ground_truth(str(path))
    # Python 2's protocols name another module for the same thing.
    assert name.rpartition(".")[2] in str(raised.value)
    assert "gnd_evil.pkl asks for " in str(raised.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x05numpy\x8c\x0bload.system\x93.",
        b"\x80\x02cnumpy.core.multiarray\nscalar.__globals__\n.",
        b"\x80\x02ccollections\nOrderedDict.__init__\n.",
    ],
)
def test_dotted_names_reach_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "g.pkl").write_bytes(data)
    with pytest.raises(GroundTruthError, match="asks for"):
        read_ground_truth(str(tmp_path / "g.pkl"))


def test_what_one_pickle_does_to_its_stand_ins_is_gone_with_it(tmp_path: Path) -> None:
    """A pickle may set attributes of what it names (opcode BUILD)."""
    from i2e_pipeline.evaluate import revisited as module

    before = dict(vars(module))
    build = b"\x80\x02cnumpy.core.multiarray\nscalar\nN}U\x0c__defaults__N\x86s\x86b."
    (tmp_path / "g.pkl").write_bytes(build)
    with pytest.raises(GroundTruthError):
        read_ground_truth(str(tmp_path / "g.pkl"))
    assert dict(vars(module)) == before
    test_other_byte_orders_columns_and_numpys_numbers_are_read(tmp_path)


@pytest.mark.parametrize(
    "stored",
    [
        np.array([{"a": 1}], dtype=object),
        np.zeros(2, dtype=[("a", "i4")]),
        np.datetime64("2020-01-01"),
    ],
)
def test_arrays_of_objects_are_refused(tmp_path: Path, stored: Any) -> None:
    (tmp_path / "g.pkl").write_bytes(pickle.dumps(content(easy=stored), 2))
    with pytest.raises(GroundTruthError, match="only of numbers and texts"):
        read_ground_truth(str(tmp_path / "g.pkl"))


def test_arrays_of_pixels_come_back_as_arrays() -> None:
    """What CIFAR's pickles hold."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 12)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = read_pickle(pickle.dumps({"data": pixels}, protocol), "train")["data"]
        assert found.dtype == np.uint8
        assert np.array_equal(found, pixels)


def test_persistent_objects_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.pkl").write_bytes(b"Pelsewhere\n.")
    with pytest.raises(GroundTruthError, match="refers to an object outside"):
        read_ground_truth(str(tmp_path / "g.pkl"))


@settings(max_examples=examples(150))
@given(cut=st.integers(0, 400), place=st.integers(0, 400), value=st.integers(0, 255), whole=st.booleans())
def test_damaged_pickles_raise_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, value: int, whole: bool
) -> None:
    data = bytearray(pickle.dumps(as_arrays(content()), 2))
    data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(data if whole else data[: cut % len(data)])
    with contextlib.suppress(GroundTruthError):
        read_ground_truth(str(path))


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ([], "holds a list: a dict of gnd, imlist and qimlist"),
        ({"gnd": []}, "no imlist and no qimlist"),
        (content() | {"imlist": "abc"}, "imlist: a list of image names is wanted, not a str"),
        (content() | {"qimlist": ["q", 3]}, r"qimlist\[1\]: the name of an image"),
        (content() | {"qimlist": ["q"]}, "gnd: one dict per query is wanted, 1, not 2"),
        ({"imlist": [], "qimlist": [], "gnd": []}, "are empty"),
        (content(easy=[5]), r"gnd\[0\], easy\[0\] is 5: imlist has images 0 to 4"),
        (content(junk=[4, -1]), r"junk\[1\] is -1"),
        (content(hard=["b"]), r"hard\[0\]: an index into imlist is wanted, not a str"),
        (content(hard=[True]), "not a bool"),
        (content(hard=[1.5]), "not a float"),
        (content(hard=3), "hard: a list of indices"),
        (content(bbx=[1, 2, 3]), "bbx: left, top, right and bottom"),
        (content() | {"gnd": [{"ok": [1], "junk": []}] * 2}, "easy, hard and junk are wanted.*classic protocol"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".pkl"])
def test_malformed_ground_truth_is_refused_by_place(tmp_path: Path, stored: Any, says: str, suffix: str) -> None:
    path = tmp_path / f"gnd_x{suffix}"
    path.write_bytes(json.dumps(stored).encode() if suffix == ".json" else pickle.dumps(stored))
    with pytest.raises(GroundTruthError, match=says) as raised:
        read_ground_truth(str(path))
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_or_no_ground_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(GroundTruthError, match=r"absent\.pkl cannot be read: No such file"):
        read_ground_truth(str(tmp_path / "absent.pkl"))
    (tmp_path / "g.json").write_text("{")
    with pytest.raises(GroundTruthError, match="is no JSON"):
        read_ground_truth(str(tmp_path / "g.json"))
    (tmp_path / "g.pkl").write_text("<html>404</html>")
    with pytest.raises(GroundTruthError, match="no readable pickle"):
        read_ground_truth(str(tmp_path / "g.pkl"))
