"""What each recipe learns from the same images: the paper's comparison at matched data, with intervals.

    python benchmarks/recipes.py [--worlds sample photos] [--draws 5] [--seeds 2] [--budget 6] [--at-once 2]

On the embedded sample's dataset, and on that of the real photos where I2E_REAL_DATA names them. All recipes train the
same towers from the same weights by seed, on the same images in the same order, for the same number of steps.

1. search    Each recipe chooses its learning rates, text mixture and lambda among `--budget` settings, by retrieval
             among entities of a draw that serves for nothing else: none of them is measured in what follows.
2. compare   Each arm is trained with what its recipe chose, for each draw of what is held out (a fifth of the entities
             and a twentieth of the other images, train.data.hold_out_salt) and each seed. Two arms train on the same
             images with their true labels instead.
3. table     retrieval   mean average precision of each image among the others, of entities that nothing was trained on
             knn         20 nearest training images, for held-out images of entities that were trained on
             zero_shot   the nearest of the texts of the entities that nothing was trained on
             and differences of arms over the same draws and seeds; 95 % intervals by resampling draws and entities.
             What true labels gain is measured by the true labels, on images that are new to both arms.

Each training is a process with one thread; what is in --folder already is not trained again, so a run that was stopped
goes on. The table is printed, and lies in <folder>/table.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from comparing import worlds
from comparing.arms import ARMS, DIFFERENCES, RECIPES, UNTRAINED, Arm, Settings, candidates
from comparing.measures import FIGURES, Measured, PerImage, Run, in_both, interval, per_image
from comparing.training import Job, carried_out, done, seconds
from comparing.worlds import Images

CHOOSING = "choosing"
"""The salt of the draw by which settings are chosen."""
_DIGITS = 3


class Comparison:
    """What is trained on one world."""

    def __init__(self, images: Images, options: argparse.Namespace) -> None:
        self.images, self.options = images, options
        self.folder = Path(options.folder) / images.name

    def choosing(self, recipe: str) -> list[Job]:
        return [
            self._job(Arm(recipe, recipe), CHOOSING, 0, settings, f"choose/{recipe}-{number}")
            for number, settings in enumerate(candidates(recipe, self.options.budget))
        ]

    def comparing(self, arm: Arm, chosen: Settings) -> dict[Run, Job]:
        runs = itertools.product((f"draw {n}" for n in range(self.options.draws)), range(self.options.seeds))
        name = arm.name.replace(", ", "-").replace(" ", "-")
        return {
            (draw, seed): self._job(arm, draw, seed, chosen, f"compare/{name}-{draw.replace(' ', '-')}-{seed}")
            for draw, seed in runs
        }

    def _job(self, arm: Arm, draw: str, seed: int, chosen: Settings, folder: str) -> Job:
        dataset = self.images.corrected if arm.true_labels else self.images.dataset
        overrides = (
            f"train.dataset={dataset}", f"train.recipe={arm.recipe}", f"train.seed={seed}",
            f"train.data.hold_out_salt={draw}", "train.data.hold_out_entities=0.2",
            *self.images.settings, *chosen, *arm.further, *self.options.set,
        )  # fmt: skip
        return Job(self.folder / folder, self.options.config, overrides, untrained=arm == UNTRAINED)


def trained(jobs: Sequence[Job], at_once: int) -> list[Measured]:
    """Carries out what is not done yet; says after each how long the rest will take."""
    left = [job for job in jobs if not done(job)]
    started = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        for number, (job, _) in enumerate(zip(left, pool.map(carried_out, left), strict=True), 1):
            each = (time.monotonic() - started) / number
            print(
                f"{job.folder.name:<44} {number} of {len(left)}, {each * (len(left) - number) / 60:.0f} min left",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return [carried_out(job) for job in jobs]


def choose(comparison: Comparison) -> tuple[dict[str, Settings], frozenset[int], list[str]]:
    """Settings by recipe, the entities by which they were chosen, and lines that tell of it."""
    jobs = {recipe: comparison.choosing(recipe) for recipe in comparison.options.recipes}
    found = iter(trained(list(itertools.chain.from_iterable(jobs.values())), comparison.options.at_once))
    chosen, entities, lines = {}, set[int](), []
    for recipe, of_recipe in jobs.items():
        measured = list(itertools.islice(found, len(of_recipe)))
        scores = [float(per_image(one)["retrieval"].value_Q.mean()) for one in measured]
        settings = candidates(recipe, comparison.options.budget)
        best = max(range(len(scores)), key=lambda n: (round(scores[n], 6), -n))
        chosen[recipe] = settings[best]
        entities |= {int(e) for m in measured for e in m.entity_N[m.new_N]}
        said = ", ".join(_short(setting) for setting in settings[best])
        lines.append(f"| {recipe} | {said} | {scores[0]:.3f} | {scores[best]:.3f} |")
    heading = ["| recipe | chosen | retrieval with the defaults | with these |", "|---|---|---:|---:|"]
    return chosen, frozenset(entities), [*heading, *lines]


def _short(setting: str) -> str:
    key, _, value = setting.partition("=")
    section, _, name = key.removeprefix("train.").rpartition(".")
    return f"{section}.{name} {value}"


def compare(comparison: Comparison, chosen: dict[str, Settings], left_out: frozenset[int]) -> Iterator[str]:
    """The lines of two tables: arms, and their differences."""
    arms = [UNTRAINED, *(arm for arm in ARMS if arm.recipe in chosen)]
    jobs = {arm.name: comparison.comparing(arm, chosen.get(arm.recipe, ())) for arm in arms}
    # All arms of a run before the next run: a comparison that is stopped has whole runs.
    in_order = sorted((run, name) for name, of_arm in jobs.items() for run in of_arm)
    found = trained([jobs[name][run] for run, name in in_order], comparison.options.at_once)
    measured: dict[str, dict[Run, Measured]] = {name: {} for name in jobs}
    for (run, name), vectors in zip(in_order, found, strict=True):
        measured[name][run] = vectors
    figures = {
        name: {run: per_image(vectors, left_out) for run, vectors in of_arm.items()}
        for name, of_arm in measured.items()
    }
    yield "| arm | " + " | ".join(FIGURES) + " |"
    yield "|---|" + "---:|" * len(FIGURES)
    for arm in arms:
        if not arm.true_labels:
            yield f"| {arm.name} | " + " | ".join(_cells(figures[arm.name])) + " |"
    yield ""
    yield "| difference | " + " | ".join(FIGURES) + " |"
    yield "|---|" + "---:|" * len(FIGURES)
    by_name = {arm.name: arm for arm in arms}
    for one, other in DIFFERENCES:
        if one not in by_name or other not in by_name:
            continue
        if by_name[one].true_labels != by_name[other].true_labels:
            cells = _by_truth(comparison.images, measured[one], measured[other], left_out)
        else:
            cells = _cells(figures[one], figures[other])
        yield f"| {one} − {other} | " + " | ".join(cells) + " |"
    took = seconds([job for of_arm in jobs.values() for job in of_arm.values()])
    yield ""
    yield f"{len(took)} trainings of {sum(took) / max(1, len(took)):.0f} s on average."


def _cells(of: dict[Run, dict[str, PerImage]], against: dict[Run, dict[str, PerImage]] | None = None) -> Iterator[str]:
    for name in FIGURES:
        mine = {run: found[name] for run, found in of.items() if name in found}
        if against is None:
            yield _told(interval(mine), "") if mine else ""
            continue
        theirs = {run: found[name] for run, found in against.items() if name in found}
        yield _told(interval(mine, theirs), "+") if mine.keys() & theirs.keys() else ""


def _told(found: tuple[float, float, float], sign: str) -> str:
    point, low, high = (f"{value:{sign}.{_DIGITS}f}".replace("-", "−") for value in found)
    return f"{point} [{low}, {high}]"


def _by_truth(
    images: Images, one: dict[Run, Measured], other: dict[Run, Measured], left_out: frozenset[int]
) -> Iterator[str]:
    """Retrieval alone, of images that are new to both; whose entities are told by the truth."""
    found: tuple[dict[Run, PerImage], dict[Run, PerImage]] = ({}, {})
    for run in one.keys() & other.keys():
        for place, measured in zip(found, in_both(one[run], other[run]), strict=True):
            place[run] = per_image(measured.with_truth(images.truth), left_out)["retrieval"]
    yield _told(interval(*found), "+")
    yield from [""] * (len(FIGURES) - 1)


def main(arguments: list[str]) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=["sample", "photos"], choices=["sample", "photos"])
    parser.add_argument("--config", help="settings of the training; without it, the embedded sample's")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="over these, for all arms")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--budget", type=int, default=6, help="settings of which each recipe chooses")
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side, a core each")
    parser.add_argument("--folder", default="out/benchmarks/recipes")
    parser.add_argument("--only", choices=["choose"], help="stop when settings are chosen")
    options = parser.parse_args(arguments)
    lines = []
    for images in worlds.wanted(options.worlds, Path(options.folder)):
        comparison = Comparison(images, options)
        wrong, known = worlds.wrong_labels(images)
        lines += [
            f"## {images.name}",
            "",
            f"Labels that are wrong: {wrong} of {known} images whose truth is known.",
            "",
        ]
        chosen, entities, told = choose(comparison)
        (comparison.folder / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n")
        lines += [*told, ""]
        if options.only is None:
            lines += [*compare(comparison, chosen, entities), ""]
        Path(options.folder, "table.md").write_text("\n".join(lines))
    print("\n".join(lines))
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
