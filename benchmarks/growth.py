"""What growth writes again: a dataset of some units grows by a tenth, once for each rule that looks at all units.

    python benchmarks/growth.py [--units 20] [--more 2] [--rows 3000] [--json FILE]

The sample's pairs, dealt to so many files, each a unit; then `--more` of the same size come. A unit that was there is
`changed` where a row of it differs between the two builds, and `written again` where its files were written anew: no
more than changed ones should be. `moved` are images that lie on another side of the split. `rows changed` is the share
of rows that differ among those written again. `cost` is the time of the growing run in that of the first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from i2e_pipeline import stages
from i2e_pipeline.core import files
from i2e_pipeline.sample import embedded

RULES = {
    "no floor": ("select.min_images_per_entity=1",),
    "floor of 5": ("select.min_images_per_entity=5",),
    "floor of 5, cap of 20": ("select.min_images_per_entity=5", "select.max_images_per_entity=20"),
    "near-duplicates, floor of 5": ("select.min_images_per_entity=5", "clean.near_duplicates=true"),
}


def dealt(pairs: list[str], folder: Path, rows: int, units: int) -> None:
    """The first rows of the pairs, in `units` files of about equal size."""
    table = pa.concat_tables([pq.read_table(path) for path in pairs]).slice(0, rows)
    folder.mkdir()
    for n in range(units):
        start, stop = (table.num_rows * edge // units for edge in (n, n + 1))
        pq.write_table(table.slice(start, stop - start), folder / f"{n:05}.parquet")


Rows = dict[str, dict[str, dict[str, str]]]
"""Rows of i2e/images by unit and image, without the stored bytes."""


def published(output: Path) -> Rows:
    found = ds.dataset(str(output / "i2e" / "images"), format="parquet", partitioning="hive")
    columns = [name for name in found.schema.names if name != "image"]
    by_unit: Rows = {}
    for row in found.to_table(columns=columns).to_pylist():
        unit = row.pop("unit")
        by_unit.setdefault(unit, {})[row["image_id"]] = {name: repr(value) for name, value in row.items()}
    return by_unit


def moved(before: Rows, now: Rows) -> int:
    """Images that are in both and lie on another side of the split."""
    was, lies = (
        {image: row["split"] for unit in rows.values() for image, row in unit.items()} for rows in (before, now)
    )
    return sum(lies.get(image, side) != side for image, side in was.items())


def measure(folder: Path, rule: tuple[str, ...]) -> dict[str, float]:
    """folder   pairs, more (the files that come later), base (an output of the first ones, scored: it is copied)"""
    output = folder / "out"
    shutil.copytree(folder / "base", output)

    def built() -> Any:
        pipeline = pipeline_of(output, folder / "pairs", rule)
        pipeline.run()
        return pipeline.tables.commits("publish")

    commits = built()
    before = published(output)
    came = [Path(shutil.copy2(path, folder / "pairs")) for path in (folder / "more").iterdir()]
    started = time.perf_counter()
    commits_now = built()
    seconds = time.perf_counter() - started
    now = published(output)
    shutil.rmtree(output)
    for path in came:
        path.unlink()
    changed = {unit for unit in commits if before.get(unit, {}) != now.get(unit, {})}
    written = {unit for unit in commits if commits[unit].fingerprint != commits_now[unit].fingerprint}
    rows = sum(len(now.get(unit, {})) for unit in written)
    differ = sum(before.get(unit, {}).get(image) != row for unit in written for image, row in now.get(unit, {}).items())
    return {
        "units": len(commits),
        "changed": len(changed),
        "written again": len(written),
        "needlessly": len(written - changed),
        "missed": len(changed - written),
        "rows of these": rows,
        "rows that differ": differ,
        "moved": moved(before, now),
        "rows of all": sum(map(len, before.values())),
        "seconds": seconds,
    }


def pipeline_of(output: Path, pairs: Path, rule: tuple[str, ...] = ()) -> Any:
    # Few rows may give no entity enough images.
    tree = embedded.composed([f"output={output}", "run.allow_empty=true", *rule])
    tree["pairs"] |= {"path": f"{pairs}/*.parquet", "files_per_unit": 1}
    return stages.pipeline(stages.from_tree(tree, "the embedded sample"))


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=20)
    parser.add_argument("--more", type=int, default=2)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--rules", type=int, default=len(RULES), help="only the first so many")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pairs = [f.path for f in files.find(embedded.composed([])["pairs"]["path"], ".parquet")]
        dealt(pairs, folder / "pairs", options.rows, options.units + options.more)
        (folder / "more").mkdir()
        for path in sorted((folder / "pairs").iterdir())[options.units :]:
            path.rename(folder / "more" / path.name)
        started = time.perf_counter()
        pipeline_of(folder / "base", folder / "pairs").run()
        figures["first run, seconds"] = time.perf_counter() - started
        for name, rule in list(RULES.items())[: options.rules]:
            figures[name] = measure(folder, rule)
    show(figures, options.units, options.more)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def show(figures: dict[str, Any], units: int, more: int) -> None:
    table = Table(title=f"{units} units and {more} more", title_justify="left")
    for heading in ("rule", "changed", "written again", "needlessly", "missed", "moved", "rows changed", "cost"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    first = figures["first run, seconds"]
    for name in (name for name in figures if name in RULES):
        of = figures[name]
        share = of["rows that differ"] / max(1, of["rows of these"])
        counts = (f"{of[key]:,.0f}" for key in ("changed", "written again", "needlessly", "missed", "moved"))
        table.add_row(name, *counts, f"{share:.0%}", f"{of['seconds'] / first:.2f}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
