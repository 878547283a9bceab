from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.schemas import IMAGE_VECTORS, SCORES, Reason
from i2e_pipeline.images.encoder import Encoder
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.shard import Images, Shard
from i2e_pipeline.score import scoring
from i2e_pipeline.score.entity_vectors import EntityVectors, MissingVectorError
from i2e_pipeline.score.scoring import score
from tests.small_models import picture, rows_of, stored, write_shard
from wikidata.types import TYPES

NAMES = {1: "Mars", 2: "Turkey, country", 3: "Turkey, bird", 4: "chess rook", 5: "orange"}
BACKGROUND = [1, 2, 3, 4, 5]
IMAGES = [stored(picture(i), "PNG" if i % 2 else "JPEG") for i in range(12)]

SCHEMAS = {"scores": SCORES, "image_vectors": IMAGE_VECTORS}

Scored = tuple[list[dict], list[dict]]


@pytest.fixture(scope="module")
def vectors(encoder: Encoder) -> EntityVectors:
    return EntityVectors(np.array(list(NAMES)), encoder.texts(list(NAMES.values())))


@pytest.fixture
def shard(tmp_path: Path) -> Callable[[list[bytes | None]], Callable[[int], Images]]:
    def make(images: list[bytes | None]) -> Callable[[int], Images]:
        path = write_shard(tmp_path / "shard.parquet", images)
        return lambda _: formats.images(Shard(path), "jpg")

    return make


def run(batches, open_shard, encoder, vectors, config, background=BACKGROUND) -> Scored:
    tables: dict[str, list[dict]] = {"scores": [], "rejects": []}
    for name, batch in score(batches, open_shard, encoder, vectors, config, background):
        if name in SCHEMAS:
            assert batch.schema == SCHEMAS[name]
            batch.validate(full=True)
        tables.setdefault(name, []).extend(batch.to_pylist())
    return tables["scores"], tables["rejects"]


def key(row: dict) -> tuple[bytes, int]:
    return row["pair_id"], row["entity_id"]


def test_scores_equal_those_of_each_pair_alone(shard, encoder, vectors, config) -> None:
    """Batched, trimmed and cached against open_clip's own functions, a pair at a time, in float32."""
    lists = [[1 + i % 5, 1 + (i + 2) % 5] for i in range(12)]
    scores, rejects = run([rows_of(lists)], shard(IMAGES), encoder, vectors, config)
    assert (len(scores), rejects) == (24, [])
    model, preprocess = open_clip.create_model_from_pretrained(config.model)
    tokenizer = open_clip.get_tokenizer(config.model)
    model.eval()
    for row in scores:
        with torch.inference_mode():
            image = model.encode_image(preprocess(picture_of(row["row"]))[None], normalize=True)
            texts = model.encode_text(tokenizer([NAMES[row["entity_id"]], *NAMES.values()]), normalize=True)
        cosines = (image @ texts.T)[0].numpy()
        assert row["clip_score"] == pytest.approx(cosines[0], abs=1e-3)
        assert row["background_z"] == pytest.approx((cosines[0] - cosines[1:].mean()) / cosines[1:].std(), abs=2e-2)
        assert row["image_id"] == content_id(IMAGES[row["row"]])
        assert (row["width"], row["height"]) == (64, 48)


def picture_of(row: int) -> Image.Image:
    return Image.open(io.BytesIO(IMAGES[row])).convert("RGB")


