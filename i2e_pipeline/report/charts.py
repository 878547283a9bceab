"""Charts of the report: plain data in, one inline SVG out.

A bar of a share is drawn against a true 100 %. Where an axis begins elsewhere, the chart says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from i2e_pipeline.label.judged import wilson
from i2e_pipeline.pages import svg
from i2e_pipeline.pages.svg import BLUE, GREY, ORANGE

_MAX_POINTS = 240
_LINE = 46
"""Letters that a line of a chart has room for, in its narrowest column."""


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: a part of a whole."""

    label: str
    value: int
    whole: int
    of: str
    """What is counted."""


@dataclass(frozen=True)
class Step:
    """One stage of the funnel."""

    title: str
    does: str
    rows_are: str
    rows_in: int
    rows_out: int
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class Figure:
    """Precision and recall of a stage on a slice; None where nothing was counted."""

    label: str
    pairs: int
    precision: float | None
    recall: float | None
    precision_of: int = 0
    """What the share is of; 0: not known, and no interval is drawn."""
    recall_of: int = 0

    def values(self) -> list[tuple[str, float, int]]:
        """(name, share, of how many), of those that are known."""
        both = (("precision", self.precision, self.precision_of), ("recall", self.recall, self.recall_of))
        return [(name, value, of) for name, value, of in both if value is not None]


def interval(share: float, of: int) -> tuple[float, float] | None:
    """Ends of the 95 % interval of a share; None where it is not known of how many."""
    if not of:
        return None
    low, high = wilson(share * of, float(of))
    return max(0.0, float(low)), min(1.0, float(high))


def funnel(steps: Sequence[Step]) -> str:
    """Rows in, passed on and rejected, stage by stage. Stages that count pairs share one scale, that of the first;
    stages that count something else (texts, mentions) have their own and are drawn thinner."""
    if not any(step.rows_in for step in steps):
        return svg.empty("funnel")
    whole = max(step.rows_in for step in steps if step.rows_are == steps[0].rows_are)
    body, y = [], 4
    for step in steps:
        main = step.rows_are == steps[0].rows_are
        width = 100 * step.rows_in / whole if main else 100.0
        kept = width * step.rows_out / step.rows_in if step.rows_in else 0.0
        height = 22 if main else 10
        counted = f"{step.rows_out:,} of {step.rows_in:,} {step.rows_are} · {_percent(step.rows_out, step.rows_in)}"
        drawn, lines = _ends(y + 14, step.title, counted, strong=True)
        body += drawn
        y += 17 * lines - 3
        for line in _wrapped(step.does.split(), _LINE, " "):
            y += 17
            body.append(svg.text(0, y, line, muted=True))
        y += 8
        body.append(svg.rect(0, y, 100, height, GREY, opacity=0.12))
        body.append(
            svg.rect(0, y, kept, height, BLUE if main else GREY, f"{step.rows_out:,} {step.rows_are} passed on")
        )
        at = kept
        for n, (reason, rows) in enumerate(_largest_first(step.rejected)):
            share = width * rows / step.rows_in if step.rows_in else 0.0
            body.append(
                svg.rect(
                    at,
                    y,
                    share,
                    height,
                    ORANGE,
                    f"{reason}: {rows:,} {step.rows_are}",
                    opacity=1.0 if n % 2 == 0 else 0.7,
                )
            )
            at += share
        y += height
        lost = [f"{reason} −{rows:,}" for reason, rows in _largest_first(step.rejected)]
        for line in _wrapped(lost, 52):
            y += 17
            body.append(svg.text(100, y, line, anchor="end", colour=ORANGE))
        y += 22
    said = "; ".join(f"{s.title} {s.rows_out} of {s.rows_in} {s.rows_are}" for s in steps)
    return svg.drawing(y, body, f"funnel: {said}")


