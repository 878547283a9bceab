"""`i2e head train`: what it reads, and what it refuses."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.clean import heads
from i2e_pipeline.clean.heads import HeadError
from i2e_pipeline.commands import head
from i2e_pipeline.core.config import ScoreConfig
from i2e_pipeline.stages import pipeline
from tests.chain import settings

WIDTH = 8


def image(n: int) -> str:
    return hashlib.blake2b(f"{n}".encode(), digest_size=16).hexdigest()


def labels_of(folder: Path, lines: list[str]) -> str:
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def vectors_file(folder: Path, rows: list[Any], kind: pa.DataType, images: int | None = None) -> str:
    path = folder / "vectors.parquet"
    ids = pa.array([bytes.fromhex(image(n)) for n in range(images or len(rows))], pa.binary(16))
    pq.write_table(pa.table({"image_id": ids, "vector": pa.array(rows, kind)}), path)
    return str(path)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), WIDTH), pa.binary(), pa.binary(2 * WIDTH)]
)
def test_a_head_tells_what_its_labels_tell(tmp_path: Path, kind: pa.DataType) -> None:
    draw = np.random.default_rng(0)
    found = draw.random(600) < 0.5
    made = draw.normal(size=(600, WIDTH)).astype(np.float16)
    made[:, 0] += np.where(found, 3, -3).astype(np.float16)
    in_bytes = pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind)
    path = vectors_file(tmp_path, [v.tobytes() for v in made] if in_bytes else list(made), kind)
    lines = ["image_id,found,group", *(f"{image(n)},{int(found[n])}," for n in range(500))]
    labels = head.read_labels(labels_of(tmp_path, lines))
    assert not labels.group, "an empty group is none"
    vectors = head.of_file(path, labels)
    assert sorted(vectors[0]) == vectors[0] == sorted(labels.found), "no more than what is labelled is held"
    model = ScoreConfig()
    told = head.train(vectors, model, labels, "planted", str(tmp_path / "head.safetensors"), 0.9, 1.0)
    assert told["held_out"]["precision"] > 0.8
    read = heads.read(str(tmp_path / "head.safetensors"))
    assert ((read(made) >= read.about.threshold) == found).mean() > 0.9
    vectors[1][3, 2] = np.nan
    with pytest.raises(HeadError, match=f"the vector of image {vectors[0][3]} .* has NaN or infinity"):
        head.train(vectors, model, labels, "planted", str(tmp_path / "no"), 0.9, 1.0)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([None], pa.list_(pa.float32())),
        ([None], pa.binary()),
        ([b"abc"], pa.binary()),
        ([["a"]], pa.list_(pa.string())),
        (["1,2"], pa.string()),
        ([1.0], pa.float32()),
        ([[]], pa.list_(pa.float32())),
    ],
)
def test_vectors_that_are_none_are_named_by_image(tmp_path: Path, rows: list[Any], kind: pa.DataType) -> None:
    labels = head.read_labels(labels_of(tmp_path, ["image_id,found", f"{image(0)},1"]))
    with pytest.raises(HeadError, match=f"the vector of image {image(0)} is neither"):
        head.of_file(vectors_file(tmp_path, rows, kind), labels)


def test_files_that_hold_nothing_of_use_are_named(tmp_path: Path) -> None:
    labels = head.read_labels(labels_of(tmp_path, ["image_id,found", f"{image(5)},1"]))
    with pytest.raises(HeadError, match="none of its 1 images has a vector"):
        head.of_file(vectors_file(tmp_path, [[1.0]], pa.list_(pa.float32())), labels)
    (tmp_path / "text").write_text("no Parquet")
    for place in ("text", "nowhere"):
        with pytest.raises(HeadError, match=f"--vectors .*{place} cannot be read as Parquet"):
            head.of_file(str(tmp_path / place), labels)
    with pytest.raises(HeadError, match=r"row 2: .* is in two groups, a and b"):
        head.read_labels(labels_of(tmp_path, ["image_id,found,group", f"{image(1)},1,a", f"{image(1)},1,b"]))


@pytest.mark.slow
@pytest.mark.spark
def test_vectors_of_another_model_are_refused(world: Path, whole: Path, tmp_path: Path) -> None:
    """Catches: a head that says it reads one model's vectors and was fitted to another's."""
    shutil.copytree(whole, tmp_path / "out")
    known = pipeline(settings(world, tmp_path / "out"))
    ids = [v for b in known.tables.batches("image_vectors", known.tables.commits_of("image_vectors").values(),
                                           ["image_id"]) for v in b.column(0).to_pylist()]  # fmt: skip
    labels = head.read_labels(labels_of(tmp_path, ["image_id,found", f"{ids[0].hex()},1"]))
    assert head.of_output(known, labels)[0] == [ids[0].hex()]
    other = pipeline(settings(world, tmp_path / "out", "score.model=ViT-B-32", "score.pretrained=null"))
    with pytest.raises(
        HeadError, match=r"the vectors of \d+ of \d+ units are of another model than score.model=ViT-B-32"
    ):
        head.of_output(other, labels)
