"""Embed: the vectors of a data set's images under an encoder, made once.

Reads    an encoder (encoders.py) · an image set (image_set.py)
Writes   FOLDER/DATA-KEY.npz: vectors float32 (N, D) of norm 1, rows, failed; KEY names model, preprocessing, dtype
         and images
         FOLDER/DATA-KEY.parts/: the same of some images each, while a large set is encoded; an evaluation that was
         stopped goes on behind them

Legend: N images, D width of the vectors.

Threads decode and scale while the model works. An image that cannot be decoded is an error in a benchmark, which is
defined on all of its images; in other data sets it is counted and named.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from i2e_pipeline.core.config import EvaluateConfig, digest
from i2e_pipeline.core.files import fresh_file, remove
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.evaluate.encoders import EncoderError, ImageEncoder, open_encoder
from i2e_pipeline.evaluate.image_set import DatasetError, ImageSet, Stored
from i2e_pipeline.evaluate.vectors import VectorsError, normalised
from i2e_pipeline.images.decode import Rejected

__all__ = ["Embedded", "EncoderError", "ImageEncoder", "embed", "open_encoder"]

log = logging.getLogger(__name__)

VERSION = 1
"""Raised whenever this file gives other vectors for the same model and images: older files are then not read."""
_PART = 1 << 14
"""Images of a part: minutes on a CPU with a small model, seconds on a GPU."""


@dataclass(frozen=True)
class Embedded:
    """What came of a data set's images."""

    vectors_ND: np.ndarray
    """float32, norm 1"""
    rows_N: np.ndarray
    """int64 row in the data set of each vector, growing."""
    failed: dict[str, str]
    """Images that could not be decoded, by name: why."""
    cached: bool
    """Whether the vectors were read, not made."""
    seconds: float = 0.0
    """What it took to make them; loading the model is not counted."""


