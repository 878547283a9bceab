"""Chosen: the images that an evaluation during training looks at. By hash: the same ones in every training.

Whole classes rather than an image of each, because retrieval looks for others of the same class: classes come in the
order of a hash, and up to OF_A_CLASS images of each, drawn by hash, before more of any. Neighbours are chosen of the
classes that are asked for, equally many of each: a class without one could only be told wrong.

What is kept of a part of the dataset is bounded, and parts can be merged in any order: an image that a part need not
keep would not be chosen of the whole either. For that an image's place in its class, and the number of images in the
classes before it, can only grow when parts are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from i2e_pipeline.core.draws import hashed

OF_A_CLASS = 16
_DRAWN = "evaluated"


@dataclass(frozen=True)
class Chosen:
    """Some images, in no order that means anything."""

    rows_N: np.ndarray
    """int64, which images these are"""
    class_N: np.ndarray
    """int64, class indices"""
    class_hash_N: np.ndarray
    image_hash_N: np.ndarray
    """uint64"""

    @staticmethod
    def of(rows_N: np.ndarray, class_N: np.ndarray, entity_ids_N: np.ndarray, keys_N: np.ndarray) -> Chosen:
        """entity_ids_N: of the classes; keys_N: uint64 that stand for the image ids (core/splits.py)."""
        return Chosen(
            np.asarray(rows_N, dtype=np.int64),
            np.asarray(class_N, dtype=np.int64),
            hashed(entity_ids_N, _DRAWN),
            hashed(keys_N, _DRAWN),
        )

    @staticmethod
    def none() -> Chosen:
        whole, hashes = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
        return Chosen(whole, whole, hashes, hashes)

    @staticmethod
    def merged(parts: Sequence[Chosen]) -> Chosen:
        return Chosen(
            np.concatenate([p.rows_N for p in parts]),
            np.concatenate([p.class_N for p in parts]),
            np.concatenate([p.class_hash_N for p in parts]),
            np.concatenate([p.image_hash_N for p in parts]),
        )

    def __len__(self) -> int:
        return len(self.rows_N)

    def take(self, places: np.ndarray) -> Chosen:
        return Chosen(self.rows_N[places], self.class_N[places], self.class_hash_N[places], self.image_hash_N[places])

    def bounded(self, limit: int, of_a_class: int = OF_A_CLASS) -> Chosen:
        """What can be among the first `limit` of the whole, if this is a part of it: up to `limit` images and as many
        again of classes that have more than `of_a_class`, give or take a class."""
        if len(self) <= limit:
            return self
        order, place = self._by_class()
        early = place < of_a_class
        if early.sum() >= limit:
            order, place = order[early], place[early]
            return self.take(order[_classes_before(place, limit)])
        kept = early.copy()
        late = np.flatnonzero(~early)
        kept[late[_classes_before(place[late] - of_a_class, limit)]] = True
        return self.take(order[kept])

    def first(self, limit: int, of_a_class: int = OF_A_CLASS) -> Chosen:
        """The `limit` images of these that are looked at, by rising row."""
        if len(self) <= limit:
            return self.take(np.argsort(self.rows_N))
        order, place = self._by_class()
        order = order[np.argsort(place >= of_a_class, kind="stable")][:limit]
        return self.take(order[np.argsort(self.rows_N[order])])

    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """The order by class and image, and the place of each image within its class."""
        order = np.lexsort((self.image_hash_N, self.class_hash_N))
        of_class = self.class_hash_N[order]
        starts = np.flatnonzero(np.concatenate([[True], of_class[1:] != of_class[:-1]]))
        return order, np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))


def _classes_before(place: np.ndarray, limit: int) -> np.ndarray:
    """Which of these images, class after class, are of the classes that begin before `limit` images are counted, and of
    each class no more than `limit`. place: within the class."""
    starts_here = place == 0
    begins_at = np.maximum.accumulate(np.where(starts_here, np.arange(len(place)), 0))
    kept: np.ndarray = (begins_at < limit) & (place < limit)
    return kept
