"""`i2e head train`: labels are read or refused by row; the head that it writes is the one of its figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline import cli
from i2e_pipeline.clean import heads
from i2e_pipeline.clean.heads import HeadError
from i2e_pipeline.commands.head import Labels, of_file, read_labels
from i2e_pipeline.core.config import PolicyHead
from i2e_pipeline.sample import embedded
from i2e_pipeline.stages import from_tree

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
    head = heads.read(path)
    assert said["threshold"] == head.about.threshold
    assert said["labels_without_a_vector"] == 1
    assert {name: head.about.measured[name] for name in said["held_out"]} == said["held_out"]
    assert said["held_out"]["auc"] > 0.85
    assert head.about.measured["on"] == "labels.csv"
    score = from_tree(embedded.tree(), "test").score
    assert heads.judge(PolicyHead(reason="unsafe", head=path), 0, score).threshold == head.about.threshold


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
        read_labels(str(tmp_path / "labels.csv"))


def test_labels_of_parquet_have_groups(tmp_path: Path) -> None:
    ids = [bytes.fromhex(image) for image in IDS[1:3]]
    table = pa.table({"image_id": ids, "found": [True, False], "group": [7, None]})
    pq.write_table(table, tmp_path / "labels.parquet")
    labels = read_labels(str(tmp_path / "labels.parquet"))
    assert (labels.found, labels.group) == ({IDS[1]: True, IDS[2]: False}, {IDS[1]: "7"})


def test_vectors_as_lists_are_those_as_bytes_whatever_their_order(tmp_path: Path) -> None:
    labels = Labels("labels.csv", dict.fromkeys(IDS[:2], True), {})
    vectors = np.arange(8, dtype=np.float16).reshape(2, 4)
    forms = {
        "bytes": pa.table({"image_id": IDS[:2], "vector": [v.tobytes() for v in vectors]}),
        "lists": pa.table({"image_id": IDS[1::-1], "vector": vectors[::-1].astype(float).tolist()}),
    }
    for name, table in forms.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        ids, found = of_file(str(tmp_path / f"{name}.parquet"), labels)
        assert ids == IDS[:2]
        np.testing.assert_array_equal(found, vectors)
    pq.write_table(pa.table({"image_id": IDS[:2], "vector": [[1.0], [1.0, 2.0]]}), tmp_path / "odd.parquet")
    with pytest.raises(HeadError, match="not of one width"):
        of_file(str(tmp_path / "odd.parquet"), labels)
