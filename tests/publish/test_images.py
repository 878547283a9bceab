from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest

from i2e_pipeline.core.schemas import HASH, IMAGES, SELECTION
from i2e_pipeline.engine.tasks import conform
from i2e_pipeline.publish.images import image_rows
from i2e_pipeline.publish.statistics import buckets

OF_IMAGES = SELECTION.append(pa.field("key", pa.string())).append(pa.field("perceptual_hash", HASH))


def test_images_come_in_hash_order_with_their_own_bytes() -> None:
    chosen = [(0, 3, b"\x09"), (0, 1, b"\x01"), (2, 0, b"\x05")]
    selected = pa.RecordBatch.from_pylist(
        [
            {
                "image_id": i * 16,
                "pair_id": bytes(16),
                "shard": shard,
                "row": row,
                "width": 1,
                "height": 2,
                "labels": [{"entity_id": 43, "class_index": 0, "score": 0.9, "clip_score": 0.3, "mention": "x"}],
                "key": f"k{row}",
                "perceptual_hash": bytes(31) + b"\xab",
                "hides_held_out": row == 0,
            }
            for shard, row, i in chosen
        ],
        schema=OF_IMAGES,
    )
    asked = []

    def read_rows(shard: int, rows: Sequence[int], image_ids: Sequence[bytes]) -> tuple[pa.Table, pa.Array]:
        assert len(image_ids) == len(rows)
        asked.append((shard, list(rows)))
        captions = pa.array([None if row == 3 else f"text {row}" for row in rows], pa.string())
        texts = pa.table({"url": [f"u{row}" for row in rows], "alt_text": captions})
        return texts, pa.array([f"{shard}/{row}".encode() for row in rows], pa.large_binary())

    rows = []
    for table, batch in image_rows(iter([selected.slice(0, 2), selected.slice(2)]), read_rows):
        assert table == "i2e/images"
        rows += batch.to_pylist()
    assert asked == [(0, [1, 3]), (2, [0])]
    assert [r["image"]["bytes"] for r in rows] == [b"0/1", b"2/0", b"0/3"]
    assert [r["alt_text"] for r in rows] == ["text 1", "text 0", None]
    assert [r["image_id"] for r in rows] == ["01" * 16, "05" * 16, "09" * 16]
    assert [r["split"] == "test" for r in rows] == [False, True, False]
    assert {(r["pair_id"], r["perceptual_hash"], r["key"][0]) for r in rows} == {("00" * 16, "00" * 31 + "ab", "k")}
    named = pa.RecordBatch.from_pylist([r for r in rows if r["alt_text"]])
    assert conform(named, IMAGES, "i2e/images").schema == IMAGES


def test_nothing_selected_is_nothing_read() -> None:
    empty = pa.RecordBatch.from_pylist([], schema=OF_IMAGES)
    assert list(image_rows(iter([empty]), lambda *_: pytest.fail("rows were read"))) == []


def test_buckets_hold_every_entity_and_image_once() -> None:
    counts = {1: 10, 2: 4, 4: 1, 5: 2, 700: 1}
    rows = buckets(counts).to_pylist()
    assert sum(r["entities"] for r in rows) == sum(counts.values())
    assert sum(r["images"] for r in rows) == sum(n * c for n, c in counts.items())
    assert (rows[0]["images_from"], rows[0]["images_to"], rows[0]["entities"]) == (1, 1, 10)
    assert rows[-1]["entities"] == 1
    assert len(buckets({}).to_pylist()) == 1
