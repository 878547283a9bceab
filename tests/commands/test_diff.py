"""Two datasets compared: counts against a naive comparison of sets, whatever the buckets; what is said of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline import cli
from i2e_pipeline.commands import summary
from i2e_pipeline.commands.diff import Difference, DiffError, Side, as_json, diff
from i2e_pipeline.commands.diffing import compare
from i2e_pipeline.commands.diffing.buckets import Sieve, Spill, hex_of, ids_of, numbered
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.errors import ExitCode
from i2e_pipeline.core.schemas import ID
from tests.chain import content, run
from tests.chain import settings as chain_settings
from tests.examples import examples
from tests.train.small_dataset import entity_row, image_row, write_dataset

CLASSES = 5
SCORES = (0.5, 0.75, 0.9)
Images = dict[int, dict[int, float]]
"""Picture to its classes with their scores."""


def image_id(number: int) -> str:
    return hashlib.blake2b(f"image {number}".encode(), digest_size=16).hexdigest()


def write(folder: Path, images: Images, **more: Any) -> str:
    splits = more.pop("splits", {})
    rows = [
        image_row(n, labels=sorted(labels.items()), bytes=b"", split=splits.get(n, "train"))
        for n, labels in images.items()
    ]
    return write_dataset(folder, rows, classes=CLASSES, group=2, **more)


def compared(a: str, b: str, **how: Any) -> Difference:
    return diff(Side.of("A", a, None), Side.of("B", b, None), **how)


def told(a: str, b: str, **how: Any) -> dict[str, Any]:
    found = as_json(compared(a, b, **how))
    return {name: part for name, part in found.items() if name not in ("a", "b")}


def labels_of(images: Images) -> dict[tuple[int, int], float]:
    return {(n, c): score for n, labels in images.items() for c, score in labels.items()}


def only(found: Path) -> tuple[set[tuple[str, str]], set[tuple[str, str, int]]]:
    """Images and labels that `out` says are in one dataset alone."""
    images, labels = (pq.read_table(found / f"{name}.parquet") for name in ("images", "labels"))
    for table in (images, labels):
        assert table.column("image_id").to_pylist() == sorted(table.column("image_id").to_pylist())
    return (
        set(zip(*(images.column(n).to_pylist() for n in ("only_in", "image_id")), strict=True)),
        set(zip(*(labels.column(n).to_pylist() for n in ("only_in", "image_id", "entity_id")), strict=True)),
    )


datasets = st.dictionaries(
    st.integers(0, 14),
    st.dictionaries(st.integers(0, CLASSES - 1), st.sampled_from(SCORES), min_size=1, max_size=3),
    min_size=1,
)


@settings(max_examples=examples(60))
@given(a=datasets, b=datasets, at_once=st.integers(1, 20))
def test_it_says_what_sets_say_whatever_the_buckets(a: Images, b: Images, at_once: int) -> None:
    """Catches: a bucket's edge that parts an image from its labels, an image counted twice, a direction mixed up."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        first, second = write(here / "a", a), write(here / "b", b)
        found = told(first, second, out=str(here / "out"), at_once=at_once)
        rows = only(here / "out")
        assert found == told(first, second, at_once=100)
        back = told(second, first, at_once=at_once)
        same = told(first, first, at_once=at_once)

    both = a.keys() & b.keys()
    labels_a, labels_b = labels_of(a), labels_of(b)
    assert found["images"]["both"] == len(both)
    assert [found["images"][f"only_in_{s}"] for s in "ab"] == [len(a.keys() - b.keys()), len(b.keys() - a.keys())]
    assert found["labels"]["both"] == len(labels_a.keys() & labels_b.keys())
    lost, gained = ({(n, c) for n, c in x.keys() - y.keys() if n in both} for x, y in
                    ((labels_a, labels_b), (labels_b, labels_a)))  # fmt: skip
    assert [found["labels"][f"only_in_{s}"] for s in "ab"] == [len(lost), len(gained)]
    of_one = [sum(n not in both for n, _ in labels) for labels in (labels_a, labels_b)]
    assert [found["labels"][f"of_images_only_in_{s}"] for s in "ab"] == of_one
    assert found["labels"]["images_changed"] == len({n for n, _ in lost | gained})
    assert found["labels"]["images_moved"] == len({n for n, _ in lost} & {n for n, _ in gained})
    unchanged = sum(labels_a[key] == labels_b[key] for key in labels_a.keys() & labels_b.keys())
    assert found["labels"]["score_b_minus_a"]["unchanged"] == unchanged
    per_class = [Counter(c for _, c in labels) for labels in (labels_a, labels_b)]
    said = {e["entity_id"] - 100: (e["images_a"], e["images_b"]) for e in found["entities"]["changed"]}
    assert said == {c: (per_class[0][c], per_class[1][c]) for c in range(CLASSES) if per_class[0][c] != per_class[1][c]}
    assert rows[0] == {(s, image_id(n)) for s, of in (("a", a.keys() - both), ("b", b.keys() - both)) for n in of}
    assert rows[1] == {(s, image_id(n), 100 + c) for s, of in (("a", lost), ("b", gained)) for n, c in of}

    del back["labels"]["score_b_minus_a"]["quantiles"]
    assert back == mirrored(found)
    nothing = {"only_in_a": 0, "only_in_b": 0}
    assert same["settings"] == same["entities"]["changed"] == same["images"]["split_changed"] == []
    assert same["images"] == {"both": len(a), **nothing, "why_only_in_a": {}, "why_only_in_b": {}, "split_changed": []}
    assert (same["labels"]["both"], same["labels"]["images_changed"]) == (len(labels_a), 0)