def embed(encoder: ImageEncoder, data: ImageSet, config: EvaluateConfig, folder: Path) -> Embedded:
    """Vectors of the data set's images; read from `folder` where it holds them already.

    Raises DatasetError where an image of a benchmark cannot be decoded or none of another set can, EncoderError where
    a vector is not finite.
    """
    if encoder.stored is not None:
        return _stored(encoder.stored, data)
    key = digest([VERSION, encoder.fingerprint, data.fingerprint])
    path = folder / f"{re.sub('[^0-9A-Za-z_.-]', '_', data.name)}-{key[:20]}.npz"
    known = _read(path, encoder.width)
    if known is not None:
        return known
    started = time.perf_counter()
    parts = folder / f"{path.stem}.parts"
    per = max(1, _PART // config.batch_size) * config.batch_size  # so that parts end where batches do
    made: list[Embedded] = []
    encoded = 0
    for number, first in enumerate(range(0, len(data), per)):
        part = parts / f"{number:06d}-{per}.npz"
        rows = range(first, min(first + per, len(data)))
        there = _read(part, encoder.width) if len(data) > per else None
        made.append(there or _made(encoder, data, config, rows))
        if there is None and len(data) > per:
            _write(part, made[-1])
            encoded += len(rows)
            rate = encoded / (time.perf_counter() - started)
            log.info(f"{encoder.label:<16}{data.name:<16}{rows.stop:,} of {len(data):,} images, {rate:,.0f} a second")
    failed = {name: why for part in made for name, why in part.failed.items()}
    whole = Embedded(
        np.concatenate([part.vectors_ND for part in made]), np.concatenate([part.rows_N for part in made]), failed,
        False, time.perf_counter() - started,
    )  # fmt: skip
    if not len(whole.rows_N):
        raise DatasetError(f"{data.name}: none of its {len(data)} images can be decoded: {_some(failed)}")
    _write(path, whole)
    remove(str(parts))
    return whole


def _made(encoder: ImageEncoder, data: ImageSet, config: EvaluateConfig, wanted: range) -> Embedded:
    """Vectors of some rows; raises as embed does."""
    vectors: list[np.ndarray] = [np.empty((0, encoder.width), dtype=np.float32)]
    rows: list[int] = []
    failed: dict[str, str] = {}
    for some, pixels in batches(encoder.prepare, data, wanted, config.batch_size, failed):
        part_ND = encoder.images(pixels)
        finite = np.isfinite(part_ND).all(axis=1)
        if not finite.all():
            raise EncoderError(
                f"{encoder.label}: the vector of {data.images.name(some[int(finite.argmin())])} is not finite: the "
                "weights are damaged, or evaluate.dtype=bfloat16 is too narrow for this model"
            )
        vectors.append(part_ND)
        rows += some
    return Embedded(np.concatenate(vectors), np.array(rows, dtype=np.int64), failed, False)


def batches(
    prepared: Callable[[Image.Image], np.ndarray],
    data: ImageSet,
    wanted: range,
    batch_size: int,
    failed: dict[str, str],
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Rows and prepared pixels, in order, a batch at a time; a batch more is prepared while one is encoded.

    wanted   rows of the set
    failed   takes the names of images that cannot be decoded, with the reason. Of a benchmark they raise DatasetError
    """

    def prepare(row: int, stored: Stored) -> np.ndarray | Rejected:
        opened = data.decoded(row, stored)
        if isinstance(opened, Rejected):
            return opened
        try:
            return prepared(opened)
        except MemoryError:
            raise
        except Exception as error:  # a preprocessing that this image defeats
            return Rejected(Reason.BROKEN_IMAGE, f"{type(error).__name__}: {error}"[:200])

    waiting: deque[tuple[int, Future[np.ndarray | Rejected]]] = deque()
    rows: list[int] = []
    pixels: list[np.ndarray] = []

    def take() -> None:
        row, future = waiting.popleft()
        done = future.result()
        if not isinstance(done, Rejected):
            rows.append(row)
            pixels.append(done)
            return
        name = data.images.name(row)
        why = f"{done.reason}" + (f" ({done.detail})" if done.detail else "")
        if data.fixed:
            raise DatasetError(
                f"{data.name}: {name} cannot be decoded: {why}. The benchmark is defined on all of its images: unpack "
                "that file from the archive again"
            )
        failed[name] = why

    # Not `with`: an error must not wait for the images that are still in the queue.
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")
    try:
        for row, stored in zip(wanted, data.images.read(wanted), strict=True):
            waiting.append((row, pool.submit(prepare, row, stored)))
            if len(waiting) > 2 * batch_size:
                take()
            if len(rows) == batch_size:
                yield rows, np.stack(pixels)
                rows, pixels = [], []
        while waiting:
            take()
            if len(rows) == batch_size or (rows and not waiting):
                yield rows, np.stack(pixels)
                rows, pixels = [], []
        if rows:
            yield rows, np.stack(pixels)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _some(failed: dict[str, str], count: int = 3) -> str:
    said = "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:count])
    return said + (f" and {len(failed) - count} more" if len(failed) > count else "")


def _read(path: Path, width: int) -> Embedded | None:
    """What the file holds; None where there is none, or it is not whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            vectors_ND, rows_N, failed = stored["vectors"], stored["rows"], json.loads(str(stored["failed"]))
    except Exception:  # whatever zipfile and numpy stumble on in a file that was cut or changed
        return None
    if vectors_ND.shape != (len(rows_N), width):
        return None
    return Embedded(vectors_ND, rows_N, failed, True)


def _write(path: Path, made: Embedded) -> None:
    with fresh_file(path) as fresh, fresh.open("wb") as file:
        np.savez(file, vectors=made.vectors_ND, rows=made.rows_N, failed=np.array(json.dumps(made.failed)))


def _stored(folder: Path, data: ImageSet) -> Embedded:
    """The vectors that FOLDER/NAME.npz holds, in the order of the data set's images."""
    path = folder / f"{data.name}.npz"
    if not path.is_file():
        raise DatasetError(f"{path} does not exist: vectors:FOLDER needs a file DATASET.npz for each data set")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if odd := next((name for name, array in stored.items() if not isinstance(array, np.ndarray)), None):
                raise ValueError(f"{odd} is no array of numpy's")
            vectors_ND = _in_order(dict(stored.items()), path)
    except DatasetError:
        raise
    except Exception as error:  # the same
        why = "objects are stored, or it is no .npz" if "pickle" in str(error) else str(error)
        raise DatasetError(f"{path} is not a file of vectors: {why}") from None
    if vectors_ND.ndim == 2 and len(vectors_ND) != len(data):
        turned = ", which looks transposed (n × d is wanted)" if vectors_ND.shape[1] == len(data) else ""
        raise DatasetError(
            f"{path} holds {len(vectors_ND)} vectors{turned} and {data.name} has {len(data)} images: they must be of "
            "all its images, in the order of their sorted names"
        )
    try:
        unit_ND = normalised(vectors_ND, str(path))
    except VectorsError as error:
        raise DatasetError(str(error)) from None
    return Embedded(unit_ND, np.arange(len(data)), {}, True)


def _in_order(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    if "features" in arrays:
        return arrays["features"]
    if "vectors" in arrays:
        return arrays["vectors"]
    if "queries" in arrays and "gallery" in arrays:
        return np.concatenate([arrays["queries"], arrays["gallery"]])
    if "Q" in arrays and "X" in arrays:  # revisitop's own layout: vectors are columns
        return np.concatenate([arrays["Q"].T, arrays["X"].T])
    raise DatasetError(
        f"{path} holds {', '.join(arrays) or 'nothing'}: wanted are `features` (n × d), or `queries` and `gallery`"
    )
