"""Samples: what a training knows of each image of the dataset, and which images it keeps for the evaluation.

Reads    image_id and labels of every image; stored bytes and alt-text only where they are asked for
Writes   the split: training · images of held-out entities · held-out images of the entities that are trained on

An image of the dataset is a row: its number in the order of the files. In memory it takes 24 bytes, 8 more per label,
and 8 more where it is trained on: about 40 bytes, 4 GB for 10⁸ images.

The split depends on hashes of entity and image alone: it stays with another seed or recipe, and when the dataset grows.

Legend: N images of the dataset, M labels, G row groups, C classes, B images of a batch, K labels of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import ImageLimits, TrainConfig
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.core.splits import TEST, VALIDATION, VALIDATION_IMAGES, held_out_entities, held_out_images, keys
from i2e_pipeline.dataset.published import DatasetError, ImageFile, Published

_FILES_AT_ONCE = 8
_OPEN_FILES = 64


@dataclass(frozen=True)
class HeldOut:
    """Images that are not trained on: rows of the dataset and the class of each, its most probable label."""

    entity_rows: np.ndarray
    entity_classes: np.ndarray
    """Images of held-out entities: what retrieval of things never seen is measured on."""
    image_rows: np.ndarray
    image_classes: np.ndarray
    """Other images of the entities that are trained on."""


@dataclass(frozen=True)
class Samples:
    """The dataset's images as a training sees them; made by `Samples.open`."""

    published: Published
    ids_N2: np.ndarray
    """uint64, the halves of the 16 bytes of image_id."""
    _label_ends_N: np.ndarray
    _label_class_M: np.ndarray
    """Of each image the most probable label first."""
    _label_score_M: np.ndarray
    group_file_G: np.ndarray
    group_start_G: np.ndarray
    """First row of each row group, and the number of rows behind the last: G + 1 values."""
    group_number_G: np.ndarray
    """Number of the row group within its file."""
    training: np.ndarray
    """int64, rows that are trained on, rising: sample i of the order is row training[i]."""
    held_out_entities: np.ndarray
    """int64, class indices."""
    held_out: HeldOut
    left_out: dict[str, int]
    """Images that are neither trained on nor held out, by reason: unlabelled (none of its labels reaches
    min_label_score), shares_held_out (also shows a held-out entity, beside a more probable one)."""
    labels_per_image: int
    """K of every batch: the most labels that an image of the training has."""

    @staticmethod
    def open(published: Published, config: TrainConfig) -> Samples:
        """Reads ids and labels of all images and splits them.

        Raises DatasetError where labels are missing or name classes that the entities do not have, and where
        fewer than two entities or no image are left to train on.
        """
        groups = _Groups.of(published)
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            parts = list(pool.map(lambda file: _labels(published, file), published.files))
        ids_N2 = np.concatenate([p.ids_N2 for p in parts])
        known = [p.validation_N for p in parts if p.validation_N is not None]
        validation_N = np.concatenate(known) if len(known) == len(parts) else None
        count_N = np.concatenate([p.count_N for p in parts])
        class_M = np.concatenate([p.class_M for p in parts])
        score_M = np.concatenate([p.score_M for p in parts])
        del parts
        classes = published.entities.num_rows
        if not len(class_M):
            raise DatasetError(
                f"{published.folder}: none of its {len(ids_N2):,} images has a label: lower label.threshold, run again"
            )
        if not 0 <= int(class_M.min()) <= int(class_M.max()) < classes:
            raise DatasetError(
                f"{published.folder}: labels name class {int(class_M.max())}, and its table of entities has classes "
                f"0 … {classes - 1}: images and entities are of two builds; build or copy the dataset again"
            )
        return _split(published, config, groups, ids_N2, validation_N, count_N, class_M, score_M)

    def __len__(self) -> int:
        """Images that are trained on."""
        return len(self.training)

    @property
    def classes(self) -> int:
        """Class indices of the dataset, held-out ones included: rows of the entity head."""
        return self.published.entities.num_rows

    @property
    def entity_ids_C(self) -> np.ndarray:
        """int64, Wikidata's numbers by class index."""
        return np.asarray(self.published.entities.column("entity_id").to_numpy(), dtype=np.int64)

    @property
    def sizes_G(self) -> np.ndarray:
        """Training samples in each row group."""
        return np.diff(np.searchsorted(self.training, self.group_start_G))

    @property
    def limits(self) -> ImageLimits:
        """Those under which the images of the dataset were scored: none of them is too large here."""
        known = {k: v for k, v in self.published.manifest.get("model", {}).items() if k in ImageLimits.model_fields}
        return ImageLimits(**known)

    def image_id(self, row: int) -> bytes:
        return self.ids_N2[row].tobytes()

    def keys(self, rows_B: np.ndarray) -> np.ndarray:
        """uint64 that stand for the image ids in hashes."""
        return keys(self.ids_N2[rows_B])

    def class_of(self, rows_B: np.ndarray, uniform_B: np.ndarray | None = None) -> np.ndarray:
        """class_B: the most probable label of each row; with a number in [0, 1) each, one in proportion to the
        probabilities."""
        starts_B, ends_B = self._labels_of(rows_B)
        if uniform_B is None:
            return self._label_class_M[starts_B].astype(np.int64)
        class_BK = self._padded(self._label_class_M, starts_B, ends_B, -1)
        until_BK = np.cumsum(self._padded(self._label_score_M, starts_B, ends_B, 0.0).astype(np.float64), axis=1)
        drawn_B = (until_BK <= uniform_B[:, None] * until_BK[:, -1:]).sum(axis=1)
        return np.asarray(class_BK[np.arange(len(rows_B)), np.minimum(drawn_B, ends_B - starts_B - 1)])

    def classes_of(self, rows_B: np.ndarray) -> np.ndarray:
        """classes_BK, int64: all labels of each row, −1 beyond the last."""
        return self._padded(self._label_class_M, *self._labels_of(rows_B), -1)

    def place(self, row: int) -> str:
        """Where a row lies, for messages."""
        group = int(np.searchsorted(self.group_start_G, row, side="right")) - 1
        file = int(self.group_file_G[group])
        first = self.group_start_G[np.searchsorted(self.group_file_G, file)]
        return f"{self.published.files[file].path} row {row - int(first)}"

    def stored(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, list[bytes | None]]]:
        """Rows and their stored bytes, row group by row group, each row once: for what is read once, as evaluation."""
        rows = np.unique(rows)
        reader = GroupReader(self)
        for group in np.unique(np.searchsorted(self.group_start_G, rows, side="right") - 1).tolist():
            start, end = self.group_start_G[group : group + 2]
            here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)]
            yield here, reader.read(group, here - start, ["image.bytes"])[0].to_pylist()

    def _labels_of(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.where(rows_B > 0, self._label_ends_N[rows_B - 1], 0), self._label_ends_N[rows_B]

    def _padded(self, values_M: np.ndarray, starts_B: np.ndarray, ends_B: np.ndarray, fill: float) -> np.ndarray:
        at_BK = starts_B[:, None] + np.arange(self.labels_per_image)
        inside_BK = at_BK < ends_B[:, None]
        values_BK = values_M[np.where(inside_BK, at_BK, 0)]
        kind = np.int64 if np.issubdtype(values_M.dtype, np.integer) else values_M.dtype
        return np.where(inside_BK, values_BK, fill).astype(kind)


class GroupReader:
    """Rows of row groups; keeps files open. For one thread at a time."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._open: dict[int, pq.ParquetFile] = {}

    def read(self, group: int, within: np.ndarray, columns: list[str]) -> list[pa.Array]:
        """The columns' values of rows (counted within the row group); `image.bytes` is a column."""
        file = int(self._samples.group_file_G[group])
        if file not in self._open:
            while len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            self._open[file] = self._samples.published.open(self._samples.published.files[file])
        self._open[file] = parquet = self._open.pop(file)  # the one used last goes last
        number = int(self._samples.group_number_G[group])
        try:
            table = parquet.read_row_group(number, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            name = self._samples.published.files[file].path
            raise DatasetError(f"{self._samples.published.folder}/{name}: row group {number}: {error}") from error
        arrays = []
        for column in columns:
            name, _, child = column.partition(".")
            values = table.column(name).combine_chunks()
            # Of a struct that is null the field is not: flatten gives nulls where the image is one.
            values = values.flatten()[values.type.get_field_index(child)] if child else values
            kind = pa.large_binary() if pa.types.is_binary(values.type) else values.type
            arrays.append(values.cast(kind).take(pa.array(within)))
        return arrays


def read_parquet(path: str, columns: list[str]) -> pa.Table:
    """Columns of one file; raises DatasetError where it has not got them."""
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
        missing = [c for c in columns if c not in file.schema_arrow.names]
        if missing:
            raise DatasetError(f"{path} has no column {', '.join(missing)}")
        return file.read(columns=columns)


@dataclass(frozen=True)
class _Groups:
    file_G: np.ndarray
    start_G: np.ndarray
    number_G: np.ndarray

    @staticmethod
    def of(published: Published) -> _Groups:
        rows = [r for f in published.files for r in f.row_group_rows]
        counts = [len(f.row_group_rows) for f in published.files]
        numbers = [np.arange(c) for c in counts]
        return _Groups(
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate([[0], np.cumsum(np.asarray(rows, dtype=np.int64))]),
            np.concatenate(numbers) if numbers else np.empty(0, dtype=np.int64),
        )


@dataclass(frozen=True)
class _Part:
    """Labels of one file, of each image the most probable first, and which images its column `split` sets aside for
    validation (None: it has none)."""

    ids_N2: np.ndarray
    validation_N: np.ndarray | None
    count_N: np.ndarray
    class_M: np.ndarray
    score_M: np.ndarray


def _labels(published: Published, file: ImageFile) -> _Part:
    with published.open(file) as parquet:
        has_split = "split" in parquet.schema_arrow.names
        table = parquet.read(columns=["image_id", "labels", *(["split"] if has_split else [])], use_threads=False)
    lists = table.column("labels").combine_chunks()
    count_N = np.asarray(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    flat = lists.flatten()
    class_M = np.asarray(flat.field("class_index").to_numpy(zero_copy_only=False), dtype=np.int32)
    score_M = np.asarray(flat.field("score").to_numpy(zero_copy_only=False), dtype=np.float32)
    if not np.isfinite(score_M).all():
        raise DatasetError(f"{published.folder}/{file.path}: a label has no score, or a class index is missing")
    order_M = np.lexsort((class_M, -score_M, np.repeat(np.arange(len(count_N)), count_N)))
    validation_N = pc.equal(table.column("split"), VALIDATION).to_numpy() if has_split else None
    return _Part(id_halves(table.column("image_id")), validation_N, count_N, class_M[order_M], score_M[order_M])


def _said(share: float | None) -> str:
    return ", by the column split," if share is None else f"={share:g}"


def _split(
    published: Published,
    config: TrainConfig,
    groups: _Groups,
    ids_N2: np.ndarray,
    validation_N: np.ndarray | None,
    count_N: np.ndarray,
    class_M: np.ndarray,
    score_M: np.ndarray,
) -> Samples:
    data = config.data
    entity_ids_C = published.entities.column("entity_id").to_numpy()
    if data.hold_out_entities is None:
        held_C = pc.equal(published.entities.column("split"), TEST).to_numpy()
    else:
        held_C = held_out_entities(entity_ids_C, data.hold_out_entities)
    row_M = np.repeat(np.arange(len(count_N)), count_N)
    # A label too weak to be trained on may still be right: it, too, keeps the image of a held-out entity away.
    shows_held_N = np.bincount(row_M, weights=held_C[class_M], minlength=len(count_N)) > 0
    kept_M = score_M >= data.min_label_score
    row_M, class_M, score_M = row_M[kept_M], class_M[kept_M], score_M[kept_M]
    kept_count_N = np.bincount(row_M, minlength=len(count_N))
    ends_N = np.cumsum(kept_count_N)
    labelled_N = kept_count_N > 0
    if not len(class_M):
        raise DatasetError(
            f"{published.folder}: no label reaches train.data.min_label_score={data.min_label_score:g}: lower it"
        )
    best_N = np.where(labelled_N, class_M[np.minimum(ends_N - kept_count_N, len(class_M) - 1)], -1)
    of_held_N = labelled_N & held_C[best_N]
    if data.hold_out_images is None and data.hold_out_entities is None and validation_N is not None:
        kept_out_N = validation_N
    else:
        share = VALIDATION_IMAGES if data.hold_out_images is None else data.hold_out_images
        kept_out_N = held_out_images(ids_N2, share)
    free_N = labelled_N & ~shows_held_N
    trained_N = free_N & ~kept_out_N
    training = np.flatnonzero(trained_N)
    of_images = np.flatnonzero(free_N & kept_out_N)
    of_entities = np.flatnonzero(of_held_N)
    trained_C = np.zeros(len(entity_ids_C), dtype=bool)
    trained_C[class_M[trained_N[row_M]]] = True
    left = f"{len(training):,} images of {int(trained_C.sum())} entities"
    held = (
        f"(train.data.hold_out_entities{_said(data.hold_out_entities)} keeps {int(held_C.sum())} of {len(held_C)} "
        f"entities away, hold_out_images{_said(data.hold_out_images)} {len(of_images):,} images)"
    )
    if not len(training):
        raise DatasetError(f"{published.folder}: no image is left to train on {held}: hold out less, or add images")
    if trained_C.sum() < 2:
        raise DatasetError(
            f"{published.folder}: {left} are left to train on {held}, and telling apart takes two entities: hold out "
            "less, or build the dataset with a lower select.min_images_per_entity"
        )
    return Samples(
        published=published,
        ids_N2=ids_N2,
        _label_ends_N=ends_N,
        _label_class_M=class_M,
        _label_score_M=score_M,
        group_file_G=groups.file_G,
        group_start_G=groups.start_G,
        group_number_G=groups.number_G,
        training=training,
        held_out_entities=np.flatnonzero(held_C),
        held_out=HeldOut(
            of_entities, best_N[of_entities].astype(np.int64), of_images, best_N[of_images].astype(np.int64)
        ),
        left_out={
            "unlabelled": int((~labelled_N).sum()),
            "shares_held_out": int((labelled_N & shows_held_N & ~of_held_N).sum()),
        },
        labels_per_image=int(kept_count_N[training].max()),
    )
