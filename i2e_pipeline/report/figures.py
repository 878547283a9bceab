"""The report's numbers: tables and commit records, summed up for a page.

Nothing here grows with the rows. Tables are read batch by batch, the label table up to MAX_ROWS rows, and of a batch
only a histogram or its few first rows are kept.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core.config import Config
from i2e_pipeline.core.schemas import ENTITY_DETAILS
from i2e_pipeline.dataset.commits import published
from i2e_pipeline.dataset.published import manifest_of
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Stage
from i2e_pipeline.engine.tables import Commit, Tables

MAX_ROWS = 2_000_000
BINS = 480
"""Of the histograms as they are counted. For drawing they are cut to the bins that are filled, and made coarser."""
_DRAWN = 40
_BILLION = 10**9


@dataclass(frozen=True)
class Dataset:
    """A published dataset and the commit records of the run that made it."""

    config: Config
    stages: Sequence[Stage]
    tables: Tables
    manifest: Mapping[str, Any]
    published: Mapping[str, list[Commit]]
    """by table"""

    @classmethod
    def open(cls, pipeline: Pipeline) -> Dataset:
        """Raises NotPublished where there is no manifest."""
        tables = pipeline.tables
        commits = published(tables)
        manifest = manifest_of(tables.path("i2e"))
        return cls(pipeline.config, pipeline.stages, tables, manifest, commits)

    def commits(self, stage: Stage) -> list[Commit]:
        """Of a stage that works unit by unit, only those of the units that were published."""
        found, units = self.tables.commits(stage.name), self.manifest["units"]
        return [c for name, c in sorted(found.items()) if stage.scope != "unit" or name in units]

    def commits_of(self, table: str) -> list[Commit]:
        """Those of the stage that writes a table."""
        return self.commits(next(s for s in self.stages if table in s.tables))

    def small(self, table: str) -> list[dict[str, Any]]:
        """Rows of a table that is small by nature."""
        rows: list[dict[str, Any]] = self.tables.load(table, self.published[table]).to_pylist()
        return rows


@dataclass
class Entities:
    """What the statistics say of all entities, and the rows with the most and the fewest images."""

    images: np.ndarray
    """of each entity that has a class"""
    proposed: int = 0
    """entities that any text proposed"""
    most: list[dict[str, Any]] = field(default_factory=list)
    fewest: list[dict[str, Any]] = field(default_factory=list)
    undepicted: list[dict[str, Any]] = field(default_factory=list)
    """proposed most often, without an image"""

    @property
    def median(self) -> int:
        """Images of the median entity."""
        return int(np.median(self.images)) if self.images.size else 0


_DETAILS = ("clip_scores_labelled", "surfaces", "confusions")
"""Of ENTITY_DETAILS. Datasets of before have none; with `select.statistics=basic` they are null."""


def entities(dataset: Dataset, most: int, fewest: int, undepicted: int) -> Entities:
    """One pass over the statistics of all entities. Ties are broken by entity_id."""
    names = (
        "entity_id",
        "name",
        "description",
        "images",
        "pairs_proposed",
        "pairs_labelled",
        "mean_clip_score",
        "mean_clip_score_labelled",
        "mean_probability",
        *_DETAILS,
    )
    empty = pa.schema([]).empty_table()
    found, counts, ends = Entities(np.zeros(0, np.int64)), [], {"most": empty, "fewest": empty, "undepicted": empty}
    for batch in dataset.tables.batches("i2e/statistics/entities", dataset.published["i2e/statistics/entities"], names):
        rows = pa.Table.from_batches([batch])
        for name in set(_DETAILS).difference(rows.column_names):  # files that are older than a column have none
            rows = rows.append_column(name, pa.nulls(len(rows), ENTITY_DETAILS.field(name).type))
        rows = rows.select(names)
        depicted = pc.greater(rows.column("images"), 0)
        with_images, without = rows.filter(depicted), rows.filter(pc.invert(depicted))
        counts.append(with_images.column("images").to_numpy())
        found.proposed += pc.sum(pc.greater(rows.column("pairs_proposed"), 0)).as_py() or 0
        for end, part, limit, order in (
            ("most", with_images, most, [("images", "descending"), ("entity_id", "ascending")]),
            ("fewest", with_images, fewest, [("images", "ascending"), ("entity_id", "ascending")]),
            ("undepicted", without, undepicted, [("pairs_proposed", "descending"), ("entity_id", "ascending")]),
        ):
            both = part if not ends[end].num_columns else pa.concat_tables([ends[end], part])
            ends[end] = both.sort_by(order).slice(0, limit)
    found.images = np.concatenate(counts) if counts else found.images
    found.most, found.fewest, found.undepicted = (ends[end].to_pylist() for end in ("most", "fewest", "undepicted"))
    return found


def names_of(dataset: Dataset, wanted: Iterable[int]) -> dict[int, str]:
    """Names of entities that any text proposed."""
    left = pa.array(sorted(set(wanted)), pa.int64())
    found: dict[int, str] = {}
    if len(left) == 0:
        return found
    for batch in dataset.tables.batches(
        "i2e/statistics/entities", dataset.published["i2e/statistics/entities"], ("entity_id", "name")
    ):
        rows = batch.filter(pc.is_in(batch.column("entity_id"), left))
        found |= dict(zip(rows.column("entity_id").to_pylist(), rows.column("name").to_pylist(), strict=True))
    return found


@dataclass
class Scores:
    """Histograms of the best candidate of each scored pair, one of pairs that got a label and one of pairs that did
    not."""

    pairs: int = 0
    of_pairs: int = 0
    probability: tuple[np.ndarray, np.ndarray] = field(
        default_factory=lambda: (np.zeros(BINS, np.int64), np.zeros(BINS, np.int64))
    )
    clip_score: tuple[np.ndarray, np.ndarray] = field(
        default_factory=lambda: (np.zeros(BINS, np.int64), np.zeros(BINS, np.int64))
    )


CLIP_RANGE = (-0.2, 1.0)


@dataclass(frozen=True)
class Histogram:
    kept: list[int]
    rejected: list[int]
    low: float
    high: float


def filled(counts: tuple[np.ndarray, np.ndarray], low: float, high: float) -> Histogram:
    """The part of two histograms over [low, high] where anything is, in at most _DRAWN equal bins.

    Models differ: one puts all its cosines between .1 and .35, another between 0 and .8.
    """
    used = np.flatnonzero(counts[0] + counts[1])
    if not used.size:
        return Histogram([0], [0], low, high)
    width, first, last = (high - low) / BINS, int(used[0]), int(used[-1]) + 1
    together = max(1, math.ceil((last - first) / _DRAWN))
    first -= first % together
    drawn = math.ceil((last - first) / together)
    kept, rejected = (
        np.pad(c, (0, together))[first : first + drawn * together].reshape(drawn, together).sum(axis=1).tolist()
        for c in counts
    )
    return Histogram(kept, rejected, low + first * width, low + (first + drawn * together) * width)


def scores(dataset: Dataset) -> Scores:
    """Labels of a pair lie one after the other, the most probable first."""
    found = Scores()
    commits = dataset.commits_of("labels")
    found.of_pairs = sum(c.rows_in for c in commits)
    names = ("pair_id", "probability", "clip_score", "reason")
    for batch in _bounded(dataset.tables.batches("labels", commits, names)):
        pair = batch.column("pair_id").cast(pa.binary())
        leads = np.ones(len(pair), dtype=bool)
        leads[1:] = pc.not_equal(pair.slice(1), pair.slice(0, len(pair) - 1)).to_numpy(zero_copy_only=False)
        best = batch.filter(pa.array(leads))
        found.pairs += best.num_rows
        is_label = pc.is_null(best.column("reason")).to_numpy(zero_copy_only=False)
        for name, (low, high) in (("probability", (0.0, 1.0)), ("clip_score", CLIP_RANGE)):
            values = np.clip(best.column(name).to_numpy(zero_copy_only=False), low, high)
            kept, rejected = getattr(found, name)
            kept += np.histogram(values[is_label], BINS, (low, high))[0]
            rejected += np.histogram(values[~is_label], BINS, (low, high))[0]
    return found


def _bounded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    rows = 0
    for batch in batches:
        yield batch
        rows += batch.num_rows
        if rows >= MAX_ROWS:
            return


@dataclass(frozen=True)
class Cost:
    """What a stage took, and what it would take for a billion pairs."""

    stage: str
    does: str
    rows: int
    seconds: float
    """on the clock"""
    core_hours: float | None
    """for 10^9 pairs; None where the cost does not grow with the pairs"""


def costs(dataset: Dataset) -> list[Cost]:
    """Seconds of each stage from the commit records, stretched to a billion pairs.

    A stage's cost per pair is that of its median unit: the first units of a run also pay for starting Spark's workers
    and loading models. A unit's seconds are its share of the stage's, in which all cores were at work.
    """
    cores = cores_used(dataset.config)
    pairs = {c.unit: c.rows_in for c in dataset.commits_of("pairs")}
    whole = sum(pairs.values())
    found = []
    for stage in dataset.stages:
        made = dataset.commits(stage)
        if not made:
            continue
        seconds = sum(c.seconds for c in made)
        hours = None
        if stage.per_pair and whole:
            if stage.scope == "whole":
                per_pair = seconds * cores / whole
            else:
                shares = [c.seconds / pairs[c.unit] for c in made if pairs.get(c.unit)]
                per_pair = median(shares) * cores if shares else 0.0
            hours = per_pair * _BILLION / 3600
        found.append(Cost(stage.name, stage.does, sum(c.rows_in for c in made), seconds, hours))
    return found


def cores_used(config: Config) -> int:
    """Of local[N], N; else those that this process may use."""
    local = re.fullmatch(r"local\[(\d+)[^\]]*\]", config.session.master or "")
    return int(local.group(1)) if local else len(os.sched_getaffinity(0))


def typical_unit(dataset: Dataset) -> int:
    """Pairs of the median unit."""
    rows: Sequence[int] = [c.rows_in for c in dataset.commits_of("pairs")]
    return int(median(rows)) if rows else 0
