"""How often names stand in texts: a kernel.

Reads    texts · a gazetteer (gazetteer.build_of)
Writes   spelled, count: each distinct spelling in which a name stands in the texts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from i2e_pipeline.extract.gazetteer import Gazetteer

OCCURRENCES = pa.schema(
    [pa.field("spelled", pa.string(), nullable=False), pa.field("count", pa.int64(), nullable=False)]
)

_CHARACTERS = 1 << 19
"""Of texts that are matched together: some 100 bytes each while they are."""


def occurrences(batches: Iterable[pa.RecordBatch], gazetteer: Gazetteer) -> Iterator[pa.RecordBatch]:
    """Where several names of the gazetteer overlap, the one that begins first counts, and of those the longest; nothing
    counts twice.

    batches   one column of texts; null is none
    yields    OCCURRENCES, a batch for each batch
    """
    for batch in batches:
        found: Counter[str] = Counter()
        texts: list[str] = []
        held = 0
        for text in batch.column(0).to_pylist():
            if text:
                texts.append(text)
                held += len(text)
            if held > _CHARACTERS:
                found.update(_spelled(texts, gazetteer))
                texts, held = [], 0
        found.update(_spelled(texts, gazetteer))
        arrays = [pa.array([*found], pa.string()), pa.array([*found.values()], pa.int64())]
        yield pa.RecordBatch.from_arrays(arrays, schema=OCCURRENCES)


def _spelled(texts: Sequence[str], gazetteer: Gazetteer) -> Iterator[str]:
    if not texts:
        return
    row, until = -1, 0
    for here, start, end in zip(*(a.tolist() for a in gazetteer.find(list(texts))), strict=True):
        if here != row or start >= until:
            row, until = here, end
            yield texts[here][start:end]
