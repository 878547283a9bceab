"""What is the same in two datasets and what is not: settings, entities, and of some images ids, splits and labels.

Kernels: a bucket of the images of A and B comes in, numbers and the rows that differ come out. What they count is added
up over buckets. A is the first dataset, B the second; `side` is 0 for A and 1 for B.

Legend: N images or labels, E entities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from i2e_pipeline.commands.diffing.buckets import numbered
from i2e_pipeline.core.splits import TEST, TRAIN, VALIDATION

SPLITS = (TRAIN, VALIDATION, TEST, "unknown")
"""By their number in IMAGE; `unknown`: datasets of format 1 have none."""
IMAGE = np.dtype([("id", "<u8", 2), ("pair", "<u8", 2), ("has_pair", "?"), ("split", "u1")])
LABEL = np.dtype([("id", "<u8", 2), ("entity", "<i8"), ("score", "<f4")])
ONLY = np.dtype([*IMAGE.descr, ("side", "u1")])
"""An image of one dataset alone; `side` is the one that has it."""
CHANGED = np.dtype([*LABEL.descr, ("side", "u1")])
"""A label that one dataset alone has, of an image that both have; `side` is the one that has it."""
BINS = 20_001
"""Of differences of scores, from −1 to 1: 0.0001 each."""
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass
class Counts:
    """Of some images, or of all."""

    images_both: int = 0
    images_changed: int = 0
    """Both have it, with other entities."""
    labels_both: int = 0
    labels_of_only: list[int] = field(default_factory=lambda: [0, 0])
    """By side, of images that it alone has."""
    splits: np.ndarray = field(default_factory=lambda: np.zeros((len(SPLITS), len(SPLITS)), dtype=np.int64))
    """Images that both have, by their split in A and in B."""
    differences: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    """Labels that both have, by score in B minus score in A."""

    def add(self, other: Counts) -> None:
        self.images_both += other.images_both
        self.images_changed += other.images_changed
        self.labels_both += other.labels_both
        self.labels_of_only = [a + b for a, b in zip(self.labels_of_only, other.labels_of_only, strict=True)]
        self.splits = self.splits + other.splits
        self.differences = self.differences + other.differences


@dataclass(frozen=True)
class Compared:
    counts: Counts
    only: np.ndarray
    """ONLY, in the order of ids."""
    resplit: np.ndarray
    """ids (N, 2) of images that lie in another split, in that order."""
    resplit_from_to: np.ndarray
    """(N, 2), their splits."""
    changed: np.ndarray
    """CHANGED, by id, side and entity."""


def compare(images: tuple[np.ndarray, np.ndarray], labels: tuple[np.ndarray, np.ndarray]) -> Compared:
    """Images (IMAGE) and labels (LABEL) of A and of B, all of the same range of ids, in any order."""
    n_a, n_b, of_a, of_b = numbered(images[0]["id"], images[1]["id"], labels[0]["id"], labels[1]["id"])
    total = 1 + max((int(part.max()) for part in (n_a, n_b, of_a, of_b) if len(part)), default=-1)
    row = np.full((2, total), -1)
    for side, numbers in enumerate((n_a, n_b)):
        row[side, numbers] = np.arange(len(numbers))
    both = np.asarray((row >= 0).all(axis=0))
    only = np.concatenate([_only(images[side], row[side], row[1 - side], side) for side in (0, 1)])
    split = np.stack([images[side]["split"][row[side, both]] for side in (0, 1)])
    splits = np.zeros((len(SPLITS), len(SPLITS)), dtype=np.int64)
    np.add.at(splits, (split[0], split[1]), 1)
    moved = split[0] != split[1]
    ids = images[0]["id"][row[0, both]]

    key_a, key_b = keys(of_a, labels[0]["entity"], of_b, labels[1]["entity"])
    _, at_a, at_b = np.intersect1d(key_a, key_b, return_indices=True)
    apart = labels[1]["score"][at_b].astype(np.float64) - labels[0]["score"][at_a]
    bins = np.clip(np.rint((apart + 1) * (BINS // 2)), 0, BINS - 1).astype(np.int64)
    changed: list[np.ndarray] = []
    of_only = [0, 0]
    for side, (numbers, mine, other) in enumerate(((of_a, key_a, key_b), (of_b, key_b, key_a))):
        of_only[side] = int((~both[numbers]).sum())
        alone = both[numbers] & ~np.isin(mine, other)
        rows = np.empty(int(alone.sum()), dtype=CHANGED)
        for name in LABEL.names or ():
            rows[name] = labels[side][name][alone]
        rows["side"] = side
        changed.append(rows)
    differing = np.concatenate(changed)
    order = np.lexsort((differing["entity"], differing["side"], differing["id"][:, 1], differing["id"][:, 0]))
    counts = Counts(
        images_both=int(both.sum()),
        images_changed=len(np.unique(numbered(differing["id"])[0])),
        labels_both=len(at_a),
        labels_of_only=of_only,
        splits=splits,
        differences=np.bincount(bins, minlength=BINS),
    )
    by_id = np.lexsort((only["id"][:, 1], only["id"][:, 0]))
    return Compared(counts, only[by_id], ids[moved], split[:, moved].T, differing[order])


def _only(images: np.ndarray, mine: np.ndarray, other: np.ndarray, side: int) -> np.ndarray:
    rows = np.empty(int(((mine >= 0) & (other < 0)).sum()), dtype=ONLY)
    for name in IMAGE.names or ():
        rows[name] = images[name][mine[(mine >= 0) & (other < 0)]]
    rows["side"] = side
    return rows


def keys(*parts: np.ndarray) -> list[np.ndarray]:
    """(number, entity, number, entity, …) to a number for each pair of them: equal ones where both are equal."""
    entities, code = np.unique(np.concatenate(parts[1::2]), return_inverse=True)
    codes = np.split(code, np.cumsum([len(part) for part in parts[1::2]])[:-1])
    return [number * max(1, len(entities)) + code for number, code in zip(parts[::2], codes, strict=True)]


def quantiles(differences: np.ndarray) -> dict[str, float]:
    """Of the differences that `Counts` holds by bin, to 0.0001."""
    ends = np.cumsum(differences)
    if not ends[-1]:
        return {}
    places = {f"{q:g}": int(np.searchsorted(ends, max(1, np.ceil(q * ends[-1])))) for q in QUANTILES}
    return {name: round(place / (BINS // 2) - 1, 4) for name, place in places.items()}


# --- entities ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entities:
    """All entities of both, E in the order of their ids."""

    id_E: np.ndarray
    index_2E: np.ndarray
    """class index in A and in B, −1 where it has none"""
    live_2E: np.ndarray
    """has a class that is not retired"""
    images_2E: np.ndarray
    """images that bear it"""
    names: tuple[list[str | None], list[str | None]]

    @classmethod
    def of(cls, tables: tuple[pa.Table, pa.Table], images: tuple[np.ndarray, np.ndarray]) -> Entities:
        """tables: I2E_ENTITIES of A and B. images: of each class, how many images bear it."""
        ids = [table.column("entity_id").to_numpy() for table in tables]
        id_E = np.unique(np.concatenate(ids))
        shape = (2, len(id_E))
        index, live, counts = np.full(shape, -1), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
        names: tuple[list[str | None], list[str | None]] = ([None] * len(id_E), [None] * len(id_E))
        for side, (table, of) in enumerate(zip(tables, ids, strict=True)):
            at = np.searchsorted(id_E, of)
            index[side, at] = table.column("class_index").to_numpy()
            live[side, at] = ~table.column("retired").to_numpy(zero_copy_only=False)
            counts[side, at] = images[side]
            for place, name in zip(at.tolist(), table.column("name").to_pylist(), strict=True):
                names[side][place] = name
        return cls(id_E, index, live, counts, names)

    @property
    def known_2E(self) -> np.ndarray:
        return np.asarray(self.index_2E >= 0)

    @property
    def alone_2E(self) -> np.ndarray:
        """Those that have a class in A alone, and in B alone."""
        return self.live_2E & ~self.live_2E[::-1]

    @property
    def moved_E(self) -> np.ndarray:
        """Those whose class index is another one."""
        return np.asarray(self.known_2E.all(axis=0) & (self.index_2E[0] != self.index_2E[1]))

    @property
    def renamed_E(self) -> np.ndarray:
        return np.array([None not in (a, b) and a != b for a, b in zip(*self.names, strict=True)], dtype=bool)

    @property
    def change_E(self) -> np.ndarray:
        return np.asarray(self.images_2E[1] - self.images_2E[0])

    def name(self, place: int) -> str:
        """In B, or where it has none there (or its number alone, as what lists leave out has), in A."""
        said = [name for name in (self.names[1][place], self.names[0][place]) if name]
        return next((name for name in said if name != f"Q{self.id_E[place]}"), said[0])


def other_meaning(entities: Entities) -> int:
    """Class indices that mean one entity in A and another one in B."""
    by_index = []
    for side in (0, 1):
        known = np.flatnonzero(entities.index_2E[side] >= 0)
        of = np.empty(len(known), dtype=np.int64)
        of[entities.index_2E[side, known]] = entities.id_E[known]
        by_index.append(of)
    common = min(map(len, by_index))
    return int((by_index[0][:common] != by_index[1][:common]).sum())


# --- settings ------------------------------------------------------------------------------------------------------

_REPEATED = ("model", "labels_chosen_by", "thresholds")
"""Parts of a manifest that `settings` says again, since there is that part."""
_NOT_MADE_WITH = (
    "images", "labels", "wider_labels", "entities", "units", "dataset", "funnel", "told", "purged", "export"
)  # fmt: skip
"""Parts that say what came out."""


@dataclass(frozen=True)
class Differing:
    """A setting that is not the same. A side that has none of that name lacks it in `values`."""

    name: str
    values: Mapping[int, Any]


def settings(manifests: tuple[Mapping[str, Any], Mapping[str, Any]]) -> list[Differing]:
    """What differs in how two datasets were made, by their manifests: settings, fingerprints, software, the form of the
    dataset. In the order in which the manifests say it."""
    left_out = _NOT_MADE_WITH + (_REPEATED if all("settings" in manifest for manifest in manifests) else ())
    flat = [_flat({k: v for k, v in manifest.items() if k not in left_out}) for manifest in manifests]
    found = []
    for name in dict.fromkeys((*flat[0], *flat[1])):
        values = {side: of[name] for side, of in enumerate(flat) if name in of}
        if len(values) < 2 or values[0] != values[1]:
            found.append(Differing(name, values))
    return found


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found
