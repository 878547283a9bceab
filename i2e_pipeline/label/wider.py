"""A wider label for an image that its text's own candidates do not fit: a dog, for a breed that it does not show.

Reads    options of pairs without a label; those with `wider_of` are what stands above a candidate (table wider)
Writes   a row per pair and wider entity: probability, and why it is no label

No name of the text is the wider entity's own. Its probability by the text is that of the candidates of the mention that
it stands above, together: whoever says "bass", one of two fish or an instrument, says a fish as likely as either. It is
weighed in the place of these, since it is no rival of theirs, beside all other candidates of the text, by the same
calibration. The calibration was fitted on names that texts say, and is too sure of what none says: among images that
nothing of their text fits are those whose text names something else, and of these a class is soon true enough. So a
wider label must also be among what the image fits best of all that it is held against (GAP).

The nearest one that passes is the label, and a pair gets one at most: of a chain of classes the others say the same
again, with less in it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.label.calibration import VOCABULARY_GAP, Calibration, Verdict

WIDER_OF, STEPS = "wider_of", "steps"
GAP = 1.0
"""How much less the image may fit a wider label than what it fits best of the vocabulary, by name and description and
by descriptions alone, in standard deviations of its cosines with the vocabulary. Without it a sixth of the wider labels
of photos is wrong, with it one in sixty (docs/quality.md)."""


def parted(options: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Candidates of the texts, without the two columns, and what stands above them."""
    if WIDER_OF not in options.schema.names:
        return options, options.slice(0, 0)
    is_own = pc.is_null(options[WIDER_OF])
    return options.filter(is_own).drop_columns([WIDER_OF, STEPS]), options.filter(pc.invert(is_own))


def choose_wider(own: pa.Table, wider: pa.Table, calibration: Calibration, threshold: float) -> pa.Table:
    """Of each pair without a label the wider entities, each once: where it is most probable, then first.

    own      columns of calibration.NEEDED and `parent` (int64: the pair) of the pairs' candidates
    wider    the same, with wider_of and steps; text_probability is that of the candidate `wider_of`
    returns  rows of `wider`, by parent; wider_of is the most probable candidate below, text_probability that of all
             below, and probability (float32) and reason (string, a Verdict; null: a label) come behind
    """
    if not wider.num_rows:
        return wider
    trials, beside = weighed(own, wider)
    p = calibration.probability(beside)[: trials.num_rows]
    # The best mention of each entity of a pair.
    parent, entity = (np.asarray(trials[name], dtype=np.int64) for name in ("parent", "entity_id"))
    start, end, steps = (np.asarray(trials[name], dtype=np.int64) for name in ("start", "end", STEPS))
    order = np.lexsort((end, start, -p, entity, parent))
    once = (np.diff(parent[order], prepend=-1) != 0) | (np.diff(entity[order], prepend=-1) != 0)
    kept = order[once]
    parent, entity, steps, p = parent[kept], entity[kept], steps[kept], p[kept]
    found = trials.take(pa.array(kept))
    reason = np.full(len(kept), Verdict.RIVAL.value, dtype=object)
    reason[_gap(found) > GAP] = Verdict.FITS_OTHERS.value
    reason[p < threshold] = Verdict.BELOW_BAR.value
    good = np.flatnonzero(reason == Verdict.RIVAL.value)
    good = good[np.lexsort((entity[good], -p[good], steps[good], parent[good]))]
    reason[good[np.diff(parent[good], prepend=-1) != 0]] = None
    found = found.append_column("probability", pa.array(p.astype(np.float32)))
    return found.append_column("reason", pa.array(reason, pa.string()))


def _gap(rows: pa.Table) -> np.ndarray:
    """How much less the image fits the entity than what it fits best of the vocabulary; infinity without one."""
    gaps = [np.asarray(rows[name].cast(pa.float64()).to_numpy()) for name in (VOCABULARY_GAP, "description_gap")]
    return np.where(np.isnan(gaps[0]), np.inf, np.fmax(*gaps))


def _by_mention(wider: pa.Table) -> pa.Table:
    """A row for each mention and wider entity: that of the most probable candidate below, the probability of all."""
    key = [np.asarray(wider[name], dtype=np.int64) for name in ("parent", "start", "end", "entity_id")]
    text = np.asarray(wider["text_probability"], dtype=np.float64)
    below = np.asarray(wider[WIDER_OF], dtype=np.int64)
    order = np.lexsort((below, -text, *reversed(key)))
    number = np.unique(np.stack(key), axis=1, return_inverse=True)[1].reshape(-1)
    first = order[np.diff(number[order], prepend=-1) != 0]
    # In the order of the rows and not as they came, so that the sum is the same.
    total = np.bincount(number[order], text[order])
    steps = np.full(len(first), np.iinfo(np.int32).max)
    np.minimum.at(steps, number, np.asarray(wider[STEPS]))
    rows = wider.take(pa.array(first))
    for name, values in (("text_probability", np.minimum(total, 1.0)), (STEPS, steps)):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values).cast(rows.schema.field(at).type))
    return rows


def weighed(own: pa.Table, wider: pa.Table) -> tuple[pa.Table, pa.Table]:
    """A row for each mention and wider entity, and what the calibration weighs: these rows first, each as a pair of its
    own, then beside each those candidates of its pair that it does not stand above.

    own, wider   as in `choose_wider`
    """
    trials = _by_mention(wider)
    own_parent = np.asarray(own["parent"], dtype=np.int64)
    order = np.argsort(own_parent, kind="stable")
    of = np.asarray(trials["parent"], dtype=np.int64)
    first, last = (np.searchsorted(own_parent[order], of, side) for side in ("left", "right"))
    sizes = last - first
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    row, trial = order[np.repeat(first, sizes) + within], np.repeat(np.arange(len(of)), sizes)
    below = np.stack([np.asarray(wider[name], dtype=np.int64) for name in ("parent", "entity_id", WIDER_OF)])
    own_entity = np.asarray(own["entity_id"], dtype=np.int64)
    asked = np.stack([of[trial], np.asarray(trials["entity_id"], dtype=np.int64)[trial], own_entity[row]])
    codes = np.unique(np.concatenate([below, asked], axis=1), axis=1, return_inverse=True)[1].reshape(-1)
    rival = ~np.isin(codes[below.shape[1] :], codes[: below.shape[1]])
    row, trial = row[rival], trial[rival]
    names = [name for name in own.schema.names if name not in ("pair_id", "image_id", "parent")]
    both = pa.concat_tables([trials.select(names), own.take(pa.array(row)).select(names)])
    pair = pa.array(np.concatenate([np.arange(len(of)), trial]))
    return trials, both.append_column("pair_id", pair).append_column("image_id", pair)
