"""Why a dataset has not what the other one has: what its run's tables say of an image or a label.

Kernels over a bucket of images. `here` is the dataset that lacks something, `there` the one that has it; it does not
matter which of them is older, so that the causes of `diff B A` are those of `diff A B`.

Why `here` lacks a label of an image that both have; the first that holds is told:

  excluded_…            the run's lists name entity or label, or every pair that gave it was left out by them
  merged                one of the two knowledge bases says that the entity and another label of the image are one item
  not_in_knowledge_base the knowledge base does not have the entity
  a reason of `select`, or of a stage of somebody else's, that rejected every pair which gave it
  too_many              the image has as many labels as it may, and these are more probable
  rare_entity           it was chosen, and its entity has too few images for a class
  over_cap              it was chosen, and the draw of the entity's cap left it out
  threshold             it was weighed, and its probability is below this threshold and not below the other one's
  score                 … below both thresholds
  below_bar             … below this one; the other is not known
  other_entity          it was weighed, and another candidate was more probable
  not_a_candidate       a pair that gave it there is here, too, and its text does not lead to the entity
  a reason of a stage before that rejected every such pair
  other_pairs           none of the pairs that gave it there is here: the image came with other ones
  no_class              nothing of this is known, and the entity has no class
  unknown

Why `here` lacks an image: the reason for which it rejected a pair of it, the one that came farthest; for `below_bar`
`threshold`, where a candidate is above the other threshold; `not_in_input` where none of its pairs is there; else
`unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from i2e_pipeline.commands.diffing.buckets import numbered
from i2e_pipeline.commands.diffing.compare import keys
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.label.calibration import Verdict

WEIGHED = np.dtype([("id", "<u8", 2), ("pair", "<u8", 2), ("entity", "<i8"), ("probability", "<f4"), ("verdict", "u1")])
"""A candidate of a pair, and why it is no label: a place in VERDICTS."""
FATE = np.dtype([("pair", "<u8", 2), ("fate", "<u2")])
"""What became of a pair: a place in `Knowledge.fates`."""
ANSWER = np.dtype([("id", "<u8", 2), *FATE.descr])
"""The same for a pair of an image."""
VERDICTS = (None, *(str(verdict) for verdict in Verdict))
NOT_THERE, PASSED, TWIN = 0, 1, 2
"""Fates: no table names the pair; it is among the pairs and was not rejected; another pair stands for the same image.
Those that follow are reasons, in the order of the stages."""

UNKNOWN, NOT_IN_INPUT = "unknown", "not_in_input"
SENTENCES = {
    "merged": "one of the knowledge bases says that two items are one",
    "not_in_knowledge_base": "the other one's knowledge base does not have the entity",
    "too_many": "the image has as many labels there as it may",
    "threshold": "the other one's threshold is above its probability there; this one's is not",
    "score": "its probability there is below both thresholds",
    "other_entity": "another candidate is more probable there",
    "not_a_candidate": "the pair is there, too, and its text does not lead to the entity",
    "other_pairs": "the pairs that gave it are not there",
    NOT_IN_INPUT: "no pair of the image is in the other one's input",
    "no_label": "texts propose the entity there, and no image shows it",
    "not_proposed": "no text proposes the entity there",
    "no_class": "the entity has no class there; why is not known",
    UNKNOWN: "no table says it",
}
"""Of those that are no reason of a stage."""
_WEAK = VERDICTS.index(str(Verdict.BELOW_BAR))
_TOO_MANY = VERDICTS.index(str(Verdict.TOO_MANY))
_BY_TEXT = {str(Reason.NO_LINKED_MENTION)}
"""Reasons that mean: no name of the text leads to an entity."""


@dataclass(frozen=True)
class Knowledge:
    """What is known of a dataset beside its images."""

    live: np.ndarray
    """entities that have a class"""
    has_tables: bool = False
    """The tables of its run lie beside it."""
    fates: Sequence[str] = ("", "", str(Reason.DUPLICATE_IMAGE))
    bar: float | None = None
    max_labels: int | None = None
    capped: bool = False
    purged: bool = False
    """Of some pairs all was taken out of its tables, so that what they do not name may have been there."""
    entities: np.ndarray | None = None
    """those of the entities in question that its knowledge base has; None: not known"""
    merged: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    """entity and what it was merged into, as its knowledge base says"""
    excluded_entities: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    excluded_labels: tuple[np.ndarray, np.ndarray] = field(
        default_factory=lambda: (np.empty((0, 2), dtype=np.uint64), np.empty(0, dtype=np.int64))
    )
    """ids (N, 2) and entities (N,)"""


@dataclass(frozen=True)
class Evidence:
    """What the tables of one run say of a bucket of images."""

    weighed: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=WEIGHED))
    answers: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=ANSWER))


@dataclass(frozen=True)
class Why:
    """Of some labels."""

    cause: np.ndarray
    """str"""
    probability: np.ndarray
    """of the label where it is lacking, NaN where it was not weighed there"""


def of_images(
    only: np.ndarray, here: Knowledge, there: Knowledge, evidence: Evidence, evidence_there: Evidence
) -> np.ndarray:
    """Why `here` lacks these images (ONLY), as strings."""
    if not here.has_tables:
        return np.full(len(only), UNKNOWN, dtype=object)
    n, of_answer, weighed_here, weighed_there = numbered(
        only["id"], evidence.answers["id"], evidence.weighed["id"], evidence_there.weighed["id"]
    )
    fate = np.zeros(1 + max(map(_most, (n, of_answer, weighed_here, weighed_there))), dtype=np.int64)
    np.maximum.at(fate, of_answer, evidence.answers["fate"])
    found = fate[n]
    absent = (found == NOT_THERE) & ~np.isin(n, weighed_here) & (only["has_pair"] | np.isin(n, weighed_there))
    why = np.array(here.fates, dtype=object)[found]
    why[found <= PASSED] = UNKNOWN
    if not here.purged:
        why[absent] = NOT_IN_INPUT
    if there.bar is not None:
        most = np.full(len(fate), -np.inf)
        np.maximum.at(most, weighed_here, evidence.weighed["probability"])
        why[(why == str(Reason.BELOW_BAR)) & (most[n] >= there.bar)] = "threshold"
    return why


def of_labels(
    lacking: np.ndarray,
    others: np.ndarray,
    here: Knowledge,
    there: Knowledge,
    evidence: Evidence,
    evidence_there: Evidence,
) -> Why:
    """Why `here` lacks these labels (CHANGED), which `there` has of images that both have.

    others   CHANGED, what `here` has of the same images and `there` has not
    """
    why = np.full(len(lacking), UNKNOWN, dtype=object)
    probability = np.full(len(lacking), np.nan, dtype=np.float32)
    if not len(lacking):
        return Why(why, probability)
    live = np.isin(lacking["entity"], here.live)
    why[~live] = "no_class"
    if here.has_tables:
        _by_pairs(why, lacking, here, evidence, evidence_there)
        _by_weighing(why, probability, lacking, live, here, there, evidence)
    if here.entities is not None:
        why[~np.isin(lacking["entity"], here.entities)] = "not_in_knowledge_base"
    why[_merged(lacking, others, here, there)] = "merged"
    why[np.isin(lacking["entity"], here.excluded_entities)] = str(Reason.EXCLUDED_ENTITY)
    ids, entities = here.excluded_labels
    n, listed = numbered(lacking["id"], ids)
    key, key_listed = keys(n, lacking["entity"], listed, entities)
    why[np.isin(key, key_listed)] = str(Reason.EXCLUDED_LABEL)
    return Why(why, probability)


def moves(changed: np.ndarray) -> np.ndarray:
    """Of each image that lost a label and got another: its most probable one in A alone and in B alone, (N, 4): the
    rows in `changed`, and the two entities.

    changed   CHANGED of images that both have
    """
    (n,) = numbered(changed["id"])
    best = []
    for side in (0, 1):
        rows = np.flatnonzero(changed["side"] == side)
        rows = rows[np.lexsort((changed["entity"][rows], -changed["score"][rows], n[rows]))]
        best.append(rows[np.diff(n[rows], prepend=-1) != 0])
    _, at_a, at_b = np.intersect1d(n[best[0]], n[best[1]], return_indices=True)
    a, b = best[0][at_a], best[1][at_b]
    return np.stack([a, b, changed["entity"][a], changed["entity"][b]], axis=1)


def _by_pairs(
    why: np.ndarray, lacking: np.ndarray, here: Knowledge, evidence: Evidence, evidence_there: Evidence
) -> None:
    """Labels that `here` did not weigh: are the pairs that gave them there among its own?"""
    gave = evidence_there.weighed[evidence_there.weighed["verdict"] == 0]
    n, of_gave = numbered(lacking["id"], gave["id"])
    key, key_gave = keys(n, lacking["entity"], of_gave, gave["entity"])
    gave, key_gave = gave[np.isin(key_gave, key)], key_gave[np.isin(key_gave, key)]
    pair, of_answer, of_weighed = numbered(gave["pair"], evidence.answers["pair"], evidence.weighed["pair"])
    fate = np.zeros(1 + max(map(_most, (pair, of_answer, of_weighed))), dtype=np.int64)
    np.maximum.at(fate, of_answer, evidence.answers["fate"])
    fates = np.array(here.fates, dtype=object)
    # Its candidates were weighed, or its text had none: the pair is there, and this is none of them.
    reads_otherwise = np.isin(pair, of_weighed) | (fate[pair] == PASSED) | np.isin(fates[fate[pair]], list(_BY_TEXT))
    rejected = (fate[pair] > PASSED) & ~reads_otherwise
    known = np.isin(key, key_gave)
    if not here.purged:
        why[known] = "other_pairs"
    for name in sorted({str(reason) for reason in fates[fate[pair[rejected]]]}):
        why[np.isin(key, key_gave[rejected & (fates[fate[pair]] == name)])] = name
    why[np.isin(key, key_gave[reads_otherwise])] = "not_a_candidate"


def _by_weighing(
    why: np.ndarray,
    probability: np.ndarray,
    lacking: np.ndarray,
    live: np.ndarray,
    here: Knowledge,
    there: Knowledge,
    evidence: Evidence,
) -> None:
    """Labels that `here` weighed: what it said of the pair where they are most probable."""
    weighed = evidence.weighed
    n, of_weighed = numbered(lacking["id"], weighed["id"])
    key, key_weighed = keys(n, lacking["entity"], of_weighed, weighed["entity"])
    order = np.lexsort((weighed["verdict"], -weighed["probability"], key_weighed))
    once = order[np.diff(key_weighed[order], prepend=-1) != 0]
    at = np.searchsorted(key_weighed[once], key)
    at[at == len(once)] = 0
    has = np.isin(key, key_weighed)
    best = weighed[once[at[has]]]
    probability[has] = best["probability"]
    said = np.full(len(best), "other_entity", dtype=object)
    weak = best["verdict"] == _WEAK
    bar = there.bar
    said[weak] = "below_bar" if bar is None else np.where(best["probability"][weak] >= bar, "threshold", "score")
    said[best["verdict"] == _TOO_MANY] = str(Verdict.TOO_MANY)
    said[best["verdict"] >= len(VERDICTS)] = UNKNOWN
    why[has] = said

    chosen = weighed[weighed["verdict"] == 0]
    key_chosen = key_weighed[weighed["verdict"] == 0]
    was_chosen = np.isin(key, key_chosen)
    if not was_chosen.any():
        return
    after = np.full(int(was_chosen.sum()), UNKNOWN, dtype=object)
    after[~live[was_chosen]] = str(Reason.RARE_ENTITY)
    if here.capped:
        after[live[was_chosen]] = str(Reason.OVER_CAP)
    if here.max_labels is not None:
        place = _places(of_weighed[weighed["verdict"] == 0], key_chosen, chosen)
        after[place[np.searchsorted(np.unique(key_chosen), key[was_chosen])] >= here.max_labels] = str(Verdict.TOO_MANY)
    fate = _fates(chosen["pair"], evidence.answers)
    stands = np.isin(key[was_chosen], key_chosen[fate <= TWIN])
    for place in np.unique(fate[fate > TWIN]):
        after[~stands & np.isin(key[was_chosen], key_chosen[fate == place])] = here.fates[int(place)]
    why[was_chosen] = after


def _places(image: np.ndarray, key: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Of each distinct key, in their order, its place among those of its image: by the highest probability, then by
    entity."""
    order = np.lexsort((-chosen["probability"], key))
    first = order[np.diff(key[order], prepend=-1) != 0]
    image = image[first]
    best = np.lexsort((chosen["entity"][first], -chosen["probability"][first], image))
    starts = np.flatnonzero(np.diff(image[best], prepend=-1))
    place = np.empty(len(first), dtype=np.int64)
    place[best] = np.arange(len(first)) - np.repeat(starts, np.diff(np.append(starts, len(first))))
    return place


