"""What a row costs: CPU seconds and shuffled bytes by stage, bytes by table; the figures that `i2e plan` uses.

    python benchmarks/costs.py [--rows 6000 24000] [--card benchmarks/results/h200.json] [--write]

The sample's pairs are laid out twice, repeated with other texts and other bytes until there are as many as asked for,
in the same number of files, so that what a run costs in any case stands in both and falls out of the difference. Each
size is a run in a process of its own, stage by stage. CPU seconds are those of all its processes, Java's and the Python
workers' too, which a busy machine disturbs less than it does wall time; shuffled bytes stand in Spark's event log.

--card reads what benchmarks/gpu.py found on a card. --write puts the figures into i2e_pipeline/commands/costs.json;
what is assumed or published there stays as it is: how many rows a pair of a real crawl makes in each stage, which the
sample, where nearly every text names something, does not know.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.commands.plan import COSTS
from i2e_pipeline.engine import eventlog
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.sample import compose, embedded

FILES = 2
BASE = 3000
"""Rows that are composed; the rest repeats them."""


def enlarged(base: Path, folder: Path, rows: int, files: int = FILES) -> None:
    """The composed pairs until there are `rows`, each round with texts and bytes of its own."""
    table = pq.read_table(base / "pairs")
    folder.mkdir(parents=True)
    rounds, left = [], rows
    for number in range(-(-rows // table.num_rows)):
        part = table.slice(0, min(left, table.num_rows))
        left -= part.num_rows
        texts = [t if t is None or not t.strip() else f"{t} {number}" for t in part["caption"].to_pylist()]
        # What stands behind an image's end changes no pixel.
        stored = [d and d + number.to_bytes(4, "big") for d in part["jpg"].to_pylist()]
        urls = [f"{u}?{number}" for u in part["url"].to_pylist()]
        keys = [f"{k}-{number}" for k in part["key"].to_pylist()]
        for name, values in (("caption", texts), ("jpg", stored), ("url", urls), ("key", keys)):
            at = part.schema.get_field_index(name)
            part = part.set_column(at, part.schema.field(name), pa.array(values, part.schema.field(name).type))
        rounds.append(part)
    whole = pa.concat_tables(rounds)
    share = -(-len(whole) // files)
    for i in range(files):
        pq.write_table(whole.slice(i * share, share), folder / f"{i:05}.parquet", row_group_size=256)


def cpu_seconds(root: int) -> float:
    """Of a process and all below it, those that have ended among them."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])
            spent[int(entry.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    below, wave = {root}, {root}
    while wave:
        wave = {p for p, parent in parents.items() if parent in wave} - below
        below |= wave
    return sum(spent.get(p, 0.0) for p in below)


def pipeline_over(folder: Path, *overrides: str) -> Pipeline:
    """The sample's chain over folder/pairs into folder/out, with the dump of the base beside the folder."""
    from i2e_pipeline import stages

    settings = [f"output={folder}/out", f"pairs.path={folder}/pairs/*.parquet", *overrides]
    tree = embedded.tree(settings)
    for name in ("dump", "popularity", "anchors"):
        file = Path(tree["knowledge_base"][name]).name
        tree["knowledge_base"][name] = f"{folder.parent}/base/{file}"
    return stages.pipeline(stages.from_tree(tree, "the embedded sample", settings))


def one(folder: Path) -> None:
    """Runs the stages one after the other over folder/pairs and writes folder/found.json."""
    (folder / "log").mkdir()
    conf = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": (folder / "log").as_uri()}
    pipeline = pipeline_over(folder, f"session.conf={json.dumps(conf)}")
    found: dict[str, Any] = {}
    with pipeline.exclusive():
        pipeline.tables.spark.range(1).count()
        for stage in pipeline.stages:
            cpu, wall = cpu_seconds(os.getpid()), time.monotonic()
            pipeline.run(pipeline.upto(stage.name))
            commits = pipeline.tables.commits(stage.name).values()
            written = {t: [0, 0] for c in commits for t in c.files}
            for commit in commits:
                for table, files in commit.files.items():
                    written[table][0] += sum(f.rows for f in files)
                    written[table][1] += sum(f.bytes for f in files)
            found[stage.name] = {
                "rows": sum(c.rows_in for c in commits), "cpu": cpu_seconds(os.getpid()) - cpu,
                "wall": time.monotonic() - wall, "tables": written,
            }  # fmt: skip
    pipeline.tables.spark.stop()
    audit = eventlog.audit(str(folder / "log"))
    for name, stage_found in found.items():
        stage_found["shuffle"] = audit.stages[name].shuffle_bytes if name in audit.stages else 0
    (folder / "found.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def measured(rows: list[int]) -> dict[str, Any]:
    """Per stage and table, what a row costs: the difference of the two sizes."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        compose.compose(root / "base", rows=BASE, shards=2)
        sizes = []
        for count in rows:
            folder = root / str(count)
            enlarged(root / "base", folder / "pairs", count)
            subprocess.run([sys.executable, __file__, "--one", str(folder)], check=True)
            sizes.append(json.loads((folder / "found.json").read_text()))
    small, large = sizes
    stages, tables = {}, {}
    for name, there in large.items():
        before = small[name]
        grown = there["rows"] - before["rows"]
        per = {what: (there[what] - before[what]) / grown if grown else 0.0 for what in ("cpu", "shuffle")}
        stages[name] = {
            "rows": [before["rows"], there["rows"]], "core_seconds": max(per["cpu"], 0.0),
            "shuffle_bytes": max(per["shuffle"], 0.0), "cpu": [before["cpu"], there["cpu"]],
            "wall": [before["wall"], there["wall"]],
        }  # fmt: skip
        for table, (count, size) in there["tables"].items():
            known = before["tables"].get(table, [0, 0])
            if count > known[0]:
                tables[table] = {"row_bytes": (size - known[1]) / (count - known[0]), "rows": count}
            elif count:
                tables[table] = {"row_bytes": size / count, "rows": count}
    return {"stages": stages, "tables": tables}


def of_card(path: Path) -> tuple[str, dict[str, Any], dict[str, float], dict[str, str]]:
    """Name, figures, feeding and source of what benchmarks/gpu.py found on a card."""
    found = json.loads(path.read_text(encoding="utf-8"))
    machine = found["machine"]
    best: dict[str, float] = {}
    for row in found["forward"]:
        if "failed" not in row:
            best[row["model"]] = max(best.get(row["model"], 0.0), row["images_per_second"])
    feeding, overlaps = {}, []
    for kilobytes in sorted({row["kilobytes"] for row in found["kernel"]}):
        rows = [r for r in found["kernel"] if r["kilobytes"] == kilobytes]
        fastest = {m: max((r for r in rows if r["model"] == m), key=lambda r: r["images_per_second"]) for m in best
                   if any(r["model"] == m for r in rows)}  # fmt: skip
        light = max(fastest.values(), key=lambda r: best[r["model"]])
        # The lightest model leaves the card idle: what is left is the cores' work, all of them busy.
        feeding[str(kilobytes)] = machine["cores"] / light["images_per_second"]
        for model, row in fastest.items():
            if model != light["model"]:
                overlaps.append(row["images_per_second"] / min(best[model], light["images_per_second"]))
    card = {"images_per_second": best, "overlap": round(sum(overlaps) / len(overlaps), 3), "source": "card"}
    what = (
        f"{machine['card']}, {machine['cores']} cores ({machine['cpu']}), {machine['dtype']}, torch {machine['torch']}"
    )
    source = {"kind": "measured", "what": what, "date": machine["date"], "command": machine["command"]}
    return machine["card"].removeprefix("NVIDIA "), card, feeding, source


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs=2, type=int, default=[6000, 24000])
    parser.add_argument("--card", type=Path, default=Path(__file__).parent / "results" / "h200.json")
    parser.add_argument("--write", action="store_true", help="put the figures into costs.json")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        one(options.one)
        return
    found = measured(sorted(options.rows))
    print(json.dumps(found, indent=1))
    tree = json.loads(COSTS.read_text(encoding="utf-8"))
    for name, cost in tree["stages"].items():
        if cost["source"] in ("here", "statistics") and name in found["stages"]:
            cost["source"] = "here"  # a whole run counts what `select.statistics=full`, the default, adds
            cost["core_seconds"] = float(f"{found['stages'][name]['core_seconds']:.3g}")
        if found["stages"].get(name, {}).get("shuffle_bytes"):
            cost["shuffle_bytes"] = float(f"{found['stages'][name]['shuffle_bytes']:.3g}")
    for name, cost in tree["tables"].items():
        if cost["source"] == "here" and name in found["tables"]:
            cost["row_bytes"] = float(f"{found['tables'][name]['row_bytes']:.3g}")
    name, card, feeding, source = of_card(options.card)
    tree["cards"][name] = card
    tree["feeding"]["core_seconds"] = {size: float(f"{cost:.3g}") for size, cost in feeding.items()}
    tree["sources"]["card"] = source
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")
    small, large = sorted(options.rows)
    tree["sources"]["here"] = {
        "kind": "measured",
        "what": f"{os.cpu_count()} cores ({processor}), the sample's pairs, {small:,} and {large:,} of them",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": "python benchmarks/costs.py --write",
    }
    print(json.dumps(tree, indent=1))
    if options.write:
        COSTS.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
