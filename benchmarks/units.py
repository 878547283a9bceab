"""What a unit of work costs beside its rows: the driver's time per unit and stage, and what of a JVM fills with them.

    python benchmarks/units.py [--units 400] [--waves 500] [--delta]

Files of ten rows of the sample's pairs, each a unit. `driver alone` is the time from the first job to the last in which
no task ran. `--waves` is the number of units in a wave: 1 is a Spark job for each unit, the baseline.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from i2e_pipeline import stages
from i2e_pipeline.core import files
from i2e_pipeline.engine import eventlog
from i2e_pipeline.sample import embedded

ROWS = 10
PER_UNIT = ("pairs", "extract", "link", "score", "label", "publish")


def tiny_files(pairs: list[str], folder: Path, count: int) -> None:
    """Files of ten rows. When the rows are used up they come again with other texts and other bytes."""
    rows = pa.concat_tables([pq.read_table(path) for path in pairs])
    folder.mkdir()
    for n in range(count):
        start, turn = n * ROWS % (rows.num_rows - ROWS), n * ROWS // (rows.num_rows - ROWS)
        part = rows.slice(start, ROWS)
        for name, again in (("caption", lambda x, t=turn: f"{x} {t}"), ("jpg", lambda x, t=turn: x + bytes(t))):
            if turn:
                at = part.schema.get_field_index(name)
                values = [x and again(x) for x in part.column(at).to_pylist()]
                part = part.set_column(at, part.schema.field(at), pa.array(values, part.schema.field(at).type))
        keys = pa.array([f"{key}-{n}" for key in part.column("key").to_pylist()])
        pq.write_table(part.set_column(part.schema.get_field_index("key"), "key", keys), folder / f"{n:06}.parquet")


def state_of(spark: Any) -> dict[str, float]:
    """What Java and Python hold, after a collection of garbage."""
    from pyspark.accumulators import _accumulatorRegistry

    java = spark.sparkContext._jvm.java.lang
    java.System.gc()
    beans = java.management.ManagementFactory
    pools = {p.getName(): p.getUsage().getUsed() / 1e6 for p in beans.getMemoryPoolMXBeans()}
    return {
        "metaspace MB": pools["Metaspace"],
        "code cache MB": sum(size for name, size in pools.items() if name.startswith("Code")),
        "classes": beans.getClassLoadingMXBean().getLoadedClassCount(),
        "Java threads": beans.getThreadMXBean().getThreadCount(),
        "Python threads": threading.active_count(),
        "accumulators": len(_accumulatorRegistry),
    }


def measure(units: int, wave: int, storage: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "log").mkdir()
        conf = f"{{spark.eventLog.enabled: 'true', spark.eventLog.dir: '{(folder / 'log').as_uri()}'}}"
        # Few rows of few units may give no entity enough images.
        allowed = "run.allow_empty=true"
        overrides = [allowed, f"output={folder}/out", f"session.conf={conf}", f"storage.format={storage}"]
        tree = embedded.composed([*overrides, f"run.wave_units={wave}"])
        tiny_files([f.path for f in files.find(tree["pairs"]["path"], ".parquet")], folder / "tiny", units)
        tree["pairs"] |= {"path": str(folder / "tiny"), "files_per_unit": 1}
        pipeline = stages.pipeline(stages.from_tree(tree, "the embedded sample"))
        pipeline.run([s.name for s in pipeline.stages if s.name in ("knowledge_base", "surfaces", "pairs")])
        before = state_of(pipeline.tables.spark)
        pipeline.run()
        after = state_of(pipeline.tables.spark)
        pipeline.tables.spark.stop()
        found = eventlog.audit(str(folder / "log"))
    return {"audit": found, "before": before, "after": after}


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=400)
    parser.add_argument("--waves", type=int, default=500, help="units in a wave")
    parser.add_argument("--delta", action="store_true")
    options = parser.parse_args(arguments)
    made = measure(options.units, options.waves, "delta" if options.delta else "parquet")
    found, console = made["audit"], Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"{options.units:,} units of {ROWS} rows, {options.waves} in a wave", title_justify="left")
    for heading in ("stage", "jobs", "tasks", "task s", "driver alone s", "ms a unit"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, of in found.stages.items():
        alone = found.by_stage_driver_only.get(name, 0.0)
        each = f"{1000 * alone / options.units:,.1f}" if name in PER_UNIT else ""
        table.add_row(name, f"{of.jobs:,}", f"{of.tasks:,}", f"{of.task_seconds:,.1f}", f"{alone:,.1f}", each)
    console.print(table)
    console.print(
        f"{found.seconds:,.1f} s, in {found.driver_only_seconds:,.1f} s of them ({found.driver_only:.0%}) only the "
        f"driver worked: {1000 * found.driver_only_seconds / options.units / len(PER_UNIT):,.1f} ms a unit and stage"
    )
    for name, was in made["before"].items():
        console.print(f"{name:<16} {was:8,.0f} after `pairs`, {made['after'][name]:8,.0f} at the end")
    return made


if __name__ == "__main__":
    main(sys.argv[1:])