def _fates(pairs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    pair, of_answer = numbered(pairs, answers["pair"])
    fate = np.zeros(1 + max(_most(pair), _most(of_answer)), dtype=np.int64)
    np.maximum.at(fate, of_answer, answers["fate"])
    return np.asarray(fate[pair])


def _merged(lacking: np.ndarray, others: np.ndarray, here: Knowledge, there: Knowledge) -> np.ndarray:
    """Whether the entity of a label was merged into one that `here` has of the image, or one of these into it."""
    found = np.zeros(len(lacking), dtype=bool)
    n, of_others = numbered(lacking["id"], others["id"])
    for pairs in (here.merged, there.merged):
        for mine, other in ((0, 1), (1, 0)):
            for place, into in _matches(lacking["entity"], pairs[:, mine], pairs[:, other]):
                key, key_others = keys(n[place], into, of_others, others["entity"])
                found[place[np.isin(key, key_others)]] = True
    return found


def _matches(entities: np.ndarray, source: np.ndarray, target: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of `entities` with a target of theirs, one target each at a time: many items may have become one."""
    found = []
    left = np.arange(len(source))
    while len(left):
        _, first = np.unique(source[left], return_index=True)
        taken = left[first]
        at = np.searchsorted(source[taken], entities)
        at[at == len(taken)] = 0
        hit = np.flatnonzero(source[taken][at] == entities)
        found.append((hit, target[taken][at[hit]]))
        left = np.delete(left, first)
    return found


def _most(numbers: np.ndarray) -> int:
    return int(numbers.max()) if len(numbers) else -1


# --- entities ------------------------------------------------------------------------------------------------------


def of_entities(
    entities: np.ndarray, here: Knowledge, merged: np.ndarray, labelled: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """Why entities have no class `here`: excluded_entity, merged, not_in_knowledge_base, rare_entity (labelled, and too
    rare for a class), no_label (proposed by texts, and never the label), not_proposed, unknown.

    merged     entity and what it was merged into, of either knowledge base
    labelled   ids of the entities in question that any text proposed, and how many pairs were labelled with each; None:
               not known
    """
    why = np.full(len(entities), UNKNOWN, dtype=object)
    if labelled is not None:
        ids, pairs = labelled
        why[:] = "not_proposed"
        why[np.isin(entities, ids)] = "no_label"
        why[np.isin(entities, ids[pairs > 0])] = str(Reason.RARE_ENTITY)
    if here.entities is not None:
        why[~np.isin(entities, here.entities)] = "not_in_knowledge_base"
    why[np.isin(entities, merged)] = "merged"
    why[np.isin(entities, here.excluded_entities)] = str(Reason.EXCLUDED_ENTITY)
    return why