def mirrored(tree: Any) -> Any:
    """What the reverse comparison says."""
    if isinstance(tree, list):
        return [mirrored(one) for one in tree]
    if not isinstance(tree, dict):
        return tree
    swapped = {"a": "b", "b": "a", "more_images": "fewer_images", "fewer_images": "more_images"}
    found = {}
    for name, value in tree.items():
        stem, _, side = name.rpartition("_")
        if name in swapped:
            name = swapped[name]
        elif side in swapped and stem != "score_b_minus":
            name = f"{stem}_{swapped[side]}"
        found[name] = mirrored(value)
    if "change" in tree:
        found["change"] = -tree["change"]
    if "moves" in tree:
        found["moves"].sort(key=lambda move: (-move["images"], move["a"], move["b"]))
    if "quantiles" in tree:
        del found["quantiles"]  # of the lower of two in the middle; the test of bins holds them
    if "notes" in tree:
        swap = {"lie beside A": "lie beside B", "lie beside B": "lie beside A"}
        found["notes"] = sorted((n.replace(k, v) for n in tree["notes"] for k, v in swap.items() if k in n))
    return found


def test_quantiles_are_those_of_the_differences() -> None:
    """Catches: a bin that is off by one, a quantile of labels that one dataset alone has."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 1 << 63, (1000, 2)).astype(np.uint64)
    labels = []
    for score in rng.random((2, 1000)).astype(np.float32):
        rows = np.empty(1000, dtype=compare.LABEL)
        rows["id"], rows["entity"], rows["score"] = ids, 7, score
        labels.append(rows)
    images = np.zeros(1000, dtype=compare.IMAGE)
    images["id"] = ids
    found = compare.compare((images, images), (labels[0], labels[1])).counts
    back = compare.compare((images, images), (labels[1], labels[0])).counts
    assert (back.differences == found.differences[::-1]).all()
    apart = np.sort(labels[1]["score"].astype(np.float64) - labels[0]["score"])
    for q, value in compare.quantiles(found.differences).items():
        assert value == pytest.approx(apart[int(np.ceil(float(q) * 1000)) - 1], abs=1e-4)
    assert compare.quantiles(np.zeros(compare.BINS, dtype=np.int64)) == {}


def test_an_entity_with_another_class_index_is_said_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a head of A that is trained on B, with entities mixed up and no word."""
    swapped = [entity_row(c, entity_id=e, name=f"entity {e}") for c, e in ((0, 101), (1, 100), (2, 102))]
    mine = [entity_row(c, entity_id=100 + c, name=f"entity {100 + c}") for c in range(3)]
    rows = [image_row(n, labels=[(2, 0.9)], bytes=b"") for n in range(3)]
    a = write_dataset(tmp_path / "a", rows, entities=mine)
    b = write_dataset(tmp_path / "b", rows, entities=swapped)
    found = compared(a, b)
    said = as_json(found)["entities"]
    assert (said["class_index_moved"], said["class_indices_of_another_entity"]) == (2, 2)
    assert {e["entity_id"]: (e["class_index_a"], e["class_index_b"]) for e in said["changed"]} == {
        100: (0, 1),
        101: (1, 0),
    }
    summary.print_difference(found, 5)
    said_loudly = capsys.readouterr().out
    assert "WARNING: 2 entities have another class index" in said_loudly
    assert "Q100 entity 100: 0 in A, 1 in B" in said_loudly
    summary.print_difference(compared(a, a), 5)
    assert "WARNING" not in capsys.readouterr().out


