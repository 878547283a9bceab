"""`i2e run`: the stages, then precision and recall against a known truth, the report, and the index of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from i2e_pipeline.commands.purge import purge_noted
from i2e_pipeline.commands.training_index import keep_training_index
from i2e_pipeline.core import files
from i2e_pipeline.core.config import keep
from i2e_pipeline.engine.pipeline import Pipeline, StageState
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.tables import WHOLE
from i2e_pipeline.report import quality
from i2e_pipeline.report.page import write_page


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    run: Run
    states: Sequence[StageState]
    """How the stages stand that were asked for, in their order."""
    quality: Sequence[dict[str, Any]]
    """Precision and recall by stage and slice, where the input says what its images show; else empty."""

    @property
    def dataset(self) -> str:
        """Folder of the published dataset."""
        return self.run.tables.path("i2e")

    @property
    def report(self) -> str:
        """The page on it."""
        return self.run.tables.path("report.html")


def run(
    pipeline: Pipeline,
    wanted: Sequence[str] | None = None,
    redo: Sequence[str] = (),
    replace_changed: bool = False,
) -> Outcome:
    """Run the named stages (None: all), and measure and report what was published. The arguments are
    `Pipeline.run`'s."""
    with pipeline.exclusive():
        keep(pipeline.config, pipeline.config.output)
        made, states = pipeline.run(wanted, redo, replace_changed)
        finished = made.commits.get(pipeline.writer("i2e/entities"), {}).get(WHOLE)
        # A run that was killed after the last stage left the figures and the page of the dataset before.
        stamp = pipeline.tables.path("_reported.json")
        if finished and (_read(stamp) != finished.fingerprint or quality.lacks_labels(pipeline.tables)):
            quality.measure(made)
            write_page(pipeline)
            files.write_json(stamp, finished.fingerprint)
        if finished:
            purge_noted(pipeline)
        if finished and pipeline.config.publish.training_index:
            keep_training_index(pipeline)
        return Outcome(made, states, quality.read(pipeline.tables))


def _read(stamp: str) -> object:
    try:
        return files.read_json(stamp)
    except (FileNotFoundError, ValueError, RecursionError):
        return None
