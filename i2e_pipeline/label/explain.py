"""Why an image has these labels: what speaks for each candidate, number by number, and what became of it.

Reads    rows of calibration.NEEDED with the columns that stages from outside give, all of a pair together
Writes   nothing: plain values for people and programs

Probabilities and verdicts are those of calibration.py, by the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.label.calibration import Calibration, Verdict, features
from i2e_pipeline.label.labels import chosen_of
from i2e_pipeline.label.wider import WIDER_OF, parted, weighed

SENTENCES = {
    Verdict.BELOW_BAR: "It is not likely enough to be right (label.threshold).",
    Verdict.RIVAL: "Another reading of the same words, or of words that overlap them, is more probable.",
    Verdict.LESS_SURE: "The image has a label that is clearly more probable.",
    Verdict.TOO_MANY: "The image has as many labels as it may (label.max_labels_per_image).",
    Verdict.FITS_OTHERS: "It is wider than what the text names, and the image fits other things clearly better.",
}
"""What each Verdict says to a reader who has not seen the code."""


def explain_labels(
    options: pa.Table, calibration: Calibration, threshold: float | None, max_labels: int
) -> list[dict[str, Any]]:
    """Each entity of each pair, as the stage chooses them: by pair, the most probable first.

    options   calibration.NEEDED and further columns, which come along; a row per pair, mention and entity. With
              wider.WIDER_OF and wider.STEPS also what stands above the candidates, as in labels.choose_labels
    returns   the columns of the entity's most probable row, probability, `reason` (a Verdict; None: a label) and its
              `sentence`, `bias`, `score` (bias and contributions, the logit of the probability) and `features`: name
              to value, weight and contribution
    Raises CalibrationError where a column is missing.
    """
    parent = pc.rank(options.column("pair_id"), tiebreaker="dense").cast(pa.int64())
    options = options.append_column("parent", parent).append_column("at", pa.array(np.arange(options.num_rows)))
    images = options.column("image_id").to_pylist()
    chosen = chosen_of(options.drop_columns(["image_id"]), calibration, threshold, max_labels)
    own, wider = parted(options)
    weighing = calibration.on(own)
    weight_F = np.array(weighing.weights)
    x_of = dict(zip(own.column("at").to_pylist(), features(own, weighing.features), strict=True))
    x_of_wider = {}
    if wider.num_rows:
        chosen = chosen.sort_by([("parent", "ascending"), ("probability", "descending"), ("entity_id", "ascending")])
        trials, beside = weighed(own, wider)
        x_of_wider = dict(zip(map(_place, trials.to_pylist()), features(beside, weighing.features), strict=False))
    told = []
    for row in chosen.to_pylist():
        x_F = x_of[row["at"]] if row.get(WIDER_OF) is None else x_of_wider[_place(row)]
        contribution_F = x_F * weight_F
        told.append(
            {
                **{name: value for name, value in row.items() if name not in ("parent", "at")},
                "image_id": images[row["at"]],
                "sentence": None if row["reason"] is None else SENTENCES[Verdict(row["reason"])],
                "bias": weighing.bias,
                "score": float(weighing.bias + contribution_F.sum()),
                "features": {
                    name: {"value": float(value), "weight": float(weight), "contribution": float(contribution)}
                    for name, value, weight, contribution in zip(
                        weighing.features, x_F, weight_F, contribution_F, strict=True
                    )
                },
            }
        )
    return told


def _place(row: Mapping[str, Any]) -> tuple[int, ...]:
    return row["parent"], row["start"], row["end"], row["entity_id"]
