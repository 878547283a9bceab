"""Calibration: how sure is a label, and which labels does an image get?

Reads    candidates joined with scores: pair_id, image_id, start, end, entity_id, text_probability, background_z
Writes   probability per row; per (image, entity) whether it is a label, and why not

Text proposes, the image disposes. For each candidate a small logistic model weighs how far the image's cosines to its
texts stand above the background, how far it stands above the best other candidate of the same text, how probable the
candidate is by the text, how famous it is, and whether it is of a kind of thing that pictures show and that this one
shows. What tells a sense from its word: of an iron, "iron, chemical element" fits the image nearly as well as "iron"
does, "chemical element" does not, and the image is not of that type. No raw cosine is a feature: cosines of two CLIP
models cannot be compared, while standard deviations above a background nearly can. What "none of these" gets is what
is left to 1: a model that shares each mention's probability among its candidates and "none" was measured beside this
one and is no better. label/fit.py fits the weights; this module needs numpy and pyarrow alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError

NEEDED = ("pair_id", "image_id", "start", "end", "entity_id", "text_probability", "background_z")
VOCABULARY_GAP = "vocabulary_gap"
OPTIONAL = (
    "name_z",
    "description_z",
    "type_z",
    "type_gap",
    VOCABULARY_GAP,
    "description_gap",
    "visual",
    "fame",
)
"""Further columns (numbers, null where unknown). One that a table lacks counts as unknown throughout."""
VERDICT = "verdict"
"""The feature of a verifier: 1 for the candidate that it chose, -1 for others that it was shown, 0 without a
verdict."""
DESCRIBED = "described"
"""One more column (bool): whether the model was told the entity's description, and not its bare name alone. Without the
column, all descriptions were told."""
FURTHER_LABEL = 0.9
"""A further label is kept only if its probability is at least this share of the first label's."""


class CalibrationError(I2EError, ValueError):
    """A calibration that cannot be read, fitted or applied; the message says what it lacks."""


class Verdict(str, Enum):
    """Why an (image, entity) is no label."""

    __str__ = str.__str__

    BELOW_BAR = "below_bar"
    """Not sure enough."""
    RIVAL = "rival"
    """Another reading of the same words, or of words that overlap them, is more probable."""
    LESS_SURE = "less_sure"
    """The image has a label that is clearly more probable."""
    TOO_MANY = "too_many"
    """The image has as many labels as it may."""
    FITS_OTHERS = "fits_others"
    """It is what stands above a candidate, and the image fits other things clearly better (wider.py)."""


@dataclass(frozen=True)
class _Rows:
    """Columns as numpy arrays, P rows; `pair_P` and `image_P` are small integers instead of hashes."""

    pair_P: np.ndarray
    image_P: np.ndarray
    start_P: np.ndarray
    end_P: np.ndarray
    entity_P: np.ndarray
    text_P: np.ndarray
    z_P: np.ndarray
    described_P: np.ndarray
    optional: dict[str, np.ndarray] = field(default_factory=dict)
    """OPTIONAL columns, NaN where unknown."""

    @classmethod
    def of(cls, table: pa.Table | pa.RecordBatch) -> _Rows:
        missing = [name for name in NEEDED if name not in table.schema.names]
        if missing:
            raise CalibrationError(
                f"calibration needs the columns {', '.join(missing)}; here are {', '.join(table.schema.names)}"
            )
        if table["background_z"].null_count:
            raise CalibrationError(
                "calibration needs background_z, and scores has none for some rows: score with "
                "score.background_entities >= 2"
            )
        told = DESCRIBED in table.schema.names
        return cls(
            pair_P=_codes(table["pair_id"]),
            image_P=_codes(table["image_id"]),
            start_P=_numbers(table["start"]),
            end_P=_numbers(table["end"]),
            entity_P=_numbers(table["entity_id"]),
            text_P=_numbers(table["text_probability"]),
            z_P=_numbers(table["background_z"]),
            described_P=np.asarray(table[DESCRIBED], dtype=bool) if told else np.ones(table.num_rows, dtype=bool),
            optional={name: _optional(table, name) for name in OPTIONAL},
        )

    def known(self, name: str) -> np.ndarray:
        """bool (P): where an OPTIONAL column has a number."""
        return ~np.isnan(self.optional[name])

    def filled(self, name: str, unknown: float | np.ndarray) -> np.ndarray:
        """An OPTIONAL column with `unknown` where it has no number."""
        return np.where(self.known(name), self.optional[name], unknown)

    def mentions_P(self) -> np.ndarray:
        """Which mention a row belongs to: a number per (pair, start, end)."""
        keys = np.stack([self.pair_P, self.start_P, self.end_P])
        return np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)


