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
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.version import __version__

FORMAT_VERSION = 1
CHANCE = "mAP of random vectors"
"""A figure of the data alone, beside those of the models."""
LEVELS = ("medium", "hard", "easy")
"""Of the revisited protocol, the one that it is cited by first."""
_PACKAGES = ("torch", "open_clip_torch", "transformers", "scikit-learn", "numpy", "pillow")


class ResultsError(I2EError, ValueError):
    """A file that is not results of this format; the message names the file, what is wrong and the way out."""


@dataclass(frozen=True)
class Model:
    """An encoder that was measured."""

    label: str
    spec: str
    fingerprint: str
    preprocessing: str
    width: int
    """of its vectors; 0: stored ones that differ from data set to data set"""


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
    not_decoded: dict[str, str] = field(default_factory=dict)
    """Those of them that could not be decoded, by name: why."""
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
    """Breakdowns of the first figure that is a mean over queries: {"domain": {"landmarks": …}}."""
    per_query: dict[str, list[float | None]] = field(default_factory=dict)
    """Of each figure that is a mean over queries, the value of each query; None: the query does not count."""
    counts: dict[str, int] = field(default_factory=dict)
    """Queries, gallery, training images …"""
    chosen: dict[str, float] = field(default_factory=dict)
    """What the protocol settled by itself: the regulariser of a probe."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the figures must know: a k beyond the training images, a best C at the end of the grid."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """What was swept, and the validation accuracy that it gave."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Results:
    models: tuple[Model, ...]
    data: tuple[Data, ...]
    results: tuple[Result, ...]
    """By data, protocol, model, in the order they were asked for."""
    clusters: dict[str, list[int]] = field(default_factory=dict)
    """`data/protocol` -> the class of each query: images of a class are not independent draws."""
    groups: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """`data/protocol` -> {"domain": the domain of each query}: what `parts` break down by."""
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
            results=tuple(_result(r) for r in tree["results"]),
            # A file written before one of these came up is read without it.
            clusters=tree.get("clusters", {}),
            groups=tree.get("groups", {}),
            not_measured=tree.get("not_measured", {}),
            settings=tree.get("settings", {}),
            software=tree.get("software", {}),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ResultsError(f"{path} is damaged: {error}; measure again") from None


def _result(row: Mapping[str, Any]) -> Result:
    """JSON has no tuples."""
    return Result(**{**row, "curve": [(float(at), float(value)) for at, value in row.get("curve", [])]})


def of_vectors(label: str, tree: Mapping[str, Any]) -> Results:
    """What from_vectors.py measured in the shape of any other results; the same queries make the same data."""
    found: list[Result] = []
    if "oven" in tree["results"]:
        return _of_predictions(label, tree)
    for protocol, figures in tree["results"].items():
        if protocol == "gpr":
            parts = {"domain": figures["per_domain"]} if figures.get("per_domain") else {}
            named = {"mAP": figures["mAP"], CHANCE: figures["mAP_of_random_vectors"]}
            found.append(Result(label, "vectors", protocol, named, parts, {"mAP": figures["ap"]}))
        else:
            named = {f"{level} {name}": v for level in LEVELS for name, v in revisited_figures(figures[level]).items()}
            queries = {n: v for level in LEVELS for n, v in revisited_queries(level, figures[level]).items()}
            known = {n: v for n, v in named.items() if v is not None}
            found.append(Result(label, "vectors", protocol, known, {}, queries))
    path = str(tree.get("vectors", ""))
    data = Data("vectors", "vectors", path, str(tree.get("queries", "")), 0, 0)
    clusters = tree.get("clusters", {})
    return Results(
        (Model(label, path, "", "stored", 0),),
        (data,),
        tuple(found),
        clusters,
        tree.get("groups", {}),
        software=tree.get("software", {}),
    )


def _of_predictions(label: str, tree: Mapping[str, Any]) -> Results:
    """What oven_scores.py measured, in the shape of any other results."""
    figures, place = tree["results"]["oven"], ", ".join(tree["predictions"])
    asked = ", ".join(tree["ground_truth"])
    examples = sum(of["examples"] for sides in figures["counts"].values() for of in sides.values())
    return Results(
        (Model(label, place, "", "predictions", 0),),
        (Data("oven", "oven", asked, str(tree["queries"]), examples, 0),),
        (Result(label, "oven", "oven", oven_figures(figures), {}, figures["per_query"], notes=list(tree["notes"])),),
        tree["clusters"],
        software=tree.get("software", {}),
    )


def oven_figures(found: Mapping[str, Any]) -> dict[str, float]:
    """OVEN's scores, which are per cent, as the fractions that results hold: `final`, each set's, `accuracy`, each
    side's."""
    named = {"final": found["final_score"], **{name: found[f"{name}_score"] for name in found["counts"]}}
    named["accuracy"] = found["accuracy"]
    for name in found["counts"]:
        named |= {f"{name} {side}": figure for side, figure in found[f"{name}_result"].items()}
    return {name: figure / 100 for name, figure in named.items() if figure is not None}


def revisited_figures(level: Mapping[str, Any]) -> dict[str, float | None]:
    """mAP, mP@1 … of one level of the revisited protocol."""
    return {"mAP": level["mAP"], **{f"mP@{k}": value for k, value in level["mP@k"].items()}}


