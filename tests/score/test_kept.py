"""Kept vectors: the same scores without opening, decoding or encoding an image that was encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.core.config import ScoreConfig
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.schemas import IMAGE_VECTORS
from i2e_pipeline.images.encoder import Encoder
from i2e_pipeline.images.kept import KeptVectors
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import Images, Shard
from i2e_pipeline.score.entity_vectors import EntityVectors
from i2e_pipeline.score.scoring import IMAGES_ENCODED, VECTORS_THERE, score
from tests.small_models import picture, rows_of, stored, write_shard

IMAGES = [stored(picture(i), "PNG") for i in range(8)]
NAMES = {1: "Mars", 2: "Turkey", 3: "rook"}


@pytest.fixture(scope="module")
def vectors(encoder: Encoder) -> EntityVectors:
    return EntityVectors(np.array(list(NAMES)), encoder.texts(list(NAMES.values())))


def scored(
    lists: list[list[int]], open_shard: Callable[[int], Images], *rest: Any, **options: Any
) -> dict[str, pa.Table]:
    found: dict[str, list[pa.RecordBatch]] = {}
    for name, batch in score([rows_of(lists)], open_shard, *rest, background=[1, 2, 3], **options):
        found.setdefault(name, []).append(batch)
    return {name: pa.Table.from_batches(batches) for name, batches in found.items()}


def counted(found: dict[str, pa.Table]) -> dict[str, int]:
    """The notes that are not zero."""
    told = found["notes"].to_pydict()
    return {note: rows for note, rows in zip(told["note"], told["rows"], strict=True) if rows}


def nothing_to_open(shard: int) -> Images:
    pytest.fail("a shard was opened")


def kept_in(folder: Path, table: pa.Table, *, files: int = 1, group: int | None = None) -> KeptVectors:
    paths = []
    for n, start in enumerate(range(0, table.num_rows, -(-table.num_rows // files))):
        paths.append(str(folder / f"{n}.parquet"))
        pq.write_table(table.slice(start, -(-table.num_rows // files)), paths[-1], row_group_size=group)
    return KeptVectors(dict.fromkeys(table["shard"].unique().to_pylist(), paths))


def test_a_kept_vector_gives_the_same_scores_and_no_byte_is_read(
    tmp_path: Path, encoder: Encoder, vectors: EntityVectors, config: ScoreConfig
) -> None:
    path = write_shard(tmp_path / "shard.parquet", IMAGES)
    first = scored([[1, 2]] * 8, lambda _: formats.images(Shard(path), "jpg"), encoder, vectors, config)
    assert counted(first) == {IMAGES_ENCODED: 8}
    assert first["image_vectors"]["image_id"].to_pylist() == [content_id(image) for image in IMAGES]

    kept = kept_in(tmp_path, first["image_vectors"])
    again = scored([[1, 2]] * 8, nothing_to_open, encoder, vectors, config, kept=kept)
    assert counted(again) == {VECTORS_THERE: 8}
    assert again["scores"].equals(first["scores"])
    assert again["image_vectors"].equals(first["image_vectors"])

    other = scored([[3], [], *[[1, 3]] * 6], nothing_to_open, encoder, vectors, config, kept=kept)
    fresh = scored([[3], [], *[[1, 3]] * 6], lambda _: formats.images(Shard(path), "jpg"), encoder, vectors, config)
    assert other["scores"].equals(fresh["scores"])
    assert other["rejects"].equals(fresh["rejects"])
    # The image that nothing leads to any more keeps its vector.
    assert other["image_vectors"].equals(first["image_vectors"])
    assert fresh["image_vectors"].num_rows == 7


def test_an_image_that_limits_no_longer_let_through_is_read_and_keeps_its_vector(
    tmp_path: Path, encoder: Encoder, vectors: EntityVectors, config: ScoreConfig
) -> None:
    images = [stored(picture(0)), stored(picture(1, size=(20, 18)))]
    path = write_shard(tmp_path / "shard.parquet", images)

    def open_shard(_: int) -> Images:
        return formats.images(Shard(path), "jpg")

    first = scored([[1], [1]], open_shard, encoder, vectors, config)
    kept = kept_in(tmp_path, first["image_vectors"])
    narrow = config.model_copy(update={"min_side": 19})
    now = scored([[1], [1]], open_shard, encoder, vectors, narrow, kept=kept)
    assert counted(now) == {VECTORS_THERE: 1}
    assert now["rejects"]["reason"].to_pylist() == ["too_small"]
    assert now["rejects"].equals(scored([[1], [1]], open_shard, encoder, vectors, narrow)["rejects"])


def test_equal_bytes_at_another_place_are_not_encoded(
    tmp_path: Path, encoder: Encoder, vectors: EntityVectors, config: ScoreConfig
) -> None:
    path = write_shard(tmp_path / "shard.parquet", IMAGES)
    first = scored([[1]] * 8, lambda _: formats.images(Shard(path), "jpg"), encoder, vectors, config)
    new = stored(picture(99), "PNG")
    moved = write_shard(tmp_path / "moved.parquet", [new, *IMAGES[::-1]])
    same = kept_in(tmp_path, first["image_vectors"], files=3, group=2)
    now = scored([[1]] * 9, lambda _: formats.images(Shard(moved), "jpg"), encoder, vectors, config, same_content=same)
    assert counted(now) == {IMAGES_ENCODED: 1, VECTORS_THERE: 8}
    assert now["scores"]["clip_score"].to_pylist()[1:] == first["scores"]["clip_score"].to_pylist()[::-1]


def test_a_file_that_a_row_names_is_read_for_whether_it_is_what_it_was(
    tmp_path: Path, encoder: Encoder, vectors: EntityVectors, config: ScoreConfig
) -> None:
    """Catches: the vector of a file that has changed under its name."""
    for n, image in enumerate(IMAGES):
        (tmp_path / f"{n}.png").write_bytes(image)
    path = str(tmp_path / "shard.parquet")
    pq.write_table(pa.table({"jpg": [f"{n}.png" for n in range(8)]}), path)

    def open_shard(_: int) -> Images:
        return formats.images(Shard(path), "jpg")

    first = scored([[1]] * 8, open_shard, encoder, vectors, config)
    assert first["image_vectors"]["named"].to_pylist() == [True] * 8
    (tmp_path / "3.png").write_bytes(stored(picture(77), "PNG"))
    (tmp_path / "kept").mkdir()
    kept = kept_in(tmp_path / "kept", first["image_vectors"])
    again = scored([[1]] * 8, open_shard, encoder, vectors, config, kept=kept)
    assert counted(again) == {IMAGES_ENCODED: 1, VECTORS_THERE: 7}
    fresh = scored([[1]] * 8, open_shard, encoder, vectors, config)
    assert again["scores"].equals(fresh["scores"])
    assert again["image_vectors"].equals(fresh["image_vectors"])


def test_without_keep_vectors_none_is_written(
    tmp_path: Path, encoder: Encoder, vectors: EntityVectors, config: ScoreConfig
) -> None:
    path = write_shard(tmp_path / "shard.parquet", IMAGES)
    off = config.model_copy(update={"keep_vectors": False})
    found = scored([[1]] * 8, lambda _: formats.images(Shard(path), "jpg"), encoder, vectors, off)
    assert "image_vectors" not in found
    on = scored([[1]] * 8, lambda _: formats.images(Shard(path), "jpg"), encoder, vectors, config)
    assert found["scores"].equals(on["scores"])


def test_a_model_that_gives_no_numbers_leaves_no_vector(
    tmp_path: Path, encoder: Encoder, vectors: EntityVectors, config: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "shard.parquet", IMAGES)
    monkeypatch.setattr(encoder, "images", lambda pixels: np.full((len(pixels), 24), np.nan, np.float32))
    found = scored([[1]] * 8, lambda _: formats.images(Shard(path), "jpg"), encoder, vectors, config)
    assert found["image_vectors"].num_rows == 0
    assert set(found["rejects"]["reason"].to_pylist()) == {"nan_score"}


@settings(max_examples=40)
@given(
    places=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 40)), min_size=1, max_size=60),
    asked=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 45)), max_size=30),
    files=st.integers(1, 4),
    group=st.integers(1, 20),
    shuffled=st.booleans(),
)
def test_rows_are_found_wherever_they_lie(
    tmp_path_factory: pytest.TempPathFactory,
    places: set[tuple[int, int]],
    asked: set[tuple[int, int]],
    files: int,
    group: int,
    shuffled: bool,
) -> None:
    """Catches: row groups that are passed over, where statistics span several shards or files are in no order."""
    rows = sorted(places, key=(lambda p: hash((p, 7))) if shuffled else None)
    table = pa.table(
        {
            "shard": [p[0] for p in rows],
            "row": [p[1] for p in rows],
            "image_id": [content_id(repr(p).encode()) for p in rows],
            "width": [1] * len(rows),
            "height": [1] * len(rows),
            "image_hash": [b"h" * 32] * len(rows),
            "named": [False] * len(rows),
            "vector": [repr(p).encode() for p in rows],
        },
        schema=IMAGE_VECTORS,
    )
    kept = kept_in(tmp_path_factory.mktemp("kept"), table, files=files, group=group)
    wanted = np.array(sorted(asked), dtype=np.int64).reshape(-1, 2)
    by_place = kept.at(wanted[:, 0], wanted[:, 1])
    assert sorted(by_place["vector"].to_pylist()) == sorted(repr(p).encode() for p in asked & places)
    by_content = kept.of(rows[0][0], [content_id(repr(p).encode()) for p in asked])
    assert sorted(by_content["vector"].to_pylist()) == sorted(repr(p).encode() for p in asked & places)
