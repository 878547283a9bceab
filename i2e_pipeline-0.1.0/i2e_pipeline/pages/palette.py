"""Colours of all pages and charts, by day and by night.

Blue to yellow are Okabe and Ito's, which colour-blind readers can tell apart; at night they are lighter. Pages have
them as CSS variables of the same names, so that a page changes with the reader's system.
"""

from __future__ import annotations

DAY = {
    "paper": "#fdfcf9", "card": "#ffffff", "tint": "#f3f0ea", "ink": "#1d2228", "soft": "#5c6570", "rule": "#e4e0d8",
    "link": "#00568a", "blue": "#0072b2", "orange": "#d55e00", "green": "#009e73", "grey": "#8a8f98", "red": "#c8361d",
}  # fmt: skip
NIGHT = {
    "paper": "#14171b", "card": "#1c2026", "tint": "#23282f", "ink": "#e8e6e1", "soft": "#a2abb5", "rule": "#2f353d",
    "link": "#7cc4f2", "blue": "#56b4e9", "orange": "#f08a3c", "green": "#4fc79f", "grey": "#7d848e", "red": "#f0674c",
}  # fmt: skip
SERIES = (DAY["blue"], "#e69f00", DAY["green"], DAY["orange"], "#cc79a7", "#56b4e9", "#7f6a00", "#5b4a9e")
"""Of curves, bars and points that stand side by side, in this order: Okabe and Ito's, and two more."""


def variables(colours: dict[str, str]) -> str:
    """The colours as CSS declarations."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