def revisited_queries(level: str, figures: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """What each query gave of one level's figures."""
    precise = figures.get("precision at", {})
    return {f"{level} mAP": figures["ap"], **{f"{level} mP@{k}": values for k, values in precise.items()}}


@dataclass(frozen=True)
class Part:
    """One figure of some of a result's queries: of a domain, of entities with few images."""

    figure: str
    """With the part's name behind it: "mAP, landmarks"."""
    value: float
    values: list[float | None]
    """By query, None for those of other parts; empty where the results do not say whose part a query is."""


def parts(results: Results, result: Result) -> Iterator[Part]:
    """The breakdowns of a result's figure, and of others that are a mean over the same queries."""
    if not result.figures:
        return
    cited = broken_down(result)
    groups = results.groups.get(f"{result.data}/{result.protocol}", {})
    for by, named in result.parts.items():
        if len(named) < 2:  # the only part is the whole
            continue
        of_query = groups.get(by, [])
        for figure in [cited, *(f for f in result.per_query if f != cited and f in result.figures)]:
            values = result.per_query.get(figure, [])
            if figure != cited and not (of_query and _counted(values) == _counted(result.per_query.get(cited, []))):
                continue
            for name, value in named.items():
                label = f"{figure}, {name}" if by == "domain" else f"{figure}, {name} {by}"
                mine: list[float | None] = []
                if len(of_query) == len(values):
                    mine = [v if g == name else None for g, v in zip(of_query, values, strict=True)]
                known = [v for v in mine if v is not None]
                if known or figure == cited:
                    yield Part(label, value if figure == cited else sum(known) / len(known), mine)


def broken_down(result: Result) -> str:
    """The figure that a result's parts are of: the first that is a mean over queries; of a result that has none, the
    first."""
    return next((figure for figure in result.figures if figure in result.per_query), next(iter(result.figures)))


def _counted(values: Sequence[float | None]) -> list[bool]:
    return [v is not None for v in values]


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
    text = (resources.files(__package__) / "published_figures.json").read_text(encoding="utf-8")
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
    queries: int | None = None
    """Of which the figure is the mean; None: it is no mean of queries, or the file does not say."""
    part: bool = False
    """A figure of a part of the queries."""

    @property
    def best(self) -> float | None:
        """The highest of several models; None where all are equal, and of chance, which is the same for any model."""
        known = [v for v in self.values if v is not None]
        return max(known) if len(set(known)) > 1 and self.figure != CHANCE else None

    @property
    def name(self) -> str:
        """The figure; of a part with the number of its queries."""
        return f"{self.figure} ({self.queries:,})" if self.part and self.queries else self.figure


def lines(results: Results) -> Iterator[Line]:
    """The rows of the table, in the order of the results: figures of all queries, then of their parts."""
    for data, protocol in results.measured():
        by_model = {r.model: r for r in results.of(data, protocol)}
        whole = {m: {f: (v, r.per_query.get(f, [])) for f, v in r.figures.items()} for m, r in by_model.items()}
        broken = {m: {p.figure: (p.value, p.values) for p in parts(results, r)} for m, r in by_model.items()}
        for of_model, part in ((whole, False), (broken, True)):
            for figure in dict.fromkeys(name for figures in of_model.values() for name in figures):
                found = [of_model.get(m.label, {}).get(figure) for m in results.models]
                queries = next((sum(_counted(f[1])) for f in found if f is not None and f[1]), None)
                yield Line(
                    data,
                    protocol,
                    figure,
                    tuple(None if f is None else f[0] for f in found),
                    tuple(published(data, protocol, figure)),
                    queries,
                    part,
                )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def markdown(results: Results) -> str:
    """One table, in percent; the best of several models in bold."""
    head = ["data", "protocol", "figure", *(m.label for m in results.models), "published"]
    rows = []
    for line in lines(results):
        shown = [f"**{percent(v)}**" if v is not None and v == line.best else percent(v) for v in line.values]
        others = "; ".join(f"{p.model} {percent(p.value)}" for p in line.published)
        rows.append([line.data, line.protocol, line.name, *shown, others])
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    right = range(3, 3 + len(results.models))
    rule = ["---:" if n in right else "---" for n in range(len(head))]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in (head, rule, *rows)) + "\n"


def table_csv(results: Results) -> str:
    """Long form, a row per figure and model. Published figures have a source, measured ones none.

    queries   of which the figure is the mean, empty where it is none
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["data", "protocol", "figure", "model", "value", "source", "queries"])
    for line in lines(results):
        for model, value in zip(results.models, line.values, strict=True):
            if value is not None:
                where = [line.data, line.protocol, line.figure, model.label]
                writer.writerow([*where, repr(value), "", line.queries or ""])
        for p in line.published:
            writer.writerow([p.data, p.protocol, p.figure, p.model, repr(p.value), p.source, ""])
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
        rows.append([*first, ("  " if line.part else "") + line.name, *(percent(v) for v in line.values)])
        rows += [["", "", f"  {p.model}", percent(p.value)] for p in line.published]
        notes += [f"{p.model}: {p.source}" for p in line.published]
        before = here
    widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(len(head))]
    text = "\n".join(
        "  ".join(c.rjust(widths[n]) if n > 2 else c.ljust(widths[n]) for n, c in enumerate(row)).rstrip()
        for row in rows
    )
    return text + ("\n\npublished\n" + "\n".join(dict.fromkeys(notes)) if notes else "") + "\n"
