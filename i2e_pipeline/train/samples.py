"""Samples: what a training knows of the dataset, and which of its images it keeps for the evaluation.

Reads    the dataset's index (index.py)
Writes   the split: training · images of held-out entities · held-out images of the entities that are trained on

An image of the dataset is a row: its number in the order of the files. An image that is trained on is a sample, and
numbered among those. In memory are the row groups, 40 bytes each beside those of the index, and nothing per image.

Legend: G row groups, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from i2e_pipeline.core.config import ImageLimits, TrainConfig
from i2e_pipeline.dataset.published import DatasetError, Published
from i2e_pipeline.dataset.split import Rule, Side
from i2e_pipeline.train.index import Index
from i2e_pipeline.train.indexed import build


@dataclass(frozen=True)
class HeldOut:
    """Images that an evaluation looks at: rows of the dataset, rising, and the class of each, its most probable label.
    Up to train.evaluate_images of each kind; all of them where these are fewer."""

    entity_rows: np.ndarray
    entity_classes: np.ndarray
    """Images of held-out entities: what retrieval of things never seen is measured on."""
    image_rows: np.ndarray
    image_classes: np.ndarray
    """Other images of the entities that are trained on."""
    trained_rows: np.ndarray
    trained_classes: np.ndarray
    """Images that are trained on, of the classes of image_rows: among these their neighbours are looked for."""


@dataclass(frozen=True)
class Samples:
    """The dataset's images as a training sees them; made by `Samples.open` or `Samples.of`."""

    published: Published
    index: Index
    rule: Rule
    held_out: HeldOut
    group_file_G: np.ndarray
    group_start_G: np.ndarray
    """First row of each row group, and the number of rows behind the last: G + 1 values."""
    group_number_G: np.ndarray
    """Number of the row group within its file."""
    group_bytes_G: np.ndarray
    """Uncompressed, all columns."""

    @staticmethod
    def open(published: Published, config: TrainConfig) -> Samples:
        """The samples of a dataset whose index is nowhere: reads ids and labels of all images."""
        return Samples.of(published, build(published, config), config)

    @staticmethod
    def of(published: Published, index: Index, config: TrainConfig) -> Samples:
        """Raises DatasetError where fewer than two entities or no image are left to train on."""
        rule = Rule.of(published.entities, config.data)
        _refuse_too_few(published, index, rule, config)
        counts = [len(f.row_group_rows) for f in published.files]
        rows_G = np.array([n for f in published.files for n in f.row_group_rows], dtype=np.int64)
        return Samples(
            published=published,
            index=index,
            rule=rule,
            held_out=_held_out(index),
            group_file_G=np.repeat(np.arange(len(counts)), counts),
            group_start_G=np.concatenate([[0], np.cumsum(rows_G)]),
            group_number_G=np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(c) for c in counts)]),
            group_bytes_G=np.array([n for f in published.files for n in f.row_group_bytes], dtype=np.int64),
        )

    def __len__(self) -> int:
        """Images that are trained on."""
        return self.index.sides[Side.TRAINED]

    @property
    def classes(self) -> int:
        """Class indices of the dataset, held-out ones included: rows of the entity head."""
        return self.published.entities.num_rows

    @cached_property
    def entity_ids_C(self) -> np.ndarray:
        """int64, Wikidata's numbers by class index."""
        return np.asarray(self.published.entities.column("entity_id").to_numpy(), dtype=np.int64)

    @property
    def held_out_entities(self) -> np.ndarray:
        """int64, class indices."""
        return np.flatnonzero(self.rule.held_out_C)

    @property
    def left_out(self) -> dict[str, int]:
        """Images that are neither trained on nor held out, by reason: unlabelled (none of its labels reaches
        min_label_score), shares_held_out (also shows a held-out entity, beside a more probable one)."""
        sides = self.index.sides
        return {"unlabelled": sides[Side.UNLABELLED], "shares_held_out": sides[Side.SHARES_HELD_OUT]}

    @property
    def labels_per_image(self) -> int:
        """K of every batch: the most labels that an image of the training has."""
        return self.index.labels_per_image

    @property
    def sizes_G(self) -> np.ndarray:
        """Training samples in each row group."""
        return self.index.trained_G

    @property
    def limits(self) -> ImageLimits:
        return limits_of(self.published)

    def place(self, row: int) -> str:
        """Where a row lies, for messages."""
        group = int(np.searchsorted(self.group_start_G, row, side="right")) - 1
        file = int(self.group_file_G[group])
        first = self.group_start_G[np.searchsorted(self.group_file_G, file)]
        return f"{self.published.files[file].path} row {row - int(first)}"


def limits_of(published: Published) -> ImageLimits:
    """Those under which the images of a dataset were scored: none of them is too large for a training."""
    known = {k: v for k, v in published.manifest.get("model", {}).items() if k in ImageLimits.model_fields}
    return ImageLimits(**known)


def _held_out(index: Index) -> HeldOut:
    kinds = (index.chosen[kind] for kind in ("entities", "images", "trained"))
    return HeldOut(*(array for chosen in kinds for array in (chosen.rows_N, chosen.class_N)))


def _refuse_too_few(published: Published, index: Index, rule: Rule, config: TrainConfig) -> None:
    folder, data, sides = published.folder, config.data, index.sides
    if not index.labels:
        raise DatasetError(
            f"{folder}: none of its {index.images:,} images has a label: lower label.threshold, run again"
        )
    if sides[Side.UNLABELLED] == index.images:
        raise DatasetError(f"{folder}: no label reaches train.data.min_label_score={data.min_label_score:g}: lower it")
    left = f"{sides[Side.TRAINED]:,} images of {index.trained_classes} entities"
    held = (
        f"(train.data.hold_out_entities{_said(data.hold_out_entities)} keeps {int(rule.held_out_C.sum())} of "
        f"{len(rule.held_out_C)} entities away, hold_out_images{_said(data.hold_out_images)} "
        f"{sides[Side.HELD_OUT_IMAGE]:,} images)"
    )
    if not sides[Side.TRAINED]:
        raise DatasetError(f"{folder}: no image is left to train on {held}: hold out less, or add images")
    if index.trained_classes < 2:
        raise DatasetError(
            f"{folder}: {left} are left to train on {held}, and telling apart takes two entities: hold out "
            "less, or build the dataset with a lower select.min_images_per_entity"
        )


def _said(share: float | None) -> str:
    return ", by the column split," if share is None else f"={share:g}"
