"""Which labels are worth looking at: a stratified draw among all that a run weighed, the same on every machine.

Reads    labels (image_id, pair_id, entity_id, probability, reason) with the coarse_type of each entity
Writes   distinct labels in the order in which to look at them, each with how many others it stands for; and how many
         there are by probability

An image may have several pairs: of each (image_id, entity_id) the row counts that is published, else the most probable.
The rows of a billion lie in no order, so they are told apart in a pool: the labels whose hash is below a share, which
halves whenever more than `keep` are. All rows of a label have one hash, so each is in the pool whole or not at all, and
which are does not depend on order or files.

From the pool they are drawn by sequential Poisson sampling (Ohlsson 1998, J. Official Statistics 14: 149-162): each
label has a uniform hash and its cell a rate; the order is hash / rate. So every beginning of the order is a stratified
sample, however many labels somebody has the patience for, and each of its labels stands for 1 / rate. Cells are bins of
probability, finer near the threshold and near 1, by coarse type, published and not. Half of the labels are published
ones, which tell the precision, the other half tell what is missed. Within a half a cell's share is the root of its
number times the deviation that its probability leads to expect: between what is best for the whole (Neyman 1934) and
the same for each, since rare types are looked at, too (power allocation, Bankier 1988).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import splits
from i2e_pipeline.core.draws import hashed, mixed, uniform
from i2e_pipeline.core.ids import id_halves

KEEP = 1 << 20
"""Labels that the pool holds at most: some 200 MB with the columns of `labels`."""
PLANNED = 2_000
"""Labels up to which weights are exact: no cell is looked through before so many are drawn."""
_BELOW = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9)
"""Where the bins of the draw part the way from 0 to the threshold."""
_ABOVE = (0.1, 0.25, 0.5, 0.7, 0.85, 0.95)
"""The same from the threshold to 1."""
_LEAST_DEVIATION = 0.02
"""Probabilities are believed up to this distance from 0 and 1 when labels are allotted."""
_FLOAT32 = 1e-6
"""Probabilities are stored as float32: a label at the threshold may lie this far below it."""


@dataclass(frozen=True)
class Pool:
    """Distinct labels of a run, or those of a share of all hashes where there are many."""

    labels: pa.Table
    """The columns that came in, and `published` (bool: reason is null); in the order of their hashes."""
    share: float
    """Of all distinct labels, by hash: 1, 1/2, 1/4 …"""
    marked: pa.Table
    """The same columns of the labels that were asked for by name, whatever the share."""


def pooled(batches: Iterable[pa.RecordBatch], keep: int = KEEP, named: pa.Table | None = None) -> Pool:
    """The labels that a draw is made of.

    batches   image_id: binary(16), pair_id: binary(16), entity_id: int64, probability: float32, reason: string (null:
              published), coarse_type: string; further columns are carried along
    named     image_id: binary(16), entity_id: int64: labels that are wanted in `Pool.marked`, such as those marked
    """
    wanted = _keys(named) if named is not None else np.empty(0, np.uint64)
    parts: list[pa.Table] = []
    by_name: list[pa.Table] = []
    rows, share, schema = 0, 1.0, None
    for batch in batches:
        schema = schema or batch.schema
        table = pa.Table.from_batches([batch])
        keys = _keys(table)
        if len(wanted) and (mask := np.isin(keys, wanted)).any():
            by_name.append(table.filter(pa.array(mask)))
        kept = table.filter(pa.array(_below(keys, share)))
        parts.append(kept)
        rows += kept.num_rows
        if rows > 2 * keep:
            whole = _distinct(pa.concat_tables(parts))
            whole, share = _halved(whole, share, keep)
            parts, rows = [whole], whole.num_rows
    if schema is None:
        raise ValueError("no batch of labels: the table has no schema to draw from")
    whole, share = _halved(_distinct(pa.concat_tables(parts)), share, keep)
    found = _distinct(pa.concat_tables([schema.empty_table(), *by_name]))
    return Pool(_published(whole), share, _published(found))


def _published(table: pa.Table) -> pa.Table:
    return table.append_column("published", pc.is_null(table["reason"]))


def _keys(table: pa.Table | pa.RecordBatch) -> np.ndarray:
    """uint64 that stand for (image_id, entity_id)."""
    entity = np.asarray(table["entity_id"], dtype=np.int64).astype(np.uint64)
    return hashed(splits.keys(id_halves(table["image_id"])) ^ mixed(entity), "label")


def _below(keys: np.ndarray, share: float) -> np.ndarray:
    return np.asarray(uniform(keys) < share)


def _halved(table: pa.Table, share: float, keep: int) -> tuple[pa.Table, float]:
    """The largest half, quarter … of distinct labels that is no more than `keep`."""
    drawn = uniform(_keys(table))
    while (drawn < share).sum() > keep:
        share /= 2
    return table.filter(pa.array(drawn < share)), share


def _distinct(table: pa.Table) -> pa.Table:
    """Of each label its published row, else the most probable; in the order of their hashes."""
    keys = _keys(table)
    no_label = pc.is_valid(table["reason"]).to_numpy().astype(np.int8)
    probability = table["probability"].to_numpy().astype(np.float64)
    pairs = id_halves(table["pair_id"])
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -probability, no_label, keys))
    sorted_keys = keys[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    return table.take(pa.array(order[first]))


def bins_of(probability: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Which bin between two edges, from 0 on, each probability lies in. Edges belong to the bin above them."""
    return np.digitize(np.asarray(probability, dtype=np.float64) + _FLOAT32, edges[1:-1])