def test_a_class_index_that_another_entity_took_is_said(tmp_path: Path) -> None:
    """Catches: an entity that went, whose index now means another: no entity of both has moved."""
    rows = [image_row(n, labels=[(0, 0.9)], bytes=b"") for n in range(3)]
    a = write_dataset(tmp_path / "a", rows, entities=[entity_row(0), entity_row(1)])
    b = write_dataset(tmp_path / "b", rows, entities=[entity_row(0), entity_row(1, entity_id=999)])
    said = as_json(compared(a, b))["entities"]
    assert (said["class_index_moved"], said["class_indices_of_another_entity"]) == (0, 1)
    assert (said["only_in_a"], said["only_in_b"]) == (1, 1)


def test_retired_entities_have_no_class(tmp_path: Path) -> None:
    rows = [image_row(n, labels=[(0, 0.9)], bytes=b"") for n in range(3)]
    a = write_dataset(tmp_path / "a", rows, entities=[entity_row(0), entity_row(1)])
    b = write_dataset(tmp_path / "b", rows, entities=[entity_row(0, name="renamed"), entity_row(1, retired=True)])
    said = as_json(compared(a, b))["entities"]
    assert {k: said[k] for k in ("both", "only_in_a", "only_in_b", "retired_in_b", "renamed")} == {
        "both": 1, "only_in_a": 1, "only_in_b": 0, "retired_in_b": 1, "renamed": 1,
    }  # fmt: skip
    assert said["why_only_in_a"] == {"unknown": 1}


def test_an_entity_whose_name_was_taken_away_is_called_as_before() -> None:
    """An entity that a list left out is called by its number alone."""
    of = compare.Entities.of(
        (pa.table({"entity_id": [22], "class_index": [0], "retired": [False], "name": ["Scotland"]}),
         pa.table({"entity_id": [22], "class_index": [0], "retired": [True], "name": ["Q22"]})),
        (np.array([3]), np.array([0])),
    )  # fmt: skip
    assert of.name(0) == "Scotland"


def test_images_in_another_split_are_counted(tmp_path: Path) -> None:
    images = {n: {0: 0.9} for n in range(6)}
    a = write(tmp_path / "a", images)
    b = write(tmp_path / "b", images, splits={1: "test", 2: "test", 3: "validation"})
    found = told(a, b, out=str(tmp_path / "out"), at_once=2)
    assert found["images"]["split_changed"] == [
        {"a": "train", "b": "validation", "images": 1},
        {"a": "train", "b": "test", "images": 2},
    ]
    rows = pq.read_table(tmp_path / "out" / "splits.parquet").to_pylist()
    assert {(r["image_id"], r["split_a"], r["split_b"]) for r in rows} == {
        (image_id(1), "train", "test"), (image_id(2), "train", "test"), (image_id(3), "train", "validation"),
    }  # fmt: skip


def test_datasets_of_format_1_are_compared(tmp_path: Path) -> None:
    """Ids in bytes, no split, no pair."""
    rows = [image_row(n, bytes=b"") for n in range(6)]
    a = write_dataset(tmp_path / "a", [{**r, "split": "train"} for r in rows[:5]])
    b = write_dataset(tmp_path / "b", rows[1:], format_version=1)
    found = told(a, b)
    assert (found["images"]["both"], found["images"]["only_in_a"], found["images"]["only_in_b"]) == (4, 1, 1)
    assert found["images"]["split_changed"] == [{"a": "train", "b": "unknown", "images": 4}]


