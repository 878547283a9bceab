"""Link: what stands above each candidate, by subclass of (P279), parent taxon (P171) and instance of (P31)?

Reads    kb/entities (ABOVE_COLUMNS), once, by rising entity_id · the candidates of a batch
Writes   kb/above: a folder of flat arrays, memory-mapped by every worker of a machine together
         wider (text_id, start, end, entity_id, wider_of, steps): what `label.wider` may label where no candidate fits

A photo whose text names a breed shows a dog, whether or not the image model can tell the breed. What a class of things
is, the classes above it say; what a single thing is (a bridge, a painting, a dog called Fido), its own class (P31). The
class of a class ("taxon", "car model") is nothing that is seen, so P31 counts for items without P279 and P171, and for
the candidate itself alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.arrays import Arrays, new
from i2e_pipeline.core.schemas import WIDER
from i2e_pipeline.engine.tables import Kernel

FORMAT = 1
_HEADER = "above"
COLUMNS = ("entity_id", "name_language", "types", "parents", "visual")
"""Of kb/entities, what `build` reads."""
STEPS = 3
"""Levels that are walked. Higher ones hold nearly everything: what is seen is then "object" or "organism"."""
VISUAL = 0.5
"""Share of photographs naming a thing of its type that show it, from which on a class may be what is seen."""
WORTH = 0.05
"""Probability by the text from which on a candidate has wider ones: below it the text says no more than "unlikely"."""
WEIGHS = {"wider_steps": STEPS, "wider_visual": VISUAL, "wider_worth": WORTH}
"""What the rows of the table depend on beside the knowledge base."""
_SHOWN, _SINGLE = 1, 2

I64 = npt.NDArray[np.int64]


def build(batches: Iterable[pa.RecordBatch], folder: str | os.PathLike[str]) -> int:
    """Write what stands above these entities to `folder`; returns how many are in it.

    batches   COLUMNS, by rising entity_id
    Holds one batch in memory. Entities that have nothing above them and can themselves be nothing wider are left out:
    those without a name, and those of types that photographs seldom show.
    """
    entities = edges = 0
    with new(folder, _HEADER) as store:
        ids, ends, above, marks = (store.stream(name) for name in ("ids", "ends", "above", "marks"))
        for batch in batches:
            has_parents = pc.greater(pc.list_value_length(batch.column("parents")), 0)
            up = pc.if_else(has_parents, batch.column("parents"), batch.column("types"))
            named = pc.not_equal(batch.column("name_language"), "")
            shown = pc.and_(named, pc.greater_equal(batch.column("visual"), VISUAL))
            kept = pc.or_(shown, pc.greater(pc.list_value_length(up), 0))
            up, single = up.filter(kept), pc.invert(has_parents).filter(kept)
            sizes = np.asarray(pc.list_value_length(up), dtype=np.int64)
            mark = np.asarray(shown.filter(kept)) * _SHOWN + np.asarray(single) * _SINGLE
            for stream, part in (
                (ids, np.asarray(batch.column("entity_id").filter(kept), dtype=np.int64)),
                (ends, edges + np.cumsum(sizes)),
                (above, np.asarray(up.flatten(), dtype=np.int64)),
                (marks, mark.astype(np.int8)),
            ):
                stream.write(np.ascontiguousarray(part).data)
            entities += len(sizes)
            edges += int(sizes.sum())
        store.header = {"format": FORMAT, "entities": entities, "edges": edges}
    return entities


class Above:
    """A built folder, memory-mapped. Raises ArraysError for one that holds none, or one of another format."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        stored = Arrays(folder, _HEADER, FORMAT)
        self._ids: I64 = stored.numbers("ids", np.int64)
        self._ends: I64 = stored.numbers("ends", np.int64)
        self._above: I64 = stored.numbers("above", np.int64)
        self._marks = stored.numbers("marks", np.int8)

    def of(self, entities: I64) -> tuple[I64, I64, I64]:
        """What stands above each entity: its place in `entities`, the wider entity and the fewest steps to it (1: just
        above), by place, steps and wider entity.

        Circles and repeated edges do no harm. What is no possible label is walked through.
        """
        places, found, steps = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        of, at = np.arange(len(entities)), self._at(entities)
        seen = np.stack([of, entities])
        for step in range(1, STEPS + 1):
            known = at >= 0
            if step > 1:
                known &= (self._marks[at] & _SINGLE) == 0
            of, at = of[known], at[known]
            if not len(of):
                break
            first = np.where(at > 0, self._ends[np.maximum(at - 1, 0)], 0)
            sizes = self._ends[at] - first
            within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            reached = np.stack([np.repeat(of, sizes), self._above[np.repeat(first, sizes) + within]])
            # Each once, at its fewest steps.
            both, once = np.unique(np.concatenate([seen, reached], axis=1), axis=1, return_index=True)
            fresh = once >= seen.shape[1]
            of, wider = both[:, fresh]
            seen, at = both, self._at(wider)
            shown = (at >= 0) & ((self._marks[at] & _SHOWN) > 0)
            places.append(of[shown])
            found.append(wider[shown])
            steps.append(np.full(int(shown.sum()), step))
        place, wider, step_ = np.concatenate(places), np.concatenate(found), np.concatenate(steps)
        order = np.lexsort((wider, step_, place))
        return place[order], wider[order], step_[order]

    def _at(self, entities: I64) -> I64:
        """Where each entity stands; -1 where it does not."""
        if not len(self._ids):
            return np.full(len(entities), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._ids, entities), len(self._ids) - 1)
        return np.where(self._ids[places] == entities, places, -1)


def wider(candidates: pa.RecordBatch, above: Above) -> pa.RecordBatch:
    """WIDER of CANDIDATES, which hold all candidates of each of their texts.

    A row for each candidate of some probability (WORTH) and each entity above it. What the text itself may name, in
    whichever mention, is none of them: it has a probability of its own.
    """
    text = np.asarray(candidates.column("text_id").dictionary_encode().indices, dtype=np.int64)
    entity = np.asarray(candidates.column("entity_id"), dtype=np.int64)
    worth = np.flatnonzero(np.asarray(candidates.column("probability")) >= WORTH)
    distinct, which = np.unique(entity[worth], return_inverse=True)
    place, found, steps = above.of(distinct)
    first, last = np.searchsorted(place, which), np.searchsorted(place, which, "right")
    sizes = last - first
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    at, row = np.repeat(first, sizes) + within, np.repeat(worth, sizes)
    codes = np.unique(np.concatenate([entity, found[at]]), return_inverse=True)[1]
    pairs = np.concatenate([text, text[row]]) * (int(codes.max(initial=0)) + 1) + codes
    new_ones = ~np.isin(pairs[len(text) :], pairs[: len(text)])
    row, at = row[new_ones], at[new_ones]
    columns = [candidates.column(name).take(pa.array(row)) for name in ("text_id", "start", "end", "entity_id")]
    arrays = [*columns[:3], pa.array(found[at]), columns[3], pa.array(steps[at], pa.int32())]
    return pa.RecordBatch.from_arrays(arrays, schema=WIDER)


def with_wider(kernel: Kernel, above: Above) -> Kernel:
    """The kernel that also yields `wider` of the candidates that it yields."""

    def both(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
        for table, batch in kernel(batches):
            yield table, batch
            if table == "candidates":
                yield "wider", wider(batch, above)

    return both
