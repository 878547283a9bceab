"""Compare: is the difference of two models more than chance?

Reads    two Results with what each query gave, on the same data and protocol
Writes   for each figure the difference, its 95 % interval, and a verdict

A paired bootstrap over classes (Efron 1979; over clusters: Field and Welsh, JRSS B 2007). Both models answered the same
queries, so the difference at each query is what is resampled. Images of one class tend to be right or wrong together,
so whole classes are drawn. Drawing single images would make the interval of GPR1200, with ten images a class, up to √10
times too narrow. Of protocols without classes (ROxford, RParis) the queries are resampled.

Draws are by hash: the same files give the same interval on every machine.

Legend: Q queries, C clusters (classes), B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from i2e_pipeline.core.draws import hashed
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.evaluate.results import CHANCE, Result, Results, parts

DRAWS = 4000
CONFIDENCE = 0.95
FEW_CLUSTERS = 10
"""With fewer classes than this an interval says nothing that could be relied on."""
_BLOCK = 1 << 22
"""Draws times clusters that are held at once."""


class CompareError(I2EError, ValueError):
    """Results that do not answer the same questions; the message names them and the way out."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    clusters: int
    """classes, or queries, that were resampled"""


@dataclass(frozen=True)
class Difference:
    """Second model minus first, of one figure."""

    data: str
    protocol: str
    figure: str
    first: str
    second: str
    values: tuple[float, float]
    interval: Interval | None
    """None: the figure is no mean over queries, or there are too few classes"""
    queries: int
    by: str
    """What was resampled: "classes" or "queries"."""

    @property
    def difference(self) -> float:
        return self.values[1] - self.values[0]

    @property
    def verdict(self) -> str:
        if self.interval is None:
            return "too few to tell" if self.queries else "not tested"
        if self.interval.low > 0:
            return f"{self.second} is better"
        if self.interval.high < 0:
            return f"{self.second} is worse"
        return "no difference seen"


