"""Page: one HTML file on what was measured, with its pictures inside; nothing is fetched from elsewhere.

Reads    Results and the Looks of the suite
Writes   FOLDER/index.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from i2e_pipeline.core import files
from i2e_pipeline.evaluate import compare, pictures, results
from i2e_pipeline.evaluate.compare import Difference, Interval
from i2e_pipeline.evaluate.image_set import ImageSet
from i2e_pipeline.evaluate.look import Look
from i2e_pipeline.evaluate.pictures import Group, Scatter, Shown
from i2e_pipeline.evaluate.protocols import PROTOCOLS
from i2e_pipeline.evaluate.results import Data, Result, Results
from i2e_pipeline.images.decode import Rejected
from i2e_pipeline.images.thumbnails import Thumbnails
from i2e_pipeline.pages import svg
from i2e_pipeline.pages.html import environment
from i2e_pipeline.pages.palette import SERIES

BUDGET = 4_000_000
"""Bytes of inline images, over all data sets."""
_HEADLINES = 4


def write_page(folder: str, measured: Results, looks: Sequence[Look] = ()) -> str:
    """Write the page; returns its path."""
    path = files.join(folder, "index.html")
    files.write_bytes(path, page(measured, looks).encode())
    return path


def page(measured: Results, looks: Sequence[Look] = ()) -> str:
    """The page as HTML. Without looks, as from a results.json alone, it has tables and bars and no images."""
    labels = [m.label for m in measured.models]
    known, differences = _intervals(measured), compare.between(measured)
    shown = {look.data.name: look for look in looks}
    budget = BUDGET // max(1, len(looks))
    return (
        environment(
            "i2e_pipeline.evaluate",
            number=lambda value: f"{value:,}",
            percent=results.percent,
            half=_half,
            points=_points,
            words=_words,
            span=_span,
        )
        .get_template("evaluation.html")
        .render(
            measured=measured,
            labels=labels,
            colours=[SERIES[n % len(SERIES)] for n in range(len(labels))],
            headline=_headlines(measured),
            lines=list(results.lines(measured)),
            has_published=any(line.published for line in results.lines(measured)),
            sources=dict.fromkeys(f"{p.model}: {p.source}" for line in results.lines(measured) for p in line.published),
            intervals=known,
            differences=differences,
            scale=_scale(differences),
            sets=[_section(measured, data, labels, known, shown.get(data.name), budget) for data in measured.data],
            protocols={
                name: PROTOCOLS[name].about for name in PROTOCOLS if name in {r.protocol for r in measured.results}
            },
            draws=compare.DRAWS,
            chance=results.CHANCE,
        )
    )


def _half(interval: Interval | None) -> str:
    """Half the width of an interval, in points."""
    return "" if interval is None else f"±{50 * (interval.high - interval.low):.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def _scale(differences: Sequence[Difference]) -> tuple[float, float]:
    """From … to of all intervals, zero among them."""
    ends = [end for d in differences if d.interval for end in (d.interval.low, d.interval.high)]
    return min([0.0, *ends]), max([0.0, *ends])


def _span(difference: Difference, scale: tuple[float, float]) -> Markup:
    """The interval as a line on a scale that all share, with a mark at zero."""
    interval, (low, high) = difference.interval, scale
    if interval is None:
        return Markup("")

    def x(value: float) -> float:
        return 50.0 if high == low else 3 + 94 * (value - low) / (high - low)

    colour = svg.GREY if interval.low <= 0 <= interval.high else svg.GREEN if interval.low > 0 else svg.ORANGE
    return Markup(
        '<svg width="100%" height="12" aria-hidden="true" overflow="visible">'
        f'<line x1="{x(0):.2f}%" x2="{x(0):.2f}%" y1="-4" y2="16" style="stroke:currentColor;opacity:.3"/>'
        f'<line x1="{x(interval.low):.2f}%" x2="{x(interval.high):.2f}%" y1="6" y2="6" '
        f'style="stroke:{svg.paint(colour)};stroke-width:3"/>{svg.dot(x(difference.difference), 6, 4, colour)}</svg>'
    )


def _words(name: str) -> str:
    """A protocol's name as prose has it."""
    return {"gpr": "GPR retrieval", "knn_retrieval": "kNN retrieval", "knn": "kNN"}.get(name, name.replace("_", " "))


@dataclass(frozen=True)
class Headline:
    what: str
    values: list[tuple[str, str, bool]]
    """(model, figure, whether it is the best)"""


