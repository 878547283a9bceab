"""Stored vectors: one copy per machine, there as long as somebody uses it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.dataset.published import DatasetError, open_published
from i2e_pipeline.train.samples import Samples
from i2e_pipeline.train.teacher import Teacher, open_teacher
from tests.train.small_dataset import image_ids, image_row, write_dataset

ROWS = 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [image_row(i, bytes=b"") for i in range(ROWS)]
    return write_dataset(tmp_path_factory.mktemp("dataset") / "i2e", rows)


@pytest.fixture(scope="module")
def samples(dataset: str) -> Samples:
    return Samples.open(open_published(dataset), TrainConfig())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, this test's own."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def copies(machine: Path) -> list[Path]:
    return [p for p in machine.glob("i2e-*/teacher/*") if p.is_dir()]


def write_vectors(folder: Path, vectors: dict[int, np.ndarray | bytes | None]) -> str:
    folder.mkdir(exist_ok=True)
    table = pa.table({
        "image_id": pa.array([image_row(i, bytes=b"")["image_id"] for i in vectors], pa.binary(16)),
        "vector": pa.array([v.tobytes() if isinstance(v, np.ndarray) else v for v in vectors.values()], pa.binary()),
    })  # fmt: skip
    pq.write_table(table, folder / "part.parquet", row_group_size=7)
    return str(folder)


def numbers(seed: int = 0) -> dict[int, np.ndarray | bytes | None]:
    rng = np.random.default_rng(seed)
    return {i: None if i % 5 == 0 else rng.normal(size=6).astype("<f2") for i in range(ROWS)}


def check(teacher: Teacher, samples: Samples, vectors: dict[int, np.ndarray | bytes | None]) -> None:
    known = {image_row(i, bytes=b"")["image_id"]: v for i, v in vectors.items()}
    found = teacher.of(np.arange(ROWS)).numpy()
    for row, image_id in enumerate(image_ids(samples)):
        vector = known[image_id]
        raw = np.zeros(6) if vector is None else np.asarray(vector, dtype=np.float32)
        assert np.allclose(found[row], raw / max(float(np.linalg.norm(raw)), 1e-9), atol=1e-6)


def test_a_machine_has_one_copy_until_the_last_one_ends(machine: Path, samples: Samples, tmp_path: Path) -> None:
    vectors = numbers()
    folder = write_vectors(tmp_path / "vectors", vectors)
    first, second = open_teacher(folder, samples), open_teacher(folder, samples)
    assert (first.images, first.width) == (32, 6)
    assert len(copies(machine)) == 1
    del first
    assert len(copies(machine)) == 1
    check(second, samples, vectors)
    del second
    assert not copies(machine)


def test_other_vectors_have_another_copy(machine: Path, samples: Samples, tmp_path: Path) -> None:
    """Catches: a copy that is taken for what the folder holds by now."""
    folder = write_vectors(tmp_path / "vectors", numbers(0))
    before = open_teacher(folder, samples)
    other = numbers(1)
    after = open_teacher(write_vectors(tmp_path / "vectors", other), samples)
    assert len(copies(machine)) == 2
    check(before, samples, numbers(0))
    check(after, samples, other)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_what_a_killed_rank_leaves_is_taken_and_removed_by_the_next(
    machine: Path, samples: Samples, dataset: str, tmp_path: Path, end: str
) -> None:
    vectors = numbers()
    folder = write_vectors(tmp_path / "vectors", vectors)
    script = f"""
import os, tempfile
from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.dataset.published import open_published
from i2e_pipeline.train.samples import Samples
from i2e_pipeline.train.teacher import open_teacher
tempfile.tempdir = {str(machine)!r}
teacher = open_teacher({folder!r}, Samples.open(open_published({dataset!r}), TrainConfig()))
{end}
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert done.returncode == (-9 if end else 0), done.stderr
    left = copies(machine)
    assert len(left) == (1 if end else 0)
    written = [(p, p.stat().st_ino) for p in left]
    teacher = open_teacher(folder, samples)
    if end:
        assert [(p, p.stat().st_ino) for p in copies(machine)] == written
    check(teacher, samples, vectors)
    del teacher
    assert not copies(machine)


@pytest.mark.parametrize("wrong", [b"1234", b"12345678901", b""])
def test_vectors_of_another_width_are_refused(machine: Path, samples: Samples, tmp_path: Path, wrong: bytes) -> None:
    folder = write_vectors(tmp_path / "vectors", {**numbers(), 17: wrong})
    with pytest.raises(DatasetError, match=r"part.parquet: vectors of [0-9.]+ and of 6 numbers"):
        open_teacher(folder, samples)
    assert not copies(machine)
