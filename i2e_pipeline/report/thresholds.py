"""What another threshold would choose, and what that would be worth where the truth is known.

Reads    output.JUDGED: the candidates of pairs of known truth
Writes   nothing
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.label.calibration import Calibration, select


def labels_at(candidates: pa.Table, threshold: float, max_labels: int = 4) -> np.ndarray:
    """Which candidates (output.JUDGED) would be labels at another threshold, as a mask.

    The rule is `label`'s own (label/calibration.py), with one thing less: of mentions that overlap it knows here only
    those of the same words. At the run's own threshold and above it gives the run's labels.
    """
    count = candidates.num_rows
    p = candidates.column("probability").to_numpy().astype(np.float64)
    words = pc.rank(pc.fill_null(candidates.column("mention"), ""), tiebreaker="dense").to_numpy().astype(np.int32)
    rows = pa.table(
        {
            "pair_id": candidates.column("pair_id"),
            "image_id": candidates.column("pair_id"),
            "start": words,
            "end": words + 1,
            "entity_id": candidates.column("entity_id"),
            "text_probability": np.zeros(count),  # these two are asked for, and weigh nothing here
            "background_z": np.zeros(count),
            "logit": np.log(p.clip(1e-12)) - np.log1p(-p.clip(max=1 - 1e-12)),
            "place": np.arange(count),
        }
    )
    chosen = select(
        rows, Calibration(features=("logit",), weights=(1.0,), bias=0.0, threshold=threshold), None, max_labels
    )
    labels = np.zeros(count, dtype=bool)
    labels[chosen.filter(pc.is_null(chosen.column("reason"))).column("place").to_numpy()] = True
    return labels
