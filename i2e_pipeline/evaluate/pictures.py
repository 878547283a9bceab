"""Pictures of an evaluation: where the vectors lie, what is found next to what, and the figures as bars.

Reads    vectors, labels and images of a data set
Writes   inline SVG, and the rows of retrieval grids with images as data URIs

What is shown is drawn by hash, never chosen: a page of an encoder's best finds says nothing of the encoder.

Legend: N images, Q queries, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from i2e_pipeline.evaluate.compare import Interval
from i2e_pipeline.evaluate.projection import by_hash
from i2e_pipeline.evaluate.retrieval import top_k
from i2e_pipeline.images.thumbnails import Thumbnails
from i2e_pipeline.pages import svg
from i2e_pipeline.pages.palette import DAY, SERIES

REST = DAY["grey"]
"""Of points that belong to none of the groups that have a colour."""
NEIGHBOURS = 8
QUERIES = 12
THUMBNAIL = 104
_SIDE = 600


@dataclass(frozen=True)
class Key:
    """One colour of a scatter."""

    name: str
    colour: str
    points: int


@dataclass(frozen=True)
class Scatter:
    chart: str
    """SVG"""
    keys: tuple[Key, ...]
    points: int
    of: int


def groups(labels_N: np.ndarray, class_names: Sequence[str], domains_N: np.ndarray | None) -> np.ndarray:
    """What a point is coloured by: its domain; without domains its class, if that is one of the eight largest."""
    if domains_N is not None:
        return np.asarray(domains_N, dtype=object)
    classes, counts = np.unique(labels_N[labels_N >= 0], return_counts=True)
    largest = classes[np.lexsort((classes, -counts))][: len(SERIES)]
    named = {int(c): class_names[int(c)] if int(c) < len(class_names) else f"class {c}" for c in largest}
    return np.array([named.get(int(c), "") for c in labels_N], dtype=object)


def scatter(xy_N2: np.ndarray, groups_N: np.ndarray, of: int) -> Scatter:
    """Points in the unit square, coloured by group; "" is grey and lies below the others.

    One path a colour: a dot is a line of no length with a round end, eleven bytes.
    """
    names, first, counts = np.unique(groups_N.astype(str), return_index=True, return_counts=True)
    by_place = [n for n in np.argsort(first, kind="stable") if names[n]]
    colours = {names[n]: SERIES[i] if i < len(SERIES) else REST for i, n in enumerate(by_place)}
    body = []
    for name in ["", *(names[n] for n in by_place)]:
        points = np.rint(xy_N2[groups_N == name] * (_SIDE - 12) + 6).astype(int)
        if not len(points):
            continue
        path = "".join(f"M{x} {_SIDE - y}h0" for x, y in points.tolist())
        title = f"<title>{escape(name)}</title>" if name else ""
        body.append(
            f'<path d="{path}" fill="none" stroke="{colours.get(name, REST)}" stroke-width="{6 if name else 4}" '
            f'stroke-linecap="round" stroke-opacity="{0.8 if name else 0.45}">{title}</path>'
        )
    said = f"{len(xy_N2)} vectors of images as points, coloured by {', '.join(colours) or 'nothing'}"
    chart = (
        f'<svg class="scatter" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIDE} {_SIDE}" role="img" '
        f'aria-label="{escape(said)}">{"".join(body)}</svg>'
    )
    sizes = dict(zip(names.tolist(), counts.tolist(), strict=True))
    keys = [Key(str(name), colours[name], sizes[name]) for name in colours if colours[name] != REST]
    grey = len(xy_N2) - sum(key.points for key in keys)
    return Scatter(chart, (*keys, *([Key("others", REST, grey)] if grey else [])), len(xy_N2), of)


@dataclass(frozen=True)
class Group:
    """Bars that stand together: a domain, or a figure."""

    name: str
    values: tuple[float | None, ...]
    """by model"""
    intervals: tuple[Interval | None, ...] = ()


def bars(rows: Sequence[Group], models: Sequence[str], what: str) -> str:
    """A group of bars a row, one bar a model, on a scale from 0 to 1, with a line for the 95 % interval."""
    known = [v for row in rows for v in row.values if v is not None]
    if not known:
        return svg.empty(what)
    body, y = [], 0
    for row in rows:
        body.append(svg.text(0, y + 13, row.name, strong=True))
        y += 19
        for n, value in enumerate(row.values):
            body.append(svg.rect(0, y, 88, 11, svg.GREY, opacity=0.12))
            if value is not None:
                body.append(_bar(88 * value, y, SERIES[n % len(SERIES)], f"{models[n]}, {row.name}: {value:.4f}"))
                interval = row.intervals[n] if n < len(row.intervals) else None
                if interval is not None:
                    body.append(svg.whisker(88 * interval.low, 88 * interval.high, y + 5.5, svg.INK))
            number = "–" if value is None else f"{100 * value:.1f}"
            body.append(svg.text(100, y + 10, number, anchor="end"))
            y += 14
        y += 11
    said = "; ".join(
        f"{row.name}: "
        + ", ".join(
            f"{model} {'–' if v is None else f'{100 * v:.1f}'}" for model, v in zip(models, row.values, strict=True)
        )
        for row in rows
    )
    return svg.drawing(y, body, f"{what}, percent: {said}")


def _bar(width: float, y: float, colour: str, title: str) -> str:
    return (
        f'<rect x="0%" y="{y:.1f}" width="{max(width, 0.3):.3f}%" height="11" rx="2" '
        f'style="fill:{colour}"><title>{escape(title)}</title></rect>'
    )


# -- retrieval grids --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """An image that came up for a query."""

    picture: str | None
    """data URI"""
    right: bool
    name: str
    """of its class"""
    score: float
    """cosine to the query"""


@dataclass(frozen=True)
class Shown:
    """A query and what each model found for it."""

    picture: str | None
    name: str
    group: str
    """its domain"""
    found: tuple[tuple[str, tuple[Found, ...]], ...]
    """(model, neighbours, nearest first)"""


def queries(labels_N: np.ndarray, domains_N: np.ndarray | None, count: int = QUERIES, seed: int = 0) -> np.ndarray:
    """Rows to ask with: by hash, the domains in turn, each class at most once, of classes with two images or more."""
    classes, counts = np.unique(labels_N[labels_N >= 0], return_counts=True)
    usable = np.flatnonzero(np.isin(labels_N, classes[counts > 1]))
    in_hash_order = usable[by_hash(len(usable), seed)]
    domain_of = np.zeros(len(labels_N), dtype=object) if domains_N is None else np.asarray(domains_N, dtype=object)
    waiting: dict[object, list[int]] = {}
    seen: set[int] = set()
    for row in in_hash_order.tolist():
        if int(labels_N[row]) not in seen:
            seen.add(int(labels_N[row]))
            waiting.setdefault(domain_of[row], []).append(row)
    by_domain = [waiting[d] for d in sorted(waiting, key=str)]
    turns = [rows[turn] for turn in range(count) for rows in by_domain if turn < len(rows)][:count]
    return np.array(sorted(turns, key=lambda row: (str(domain_of[row]), row)), dtype=np.int64)


Neighbours = list[tuple[int, float]]
"""Row of the data set and cosine, nearest first."""


def nearest(asked_Q: np.ndarray, vectors_ND: np.ndarray, rows_N: np.ndarray, block_mb: int = 256) -> list[Neighbours]:
    """The K nearest other images of each query, K = NEIGHBOURS.

    asked_Q   rows of the data set, each among rows_N
    rows_N    row of the data set of each vector, growing
    """
    if not len(asked_Q):
        return []
    at_Q = np.searchsorted(rows_N, asked_Q)
    scores_QK, index_QK = top_k(vectors_ND[at_Q], vectors_ND, min(NEIGHBOURS + 1, len(vectors_ND)), block_mb)
    return [
        [(int(rows_N[i]), float(s)) for i, s in zip(index, scores, strict=True) if i != at][:NEIGHBOURS]
        for at, index, scores in zip(at_Q.tolist(), index_QK, scores_QK, strict=True)
    ]


def grid(
    asked_Q: np.ndarray,
    neighbours: Mapping[str, Sequence[Neighbours]],
    labels_N: np.ndarray,
    name_of: Callable[[int], str],
    domains_N: np.ndarray | None,
    read: Callable[[Sequence[int]], Iterator[Image.Image | None]],
    thumbnails: Thumbnails,
) -> list[Shown]:
    """Queries with what each model found nearest among all other images, right where the classes agree.

    neighbours   model -> what it found for each query
    name_of      class -> its name
    read         rows of the data set, growing -> their images, None for one that cannot be shown
    """
    uses: dict[int, int] = {}
    for row in [*asked_Q.tolist(), *(i for of in neighbours.values() for near in of for i, _ in near)]:
        uses[row] = uses.get(row, 0) + 1
    rows = sorted(uses)
    uris = {row: thumbnails.of(image, uses[row]).uri for row, image in zip(rows, read(rows), strict=True)}

    def found(row: int, near: Neighbours) -> tuple[Found, ...]:
        return tuple(
            Found(uris[i], bool(labels_N[i] == labels_N[row]), name_of(int(labels_N[i])), score) for i, score in near
        )

    return [
        Shown(
            uris[row],
            name_of(int(labels_N[row])),
            "" if domains_N is None else str(domains_N[row]),
            tuple((model, found(row, of[n])) for model, of in neighbours.items()),
        )
        for n, row in enumerate(asked_Q.tolist())
    ]