def test_every_pair_is_scored_or_rejected_exactly_once(shard, encoder, vectors, config) -> None:
    """in = out + rejected, with every kind of bad row beside good ones, and the good ones not touched by it."""
    bad: list[bytes | None] = [
        None,
        b"",
        b"<html>",
        IMAGES[0][:200],
        stored(picture(0, (8, 8))),
        stored(picture(0, (400, 20))),
    ]
    images = list(itertools.chain.from_iterable(itertools.zip_longest(IMAGES[:6], bad)))
    lists: list[list[int] | None] = [[1, 2]] * 12 + [None, []]
    scores, rejects = run([rows_of(lists)], shard([*images, *IMAGES[:2]]), encoder, vectors, config)
    assert [(r["row"], r["reason"]) for r in sorted(rejects, key=lambda r: r["row"])] == [
        (1, Reason.NULL_IMAGE),
        (3, Reason.EMPTY_IMAGE),
        (5, Reason.NOT_AN_IMAGE),
        (7, Reason.TRUNCATED_IMAGE),
        (9, Reason.TOO_SMALL),
        (11, Reason.TOO_LONG),
        (12, Reason.NO_LINKED_MENTION),
        (13, Reason.NO_LINKED_MENTION),
    ]
    scored, rejected = {s["pair_id"] for s in scores}, [r["id"] for r in rejects]
    assert len(scored) + len(set(rejected)) == len(scored) + len(rejected) == 14
    assert not scored & set(rejected)
    alone, _ = run([rows_of([[1, 2]] * 6)], shard(IMAGES[:6]), encoder, vectors, config)
    assert {s["image_id"]: s["clip_score"] for s in scores} == pytest.approx(
        {s["image_id"]: s["clip_score"] for s in alone}, abs=1e-5
    )


def test_rows_without_entities_are_rejected_unread(encoder, vectors, config) -> None:
    def never(_: int) -> Images:
        raise AssertionError("a shard was opened")

    scores, rejects = run([rows_of([[], None])], never, encoder, vectors, config)
    assert (scores, [r["reason"] for r in rejects]) == ([], [Reason.NO_LINKED_MENTION] * 2)


@pytest.mark.parametrize(("batch", "threads", "chunk"), [(1, 1, 12), (5, 3, 1), (64, 2, 5), (4, 1, 7)])
def test_scores_do_not_depend_on_batches_or_threads(
    batch, threads, chunk, shard, encoder, vectors, config, monkeypatch
) -> None:
    lists = [[1 + i % 5] for i in range(12)]
    images = [*IMAGES[:10], None, b"x"]
    base = run([rows_of(lists)], shard(images), encoder, vectors, config)
    rows = rows_of(lists)
    other = config.model_copy(update={"batch_size": batch, "decode_threads": threads})
    monkeypatch.setattr(scoring, "BLOCK_BATCHES", 1)
    parts = [rows.slice(i, chunk) for i in range(0, 12, chunk)][::-1]
    again = run(parts, shard(images), encoder, vectors, other)
    by_key = {key(s): s for s in again[0]}
    assert by_key.keys() == {key(s) for s in base[0]}
    for s in base[0]:
        same = by_key[key(s)]
        assert s["clip_score"] == pytest.approx(same["clip_score"], abs=1e-5)
        assert s["background_z"] == pytest.approx(same["background_z"], abs=1e-3)
        assert s["image_hash"] == same["image_hash"]
    assert sorted(map(str, again[1])) == sorted(map(str, base[1]))


def test_equal_bytes_are_encoded_once(shard, encoder, vectors, config, monkeypatch) -> None:
    encoded = []
    whole = Encoder.images
    monkeypatch.setattr(Encoder, "images", lambda self, pixels: (encoded.append(len(pixels)), whole(self, pixels))[1])
    images = [IMAGES[i % 3] for i in range(30)]
    parts = [rows_of([[1], [2], [1, 2]] * 2, first=first) for first in range(0, 30, 6)]
    scores, _ = run(parts, shard(images), encoder, vectors, config)
    assert sum(encoded) == 3
    assert len({(s["image_id"], s["clip_score"]) for s in scores if s["entity_id"] == 1}) == 2


def test_bad_bytes_that_repeat_are_rejected_each_time(shard, encoder, vectors, config) -> None:
    _, rejects = run([rows_of([[1]] * 4)], shard([b"<html>"] * 4), encoder, vectors, config)
    assert [r["row"] for r in rejects] == [0, 1, 2, 3]


