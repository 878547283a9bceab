"""GPR1200's figures are its authors', and what is derived from them is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from i2e_pipeline.evaluate.from_vectors import measure_vectors
from i2e_pipeline.evaluate.gpr1200 import DOMAINS, domains_of, expected_of_random, gpr
from i2e_pipeline.evaluate.vectors import VectorsError, class_labels


def vectors(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def accept(result: dict, golden: Path, folder: Path, *options: str) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(result))
    script = golden.parents[3] / "accept" / "retrieval.py"
    if not script.is_file():
        pytest.skip("no accept/retrieval.py beside I2E_REAL_DATA")
    done = subprocess.run([sys.executable, script, path, golden, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_figures_equal_the_authors_code(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "eval" / "gpr1200"
    for block_mb in (0.05, 256):
        result = measure_vectors(str(folder / "mini_features.npz"), "gpr", block_mb=block_mb)
        golden = json.loads((folder / "mini_golden.json").read_text())
        for key in ("mAP", "per_domain", "ap"):
            assert result["results"]["gpr"][key] == pytest.approx(golden[key], abs=1e-6)
        accept(result, folder / "mini_golden.json", tmp_path)


def test_length_does_not_matter() -> None:
    """Catches: vectors of a file that were not normalised, ranked by inner product."""
    x, labels = vectors(60), np.arange(60) // 5
    stretched = x * np.random.default_rng(1).choice([0.25, 1, 8], (60, 1)).astype(np.float32)
    assert gpr(stretched, labels)["ap"] == gpr(x, labels)["ap"]


@pytest.mark.parametrize("sizes", [[10] * 6, [1, 2, 3, 30], [60], [1] * 12])
def test_average_precision_of_any_class_size_equals_scikit_learns(sizes: list[int]) -> None:
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = vectors(len(labels)).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    wanted = [average_precision_score(labels == labels[i], x @ x[i]) for i in range(len(x))]
    assert gpr(x, labels)["ap"] == pytest.approx(wanted, abs=1e-9)


def test_classes_form_six_equal_blocks_in_the_order_of_their_labels() -> None:
    labels = np.array([70, 3, 11, 9, 5, 40, 41, 2, 100, 30, 20, 10] * 2)
    assert domains_of(labels).tolist()[:12] == [  # type: ignore[union-attr]
        "faces",
        "landmarks",
        "sketches",
        "nature",
        "nature",
        "products",
        "products",
        "landmarks",
        "faces",
        "objects",
        "objects",
        "sketches",
    ]
    figures = gpr(vectors(24), labels)
    assert set(figures["per_domain"]) == set(DOMAINS)
    assert np.mean(list(figures["per_domain"].values())) == pytest.approx(figures["mAP"])


@pytest.mark.parametrize("kind", ["{}", "c{}", "b{}"])
def test_texts_that_number_the_classes_give_the_same_blocks_as_numbers(kind: str) -> None:
    """Catches: "10" sorted before "2", so that classes land in other domains."""
    numbers = np.repeat(np.arange(60), 2)
    named = np.array([kind.format(number) for number in numbers], dtype="S" if kind == "b{}" else "U")
    vectors = np.random.default_rng(0).normal(size=(120, 4))
    assert gpr(vectors, named)["per_domain"] == gpr(vectors, numbers)["per_domain"]
    assert domains_of(class_labels(named, 120)).tolist() == domains_of(numbers).tolist()  # type: ignore[union-attr]


def test_classes_that_do_not_divide_by_six_have_no_domains() -> None:
    assert gpr(vectors(14), np.arange(14) // 2)["per_domain"] is None


def test_named_domains_are_used_and_cover_every_query() -> None:
    domains = np.array(["b"] * 8 + ["a"] * 4)
    figures = gpr(vectors(12), np.arange(12) // 2, domains)
    assert figures["per_domain"] == {
        "b": pytest.approx(np.mean(figures["ap"][:8])),
        "a": pytest.approx(np.mean(figures["ap"][8:])),
    }


def test_a_perfect_encoder_scores_one() -> None:
    assert gpr(np.repeat(np.eye(12, dtype=np.float32), 3, axis=0), np.arange(36) // 3)["mAP"] == 1.0


def test_random_vectors_score_what_is_expected_of_them() -> None:
    assert expected_of_random(np.arange(12_000) // 10) == pytest.approx(0.102, abs=0.0005)
    labels = np.concatenate([np.arange(400) // 4, 100 + np.arange(200) // 20])
    found = [gpr(vectors(600, 64, seed), labels)["mAP"] for seed in range(4)]
    assert np.mean(found) == pytest.approx(expected_of_random(labels), abs=0.004)
    assert expected_of_random(np.arange(5)) == 1.0
    assert expected_of_random(np.zeros(7)) == pytest.approx(1.0)


def test_ground_truth_and_unknown_protocols_are_refused(real_data: Path) -> None:
    path = str(real_data / "eval" / "gpr1200" / "mini_features.npz")
    with pytest.raises(VectorsError, match="only --protocol revisited"):
        measure_vectors(path, "gpr", "gnd.pkl")
    with pytest.raises(VectorsError, match="--protocol grp: known are gpr, revisited"):
        measure_vectors(path, "grp")
