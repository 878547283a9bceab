"""What Spark did in a run, by stage: bytes shuffled and spilled, kernels run twice, skew, time of the driver alone.

    python benchmarks/audit.py LOG [--json FILE]                      of a log that is there
    python benchmarks/audit.py                                        of a run of the sample, which it makes
    i2e run … --set session.conf='{spark.eventLog.enabled: "true", spark.eventLog.dir: "file:///FOLDER"}'    makes one

What a run is to look like: no image bytes in a shuffle (`widest row` some hundred bytes), no kernel twice, nothing
spilled, `skew` (the largest task over the median) at most 3.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from i2e_pipeline.engine import eventlog
from i2e_pipeline.engine.eventlog import Audit


def show(found: Audit, console: Console) -> None:
    table = Table(title="What Spark did, by stage", title_justify="left")
    headings = (
        "stage", "jobs", "tasks", "task s", "driver alone s", "read MB", "shuffle MB", "widest row B", "spilled MB",
        "python started", "kernels", "twice", "skew rows", "skew time",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, of in found.stages.items():
        table.add_row(
            name, f"{of.jobs:,}", f"{of.tasks:,}", f"{of.task_seconds:,.1f}",
            f"{found.by_stage_driver_only.get(name, 0):,.1f}", f"{of.read_bytes / 1e6:,.1f}",
            f"{of.shuffle_bytes / 1e6:,.2f}", f"{of.widest_row:,.0f}", f"{of.spilled_bytes / 1e6:,.1f}",
            f"{of.python_started}", f"{of.kernels}", f"{of.kernels_repeated}", f"{of.skew_records:.1f}",
            f"{of.skew_seconds:.1f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{found.seconds:,.1f} s from the first job to the last; in {found.driver_only_seconds:,.1f} s of them "
        f"({found.driver_only:.0%}) only the driver worked"
    )


def of_the_sample() -> Audit:
    """A run of the embedded sample into a fresh folder, and its log."""
    from i2e_pipeline import stages
    from i2e_pipeline.commands.run import run
    from i2e_pipeline.sample import embedded

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.mkdir()
        conf = f"{{spark.eventLog.enabled: 'true', spark.eventLog.dir: '{log.as_uri()}'}}"
        overrides = [f"output={folder}/out", f"session.conf={conf}"]
        pipeline = stages.pipeline(stages.from_tree(embedded.composed(overrides), "the embedded sample", overrides))
        run(pipeline)
        pipeline.tables.spark.stop()
        return eventlog.audit(str(log))


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", help="an event log, or a folder that holds one")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    found = eventlog.audit(options.log) if options.log else of_the_sample()
    show(found, Console(width=None if sys.stdout.isatty() else 190))
    figures = asdict(found) | {"driver_only": round(found.driver_only, 4)}
    for of in figures["stages"].values():
        of["columns"] = sorted(of["columns"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
