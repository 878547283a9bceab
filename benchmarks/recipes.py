"""What each recipe learns from the same images: the paper's comparison, at matched data.

    python benchmarks/recipes.py [--config FILE] [--set section.key=value …] [--recipes …] [--seeds 0,1,2] [--at-once 2]

Without --config: the embedded sample's dataset (`make i2e` makes it). Each (recipe, seed) is a training in a process of
its own with one thread. Number of steps, batch size and optimizer are the same for all. Recipes of one seed begin with
the same towers and see the same images in the same order. Figures on what is held out are printed, as `i2e train`
measures them:

    mAP         retrieval by the GPR protocol among images of entities that no recipe was trained on
    knn         20 nearest training images, for held-out images of entities that were trained on
    zero_shot   the nearest of the held-out images' entity texts; none for recipes that train no text tower

as mean ± half the range over seeds, the untrained towers first, and for each recipe the difference to `clip_alt_text`,
the control that sees no label, by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from i2e_pipeline.core.config import RECIPES

CONTROL = "clip_alt_text"
FIGURES = ("mAP", "knn", "zero_shot")
_MAIN = "import sys; from i2e_pipeline.cli import main; main(sys.argv[1:])"

Found = dict[tuple[str, int], dict[str, float]]
"""(recipe, seed) → figures; recipe "untrained" for the initial weights."""


def train(recipe: str, seed: int, options: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Figures before and after one training. A training that is there already goes on, or is read if it is done."""
    folder = Path(options.folder) / f"{recipe}-{seed}"
    overrides = [
        *options.set, f"train.recipe={recipe}", f"train.seed={seed}", f"train.folder={folder}", "train.threads=1",
        "train.data.workers=1", "train.checkpoint_every=100000",
    ]  # fmt: skip
    asked, outcome = folder / "asked.json", folder / "outcome.json"
    if asked.is_file() and json.loads(asked.read_text()) != [options.config, *overrides]:
        raise SystemExit(f"{folder} was trained with other settings ({asked}): remove it, or take another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    asked.write_text(json.dumps([options.config, *overrides]))
    command = [sys.executable, "-c", _MAIN, "train", "--set", *overrides]
    if options.config:
        command += ["--config", options.config]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "RANK": "0"}
    )
    if done.returncode:
        raise SystemExit(f"{recipe}, seed {seed}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    found = json.loads(outcome.read_text())
    print(f"{recipe:<18} seed {seed}  " + told(found["after"]), file=sys.stderr, flush=True)
    return found["before"], found["after"]


def told(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {figures[name]:.3f}" for name in FIGURES if name in figures)


def mean_and_range(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}" if values else ""


def table(found: Found) -> str:
    recipes = list(dict.fromkeys(recipe for recipe, _ in found))
    seeds = sorted({seed for _, seed in found})
    against = [recipe for recipe in recipes if recipe not in (CONTROL, "untrained")] if CONTROL in recipes else []
    lines = ["| recipe | " + " | ".join(FIGURES) + f" | mAP − {CONTROL}, by seed |", "|---|" + "---:|" * 4]
    for recipe in recipes:
        measured = [found[recipe, seed] for seed in seeds]
        cells = [mean_and_range([m[name] for m in measured if name in m]) for name in FIGURES]
        compared = seeds if recipe in against else []
        gains = [found[recipe, seed]["mAP"] - found[CONTROL, seed]["mAP"] for seed in compared]
        lines.append(f"| {recipe} | " + " | ".join([*cells, " ".join(f"{g:+.3f}" for g in gains)]) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> Found:
    parser = argparse.ArgumentParser(description="Held-out figures of every recipe, over seeds.")
    parser.add_argument("--config", help="as for i2e train; without it, the embedded sample")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side, a core each")
    parser.add_argument("--folder", default="out/benchmarks/recipes", help="what is there already is not trained again")
    options = parser.parse_args(arguments)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    wanted = [(recipe, seed) for seed in seeds for recipe in options.recipes]
    found: Found = {}
    with ThreadPoolExecutor(options.at_once) as pool:
        for (recipe, seed), (before, after) in zip(
            wanted, pool.map(lambda job: train(*job, options), wanted), strict=True
        ):
            # Recipes that train no text tower measure no zero-shot of the initial weights either.
            found["untrained", seed] = {**found.get(("untrained", seed), {}), **before}
            found[recipe, seed] = after
    print(table(dict(sorted(found.items(), key=lambda item: ("untrained", *RECIPES).index(item[0][0])))))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
