"""Which of a pair's candidates become its labels.

The text proposes, the image disposes. The text gives each candidate a probability, the image gives it a score. The
calibration makes of both the probability that the candidate is a right label. The most probable ones that reach the
threshold become labels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.rejects import reject
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.label.calibration import Calibration, select
from i2e_pipeline.label.wider import WIDER_OF, choose_wider, parted

_PAIR = ("image_id", "pair_id", "shard", "row", "width", "height")


def choose_labels(
    batches: Iterator[pa.RecordBatch], calibration: Calibration, threshold: float | None, max_labels: int
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Labels of each pair, chosen and not.

    batches   image_id, pair_id: binary(16), shard: int32, row: int64, width, height: int32,
              options: list<struct<start, end, entity_id, clip_score, background_z, described, text_probability,
              surface>>, and with wider ones wider_of and steps, null where an option is the text's own
    threshold   None: the calibration's
    yields    labels: a row for each pair and entity, `reason` null where it was chosen; with wider ones, those of pairs
              without a label too, and `wider_of`;
              rejects: the pairs that have no label, with the best candidate as detail
    Each pair is looked at by itself. Labels of the same image from several pairs are merged later, over all units.
    """
    for batch in batches:
        chosen = chosen_of(flat_options(batch), calibration, threshold, max_labels)
        chosen = chosen.sort_by([("parent", "ascending"), ("probability", "descending"), ("entity_id", "ascending")])
        parent = chosen.column("parent").to_numpy()
        columns = {name: batch.column(name).take(pa.array(parent)) for name in _PAIR}
        of_options = ("entity_id", "clip_score", "text_probability", "probability", "reason", WIDER_OF)
        for name in of_options if WIDER_OF in chosen.schema.names else of_options[:-1]:
            columns[name] = chosen.column(name).combine_chunks()
        columns["mention"] = chosen.column("surface").combine_chunks()
        yield "labels", pa.RecordBatch.from_pydict(columns)
        is_label = pc.is_null(chosen.column("reason")).to_numpy(zero_copy_only=False)
        labelled = np.zeros(batch.num_rows, dtype=bool)
        labelled[parent[is_label]] = True
        if not labelled.all():
            yield (
                "rejects",
                _rejects(batch, chosen, parent, ~labelled, calibration.threshold if threshold is None else threshold),
            )


def chosen_of(options: pa.Table, calibration: Calibration, threshold: float | None, max_labels: int) -> pa.Table:
    """Options with probability and reason (null: a label), each entity of a pair once; the wider ones of the pairs that
    have no label by the text's own ones.

    options   as `flat_options` gives them
    """
    own, wider = parted(options)
    # `select` chooses by image: here each pair is one.
    chosen = select(own.append_column("image_id", own.column("pair_id")), calibration, threshold, max_labels)
    chosen = chosen.drop_columns(["image_id"])
    if WIDER_OF not in options.schema.names:
        return chosen
    labelled = pc.unique(chosen.filter(pc.is_null(chosen["reason"]))["parent"])
    own, wider = (t.filter(pc.invert(pc.is_in(t["parent"], labelled))) for t in (own, wider))
    further = choose_wider(own, wider, calibration, calibration.threshold if threshold is None else threshold)
    return pa.concat_tables([chosen, further], promote_options="default")


def _rejects(
    batch: pa.RecordBatch, chosen: pa.Table, parent: np.ndarray, unlabelled: np.ndarray, threshold: float
) -> pa.RecordBatch:
    leads = np.flatnonzero(np.diff(parent, prepend=-1))
    best = dict(
        zip(
            parent[leads].tolist(),
            zip(
                chosen.column("entity_id").take(leads).to_pylist(),
                chosen.column("probability").take(leads).to_pylist(),
                strict=True,
            ),
            strict=True,
        )
    )
    places = np.flatnonzero(unlabelled)
    details = [
        f"best is Q{entity} with {p:.3f}, bar {threshold:.3f}" for entity, p in (best[i] for i in places.tolist())
    ]
    return reject(batch, unlabelled, Reason.BELOW_BAR, details, key="pair_id")


def flat_options(batch: pa.RecordBatch) -> pa.Table:
    """A row per option: its fields, its pair's id, and `parent`, the index of the pair in the batch."""
    lists = batch.column("options")
    flat, parent = pc.list_flatten(lists), pc.list_parent_indices(lists).cast(pa.int64())
    fields = {f.name: pc.struct_field(flat, f.name) for f in flat.type}
    return pa.table({"parent": parent, "pair_id": batch.column("pair_id").take(parent), **fields})
