"""The whole story of an image or a pair, rejected rows, and labels that are known to be wrong: what a run's tables
know beyond the dataset. Where no run lies beside the dataset, each says so.

The story is `i2e explain`'s, which is handed in: this room reads finished datasets, and commands are above it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.errors import I2EError

_KEPT = 200
"""Stories that are kept; each is some 50 kB."""


class NotKnown(I2EError):
    """What was asked for stands in no table."""


@dataclass(frozen=True)
class Told:
    """What a run beside the dataset can be asked."""

    explain: Callable[[str, str | None], dict[str, Any]]
    """(image, pair, url or key; the unit where it lies, if known) to what `i2e explain` says. Raises I2EError."""
    rejects: Callable[[str, str], Iterator[tuple[str, int, Callable[[int, int], list[dict[str, Any]]]]]]
    """(stage, reason) to units with their number of such rows, and a reader of (offset, most) of these."""
    sentences: Callable[[str, str], str]
    """(stage, reason) to the reason's sentence."""
    does: Mapping[str, str]
    """Of each stage what it does."""
    text: Callable[[Mapping[str, Any]], str | None]
    """The cleaned text of a drawn label: pair_id, unit."""
    stored: Callable[[Mapping[str, Any]], bytes | None]
    """The image of a drawn label as the input has it: unit, shard, row. None where it is gone."""


@dataclass
class Rejected:
    """A page of rejected rows."""

    rows: list[dict[str, Any]]
    total: int
    sentence: str
    rows_are: str


@dataclass
class Stories:
    manifest: Mapping[str, Any]
    run: Told | None = None
    judged_labels: pa.Table | None = None
    """judged.parquet: published labels of known truth."""
    _kept: OrderedDict[tuple[str, str | None], dict[str, Any]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def there(self) -> bool:
        return self.run is not None

    @property
    def has_judged(self) -> bool:
        return self.judged_labels is not None and self.judged_labels.num_rows > 0

    def told(self, asked: str, unit: str | None) -> dict[str, Any] | None:
        """The story; None where no run lies beside the dataset. Raises I2EError where the run does not know it."""
        if self.run is None:
            return None
        with self._lock:
            if (asked, unit) in self._kept:
                return self._kept[asked, unit]
            # One after the other: each reads tables and links a text.
            story = self.run.explain(asked, unit)
            self._kept[asked, unit] = story
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return story

    def text_of(self, row: Mapping[str, Any]) -> str | None:
        return self.run.text(row) if self.run is not None else None

    def stored_of(self, row: Mapping[str, Any]) -> bytes | None:
        return self.run.stored(row) if self.run is not None else None

    # What was rejected

    def funnel(self) -> list[dict[str, Any]]:
        """Stages with what came in, went out and was rejected, by reason: of the manifest, so of any dataset."""
        found = []
        for step in self.manifest.get("funnel", ()):
            reasons = sorted(step["rejected"].items(), key=lambda r: (-r[1], r[0]))
            told = [(name, rows, self._sentence(step["stage"], name)) for name, rows in reasons]
            does = self.run.does.get(step["stage"], "") if self.run else ""
            found.append({**step, "reasons": told, "does": does})
        return found

    def _sentence(self, stage: str, reason: str) -> str:
        try:
            return self.run.sentences(stage, reason) if self.run else ""
        except KeyError:
            return ""

    def rejected(self, stage: str, reason: str, offset: int, most: int) -> Rejected:
        if self.run is None:
            raise NotKnown(
                "rejected rows stand in the tables of the run, which do not lie beside this dataset: open the output "
                "folder, or name its config"
            )
        step = next((s for s in self.manifest.get("funnel", ()) if s["stage"] == stage), None)
        if step is None or reason not in step["rejected"]:
            raise NotKnown(f"{stage} rejected nothing as {reason}")
        rows: list[dict[str, Any]] = []
        skipped = total = 0
        for unit, count, read in self.run.rejects(stage, reason):
            total += count
            if len(rows) < most and skipped + count > offset:
                rows += [{**row, "unit": unit} for row in read(max(0, offset - skipped), most - len(rows))]
            skipped += count
        return Rejected(rows, total, self._sentence(stage, reason), step["rows_are"])

    # What is known to be wrong

    def judged(self, image_id: str) -> list[dict[str, Any]]:
        if self.judged_labels is None:
            return []
        rows: list[dict[str, Any]] = self.judged_labels.filter(
            pc.equal(self.judged_labels["image_id"], image_id)
        ).to_pylist()
        return rows

    def mistakes_of(self, entity_id: int) -> int:
        if self.judged_labels is None:
            return 0
        table = self.judged_labels
        return table.filter(pc.and_(pc.equal(table["entity_id"], entity_id), pc.equal(table["right"], False))).num_rows

    def mistakes(self, offset: int, most: int) -> dict[str, Any]:
        """Wrong labels, the most confident first, and the pairs of entities that are confused most: said, truth."""
        if self.judged_labels is None or not self.has_judged:
            raise NotKnown(
                "what images show is not known here: the run's input has no column of truth (pairs.truth_column), or "
                "its output lies elsewhere. Marks say it, too: label some"
            )
        table = self.judged_labels
        known = table.filter(pc.is_valid(table["right"]))
        wrong = known.filter(pc.invert(known["right"]))
        wrong = wrong.sort_by([("probability", "descending"), ("image_id", "ascending"), ("entity_id", "ascending")])
        pairs = wrong.group_by(["entity_id", "truth"]).aggregate([("image_id", "count"), ("probability", "max")])
        pairs = pairs.rename_columns(["entity_id", "truth", "labels", "probability"])
        pairs = pairs.sort_by([("labels", "descending"), ("probability", "descending"), ("entity_id", "ascending")])
        return {
            "rows": wrong.slice(offset, most).to_pylist(),
            "wrong": wrong.num_rows,
            "known": known.num_rows,
            "confused": pairs.slice(0, 20).to_pylist(),
        }
