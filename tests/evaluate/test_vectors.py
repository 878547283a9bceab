"""Arrays that no protocol can measure are refused by name, before anything is computed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2e_pipeline.evaluate.vectors import (
    VectorsError,
    class_labels,
    domain_names,
    lengths,
    normalised,
    read_npz,
    read_queries_npz,
)

FEATURES = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
LABELS = np.array([0, 0, 1, 1, 2, 2])


def write(folder: Path, **arrays: Any) -> str:
    path = folder / "v.npz"
    np.savez(path, **arrays)
    return str(path)


def broken(row: int, column: int, value: float) -> np.ndarray:
    features = FEATURES.copy()
    features[row, column] = value
    return features


def test_labelled_vectors_come_back_as_stored(tmp_path: Path) -> None:
    path = write(tmp_path, features=FEATURES, labels=LABELS.astype(np.uint8), domains=np.array(list("aabbcc")))
    vectors = read_npz(path)
    assert np.array_equal(vectors.features_ND, FEATURES)
    assert vectors.features_ND.dtype == np.float32
    assert vectors.labels_N.tolist() == LABELS.tolist()
    assert vectors.labels_N.dtype == np.int64
    assert vectors.domains_N is not None
    assert vectors.domains_N.tolist() == list("aabbcc")


def test_half_precision_is_widened_and_double_is_kept(tmp_path: Path) -> None:
    for stored, read in ((np.float16, np.float32), (np.int8, np.float32), (np.float64, np.float64)):
        path = write(tmp_path, features=(FEATURES * 9).astype(stored), labels=LABELS)
        assert read_npz(path).features_ND.dtype == read


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"features": FEATURES}, r"no array `labels`, only features \(6, 4\)"),
        ({"labels": LABELS}, "no array `features`"),
        ({"queries": FEATURES, "gallery": FEATURES}, "--protocol revisited"),
        ({"features": FEATURES, "labels": LABELS[:5]}, r"labels: one per vector is wanted, shape \(6,\), not \(5,\)"),
        ({"features": FEATURES, "labels": LABELS[:, None]}, r"not \(6, 1\)"),
        ({"features": FEATURES.T, "labels": LABELS}, "looks transposed"),
        ({"features": FEATURES[0], "labels": LABELS}, r"not shape \(4,\)"),
        ({"features": FEATURES[:0], "labels": LABELS[:0]}, r"not shape \(0, 4\)"),
        ({"features": np.array([list("abcd")] * 6), "labels": LABELS}, "numbers are wanted"),
        ({"features": FEATURES > 0, "labels": LABELS}, "numbers are wanted"),
        ({"features": broken(3, 2, np.nan), "labels": LABELS}, "row 3 has a NaN in column 2"),
        ({"features": broken(4, 1, -np.inf), "labels": LABELS}, "row 4 has an infinite value in column 1"),
        (
            {"features": FEATURES * np.array([[1], [1], [0], [1], [0], [1]]), "labels": LABELS},
            r"row 2 has only zeros.*\(2 rows of 6",
        ),
        ({"features": FEATURES, "labels": LABELS + 0.5}, "labels: row 0 is 0.5"),
        ({"features": FEATURES, "labels": LABELS, "domains": np.array(["a"])}, "domains: one per vector"),
        ({"features": FEATURES, "labels": LABELS, "domains": np.zeros(6) + 0.5}, "domains: names are wanted"),
        ({"features": FEATURES, "labels": LABELS, "paths": np.array(["a"])}, "paths: one per vector"),
        ({"features": FEATURES, "labels": np.array([object()] * 6)}, "labels: objects are stored"),
    ],
)
def test_unfit_labelled_vectors_are_refused_by_name(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    path = write(tmp_path, **arrays)
    with pytest.raises(VectorsError, match=says) as raised:
        read_npz(path)
    assert path in str(raised.value)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"queries": FEATURES}, r"only queries \(6, 4\)"),
        ({"Q": FEATURES, "gallery": FEATURES}, "queries .* and gallery .* are wanted"),
        ({"features": FEATURES, "labels": LABELS}, "for --protocol gpr"),
        ({"Q": FEATURES, "X": FEATURES, "queries": FEATURES, "gallery": FEATURES}, "both layouts"),
        ({"queries": FEATURES, "gallery": FEATURES[:, :3]}, "queries are 4 wide and gallery 3"),
        ({"Q": FEATURES.T, "X": broken(5, 0, np.nan).T}, "X: row 5 has a NaN"),
        ({"queries": FEATURES * 0, "gallery": FEATURES}, "queries: row 0 has only zeros"),
    ],
)
def test_unfit_queries_are_refused_by_name(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    with pytest.raises(VectorsError, match=says):
        read_queries_npz(write(tmp_path, **arrays))


def test_the_published_layout_is_the_transposed_one(tmp_path: Path) -> None:
    rows = read_queries_npz(write(tmp_path, queries=FEATURES[:2], gallery=FEATURES))
    columns = read_queries_npz(write(tmp_path, Q=FEATURES[:2].T, X=FEATURES.T))
    for one, other in zip(rows, columns, strict=True):
        assert np.array_equal(one, other)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    whole = Path(write(tmp_path, features=FEATURES, labels=LABELS)).read_bytes()
    for name, content in (("text", b"features"), ("cut", whole[: len(whole) // 2]), ("empty", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(VectorsError, match=f"{name} cannot be read"):
            read_npz(str(path))
    damaged = bytearray(whole)
    damaged[whole.index(FEATURES.tobytes())] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    with pytest.raises(VectorsError, match="damaged cannot be read"):
        read_npz(str(tmp_path / "damaged"))
    np.save(tmp_path / "single.npy", FEATURES)
    with pytest.raises(VectorsError, match="single array"):
        read_npz(str(tmp_path / "single.npy"))
    with pytest.raises(VectorsError, match="no such file"):
        read_npz(str(tmp_path / "absent.npz"))


def test_lengths_need_no_range_of_float32() -> None:
    """Catches: squares of large float32 values overflow, of small ones vanish, and fit rows are refused."""
    assert np.allclose(lengths(np.array([[3e30, 4e30], [3e-30, 4e-30]], np.float32)), [5e30, 5e-30])


def test_normalised_rows_have_length_one() -> None:
    assert np.allclose(np.linalg.norm(normalised(FEATURES * 1e20), axis=1), 1, atol=1e-6)


def test_text_labels_are_numbered_and_domains_become_texts() -> None:
    assert class_labels(np.array(["b", "a", "b"]), 3).tolist() == [1, 0, 1]
    assert class_labels(np.array([3.0, 1.0]), 2).tolist() == [3, 1]
    assert domain_names(np.array([b"caf\xc3\xa9", b"x"]), 2).tolist() == ["café", "x"]
    assert domain_names(np.array([2, 1]), 2).tolist() == ["2", "1"]
    assert domain_names(np.array([2.0, 1.0]), 2).tolist() == ["2", "1"]


def test_a_text_file_is_refused_without_advice_to_unpickle_it(tmp_path: Path) -> None:
    (tmp_path / "v.npz").write_text("not an archive\n" * 9)
    with pytest.raises(VectorsError, match=r"v\.npz cannot be read as \.npz: it is none$"):
        read_npz(str(tmp_path / "v.npz"))


def test_a_zip_that_zipfile_cannot_read_is_refused(tmp_path: Path) -> None:
    """Catches: NotImplementedError, for a method of packing that Python does not know; bytes in an array's place."""
    path = tmp_path / "v.npz"
    np.savez_compressed(path, features=np.ones((4, 2), np.float32), labels=np.arange(4))
    whole = path.read_bytes()
    for signature, field, value in ((b"PK\1\2", 10, b"\x63\0"), (b"PK\1\2", 6, b"\xff\0"), (b"PK\1\2", 8, b"\1\0")):
        content = bytearray(whole)
        at = content.index(signature) + field
        content[at : at + 2] = value
        path.write_bytes(content)
        with pytest.raises(VectorsError, match=r"v\.npz"):
            read_npz(str(path))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("features.npy", b"no array")
        packed.writestr("labels.npy", b"no array")
    with pytest.raises(VectorsError, match=r"v\.npz, features is no array"):
        read_npz(str(path))
