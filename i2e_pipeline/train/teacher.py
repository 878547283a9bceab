"""Teacher: stored image vectors, for distillation.

Reads    a folder of Parquet files or a Delta table with `image_id` and `vector` (binary, float16 little-endian): the
         table `scores` of a run with score.keep_vectors
Writes   teacher_BT: float32, norm 1; zeros where an image has no vector

Legend: B images, N images of the dataset, T width of the vectors.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from i2e_pipeline import files
from i2e_pipeline.published import DatasetError, part_files
from i2e_pipeline.train.samples import Samples, id_halves, read_parquet


class Teacher:
    """Vectors of the dataset's images, in a temporary file that is mapped into memory: 2 T bytes per image on disk,
    16 in memory."""

    def __init__(self, folder: str, samples: Samples) -> None:
        """Raises DatasetError where no image of the dataset has a vector there."""
        ids_N2 = samples.ids_N2
        self._slot_N = np.full(len(ids_N2), -1, dtype=np.int64)
        by_id = np.lexsort((ids_N2[:, 1], ids_N2[:, 0]))
        firsts = ids_N2[by_id, 0]
        self.width = 0
        stored = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this
        for path in part_files(folder):
            table = read_parquet(files.join(folder, path), ["image_id", "vector"])
            table = table.filter(table.column("vector").is_valid())
            halves_M2 = id_halves(table.column("image_id"))
            at = np.searchsorted(firsts, halves_M2[:, 0]).clip(max=len(firsts) - 1)
            rows = by_id[at]
            known = (ids_N2[rows] == halves_M2).all(axis=1) & (self._slot_N[rows] < 0)
            rows, first = np.unique(rows[known], return_index=True)
            vectors = table.column("vector").take(np.flatnonzero(known)[first]).to_pylist()
            for row, vector in zip(rows.tolist(), vectors, strict=True):
                self.width = self.width or len(vector) // 2
                if len(vector) != 2 * self.width:
                    raise DatasetError(f"{folder}/{path}: vectors of {len(vector) // 2} and of {self.width} numbers")
                self._slot_N[row] = stored
                stored += 1
                self._file.write(vector)
        if not stored:
            raise DatasetError(
                f"{folder} holds no vector of an image of the dataset: score with score.keep_vectors=true, or set "
                "train.loss.distillation to 0"
            )
        self._file.flush()
        self.images = stored
        self._vectors = np.memmap(self._file, dtype="<f2", mode="r", shape=(stored, self.width))

    def of(self, rows_B: np.ndarray) -> torch.Tensor:
        """teacher_BT of rows of the dataset."""
        slots_B = self._slot_N[rows_B]
        vectors_BT = self._vectors[slots_B.clip(min=0)].astype(np.float32)
        vectors_BT[slots_B < 0] = 0
        return torch.nn.functional.normalize(torch.from_numpy(vectors_BT), dim=-1)


def open_teacher(folder: str, samples: Samples) -> Teacher:
    """The stored vectors of `folder` for the images of the dataset."""
    if not files.exists(folder):
        raise DatasetError(f"{folder}: no such folder of stored image vectors (a run's table `scores`)")
    return Teacher(folder, samples)