def test_delta_is_read_by_its_log(tmp_path: Path) -> None:
    from tests.dataset.test_published import delta

    images = {n: {0: 0.9} for n in range(20)}
    a = write(tmp_path / "a", images)
    write(tmp_path / "b", images)
    delta(tmp_path / "b")
    assert told(a, str(tmp_path / "b"))["images"]["both"] == 20


def test_what_differs_in_how_they_were_made_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {n: {0: 0.9} for n in range(4)}
    made = {
        "settings": {"label": {"bar": 0.6, "weights": [1.0, 2.0, 3.0]}, "score": {"model": "small@1"}},
        "labels_chosen_by": {"bar": 0.6},
        "fingerprints": {"label": "1" * 32, "score": "2" * 32},
        "software": {"torch": "2.7.0", "numpy": "2.2.0"},
    }
    other = {
        "settings": {"label": {"bar": 0.8, "weights": [1.0, 2.5, 3.0]}, "score": {"model": "small@1"}},
        "labels_chosen_by": {"bar": 0.8},
        "fingerprints": {"label": "3" * 32, "score": "2" * 32},
        "software": {"torch": "2.8.0"},
    }
    found = compared(write(tmp_path / "a", images, manifest=made), write(tmp_path / "b", images, manifest=other))
    assert as_json(found)["settings"] == [
        {"name": "settings.label.bar", "a": 0.6, "b": 0.8},
        {"name": "settings.label.weights", "a": [1.0, 2.0, 3.0], "b": [1.0, 2.5, 3.0]},
        {"name": "fingerprints.label", "a": "1" * 32, "b": "3" * 32},
        {"name": "software.torch", "a": "2.7.0", "b": "2.8.0"},
        {"name": "software.numpy", "a": "2.2.0"},
    ]
    summary.print_difference(found, 5)
    said = capsys.readouterr().out
    assert said.index("label.bar") < said.index("What is in both")
    assert "stages with another fingerprint: label" in said
    assert "1 of them others" in said


def test_the_command_fits_eighty_columns_and_speaks_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a" / "i2e", {n: {n % CLASSES: 0.9} for n in range(12)})
    write(tmp_path / "b" / "i2e", {n: {(n + n % 2) % CLASSES: 0.8} for n in range(2, 14)})
    assert ended("diff", "a", "b") == ExitCode.DONE
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80, said
    assert "no run's tables lie beside A" in said
    assert ended("diff", "a", "b/i2e", "--json") == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["images"]["both"] == 10
    assert ended("diff", "a", "c") == ExitCode.MISTAKE
    assert "c holds no published dataset" in capsys.readouterr().err


@pytest.mark.parametrize("config", [None, "stages: [mine.py:Own]\n", "output: [\n"])
def test_tables_under_settings_that_are_not_trusted_are_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str | None
) -> None:
    """Catches: code of a downloaded output that is loaded; a comparison of datasets that fails for what lies beside."""
    write(tmp_path / "a" / "i2e", {n: {0: 0.9} for n in range(4)})
    (tmp_path / "a" / "_commits").mkdir()
    (tmp_path / "a" / "mine.py").write_text("raise SystemExit('loaded')\n")
    if config is not None:
        (tmp_path / "a" / "config.yaml").write_text(config)
    assert ended("diff", str(tmp_path / "a"), str(tmp_path / "a"), "--json") == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["images"]["both"] == 4
    assert not found["a"]["asked_tables"]
    assert found["notes"][0].startswith("the tables beside A are not asked: ")


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert isinstance(raised.value.code, int)
    return raised.value.code


def test_nothing_is_written_into_a_dataset(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {0: {0: 0.9}})
    with pytest.raises(DiffError, match="lies in the dataset"):
        compared(a, a, out=f"{a}/images")


