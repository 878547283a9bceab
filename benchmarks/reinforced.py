"""What a training gains from reinforced tables: reinforced against plain, at equal steps.

    python benchmarks/reinforced.py [--dataset FOLDER] [--teacher MODEL …] [--config FILE] [--set section.key=value …]
                                    [--arms 'affinity=0.7' 'affinity=0.7 vectors=1'] [--seeds 0,1,2]

Without arguments: the embedded sample's dataset (`make i2e` makes it), its scorer as teacher, and trainings as `i2e
train` does them on the sample. The tables are made first where they are not there (`i2e reinforce`). Each (arm, seed)
is a training in a process of its own; what was trained before is read and not trained again, so that the same command
goes on. Trainings of one seed begin with the same towers and see the same images in the same order; the plain one draws
its augmentations anew, the others draw one of those that are stored.

Figures are those of `i2e train` on what is held out (mAP, knn, zero_shot): mean ± half the range over seeds, and for
each arm the mean of the differences to the plain training of the same seed with its 95 % interval (Student's t over
seeds; with three of them it is wide: 4.3 standard errors).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from comparing.outcomes import FIGURES, mean_and_range, train

from i2e_pipeline.commands.reinforcing import Wanted, reinforce
from i2e_pipeline.core.config import DataConfig, TextConfig
from i2e_pipeline.core.packaged import folder
from i2e_pipeline.train.reinforcing import Models, TeacherConfig

PLAIN = "plain"
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t of 97.5 % by the number of seeds."""

Found = dict[str, dict[int, dict[str, float]]]
"""Figures by arm and seed."""


def difference(arm: dict[int, dict[str, float]], plain: dict[int, dict[str, float]], figure: str) -> str:
    """Mean and 95 % interval over seeds of what an arm has more of a figure; of one seed no interval."""
    gains = [arm[seed][figure] - plain[seed][figure] for seed in sorted(arm) if figure in arm[seed]]
    if not gains:
        return ""
    mean = statistics.mean(gains)
    if len(gains) < 2:
        return f"{mean:+.3f}"
    half = _T[len(gains)] * statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def table(found: Found) -> str:
    lines = ["| training | " + " | ".join(f"{n} | difference" for n in FIGURES) + " |", "|---|" + "---:|" * 6]
    for arm, by_seed in found.items():
        cells = []
        for figure in FIGURES:
            cells.append(mean_and_range([m[figure] for m in by_seed.values() if figure in m]))
            compared = arm not in ("untrained", PLAIN)
            cells.append(difference(by_seed, found[PLAIN], figure) if compared else "")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> Found:
    parser = argparse.ArgumentParser(description="Reinforced against plain trainings, over seeds.")
    parser.add_argument("--dataset", default="out/sample/i2e")
    parser.add_argument("--teacher", nargs="+", default=[f"local-dir:{folder('i2e_pipeline')}/sample/models/scorer"])
    parser.add_argument("--augmentations", type=int, default=5)
    parser.add_argument("--config", help="as for i2e train; without it, the embedded sample")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value")
    parser.add_argument("--recipe", default="multi_task")
    parser.add_argument("--arms", nargs="+", default=["affinity=0.7"], metavar="key=value …", help="of train.reinforce")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side, a core each")
    parser.add_argument("--folder", default="out/benchmarks/reinforced", help="what is there is not trained again")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    if not 2 <= len(options.seeds.split(",")) <= max(_T):
        parser.error(f"--seeds: two to {max(_T)} are compared")
    teachers = tuple(TeacherConfig(model=name) for name in options.teacher)
    tables = f"{options.folder}/tables"
    wanted = Wanted(Models(teachers, threads=1), options.augmentations, DataConfig(), TextConfig().template)
    done = reinforce(options.dataset, wanted, tables)
    print(f"{done.images:,} images, {done.bytes / done.images:,.0f} bytes each, {done.seconds:.0f} s", file=sys.stderr)
    reads = [f"train.dataset={options.dataset}", *options.set]
    settings = {PLAIN: reads}
    for arm in options.arms:
        reinforced = [f"train.reinforce.{part}" for part in arm.split()]
        settings[arm] = [*reads, f"train.reinforce.folder={tables}", *reinforced]
    jobs = [(arm, int(seed)) for seed in options.seeds.split(",") for arm in settings]
    found: Found = {"untrained": {}, **{arm: {} for arm in settings}}

    def one(job: tuple[str, int]) -> tuple[dict[str, float], dict[str, float]]:
        arm, seed = job
        place = Path(options.folder, arm.replace(" ", "+"), f"{options.recipe}-{seed}")
        return train(place, options.recipe, seed, options.config, settings[arm])

    with ThreadPoolExecutor(options.at_once) as pool:
        for (arm, seed), (before, after) in zip(jobs, pool.map(one, jobs), strict=True):
            found["untrained"][seed] = before
            found[arm][seed] = after
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