def _headlines(measured: Results) -> list[Headline]:
    """The first figure of a protocol of every model: the first protocol of each data set, then the second of each."""
    by_data: dict[str, list[str]] = {}
    for data, protocol in measured.measured():
        by_data.setdefault(data, []).append(protocol)
    deepest = max(map(len, by_data.values()), default=0)
    places = [(data, of[turn]) for turn in range(deepest) for data, of in by_data.items() if turn < len(of)]
    found = []
    for data, protocol in places[:_HEADLINES]:
        figure = next(iter(measured.of(data, protocol)[0].figures))
        values = {r.model: r.figures[figure] for r in measured.of(data, protocol) if figure in r.figures}
        best = max(values.values()) if len(set(values.values())) > 1 else None
        found.append(
            Headline(
                f"{data}: {_words(protocol)}, {figure}",
                [(model, f"{100 * value:.1f} %", value == best) for model, value in values.items()],
            )
        )
    return found


def _intervals(measured: Results) -> dict[tuple[str, str, str, str], Interval]:
    """(data, protocol, figure, model) -> 95 % interval."""
    return {
        (r.data, r.protocol, figure, r.model): interval
        for r in measured.results
        for figure, interval in compare.intervals(measured, r).items()
    }


@dataclass(frozen=True)
class Part:
    """A breakdown: bars of each model by domain, by images per entity."""

    title: str
    chart: Markup


@dataclass(frozen=True)
class Section:
    """What the page shows of one data set."""

    data: Data
    title: str
    bars: Markup
    parts: list[Part]
    scatters: list[tuple[str, Scatter, Markup]]
    grid: list[Shown]
    notes: list[str]


def _section(
    measured: Results,
    data: Data,
    labels: Sequence[str],
    known: Mapping[tuple[str, str, str, str], Interval],
    look: Look | None,
    budget: int,
) -> Section:
    groups, parts = [], []
    for _, protocol in (m for m in measured.measured() if m[0] == data.name):
        of = {r.model: r for r in measured.of(data.name, protocol)}
        first = next(iter(of.values()))
        figure = next(iter(first.figures))
        groups.append(
            Group(
                f"{_words(protocol)}, {figure}",
                tuple(of[m].figures.get(figure) if m in of else None for m in labels),
                tuple(known.get((data.name, protocol, figure, m)) for m in labels),
            )
        )
        parts += _parts(protocol, results.broken_down(first), of, labels)
    scatters = [] if look is None else [(m, s, Markup(s.chart)) for m, s in look.scatters.items()]
    return Section(
        data,
        data.name,
        Markup(pictures.bars(groups, labels, f"figures on {data.name}")),
        parts,
        scatters,
        [] if look is None else _grid(look, budget),
        list(_notes(measured, data)),
    )


def _parts(protocol: str, figure: str, of: Mapping[str, Result], labels: Sequence[str]) -> list[Part]:
    found = []
    for by in dict.fromkeys(by for r in of.values() for by in r.parts):
        names = dict.fromkeys(name for r in of.values() for name in r.parts.get(by, {}))
        rows = [
            Group(name, tuple(of[m].parts.get(by, {}).get(name) if m in of else None for m in labels)) for name in names
        ]
        if len(rows) < 2:
            continue
        title = f"{_words(protocol)}, {figure}, by {by}"
        found.append(Part(title, Markup(pictures.bars(rows, labels, title))))
    return found


def _notes(measured: Results, data: Data) -> Iterator[str]:
    for place, why in measured.not_measured.items():
        name, _, protocol = place.rpartition("/")
        if name == data.name:
            yield f"{_words(protocol)}: not measured, {why}"
    for r in measured.results:
        if r.data == data.name and r.chosen:
            yield f"{r.model}, {_words(r.protocol)}: " + ", ".join(f"{k} {v:g}" for k, v in r.chosen.items())
    notes: dict[str, None] = dict.fromkeys(
        f"{_words(r.protocol)}: {note}" for r in measured.results if r.data == data.name for note in r.notes
    )
    yield from notes


def _grid(look: Look, budget: int) -> list[Shown]:
    data = look.data
    if not look.neighbours or not len(look.asked_Q):
        return []

    def name_of(label: int) -> str:
        return data.class_names[label] if 0 <= label < len(data.class_names) else ""

    return pictures.grid(
        look.asked_Q,
        look.neighbours,
        data.labels_N,
        name_of,
        data.domains_N,
        lambda rows: _images(data, rows),
        Thumbnails(budget=budget, side=pictures.THUMBNAIL),
    )


def _images(data: ImageSet, rows: Sequence[int]) -> Iterator[Image.Image | None]:
    for row, stored in zip(rows, data.images.read(rows), strict=True):
        image = data.decoded(row, stored)
        yield None if isinstance(image, Rejected) else image
