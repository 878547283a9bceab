"""Which labelled images the config's policy leaves out: by the domain of their address, and by heads on their vectors.

Reads    pairs, in the order of shard and row · image_vectors by place · the input shards' images, where no vector is
         kept of a model
Writes   permitted
Rejects  other_domain · person_photo · unsafe · watermark · low_aesthetic · unwanted · the reasons of images/decode.py

Vectors of the scoring model are read by the task itself, as scoring reads those of before: no vector crosses a shuffle.

Legend: N images, D the width of their vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from i2e_pipeline.clean.heads import HeadError, HeadFailed, Judge
from i2e_pipeline.core.config import ScoreConfig
from i2e_pipeline.core.domains import Domains
from i2e_pipeline.core.rejects import part
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.core.stored_image import StoredImage
from i2e_pipeline.engine.tasks import notes
from i2e_pipeline.images.decode import Decoded, Rejected, decode
from i2e_pipeline.images.encoder import Encoder
from i2e_pipeline.images.kept import KeptVectors
from i2e_pipeline.inputs.formats import StoredImages
from i2e_pipeline.inputs.shard import Images

LOOKED_AT = "images encoded for heads"
_AT_ONCE = 4096
"""Rows whose vectors a task holds."""


class Vectors(Protocol):
    """Vectors of images by their place."""

    def of(self, rows: pa.RecordBatch) -> tuple[npt.NDArray[np.float16], dict[int, Rejected]]:
        """(N, D) of rows with shard and row; and of those that have none, why, by their place among the rows."""

    def close(self) -> None: ...


class Encoded:
    """Those that a model makes of the stored images. A task works on several units: after `close` it opens again."""

    def __init__(self, open_shard: Callable[[int], Images], load: Callable[[], Encoder], limits: ScoreConfig) -> None:
        """load   called when the first image is to be encoded"""
        self._stored, self._load, self._limits = StoredImages(open_shard), load, limits
        self._threads: ThreadPoolExecutor | None = None
        self._encoder: Encoder | None = None
        self.encoded = 0

    def of(self, rows: pa.RecordBatch) -> tuple[npt.NDArray[np.float16], dict[int, Rejected]]:
        self._encoder = self._encoder or self._load()
        self._threads = self._threads or ThreadPoolExecutor(self._limits.decode_threads, thread_name_prefix="decode")
        vectors_ND = np.zeros((rows.num_rows, self._encoder.width), np.float16)
        refused: dict[int, Rejected] = {}
        for start in range(0, rows.num_rows, self._limits.batch_size):
            some = rows.slice(start, self._limits.batch_size)
            decoded = list(self._threads.map(self._decode, self._stored.of(some)))
            refused |= {start + i: one for i, one in enumerate(decoded) if isinstance(one, Rejected)}
            good = [(start + i, one.pixels) for i, one in enumerate(decoded) if not isinstance(one, Rejected)]
            if good:
                at, pixels = zip(*good, strict=True)
                vectors_ND[list(at)] = self._encoder.images(np.stack(pixels)).astype(np.float16)
                self.encoded += len(good)
        return vectors_ND, refused

    def _decode(self, stored: StoredImage) -> Decoded | Rejected:
        assert self._encoder is not None
        return decode(stored, self._limits, self._encoder.prepare, self._encoder.side)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._threads, self.encoded = None, 0
        self._stored.close()


class Kept:
    """Those that scoring has kept; of an image that has none, what the model makes of it.

    Raises HeadError for stored vectors that are none, with file, shard and row.
    """

    def __init__(self, kept: KeptVectors, encoded: Encoded) -> None:
        self._kept, self._encoded = kept, encoded

    def of(self, rows: pa.RecordBatch) -> tuple[npt.NDArray[np.float16], dict[int, Rejected]]:
        shard_N, row_N = rows.column("shard").to_numpy(), rows.column("row").to_numpy()
        held = self._kept.at(shard_N, row_N)
        places = zip(held["shard"].to_pylist(), held["row"].to_pylist(), strict=True)
        by_place = dict(zip(places, held["vector"].to_pylist(), strict=True))
        found = [by_place.get(place) for place in zip(shard_N.tolist(), row_N.tolist(), strict=True)]
        lacking = [i for i, vector in enumerate(found) if vector is None]
        there = self._numbers(found, shard_N, row_N)
        if not lacking:
            return there, {}
        made_ND, why = self._encoded.of(rows.take(pa.array(lacking)))
        vectors_ND = np.zeros((rows.num_rows, made_ND.shape[1]), np.float16)
        vectors_ND[lacking] = made_ND
        if len(there):
            vectors_ND[np.setdiff1d(np.arange(rows.num_rows), lacking)] = there
        return vectors_ND, {lacking[i]: one for i, one in why.items()}

    def _numbers(
        self, found: Sequence[bytes | None], shard_N: npt.NDArray[Any], row_N: npt.NDArray[Any]
    ) -> npt.NDArray[np.float16]:
        """Of those rows that have a stored vector, in their order."""
        there = [i for i, vector in enumerate(found) if vector is not None]
        sizes = [len(found[i] or b"") for i in there]
        usual = Counter(sizes).most_common(1)[0][0] if sizes else 0
        odd = [i for i, size in zip(there, sizes, strict=True) if size != usual or size % 2 or not size]
        what = "is not as wide as the others"
        stored_ND = np.empty((0, 0), np.float16)
        if there and not odd:
            stored_ND = np.frombuffer(b"".join(found[i] or b"" for i in there), "<f2").reshape(len(there), -1)
            odd = [there[n] for n in np.flatnonzero(~np.isfinite(stored_ND).all(axis=1)).tolist()]
            what = "has NaN or infinity"
        if odd:
            shard, row = int(shard_N[odd[0]]), int(row_N[odd[0]])
            more = f" (and of {len(odd) - 1} more)" if len(odd) > 1 else ""
            raise HeadError(
                f"{', '.join(self._kept.paths(shard))}: the stored vector of shard {shard}, row {row}{more} {what}: "
                "`i2e run --redo score` makes vectors anew"
            )
        return stored_ND

    def close(self) -> None:
        self._encoded.close()


@dataclass(frozen=True)
class Looked:
    """Heads that read vectors of one model."""

    vectors: Vectors
    judges: Sequence[tuple[int, Judge]]
    """Each with its place in clean.heads."""


def permitted(
    batches: Iterator[pa.RecordBatch], domains: Domains, looked: Sequence[Looked], encoded: Sequence[Encoded]
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Kernel: pairs that stay, and rejects.

    batches   pair_id: binary(16), shard, row; with domains, url; best in the order of shard and row
    domains   none: all are taken
    encoded   those of `looked` that open images, for the count
    yields    permitted: pair_id, scores (list of float32, one for each head); rejects: the first reason stands, domains
              before heads, heads in their order of models; notes: images encoded
    """
    heads = sum(len(one.judges) for one in looked)
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, _AT_ONCE):
                yield from _judged(batch.slice(start, _AT_ONCE), domains, looked, heads)
        if count := sum(one.encoded for one in encoded):
            yield from notes({LOOKED_AT: count})
    finally:
        for one in looked:
            one.vectors.close()