def bars(rows: Sequence[Bar], what: str, colour: str = BLUE) -> str:
    """Horizontal bars on a scale from 0 to 100 %, in the order given, with label and numbers above."""
    if not any(row.value for row in rows):
        return svg.empty(what)
    body: list[str] = []
    y = 0
    for row in rows:
        share = _percent(row.value, row.whole)
        drawn, lines = _ends(y + 14, row.label, f"{row.value:,} of {row.whole:,} {row.of} · {share}")
        body += drawn
        y += 17 * lines + 3
        body.append(svg.rect(0, y, 100, 9, GREY, opacity=0.12))
        width = 100 * row.value / row.whole if row.whole else 0.0
        body.append(svg.rect(0, y, width, 9, colour, f"{row.label}: {row.value:,}, {share}", floor=True))
        y += 20
    body += _percents(y + 4)
    said = "; ".join(f"{r.label} {r.value:,} of {r.whole:,} {r.of}" for r in rows)
    return svg.drawing(y + 8, body, f"{what}: {said}")


def buckets(rows: Sequence[Mapping[str, int]]) -> str:
    """How many entities have how many images, and how many images those entities hold.

    rows   images_from, images_to, entities, images, as the table of buckets holds them
    """
    entities, images = sum(r["entities"] for r in rows), sum(r["images"] for r in rows)
    if not entities or not images:
        return svg.empty("buckets")
    body = [
        svg.rect(0, 2, 1.6, 9, BLUE),
        svg.text(2.6, 11, "share of the entities"),
        svg.rect(50, 2, 1.6, 9, ORANGE),
        svg.text(52.6, 11, "share of the images"),
    ]
    y = 26
    for row in rows:
        low, high = row["images_from"], row["images_to"]
        label = f"{low:,}" if low == high else f"{low:,} or more" if high >= 1 << 60 else f"{low:,}–{high:,}"
        counted = f"{row['entities']:,} entities · {row['images']:,} images"
        drawn, lines = _ends(y + 12, f"{label} image{'' if high == 1 else 's'}", counted, strong=True)
        body += drawn
        y += 17 * (lines - 1)
        for offset, part, whole, colour, name in (
            (18, row["entities"], entities, BLUE, "entities"),
            (27, row["images"], images, ORANGE, "images"),
        ):
            body.append(svg.rect(0, y + offset, 100, 8, GREY, opacity=0.10))
            body.append(
                svg.rect(
                    0,
                    y + offset,
                    100 * part / whole,
                    8,
                    colour,
                    f"{part:,} {name}, {_percent(part, whole)}",
                    floor=True,
                )
            )
        y += 46
    return svg.drawing(
        y + 8,
        [*body, *_percents(y + 2)],
        "images per entity in buckets: "
        + "; ".join(f"{r['images_from']} and more: {r['entities']} entities, {r['images']} images" for r in rows),
    )


def rank_frequency(images: Sequence[int]) -> str:
    """Images of each entity against its rank, both axes logarithmic: a straight fall is Zipf's.

    images   of each entity, in any order; entities without images are left out
    """
    falling = sorted((n for n in images if n > 0), reverse=True)
    if not falling:
        return svg.empty("images per entity")
    height, top, bottom, left = 300, 16, 34, 9.0
    decades_x = max(math.log10(len(falling)), 1.0)
    decades_y = max(math.log10(falling[0]), 1.0) * 1.04

    def x(rank: int) -> float:
        return left + (99 - left) * math.log10(rank) / decades_x

    def y(count: int) -> float:
        return height - bottom - (height - top - bottom) * math.log10(count) / decades_y

    body = []
    for count in _log_ticks(decades_y):
        body.append(svg.hline(y(count)))
        body.append(svg.text(0, y(count) - 4, _short(count), muted=True))
    for rank in _log_ticks(decades_x):
        body.append(svg.text(x(rank), height - bottom + 17, _short(rank), anchor="middle", muted=True))
    body.append(svg.text(0, 10, "images", muted=True))
    body.append(svg.text(100, height - 2, "entity, by rank", anchor="end", muted=True))
    for rank in _log_ranks(len(falling)):
        count = falling[rank - 1]
        body.append(svg.dot(x(rank), y(count), 3, BLUE, f"rank {rank:,}: {count:,} images"))
    said = f"{falling[0]} at the first of {len(falling)} entities, {falling[-1]} at the last"
    return svg.drawing(height, body, f"images per entity by rank: {said}")


