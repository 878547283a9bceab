"""Report: one HTML page on a published dataset, for its makers and curators.

Reads    i2e/* · label and rejects of the units published · commit records · quality.json · judged.parquet · the input,
         where it is there
Writes   <output>/report.html: one file, nothing fetched from elsewhere, pictures inline; of many entities, the search's
         pages beside it (search.py)

What it shows is drawn by hash or chosen by rank, never picked by a person. The labels that are least likely to be right
are always shown, and those that are known to be wrong.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from i2e_pipeline.core import files
from i2e_pipeline.core.secrets import hide
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.images.thumbnails import Thumbnails
from i2e_pipeline.label.judged import BINS
from i2e_pipeline.pages import svg
from i2e_pipeline.pages.html import environment
from i2e_pipeline.report import charts, figures, mistakes, pictures, quality, search
from i2e_pipeline.report.figures import CLIP_RANGE, Dataset
from i2e_pipeline.report.pictures import Choice, Picture, Place

TOP_ENTITIES = 24
RARE_ENTITIES = 24
TABLE_ENTITIES = 100
UNDEPICTED = 20
PER_ENTITY = 5
AT_RANDOM = 36
LEAST_SURE = 24
SUREST_MISTAKES = 24
CONFUSIONS = 20
EXAMPLES = 4
FEW = 30
"""Pairs or labels under which a share says little: such slices and types are folded away."""
COSTS_FROM = 100_000
"""Pairs of a run from which on what it took says what another takes."""


def write_page(pipeline: Pipeline) -> str:
    """Write the report of the published dataset below config.output; returns its path.

    Raises NotPublished where there is no whole dataset.
    """
    output = pipeline.config.output
    path = files.join(output, "report.html")
    found = search.read(Dataset.open(pipeline))
    html = page(pipeline, found).encode()
    search.write(output, found)
    files.write_bytes(path, html)
    search.sweep(output, found)
    return path


def page(pipeline: Pipeline, found: search.Search | None = None) -> str:
    """The page as HTML. `found`: the search over its entities, if it is known already."""
    config = pipeline.config
    dataset = Dataset.open(pipeline)
    found = search.read(dataset) if found is None else found
    judged = quality.read_judged(dataset.tables)
    surest, confused = mistakes.surest(judged, SUREST_MISTAKES), mistakes.confused(judged, CONFUSIONS)
    entities = figures.entities(dataset, max(TOP_ENTITIES, TABLE_ENTITIES), RARE_ENTITIES, UNDEPICTED)
    top = entities.most[:TOP_ENTITIES]
    rare = [e for e in entities.fewest if e not in top]
    ends = [e["entity_id"] for e in (*top, *rare)]
    wrong = [m.image_id for m in surest]
    choice = pictures.choose(dataset, ends, PER_ENTITY, AT_RANDOM, LEAST_SURE, wrong)
    thumbnail = Thumbnails(config.score.max_pixels)
    shown = pictures.read(dataset, choice.places(), thumbnail, first=dict.fromkeys(choice.named.values()))
    examples = pictures.rejected_examples(dataset, EXAMPLES, thumbnail)
    named = {label.entity_id for picture in shown.values() for label in picture.labels}
    named |= {n for rows in examples.values() for row in rows for n in pictures.entity_ids_in(row.detail)}
    verdicts = mistakes.verdicts(judged, {picture.image_id for picture in shown.values()})
    named |= {v.truth for v in verdicts.values() if v.truth is not None}
    named |= {i for c in confused for i in (c.said, c.verdict.truth) if i is not None}
    table = entities.most[:TABLE_ENTITIES]
    named |= {e["confusions"][0]["entity_id"] for e in table if e["confusions"]}
    scores = figures.scores(dataset)
    measured = quality.read(dataset.tables)
    slices = {f["slice"]: f for f in measured}
    rejections = _rejections(dataset, examples)
    pairs = _pairs(dataset.manifest)
    costs = figures.costs(dataset) if pairs >= COSTS_FROM else []
    return (
        environment(
            "i2e_pipeline.report",
            number=lambda value: f"{value:,}",
            share=_share,
            score=lambda v: "–" if v is None else f"{v:.3f}",
            between=_between,
            linked=_linked,
            compact=_compact,
        )
        .get_template("report.html")
        .render(
            manifest=dataset.manifest,
            find=found,
            find_key=search.MAX_KEY,
            find_shown=search.SHOWN,
            headline=_headline(dataset.manifest, entities, measured),
            names=figures.names_of(dataset, named),
            gallery=_pictures(choice.at_random, shown),
            unsure=_pictures(choice.least_sure, shown),
            seen=choice.seen,
            verdicts=verdicts,
            judged=_judged(judged, measured),
            mistakes=[(m, shown[choice.named[m.image_id]]) for m in surest if m.image_id in choice.named],
            confused=confused,
            funnel=Markup(charts.funnel([*_steps(dataset)])),
            reasons=Markup(
                charts.bars(
                    [charts.Bar(r.reason, r.rows, r.rows_in, r.rows_are) for r in rejections if r.of_pairs],
                    "rejects by reason",
                    svg.ORANGE,
                )
            ),
            rejections=rejections,
            few=FEW,
            slices=len(slices),
            small_slices=sum(map(_is_small, slices.values())),
            quality_charts=_quality_charts(measured),
            measured=measured,
            quality_sentences=quality.sentences(measured),
            reliability=[("probability", _reliability(measured)), ("kind of entity", _reliability_by_type(measured))],
            scores=scores,
            probability=Markup(
                _histogram(
                    scores.probability,
                    (0.0, 1.0),
                    "probability that the best candidate is right",
                    _threshold(dataset.manifest),
                )
            ),
            clip=Markup(_histogram(scores.clip_score, CLIP_RANGE, "CLIP score of the best candidate")),
            entities=entities,
            rank=Markup(charts.rank_frequency(entities.images.tolist())),
            buckets=Markup(charts.buckets(dataset.small("i2e/statistics/buckets"))),
            top=_with_pictures(top, choice, shown),
            rare=_with_pictures(rare, choice, shown),
            table=table,
            detailed=any(e["surfaces"] is not None for e in table),
            pairs=pairs,
            costs_from=COSTS_FROM,
            costs=costs,
            core_hours=sum(c.core_hours or 0.0 for c in costs),
            cores=figures.cores_used(config),
            typical_unit=figures.typical_unit(dataset),
            does={s.name: s.does for s in dataset.stages},
            output=hide(config.output),
            settings=_settings(config.output),
        )
    )


def _settings(output: str) -> str:
    """The file that a command over this dataset names as --config: what a run keeps in its output. Of a store's, the
    reader's own."""
    return shlex.quote(files.join(output, "config.yaml")) if files.is_local(output) else "mine.yaml"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _between(share: float, of: int) -> str:
    """The 95 % interval of a share, as words; "" where it is not known of how many."""
    ends = charts.interval(share, of)
    return f"{ends[0]:.3f}–{ends[1]:.3f}" if ends else ""


