"""What a published dataset says of itself: manifest.json for programs, README.md (a dataset card) for people."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from i2e_pipeline.core.config import Config, digest
from i2e_pipeline.core.schemas import IMAGES
from i2e_pipeline.core.version import __version__
from i2e_pipeline.engine.stage import Run, Stage
from i2e_pipeline.engine.tables import Commit

FORMAT_VERSION = 1
_SOFTWARE = ("pyspark", "pyarrow", "torch", "open_clip_torch", "timm", "spacy", "numpy", "pillow")
_SOFTWARE_IF_THERE = ("pillow-heif", "pillow-jxl-plugin")
"""What decides, where it is installed, which images are read."""


def funnel(run: Run) -> list[dict[str, Any]]:
    """What each stage was given, passed on and rejected, over all units. In the order of the stages; the first one
    reads one row per input row."""
    return [step(stage, run.committed(stage.name)) for stage in run.stages if stage.in_funnel]


def step(stage: Stage, commits: Sequence[Commit]) -> dict[str, Any]:
    """One stage of the funnel: its commits' counts, added up."""
    rejected: dict[str, int] = {}
    for commit in commits:
        for reason, rows in commit.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + rows
    return {
        "stage": stage.name,
        "rows_are": stage.rows_are,
        "rows_in": sum(c.rows_in for c in commits),
        "rows_out": sum(c.rows_out for c in commits),
        "rejected": dict(sorted(rejected.items())),
    }


def funnel_rows(steps: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """The funnel as a table: a row per stage and reason."""
    rows = []
    for position, stage in enumerate(steps):
        for reason, rejected in list(stage["rejected"].items()) or [(None, 0)]:
            rows.append(
                {
                    "position": position,
                    "stage": stage["stage"],
                    "rows_are": stage["rows_are"],
                    "rows_in": stage["rows_in"],
                    "rows_out": stage["rows_out"],
                    "reason": reason,
                    "rejected": rejected,
                }
            )
    return pa.RecordBatch.from_pylist(rows)


def manifest(run: Run, steps: list[dict[str, Any]], classes: int, labels: int) -> dict[str, Any]:
    """Everything that made the dataset what it is. Holds no time and no path of a machine, so that equal datasets have
    equal manifests, but for what has changed since an older knowledge base.

    steps     the funnel, as `funnel` gives it
    classes   entities that have a class
    labels    of all published images
    """
    published = run.commits_of("i2e/images")
    last = {run.writer(table).name for table in ("i2e/images", "i2e/entities")}
    wider = [c.facts["wider"] for c in run.commits_of("selection") if "wider" in c.facts]
    return {
        "format_version": FORMAT_VERSION,
        "images": sum(c.rows("i2e/images") for c in published),
        "labels": labels,
        **({"wider_labels": sum(wider)} if wider else {}),
        "entities": classes,
        "units": {c.unit: c.rows("i2e/images") for c in published},
        "columns": run.tables.catalogue.schema("i2e/images").names,
        "storage": run.config.storage.format,
        "model": _settings(run, "scores"),
        "labels_chosen_by": _settings(run, "labels"),
        "thresholds": thresholds(run.config),
        "settings": {s.name: run.settings_of(s) for s in run.stages if s.in_funnel},
        "fingerprints": {s: f for s, f in sorted(run.fingerprints.items()) if s not in last},
        "dataset": digest({c.unit: c.fingerprint for c in published}),
        "knowledge_base": _knowledge_base(run),
        "funnel": steps,
        "software": {
            "i2e_pipeline": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _SOFTWARE},
            **{d.name: d.version for name in _SOFTWARE_IF_THERE for d in importlib.metadata.distributions(name=name)},
        },
    }


def _knowledge_base(run: Run) -> dict[str, Any]:
    """Its step, and `changes`, how many entities are not what they were, where it took the place of an older one."""
    commits = run.commits_of("kb/entities")
    changes = [c.facts["changes"] for c in commits if "changes" in c.facts]
    return step(run.writer("kb/entities"), commits) | ({"changes": changes[0]} if changes else {})


def _settings(run: Run, table: str) -> dict[str, Any]:
    """The settings that a table was made with."""
    made = run.commits_of(table)
    return dict(made[0].components["settings"]) if made else {}


def thresholds(config: Config) -> dict[str, Any]:
    """The settings that the manifest shows. The path of the calibration is not among them, its content is in
    `labels_chosen_by`."""
    return {
        "link": config.link.fingerprint(),
        "build": {
            "bar": config.label.threshold,
            "max_labels_per_image": config.label.max_labels_per_image,
            **config.select.model_dump(mode="json"),
        },
    }


def card(facts: Mapping[str, Any], top: Sequence[Mapping[str, Any]]) -> str:
    """The dataset card: front matter as Hugging Face reads it, then what is in it and how it was made."""
    images, entities, labels = facts["images"], facts["entities"], facts["labels"]
    kept = [name for name in facts["columns"] if name not in IMAGES.names]
    wider = f" ({facts['wider_labels']:,} of them wider than what the text names)" if "wider_labels" in facts else ""
    lines = [
        "---",
        "task_categories: [image-classification, image-feature-extraction]",
        "configs:",
        "- config_name: default",
        "  data_files: images/*/*.parquet",
        "- config_name: entities",
        "  data_files: entities/*/*.parquet",
        "---",
        "",
        "# I2E: images labelled with Wikidata entities",
        "",
        f"{images:,} images, {labels:,} labels{wider}, {entities:,} entities.",
        "",
        "| table | key | holds |",
        "|---|---|---|",
        "| images | image_id | `image` (stored bytes, unchanged), url, alt_text, width, height, `labels` "
        f"(entity_id, class_index, score){''.join(f', {name}' for name in kept)} |",
        "| entities | class_index | entity_id (Wikidata's number), name, description, aliases, counts |",
        "| statistics | | per entity (also those that no image got), buckets of images per entity, funnel |",
        "",
        "A label's score is the probability that it is right, from what text and image say. `manifest.json` "
        "holds the model, thresholds, fingerprints and software that made this dataset.",
        "",
        "## What was kept",
        "",
        "| stage | rows are | in | out | rejected |",
        "|---|---|---:|---:|---|",
        *(
            f"| {s['stage']} | {s['rows_are']} | {s['rows_in']:,} | {s['rows_out']:,} | "
            + (", ".join(f"{reason} {n:,}" for reason, n in s["rejected"].items()) or "none")
            + " |"
            for s in facts["funnel"]
        ),
        "",
        "## Entities with the most images",
        "",
        "| entity | name | description | images | mean CLIP score |",
        "|---|---|---|---:|---:|",
        *(
            f"| [Q{e['entity_id']}](https://www.wikidata.org/wiki/Q{e['entity_id']}) | {_cell(e['name'])} | "
            f"{_cell(e['description'])} | {e['images']:,} | {e['mean_clip_score_labelled']:.3f} |"
            for e in top
        ),
        "",
        "## Rights",
        "",
        "Entity names and descriptions are Wikidata's (CC0). Images and alt-text belong to their owners; `url` says "
        "where each came from.",
        "",
    ]
    return "\n".join(lines)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")