def histogram(
    kept: Sequence[int], rejected: Sequence[int], low: float, high: float, what: str, threshold: float | None = None
) -> str:
    """Two stacked counts over equal bins from low to high, with a line at `threshold`."""
    largest = max((a + b for a, b in zip(kept, rejected, strict=True)), default=0)
    if not largest:
        return svg.empty(what)
    height, top, bottom = 236, 46, 30
    room, step = height - top - bottom, 100 / len(kept)
    body = [
        svg.rect(0, 2, 1.6, 9, BLUE),
        svg.text(2.6, 11, f"labelled {sum(kept):,}"),
        svg.rect(50, 2, 1.6, 9, ORANGE),
        svg.text(52.6, 11, f"not labelled {sum(rejected):,}"),
        svg.hline(height - bottom),
        svg.hline(top),
        svg.text(0, top - 4, f"{largest:,}", muted=True),
    ]
    width = (high - low) / len(kept)
    for n, (a, b) in enumerate(zip(kept, rejected, strict=True)):
        start = f"{low + n * width:.2f}–{low + (n + 1) * width:.2f}"
        up = room * b / largest
        body.append(
            svg.rect(
                n * step + step * 0.08, height - bottom - up, step * 0.84, up, ORANGE, f"{start}: {b:,} not labelled"
            )
        )
        over = room * a / largest
        body.append(
            svg.rect(
                n * step + step * 0.08, height - bottom - up - over, step * 0.84, over, BLUE, f"{start}: {a:,} labelled"
            )
        )
    for tick in _ticks(low, high):
        at = 100 * (tick - low) / (high - low)
        anchor = "start" if at < 2 else "end" if at > 98 else "middle"
        body.append(svg.text(at, height - bottom + 16, f"{tick:g}", anchor=anchor, muted=True))
    if threshold is not None and low <= threshold <= high:
        at = 100 * (threshold - low) / (high - low)
        body.append(
            f'<line x1="{at:.2f}%" x2="{at:.2f}%" y1="{top - 8}" y2="{height - bottom}" '
            'style="stroke:currentColor" stroke-dasharray="3 3"/>'
        )
        side = "end" if at > 50 else "start"
        body.append(
            svg.text(at + (-0.8 if at > 50 else 0.8), top - 4, f"threshold {threshold:.3f}", anchor=side, strong=True)
        )
    body.append(svg.text(100, height - 1, what, anchor="end", muted=True))
    return svg.drawing(height, body, f"{what}: {sum(kept)} labelled, {sum(rejected)} not")


def lowest_tenth(figures: Sequence[Figure]) -> float:
    """The tenth, 0.9 at most, at which a scale up to 1 must begin to hold all of these with their intervals."""
    known = [(value, of) for figure in figures for _, value, of in figure.values()]
    lowest = [(interval(value, of) or (value, value))[0] for value, of in known]
    return min(0.9, math.floor(min(lowest, default=0.9) * 10) / 10)


