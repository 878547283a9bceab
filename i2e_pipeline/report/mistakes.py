"""Mistakes: published labels that are known to be wrong, and what was taken for what.

Reads    the labels of known truth (quality.JUDGED)

A list of the least sure labels shows where the calibration already doubts. Labels that are wrong and sure show what no
threshold takes away: names that two things share, pictures of two things, and truths that are none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Verdict:
    """What is known of a published label."""

    right: bool | None
    """None: neither right nor wrong"""
    truth: int | None
    """the entity that the image shows; None where none is known"""
    nothing: bool
    """the image shows no entity of the knowledge base"""


@dataclass(frozen=True)
class Mistake:
    """A label that is wrong."""

    image_id: str
    entity_id: int
    probability: float
    verdict: Verdict


@dataclass(frozen=True)
class Confusion:
    """Wrong labels of one entity on images of one truth."""

    said: int
    verdict: Verdict
    labels: int
    probability: float
    """mean"""
    said_at_all: int
    """labels of the entity whose truth is known and decides"""


def wrong(judged: pa.Table) -> pa.Table:
    """The rows whose label is wrong."""
    return judged.filter(pc.equal(judged.column("right"), False))


def surest(judged: pa.Table, count: int) -> list[Mistake]:
    """The wrong labels with the highest probability, the first first. Ties are broken by pair and entity."""
    order = [("probability", "descending"), ("pair_id", "ascending"), ("entity_id", "ascending")]
    return [
        Mistake(r["image_id"], r["entity_id"], r["probability"], Verdict(False, r["truth"], r["nothing"]))
        for r in wrong(judged).sort_by(order).slice(0, count).to_pylist()
    ]


def confused(judged: pa.Table, count: int) -> list[Confusion]:
    """What was most often said of what: entity and truth with the most wrong labels first."""
    decided = judged.filter(pc.is_valid(judged.column("right")))
    said = decided.group_by("entity_id").aggregate([([], "count_all")])
    at_all = dict(zip(said.column("entity_id").to_pylist(), said.column("count_all").to_pylist(), strict=True))
    pairs = wrong(judged).group_by(["entity_id", "truth", "nothing"])
    rows = pairs.aggregate([([], "count_all"), ("probability", "mean")]).to_pylist()
    rows.sort(key=lambda r: (-r["count_all"], -r["probability_mean"], r["entity_id"], r["truth"] or 0))
    return [
        Confusion(
            r["entity_id"],
            Verdict(False, r["truth"], r["nothing"]),
            r["count_all"],
            r["probability_mean"],
            at_all[r["entity_id"]],
        )
        for r in rows[:count]
    ]


def verdicts(judged: pa.Table, image_ids: Collection[str]) -> dict[tuple[str, int], Verdict]:
    """What is known of the labels of some images, by (image_id, entity_id)."""
    rows = judged.filter(pc.is_in(judged.column("image_id"), pa.array(sorted(image_ids), pa.string())))
    return {(r["image_id"], r["entity_id"]): Verdict(r["right"], r["truth"], r["nothing"]) for r in rows.to_pylist()}
