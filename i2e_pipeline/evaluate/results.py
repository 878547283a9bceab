"""Results: what was measured, of which model, on which data, as one JSON file and one table.

Reads    results.json of an earlier evaluation (FORMAT_VERSION 1) · published_figures.json
Writes   results.json · table.md · table.csv

Figures are fractions in [0, 1] in JSON and CSV, percent in the tables that people read. A result keeps what it says of
each query (its AP, or whether it was right), so that `compare` can tell a difference from chance later and elsewhere.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from i2e_pipeline import __version__, files

FORMAT_VERSION = 1
CHANCE = "mAP of random vectors"
"""A figure of the data alone, beside those of the models."""
LEVELS = ("medium", "hard", "easy")
"""Of the revisited protocol, the one that it is cited by first."""
_PACKAGES = ("torch", "open_clip_torch", "transformers", "scikit-learn", "numpy", "pillow")


class ResultsError(ValueError):
    """A file that is not results of this format; the message names the file, what is wrong and the way out."""


@dataclass(frozen=True)
class Model:
    """An encoder that was measured."""

    label: str
    spec: str
    fingerprint: str
    preprocessing: str
    width: int
    """of its vectors"""


@dataclass(frozen=True)
class Data:
    """A data set that was measured on."""

    name: str
    kind: str
    path: str
    fingerprint: str
    images: int
    classes: int
    left_out: dict[str, int] = field(default_factory=dict)
    """Images that no figure counts, by reason."""
    splits: dict[str, int] = field(default_factory=dict)
    """Images by split."""
    split_by: str = ""
    """Who drew the splits: the data set's authors, or a hash."""


@dataclass(frozen=True)
class Result:
    """One protocol's figures for a model on a data set."""

    model: str
    data: str
    protocol: str
    figures: dict[str, float]
    """The first is the one that the protocol is cited by."""
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    """Breakdowns of the first figure: {"domain": {"landmarks": …}}."""
    per_query: dict[str, list[float | None]] = field(default_factory=dict)
    """Of each figure that is a mean over queries, the value of each query; None: the query does not count."""
    counts: dict[str, int] = field(default_factory=dict)
    """Queries, gallery, training images …"""
    chosen: dict[str, float] = field(default_factory=dict)
    """What the protocol settled by itself: the regulariser of a probe."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Results:
    models: tuple[Model, ...]
    data: tuple[Data, ...]
    results: tuple[Result, ...]
    """By data, protocol, model, in the order they were asked for."""
    clusters: dict[str, list[int]] = field(default_factory=dict)
    """`data/protocol` -> the class of each query: images of a class are not independent draws."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """`data/protocol` -> why there are no figures, though the protocol fits the data's kind."""
    settings: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def of(self, data: str, protocol: str) -> list[Result]:
        return [r for r in self.results if (r.data, r.protocol) == (data, protocol)]

    def measured(self) -> list[tuple[str, str]]:
        """(data, protocol), each once, in order."""
        return list(dict.fromkeys((r.data, r.protocol) for r in self.results))


def software() -> dict[str, str]:
    """Versions of what the figures come from."""
    found = {"i2e-pipeline": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(path: str, results: Results) -> None:
    """In one step: a reader sees the old file or the new."""
    files.write_bytes(path, (_json(asdict(results)) + "\n").encode())


def _json(tree: Mapping[str, Any]) -> str:
    """Keys a line each at the top, lists of numbers in one line: 12,000 APs are no file of 12,000 lines."""
    lines = []
    for key, value in tree.items():
        rows = value if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict) else None
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if rows is not None:
            text = "[\n  " + ",\n  ".join(json.dumps(r, ensure_ascii=False, allow_nan=False) for r in rows) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}"


