"""`i2e head train`: what it reads, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline import cli
from i2e_pipeline.clean import heads
from i2e_pipeline.clean.heads import HeadError
from i2e_pipeline.commands import head
from i2e_pipeline.core.config import PolicyHead, ScoreConfig
from i2e_pipeline.core.schemas import IMAGE_VECTORS
from i2e_pipeline.images import kept
from i2e_pipeline.sample import embedded
from i2e_pipeline.stages import from_tree, pipeline
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


def test_vectors_of_files_without_a_labelled_image_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: 10 TB read of an output for ten thousand labels of a pilot's units."""
    paths = []
    for file in range(3):
        rows = [{"shard": file, "row": n, "image_id": bytes.fromhex(image(10 * file + n)), "width": 1, "height": 1,
                 "image_hash": b"h" * 32, "named": False, "vector": np.array([file, n], "<f2").tobytes()}
                for n in range(10)]  # fmt: skip
        paths.append(str(tmp_path / f"{file}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows, IMAGE_VECTORS), paths[-1], row_group_size=5)
    read: list[tuple[str, int]] = []
    of_file = kept._read

    def noted(group: Any, columns: Any) -> pa.Table:
        if "vector" in columns:
            read.append((group.path, group.number))
        return of_file(group, columns)

    monkeypatch.setattr(kept, "_read", noted)
    labels = head.Labels("labels.csv", dict.fromkeys([image(13), image(27), image(11), image(99)], True), {})
    rows_of = [row for batch in head._of_labelled(paths, labels) for row in batch.to_pylist()]
    assert {row["image_id"].hex(): np.frombuffer(row["vector"], "<f2").tolist() for row in rows_of} == {
        image(13): [1.0, 3.0], image(27): [2.0, 7.0], image(11): [1.0, 1.0],
    }  # fmt: skip
    assert read == [(paths[1], 0), (paths[2], 1)]


IDS = [f"{n:032x}" for n in range(900)]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Vectors of the sample scorer's width, and labels that their first number tells."""
    vectors = np.random.default_rng(0).normal(size=(len(IDS), 128))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    stored = pa.array([vector.tobytes() for vector in vectors], pa.binary())
    pq.write_table(pa.table({"image_id": [bytes.fromhex(i) for i in IDS], "vector": stored}), tmp_path / "v.parquet")
    lines = [f"{i},{int(vector[0] > 0)}" for i, vector in zip(IDS, vectors, strict=True)]
    (tmp_path / "labels.csv").write_text("image_id,found\n" + "\n".join([*lines, f"{'f' * 32},1"]) + "\n")
    return tmp_path


def test_a_head_is_trained_and_fits_the_config_that_it_was_trained_with(
    labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(labelled / "heads" / "first.safetensors")
    command = ["head", "train", "--vectors", str(labelled / "v.parquet"), "--labels", str(labelled / "labels.csv")]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--finds", "a first number", "--precision", "0.85", "--write", path])
    assert not ended.value.code
    said = json.loads(capsys.readouterr().out)
    read = heads.read(path)
    assert said["threshold"] == read.about.threshold
    assert said["labels_without_a_vector"] == 1
    assert {name: read.about.measured[name] for name in said["held_out"]} == said["held_out"]
    assert said["held_out"]["auc"] > 0.85
    assert read.about.measured["on"] == "labels.csv"
    score = from_tree(embedded.tree(), "test").score
    assert heads.judge(PolicyHead(reason="unsafe", head=path), 0, score).threshold == read.about.threshold


def test_too_few_labels_end_with_a_sentence(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labelled / "labels.csv").write_text(f"image_id,found\n{IDS[0]},1\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["head", "train", "--vectors", str(labelled / "v.parquet"), "--labels", str(labelled / "labels.csv"),
             "--finds", "x", "--write", str(labelled / "x.safetensors")]
        )  # fmt: skip
    assert ended.value.code == HeadError.exit_code
    assert "label more images" in capsys.readouterr().err
    assert not (labelled / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("image_id\nabc\n", "has no column found"),
        (f"image_id,found\n{'0' * 32},maybe\n", "row 1: .*32 hex digits and 1 or 0"),
        ("image_id,found\nabc,1\n", "row 1: 'abc'"),
        (f"image_id,found\n{'0' * 32},1\n{'0' * 32},0\n", "row 2: .*both, 1 and 0"),
        ("", "neither CSV nor Parquet"),
    ],
)
def test_labels_that_cannot_be_read_are_refused_by_row(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(HeadError, match=why):
        head.read_labels(str(tmp_path / "labels.csv"))


def test_labels_of_parquet_have_groups(tmp_path: Path) -> None:
    ids = [bytes.fromhex(image) for image in IDS[1:3]]
    table = pa.table({"image_id": ids, "found": [True, False], "group": [7, None]})
    pq.write_table(table, tmp_path / "labels.parquet")
    labels = head.read_labels(str(tmp_path / "labels.parquet"))
    assert (labels.found, labels.group) == ({IDS[1]: True, IDS[2]: False}, {IDS[1]: "7"})


def test_vectors_as_lists_are_those_as_bytes_whatever_their_order(tmp_path: Path) -> None:
    labels = head.Labels("labels.csv", dict.fromkeys(IDS[:2], True), {})
    vectors = np.arange(8, dtype=np.float16).reshape(2, 4)
    forms = {
        "bytes": pa.table({"image_id": IDS[:2], "vector": [v.tobytes() for v in vectors]}),
        "lists": pa.table({"image_id": IDS[1::-1], "vector": vectors[::-1].astype(float).tolist()}),
    }
    for name, table in forms.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        ids, found = head.of_file(str(tmp_path / f"{name}.parquet"), labels)
        assert ids == IDS[:2]
        np.testing.assert_array_equal(found, vectors)
    pq.write_table(pa.table({"image_id": IDS[:2], "vector": [[1.0], [1.0, 2.0]]}), tmp_path / "odd.parquet")
    with pytest.raises(HeadError, match="not of one width"):
        head.of_file(str(tmp_path / "odd.parquet"), labels)