def _judged(
    rows: pa.RecordBatch, domains: Domains, looked: Sequence[Looked], heads: int
) -> Iterator[tuple[str, pa.RecordBatch]]:
    reasons: list[Any] = [None] * rows.num_rows
    said: list[str | None] = [None] * rows.num_rows
    if domains:
        urls = rows.column("url")
        for i in np.flatnonzero(~domains.hold(urls)).tolist():
            reasons[i], said[i] = Reason.OTHER_DOMAIN, None if urls[i].is_valid else "it has no address"
    scores_NH = np.full((rows.num_rows, heads), np.nan, np.float32)
    for one in looked:
        asked = [i for i, reason in enumerate(reasons) if reason is None]
        if not asked:
            break
        vectors_ND, refused = one.vectors.of(rows.take(pa.array(asked)))
        for i, why in refused.items():
            reasons[asked[i]], said[asked[i]] = why.reason, why.detail
        for place, judge in one.judges:
            number_N, gone_N = judge(vectors_ND, _where(rows, asked))
            scores_NH[asked, place] = number_N
            for i in np.flatnonzero(gone_N).tolist():
                if reasons[asked[i]] is None:
                    reasons[asked[i]] = judge.reason
                    said[asked[i]] = f"{judge.name} gives {number_N[i]:.5f}, bar {judge.threshold:g}"
        for i in refused:
            scores_NH[asked[i]] = np.nan
    flat = pa.array(scores_NH.ravel(), pa.float32(), from_pandas=True)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(rows.num_rows + 1, dtype=np.int32) * heads), flat)
    yield from part(
        "permitted", rows.append_column("scores", lists), reasons, said, key="pair_id", columns=["pair_id", "scores"]
    )


def _where(rows: pa.RecordBatch, asked: Sequence[int]) -> str:
    """Places of the first and the last of some rows."""
    first, last = ((rows.column("shard")[i].as_py(), rows.column("row")[i].as_py()) for i in (asked[0], asked[-1]))
    return f"shard {first[0]}, row {first[1]}, to shard {last[0]}, row {last[1]}"


def fits(judge: Judge, width: int) -> None:
    """Raise HeadError for a head that cannot read vectors so wide."""
    try:
        judge(np.zeros((2, width), np.float16))
    except HeadFailed as error:
        raise HeadError(str(error)) from error.__cause__
