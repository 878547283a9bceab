"""Suite: measures every encoder by every protocol that a data set allows.

Reads    encoders and data sets as config.evaluate names them
Writes   FOLDER/results.json · table.md · table.csv · index.html · vectors/*.npz (a cache; may be deleted)

All data sets are opened and checked before the first model is loaded: a path that is wrong is known in seconds, not
after an hour of encoding. An encoder is loaded once, and one at a time.

Legend: N images, Q queries, C classes, D width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from i2e_pipeline.core import files, places
from i2e_pipeline.core.config import Config, EvaluateConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.model_name import ModelNameError, parse, split_label
from i2e_pipeline.evaluate import known, oven, overlap, pictures, projection, results
from i2e_pipeline.evaluate.datasets import DatasetError, ImageSet, open_dataset
from i2e_pipeline.evaluate.embed import Embedded, EncoderError, embed, open_encoder
from i2e_pipeline.evaluate.look import Look
from i2e_pipeline.evaluate.page import write_page
from i2e_pipeline.evaluate.protocols import PROTOCOLS, TooSmall, with_long_tail
from i2e_pipeline.evaluate.results import Data, Model, Result, Results
from i2e_pipeline.evaluate.task import Head, Task

log = logging.getLogger(__name__)

NAMES = {"roxford": "roxford5k", "rparis": "rparis6k"}
"""What the benchmarks are called for short."""


NO_OTHER_NAMES: Mapping[str, str] = {}
NO_HEADS: Mapping[str, Head] = {}


class SuiteError(I2EError, ValueError):
    """An evaluation that cannot be carried out as asked; the message names the setting, the value and the way out."""


def evaluate(
    config: Config, called: Mapping[str, str] = NO_OTHER_NAMES, heads: Mapping[str, Head] = NO_HEADS
) -> Results:
    """Measure the encoders of config.evaluate and write the results, the tables and the page.

    called   by MODEL what the results call it, where that is not what lies there for good: an export of this command
    heads    by MODEL the entity head of its checkpoint
    Raises SuiteError, DatasetError, EncoderError or PlaceError; what cannot be measured at all is known before a model
    is loaded.
    """
    measured, looks = measure(config, called, heads)
    folder = folder_of(config)
    results.write(files.join(folder, "results.json"), measured)
    files.write_bytes(files.join(folder, "table.md"), results.markdown(measured).encode())
    files.write_bytes(files.join(folder, "table.csv"), results.table_csv(measured).encode())
    started = time.perf_counter()
    page = write_page(folder, measured, looks)
    _line("page", page, seconds=time.perf_counter() - started)
    return measured


def folder_of(config: Config) -> str:
    return config.evaluate.folder or files.join(config.output, "evaluation")


def measure(
    config: Config, called: Mapping[str, str] = NO_OTHER_NAMES, heads: Mapping[str, Head] = NO_HEADS
) -> tuple[Results, list[Look]]:
    """The figures, and what the pictures are drawn from; writes vectors only."""
    settings = _by_whole_name(config.evaluate)
    names, protocols = _asked(settings)
    if not settings.models:
        raise SuiteError("evaluate.models is empty: name an encoder (--model local-dir:FOLDER, --model hf:FOLDER …)")
    if not settings.data:
        raise SuiteError("evaluate.data is empty: name a data set (--data gpr1200=FOLDER, --data mine=FOLDER …)")
    try:
        named = [split_label(spec) for spec in settings.models]
        stored = [spec for spec, (_, model) in zip(settings.models, named, strict=True) if _is_stored(model)]
    except ModelNameError as error:
        raise SuiteError(f"evaluate.models: {error}") from None
    labels = [label for label, _ in named]
    for label in labels:
        if labels.count(label) > 1:
            raise SuiteError(f"evaluate.models: two are called {label!r}; name them apart (--model NAME=MODEL)")
    sets = []
    for name in names:
        started = time.perf_counter()
        sets.append(open_dataset(name, settings.data[name]))
        _line(name, _what(sets[-1]), seconds=time.perf_counter() - started)
    for data in sets:
        if not any(PROTOCOLS[p].applies(data) for p in protocols):
            raise SuiteError(
                f"evaluate.suite: none of {', '.join(protocols)} applies to {data.name}; there are "
                f"{', '.join(p for p in PROTOCOLS if PROTOCOLS[p].applies(data))}"
            )
    folder = folder_of(config)
    places.refuse_unwritable(folder, "evaluate.folder" if settings.folder else "output")
    vectors = Path(files.join(folder, "vectors"))
    for spec in stored:
        _check_stored(spec, sets, settings, vectors)
    if "oven" in protocols and settings.oven.candidates != "head":
        for data in sets:
            if data.kind == "oven":  # before images are encoded for hours
                oven.entities_of(data, settings.oven)
    models: list[Model] = []
    found: list[Result] = []
    clusters: dict[str, list[int]] = {}
    looks = [Look(data) for data in sets]
    groups: dict[str, dict[str, list[str]]] = {}
    failed: dict[str, dict[str, str]] = {}
    not_measured = {f"{data.name}/{p}": why for data in sets for p, why in data.lacks.items() if p in protocols}
    for spec in settings.models:
        started = time.perf_counter()
        encoder = open_encoder(spec, settings)
        text = "" if encoder.texts else ", no text tower"
        wide = f"{encoder.width} wide" if encoder.stored is None else "stored vectors"
        _line(encoder.label, f"{wide}{text}", seconds=time.perf_counter() - started)
        widths: set[int] = set()
        for data, look in zip(sets, looks, strict=True):
            started = time.perf_counter()
            embedded = embed(encoder, data, settings, vectors)
            task = Task(encoder, data, embedded, settings, folder, heads.get(encoder.spec))
            seen = overlap.notes(encoder.trained_on, data, settings.data[data.name])
            _line(encoder.label, data.name, "vectors", _said(task.embedded), seconds=time.perf_counter() - started)
            widths.add(task.embedded.vectors_ND.shape[1])
            _same_rows(task, look)
            if task.embedded.failed and data.name not in failed:
                log.warning(f"{data.name}: not decoded: {_first(task.embedded.failed)}")
            failed[data.name] = task.embedded.failed
            for name in protocols:
                protocol = PROTOCOLS[name]
                if not protocol.applies(data) or (protocol.needs_text and encoder.texts is None):
                    continue
                try:
                    result, classes, parts = _measure(name, task)
                except (EncoderError, DatasetError):
                    raise
                except I2EError as why:  # what is odd about one data set must not cost the figures of the others
                    not_measured[f"{data.name}/{name}"] = str(why)
                    log.warning(f"{encoder.label:<16}{data.name:<16}{name:<16}left out: {why}")
                    continue
                result.notes.extend(seen)
                found.append(result)
                if classes is not None:
                    clusters[f"{data.name}/{name}"] = classes
                if parts:
                    groups[f"{data.name}/{name}"] = parts
                first, value = next(iter(result.figures.items()))
                _line(encoder.label, data.name, name, f"{first} {100 * value:.2f} %", seconds=result.seconds)
                for note in result.notes:
                    log.info(f"{encoder.label:<16}{data.name:<16}{name:<16}{note}")
            if data.has_classes:
                started = time.perf_counter()
                _look(task, look)
                seconds = time.perf_counter() - started
                _line(encoder.label, data.name, "pictures", settings.projection, seconds=seconds)
        models.append(
            Model(
                encoder.label,
                called.get(encoder.spec, encoder.spec),
                encoder.fingerprint,
                encoder.preprocessing,
                widths.pop() if len(widths) == 1 else encoder.width,
            )
        )
        del encoder, task
    if not found:
        reasons = "; ".join(f"{place}: {reason}" for place, reason in not_measured.items())
        raise SuiteError(f"nothing could be measured: {reasons or 'protocols of names need a text tower'}")
    facts = tuple(_facts(data, settings.data[data.name], failed[data.name]) for data in sets)
    order = {(d.name, p): n for n, (d, p) in enumerate((d, p) for d in sets for p in PROTOCOLS)}
    found.sort(key=lambda r: (order[r.data, r.protocol], labels.index(r.model)))
    shown = settings.model_dump(
        mode="json",
        include={
            "suite",
            "preprocessing",
            "dtype",
            "knn_k",
            "knn_temperature",
            "projection",
            "seed",
        },
    )
    measured = Results(tuple(models), facts, tuple(found), clusters, groups, not_measured, shown, results.software())
    return measured, looks


def _by_whole_name(settings: EvaluateConfig) -> EvaluateConfig:
    """The settings with roxford and rparis called by the name of the benchmark."""
    data = {NAMES.get(name.casefold(), name): path for name, path in settings.data.items()}
    if len(data) < len(settings.data):
        raise SuiteError(f"evaluate.data: one data set twice among {', '.join(settings.data)}")
    return settings.model_copy(
        update={
            "data": data,
            "suite": tuple(NAMES.get(wanted.casefold(), wanted) for wanted in settings.suite),
        }
    )


def _asked(settings: EvaluateConfig) -> tuple[list[str], list[str]]:
    """Data sets and protocols that evaluate.suite, a mixture of both, asks for. Naming none of a kind means all."""
    names = [s for s in settings.suite if s in settings.data]
    protocols = [s for s in settings.suite if s in PROTOCOLS and s not in settings.data]
    for wanted in settings.suite:
        if wanted not in names and wanted not in protocols:
            raise SuiteError(
                f"evaluate.suite: {wanted!r} is no protocol ({', '.join(PROTOCOLS)}), and no data set of that name is "
                f"given: --data {wanted}=FOLDER. {_where_from(wanted)}".strip()
            )
    return names or list(settings.data), protocols or list(PROTOCOLS)


def _where_from(name: str) -> str:
    """Of a known data set where to get it, and its layout."""
    return known.wanted(name.casefold()) if name.casefold() in known.KNOWN else ""


def _measure(name: str, task: Task) -> tuple[Result, list[int] | None, dict[str, list[str]]]:
    started = time.perf_counter()
    found = with_long_tail(task, PROTOCOLS[name].measure(task))
    figures = {key: float(value) for key, value in found.figures.items() if value is not None}
    if not figures:
        raise TooSmall("no query has anything to find, or every k of knn_k is more than the training images")
    per_query = {
        figure: [None if value is None else float(value) for value in values]
        for figure, values in found.per_query.items()
        if figure in figures
    }
    result = Result(
        task.encoder.label,
        task.data.name,
        name,
        figures,
        {of: {k: float(v) for k, v in parts.items() if v is not None} for of, parts in found.parts.items() if parts},
        per_query,
        {k: int(v) for k, v in found.counts.items()},
        {k: float(v) for k, v in found.chosen.items()},
        list(found.notes),
        [(float(at), float(value)) for at, value in found.curve],
        round(time.perf_counter() - started, 2),
    )
    classes = None if found.clusters is None else [int(c) for c in found.clusters]
    return result, classes, {by: list(names) for by, names in found.groups.items()}


def _first(failed: Mapping[str, str], count: int = 3) -> str:
    """The first images that could not be decoded, with reasons; results.json and the page list them all."""
    more = f"; and {len(failed) - count:,} more" if len(failed) > count else ""
    return "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:count]) + more


def _is_stored(model: str) -> bool:
    return parse(model).kind == "vectors"


def _check_stored(spec: str, sets: list[ImageSet], settings: EvaluateConfig, vectors: Path) -> None:
    """Stored vectors are there for every data set. Raises EncoderError or DatasetError."""
    encoder = open_encoder(spec, settings)
    for data in sets:
        embed(encoder, data, settings, vectors)


def _same_rows(task: Task, look: Look) -> None:
    """Encoders are compared query by query, so all must have been given the same images."""
    rows_N = task.embedded.rows_N
    if look.rows_N is None:
        look.rows_N = rows_N
    elif not np.array_equal(look.rows_N, rows_N):
        raise SuiteError(
            f"{task.encoder.label} has vectors of {len(rows_N):,} images of {task.data.name}, the encoder before it "
            f"of {len(look.rows_N):,}: remove the images that cannot be decoded, or measure one encoder at a time"
        )


def _look(task: Task, look: Look) -> None:
    """Adds this encoder's neighbours and points to what is shown of the data set."""
    data, settings, label = task.data, task.settings, task.encoder.label
    rows = task.kept(np.arange(len(data)))
    vectors_ND, labels_N = task.of(rows)
    if not look.neighbours:
        usable_N = np.full(len(data), -1, dtype=np.int64)
        usable_N[rows] = labels_N
        look.asked_Q = pictures.queries(usable_N, data.domains_N, seed=settings.seed)
    look.neighbours[label] = pictures.nearest(look.asked_Q, vectors_ND, rows, settings.block_mb)
    some = projection.chosen(len(rows), seed=settings.seed)
    if settings.projection != "none" and len(some) >= projection.FEWEST:
        xy_N2 = projection.project(vectors_ND[some], settings.projection, settings.seed)
        domains_N = None if data.domains_N is None else data.domains_N[rows[some]]
        groups_N = pictures.groups(labels_N[some], data.class_names, domains_N)
        look.scatters[label] = pictures.scatter(xy_N2, groups_N, len(rows))


