"""Report: one HTML page on a published dataset, for its makers and curators.

Reads    i2e/* · label and rejects of the units published · commit records · quality.json · the input, where it is there
Writes   <output>/report.html: one file, nothing fetched from elsewhere, pictures inline

What it shows is drawn by hash or chosen by rank, never picked by a person. The labels that are least likely to be right
are always shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from i2e_pipeline.core import files
from i2e_pipeline.core.secrets import hide
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.images.thumbnails import Thumbnails
from i2e_pipeline.label.judged import BINS
from i2e_pipeline.pages import svg
from i2e_pipeline.pages.html import environment
from i2e_pipeline.report import charts, figures, pictures, quality
from i2e_pipeline.report.figures import CLIP_RANGE, Dataset
from i2e_pipeline.report.pictures import Choice, Picture, Place

TOP_ENTITIES = 24
RARE_ENTITIES = 24
TABLE_ENTITIES = 100
UNDEPICTED = 20
PER_ENTITY = 5
AT_RANDOM = 36
LEAST_SURE = 24
EXAMPLES = 4


def write_page(pipeline: Pipeline) -> str:
    """Write the report of the published dataset below config.output; returns its path.

    Raises NotPublished where there is no whole dataset.
    """
    path = files.join(pipeline.config.output, "report.html")
    files.write_bytes(path, page(pipeline).encode())
    return path


def page(pipeline: Pipeline) -> str:
    """The page as HTML."""
    config = pipeline.config
    dataset = Dataset.open(pipeline)
    entities = figures.entities(dataset, max(TOP_ENTITIES, TABLE_ENTITIES), RARE_ENTITIES, UNDEPICTED)
    top = entities.most[:TOP_ENTITIES]
    rare = [e for e in entities.fewest if e not in top]
    ends = [e["entity_id"] for e in (*top, *rare)]
    choice = pictures.choose(dataset, ends, PER_ENTITY, AT_RANDOM, LEAST_SURE)
    thumbnail = Thumbnails(config.score.max_pixels)
    shown = pictures.read(dataset, choice.places(), thumbnail)
    examples = pictures.rejected_examples(dataset, EXAMPLES, thumbnail)
    named = {label.entity_id for picture in shown.values() for label in picture.labels}
    named |= {n for rows in examples.values() for row in rows for n in pictures.entity_ids_in(row.detail)}
    scores = figures.scores(dataset)
    measured = quality.read(dataset.tables)
    rejections = _rejections(dataset, examples)
    costs = figures.costs(dataset)
    return (
        environment(
            "i2e_pipeline.report",
            number=lambda value: f"{value:,}",
            share=_share,
            score=lambda v: "–" if v is None else f"{v:.3f}",
            linked=_linked,
            compact=_compact,
        )
        .get_template("report.html")
        .render(
            manifest=dataset.manifest,
            headline=_headline(dataset.manifest, entities, measured),
            names=figures.names_of(dataset, named),
            gallery=_pictures(choice.at_random, shown),
            unsure=_pictures(choice.least_sure, shown),
            seen=choice.seen,
            funnel=Markup(charts.funnel([*_steps(dataset)])),
            reasons=Markup(
                charts.bars(
                    [charts.Bar(r.reason, r.rows, f"of {r.rows_in:,} {r.rows_are}") for r in rejections if r.of_pairs],
                    "rejects by reason",
                    svg.ORANGE,
                )
            ),
            rejections=rejections,
            slices={f["slice"]: f["pairs"] for f in measured},
            quality_charts=[(stage, what, Markup(chart)) for stage, what, chart in _quality_charts(measured)],
            quality_sentences=quality.sentences(measured),
            reliability=_reliability(measured),
            reliability_by_type=_reliability_by_type(measured),
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
            table=entities.most[:TABLE_ENTITIES],
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
    pairs = manifest["funnel"][0]["rows_in"] if manifest["funnel"] else 0
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
            recall = "" if figure["recall"] is None else f", recall {100 * figure['recall']:.1f} %"
            found.append(
                Headline(
                    f"{100 * figure['precision']:.1f} %",
                    "of the labels are right",
                    f"{figure['pairs']:,} pairs of known truth{recall}",
                )
            )
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


def _quality_charts(measured: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(stage, what is counted, chart with a line for each slice) in the order of the file; all on one scale."""
    by_stage: dict[str, list[charts.Figure]] = {}
    counted: dict[str, str] = {}
    for f in measured:
        line = charts.Figure(f["slice"], f["precision"], f["recall"])
        by_stage.setdefault(f["stage"], []).append(line)
        counted.setdefault(f["stage"], f["counted"])
    floor = charts.lowest_tenth([line for lines in by_stage.values() for line in lines])
    return [(stage, counted[stage], charts.precision_recall(lines, floor)) for stage, lines in by_stage.items()]


def _reliability(measured: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Bins of label probability that hold labels: from, to, labels, and shares expected and found."""
    bins = [b for f in measured if f["slice"] == "all" for b in f.get("reliability", ()) if b["labels"]]
    return [
        {
            "from": b["bin"] / BINS,
            "to": (b["bin"] + 1) / BINS,
            "labels": b["labels"],
            "expected": b["expected"] / b["labels"],
            "right": b["right"] / b["labels"],
        }
        for b in bins
    ]


def _reliability_by_type(measured: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Coarse types: labels, and shares expected and found."""
    rows = [r for f in measured if f["slice"] == "all" for r in f.get("reliability_by_type", ())]
    return [
        {
            "type": r["coarse_type"] or "of no known type",
            "labels": r["labels"],
            "expected": r["expected"] / r["labels"],
            "right": r["right"] / r["labels"],
            "error": r["calibration_error"],
        }
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
