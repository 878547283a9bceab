"""The comparison of two datasets, step by step: what differs, then why. What a step leaves for the next lies in spills.

images, labels of A and B ─► only (images of one), changed (labels of one, of images of both)
tables of a run, of these images ─► weighed (candidates) ─► asked (pairs) ─► fates ─► answers
only, changed, weighed, answers ─► causes
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from i2e_pipeline.commands.diffing import causes, compare, side
from i2e_pipeline.commands.diffing.buckets import Sieve, Spill, numbered
from i2e_pipeline.commands.diffing.causes import Evidence, Knowledge
from i2e_pipeline.commands.diffing.compare import Counts, Differing, Entities
from i2e_pipeline.commands.diffing.side import Fates, Side
from i2e_pipeline.commands.diffing.written import Written
from i2e_pipeline.core.draws import mixed

log = logging.getLogger(__name__)

_MOVES_KEPT = 1_000
_ASKED = np.dtype([("id", "<u8", 2), ("pair", "<u8", 2)])
_MOVE = np.dtype([("id", "<u8", 2), ("from", "<i8"), ("to", "<i8")])
"""`id` deals them out: equal moves come together."""


@dataclass
class Difference:
    sides: tuple[Side, Side]
    settings: list[Differing]
    entities: Entities
    why_entity: tuple[np.ndarray, np.ndarray]
    """Of the entities that have a class in A alone, in their order, why B has none; and the reverse."""
    other_meaning: int
    """Class indices that mean another entity."""
    counts: Counts
    why_image: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    """Images of A alone by the reason why B has them not; and the reverse."""
    why_label: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    """The same of labels of images that both have."""
    images_moved: int = 0
    """Images that both have which lost a label and got another."""
    why_moved: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    """Of these, why B has not the label of A; why A has not that of B."""
    moves: list[tuple[int, int, int]] = field(default_factory=list)
    """Entity in A, entity in B, images: the most frequent ones."""

    def labels_of(self, side: int) -> int:
        return self.counts.labels_both + sum(self.why_label[side].values()) + self.counts.labels_of_only[side]

    @property
    def notes(self) -> list[str]:
        return [note for of in self.sides for note in of.notes]


class Comparison:
    """A comparison, step by step; what a step leaves for the next lies in spills."""

    def __init__(self, sides: tuple[Side, Side], folder: Path, at_once: int, written: Written) -> None:
        self.sides, self.folder, self.at_once, self.written = sides, folder, at_once, written
        self.buckets = self._buckets(max(of.published.rows for of in sides))
        self.only = self._spill("only", compare.ONLY)
        self.changed = self._spill("changed", compare.CHANGED)
        self.weighed = self._of_sides("weighed", causes.WEIGHED)
        self.answers = self._of_sides("answers", causes.ANSWER)
        self.moves = self._spill("moves", _MOVE)

    def found(self) -> Difference:
        manifests = (self.sides[0].published.manifest, self.sides[1].published.manifest)
        counts, images_of = self._compare()
        tables = (self.sides[0].published.entities, self.sides[1].published.entities)
        entities = Entities.of(tables, images_of)
        fates = [Fates.of(of.run) for of in self.sides]
        asked = self._entities_in_question(entities)
        known = [side.knowledge(of, fate, asked) for of, fate in zip(self.sides, fates, strict=True)]
        self._ask(fates)
        found = Difference(
            self.sides,
            compare.settings(manifests),
            entities,
            self._why_entities(entities, known),
            compare.other_meaning(entities),
            counts,
        )
        self._explain(found, known)
        found.moves = self._most_frequent()
        for of in self.sides:
            if of.run is None and not of.notes:
                of.notes.append(f"no run's tables lie beside {of.letter}: they would say why it lacks what it lacks")
        return found

    def _buckets(self, rows: int) -> int:
        return max(1, math.ceil(rows / self.at_once))

    def _spill(self, name: str, kind: np.dtype, buckets: int | None = None, by: str = "id") -> Spill:
        return Spill(self.folder, name, kind, buckets or self.buckets, by)

    def _of_sides(self, name: str, kind: np.dtype) -> tuple[Spill, Spill]:
        return self._spill(f"{name}-a", kind), self._spill(f"{name}-b", kind)

    # What differs

    def _compare(self) -> tuple[Counts, tuple[np.ndarray, np.ndarray]]:
        images, labels = self._of_sides("images", compare.IMAGE), self._of_sides("labels", compare.LABEL)
        counts, images_of = Counts(), []
        for of, mine, of_mine in zip(self.sides, images, labels, strict=True):
            log.info("reading the labels of %s images of %s", f"{of.published.rows:,}", of.letter)
            images_of.append(side.read_dataset(of, mine, of_mine))
        for bucket in range(self.buckets):
            seen = compare.compare(
                (images[0].take(bucket), images[1].take(bucket)), (labels[0].take(bucket), labels[1].take(bucket))
            )
            counts.add(seen.counts)
            self.only.add(seen.only)
            self.changed.add(seen.changed)
            self.written.resplit(seen)
        for spill in (*images, *labels):
            spill.drop()
        return counts, (images_of[0], images_of[1])

    def _entities_in_question(self, entities: Entities) -> np.ndarray:
        """All that some label changed to or from, or whose class is of one dataset alone."""
        asked = np.zeros(len(entities.id_E), dtype=bool)
        asked |= entities.alone_2E.any(axis=0)
        for bucket in range(self.buckets):
            asked |= np.isin(entities.id_E, self.changed.take(bucket)["entity"])
        return np.asarray(entities.id_E[asked])

    def _why_entities(self, entities: Entities, known: Sequence[Knowledge]) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for there, here in ((0, 1), (1, 0)):
            ids = entities.id_E[entities.alone_2E[there]]
            stood_for = known[there].merged[np.isin(known[there].merged[:, 0], known[here].live), 1]
            merged = np.concatenate([known[here].merged[:, 0], stood_for])
            found.append(causes.of_entities(ids, known[here], merged, side.labelled(self.sides[here], ids)))
        return found[0], found[1]

    # Why

    def _ask(self, fates: Sequence[Fates]) -> None:
        """Ask the runs' tables about the images that differ: first what was weighed of them, then what became of their
        pairs."""
        if all(of.run is None for of in self.sides) or not self.only.rows + self.changed.rows:
            return
        ids = (spill.take(bucket)["id"] for bucket in range(self.buckets) for spill in (self.only, self.changed))
        sieve = Sieve(ids, self.only.rows + self.changed.rows)
        for of, weighed in zip(self.sides, self.weighed, strict=True):
            if of.run is not None:
                log.info("asking %s what was weighed of the images that differ", of.letter)
                side.read_weighed(of, sieve, weighed)
        for number, of in enumerate(self.sides):
            if of.run is not None:
                log.info("asking %s what became of their pairs", of.letter)
                self._ask_pairs(number, fates[number])

    def _ask_pairs(self, here: int, fates: Fates) -> None:
        """What became here of all pairs, of either dataset, of the images that differ."""
        count = self.only.rows + sum(spill.rows for spill in self.weighed)
        buckets = self._buckets(count)
        asked = self._spill("asked", _ASKED, buckets, by="pair")
        for bucket in range(self.buckets):
            only, changed = self.only.take(bucket), self.changed.take(bucket)
            asked.add(_pairs_of(only[only["has_pair"]]))
            for spill in self.weighed:
                asked.add(_pairs_of(_of_images(spill.take(bucket), only, changed)))
        if not asked.rows:
            return
        told = self._spill("fates", causes.FATE, buckets, by="pair")
        sieve = Sieve((asked.take(bucket)["pair"] for bucket in range(buckets)), asked.rows)
        side.read_fates(self.sides[here], fates, sieve, told)
        for bucket in range(buckets):
            self.answers[here].add(_answers(asked.take(bucket), told.take(bucket)))
        asked.drop()
        told.drop()

    def _explain(self, found: Difference, known: Sequence[Knowledge]) -> None:
        for bucket in range(self.buckets):
            only, changed = self.only.take(bucket), self.changed.take(bucket)
            only = only[np.lexsort((only["id"][:, 1], only["id"][:, 0]))]
            by_id = (changed["entity"], changed["side"], changed["id"][:, 1], changed["id"][:, 0])
            changed = changed[np.lexsort(by_id)]
            evidence = [
                Evidence(_of_images(weighed.take(bucket), only, changed), answers.take(bucket))
                for weighed, answers in zip(self.weighed, self.answers, strict=True)
            ]
            why_image = np.empty(len(only), dtype=object)
            why_label = np.empty(len(changed), dtype=object)
            probability = np.full(len(changed), np.nan, dtype=np.float32)
            for there, here in ((0, 1), (1, 0)):
                mine = only["side"] == there
                why_image[mine] = causes.of_images(
                    only[mine], known[here], known[there], evidence[here], evidence[there]
                )
                found.why_image[there].update(why_image[mine].tolist())
                mine = changed["side"] == there
                why = causes.of_labels(
                    changed[mine], changed[~mine], known[here], known[there], evidence[here], evidence[there]
                )
                why_label[mine], probability[mine] = why.cause, why.probability
                found.why_label[there].update(why.cause.tolist())
            moves = causes.moves(changed)
            found.images_moved += len(moves)
            for there in (0, 1):
                found.why_moved[there].update(why_label[moves[:, there]].tolist())
            rows = np.empty(len(moves), dtype=_MOVE)
            rows["from"], rows["to"] = moves[:, 2], moves[:, 3]
            rows["id"] = mixed(moves[:, 2].astype(np.uint64) ^ mixed(moves[:, 3]))[:, None]
            self.moves.add(rows)
            self.written.images(only, why_image)
            self.written.labels(changed, why_label, probability, moves)

    def _most_frequent(self) -> list[tuple[int, int, int]]:
        kept: list[tuple[int, int, int]] = []
        for bucket in range(self.buckets):
            rows = self.moves.take(bucket)
            pairs, count = np.unique(np.stack([rows["from"], rows["to"]], axis=1), axis=0, return_counts=True)
            kept += [(int(x), int(y), int(n)) for (x, y), n in zip(pairs.tolist(), count.tolist(), strict=True)]
            kept = sorted(kept, key=lambda move: (-move[2], move[0], move[1]))[:_MOVES_KEPT]
        return kept


def _of_images(weighed: np.ndarray, *images: np.ndarray) -> np.ndarray:
    """Without what a sieve let through by chance."""
    n, *of = numbered(weighed["id"], *(rows["id"] for rows in images))
    return weighed[np.isin(n, np.concatenate(of))]


def _pairs_of(rows: np.ndarray) -> np.ndarray:
    asked = np.empty(len(rows), dtype=_ASKED)
    asked["id"], asked["pair"] = rows["id"], rows["pair"]
    return asked


def _answers(asked: np.ndarray, told: np.ndarray) -> np.ndarray:
    """What is told (FATE, a pair several times, maybe) of each pair that is asked for; nothing of others."""
    n, of_told = numbered(asked["pair"], told["pair"])
    fate = np.zeros(1 + max((int(part.max()) for part in (n, of_told) if len(part)), default=-1), dtype=np.int64)
    np.maximum.at(fate, of_told, told["fate"])
    known = fate[n] > 0
    rows = np.empty(int(known.sum()), dtype=causes.ANSWER)
    rows["id"], rows["pair"], rows["fate"] = asked["id"][known], asked["pair"][known], fate[n][known]
    return rows