def _optional(table: pa.Table | pa.RecordBatch, name: str) -> np.ndarray:
    if name not in table.schema.names:
        return np.full(table.num_rows, np.nan)
    column = table[name]
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _codes(column: Any) -> np.ndarray:
    """Small integers in the order of the ids, so that ties are broken alike in whatever order the rows come."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.rank(array, tiebreaker="dense").to_numpy().astype(np.int64) - 1


def _numbers(column: Any) -> np.ndarray:
    values = np.asarray(column)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def _z(rows: _Rows) -> np.ndarray:
    return np.clip(rows.z_P, -3, 12)


def _z_low(rows: _Rows) -> np.ndarray:
    return np.clip(rows.z_P, -3, 3)


def _share(rows: _Rows) -> np.ndarray:
    return 1 / (1 + np.exp(np.clip(_best_other(rows) - rows.z_P, -30, 30)))


def _log_text(rows: _Rows) -> np.ndarray:
    # Below .05 the text says no more than "unlikely": how unlikely is noise.
    return np.log(np.clip(rows.text_P, 0.05, 1))


def _log_readings(rows: _Rows) -> np.ndarray:
    mention_P = rows.mentions_P()
    return np.log(np.bincount(mention_P)[mention_P])


def _log_mentions(rows: _Rows) -> np.ndarray:
    mention_P = rows.mentions_P()
    firsts = np.unique(mention_P, return_index=True)[1]
    return np.log(np.bincount(rows.pair_P[firsts])[rows.pair_P])


def _described(rows: _Rows) -> np.ndarray:
    """1 where the model was told a description. A bare name fits the pictures of all its homonyms: told only "Cougar",
    the model sees the cat, although the entity is a car."""
    return rows.described_P.astype(np.float64)


def _name_z(rows: _Rows) -> np.ndarray:
    return np.clip(rows.filled("name_z", rows.z_P), -3, 12)


def _name_z_low(rows: _Rows) -> np.ndarray:
    return np.clip(_name_z(rows), -3, 3)


def _description_z(rows: _Rows) -> np.ndarray:
    return rows.filled("description_z", np.where(rows.described_P, 0.0, -3.0))


def _description_low(rows: _Rows) -> np.ndarray:
    return np.clip(_description_z(rows), -3, 3) + 3


def _description_high(rows: _Rows) -> np.ndarray:
    return np.clip(_description_z(rows), 3, 12) - 3


def _least_z(rows: _Rows) -> np.ndarray:
    """The lower of what name and description say: they speak of one thing only where both fit."""
    return np.minimum(np.minimum(_name_z(rows), rows.filled("description_z", _name_z(rows))), 8)


def _fits_nothing(rows: _Rows) -> np.ndarray:
    """How far the best of all that the image was told of the entity stays below 2: it fits no better than chance."""
    best_P = np.fmax(np.fmax(rows.z_P, _name_z(rows)), rows.filled("description_z", -9.0))
    return np.clip(2 - best_P, 0, 5)


def _bare_z(rows: _Rows) -> np.ndarray:
    return np.where(rows.described_P, 0.0, np.clip(rows.z_P, -3, 12))


def _bare_text(rows: _Rows) -> np.ndarray:
    return np.where(rows.described_P, 0.0, np.log(np.clip(rows.text_P, 0.05, 1)))


def _typed(rows: _Rows) -> np.ndarray:
    return rows.known("type_z").astype(np.float64)


def _type_gap(rows: _Rows) -> np.ndarray:
    return np.clip(rows.filled("type_gap", 0.0), 0, 4)


def _vocabulary_gap(rows: _Rows) -> np.ndarray:
    """How much less the image fits the entity than the best of what else it might be. The larger of the two gaps: a
    name that fits the image best of all is worth nothing where its description does not."""
    gap_P = rows.filled(VOCABULARY_GAP, 0.0)
    return np.clip(np.maximum(gap_P, rows.filled("description_gap", gap_P)), -3, 6)


def _visual(rows: _Rows) -> np.ndarray:
    """ln of the odds that a photograph whose caption names such a thing shows it."""
    share_P = np.clip(rows.filled("visual", 0.25), 0.01, 0.99)
    return np.log(share_P / (1 - share_P))


def _fame(rows: _Rows) -> np.ndarray:
    return rows.filled("fame", FAME_UNKNOWN)


def _fame_low(rows: _Rows) -> np.ndarray:
    return np.clip(_fame(rows), 0, 1.5)


FAME_UNKNOWN = 1.5
"""What counts where a table tells no fame."""


def _best_other(rows: _Rows) -> np.ndarray:
    """The highest z among the pair's other entities; -inf where there is none."""
    distinct = np.lexsort((rows.entity_P, rows.pair_P))
    pair, entity, z = rows.pair_P[distinct], rows.entity_P[distinct], rows.z_P[distinct]
    lead = np.flatnonzero((np.diff(pair, prepend=-1) != 0) | (np.diff(entity, prepend=-1) != 0))
    pair, entity, z = pair[lead], entity[lead], z[lead]
    falling = np.lexsort((-z, pair))
    pair, entity, z = pair[falling], entity[falling], z[falling]
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    best = np.full(int(pair.max(initial=-1)) + 1, -np.inf)
    second, best_entity = best.copy(), np.zeros(len(best), dtype=np.int64)
    best[pair[first]], best_entity[pair[first]] = z[first], entity[first]
    has_second = first + 1 < np.append(first[1:], len(pair))
    second[pair[first[has_second]]] = z[first[has_second] + 1]
    return np.where(rows.entity_P == best_entity[rows.pair_P], second[rows.pair_P], best[rows.pair_P])