def test_a_score_that_is_no_number_is_a_reject(shard, encoder, config) -> None:
    """Catches: NaN scores that are dropped or kept without a word (data-juicer, clip-retrieval)."""
    texts = encoder.texts(["Mars", "Turkey"])
    texts[1] = np.nan
    broken = EntityVectors(np.array([1, 2]), texts)
    scores, rejects = run([rows_of([[1], [1, 2], [2]])], shard(IMAGES), encoder, broken, config, background=())
    assert [s["row"] for s in scores] == [0]
    assert [(r["row"], r["reason"], r["detail"]) for r in rejects] == [
        (1, Reason.NAN_SCORE, "Q2"),
        (2, Reason.NAN_SCORE, "Q2"),
    ]


def test_an_entity_named_twice_is_scored_once(shard, encoder, vectors, config) -> None:
    scores, _ = run([rows_of([[3, 1, 3]])], shard(IMAGES), encoder, vectors, config)
    assert [s["entity_id"] for s in scores] == [1, 3]


def test_an_entity_without_a_vector_is_named(shard, encoder, vectors, config) -> None:
    with pytest.raises(MissingVectorError, match="Q77 has no vector"):
        run([rows_of([[77]])], shard(IMAGES), encoder, vectors, config)


def test_without_a_background_there_is_no_z(shard, encoder, vectors, config) -> None:
    scores, _ = run([rows_of([[1]])], shard(IMAGES), encoder, vectors, config, background=())
    assert scores[0]["background_z"] is None


def senses(encoder: Encoder) -> EntityVectors:
    told = {1: ("Mars", "planet", "astronomy"), 2: ("Turkey", "country", "region"), 3: ("Turkey", "bird", "taxon"),
            4: ("rook", None, None), 5: ("orange", "fruit", "food"), 6: ("hen", "bird", "taxon"),
            7: ("duck", "bird", "taxon"), 8: ("pear", "fruit", "food"), 9: ("plum", "fruit", "food")}  # fmt: skip
    empty = np.zeros((1, encoder.width), np.float32)
    description = [encoder.texts([d]) if d else empty for _, d, _ in told.values()]
    return EntityVectors(
        np.array(list(told)),
        encoder.texts([f"{n}, {d}" if d else n for n, d, _ in told.values()]),
        np.array([bool(d) for _, d, _ in told.values()]),
        beside={
            "name_vector": encoder.texts([n for n, _, _ in told.values()]),
            "description_vector": np.concatenate(description),
            "type": np.array([TYPES.code(t) for _, _, t in told.values()], np.int8),
            "visual": np.full(len(told), 0.5, np.float32),
            "fame": np.array([np.nan, *range(8)], np.float32),
        },
    )


def test_senses_are_measured_as_by_hand(shard, encoder, config) -> None:
    """Name alone and description alone against the background's, and the type by its best three exemplars."""
    vectors, exemplars = senses(encoder), {"taxon": [3, 6, 7, 2], "food": [5, 8, 9, 1], "region": [2, 4]}
    batches = score([rows_of([[3, 4, 1]])], shard(IMAGES), encoder, vectors, config, BACKGROUND, exemplars)
    bird, rook, mars = sorted(next(iter(batches))[1].to_pylist(), key=lambda r: [3, 4, 1].index(r["entity_id"]))
    image = encoder.images(np.stack([encoder.prepare(picture_of(0))]))[0].astype(np.float64)

    def z(text: str, background: list[str]) -> float:
        cosines = encoder.texts([text, *background]).astype(np.float64) @ image
        return float((cosines[0] - cosines[1:].mean()) / cosines[1:].std())

    assert bird["name_z"] == pytest.approx(z("Turkey", ["Mars", "Turkey", "Turkey", "rook", "orange"]), abs=0.02)
    assert bird["description_z"] == pytest.approx(z("bird", ["planet", "country", "bird", "fruit"]), abs=0.02)
    assert (rook["description_z"], rook["type_z"], rook["type_gap"]) == (None, None, None)
    assert (bird["visual"], bird["fame"], mars["fame"]) == (0.5, 1.0, None)
    # The best three exemplars; the bird, one of them or not, is held against three others. Two are too few for a type.
    cosines = {t: np.sort(vectors.lookup(exemplars[t]).astype(np.float64) @ image) for t in ("taxon", "food")}
    fits = {t: c[-3:].mean() for t, c in cosines.items()}
    own = float(vectors.lookup([3])[0].astype(np.float64) @ image)
    others = np.sort([c for c in cosines["taxon"] if abs(c - own) > 1e-6])[-3:]
    middle, spread = np.mean(list(fits.values())), np.std(list(fits.values()))
    assert bird["type_z"] == pytest.approx((others.mean() - middle) / spread, abs=1e-3)
    assert bird["type_gap"] == pytest.approx(max(0.0, fits["food"] - others.mean()) / spread, abs=1e-3)
    assert mars["type_z"] is None


