"""What a published dataset says of itself to programs: manifest.json."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from i2e_pipeline.core.config import Config, digest
from i2e_pipeline.core.version import __version__
from i2e_pipeline.dataset.published import FORMAT_VERSION
from i2e_pipeline.engine.stage import Run, Stage
from i2e_pipeline.engine.tables import Commit
from i2e_pipeline.publish.long_tail import long_tail
from i2e_pipeline.publish.purging import PURGED

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


def manifest(run: Run, steps: list[dict[str, Any]], entities_by_images: Mapping[int, int]) -> dict[str, Any]:
    """Everything that made the dataset what it is. Holds no time and no path of a machine, so that equal datasets have
    equal manifests, but for what has changed since an older knowledge base.

    steps                the funnel, as `funnel` gives it
    entities_by_images   number of images to the number of classes that have as many
    """
    published = run.commits_of("i2e/images")
    last = {run.writer(table).name for table in ("i2e/images", "i2e/entities")}
    wider = [c.facts["wider"] for c in run.commits_of("selection") if "wider" in c.facts]
    return {
        "format_version": FORMAT_VERSION,
        "images": sum(c.rows("i2e/images") for c in published),
        "labels": sum(n * count for n, count in entities_by_images.items()),
        **({"wider_labels": sum(wider)} if wider else {}),
        "entities": sum(entities_by_images.values()),
        "long_tail": long_tail(entities_by_images),
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
        **told(run),
        **purged(run),
        "software": {
            "i2e_pipeline": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _SOFTWARE},
            **{d.name: d.version for name in _SOFTWARE_IF_THERE for d in importlib.metadata.distributions(name=name)},
        },
    }


def told(run: Run) -> dict[str, Any]:
    """`told`: of each stage that has more to tell than rows, its numbers and its settings."""
    found = {}
    for stage in run.stages:
        if counts := stage.told(run.committed(stage.name)):
            found[stage.name] = {"counts": counts, "settings": run.settings_of(stage)}
    return {"told": found} if found else {}


def purged(run: Run) -> dict[str, Any]:
    """`purged`: by reason the pairs of which the run's own tables hold nothing any more, where there are any."""
    counts: Counter[str] = Counter()
    for commit in run.commits_of("pairs"):
        counts.update(commit.facts.get(PURGED, {}))
    return {PURGED: dict(sorted(counts.items()))} if counts else {}


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
            **config.select.fingerprint(leave_out=("exclude",)),
        },
    }