def _pairs(manifest: Mapping[str, Any]) -> int:
    """Of the input."""
    return int(manifest["funnel"][0]["rows_in"]) if manifest["funnel"] else 0


def _compact(value: float) -> str:
    """Two digits, as an estimate deserves: 0.42, 12, 1,200."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _linked(detail: str, names: Mapping[int, str]) -> Markup:
    """A reject's detail with the names of its entities and links to them."""
    text, html = detail, Markup("")
    for entity_id in pictures.entity_ids_in(detail):
        before, _, text = text.partition(f"Q{entity_id}")
        name = names.get(entity_id)
        html += before
        html += Markup('<a href="https://www.wikidata.org/wiki/Q{0}">{1}</a>').format(
            entity_id, f"{name} (Q{entity_id})" if name else f"Q{entity_id}"
        )
    return html + text


@dataclass(frozen=True)
class Headline:
    value: str
    what: str
    detail: str = ""


def _headline(
    manifest: Mapping[str, Any], entities: figures.Entities, measured: Sequence[Mapping[str, Any]]
) -> list[Headline]:
    pairs = _pairs(manifest)
    found = [
        Headline(f"{manifest['images']:,}", "images", f"{_share(manifest['images'], pairs)} of {pairs:,} pairs"),
        Headline(f"{manifest['entities']:,}", "entities", f"of {entities.proposed:,} that the texts propose"),
        Headline(
            f"{manifest['labels']:,}",
            "labels",
            f"{manifest['labels'] / manifest['images']:.2f} an image" if manifest["images"] else "",
        ),
    ]
    for figure in measured:
        if (figure["stage"], figure["slice"]) == ("published", "all") and figure["precision"] is not None:
            details = [f"{figure['pairs']:,} pairs of known truth"]
            if ends := charts.interval(figure["precision"], figure.get("precision_of", 0)):
                details.insert(0, f"95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f} %")
            if figure["recall"] is not None:
                details.append(f"recall {100 * figure['recall']:.1f} %")
            found.append(Headline(f"{100 * figure['precision']:.1f} %", "of the labels are right", ", ".join(details)))
    return found


def _steps(dataset: Dataset) -> Iterable[charts.Step]:
    words = {stage.name: stage.does for stage in dataset.stages}
    for s in dataset.manifest["funnel"]:
        does = words.get(s["stage"], "")
        yield charts.Step(s["stage"], does, s["rows_are"], s["rows_in"], s["rows_out"], s["rejected"])


@dataclass(frozen=True)
class Rejection:
    stage: str
    reason: str
    sentence: str
    rows: int
    rows_in: int
    rows_are: str
    examples: Sequence[pictures.Example]
    of_pairs: bool
    """Whether the rows were lost between pairs and images, and not while the knowledge base was made."""