def precision_recall(figures: Sequence[Figure], floor: float) -> str:
    """Two lines per slice, with a full dot for precision and an open one for recall and their 95 % intervals, on a
    scale from `floor` to 1."""
    if not any(figure.values() for figure in figures):
        return svg.empty("precision and recall")

    def x(value: float) -> float:
        return 1 + 97 * (value - floor) / (1 - floor)

    body = [
        svg.dot(2, 8, 5, BLUE),
        svg.text(5, 12, "precision"),
        svg.dot(42, 8, 5, ORANGE, hollow=True),
        svg.text(45, 12, "recall"),
    ]
    y = 30
    for figure in figures:
        numbers = " · ".join(f"{name[0].upper()} {value:.3f}" for name, value, _ in figure.values())
        drawn, lines = _ends(y + 12, f"{figure.label} · {figure.pairs:,}", numbers)
        body += drawn
        y += 17 * lines + 9
        body.append(svg.hline(y + 6))
        for name, value, of in figure.values():
            colour, at = (BLUE, y) if name == "precision" else (ORANGE, y + 12)
            title = f"{name} {value:.4f}"
            if ends := interval(value, of):
                title += f" of {of:,}, {ends[0]:.4f} to {ends[1]:.4f}"
                body.append(svg.whisker(x(max(floor, ends[0])), x(ends[1]), at, colour, title))
            body.append(svg.dot(x(value), at, 4.5, colour, title, hollow=name == "recall"))
        y += 27
    ticks = round((1 - floor) * 10)
    every = 1 if ticks <= 5 else 2
    for n in range(0, ticks + 1, every):
        value = 1 - n / 10
        body.append(svg.text(x(value), y + 12, f"{value:.1f}", anchor="middle" if n < ticks else "start", muted=True))
    begins = f"the axis begins at {floor:.1f}, not at 0" if floor else "the axis is from 0 to 1"
    body.append(svg.text(100, y + 30, begins, anchor="end", muted=True))
    said = "; ".join(
        f"{f.label} " + " and ".join(f"{name} {value:.3f}{f' of {of}' if of else ''}" for name, value, of in f.values())
        for f in figures
    )
    return svg.drawing(y + 36, body, f"precision and recall, {begins}: {said}")


def expected_and_found(expected: float, found: float, of: int) -> str:
    """A share as found, with its 95 % interval, against the one that was expected (a mark), on a line from 0 to 1."""
    low, high = interval(found, of) or (found, found)
    body = [
        svg.rect(0, 7, 100, 4, GREY, opacity=0.18),
        svg.whisker(100 * low, 100 * high, 9, BLUE),
        svg.dot(100 * found, 9, 4, BLUE),
        svg.vline(100 * expected, 1, 17),
    ]
    return svg.drawing(18, body, f"expected {expected:.3f}, found {found:.3f}, {low:.3f} to {high:.3f}")


def _ends(y: float, left: str, right: str, strong: bool = False) -> tuple[list[str], int]:
    """Words at both ends of a line, or of two where they have no room in one; and how many lines those are."""
    left, right = (words if len(words) <= _LINE else f"{words[: _LINE - 1]}…" for words in (left, right))
    lines = 1 if len(left) + len(right) <= _LINE - 2 else 2
    words = [svg.text(0, y, left, strong=strong), svg.text(100, y + 17 * (lines - 1), right, anchor="end")]
    return words, lines


def _percents(y: float) -> list[str]:
    """Marks of a scale from 0 to 100 %."""
    return [
        svg.text(0, y, "0 %", muted=True),
        svg.text(50, y, "50 %", anchor="middle", muted=True),
        svg.text(100, y, "100 %", anchor="end", muted=True),
    ]


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _wrapped(parts: Sequence[str], width: int, between: str = " · ") -> list[str]:
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + len(between) <= width:
            lines[-1] += f"{between}{part}"
        else:
            lines.append(part)
    return lines


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, four to eight of them."""
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / s <= 7), 1.0)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [round(n * step, 6) for n in range(first, last + 1)]


def _log_ticks(decades: float) -> list[int]:
    steps = (1, 2, 5) if decades <= 2.2 else (1, 3) if decades <= 3.2 else (1,)
    ticks = [step * 10**power for power in range(math.floor(decades) + 1) for step in steps]
    return [tick for tick in ticks if math.log10(tick) <= decades]


def _log_ranks(count: int) -> list[int]:
    """All ranks; where there are many, ranks at equal distances on a logarithmic axis."""
    if count <= _MAX_POINTS:
        return list(range(1, count + 1))
    return sorted({round(count ** (n / (_MAX_POINTS - 1))) for n in range(_MAX_POINTS)})


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count // size}{letter}"
    return str(count)
