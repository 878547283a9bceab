"""Labels to be marked, in the order in which they were drawn, the marks, and what they say of the whole.

Reads    the index's draw (label/drawing.py) and counts · marks (inputs/marks.py)
Writes   a line per mark
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.explore.queries import Queries
from i2e_pipeline.inputs import marks as written
from i2e_pipeline.label import implied as estimates


class Marking:
    def __init__(self, queries: Queries, path: str, threshold: float, by: str | None = None) -> None:
        """Raises MarkError where the file holds what is no mark."""
        self._queries, self.path, self._threshold, self._by = queries, path, threshold, by
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, int], str] = {}
        self._looked_at: set[tuple[str, int]] = set()
        self._read: tuple[int, int] | None = None
        if files.is_local(path) and Path(path).is_dir():
            raise written.MarkError(f"{path} is a folder: name the file that marks go to (--marks FILE.jsonl)")
        self._refresh()
        self.drawn = {(row["image_id"], row["entity_id"]): row for row in queries.drawn()}
        self._by_image = {row["image_id"]: row for row in self.drawn.values()}

    def _refresh(self) -> None:
        """Read the file where it has changed: another process may mark, too."""
        if not files.exists(self.path):
            return
        now = None
        if files.is_local(self.path):
            about = Path(self.path).stat()
            now = about.st_size, about.st_mtime_ns
        if now is not None and now == self._read:
            return
        self._latest.clear()
        self._looked_at.clear()
        for row in written.read(self.path).select(["image_id", "entity_id", "mark", "weight"]).to_pylist():
            key = row["image_id"].hex(), row["entity_id"]
            self._latest[key] = row["mark"]
            if row["weight"] is not None:
                self._looked_at.add(key)
        self._read = now

    def __len__(self) -> int:
        return len(self._latest)

    @property
    def writable(self) -> bool:
        """Whether marks can be written where they should go."""
        if not files.is_local(self.path):
            return False
        folder = Path(self.path).parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return os.access(self.path if Path(self.path).exists() else folder, os.W_OK)

    def mark_of(self, image_id: str, entity_id: int) -> str | None:
        with self._lock:
            self._refresh()
            return self._latest.get((image_id, entity_id))

    def drawn_of(self, image_id: str) -> Mapping[str, Any] | None:
        """A drawn label of an image."""
        return self._by_image.get(image_id)

    def next_drawn(self, most: int, but: set[str]) -> dict[str, Any]:
        """The first drawn labels that were not marked as such: one that somebody marked on its image's page, because
        it caught the eye, is asked for again in its turn, else the draw would miss it.

        but   `image_id:entity_id` of those that a page has already
        """
        with self._lock:
            self._refresh()
            open_ = {key: row for key, row in self.drawn.items() if key not in self._looked_at}
        left = [row for (image_id, entity_id), row in open_.items() if f"{image_id}:{entity_id}" not in but]
        return {"rows": left[:most], "left": len(open_), "drawn": len(self.drawn)}

    def add(
        self, image_id: str, entity_id: int, mark: str, other: int | None, at: str, is_drawn: bool = False
    ) -> dict[str, Any]:
        """Append a mark. is_drawn: the label was asked for in the order of the draw, and stands for others.

        Raises MarkError for what is none, or for a label that this dataset does not know, OSError
        where it cannot be written."""
        drawn = self.drawn.get((image_id, entity_id))
        probability = drawn["probability"] if drawn else self._queries.score_of(image_id, entity_id)
        if probability is None:
            raise written.MarkError(f"{image_id} has no label Q{entity_id} in this dataset")
        weight = drawn["weight"] if drawn and is_drawn else None
        made = written.Mark(image_id, entity_id, mark, other, probability, weight, at, self._by)
        with self._lock:
            written.append(self.path, made)
            self._refresh()
        return {"marks": len(self._latest), "drawn": weight is not None}

    def implied(self) -> dict[str, Any]:
        """What the drawn marks say of the dataset (label/implied.py). `recall` only where a run's candidates were
        drawn from, too."""
        if not files.exists(self.path):
            table = written.MARKS.empty_table()
        else:
            table = written.read(self.path)
        told = estimates.implied(
            estimates.joined(table, self._labels_of(table)), self._queries.weighed_counts(), self._threshold
        )
        if not self._queries.facts["with_run"]:
            told.pop("recall", None)
        return told

    def _labels_of(self, marks: pa.Table) -> pa.Table:
        """What is known today of the labels that are marked: drawn ones, and those that are published."""
        rows = []
        for row in marks.select(["image_id", "entity_id"]).to_pylist():
            key = row["image_id"].hex(), row["entity_id"]
            known: Mapping[str, Any] | None = self.drawn.get(key)
            probability = known["probability"] if known else self._queries.score_of(*key)
            if probability is not None:
                rows.append({**row, "probability": probability, "published": known["published"] if known else True})
        return pa.Table.from_pylist(
            rows,
            pa.schema(
                [
                    ("image_id", pa.binary(16)),
                    ("entity_id", pa.int64()),
                    ("probability", pa.float64()),
                    ("published", pa.bool_()),
                ]
            ),
        )
