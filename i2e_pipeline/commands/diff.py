"""`i2e diff`: two builds of a dataset compared: what is in one and not in the other, and why. No Spark.

Reads    A and B, datasets or the outputs that hold them (diffing/side.py)
Writes   nothing, or with `out` FOLDER/{entities,images,splits,labels}.parquet: all that differs, in the order of ids

Images, labels and what tables say of them are dealt to buckets by id, in files of the temporary folder, and compared
one bucket at a time. Memory holds a bucket (BYTES_PER_IMAGE for each image of the larger dataset that is in it), the
tables of entities, sieves of at most 256 MB, and a batch of rows for each of 16 threads. The temporary folder
(TMPDIR) takes some 65 bytes for each image and label of both, and of images that differ some 50 bytes for each
candidate and pair: 130 GB for two datasets of 10⁹ images. Every file is read once.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from i2e_pipeline.commands.diffing import compare
from i2e_pipeline.commands.diffing.compare import BINS, SPLITS, Counts, Entities
from i2e_pipeline.commands.diffing.side import Side
from i2e_pipeline.commands.diffing.steps import Comparison, Difference
from i2e_pipeline.commands.diffing.written import SIDES, Written
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.core.secrets import hide

__all__ = ["DiffError", "Difference", "Side", "as_json", "changes", "diff"]

BYTES_PER_IMAGE = 1_500
"""Of memory while a bucket is compared, with tables on both sides and other labels on every image; 500 where none
differ."""
_FEWEST = 10_000
"""Images in a bucket, however little memory is given: each bucket is some ten files."""
_ENTITIES_IN_JSON = 100_000


class DiffError(I2EError, ValueError):
    """What was asked for cannot be compared or written."""


def diff(a: Side, b: Side, memory_gb: float = 2.0, out: str | None = None, at_once: int | None = None) -> Difference:
    """Compare two datasets.

    memory_gb   what a bucket of images may take
    out         a folder for what differs, row by row; None: it is counted alone
    at_once     images in a bucket, in place of what memory_gb comes to; the result does not depend on it

    Raises DatasetError for files that cannot be read, DiffError where `out` cannot be written.
    """
    sides = (a, b)
    if at_once is None:
        at_once = max(_FEWEST, int(memory_gb * 1e9 / BYTES_PER_IMAGE))
    _refuse_inside(out, sides)
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=scratch("diff"))))
        written = held.enter_context(Written(out))
        found = Comparison(sides, folder, at_once, written).found()
        written.entities(entity_rows(found))
    return found


def _refuse_inside(out: str | None, sides: Sequence[Side]) -> None:
    for of in sides if out is not None else ():
        dataset = of.published.folder.rstrip("/")
        if f"{str(out).rstrip('/')}/".startswith(f"{dataset}/"):
            raise DiffError(f"--out {out} lies in the dataset {hide(dataset)}: name another folder")


def entity_rows(found: Difference, places: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
    """Entities by their places in `Difference.entities`; None: all."""
    of = found.entities
    why: dict[int, str] = {}
    for side_, reasons in enumerate(found.why_entity):
        why |= dict(zip(np.flatnonzero(of.alone_2E[side_]).tolist(), reasons.tolist(), strict=True))
    for place in range(len(of.id_E)) if places is None else places:
        known = [bool(of.known_2E[n, place]) for n in (0, 1)]
        yield {
            "entity_id": int(of.id_E[place]),
            **{f"name_{s}": of.names[n][place] for n, s in enumerate(SIDES)},
            **{f"class_index_{s}": int(of.index_2E[n, place]) if known[n] else None for n, s in enumerate(SIDES)},
            **{f"retired_{s}": not of.live_2E[n, place] if known[n] else None for n, s in enumerate(SIDES)},
            **{f"images_{s}": int(of.images_2E[n, place]) for n, s in enumerate(SIDES)},
            "change": int(of.change_E[place]),
            "why": why.get(place),
        }


def changes(entities: Entities) -> list[int]:
    """Places of the entities that have more or fewer images in B, the largest changes first."""
    change = entities.change_E
    places = np.flatnonzero(change)
    return [int(p) for p in places[np.lexsort((entities.id_E[places], -np.abs(change[places])))]]


def as_json(found: Difference) -> dict[str, Any]:
    units = [set(of.published.manifest["units"]) for of in found.sides]
    units_of_one = [len(x - y) for x, y in (units, units[::-1])]
    of, counts = found.entities, found.counts
    differing = changes(of)
    marked = np.flatnonzero(of.alone_2E.any(axis=0) | of.moved_E | of.renamed_E).tolist()
    listed = list(dict.fromkeys([*differing, *marked]))
    return {
        **{name: _side_as_json(found, side) for side, name in enumerate(SIDES)},
        "settings": [
            {"name": one.name, **{SIDES[n]: value for n, value in one.values.items()}} for one in found.settings
        ],
        "units": {"both": len(units[0] & units[1]), **_of_both("only_in", units_of_one)},
        "entities": {
            "both": int(of.live_2E.all(axis=0).sum()),
            **_of_both("only_in", of.alone_2E.sum(axis=1)),
            **_of_both("why_only_in", (Counter(why.tolist()) for why in found.why_entity), _ranked),
            **_of_both("retired_in", (of.known_2E & ~of.live_2E).sum(axis=1)),
            "class_index_moved": int(of.moved_E.sum()),
            "class_indices_of_another_entity": found.other_meaning,
            "renamed": int(of.renamed_E.sum()),
            "more_images": int((of.change_E > 0).sum()),
            "fewer_images": int((of.change_E < 0).sum()),
            "changed": list(entity_rows(found, listed[:_ENTITIES_IN_JSON])),
            "left_off": max(0, len(listed) - _ENTITIES_IN_JSON),
        },
        "images": {
            "both": counts.images_both,
            **_of_both("only_in", (sum(why.values()) for why in found.why_image)),
            **_of_both("why_only_in", found.why_image, _ranked),
            "split_changed": [
                {"a": SPLITS[x], "b": SPLITS[y], "images": int(counts.splits[x, y])}
                for x, y in np.argwhere(counts.splits).tolist()
                if x != y
            ],
        },
        "labels": {
            "both": counts.labels_both,
            **_of_both("only_in", (sum(why.values()) for why in found.why_label)),
            **_of_both("why_only_in", found.why_label, _ranked),
            **_of_both("of_images_only_in", counts.labels_of_only),
            "images_changed": counts.images_changed,
            "images_moved": found.images_moved,
            **_of_both("why_moved", found.why_moved, _ranked),
            "moves": [{"a": x, "b": y, "images": images} for x, y, images in found.moves],
            "score_b_minus_a": {"unchanged": unmoved(counts), "quantiles": compare.quantiles(counts.differences)},
        },
        "notes": found.notes,
    }  # fmt: skip


def unmoved(counts: Counts) -> int:
    """Labels that both have with the same score, to four digits."""
    return int(counts.differences[BINS // 2])


def _ranked(why: Counter[str]) -> dict[str, int]:
    return dict(sorted(why.items(), key=lambda one: (-one[1], one[0])))


def _of_both(name: str, values: Any, shown: Any = None) -> dict[str, Any]:
    return {f"{name}_{SIDES[n]}": shown(value) if shown else int(value) for n, value in enumerate(values)}


def _side_as_json(found: Difference, side: int) -> dict[str, Any]:
    of = found.sides[side]
    return {
        "dataset": of.name,
        "images": of.published.rows,
        "labels": found.labels_of(side),
        "entities": int(found.entities.live_2E[side].sum()),
        "asked_tables": of.run is not None,
    }
