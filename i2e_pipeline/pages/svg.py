"""SVG: the shapes that all charts of the pages are drawn with.

Lengths are percent across and pixels down, so that a chart fills whatever column it stands in and its text keeps its
size, on a telephone too. Colours are the page's CSS variables, with the day's colours as their fallback: the page
changes them at night, and a chart that was saved alone still has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from i2e_pipeline.pages.palette import DAY

BLUE, ORANGE, GREEN, GREY, INK, PAPER = "blue", "orange", "green", "grey", "ink", "paper"
"""Names of colours of the palette."""


def drawing(height: float, body: Sequence[str], label: str, width: str = "100%") -> str:
    """The whole chart; `label` is what a reader who cannot see it is told. A chart that is a file of its own needs a
    width in pixels, and brings the paper that it is drawn on."""
    paper = "" if width == "100%" else f'style="background:{paint(PAPER)};color:{paint(INK)}" '
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" {paper}'
        f'width="{width}" height="{height:.0f}" font-family="system-ui, sans-serif" font-size="13" overflow="visible">'
        + "".join(body)
        + "</svg>"
    )


def empty(what: str) -> str:
    """What stands in the place of a chart that has no data."""
    return drawing(28, [text(0, 18, f"{what}: nothing to show", muted=True)], f"{what}: nothing to show")


def paint(colour: str) -> str:
    return f"var(--{colour},{DAY[colour]})"


def rect(
    x: float,
    y: float,
    width: float,
    height: float,
    colour: str,
    title: str = "",
    opacity: float = 1.0,
    floor: bool = False,
) -> str:
    """x and width in percent, y and height in pixels; floor: a bar of very little is
    drawn wide enough to be seen."""
    if width <= 0 or height <= 0:
        return ""
    width = max(width, 0.4) if floor else width
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.3f}%" y="{y:.1f}" width="{width:.3f}%" height="{height:.1f}" rx="2" '
        f'style="fill:{paint(colour)};opacity:{opacity:g}">{inner}</rect>'
    )


def dot(x: float, y: float, radius: float, colour: str, title: str = "", hollow: bool = False) -> str:
    fill = f"fill:{paint(PAPER)};stroke:{paint(colour)};stroke-width:2" if hollow else f"fill:{paint(colour)}"
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle cx="{x:.3f}%" cy="{y:.1f}" r="{radius}" style="{fill}">{inner}</circle>'


def hline(y: float) -> str:
    return (
        f'<line x1="0%" x2="100%" y1="{y:.1f}" y2="{y:.1f}" '
        'style="stroke:currentColor;opacity:.18" shape-rendering="crispEdges"/>'
    )


def vline(x: float, top: float, bottom: float) -> str:
    return (
        f'<line x1="{x:.3f}%" x2="{x:.3f}%" y1="{top:.1f}" y2="{bottom:.1f}" '
        f'style="stroke:{paint(INK)};stroke-width:2"/>'
    )


def whisker(low: float, high: float, y: float, colour: str, title: str = "") -> str:
    """An interval: a line from low to high, in percent."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<line x1="{low:.3f}%" x2="{high:.3f}%" y1="{y:.1f}" y2="{y:.1f}" '
        f'style="stroke:{paint(colour)};stroke-width:2;opacity:.65">{inner}</line>'
    )


def curve(points: Sequence[tuple[float, float]], height: float, colour: str, dashed: bool = False) -> str:
    """A line through points of (percent across, pixels down), in a chart of this height; `colour` as CSS has it."""
    # A line's points know no percent: an inner drawing is 100 wide and stretched, and its strokes are not.
    inner = " ".join(f"{x:.3f},{y:.1f}" for x, y in points)
    dashes = ";stroke-dasharray:5 4" if dashed else ""
    return (
        f'<svg width="100%" height="{height:.0f}" viewBox="0 0 100 {height:.0f}" preserveAspectRatio="none" '
        f'overflow="visible"><polyline points="{inner}" vector-effect="non-scaling-stroke" '
        f'style="fill:none;stroke:{colour};stroke-width:1.6;stroke-linejoin:round{dashes}"/></svg>'
    )


def swatch(x: float, y: float, colour: str) -> str:
    """What a legend has before its words; y as that of the words."""
    return f'<rect x="{x:.3f}%" y="{y - 9:.1f}" width="12" height="9" rx="2" style="fill:{colour}"/>'


def text(
    x: float, y: float, words: str, anchor: str = "start", muted: bool = False, strong: bool = False, colour: str = ""
) -> str:
    style = f"fill:{paint(colour)}" if colour else "fill:currentColor"
    return (
        f'<text x="{x:.3f}%" y="{y:.1f}" text-anchor="{anchor}" style="{style}'
        f'{";opacity:.62" if muted else ""}{";font-weight:600" if strong else ""}">{escape(words)}</text>'
    )