def test_an_entity_is_held_against_the_best_of_all_else_that_the_image_might_be(shard, encoder, config) -> None:
    """The vocabulary is all exemplars, of small types too; an entity of it is not held against itself, and one that
    fits better than all of it stands below 0."""
    vectors, exemplars = senses(encoder), {"taxon": [3, 6, 7], "food": [5, 8, 9], "region": [2]}
    batches = score([rows_of([[1, 2, 3, 4, 5, 6, 7, 8, 9]])], shard(IMAGES), encoder, vectors, config, (), exemplars)
    rows = {r["entity_id"]: r for r in next(iter(batches))[1].to_pylist()}
    image = encoder.images(np.stack([encoder.prepare(picture_of(0))]))[0].astype(np.float64)
    vocabulary = sorted(e for of_type in exemplars.values() for e in of_type)

    def gap(entity: int, of: Callable[[list[int]], np.ndarray]) -> float:
        cosines = dict(zip(vocabulary, of(vocabulary).astype(np.float64) @ image, strict=True))
        best = max(c for e, c in cosines.items() if e != entity)
        return float((best - of([entity])[0].astype(np.float64) @ image) / np.std(list(cosines.values())))

    for entity, row in rows.items():
        assert row["vocabulary_gap"] == pytest.approx(gap(entity, vectors.lookup), abs=1e-3)
        if entity != 4:
            alone = gap(entity, partial(vectors.of, "description_vector"))
            assert row["description_gap"] == pytest.approx(alone, abs=1e-3)
    assert rows[4]["description_gap"] is None
    assert sum(row["vocabulary_gap"] < 0 for e, row in rows.items() if e in vocabulary) == 1
    few = score([rows_of([[1]])], shard(IMAGES), encoder, vectors, config, (), {"taxon": [3, 6, 7]})
    assert next(iter(few))[1].to_pylist()[0]["vocabulary_gap"] is None


def test_shards_are_opened_once_each_and_closed(tmp_path, encoder, vectors, config) -> None:
    paths = [write_shard(tmp_path / f"{i}.parquet", IMAGES[i * 4 : i * 4 + 4]) for i in range(3)]
    opened: list[Images] = []

    def open_shard(shard: int) -> Images:
        opened.append(formats.images(Shard(paths[shard]), "jpg"))
        return opened[-1]

    parts = [rows_of([[1]] * 4, shard=shard) for shard in (2, 0, 1)]
    scores, _ = run([pa.concat_batches(parts)], open_shard, encoder, vectors, config)
    assert {s["image_id"] for s in scores} == {content_id(b) for b in IMAGES}
    assert [r.path for r in opened] == paths
    assert all(r._source.closed for r in opened)


def test_blocks_hold_the_same_rows_in_the_same_order() -> None:
    rows = rows_of([[i] for i in range(23)])
    for cut, size in ((1, 7), (23, 5), (4, 100), (6, 6)):
        blocks = list(scoring._blocks([rows.slice(i, cut) for i in range(0, 23, cut)], size))
        assert [b.num_rows for b in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert pa.concat_batches(blocks).equals(rows)


def test_no_row_is_no_error(encoder, vectors, config) -> None:
    assert run([], None, encoder, vectors, config) == ([], [])
    assert run([rows_of([])], None, encoder, vectors, config) == ([], [])
