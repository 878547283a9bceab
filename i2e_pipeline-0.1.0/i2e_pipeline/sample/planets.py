"""Six planets that no emoji set draws, as SVG of our own: flat discs with the features a person knows them by.

Each call with another seed is another drawing: tilt, shades, bands and craters move, the planet stays.
"""

from __future__ import annotations

import random

PLANETS = ("mercury", "venus", "mars", "jupiter", "uranus", "neptune")
VARIANTS = 12
"""Drawings per planet; the last third is kept for scoring, so training never sees them."""


def _disc(body: str, base: str, dark: str, tilt: float) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128"><defs>'
        '<clipPath id="c"><circle cx="64" cy="64" r="50"/></clipPath>'
        f'<radialGradient id="s" cx=".36" cy=".34" r=".8"><stop offset="0.55" stop-color="{dark}" stop-opacity="0"/>'
        f'<stop offset="1" stop-color="{dark}" stop-opacity=".75"/></radialGradient></defs>'
        f'<g clip-path="url(#c)"><rect width="128" height="128" fill="{base}"/>'
        f'<g transform="rotate({tilt:.1f} 64 64)">{body}</g>'
        '<rect width="128" height="128" fill="url(#s)"/></g>{extra}</svg>'
    )


def _shade(rng: random.Random, rgb: tuple[int, int, int], spread: int = 14) -> str:
    return "#" + "".join(f"{min(255, max(0, v + rng.randint(-spread, spread))):02x}" for v in rgb)


def _bands(rng: random.Random, colours: list[tuple[int, int, int]], count: int) -> str:
    y, out = 10.0, []
    for i in range(count):
        height = rng.uniform(0.6, 1.4) * 108 / count
        sag = rng.uniform(-5, 5)
        out.append(
            f'<path d="M0 {y:.1f} Q64 {y + sag:.1f} 128 {y:.1f} V{y + height:.1f} H0 Z" '
            f'fill="{_shade(rng, colours[i % len(colours)])}"/>'
        )
        y += height
    return "".join(out)


def _mercury(rng: random.Random) -> tuple[str, str, str, str]:
    spots = []
    for _ in range(rng.randint(11, 16)):
        x, y, r = rng.uniform(20, 108), rng.uniform(20, 108), rng.uniform(3, 11)
        spots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{_shade(rng, (112, 106, 102))}"/>')
        spots.append(
            f'<circle cx="{x - r / 5:.1f}" cy="{y - r / 5:.1f}" r="{r * 0.7:.1f}" '
            f'fill="{_shade(rng, (136, 130, 126))}"/>'
        )
    return "".join(spots), _shade(rng, (160, 154, 150)), "#2a2726", ""


def _venus(rng: random.Random) -> tuple[str, str, str, str]:
    swirls = []
    for _ in range(9):
        y = rng.uniform(14, 114)
        swirls.append(
            f'<path d="M0 {y:.1f} C40 {y - rng.uniform(6, 22):.1f} 84 {y + rng.uniform(6, 22):.1f} 128 {y:.1f}" '
            f'fill="none" stroke="{_shade(rng, (243, 224, 170))}" stroke-width="{rng.uniform(4, 11):.1f}" '
            'stroke-linecap="round" opacity=".8"/>'
        )
    return "".join(swirls), _shade(rng, (222, 178, 98)), "#6b3d0c", ""


def _mars(rng: random.Random) -> tuple[str, str, str, str]:
    patches = []
    for _ in range(7):
        x, y = rng.uniform(18, 110), rng.uniform(36, 104)
        patches.append(
            f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{rng.uniform(8, 24):.1f}" ry="{rng.uniform(4, 10):.1f}" '
            f'fill="{_shade(rng, (146, 60, 30))}" opacity=".75"/>'
        )
    patches.append(f'<ellipse cx="64" cy="15" rx="{rng.uniform(20, 30):.1f}" ry="7" fill="#fff4ec"/>')
    patches.append(f'<ellipse cx="64" cy="114" rx="{rng.uniform(12, 20):.1f}" ry="5" fill="#fff4ec"/>')
    return "".join(patches), _shade(rng, (206, 92, 48)), "#45150a", ""


def _jupiter(rng: random.Random) -> tuple[str, str, str, str]:
    bands = _bands(
        rng, [(232, 210, 176), (188, 134, 92), (240, 226, 202), (164, 104, 70), (222, 190, 150)], rng.randint(8, 11)
    )
    x = rng.uniform(46, 86)
    spot = f'<ellipse cx="{x:.1f}" cy="80" rx="14" ry="8.5" fill="#c4482a" stroke="#f3dcc0" stroke-width="3"/>'
    return bands + spot, _shade(rng, (226, 200, 164)), "#4a2a16", ""


def _uranus(rng: random.Random) -> tuple[str, str, str, str]:
    tilt = rng.uniform(68, 104)
    ring = (
        f'<g transform="rotate({tilt:.1f} 64 64)" fill="none" stroke="{_shade(rng, (214, 240, 244))}" stroke-width="3">'
        '<path d="M4 64 A60 13 0 0 0 124 64"/></g>'
    )
    haze = f'<ellipse cx="64" cy="{rng.uniform(24, 44):.1f}" rx="46" ry="16" fill="#e2fbfb" opacity=".6"/>'
    return haze, _shade(rng, (158, 226, 230)), "#1d6e78", ring


def _neptune(rng: random.Random) -> tuple[str, str, str, str]:
    bands = _bands(rng, [(52, 96, 210), (64, 116, 226), (44, 82, 190)], rng.randint(5, 7))
    x, y = rng.uniform(40, 84), rng.uniform(52, 80)
    spot = f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="13" ry="7" fill="#1d3a96"/>'
    clouds = "".join(
        f'<ellipse cx="{rng.uniform(30, 98):.1f}" cy="{rng.uniform(30, 98):.1f}" rx="{rng.uniform(8, 16):.1f}" '
        'ry="2.2" fill="#e8f2ff" opacity=".9"/>'
        for _ in range(4)
    )
    return bands + spot + clouds, _shade(rng, (56, 104, 218)), "#0b1a55", ""


_DRAW = {
    "mercury": _mercury,
    "venus": _venus,
    "mars": _mars,
    "jupiter": _jupiter,
    "uranus": _uranus,
    "neptune": _neptune,
}


def planet_svg(name: str, variant: int) -> str:
    """One drawing of one of PLANETS; the same arguments give the same SVG."""
    rng = random.Random(f"{name}/{variant}")
    body, base, dark, extra = _DRAW[name](rng)
    return _disc(body, base, dark, rng.uniform(-25, 25)).replace("{extra}", extra)
