"""How well `i2e plan --from` foretells a run on this machine: from runs of 1x and 4x, one of 16x.

    python benchmarks/plan.py [--rows 1000] [--files 2]

The sample's pairs, repeated with other texts and other bytes, in files of the same length: four times the rows are four
times the files and units. Each size is a run in a process of its own. What is foretold are seconds of each stage, rows
and bytes of each table. `error` is (foretold - measured) / measured. Goal: within 20 % for the whole run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from costs import BASE, enlarged, pipeline_over

from i2e_pipeline.commands.plan import Records, Request, estimate, fitted, load, records
from i2e_pipeline.sample import compose

SIZES = (1, 4, 16)


def one(folder: Path) -> None:
    """One run; units one after the other, so that their seconds add up to what the stage took."""
    pipeline = pipeline_over(folder, "run.waves_in_flight=1")
    with pipeline.exclusive():
        _, states = pipeline.run()
    seconds = {state.stage.name: state.seconds for state in states}
    (folder / "walls.json").write_text(json.dumps(seconds), encoding="utf-8")


def foretold(known: list[Records], there: Records) -> dict[str, Any]:
    """What the plan says of a run of the size of `there`, beside what that took."""
    cores = os.cpu_count() or 1
    costs = fitted(load(), known, cores)
    entities = there.rows[next(name for name, cost in costs.stages.items() if cost.per == "entity")]
    wanted = Request(
        there.pairs, 5.0, "", 0, cores, next(iter(costs.cards)), entities, 1000, 500, {}, object_store=False
    )
    found = estimate(costs, wanted)
    stages = {
        s.stage: {"foretold": round(3600 * s.hours, 2), "measured": round(there.seconds[s.stage], 2)}
        for s in found.stages
    }
    tables = {
        name: {"foretold": round(1e6 * size, 3), "measured": round(there.tables[name][1] / 1e6, 3)}
        for name, size in found.storage_tb.items()
        if costs.tables[name].source == "from" and name in there.tables and name != "i2e/images"
    }
    whole = {"foretold": round(3600 * found.hours, 1), "measured": round(sum(there.seconds.values()), 1)}
    whole["error"] = round(whole["foretold"] / whole["measured"] - 1, 3)
    megabytes = {what: round(sum(t[what] for t in tables.values()), 2) for what in ("foretold", "measured")}
    megabytes["error"] = round(megabytes["foretold"] / megabytes["measured"] - 1, 3)
    return {
        "pairs": there.pairs, "from": [run.pairs for run in known], "seconds": whole, "stages": stages,
        "megabytes": megabytes, "tables": tables,
    }  # fmt: skip


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="of the smallest run")
    parser.add_argument("--files", type=int, default=2, help="of the smallest run")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        one(options.one)
        return {}
    names, runs, walls = list(load().stages), [], []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        compose.compose(root / "base", rows=BASE, shards=2)
        for size in SIZES:
            folder = root / str(size)
            enlarged(root / "base", folder / "pairs", size * options.rows, size * options.files)
            subprocess.run([sys.executable, __file__, "--one", str(folder)], check=True)
            runs.append(records(str(folder / "out"), names))
            walls.append(sum(json.loads((folder / "walls.json").read_text()).values()))
            print(size, runs[-1], round(walls[-1], 1), flush=True)
    figures = foretold(runs[:2], runs[2]) | {"walls": [round(w, 1) for w in walls]}
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