def test_a_comparison_that_fails_leaves_no_file_that_looks_whole(tmp_path: Path) -> None:
    """Catches: tables of half of the images under their names."""
    a, b = (write(tmp_path / name, {n: {0: 0.9} for n in range(8)}) for name in "ab")
    side = Side.of("B", b, None)
    for file in (tmp_path / "b" / "images").rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(Exception, match=r"part-|is not a Parquet file"):
        diff(Side.of("A", a, None), side, out=str(tmp_path / "out"))
    assert not [p for p in (tmp_path / "out").rglob("*") if not p.name.startswith(".")]


# --- buckets -------------------------------------------------------------------------------------------------------


def ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 64, (count, 2), dtype=np.uint64)


def test_ids_keep_their_order_and_their_digits() -> None:
    """Catches: halves in the machine's order of bytes: rows of `out` that are in no order."""
    stored = [hashlib.blake2b(bytes([n]), digest_size=16).digest() for n in range(50)]
    of_bytes = ids_of(pa.array(stored, ID))
    assert (ids_of(pa.array([one.hex() for one in stored])) == of_bytes).all()
    assert hex_of(of_bytes).to_pylist() == [one.hex() for one in stored]
    (numbers,) = numbered(of_bytes)
    assert [stored[n] for n in np.argsort(numbers)] == sorted(stored)


def test_equal_ids_have_equal_numbers_in_all_parts() -> None:
    some = ids(30)
    first, none, second = numbered(some, some[:0], some[::2])
    assert (first[::2] == second).all()
    assert len(set(first.tolist())) == 30
    assert len(none) == 0


@pytest.mark.parametrize("buckets", [1, 3, 64])
def test_buckets_are_ranges_of_ids(tmp_path: Path, buckets: int) -> None:
    rows = np.empty(1000, dtype=[("id", "<u8", 2), ("n", "<i8")])
    rows["id"], rows["n"] = ids(1000), np.arange(1000)
    spill = Spill(tmp_path, "rows", rows.dtype, buckets)
    for start in range(0, 1000, 300):
        spill.add(rows[start : start + 300])
    taken = [spill.take(bucket) for bucket in range(buckets)]
    assert sorted(np.concatenate(taken)["n"].tolist()) == list(range(1000))
    digits = [sorted(hex_of(part["id"]).to_pylist()) for part in taken]
    assert [one for part in digits for one in part] == sorted(hex_of(rows["id"]).to_pylist())
    spill.drop()
    assert not list(tmp_path.iterdir())


def test_a_sieve_lets_all_of_its_own_through_and_few_others() -> None:
    mine, others = ids(5000), ids(5000, seed=1)
    sieve = Sieve([mine[:10], mine[10:]], len(mine))
    assert sieve.lets(mine).all()
    assert sieve.lets(others).mean() < 0.1
    assert not Sieve([], 0).lets(others).any()


# --- two runs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_runs_of_other_thresholds_say_so_of_each_image(
    reported: Config, world: Path, tmp_path: Path, spark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """What real tables hold is read, and explains all that differs; the second output grew from the first."""
    shutil.copytree(reported.output, tmp_path / "b")
    run(chain_settings(world, tmp_path / "b", "label.threshold=0.9"), spark)
    code = ended("diff", reported.output, str(tmp_path / "b"), "--json", "--out", str(tmp_path / "out"))
    found = json.loads(capsys.readouterr().out)
    assert code == ExitCode.DONE
    assert (found["a"]["asked_tables"], found["b"]["asked_tables"], found["notes"]) == (True, True, [])
    assert {"name": "settings.label.bar", "a": 0.2, "b": 0.9} in found["settings"]
    ours, theirs = content(reported.output)[0], content(tmp_path / "b")[0]
    assert found["images"]["both"] == len(ours.keys() & theirs.keys())
    assert found["images"]["only_in_a"] == len(ours.keys() - theirs.keys()) > 0
    assert found["images"]["why_only_in_a"] == {"threshold": found["images"]["only_in_a"]}
    assert found["images"]["only_in_b"] == found["entities"]["class_index_moved"] == 0
    assert "unknown" not in found["labels"]["why_only_in_a"]
    rows = pq.read_table(tmp_path / "out" / "images.parquet")
    assert set(rows.column("image_id").to_pylist()) == ours.keys() - theirs.keys()
    gone = found["entities"]["why_only_in_a"]
    assert set(gone) <= {"no_label", "rare_entity"}, gone
