"""The loss curve: a journal as one picture.

Reads   the rows of <train folder>/journal.jsonl, as journal.py gives them
Writes  <train folder>/loss.png: losses over the steps, raw and smoothed · what is held out · the learning rate
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from i2e_pipeline.core.files import fresh_file
from i2e_pipeline.pages import palette

FILE = "loss.png"
_INK, _SOFT, _RULE = (palette.DAY[name] for name in ("ink", "soft", "rule"))
_SMOOTHED_SHARE = 1 / 40
"""Of the journal's length: what the smoothed curve averages over."""
_DRAWN = 1000
"""Points of a curve, at most: more do not fit side by side, and a long training has a million."""


def draw(journal: Sequence[dict[str, Any]], folder: str | Path, title: str) -> Path | None:
    """Draws <folder>/loss.png of a journal's rows (journal.rows); None where they hold no step yet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [row for row in journal if row["kind"] == "step"]
    evaluations = {row["step"]: row for row in journal if row["kind"] == "evaluation"}
    if not steps:
        return None
    heights = [3.2, 1.6, 0.8] if evaluations else [3.2, 0.8]
    figure = Figure(figsize=(9, 1.0 + sum(heights)), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=_INK)
    _losses(panels[0], steps)
    if evaluations:
        _held_out(panels[1], [evaluations[step] for step in sorted(evaluations)])
    _rate(panels[-1], steps)
    for panel in panels:
        _quiet(panel)
    figure.align_ylabels()
    with fresh_file(Path(folder) / FILE) as fresh:
        figure.savefig(fresh, format="png")
    return Path(folder) / FILE


def smoothed(values: Sequence[float], points: float) -> list[float]:
    """Mean around each value, weighed by a normal curve of about so many points; at the ends over what is there.

    Centred: a running mean of the past would lie above a falling curve.
    """
    reach = math.ceil(points)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(points / 2.5, 1e-9)) ** 2)
    here = slice(reach, reach + len(values))
    found: list[float] = (
        np.convolve(values, weights)[here] / np.convolve(np.ones(len(values)), weights)[here]
    ).tolist()
    return found


def binned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """A curve of at most _DRAWN points: the means of neighbouring ones, in steps and values, and of each its lowest and
    highest value."""
    edges = np.unique(np.linspace(0, len(y), min(len(y), _DRAWN) + 1).astype(int))
    counts = np.diff(edges)
    steps, values = (np.add.reduceat(np.asarray(of, float), edges[:-1]) / counts for of in (x, y))
    ends = [f.reduceat(np.asarray(y, float), edges[:-1]).tolist() for f in (np.minimum, np.maximum)]
    return steps.tolist(), values.tolist(), list(zip(*ends, strict=True))


def _losses(panel: Any, steps: list[dict[str, Any]]) -> None:
    curves = _curves(steps, "losses")
    if len(curves) == 2:
        curves.pop("loss", None)  # of a single part, the sum is the same curve
    colours = _colours(curves)
    for name, (x, y) in curves.items():
        at, means, ends = binned(x, y)
        if len(at) < len(x):
            panel.fill_between(at, *zip(*ends, strict=True), color=colours[name], alpha=0.22, linewidth=0)
        else:
            panel.plot(x, y, color=colours[name], alpha=0.22, linewidth=0.9)
        curves[name] = at, smoothed(means, max(1.0, _SMOOTHED_SHARE * len(means)))
        panel.plot(*curves[name], color=colours[name], linewidth=2.2 if name == "loss" else 1.6)
    _name_ends(panel, curves, "{:.3g}")
    panel.set_ylabel("loss", color=_SOFT)


def _held_out(panel: Any, evaluations: list[dict[str, Any]]) -> None:
    curves = _curves(evaluations, "figures")
    colours = _colours(curves)
    for name, (x, y) in curves.items():
        dots = {"marker": "o", "markersize": 5, "markeredgecolor": "white", "clip_on": False}
        panel.plot(x, y, color=colours[name], linewidth=1.2, **dots)
    _name_ends(panel, curves, "{:.3f}")
    panel.set_ylabel("held out", color=_SOFT)


def _curves(journal: list[dict[str, Any]], column: str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values by name; what is not a number (a "nan") is left out."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in journal:
        for name, value in row[column].items():
            if isinstance(value, (int, float)):
                x, y = curves.setdefault(name, ([], []))
                x.append(row["step"])
                y.append(value)
    return curves


def _rate(panel: Any, steps: list[dict[str, Any]]) -> None:
    x, y, _ = binned([row["step"] for row in steps], [row["learning_rate"] for row in steps])
    panel.fill_between(x, y, color=_SOFT, alpha=0.15, linewidth=0)
    panel.plot(x, y, color=_SOFT, linewidth=1.2)
    panel.set_ylim(bottom=0)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    panel.set_ylabel("rate", color=_SOFT)
    panel.set_xlabel("step", color=_SOFT)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _colours(names: Iterable[str]) -> dict[str, str]:
    """Ink for the sum, a colour for each part."""
    parts = [name for name in names if name != "loss"]
    return {"loss": _INK} | {name: palette.SERIES[i % len(palette.SERIES)] for i, name in enumerate(parts)}


def _name_ends(panel: Any, curves: dict[str, tuple[list[float], list[float]]], form: str) -> None:
    """Names and last values at the right end of the curves, pushed apart where they would overlap."""
    low, high = panel.get_ylim()
    height = panel.get_position().height * panel.figure.get_figheight()
    apart = 0.15 / max(height, 0.5) * (high - low)  # a line of text takes about 0.15 inches
    at = -float("inf")
    colours = _colours(curves)
    for value, name in sorted((y[-1], name) for name, (_, y) in curves.items()):
        at = max(value, at + apart)
        panel.annotate(
            f"{name} {form.format(value)}", (1.0, at), xycoords=("axes fraction", "data"), xytext=(8, 0),
            textcoords="offset points", va="center", color=colours[name], fontsize=9.5, annotation_clip=False,
        )  # fmt: skip


def _quiet(panel: Any) -> None:
    panel.grid(axis="y", color=_RULE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.margins(x=0.01)
    panel.tick_params(colors=_SOFT, length=0, labelsize=9)
    for side, spine in panel.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_RULE)
