"""What does a verifier of a known reliability bring, and what does it cost? The figures of docs/second-look.md.

    python benchmarks/verdicts.py [--rows N] [--folder DIR] [--json FILE]

The embedded sample (N rows in 8 shards) is labelled by text and image alone, and then with the answers of a planted
verifier (benchmarks/planted.py): a server on this machine that knows the truth and errs in some share of its answers.

    questions   asked per million scored pairs and per million labels, by band and budget
    labels      precision and recall by the verifier's noise, with the settings' defaults; `reliability` is 1 - noise

Since the answers come from the truth, these figures say what a verifier of that reliability brings, and not that any
model has it: benchmarks/labels.py --verdicts measures one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from planted import Planted, serving, shown

from i2e_pipeline import stages
from i2e_pipeline.commands.calibrate import named_images, options_of, scored
from i2e_pipeline.core.config import Config, merge
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.label.calibration import VERDICT, Calibration, select
from i2e_pipeline.label.fit import report
from i2e_pipeline.label.stages import calibration_of
from i2e_pipeline.sample import compose, embedded

BANDS = ((0.0, 1.0), (0.2, 0.95), (0.35, 0.95), (0.5, 0.9))
BUDGETS = (1.0, 0.25, 0.1, 0.05)
NOISE = (0.0, 0.1, 0.2)


def planted_for(pipeline: Pipeline, noise: float) -> Planted:
    """A verifier that knows the truth of all pairs of an output, whose input is Parquet and whose knowledge base is
    there."""
    config, truth = pipeline.config, dict[str, int | None]()
    pairs = config.pairs
    for path in sorted({file.path for unit in pipeline.planned().units for file in unit.files}):
        for batch in pq.ParquetFile(path).iter_batches(512, columns=[pairs.image_column, pairs.truth_column]):
            for image, said in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                stored = image["bytes"] if isinstance(image, dict) else image
                if said is None or stored is None or not said.startswith(("Q", "none")):
                    continue
                if (name := shown(stored, config.verify)) is not None:
                    truth[name] = int(said[1:]) if said.startswith("Q") else None
    columns = ["entity_id", "name", "description"]
    entities = ds.dataset(pipeline.tables.path("kb/entities"), format="parquet").to_table(columns=columns)
    return Planted(truth, {r["entity_id"]: (r["name"], r["description"]) for r in entities.to_pylist()}, noise)


def with_verdicts(
    config: Config, noise: float | None, settings: Sequence[str] = ()
) -> tuple[pa.Table, Calibration, dict[str, int]]:
    """What is known of pairs and candidates, verdicts among it; the calibration that weighs them; the stage's numbers.

    noise   of a planted verifier, whose answers are then asked for; None: whoever the config names is asked
    """
    if noise is None:
        pipeline = stages.pipeline(config)
        return _scored(pipeline)
    plain = stages.pipeline(config)
    scored(plain)
    planted = planted_for(plain, noise)
    with serving(planted) as told:
        further = [
            *told.settings,
            f"verify.served_model=planted-{noise:g}",
            f"verify.reliability={_reliability(noise)}",
        ]
        asking = stages.from_tree(merge(config.shown(), [*further, *settings]), "benchmarks/verdicts.py", settings)
        return _scored(stages.pipeline(asking, lambda: plain.tables.spark))


def _reliability(noise: float) -> float:
    return min(0.99, max(0.51, 1 - noise))


def _scored(pipeline: Pipeline) -> tuple[pa.Table, Calibration, dict[str, int]]:
    run, table = scored(pipeline)
    stage = next(s for s in pipeline.stages if s.name == "verify")
    return table, calibration_of(pipeline.config), stage.told(run.committed("verify"))


def labels_by(table: pa.Table, calibration: Calibration) -> dict[str, dict[str, float]]:
    """Figures of the labels by text and image alone, and with verdicts."""
    options, named = options_of(table), named_images(table)
    by = {"text and image": calibration.without((VERDICT,)), "and verdicts": calibration}
    return {name: report(options, weighing, named) for name, weighing in by.items()}


def show_labels(title: str, found: dict[str, dict[str, float]]) -> None:
    for by, figures in found.items():
        print(
            f"| {title} | {by} | {figures['labels']:.0f} | {figures['right']:.0f} | {figures['wrong']:.0f} | "
            f"{figures['precision']:.3f} | {figures['recall']:.3f} | {figures['calibration_error']:.3f} |",
            flush=True,
        )


LABELS_HEAD = "\n".join(
    (
        "| | labels by | labels | right | wrong | precision | recall | calibration error |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    )
)


def questions(table: pa.Table, calibration: Calibration) -> list[dict[str, float]]:
    """How many questions bands and budgets ask, of pairs as they are scored."""
    options = options_of(table)
    first = calibration.without((VERDICT,))
    rows = options.append_column("p", pa.array(first.probability(options)))
    best = rows.group_by("pair_id").aggregate([("p", "max")])["p_max"].to_numpy()
    labels = pc.sum(pc.is_null(select(options, first)["reason"])).as_py()
    found = []
    for low, high in BANDS:
        in_band = float(np.mean((best >= low) & (best <= high)))
        for budget in BUDGETS:
            asked = min(in_band, budget)
            found.append(
                {
                    "low": low,
                    "high": high,
                    "budget": budget,
                    "in_band": in_band,
                    "per_million_pairs": asked * 1e6,
                    "per_million_labels": asked * 1e6 * len(best) / labels,
                }
            )
    return found


def show_questions(found: Sequence[dict[str, float]]) -> None:
    print("| band | pairs in it | " + " | ".join(f"budget {b:g}" for b in BUDGETS) + " |")
    print("|---|---:|" + "---:|" * len(BUDGETS))
    for low, high in BANDS:
        rows = [row for row in found if (row["low"], row["high"]) == (low, high)]
        cells = " | ".join(f"{row['per_million_labels']:,.0f}" for row in rows)
        print(f"| {low:g} to {high:g} | {rows[0]['in_band']:.1%} | {cells} |")


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks/verdicts"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    compose.compose(folder / "out" / "input", rows=options.rows, shards=8)
    tree = embedded.tree([f"output={folder / 'out'}"])
    config = stages.from_tree(tree, "benchmarks/verdicts.py")
    found: dict[str, Any] = {"labels": {}}
    for noise in NOISE:
        table, calibration, told = with_verdicts(config, noise)
        if "questions" not in found:
            found["questions"] = questions(table, calibration)
            print("questions per million labels\n")
            show_questions(found["questions"])
            print(f"\n{LABELS_HEAD}")
        found["labels"][f"{noise:g}"] = {**labels_by(table, calibration), "told": told}
        show_labels(f"noise {noise:.0%}", {k: v for k, v in found["labels"][f"{noise:g}"].items() if k != "told"})
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
