"""Do the intervals of `i2e explore` hold what they claim? Drawn marks of simulated runs, against all labels of theirs.

    python benchmarks/marks.py [--rounds 400] [--labels 60000] [--json FILE]

A run has published labels and, for each, some weighed candidates that are not. Its calibration is right, or wrong: of
labels whose probabilities say .95, another share is right, and those of one half of the coarse types are further off
than the others. Each round draws anew by label/drawing.py and marks the first labels of the order until so many
published ones are marked, about as many others beside. Printed are how often the 95 % interval of label/implied.py
holds the share of all labels that are right, its mean width, and the same for what was tried beside it: for the
precision

    Kish                 Clopper and Pearson with effective marks by the weights alone
    Jeffreys             the posterior of each stratum, summed by drawing
    gamma                wrong labels as a weighted sum of counts (Fay and Feuer 1997)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import chi2

from i2e_pipeline.label import drawing, implied

MARKS = (30, 100, 300, 1000)
PRECISIONS = (0.99, 0.97, 0.9, 0.8)
THRESHOLD = 0.7
SAID = 0.95
"""What the probabilities of published labels say where they are wrong."""
TYPES = ("taxon", "person", "artefact", "place", "food", None)
TYPE_SHARES = (0.35, 0.25, 0.2, 0.12, 0.05, 0.03)


def run(precision: float, calibrated: bool, labels: int, published: float, seed: int) -> tuple[pa.Table, np.ndarray]:
    """The labels that a run weighed, and which of them are right."""
    rng = np.random.default_rng(seed)
    n = int(labels * published)
    off = (1 - (precision if calibrated else SAID)) / (1 - THRESHOLD)
    above = 1 - (1 - THRESHOLD) * rng.beta(0.5, 0.5 / off - 0.5, n)
    probability = np.concatenate([np.clip(above, THRESHOLD, 1 - 1e-6), THRESHOLD * rng.beta(0.3, 1.5, labels - n)])
    probability = np.clip(probability, 1e-6, None)
    kinds = rng.choice(len(TYPES), labels, p=TYPE_SHARES)
    truth = probability
    if not calibrated:
        odds = np.log(probability / (1 - probability)) - (kinds % 2)
        low, high = -9.0, 9.0
        for _ in range(60):
            shift = (low + high) / 2
            truth = 1 / (1 + np.exp(-odds - shift))
            low, high = (shift, high) if truth[:n].mean() < precision else (low, shift)
    is_right = rng.random(labels) < truth
    ids = rng.integers(0, 256, (labels, 32), np.uint8)
    table = pa.table(
        {
            "image_id": pa.array([row[:16].tobytes() for row in ids], pa.binary(16)),
            "pair_id": pa.array([row[16:].tobytes() for row in ids], pa.binary(16)),
            "entity_id": np.arange(labels),
            "probability": pa.array(probability, pa.float32()),
            "reason": pa.array([None] * n + ["below_bar"] * (labels - n), pa.string()),
            "coarse_type": pa.array([TYPES[k] for k in kinds], pa.string()),
        }
    )
    return table, is_right


def rounds(
    table: pa.Table, is_right: np.ndarray, marks: Sequence[int], number: int
) -> Iterator[tuple[int, pa.Table, pa.Table]]:
    """Rounds of marks: how many published ones, the marks as `implied` takes them, and the counts."""
    pool = drawing.pooled(table.to_batches())
    counts = drawing.counts(pool, THRESHOLD)
    planned = 2 * max(marks)
    for seed in range(number):
        drawn = drawing.draw(pool, THRESHOLD, 3 * max(marks), planned, seed)
        said = np.where(is_right[drawn["entity_id"].to_numpy()], "right", "wrong")
        drawn = drawn.append_column("mark", pa.array(said.tolist(), pa.string()))
        seen = np.cumsum(drawn["published"].to_numpy())
        for n in marks:
            yield n, drawn.slice(0, int(np.searchsorted(seen, n)) + 1), counts


Interval = tuple[float, float]


def others(marks: pa.Table, counts: pa.Table, rng: np.random.Generator) -> dict[str, Interval]:
    """What was tried in place of `implied.share` for the precision."""
    edges = drawing.fine_edges(THRESHOLD)
    mine = marks.filter(marks["published"])
    bins = drawing.bins_of(mine["probability"].to_numpy(), edges)
    there = counts.filter(counts["published"])
    number = np.bincount(
        drawing.bins_of(there["from"].to_numpy(), edges), there["labels"].to_numpy(), minlength=len(edges) - 1
    )
    stratum_B = implied._strata(np.bincount(bins, minlength=len(number)), number)
    stratum_M, labels_S = stratum_B[bins], np.bincount(stratum_B, number)
    weight_M = mine["weight"].to_numpy()
    weight_M = weight_M * (labels_S / np.bincount(stratum_M, weight_M))[stratum_M]
    weight_M /= weight_M.sum()
    right = np.array(mine["mark"].to_pylist()) == "right"
    value = float(weight_M[right].sum())
    drawn = np.zeros(2_000)
    for s in range(len(labels_S)):
        w, r = weight_M[stratum_M == s], right[stratum_M == s]
        effective, share = w.sum() ** 2 / (w**2).sum(), w[r].sum() / w.sum()
        drawn += w.sum() * rng.beta(share * effective + 0.5, (1 - share) * effective + 0.5, len(drawn))
    wrong, variance, largest = 1 - value, float((weight_M[~right] ** 2).sum()), float(weight_M.max())
    low = variance / (2 * wrong) * chi2.ppf(0.025, 2 * wrong**2 / variance) if wrong > 1e-12 else 0.0
    wrong, variance = wrong + largest, variance + largest**2
    high = variance / (2 * wrong) * chi2.ppf(0.975, 2 * wrong**2 / variance)
    return {
        "Kish": implied._clopper_pearson(value, 1 / float((weight_M**2).sum())),
        "Jeffreys": tuple(np.quantile(drawn, [0.025, 0.975]).tolist()),
        "gamma": (1 - float(high), 1 - float(low)),
    }


def coverage(
    precision: float,
    calibrated: bool,
    marks: Sequence[int] = MARKS,
    number: int = 400,
    labels: int = 60_000,
    published: float = 0.3,
    seed: int = 0,
    tried: bool = True,
) -> dict[int, dict[str, dict[str, float]]]:
    """Of each number of marks and kind of interval: covers (share of rounds), width (mean), off (mean error)."""
    table, is_right = run(precision, calibrated, labels, published, seed)
    is_label = np.arange(labels) < int(labels * published)
    truths = {"precision": is_right[is_label].mean(), "recall": is_right[is_label].sum() / is_right.sum()}
    found: dict[int, dict[str, list[tuple[bool, float, float]]]] = {n: {} for n in marks}
    rng = np.random.default_rng(seed)

    def note(n: int, name: str, truth: float, low: float, high: float, value: float) -> None:
        found[n].setdefault(name, []).append((low <= truth <= high, high - low, value - truth))

    for n, drawn, counts in rounds(table, is_right, marks, number):
        said = implied.implied(drawn, counts, THRESHOLD)
        for name, truth in truths.items():
            if "value" in (one := said[name]):
                note(n, name, round(truth, 4), one["low"], one["high"], one["value"])
        for name, (low, high) in others(drawn, counts, rng).items() if tried else ():
            note(n, name, truths["precision"], low, high, truths["precision"])
    return {n: {name: _means(rows) for name, rows in kinds.items()} for n, kinds in found.items()}


def _means(rows: list[tuple[bool, float, float]]) -> dict[str, float]:
    means = np.array(rows, dtype=np.float64).mean(axis=0)
    return {key: round(float(value), 4) for key, value in zip(("covers", "width", "off"), means, strict=True)}


def main(arguments: Sequence[str] = ()) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--labels", type=int, default=60_000, help="that the run weighed")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    kinds_of = ("precision", "recall", "Kish", "Jeffreys", "gamma")
    print(f"| published | calibration | precision | marks | {' | '.join(kinds_of)} |")
    print("|---|---|---:|---:|---|---|---|---|---|")
    cell: Callable[[dict[str, float]], str] = lambda kind: f"{kind['covers']:.3f} ({kind['width']:.3f})"
    for published, precisions in ((0.3, PRECISIONS), (0.03, PRECISIONS[1:2])):
        for calibrated in (True, False):
            for precision in precisions:
                found = coverage(precision, calibrated, MARKS, options.rounds, options.labels, published)
                for n, kinds in found.items():
                    rows.append(
                        {"published": published, "calibrated": calibrated, "precision": precision, "marks": n, **kinds}
                    )
                    cells = [cell(kinds[name]) if name in kinds else "–" for name in kinds_of]
                    right = "right" if calibrated else "wrong"
                    print(f"| {published} | {right} | {precision} | {n} | {' | '.join(cells)} |", flush=True)
    for n in MARKS:
        at = [row for row in rows if row["marks"] == n]
        least = {name: min(row[name]["covers"] for row in at if name in row) for name in ("precision", "recall")}
        print(f"{n} marks: the precision is covered {least['precision']:.3f} or more, the recall {least['recall']:.3f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