def bootstrap(
    values_Q: np.ndarray, clusters_Q: np.ndarray, draws: int = DRAWS, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval | None:
    """Percentile interval of the mean of `values_Q` when whole clusters are drawn with replacement.

    values_Q     float, NaN where the query does not count
    clusters_Q   int, the cluster of each query
    A draw's mean is Σ sums / Σ counts over the clusters drawn: clusters weigh as their sizes do, as in the mean itself.
    None where fewer than FEW_CLUSTERS have a query that counts.
    """
    values_Q, clusters_Q = np.asarray(values_Q, np.float64), np.asarray(clusters_Q)
    if values_Q.shape != clusters_Q.shape:
        raise CompareError(f"{len(values_Q)} values of queries, and clusters of {len(clusters_Q)}")
    counts = np.isfinite(values_Q)
    names, where_Q = np.unique(clusters_Q[counts], return_inverse=True)
    if len(names) < FEW_CLUSTERS:
        return None
    sums_C = np.bincount(where_Q, weights=values_Q[counts], minlength=len(names))
    sizes_C = np.bincount(where_Q, minlength=len(names)).astype(np.float64)
    means_B = np.empty(draws)
    at_once = max(1, _BLOCK // len(names))
    for start in range(0, draws, at_once):
        stop = min(draws, start + at_once)
        drawn_BC = _draws(start, stop, len(names), seed)
        means_B[start:stop] = sums_C[drawn_BC].sum(axis=1) / sizes_C[drawn_BC].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means_B, [tail, 1 - tail])
    return Interval(float(low), float(high), len(names))


def _draws(start: int, stop: int, clusters: int, seed: int) -> np.ndarray:
    """Cluster numbers (stop - start, clusters), uniform, by hash of (seed, draw, place)."""
    x = hashed(np.arange(start * clusters, stop * clusters), "bootstrap", seed) >> np.uint64(32)
    return ((x * np.uint64(clusters)) >> np.uint64(32)).astype(np.int64).reshape(stop - start, clusters)


def intervals(results: Results, result: Result) -> dict[str, Interval]:
    """The interval of each figure of one result that is a mean over queries."""
    found = {}
    for figure, (_, values) in _figures(results, result).items():
        if not values:
            continue
        clusters_Q, _ = _clusters(results, result, len(values))
        interval = bootstrap(_floats(values), clusters_Q)
        if interval is not None:
            found[figure] = interval
    return found


def compare(first: Results, second: Results) -> list[Difference]:
    """What changes from each model of `first` to the model of `second` that it is compared with.

    Models are paired by label; where both files hold one model, whatever they are called. Raises CompareError where
    nothing was measured in both, or where the data behind one name differ.
    """
    pairs = _pairs(first, second)
    shared = [m for m in first.measured() if m in second.measured()]
    if not shared:
        raise CompareError(
            f"nothing was measured in both: {_names(first)} in the first file, {_names(second)} in the second"
        )
    known = {d.name: d for d in first.data}
    for d in second.data:
        other = known.get(d.name)
        if other is not None and other.fingerprint != d.fingerprint:
            raise CompareError(
                f"{d.name} is not the same data in both files (fingerprint {other.fingerprint[:12]} of {other.path}, "
                f"and {d.fingerprint[:12]} of {d.path}): measure both models on one of them"
            )
    found: list[Difference] = []
    for data, protocol in shared:
        for mine, others in pairs:
            a = next((r for r in first.of(data, protocol) if r.model == mine), None)
            b = next((r for r in second.of(data, protocol) if r.model == others), None)
            if a is not None and b is not None:
                found += _differences(first, a, b, _label(a, b, 0), _label(a, b, 1))
    return found


def between(results: Results) -> list[Difference]:
    """Every further model of one file against its first."""
    found: list[Difference] = []
    for data, protocol in results.measured():
        base, *others = results.of(data, protocol)
        if base.model == results.models[0].label:
            for other in others:
                found += _differences(results, base, other, base.model, other.model)
    return found


def _differences(results: Results, a: Result, b: Result, first: str, second: str) -> Iterator[Difference]:
    mine, others = _figures(results, a), _figures(results, b)
    for figure, (value, mine_Q) in mine.items():
        if figure not in others or figure == CHANCE:
            continue
        other, others_Q = others[figure]
        interval, queries, by = None, 0, "queries"
        if mine_Q and others_Q:
            if len(mine_Q) != len(others_Q):
                raise CompareError(
                    f"{a.data}, {a.protocol}: {len(mine_Q):,} queries of {first} and {len(others_Q):,} of {second}: "
                    "measure both on the same images"
                )
            clusters_Q, by = _clusters(results, a, len(mine_Q))
            change_Q = _floats(others_Q) - _floats(mine_Q)
            interval = bootstrap(change_Q, clusters_Q)
            queries = int(np.isfinite(change_Q).sum())
        yield Difference(a.data, a.protocol, figure, first, second, (value, other), interval, queries, by)


def _figures(results: Results, result: Result) -> dict[str, tuple[float, list[float | None]]]:
    """Each figure and what each query gave: of all queries, then of their parts."""
    found = {figure: (value, result.per_query.get(figure, [])) for figure, value in result.figures.items()}
    return found | {part.figure: (part.value, part.values) for part in parts(results, result)}


def _clusters(results: Results, result: Result, queries: int) -> tuple[np.ndarray, str]:
    classes = results.clusters.get(f"{result.data}/{result.protocol}")
    if classes is None:
        return np.arange(queries), "queries"
    if len(classes) != queries:
        raise CompareError(
            f"{result.data}, {result.protocol}: {queries:,} queries and the classes of {len(classes):,}: measure again"
        )
    return np.asarray(classes), "classes"


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _pairs(first: Results, second: Results) -> list[tuple[str, str]]:
    mine, others = [m.label for m in first.models], [m.label for m in second.models]
    if len(mine) == len(others) == 1:
        return [(mine[0], others[0])]
    shared = [label for label in mine if label in others]
    if not shared:
        raise CompareError(
            f"no model is in both files ({', '.join(mine)} and {', '.join(others)}): measure one model a file, or give "
            "them the same label (--model LABEL=MODEL)"
        )
    return [(label, label) for label in shared]


def _label(a: Result, b: Result, which: int) -> str:
    if a.model != b.model:
        return (a, b)[which].model
    return f"{a.model} ({('first', 'second')[which]} file)"


def _names(results: Results) -> str:
    return ", ".join(f"{data} {protocol}" for data, protocol in results.measured()) or "nothing"


def table(differences: Sequence[Difference]) -> str:
    """For a screen: figures in percent, differences in percentage points with their 95 % interval."""
    head = ["data", "protocol", "figure", "first", "second", "difference", "95 % interval", "resampled", "verdict"]
    rows = [head]
    for d in differences:
        span = "" if d.interval is None else f"[{100 * d.interval.low:+.2f}, {100 * d.interval.high:+.2f}]"
        drawn = "" if d.interval is None else f"{d.interval.clusters:,} {d.by}"
        rows.append(
            [
                d.data,
                d.protocol,
                d.figure,
                f"{100 * d.values[0]:.2f}",
                f"{100 * d.values[1]:.2f}",
                f"{100 * d.difference:+.2f}",
                span,
                drawn,
                d.verdict,
            ]
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    numbers = range(3, 7)
    return (
        "\n".join(
            "  ".join(c.rjust(widths[n]) if n in numbers else c.ljust(widths[n]) for n, c in enumerate(row)).rstrip()
            for row in rows
        )
        + "\n"
    )
