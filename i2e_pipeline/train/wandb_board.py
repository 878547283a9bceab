"""Weights & Biases beside TensorBoard: the same scalars, for those who ask for it by train.wandb.

Writes  <train folder>/wandb.json   the run's id, under which a training that goes on is the same run there
        <train folder>/wandb/       what the library keeps; all there is with WANDB_MODE=offline
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError

FILE = "wandb.json"


class WandbError(I2EError, RuntimeError):
    """A run that cannot begin at Weights & Biases; the message says the way out."""


class Board:
    """One run of a project. Steps are a number of ours: the library drops what comes under a step that it has seen, and
    a training that goes on may do steps again."""

    def __init__(self, project: str, folder: Path, start: int, settings: Mapping[str, Any]) -> None:
        """Raises ModuleNotFoundError without the package, WandbError where it cannot begin."""
        import wandb

        known = _id(folder / FILE) if start else None
        name = known or uuid.uuid4().hex[:12]
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=name,
                dir=str(folder),
                config=dict(settings),
                resume="allow",
            )
        except wandb.errors.Error as error:
            raise WandbError(
                f"train.wandb={project}: {error}. `wandb login`, or WANDB_MODE=offline and `wandb sync` later, or "
                "leave train.wandb out"
            ) from error
        if known is None:
            files.write_json(str(folder / FILE), {"id": name})
        self._run.define_metric("*", step_metric="step")

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({**scalars, "step": step})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


def _id(path: Path) -> str | None:
    return str(json.loads(path.read_text(encoding="utf-8"))["id"]) if path.is_file() else None
