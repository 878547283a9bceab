"""Why an image has these labels: what speaks for each candidate, number by number, and what became of it.

Reads    rows of calibration.NEEDED with the columns that stages from outside give, all of a pair together
Writes   nothing: plain values for people and programs

Probabilities and verdicts are those of calibration.py, by the same functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from i2e_pipeline.label.calibration import Calibration, Verdict, features, select

SENTENCES = {
    Verdict.BELOW_BAR: "It is not likely enough to be right (label.threshold).",
    Verdict.RIVAL: "Another reading of the same words, or of words that overlap them, is more probable.",
    Verdict.LESS_SURE: "The image has a label that is clearly more probable.",
    Verdict.TOO_MANY: "The image has as many labels as it may (label.max_labels_per_image).",
}
"""What each Verdict says to a reader who has not seen the code."""


def explain_labels(
    options: pa.Table, calibration: Calibration, threshold: float | None, max_labels: int
) -> list[dict[str, Any]]:
    """Each entity of each pair, as the stage chooses them: by pair, the most probable first.

    options   calibration.NEEDED and further columns, which come along; a row per pair, mention and entity
    returns   the columns of the entity's most probable row, probability, `reason` (a Verdict; None: a label) and its
              `sentence`, `bias`, `score` (bias and contributions, the logit of the probability) and `features`: name
              to value, weight and contribution
    Raises CalibrationError where a column is missing.
    """
    weighing = calibration.on(options)
    x_PF = features(options, weighing.features)
    weight_F = np.array(weighing.weights)
    # The stage chooses pair by pair; labels of an image from several pairs are merged later.
    of_pairs = options.set_column(options.schema.names.index("image_id"), "image_id", options.column("pair_id"))
    numbered = of_pairs.append_column("at", pa.array(np.arange(options.num_rows)))
    chosen = select(numbered, calibration, threshold, max_labels)
    images = options.column("image_id").to_pylist()
    told = []
    for row in chosen.to_pylist():
        at = row.pop("at")
        contribution_F = x_PF[at] * weight_F
        told.append(
            {
                **row,
                "image_id": images[at],
                "sentence": None if row["reason"] is None else SENTENCES[Verdict(row["reason"])],
                "bias": weighing.bias,
                "score": float(weighing.bias + contribution_F.sum()),
                "features": {
                    name: {"value": float(value), "weight": float(weight), "contribution": float(contribution)}
                    for name, value, weight, contribution in zip(
                        weighing.features, x_PF[at], weight_F, contribution_F, strict=True
                    )
                },
            }
        )
    return told
