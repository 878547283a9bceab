"""Score: how well does each candidate entity fit the image?

Reads    (shard, row, pair_id, entity_ids) · the input shards' image column · entity_vectors · image_vectors of before
Writes   scores (pair_id, entity_id, image_id, clip_score, background_z, width, height, image_hash) · image_vectors
Rejects  no_linked_mention · null_image · empty_image · too_many_bytes · not_an_image · unsupported_format ·
         truncated_image · broken_image · too_many_pixels · too_small · too_long · nan_score

Bytes in, scores out: a task reads its rows' bytes from the input file itself, and numbers leave it. Handing decoded
pixels from one UDF to the next costs 15 times the throughput (150,528 floats an image). An image whose vector is kept
is not opened. Scores are those of vectors in float16, kept or not, so that they are the same either way.

Legend: N images, P (pair, entity) rows, D the model's width.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.config import ScoreConfig
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.rejects import reject
from i2e_pipeline.core.schemas import ID, IMAGE_VECTORS, SCORES, Reason
from i2e_pipeline.core.stored_image import StoredImage
from i2e_pipeline.engine.tasks import notes
from i2e_pipeline.images.decode import Decoded, Header, Rejected, decode, perceptual_hashes, unfit
from i2e_pipeline.images.encoder import Encoder
from i2e_pipeline.images.kept import KeptVectors
from i2e_pipeline.inputs.formats import StoredImages
from i2e_pipeline.inputs.shard import Images
from i2e_pipeline.score.entity_vectors import EntityVectors
from i2e_pipeline.score.measure import Measure

BLOCK_BATCHES = 16
"""Rows are worked on in blocks of so many encoder batches, sorted by file and row, whatever batches they came in."""
REMEMBERED = 16_384
"""Distinct images of a task whose result is kept for the next row with the same bytes."""
BYTES_IN_FLIGHT = 128 << 20
"""Stored bytes that may wait for a decoding thread."""


IMAGES_ENCODED, VECTORS_THERE = "images encoded", "images whose vector was there"


@dataclass(slots=True)
class Seen:
    """What is known of one distinct image: why it is rejected, or its vector, sides, hash and background."""

    image_id: bytes
    rejected: Rejected | None = None
    width: int = 0
    height: int = 0
    hash: bytes = b""
    vector_D: np.ndarray | None = None
    """float16"""
    named: bool = False
    """Of a kept one: whether it lay in a file that the row names, which may be another one now."""


def score(
    batches: Iterable[pa.RecordBatch],
    open_shard: Callable[[int], Images],
    encoder: Encoder,
    vectors: EntityVectors,
    config: ScoreConfig,
    background: Sequence[int] | np.ndarray = (),
    exemplars: Mapping[str, Sequence[int]] | None = None,
    kept: KeptVectors | None = None,
    same_content: KeptVectors | None = None,
    kept_stay: bool = False,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Kernel: cosine of each image with each of its candidate entities.

    batches      shard: int32, row: int64, pair_id: binary(16), entity_ids: list<int64>; best in order of shard and row
    open_shard   the reader of a shard by its number; the kernel closes it
    background   entities against whose cosines background_z is measured; fewer than two: background_z is null
    exemplars    by coarse type its most famous entities, by falling fame: `type_exemplars` of each stand for the type,
                 `vocabulary` of each are the vocabulary. Without two types of four: type_z and type_gap are null;
                 without four words: vocabulary_gap and description_gap
    kept         vectors of this model by place: of an image that has one, no byte is read, unless it lies in a file of
                 its own, which may have changed since
    same_content vectors of this model by image_id: an image that has one is read, and neither decoded nor encoded
    kept_stay    the rows of `kept` stay where they are, and are not written again
    yields       ("scores", SCORES): a row per pair and distinct entity, clip_score in [-1, 1]; background_z, name_z and
                 description_z in standard deviations above the image's mean cosine to the background, of name and
                 description, name, description; type_z and type_gap, how far the image fits the entity's type, and how
                 much less than the type that it fits best, in standard deviations among the types; vocabulary_gap and
                 description_gap, how much less the image fits the entity than what it fits best of the vocabulary, the
                 entity itself left out, in standard deviations of the image's cosines to the vocabulary (below 0: the
                 entity fits better than all of it), by name and description, and by descriptions alone;
                 ("image_vectors", IMAGE_VECTORS): with `keep_vectors` a row per place whose image has a vector, those
                 of `kept` among them though no name leads to an entity now;
                 ("rejects", reason, id, shard, row, detail): a row per pair that is not scored;
                 notes: how many images were encoded, and of how many the vector was there
    Each pair comes out exactly once, scored or rejected. Equal bytes within a task are decoded and encoded once. A bad
    row raises nothing; a missing entity vector, shard or row does, since then the tables do not fit together.
    """
    measure = Measure(
        vectors, background, exemplars or {}, config.type_exemplars, config.vocabulary, device=encoder.device
    )
    with _Images(open_shard, encoder, config, kept, same_content) as images:
        for block in _blocks(batches, config.batch_size * BLOCK_BATCHES):
            yield from _score_block(block, images, measure, config.keep_vectors, kept_stay)
        there = {VECTORS_THERE: images.taken} if images.taken else {}
        yield from notes({IMAGES_ENCODED: images.encoded, **there})


