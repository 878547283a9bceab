"""The first pass: which pairs are unsure enough to be asked about, by what text and image say already.

Reads    options of scored pairs, as the stage that chooses labels sees them
Writes   questions (pair_id, image_id, shard, row, text_id, unsure, options): the pairs in the band

The probabilities are those by which labels are chosen, with no verdict among what is weighed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from i2e_pipeline.core.config import VerifyConfig
from i2e_pipeline.core.schemas import ID
from i2e_pipeline.engine.tasks import notes
from i2e_pipeline.label.calibration import Calibration
from i2e_pipeline.label.labels import flat_options

IN_BAND = "candidates of pairs in the band"
OPTIONS = pa.list_(pa.struct([("entity_id", pa.int64()), ("probability", pa.float32()), ("surface", pa.string())]))
QUESTIONS = pa.schema(
    [
        pa.field("pair_id", ID, nullable=False),
        pa.field("image_id", ID, nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("text_id", ID, nullable=False),
        pa.field("unsure", pa.float64(), nullable=False),
        pa.field("options", OPTIONS, nullable=False),
    ]
)
"""`unsure`: how far the best candidate's probability is from one half, in log odds; 0: nobody knows less. `options`:
each candidate entity once, the most probable first."""


def first_pass(
    batches: Iterator[pa.RecordBatch], calibration: Calibration, low: float, high: float
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Kernel: the pairs whose best candidate's probability lies in [low, high].

    batches      a row per pair: pair_id, image_id, text_id: binary(16), shard: int32, row: int64, options: list of
                 structs as `labels.choose_labels` has them
    calibration  what weighs text and image; it must weigh no verdict
    yields       ("questions", QUESTIONS), and a note of how many candidates these pairs have
    """
    candidates = 0
    for batch in batches:
        flat = flat_options(batch)
        if not flat.num_rows:
            continue
        p = calibration.probability(flat.append_column("image_id", flat.column("pair_id")))
        parent = flat.column("parent").to_numpy()
        entity = np.asarray(flat.column("entity_id"), dtype=np.int64)
        start, end = (np.asarray(flat.column(name), dtype=np.int64) for name in ("start", "end"))
        # Each entity of a pair once, where it is most probable, then first.
        order = np.lexsort((end, start, -p, entity, parent))
        once = (np.diff(parent[order], prepend=-1) != 0) | (np.diff(entity[order], prepend=-1) != 0)
        kept = order[once]
        kept = kept[np.lexsort((entity[kept], -p[kept], parent[kept]))]
        lead = np.diff(parent[kept], prepend=-1) != 0
        best = np.zeros(batch.num_rows)
        best[parent[kept][lead]] = p[kept][lead]
        asked = np.zeros(batch.num_rows, dtype=bool)
        asked[parent[kept][lead]] = True
        asked &= (best >= low) & (best <= high)
        kept = kept[asked[parent[kept]]]
        if not len(kept):
            continue
        rows = np.flatnonzero(asked)
        sizes = np.bincount(parent[kept], minlength=batch.num_rows)[rows]
        options = pa.StructArray.from_arrays(
            [
                pa.array(entity[kept]),
                pa.array(p[kept].astype(np.float32)),
                flat.column("surface").take(pa.array(kept)).combine_chunks().cast(pa.string()),
            ],
            fields=list(OPTIONS.value_type),
        )
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
        columns = {name: batch.column(name).take(pa.array(rows)) for name in QUESTIONS.names[:5]}
        within = np.clip(best[rows], 1e-9, 1 - 1e-9)
        columns["unsure"] = pa.array(np.abs(np.log(within) - np.log1p(-within)))
        columns["options"] = pa.ListArray.from_arrays(offsets, options)
        candidates += len(kept)
        yield "questions", pa.RecordBatch.from_pydict(columns)
    yield from notes({IN_BAND: candidates})


def of_budget(pairs: int, config: VerifyConfig) -> int:
    """How many of a unit's pairs may be asked about."""
    return int(config.budget * pairs + 1e-9)
