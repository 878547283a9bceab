"""Teacher: stored image vectors, for distillation.

Reads    a folder of Parquet files or a Delta table with `image_id` and `vector` (binary, float16 little-endian): the
         table `image_vectors` of a run with score.keep_vectors
Writes   teacher_BT: float32, norm 1; zeros where an image has no vector

The vectors lie in one copy per machine, in the system's folder for temporary files. The first rank writes it, all map
it into memory, and the last one that ends removes it. A rank that is killed removes nothing: the next training of the
same dataset and vectors takes what lies there.

Legend: B images, N images of the dataset, M rows of a part of the table, T width of the vectors.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout

from i2e_pipeline.core import arrays, files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.dataset.published import DatasetError, part_files
from i2e_pipeline.train.samples import Samples

_HEADER, _FORMAT = "teacher", 1
_LEAVING_SECONDS = 10.0
_FILES_AT_ONCE = 8


class Teacher:
    """Vectors of the dataset's images: 2 T + 8 bytes per image on the machine's disk, mapped into memory."""

    def __init__(self, folder: str, samples: Samples) -> None:
        """Raises DatasetError where no image of the dataset has a vector there."""
        place = _place(folder, samples)
        with FileLock(f"{place}.lock"):
            if not place.exists():
                with arrays.new(place, _HEADER, alone=True) as store:
                    _write(folder, samples, store)
            # Held for as long as this process uses the copy, and let go by the system when it dies.
            users = (place / f"{_HEADER}.json").open("rb")
            fcntl.flock(users, fcntl.LOCK_SH)
        self._end = weakref.finalize(self, _leave, place, users)
        stored = arrays.Arrays(place, _HEADER, _FORMAT)
        self.images: int = stored.header["images"]
        """Images of the dataset with a vector."""
        self.width: int = stored.header["width"]
        """T"""
        self._slot_N = stored["slots"]
        self._vectors = stored.numbers("vectors", "<f2", self.width)

    def of(self, rows_B: np.ndarray) -> torch.Tensor:
        """teacher_BT of rows of the dataset."""
        slots_B = self._slot_N[rows_B]
        vectors_BT = self._vectors[slots_B.clip(min=0)].astype(np.float32)
        vectors_BT[slots_B < 0] = 0
        return torch.nn.functional.normalize(torch.from_numpy(vectors_BT), dim=-1)


def open_teacher(folder: str, samples: Samples) -> Teacher:
    """The stored vectors of `folder` for the images of the dataset."""
    if not files.exists(folder):
        raise DatasetError(f"{folder}: no such folder of stored image vectors (a run's table `image_vectors`)")
    return Teacher(folder, samples)


def _place(folder: str, samples: Samples) -> Path:
    """Where this machine's copy lies: another place for other vectors, another dataset and another user."""
    parts = [[i.path, i.size, i.modified] for i in files.list_files(folder)]
    name = digest({
        "format": _FORMAT, "vectors": folder if "://" in folder else os.path.abspath(folder), "parts": parts,
        "images": samples.published.fingerprint,
    })  # fmt: skip
    return scratch("teacher") / name


def _leave(place: Path, users: BinaryIO) -> None:
    """Removes the machine's copy where nobody else uses it."""
    # Not for ever: the lock may be this process's own, where another copy is opened while this one is let go.
    with users, contextlib.suppress(Timeout, BlockingIOError), FileLock(f"{place}.lock", timeout=_LEAVING_SECONDS):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)


def _write(folder: str, samples: Samples, store: arrays.Writer) -> None:
    ids_N2 = _image_ids(samples)
    slot_N = np.full(len(ids_N2), -1, dtype=np.int64)
    by_id = np.lexsort((ids_N2[:, 1], ids_N2[:, 0]))
    firsts = ids_N2[by_id, 0]
    width = stored = 0
    out = store.stream("vectors")
    for path in part_files(folder):
        table = _read_parquet(files.join(folder, path), ["image_id", "vector"])
        table = table.filter(table.column("vector").is_valid())
        for batch in table.to_batches():
            if not batch.num_rows:
                continue
            vectors_MT = _vectors(batch.column("vector"), width, f"{folder}/{path}")
            width = vectors_MT.shape[1]
            halves_M2 = id_halves(pa.chunked_array([batch.column("image_id")]))
            at = np.searchsorted(firsts, halves_M2[:, 0]).clip(max=len(firsts) - 1)
            rows = by_id[at]
            known = (ids_N2[rows] == halves_M2).all(axis=1) & (slot_N[rows] < 0)
            rows, first = np.unique(rows[known], return_index=True)
            slot_N[rows] = np.arange(stored, stored + len(rows))
            stored += len(rows)
            out.write(vectors_MT[np.flatnonzero(known)[first]].tobytes())
    if not stored:
        raise DatasetError(
            f"{folder} holds no vector of an image of the dataset: score with score.keep_vectors=true, or set "
            "train.loss.distillation to 0"
        )
    store.save("slots", slot_N)
    store.header = {"format": _FORMAT, "images": stored, "width": width}


def _read_parquet(path: str, columns: list[str]) -> pa.Table:
    return files.patiently(lambda: _read_once(path, columns), path)


def _read_once(path: str, columns: list[str]) -> pa.Table:
    """Columns of one file; raises DatasetError where it has not got them."""
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
        missing = [c for c in columns if c not in file.schema_arrow.names]
        if missing:
            raise DatasetError(f"{path} has no column {', '.join(missing)}")
        return file.read(columns=columns)


def _image_ids(samples: Samples) -> np.ndarray:
    """ids_N2 of all images of the dataset."""
    folder = samples.published.folder
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        paths = [files.join(folder, file.path) for file in samples.published.files]
        parts = pool.map(lambda path: id_halves(_read_parquet(path, ["image_id"]).column("image_id")), paths)
        return np.concatenate(list(parts))


def _vectors(column: pa.Array, width: int, where: str) -> np.ndarray:
    """vectors_MT, float16, of binary without nulls, as Arrow holds it; all are as wide as the first (`width`: or 0)."""
    values = column.cast(pa.large_binary())
    ends = np.frombuffer(values.buffers()[1], dtype=np.int64)[values.offset : values.offset + len(values) + 1]
    lengths = np.diff(ends)
    width = width or int(lengths[0]) // 2
    wrong = np.flatnonzero(lengths != 2 * width)
    if len(wrong):
        raise DatasetError(f"{where}: vectors of {lengths[wrong[0]] / 2:g} and of {width} numbers")
    if not width:
        raise DatasetError(f"{where}: a vector without numbers")
    data = np.frombuffer(values.buffers()[2], dtype=np.uint8)[ends[0] : ends[-1]]
    return data.view("<f2").reshape(-1, width)