FEATURES: dict[str, Callable[[_Rows], np.ndarray]] = {
    "background_z": _z,
    "background_z_up_to_3": _z_low,
    "share_against_best_other": _share,
    "log_text_probability": _log_text,
    "log_readings_of_mention": _log_readings,
    "log_mentions_of_text": _log_mentions,
    "described": _described,
    "name_z": _name_z,
    "name_z_up_to_3": _name_z_low,
    "description_z_up_to_3": _description_low,
    "description_z_above_3": _description_high,
    "least_of_name_and_description": _least_z,
    "fits_nothing": _fits_nothing,
    "bare_name_z": _bare_z,
    "bare_name_log_text": _bare_text,
    "typed": _typed,
    "type_gap": _type_gap,
    VOCABULARY_GAP: _vocabulary_gap,
    "visual": _visual,
    "fame_of_entity": _fame,
    "fame_up_to_1.5": _fame_low,
}
"""What the model may look at, by name. A Calibration names those that it uses."""
GIVEN = {"fits_nothing": -1.0}
"""Weights that a fit is given. Pairs of known truth are drawn from captions that say what is seen, so they cannot teach
what most of the web has: an image that has nothing to do with its text."""
FITTED = (
    "share_against_best_other",
    "log_text_probability",
    "log_readings_of_mention",
    "visual",
    "name_z",
    "name_z_up_to_3",
    "description_z_up_to_3",
    "description_z_above_3",
    "least_of_name_and_description",
    "bare_name_z",
    "bare_name_log_text",
    "typed",
    "type_gap",
    VOCABULARY_GAP,
    "fame_of_entity",
    "fame_up_to_1.5",
    "fits_nothing",
)
"""What a fit weighs, unless it is told otherwise: those of FEATURES that more of them do not improve on."""


