"""The made-up dataset is one that readers of published datasets take, and its counts agree."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import explore_dataset
from i2e_pipeline.core.schemas import ENTITY_STATISTICS, IMAGES
from i2e_pipeline.core.splits import TEST
from i2e_pipeline.dataset.published import open_published
from tests.export.odd_dataset import tree

SMALL = ["--entities", "200", "--images", "1000", "--units", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return explore_dataset.main([*SMALL, "--into", str(tmp_path_factory.mktemp("made") / "i2e")])


def rows_of(folder: str, table: str) -> pa.Table:
    paths = sorted((Path(folder) / table).glob("unit=*/*.parquet"))
    return pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths])


def test_counts_of_manifest_images_entities_and_statistics_agree(folder: str) -> None:
    made = open_published(folder)
    images = rows_of(folder, "images")
    assert images.schema.equals(IMAGES)
    assert made.rows == len(images) == made.manifest["images"] == 1000
    assert len(made.files) == len(made.manifest["units"]) == 4
    labels = pc.list_flatten(images["labels"].combine_chunks())
    classes, counts = np.unique(labels.field("class_index").to_numpy(), return_counts=True)
    assert classes.tolist() == list(range(200))
    assert made.entities["images"].to_numpy().tolist() == counts.tolist()
    assert made.manifest["labels"] == len(labels) == 1100
    assert pc.take(made.entities["entity_id"], labels.field("class_index")).to_pylist() == (
        labels.field("entity_id").to_pylist()
    )
    statistics = rows_of(folder, "statistics/entities")
    assert statistics.schema.equals(ENTITY_STATISTICS)
    assert statistics["class_index"].null_count == 20
    told = rows_of(folder, "statistics/buckets")
    assert (sum(told["entities"].to_pylist()), sum(told["images"].to_pylist())) == (200, 1100)
    for step, following in zip(made.manifest["funnel"], made.manifest["funnel"][1:], strict=False):
        assert step["rows_in"] == step["rows_out"] + sum(step["rejected"].values())
        assert following["rows_in"] == step["rows_out"]


def test_a_label_is_of_an_image_once_and_its_words_are_in_the_text(folder: str) -> None:
    for row in rows_of(folder, "images").to_pylist():
        assert 1 <= len(row["labels"]) == len({one["entity_id"] for one in row["labels"]}) <= 4
        assert all(one["mention"] in row["alt_text"] for one in row["labels"])


def test_means_and_splits_follow_from_labels(folder: str) -> None:
    images, entities = rows_of(folder, "images"), open_published(folder).entities
    scores: dict[int, list[float]] = {}
    for row in images.to_pylist():
        for one in row["labels"]:
            scores.setdefault(one["class_index"], []).append(one["score"])
    means = [np.mean(scores[c]) for c in range(200)]
    assert entities["mean_probability"].to_pylist() == pytest.approx(means, abs=1e-6)
    held_out = set(entities.filter(pc.equal(entities["split"], TEST))["entity_id"].to_pylist())
    for row in images.to_pylist():
        assert (row["split"] == TEST) == bool(held_out & {one["entity_id"] for one in row["labels"]})


def test_images_can_be_decoded_and_no_two_are_equal(folder: str) -> None:
    images = rows_of(folder, "images").to_pylist()
    for row in images[::10]:
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        image.load()
        assert image.size == (row["width"], row["height"])
    assert len({row["image"]["bytes"] for row in images}) == 1000


def test_rows_lie_in_the_order_of_their_ids_and_in_row_groups(tmp_path: Path) -> None:
    made = open_published(explore_dataset.write_dataset(tmp_path, 50, 3000, units=1, row_group_mb=1))
    (file,) = made.files
    assert len(file.row_group_rows) > 1
    ids = rows_of(str(tmp_path), "images")["image_id"].to_pylist()
    assert ids == sorted(set(ids))


def test_the_seed_decides_every_byte(folder: str, tmp_path: Path) -> None:
    again = explore_dataset.main([*SMALL, "--into", str(tmp_path / "again")])
    other = explore_dataset.main([*SMALL, "--seed", "1", "--into", str(tmp_path / "other")])
    assert tree(again) == tree(folder)
    assert tree(other) != tree(folder)


def test_few_entities_have_most_images() -> None:
    counts = explore_dataset.images_per_entity(20_000, 100_000)
    assert counts.sum() == 110_000
    assert counts[0] == 1000
    assert counts.min() >= 1
    assert (np.diff(counts) <= 0).all()
    assert explore_dataset.images_per_entity(5, 5).tolist() == [1] * 5


def test_what_is_there_already_is_left_as_it_is(folder: str) -> None:
    written = (Path(folder) / "manifest.json").stat().st_mtime_ns
    assert explore_dataset.main([*SMALL, "--into", folder]) == folder
    assert (Path(folder) / "manifest.json").stat().st_mtime_ns == written


def test_a_folder_that_holds_something_else_and_numbers_that_cannot_be_are_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="something else: remove it"):
        explore_dataset.main([*SMALL, "--seed", "1", "--into", folder])
    with pytest.raises(SystemExit, match="an image of its own"):
        explore_dataset.main(["--entities", "9", "--images", "8", "--into", str(tmp_path / "i2e")])