def _facts(data: ImageSet, path: str, failed: Mapping[str, str]) -> Data:
    labelled = data.labels_N[data.labels_N >= 0]
    without = {"without a class": int((data.labels_N < 0).sum())} if data.has_classes else {}
    left_out = {reason: n for reason, n in {**data.left_out, **without, "not decoded": len(failed)}.items() if n}
    return Data(
        data.name,
        data.kind,
        path,
        data.fingerprint,
        len(data),
        len(np.unique(labelled)),
        left_out,
        dict(failed),
        splits={split: len(rows) for split, rows in data.splits.items()},
        split_by=data.split_by,
    )


def _what(data: ImageSet) -> str:
    classes = len(np.unique(data.labels_N[data.labels_N >= 0]))
    said = f" of {classes:,} classes" if classes else ""
    said += f" with {len(data.captions):,} captions" if data.captions else ""
    return f"{len(data):,} images{said}" + "".join(f", {n:,} left out: {why}" for why, n in data.left_out.items())


def _said(embedded: Embedded) -> str:
    count = len(embedded.rows_N)
    lost = f", {len(embedded.failed):,} not decoded" if embedded.failed else ""
    return f"{count:,} vectors{lost}, " + (
        "made before" if embedded.cached else f"{count / max(embedded.seconds, 1e-9):,.0f} a second"
    )


def _line(*parts: str, seconds: float) -> None:
    *columns, last = parts
    log.info("".join(f"{column:<16}" for column in columns) + f"{last}  {seconds:.1f} s")