@dataclass(frozen=True)
class Calibration:
    """A fitted model and the threshold that gives the wanted precision."""

    features: tuple[str, ...]
    """Names of FEATURES, and of columns that stages from outside give (`Stage.features`)."""
    weights: tuple[float, ...]
    bias: float
    threshold: float
    """Labels below this probability are rejected."""
    measured: dict[str, float] = field(default_factory=dict)
    """Figures of the fit, cross-validated by image: precision, recall, labels, target_precision."""
    fitted_on: str = ""
    without_vocabulary: Calibration | None = None
    """What weighs tables that know no vocabulary_gap in its place, with the same threshold: weights that were fitted
    beside that feature are too sure without it, whatever is put in for it."""

    def on(self, table: pa.Table | pa.RecordBatch) -> Calibration:
        """The one that weighs this table: itself, or `without_vocabulary`."""
        if self.without_vocabulary is None or not table.num_rows:
            return self
        known = VOCABULARY_GAP in table.schema.names and table[VOCABULARY_GAP].null_count < table.num_rows
        return self if known else self.without_vocabulary

    def without(self, names: Collection[str]) -> Calibration:
        """The same where these features are 0 throughout."""
        kept = [(f, w) for f, w in zip(self.features, self.weights, strict=True) if f not in names]
        if len(kept) == len(self.features):
            return self
        other = self.without_vocabulary
        return replace(
            self,
            features=tuple(f for f, _ in kept),
            weights=tuple(w for _, w in kept),
            without_vocabulary=None if other is None else other.without(names),
        )

    def with_verdicts(self, reliability: float) -> Calibration:
        """The same that weighs verdicts, too, where it does not already.

        By Bayes, for a verdict that is right with a probability of `reliability` = r, whatever else is known: a chosen
        candidate's odds are multiplied by P(chosen | right) / P(chosen | wrong) = r / (1 - r), those of one that was
        shown and not chosen by the inverse. That is exact for one candidate beside "none of these". For several it
        takes each candidate for a question of its own (docs/second-look.md).
        """
        if VERDICT in self.features:
            return self
        other = self.without_vocabulary
        return replace(
            self,
            features=(*self.features, VERDICT),
            weights=(*self.weights, round(math.log(reliability / (1 - reliability)), 6)),
            without_vocabulary=None if other is None else other.with_verdicts(reliability),
        )

    def __post_init__(self) -> None:
        if len(self.features) != len(self.weights):
            raise CalibrationError(f"calibration has {len(self.weights)} weights for {len(self.features)} features")
        if not 0 <= self.threshold <= 1:
            raise CalibrationError(f"calibration threshold {self.threshold} is not between 0 and 1")

    def probability(self, table: pa.Table | pa.RecordBatch) -> np.ndarray:
        """How likely each row's entity is the right label of its image: float64 (P) in [0, 1].

        The table holds NEEDED, and all candidates of a pair together, since each is weighed against the others.
        """
        weighing = self.on(table)
        x_PF = features(table, weighing.features)
        logit_P = np.full(len(x_PF), weighing.bias)
        # No matrix product: a row's sum must not depend on the rows beside it.
        for f, weight in enumerate(weighing.weights):
            logit_P += weight * x_PF[:, f]
        return np.round(1 / (1 + np.exp(-np.clip(logit_P, -50, 50))), 9)

    def save(self, path: str | Path) -> None:
        files.write_json(str(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Raises CalibrationError, naming the file, where it holds no calibration."""
        try:
            read = json.loads(Path(path).read_text(encoding="utf-8"))
            if "bar" in read:  # its older name; files that were written with it are still read
                read["threshold"] = read.pop("bar")
            return cls._of(read)
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise CalibrationError(
                f"label.calibration={path} holds no calibration ({error}): write one with `i2e calibrate`"
            ) from None

    @classmethod
    def _of(cls, read: dict[str, Any]) -> Calibration:
        other = read.get("without_vocabulary")
        lists = {"features": tuple(read["features"]), "weights": tuple(map(float, read["weights"]))}
        return cls(**{**read, **lists, "without_vocabulary": None if other is None else cls._of(other)})


def features(table: pa.Table | pa.RecordBatch, names: tuple[str, ...] = tuple(FEATURES)) -> np.ndarray:
    """x_PF (float64): the named features of each row of a table that holds NEEDED.

    A name that is not in FEATURES is a number column of the table that a stage from outside gave. There null and NaN
    count as 0. Raises ValueError where the table has no such column.
    """
    if lacking := [name for name in names if name not in FEATURES and name not in table.schema.names]:
        raise ValueError(
            f"the calibration weighs {', '.join(lacking)}, which no stage gives; known are {', '.join(FEATURES)}"
        )
    rows = _Rows.of(table)
    if not len(rows.z_P):
        return np.empty((0, len(names)))
    columns = [FEATURES[name](rows) if name in FEATURES else _given(table, name) for name in names]
    return np.stack(columns, axis=1)


def _given(table: pa.Table | pa.RecordBatch, name: str) -> np.ndarray:
    column = table[name].cast(pa.float64())
    return np.nan_to_num(pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False), posinf=0.0, neginf=0.0)


def select(
    table: pa.Table | pa.RecordBatch,
    calibration: Calibration,
    threshold: float | None = None,
    max_labels: int = 4,
) -> pa.Table:
    """The labels of each image, and why its other candidates are none.

    table       NEEDED and any further columns, with all rows of an image
    threshold   overrides the calibration's
    max_labels  of an image
    returns     for each (image_id, entity_id) its most probable row, with two more columns: probability (float32) and
                reason (string, a Verdict; null: a label). In the order of image_id, then of falling probability.

    Mentions that overlap are readings of the same words: at most one of them gives a label. An image gets several
    labels where each reaches the threshold and none is much less probable than the first.
    """
    rows = _Rows.of(table)
    p_P = calibration.probability(table)
    order = np.lexsort((rows.end_P, rows.start_P, rows.pair_P, rows.entity_P, -p_P, rows.image_P))
    verdicts = _choose(
        _Spans.of(rows, order), p_P[order], calibration.threshold if threshold is None else threshold, max_labels
    )
    once = np.unique(np.stack([rows.image_P[order], rows.entity_P[order]]), axis=1, return_index=True)[1]
    once.sort()
    kept = order[once]
    result = table.take(pa.array(kept))
    if isinstance(result, pa.RecordBatch):
        result = pa.Table.from_batches([result])
    result = result.append_column(
        pa.field("probability", pa.float32(), nullable=False), pa.array(p_P[kept].astype(np.float32))
    )
    return result.append_column("reason", pa.array([verdicts[i] for i in once], type=pa.string()))


@dataclass(frozen=True)
class _Spans:
    """Rows sorted by image and falling probability: what the choice depends on."""

    image_P: np.ndarray
    pair_P: np.ndarray
    start_P: np.ndarray
    end_P: np.ndarray
    entity_P: np.ndarray

    @classmethod
    def of(cls, rows: _Rows, order: np.ndarray) -> _Spans:
        return cls(*(a[order] for a in (rows.image_P, rows.pair_P, rows.start_P, rows.end_P, rows.entity_P)))


def _choose(spans: _Spans, p_P: np.ndarray, threshold: float, max_labels: int) -> list[Verdict | None]:
    """A verdict per row; None: a label. One round per label of an image, all images at once."""
    count = len(p_P)
    verdicts = np.full(count, None, dtype=object)
    if not count:
        return []
    starts = np.flatnonzero(np.diff(spans.image_P, prepend=-1))
    image_P = np.cumsum(np.diff(spans.image_P, prepend=-1) != 0) - 1
    top_P = p_P[starts][image_P]
    open_P = np.ones(count, dtype=bool)
    weak_P = p_P < threshold
    less_P = ~weak_P & (p_P < FURTHER_LABEL * top_P)
    verdicts[weak_P], verdicts[less_P] = Verdict.BELOW_BAR, Verdict.LESS_SURE
    open_P &= ~weak_P & ~less_P
    for _ in range(max_labels):
        at = np.flatnonzero(open_P)
        if not len(at):
            break
        image, lead = np.unique(image_P[at], return_index=True)
        chosen = at[lead]
        open_P[chosen] = False
        of_image = np.full(len(starts), -1)
        of_image[image] = chosen
        best_P = of_image[image_P]
        same_entity = spans.entity_P == spans.entity_P[best_P]
        overlaps = (
            (spans.pair_P == spans.pair_P[best_P])
            & (spans.start_P < spans.end_P[best_P])
            & (spans.end_P > spans.start_P[best_P])
        )
        beaten = open_P & (best_P >= 0) & (same_entity | overlaps)
        verdicts[beaten] = Verdict.RIVAL
        open_P &= ~beaten
    verdicts[open_P] = Verdict.TOO_MANY
    return list(verdicts)


_FITTED_ON = (
    "1,750 photos of groceries and common objects and 511 of the open web's, with web-like captions, in three "
    "knowledge bases: with sitelinks, with a crowd of namesakes, without sitelinks"
)
# Not FITTED: whoever changes that must still be able to run what fits this anew.
_WEIGHED = (
    "share_against_best_other",
    "log_text_probability",
    "log_readings_of_mention",
    "visual",
    "name_z",
    "name_z_up_to_3",
    "description_z_up_to_3",
    "description_z_above_3",
    "least_of_name_and_description",
    "bare_name_z",
    "bare_name_log_text",
    "typed",
    "type_gap",
    "vocabulary_gap",
    "fame_of_entity",
    "fame_up_to_1.5",
    "fits_nothing",
)
DEFAULT = Calibration(
    features=_WEIGHED,
    weights=(
        3.2352,
        0.8973,
        0.7149,
        1.0195,
        0.988,
        -1.4679,
        0.5087,
        0.3126,
        -1.1158,
        0.1095,
        1.512,
        0.2575,
        -0.6983,
        -1.1038,
        0.0423,
        2.6708,
        -1.0,
    ),
    bias=-4.9519,
    threshold=0.7577,
    measured={
        "labels": 4473,
        "right": 4320,
        "wrong": 114,
        "wrong_on_none": 21,
        "undecided": 39,
        "precision": 0.9743,
        "recall": 0.8862,
        "calibration_error": 0.0213,
        "target_precision": 0.968,
    },
    fitted_on=_FITTED_ON,
    without_vocabulary=Calibration(
        features=tuple(name for name in _WEIGHED if name != VOCABULARY_GAP),
        weights=(
            3.6236,
            0.7399,
            0.7033,
            0.6815,
            0.8962,
            -1.3633,
            0.5001,
            0.4542,
            -0.4211,
            0.2921,
            1.587,
            0.2831,
            -0.7848,
            -0.0513,
            2.5263,
            -1.0,
        ),
        bias=-10.3916,
        threshold=0.7577,
        measured={
            "labels": 4032,
            "right": 3901,
            "wrong": 102,
            "wrong_on_none": 9,
            "undecided": 29,
            "precision": 0.9745,
            "recall": 0.8002,
            "calibration_error": 0.0229,
            "target_precision": 0.968,
        },
    ),
)
"""Fitted by benchmarks/labels.py. Its threshold keeps a precision of 0.968 with 99 % confidence on
photos like those. Other kinds of images and other models need a calibration of their own (`fit`)."""