def _blocks(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `rows`: small batches are gathered, large ones cut."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, rows - count)
            batch = batch.slice(part.num_rows)
            waiting.append(part)
            count += part.num_rows
            if count == rows:
                yield pa.concat_batches(waiting)
                waiting, count = [], 0
    if waiting:
        yield pa.concat_batches(waiting)


def _score_block(
    block: pa.RecordBatch,
    images: _Images,
    measure: Measure,
    keep_vectors: bool,
    kept_stay: bool,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    block = block.take(pc.sort_indices(block, [("shard", "ascending"), ("row", "ascending")]))
    named = pc.fill_null(pc.list_value_length(block["entity_ids"]), 0).to_numpy(zero_copy_only=False) > 0
    refused: dict[int, Rejected] = {int(i): Rejected(Reason.NO_LINKED_MENTION) for i in np.flatnonzero(~named)}
    at_R = np.flatnonzero(named)
    shard_N, row_N = block["shard"].to_numpy(), block["row"].to_numpy()
    known = images.kept(shard_N, row_N)
    places = list(zip(shard_N[at_R].tolist(), row_N[at_R].tolist(), strict=True))
    seen = images.read(places, known)
    scored: list[int] = []
    good: list[Seen] = []
    for i, image in zip(at_R.tolist(), seen, strict=True):
        if image.rejected is not None:
            refused[i] = image.rejected
        else:
            scored.append(i)
            good.append(image)
    if scored:
        pairs = block.take(pa.array(scored))
        table, unscored = _scores(pairs, good, measure)
        for at, detail in unscored.items():
            refused[scored[at]] = Rejected(Reason.NAN_SCORE, detail)
        if table.num_rows:
            yield "scores", table
    if keep_vectors:
        vectors = {**known, **dict(zip(places, seen, strict=True))}
        if kept_stay:
            vectors = {place: image for place, image in vectors.items() if place not in known}
        yield "image_vectors", _image_vectors(vectors, images.named)
    if refused:
        yield "rejects", _rejects(block, refused)


def _scores(
    pairs: pa.RecordBatch,
    images: list[Seen],
    measure: Measure,
) -> tuple[pa.RecordBatch, dict[int, str]]:
    """SCORES of the pairs; and the pairs whose score for some entity is NaN, each with that entity."""
    distinct: dict[bytes, int] = {}
    image_R = np.fromiter((distinct.setdefault(s.image_id, len(distinct)) for s in images), np.int64, len(images))
    first = dict(zip(image_R.tolist(), images, strict=True))
    images_ND = np.stack([vector for i in range(len(distinct)) if (vector := first[i].vector_D) is not None])

    listed = pairs["entity_ids"]
    pair_P = pc.list_parent_indices(listed).to_numpy().astype(np.int64)
    entity_P = pc.list_flatten(listed).to_numpy()
    once = np.unique(np.stack([pair_P, entity_P]), axis=1)  # a text may name an entity twice
    pair_P, entity_P = once[0], once[1]
    images_ND = images_ND.astype(np.float64)
    images_ND /= np.maximum(np.linalg.norm(images_ND, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    clip_P = measure.cosines("vector", images_ND, image_R[pair_P], entity_P)
    z_P = measure.above_background("vector", images_ND, image_R[pair_P], clip_P)

    finite_P = np.isfinite(clip_P) if z_P is None else np.isfinite(clip_P) & np.isfinite(z_P)
    unscored = {int(pair_P[i]): f"Q{entity_P[i]}" for i in np.flatnonzero(~finite_P)[::-1]}
    if unscored:
        keep_P = ~np.isin(pair_P, list(unscored))
        pair_P, entity_P, clip_P = pair_P[keep_P], entity_P[keep_P], clip_P[keep_P]
        z_P = None if z_P is None else z_P[keep_P]

    of_pair = pa.array(pair_P)
    ids = pa.array([s.image_id for s in images], type=ID)
    sides_2R = np.array([[s.width for s in images], [s.height for s in images]], dtype=np.int32)
    hashes = pa.array([s.hash for s in images], type=SCORES.field("image_hash").type)
    columns: dict[str, pa.Array] = {
        "pair_id": pairs["pair_id"].take(of_pair),
        "entity_id": pa.array(entity_P, type=pa.int64()),
        "image_id": ids.take(of_pair),
        "shard": pairs["shard"].take(of_pair),
        "row": pairs["row"].take(of_pair),
        "clip_score": pa.array(np.clip(clip_P, -1, 1).astype(np.float32)),
        "background_z": pa.nulls(len(pair_P), pa.float32()) if z_P is None else pa.array(z_P.astype(np.float32)),
        "described": pa.array(measure.vectors.described(entity_P)),
        **_senses(measure, images_ND, image_R[pair_P], entity_P, clip_P),
        "width": pa.array(sides_2R[0, pair_P]),
        "height": pa.array(sides_2R[1, pair_P]),
        "image_hash": hashes.take(of_pair),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in SCORES.names], schema=SCORES), unscored


SENSES = (
    "name_z",
    "description_z",
    "type_z",
    "type_gap",
    "vocabulary_gap",
    "description_gap",
    "visual",
    "fame",
)
"""Columns of SCORES that tell the sense from the word."""


def _senses(
    measure: Measure, images_ND: np.ndarray, image_P: np.ndarray, entity_P: np.ndarray, clip_P: np.ndarray
) -> dict[str, pa.Array]:
    """What tells the sense from the word: the name alone, the description alone, the type, and
    what else the image might be; null where unknown."""
    columns: dict[str, np.ndarray | None] = dict.fromkeys(SENSES)
    held = measure.held(images_ND)
    columns["vocabulary_gap"] = measure.below_vocabulary(held.get("vector"), image_P, entity_P, clip_P)
    for column, kind in (("name_z", "name_vector"), ("description_z", "description_vector")):
        if measure.vectors.has(kind):
            cosines_P = measure.cosines(kind, images_ND, image_P, entity_P)
            columns[column] = measure.above_background(kind, images_ND, image_P, cosines_P)
            if kind == "description_vector":
                columns["description_gap"] = measure.below_vocabulary(held.get(kind), image_P, entity_P, cosines_P)
    described_P = measure.vectors.described(entity_P)
    for column in ("description_z", "description_gap"):
        if (values := columns[column]) is not None:
            columns[column] = np.where(described_P, values, np.nan)
    of_type = measure.types(held.get("vector"), image_P, entity_P, clip_P)
    if of_type is not None:
        columns["type_z"], columns["type_gap"] = of_type
    for column in ("visual", "fame"):
        if measure.vectors.has(column):
            columns[column] = measure.vectors.of(column, entity_P)
    return {
        name: pa.nulls(len(entity_P), pa.float32())
        if values is None
        else pa.array(values.astype(np.float32), from_pandas=True)  # NaN is null
        for name, values in columns.items()
    }


def _image_vectors(images: Mapping[tuple[int, int], Seen], named: Mapping[int, bool]) -> pa.RecordBatch:
    """IMAGE_VECTORS of places, in their order. An image without a vector, or with numbers that are none, has no row.

    named   of shards that were opened, whether their images lie in files that rows name
    """
    whole = [
        (place, image, vector_D)
        for place, image in sorted(images.items())
        if (vector_D := image.vector_D) is not None and np.isfinite(vector_D).all()
    ]
    seen = [image for _, image, _ in whole]
    columns = {
        "shard": [shard for (shard, _), _, _ in whole],
        "row": [row for (_, row), _, _ in whole],
        "image_id": [image.image_id for image in seen],
        "width": [image.width for image in seen],
        "height": [image.height for image in seen],
        "image_hash": [image.hash for image in seen],
        "named": [named.get(shard, image.named) for (shard, _), image, _ in whole],
        "vector": [vector_D.astype("<f2").tobytes() for _, _, vector_D in whole],
    }
    return pa.RecordBatch.from_pydict(columns, schema=IMAGE_VECTORS)


def _rejects(block: pa.RecordBatch, refused: dict[int, Rejected]) -> pa.RecordBatch:
    mask = np.zeros(block.num_rows, dtype=bool)
    mask[list(refused)] = True
    why = [refused[i] for i in sorted(refused)]
    return reject(block, mask, [r.reason for r in why], [r.detail for r in why], key="pair_id")


@dataclass(slots=True)
class _Batch:
    """Decoded images that wait for the encoder."""

    images: list[Seen] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)
    thumbs: list[np.ndarray] = field(default_factory=list)


class _Images:
    """Rows -> Seen, with one open shard, threads that decode ahead of the encoder, and a memory of equal bytes."""

    def __init__(
        self,
        open_shard: Callable[[int], Images],
        encoder: Encoder,
        config: ScoreConfig,
        kept: KeptVectors | None,
        same_content: KeptVectors | None,
    ) -> None:
        self._stored, self._encoder, self._config = StoredImages(open_shard), encoder, config
        self._kept, self._same_content = kept, same_content
        self._threads = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        self._memory: OrderedDict[bytes, Seen] = OrderedDict()
        self.encoded = 0
        self.taken = 0
        """Images that were asked for and whose vector was there."""

    def __enter__(self) -> _Images:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._stored.close()

    @property
    def named(self) -> Mapping[int, bool]:
        """Of shards that were opened, whether their images lie in files that rows name."""
        return self._stored.named

    def kept(self, shard_N: np.ndarray, row_N: np.ndarray) -> dict[tuple[int, int], Seen]:
        """What is kept of the images at these places."""
        if self._kept is None:
            return {}
        rows = self._kept.at(shard_N, row_N)
        places = zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True)
        return dict(zip(places, _seen(rows), strict=True))

    def read(self, places: list[tuple[int, int]], known: Mapping[tuple[int, int], Seen]) -> list[Seen]:
        """What is known of the image at each (shard, row), which come sorted.

        known   of places whose image was encoded before. Read are, beside the others: one that the limits no longer let
                through, for what there is to say of it, and files that rows name, for whether they are what they were
        """
        unread = [p for p in places if p not in known or known[p].named or self._unfit(known[p])]
        self.taken += len(places) - len(unread)
        read = dict(zip(unread, self._read(unread, known), strict=True))
        return [read[place] if place in read else known[place] for place in places]

    def _unfit(self, image: Seen) -> bool:
        return unfit(Header(1, (image.width, image.height)), self._config) is not None

    def _read(self, places: list[tuple[int, int]], known: Mapping[tuple[int, int], Seen]) -> list[Seen]:
        seen: list[Seen] = []
        ahead: deque[tuple[Seen, int, Future[Decoded | Rejected]]] = deque()
        bytes_ahead = 0
        batch = _Batch()
        for stored, content, name, encoded in self._with_vectors(places, known):
            equal = self._memory.get(name) if content else None
            if equal is not None:
                self._memory.move_to_end(name)
                seen.append(equal)
                continue
            if encoded is not None:
                self.taken += 1
                self._memory[name] = encoded
                seen.append(encoded)
                continue
            image = Seen(name)
            seen.append(image)
            if content:
                self._memory[name] = image
            ahead.append((image, len(content), self._threads.submit(self._decode, stored)))
            bytes_ahead += len(content)
            while bytes_ahead > BYTES_IN_FLIGHT or len(ahead) > 2 * self._config.batch_size:
                bytes_ahead -= ahead[0][1]
                self._collect(*ahead.popleft(), batch)
        while ahead:
            self._collect(*ahead.popleft(), batch)
        self._encode(batch)
        while len(self._memory) > REMEMBERED:
            self._memory.popitem(last=False)
        return seen

    def _with_vectors(
        self, places: list[tuple[int, int]], known: Mapping[tuple[int, int], Seen]
    ) -> Iterator[tuple[StoredImage, bytes, bytes, Seen | None]]:
        """(what is stored at each place, its bytes, their id, what is known of an image of these bytes)"""
        waiting: list[tuple[tuple[int, int], StoredImage, bytes, bytes]] = []
        size = 0
        for place, stored in zip(places, self._stored.at(places), strict=True):
            content = stored if isinstance(stored, bytes) else b""
            waiting.append((place, stored, content, content_id(content)))
            size += len(content)
            # Looked up many at a time: equal images may lie anywhere among those of before.
            if self._same_content is None or size > BYTES_IN_FLIGHT:
                yield from self._looked_up(waiting, known)
                waiting, size = [], 0
        yield from self._looked_up(waiting, known)

    def _looked_up(
        self,
        waiting: list[tuple[tuple[int, int], StoredImage, bytes, bytes]],
        known: Mapping[tuple[int, int], Seen],
    ) -> Iterator[tuple[StoredImage, bytes, bytes, Seen | None]]:
        found: dict[bytes, Seen] = {}
        if self._same_content is not None:
            by_shard: dict[int, list[bytes]] = {}
            for (shard, _), _, content, name in waiting:
                if content and name not in self._memory:
                    by_shard.setdefault(shard, []).append(name)
            for shard, names in by_shard.items():
                found |= {image.image_id: image for image in _seen(self._same_content.of(shard, names))}
        for place, stored, content, name in waiting:
            before = known.get(place)
            image = before if before is not None and before.image_id == name else found.get(name)
            yield stored, content, name, image if content and image is not None and not self._unfit(image) else None

    def _decode(self, stored: StoredImage) -> Decoded | Rejected:
        return decode(stored, self._config, self._encoder.prepare, self._encoder.side)

    def _collect(self, image: Seen, _size: int, future: Future[Decoded | Rejected], batch: _Batch) -> None:
        decoded = future.result()
        if isinstance(decoded, Rejected):
            image.rejected = decoded
            return
        image.width, image.height = decoded.width, decoded.height
        batch.images.append(image)
        batch.pixels.append(decoded.pixels)
        batch.thumbs.append(decoded.thumb_TT)
        if len(batch.images) == self._config.batch_size:
            self._encode(batch)

    def _encode(self, batch: _Batch) -> None:
        if not batch.images:
            return
        vectors_ND = self._encoder.images(np.stack(batch.pixels)).astype(np.float16)
        hashes_N = perceptual_hashes(np.stack(batch.thumbs))
        for image, vector_D, hash_ in zip(batch.images, vectors_ND, hashes_N, strict=True):
            image.vector_D, image.hash = vector_D, hash_.tobytes()
        self.encoded += len(batch.images)
        batch.images.clear()
        batch.pixels.clear()
        batch.thumbs.clear()


def _seen(rows: pa.Table) -> list[Seen]:
    """Rows of IMAGE_VECTORS."""
    return [
        Seen(
            image_id=row["image_id"],
            width=row["width"],
            height=row["height"],
            hash=row["image_hash"],
            vector_D=np.frombuffer(row["vector"], "<f2"),
            named=row["named"],
        )
        for row in rows.to_pylist()
    ]