def _rejections(dataset: Dataset, examples: Mapping[tuple[str, str], Sequence[pictures.Example]]) -> list[Rejection]:
    """In the order of the stages, the most frequent first in each."""
    manifest, explain = dataset.manifest, dataset.tables.catalogue.explain
    return [
        Rejection(
            s["stage"],
            reason,
            explain(s["stage"], reason),
            rows,
            s["rows_in"],
            s["rows_are"],
            examples.get((s["stage"], reason), ()),
            of_pairs=s in manifest["funnel"],
        )
        for s in (*manifest["funnel"], manifest["knowledge_base"])
        for reason, rows in sorted(s["rejected"].items(), key=lambda item: (-item[1], item[0]))
    ]


@dataclass(frozen=True)
class QualityChart:
    """Precision and recall of a stage by slice."""

    stage: str
    counted: str
    chart: Markup
    of_few: Markup | None
    """The same of slices of few pairs, on a scale of their own."""


def _is_small(figure: Mapping[str, Any]) -> bool:
    return figure["slice"] != "all" and figure["pairs"] < FEW


def _quality_charts(measured: Sequence[Mapping[str, Any]]) -> list[QualityChart]:
    """A chart for each stage in the order of the file, with a line for each slice; all on one scale."""
    by_stage: dict[str, tuple[list[charts.Figure], list[charts.Figure]]] = {}
    counted: dict[str, str] = {}
    for f in measured:
        of = (f.get("precision_of", 0), f.get("recall_of", 0))
        line = charts.Figure(f["slice"], f["pairs"], f["precision"], f["recall"], *of)
        by_stage.setdefault(f["stage"], ([], []))[_is_small(f)].append(line)
        counted.setdefault(f["stage"], f["counted"])
    floor, of_few = (charts.lowest_tenth([line for both in by_stage.values() for line in both[n]]) for n in (0, 1))
    return [
        QualityChart(
            stage,
            counted[stage],
            Markup(charts.precision_recall(large, floor)),
            Markup(charts.precision_recall(small, of_few)) if small else None,
        )
        for stage, (large, small) in by_stage.items()
    ]


@dataclass(frozen=True)
class Judged:
    """Published labels of known truth."""

    rows: int
    """in the file; of very many, a draw"""
    of: int
    decided: int
    wrong: int

    @property
    def between(self) -> str:
        """The 95 % interval of the share that is wrong."""
        low, high = charts.interval(self.wrong / self.decided, self.decided) or (0.0, 1.0)
        return f"{100 * low:.1f} to {100 * high:.1f} %"


def _judged(judged: pa.Table, measured: Sequence[Mapping[str, Any]]) -> Judged:
    right = judged.column("right")
    decided, wrong = len(right) - right.null_count, mistakes.wrong(judged).num_rows
    all_pairs = [f for f in measured if (f["stage"], f["slice"]) == ("published", "all")]
    of = sum(f.get(verdict, 0) for f in all_pairs for verdict in ("right", "wrong", "undecided"))
    return Judged(judged.num_rows, max(of, judged.num_rows), decided, wrong)


@dataclass(frozen=True)
class Reliability:
    """How many labels of a part were expected to be right, and how many are."""

    part: str
    labels: int
    expected: float
    right: float
    error: float | None = None
    """of calibration"""

    @property
    def chart(self) -> Markup:
        return Markup(charts.expected_and_found(self.expected, self.right, self.labels))


def _reliability(measured: Sequence[Mapping[str, Any]]) -> list[Reliability]:
    """By label probability; bins that hold no label are left out."""
    bins = [b for f in measured if f["slice"] == "all" for b in f.get("reliability", ()) if b["labels"]]
    return [
        Reliability(
            f"{b['bin'] / BINS:.1f}–{(b['bin'] + 1) / BINS:.1f}",
            b["labels"],
            b["expected"] / b["labels"],
            b["right"] / b["labels"],
        )
        for b in bins
    ]


def _reliability_by_type(measured: Sequence[Mapping[str, Any]]) -> list[Reliability]:
    """By the entity's coarse type."""
    rows = [r for f in measured if f["slice"] == "all" for r in f.get("reliability_by_type", ())]
    return [
        Reliability(
            r["coarse_type"] or "of no known type",
            r["labels"],
            r["expected"] / r["labels"],
            r["right"] / r["labels"],
            r["calibration_error"],
        )
        for r in rows
    ]


def _threshold(manifest: Mapping[str, Any]) -> float | None:
    threshold = manifest["labels_chosen_by"].get("bar")
    return None if threshold is None else float(threshold)


def _histogram(counts: tuple[Any, Any], bounds: tuple[float, float], what: str, threshold: float | None = None) -> str:
    h = figures.filled(counts, *bounds)
    return charts.histogram(h.kept, h.rejected, h.low, h.high, what, threshold)


def _pictures(places: Sequence[Place], shown: Mapping[Place, Picture]) -> list[Picture]:
    return [shown[place] for place in places]


def _with_pictures(
    rows: Sequence[Mapping[str, Any]], choice: Choice, shown: Mapping[Place, Picture]
) -> list[tuple[Mapping[str, Any], list[Picture]]]:
    return [(row, _pictures(choice.of_entity.get(row["entity_id"], ()), shown)) for row in rows]
