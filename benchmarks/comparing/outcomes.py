"""Trainings as `i2e train` carries them out, and what their outcome.json says."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FIGURES = ("mAP", "knn", "zero_shot")
MAIN = "import sys; from i2e_pipeline.cli import main; main(sys.argv[1:])"


def train(
    folder: Path, recipe: str, seed: int, config: str | None, settings: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures before and after one training, in a process with one thread. A training that is there already goes on, or
    is read if it is done. Raises SystemExit where the folder holds one with other settings, and where it fails.

    config     None: the embedded sample's
    settings   section.key=value, over it
    """
    overrides = [
        *settings, f"train.recipe={recipe}", f"train.seed={seed}", f"train.folder={folder}", "train.threads=1",
        "train.data.workers=1", "train.checkpoint_every=100000",
    ]  # fmt: skip
    asked, outcome = folder / "asked.json", folder / "outcome.json"
    if asked.is_file() and json.loads(asked.read_text()) != [config, *overrides]:
        raise SystemExit(f"{folder} was trained with other settings ({asked}): remove it, or take another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    asked.write_text(json.dumps([config, *overrides]))
    command = [sys.executable, "-c", MAIN, "train", "--set", *overrides, *(["--config", config] if config else [])]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "RANK": "0"}
    )
    if done.returncode:
        raise SystemExit(f"{folder}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    found = json.loads(outcome.read_text())
    print(f"{folder.name:<18}  " + told(found["after"]), file=sys.stderr, flush=True)
    return found["before"], found["after"]


def told(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {figures[name]:.3f}" for name in FIGURES if name in figures)


def mean_and_range(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}" if values else ""