def fine_edges(threshold: float) -> np.ndarray:
    """Edges of the bins that are counted: steps of .005, finer near 1, and the threshold."""
    near_1 = (0.9925, 0.9975, 0.999)
    return np.unique(np.round([*np.arange(201) / 200, *near_1, threshold], 6))


def counts(pool: Pool, threshold: float) -> pa.Table:
    """How many labels there are by probability: from, to, published, labels, expected (sum of their probabilities).

    threshold   of the run; labels that are published lie at or above it. Rows without labels are left out
    """
    edges = fine_edges(threshold)
    probability = pool.labels["probability"].to_numpy().astype(np.float64)
    published = pool.labels["published"].to_numpy()
    at = bins_of(probability, edges) * 2 + published
    labels = np.bincount(at, minlength=2 * len(edges)) / pool.share
    expected = np.bincount(at, weights=probability, minlength=2 * len(edges)) / pool.share
    there = np.flatnonzero(labels)
    return pa.table(
        {
            "from": edges[there // 2],
            "to": edges[there // 2 + 1],
            "published": pa.array(there % 2 == 1),
            "labels": labels[there],
            "expected": expected[there],
        }
    )


def draw(pool: Pool, threshold: float, labels: int, planned: int = PLANNED, seed: int = 0) -> pa.Table:
    """The first labels to look at: rows of the pool with `weight` (float64), in their order.

    labels    how many
    planned   up to how many somebody may look at. It decides on the rates: another number is another order
    """
    table = pool.labels
    if not table.num_rows:
        return table.append_column("weight", pa.array([], pa.float64()))
    rates = _rates(table, threshold, max(planned, labels))
    keys = _keys(table)
    order = uniform(hashed(keys, "to be looked at", seed)) / rates
    first = np.lexsort((keys, order))[:labels]
    return table.take(pa.array(first)).append_column("weight", pa.array(1 / (rates[first] * pool.share)))


def _rates(table: pa.Table, threshold: float, planned: int) -> np.ndarray:
    """Of each label the rate of its cell, in (0, 1]: `planned` labels in all, half of them published."""
    probability = table["probability"].to_numpy().astype(np.float64)
    way = threshold * np.array([0.0, *_BELOW]), threshold + (1 - threshold) * np.array([0.0, *_ABOVE, 1.0])
    bins = bins_of(probability, np.unique(np.concatenate(way)))
    types = table["coarse_type"].combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy()
    published = table["published"].to_numpy()
    cells = np.stack([published.astype(np.int64), bins, types.astype(np.int64)])
    unique, cell_P = np.unique(cells, axis=1, return_inverse=True)
    cell_P = cell_P.reshape(-1)
    number = np.bincount(cell_P).astype(np.float64)
    mean = np.clip(np.bincount(cell_P, weights=probability) / number, _LEAST_DEVIATION, 1 - _LEAST_DEVIATION)
    wanted = np.sqrt(number * np.sqrt(mean * (1 - mean)))
    rates = np.ones(len(number))
    for side in (0, 1):
        of_side = np.flatnonzero(unique[0] == side)
        rates[of_side] = _allotted(number[of_side], wanted[of_side], planned / 2) / number[of_side]
    return np.asarray(rates[cell_P])


def _allotted(number: np.ndarray, wanted: np.ndarray, total: float) -> np.ndarray:
    """`total` parted among cells as `wanted`, to none more than its number: what small ones leave goes to others."""
    given = np.zeros(len(number))
    full = np.zeros(len(number), dtype=bool)
    while not full.all():
        left = total - number[full].sum()
        given = np.where(full, number, left * wanted / wanted[~full].sum())
        over = ~full & (given >= number)
        if not over.any():
            return given
        full |= over
    return number