def read(path: str) -> Results:
    """The results of a file that `i2e evaluate` wrote. Raises ResultsError.

    Also what `--vectors` wrote: one model, called by the name of its file, on stored vectors.
    """
    try:
        tree = files.read_json(path)
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; `i2e evaluate --json {path}` writes one") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} is not JSON: {error}") from None
    if not isinstance(tree, dict) or "results" not in tree:
        raise ResultsError(f"{path} holds no `results`: it is not a file that `i2e evaluate` wrote")
    version = tree.get("format_version")
    if version != FORMAT_VERSION:
        raise ResultsError(
            f"{path} has format_version {version!r}, and this version of i2e reads {FORMAT_VERSION}: measure again, "
            "or compare with the version that wrote it"
        )
    try:
        if isinstance(tree["results"], dict):
            return of_vectors(Path(path).stem, tree)
        return Results(
            models=tuple(Model(**m) for m in tree["models"]),
            data=tuple(Data(**d) for d in tree["data"]),
            results=tuple(Result(**r) for r in tree["results"]),
            clusters=tree["clusters"],
            not_measured=tree["not_measured"],
            settings=tree["settings"],
            software=tree["software"],
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ResultsError(f"{path} is damaged: {error}; measure again") from None


def of_vectors(label: str, tree: Mapping[str, Any]) -> Results:
    """What from_vectors.py measured in the shape of any other results; the same queries make the same data."""
    found: list[Result] = []
    for protocol, figures in tree["results"].items():
        if protocol == "gpr":
            parts = {"domain": figures["per_domain"]} if figures.get("per_domain") else {}
            named = {"mAP": figures["mAP"], CHANCE: figures["mAP_of_random_vectors"]}
            found.append(Result(label, "vectors", protocol, named, parts, {"mAP": figures["ap"]}))
        else:
            named = {f"{level} {name}": v for level in LEVELS for name, v in revisited_figures(figures[level]).items()}
            found.append(Result(label, "vectors", protocol, {n: v for n, v in named.items() if v is not None}, {},
                                {f"{level} mAP": figures[level]["ap"] for level in LEVELS}))
    path = str(tree.get("vectors", ""))
    data = Data("vectors", "vectors", path, str(tree.get("queries", "")), 0, 0)
    clusters = tree.get("clusters", {})
    return Results(
        (Model(label, path, "", "stored", 0),), (data,), tuple(found), clusters, software=tree.get("software", {})
    )


def revisited_figures(level: Mapping[str, Any]) -> dict[str, float | None]:
    """mAP, mP@1 … of one level of the revisited protocol."""
    return {"mAP": level["mAP"], **{f"mP@{k}": value for k, value in level["mP@k"].items()}}


# -- tables -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublishedFigure:
    """A figure that others measured."""

    data: str
    protocol: str
    figure: str
    model: str
    value: float
    source: str


@lru_cache(maxsize=1)
def published_figures() -> tuple[PublishedFigure, ...]:
    text = (Path(__file__).parent / "published_figures.json").read_text(encoding="utf-8")
    return tuple(PublishedFigure(**row) for row in json.loads(text))


def published(data: str, protocol: str, figure: str) -> list[PublishedFigure]:
    """What others report on a data set of that name, best first."""
    found = [p for p in published_figures() if (p.data, p.protocol, p.figure) == (data, protocol, figure)]
    return sorted(found, key=lambda p: (-p.value, p.model))


@dataclass(frozen=True)
class Line:
    """A row of the table: one figure of one protocol on one data set."""

    data: str
    protocol: str
    figure: str
    values: tuple[float | None, ...]
    """by model, in their order; None: the protocol does not apply to the model"""
    published: tuple[PublishedFigure, ...] = ()

    @property
    def best(self) -> float | None:
        known = [v for v in self.values if v is not None]
        return max(known) if len(known) > 1 else None


def lines(results: Results) -> Iterator[Line]:
    """The rows of the table, in the order of the results."""
    for data, protocol in results.measured():
        by_model = {r.model: r for r in results.of(data, protocol)}
        for figure in dict.fromkeys(name for r in by_model.values() for name in r.figures):
            values = tuple(
                by_model[m.label].figures.get(figure) if m.label in by_model else None for m in results.models
            )
            yield Line(data, protocol, figure, values, tuple(published(data, protocol, figure)))


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def markdown(results: Results) -> str:
    """One table, in percent; the best of several models in bold."""
    head = ["data", "protocol", "figure", *(m.label for m in results.models), "published"]
    rows = []
    for line in lines(results):
        shown = [f"**{percent(v)}**" if v is not None and v == line.best else percent(v) for v in line.values]
        others = "; ".join(f"{p.model} {percent(p.value)}" for p in line.published)
        rows.append([line.data, line.protocol, line.figure, *shown, others])
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    right = range(3, 3 + len(results.models))
    rule = ["---:" if n in right else "---" for n in range(len(head))]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in (head, rule, *rows)) + "\n"


def table_csv(results: Results) -> str:
    """Long form: data, protocol, figure, model, value, source. Published figures have a source, measured ones none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["data", "protocol", "figure", "model", "value", "source"])
    for line in lines(results):
        for model, value in zip(results.models, line.values, strict=True):
            if value is not None:
                writer.writerow([line.data, line.protocol, line.figure, model.label, repr(value), ""])
        for p in line.published:
            writer.writerow([p.data, p.protocol, p.figure, p.model, repr(p.value), p.source])
    return stream.getvalue()


def terminal(results: Results) -> str:
    """The table in columns, in percent, for a screen."""
    head = ["data", "protocol", "figure", *(m.label for m in results.models)]
    rows: list[Sequence[str]] = [head]
    before = ("", "")
    notes: list[str] = []
    for line in lines(results):
        here = (line.data, line.protocol)
        first = ["", ""] if here == before else [line.data if line.data != before[0] else "", line.protocol]
        rows.append([*first, line.figure, *(percent(v) for v in line.values)])
        rows += [["", "", f"  {p.model}", percent(p.value)] for p in line.published]
        notes += [f"{p.model}: {p.source}" for p in line.published]
        before = here
    widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(len(head))]
    text = "\n".join(
        "  ".join(c.rjust(widths[n]) if n > 2 else c.ljust(widths[n]) for n, c in enumerate(row)).rstrip()
        for row in rows
    )
    return text + ("\n\npublished\n" + "\n".join(dict.fromkeys(notes)) if notes else "") + "\n"
