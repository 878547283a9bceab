"""The split: on which side of it an image lies. A pure function of the image's row.

Reads    image_id, labels and, where the dataset has it, split of some rows
Writes   Labelled: their ids, their labels, and the side of each

It depends on hashes of entity and image alone: it stays with another seed or recipe, and when the dataset grows. So it
is found anew wherever rows are read, and nobody has to remember it.

Legend: N images, M their labels, C classes, K the most labels of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.config import DataConfig
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.core.splits import (
    TEST,
    TEST_ENTITIES,
    TRAIN,
    VALIDATION,
    VALIDATION_IMAGES,
    held_out_entities,
    held_out_images,
)
from i2e_pipeline.dataset.published import DatasetError

COLUMNS = ("image_id", "labels", "split")
"""What decides. Datasets of format 1 have no `split`."""


class Side(IntEnum):
    TRAINED = 0
    OF_HELD_OUT_ENTITY = 1
    HELD_OUT_IMAGE = 2
    """Of entities that are trained on."""
    UNLABELLED = 3
    """None of its labels is sure enough."""
    SHARES_HELD_OUT = 4
    """Also shows a held-out entity, beside a more probable one, or in a label that is not published."""


@dataclass(frozen=True)
class Rule:
    """What decides, beside the row."""

    held_out_C: np.ndarray
    """bool, by class index"""
    images: float
    """Share of the other entities' images that is drawn."""
    by_column: bool
    """The column `split` says which images these are, where a file has it."""
    min_label_score: float
    salt: str | None = None

    @staticmethod
    def of(entities: pa.Table, data: DataConfig) -> Rule:
        """entities: I2E_ENTITIES, by class index."""
        salt = data.hold_out_salt
        if data.hold_out_entities is None and salt is None:
            held_out_C = pc.equal(entities.column("split"), TEST).to_numpy()
        else:
            share = TEST_ENTITIES if data.hold_out_entities is None else data.hold_out_entities
            held_out_C = held_out_entities(entities.column("entity_id").to_numpy(), share, salt)
        images = VALIDATION_IMAGES if data.hold_out_images is None else data.hold_out_images
        return Rule(held_out_C, images, not data.own_split, data.min_label_score, salt)


@dataclass(frozen=True)
class Labelled:
    """Some rows, in their order."""

    ids_N2: np.ndarray
    """uint64, the halves of the 16 bytes of image_id."""
    side_N: np.ndarray
    """uint8, of Side"""
    count_N: np.ndarray
    class_M: np.ndarray
    """int64; of each image the most probable label first. Only labels that are sure enough."""
    score_M: np.ndarray
    labels: int
    """Those that are not sure enough included."""

    def best_N(self) -> np.ndarray:
        """The most probable class of each image, −1 where it has none."""
        starts_N = np.cumsum(self.count_N) - self.count_N
        inside_N = np.minimum(starts_N, max(0, len(self.class_M) - 1))
        return np.where(self.count_N > 0, self.class_M[inside_N] if len(self.class_M) else -1, -1)

    def padded(self, rows_B: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """class_BK and score_BK of these rows, K = most: −1 and 0 beyond the last label of each."""
        starts_B = (np.cumsum(self.count_N) - self.count_N)[rows_B]
        at_BK = starts_B[:, None] + np.arange(most)
        inside_BK = np.arange(most) < self.count_N[rows_B][:, None]
        at_BK = np.where(inside_BK, at_BK, 0)
        if not len(self.class_M):
            return np.full(at_BK.shape, -1), np.zeros(at_BK.shape, dtype=np.float32)
        return np.where(inside_BK, self.class_M[at_BK], -1), np.where(inside_BK, self.score_M[at_BK], np.float32(0))


def split(table: pa.Table, rule: Rule, where: str) -> Labelled:
    """The rows of a table that has COLUMNS.

    Raises DatasetError, which begins with `where`, for labels without a score and of classes that the entities do not
    have.
    """
    lists = table.column("labels").combine_chunks()
    count_N = np.asarray(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    flat = lists.flatten()
    class_M = flat.field("class_index").to_numpy(zero_copy_only=False)
    score_M = np.asarray(flat.field("score").to_numpy(zero_copy_only=False), dtype=np.float32)
    if not np.isfinite(score_M).all() or flat.field("class_index").null_count:
        raise DatasetError(f"{where}: a label has no score, or a class index is missing")
    class_M = class_M.astype(np.int64)
    classes = len(rule.held_out_C)
    if len(class_M) and not 0 <= int(class_M.min()) <= int(class_M.max()) < classes:
        wrong = int(class_M.min()) if class_M.min() < 0 else int(class_M.max())
        raise DatasetError(
            f"{where}: labels name class {wrong}, and the table of entities has classes 0 … {classes - 1}: images and "
            "entities are of two builds; build or copy the dataset again"
        )
    row_M = np.repeat(np.arange(len(count_N)), count_N)
    # A label too weak to be trained on may still be right: it, too, keeps the image of a held-out entity away.
    shows_held_N = np.bincount(row_M, weights=rule.held_out_C[class_M], minlength=len(count_N)) > 0
    order_M = np.lexsort((class_M, -score_M, row_M))
    order_M = order_M[score_M[order_M] >= rule.min_label_score]
    ids_N2 = id_halves(table.column("image_id"))
    kept = Labelled(
        ids_N2=ids_N2,
        side_N=np.full(len(count_N), Side.UNLABELLED, dtype=np.uint8),
        count_N=np.bincount(row_M[order_M], minlength=len(count_N)),
        class_M=class_M[order_M],
        score_M=score_M[order_M],
        labels=len(class_M),
    )
    if rule.by_column and "split" in table.column_names:
        words = pc.unique(table.column("split")).to_pylist()
        if odd := sorted(map(repr, set(words) - {TRAIN, VALIDATION, TEST})):
            raise DatasetError(
                f"{where}: the column split holds {odd[0]}, and train, validation and test are known: what is to be "
                "held out cannot be told; write it anew, or set train.data.hold_out_images"
            )
        drawn_N = pc.fill_null(pc.equal(table.column("split"), VALIDATION), False).to_numpy()
        # By labels that are not in the dataset, too: a floor, a cap or a list took them.
        shows_held_N |= pc.fill_null(pc.equal(table.column("split"), TEST), False).to_numpy()
    else:
        drawn_N = held_out_images(ids_N2, rule.images, rule.salt)
    best_N = kept.best_N()
    labelled_N = best_N >= 0
    kept.side_N[labelled_N] = np.where(drawn_N, Side.HELD_OUT_IMAGE, Side.TRAINED)[labelled_N]
    kept.side_N[labelled_N & shows_held_N] = Side.SHARES_HELD_OUT
    of_held_N = labelled_N.copy()
    of_held_N[labelled_N] = rule.held_out_C[best_N[labelled_N]]
    kept.side_N[of_held_N] = Side.OF_HELD_OUT_ENTITY
    return kept
