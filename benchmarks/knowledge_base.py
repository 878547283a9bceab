"""What the knowledge base costs and what its priors know: each figure as a ratio to a named baseline.

    python benchmarks/knowledge_base.py [--data FOLDER] [--dump DUMP.json] [--megabytes 24] [--repeats 3] [--no-spark]

parse      dump lines in memory, MB per CPU-second, lines of 20 kB and more apart from short ones
             json     json.loads and nothing else: the baseline
             orjson   orjson.loads and nothing else, where orjson is installed
             msgspec  msgspec alone, into FIXED: the structs of wikidata.items, with an empty list of its own for each
                      property that an item lacks. They stay as they are, so that figures of other days compare
             lean     msgspec alone, into the structs of wikidata.items as they are
             parse    wikidata.items.parse: what is used of an item, typed
             kernel   wikidata.items.read_items: entities, names, normal forms, as Arrow batches
readers    the dump of --dump, a plain file, on Spark to nowhere: CPU seconds of all processes, and on the wall
             json     spark.read.json with the schema of what is read of an item: the baseline
             kernel   its lines, as the stage knowledge_base reads those of a plain file, and read_items, all of whose
                      tables are worked out
surfaces   names with what is known of their entities, sorted, to surfaces with priors; surfaces per CPU-second
             rows     one surface after the other, in plain Python: the baseline
             kernel   wikidata.priors.surfaces
stages     knowledge_base and surfaces on Spark from the compressed dump to committed tables: wall seconds against the
           CPU seconds of the bare kernels on the same dump, and the peak resident memory of all its processes
prior      gold mentions with given spans: how often the right entity is first by prior, and how often it is among the
           20 candidates; against the same candidates by falling sitelinks and by rising id

Figures are medians of interleaved rounds. On a shared machine compare their ratios, not the figures.
"""

from __future__ import annotations

import argparse
import bz2
import importlib
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import Config
from i2e_pipeline.engine.session import build
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.link.candidates import keys_of
from i2e_pipeline.sample import compose
from i2e_pipeline.stages import pipeline
from wikidata.items import Item, parse, read_items
from wikidata.knowledge_base import read_in_tasks
from wikidata.priors import KINDS, LIMITS, NAME_ROWS, WEIGHTS, base_link_probability, link_probability, smoothed
from wikidata.priors import surfaces as surfaces_kernel
from wikidata.source_files import DUMP, recognised
from wikidata.surface import normal_form

PACKAGE = Path(compose.__file__).parent
LONG = 20_000
"""Lines of this many bytes and more count as long, as those of Wikidata's well-known items are (100 kB and more)."""
STAGES = ["knowledge_base", "surfaces"]


# --- inputs: shared with the other benchmarks -----------------------------------------------------------------------


@dataclass(frozen=True)
class Gold:
    """A text with some spans, and the entity that each of them means."""

    text: str
    mentions: tuple[tuple[int, int, int], ...]
    """start, end, entity_id"""


@dataclass(frozen=True)
class Source:
    """Where the inputs lie: the embedded sample, or a folder of real data."""

    name: str
    dump: Path
    popularity: Path
    anchors: Path
    recognizer: str
    pairs: list[Path]
    gold: dict[str, list[Gold]]
    folder: Path | None = None

    def config(self, output: str) -> Config:
        """A config of the main job on these inputs."""
        return configuration.load(None, [
            f"output={output}", "session.master=local[2]", f"extract.recognizer={self.recognizer}",
            f"knowledge_base.dump={self.dump}", f"knowledge_base.popularity={self.popularity}",
            f"knowledge_base.anchors={self.anchors}",
        ])  # fmt: skip

    def texts(self, count: int) -> list[str]:
        """Raw alt-texts: real ones of the web where the folder has them, else the captions of the pairs."""
        files = [] if self.folder is None else sorted((self.folder / "alt_text").glob("*.parquet"))
        column, paths = ("TEXT", files) if files else ("caption", self.pairs)
        read: list[str] = []
        for path in paths:
            read += [text for text in pq.read_table(path, columns=[column])[column].to_pylist() if text]
        return read[:count]


def source(data: str | None, texts: int = 2000) -> Source:
    """The folder of real data, or the embedded sample for None or "sample"; at most `texts` gold texts of each set."""
    if data is None or data == "sample":
        folder = Path("out/sample/input")
        if not (folder / "manifest.json").exists():
            compose.compose(folder)
        return Source(
            "sample", folder / "dump.json.bz2", folder / "popularity.csv", folder / "anchors.tsv",
            str(PACKAGE / "models" / "recognizer"), sorted((folder / "pairs").glob("*.parquet")),
            {"sample-heldout": _held_out(texts)},
        )  # fmt: skip
    folder = Path(data)
    gold = {
        path.stem: [_gold(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()[:texts]]
        for path in sorted((folder / "gold").glob("*-dev.jsonl"))
    }
    return Source(
        str(folder), folder / "wikidata" / "sample-dump.json.bz2", folder / "wikidata" / "popularity.csv",
        folder / "wikidata" / "mention_counts.tsv", str(folder / "ner" / "model"),
        sorted((folder / "pairs").glob("0*.parquet")), gold, folder,
    )  # fmt: skip


def _gold(row: dict[str, Any]) -> Gold:
    return Gold(row["text"], tuple((m["start"], m["end"], int(m["qid"][1:])) for m in row["mentions"] if m["qid"]))


def _held_out(texts: int) -> list[Gold]:
    """Captions of draws that are neither in the sample's pairs nor in its recognizer's training, with the planted
    names."""
    from i2e_pipeline.sample.train_recognizer import captions

    made = []
    for caption in captions("heldout", texts):
        places = [(caption.text.lower().find(s.lower()), len(s), int(qid[1:])) for s, qid in caption.spans]
        made.append(Gold(caption.text, tuple((at, at + size, qid) for at, size, qid in places if at >= 0)))
    return made


def arguments_of(about: str) -> argparse.ArgumentParser:
    """The arguments that all three benchmarks of text have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=os.environ.get("I2E_REAL_DATA"), metavar="FOLDER",
        help='real data (default: $I2E_REAL_DATA, where it is set); "sample" for the embedded sample',
    )  # fmt: skip
    parser.add_argument("--gold-texts", type=int, default=1000, help="gold texts of each set, at most")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--work", default="out/benchmarks", help="where knowledge bases are kept between runs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def made_knowledge_base(data: Source, work: str) -> tuple[Run, Tables]:
    """The knowledge base of these inputs by the stages of the main job; made once, then found."""
    config = data.config(f"{work}/{Path(data.name).name}")
    stages = pipeline(config)
    run, _ = stages.run(STAGES)
    return run, stages.tables


def first_key(form: str, held: dict[str, Any]) -> str | None:
    """The first of a form's keys that the knowledge base holds."""
    return next((key for key, _ in keys_of(form) if key in held), None)


# --- measuring: shared with the other benchmarks --------------------------------------------------------------------


def measure(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """What each way returns (its amount of work) per CPU-second of this process; medians of interleaved rounds."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.process_time()
            amount = way()
            rates[name].append(amount / max(time.process_time() - started, 1e-9))
    return {name: float(f"{statistics.median(values):.4g}") for name, values in rates.items()}


def measure_ratios(
    ways: Mapping[str, Callable[[], float]], baseline: str, repeats: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """`measure`, and each way's ratio to the baseline of the same round: least, median, greatest.

    On a machine whose other work comes and goes, rounds differ more than ways do within one.
    """
    rounds = [measure(ways, 1) for _ in range(repeats)]
    rates = {name: float(f"{statistics.median(r[name] for r in rounds):.4g}") for name in ways}
    ratios = {name: sorted(r[name] / r[baseline] for r in rounds) for name in ways}
    return rates, {
        name: [round(value, 2) for value in (of[0], statistics.median(of), of[-1])] for name, of in ratios.items()
    }


def against(figures: dict[str, float], baseline: str) -> dict[str, float]:
    """Each figure divided by the baseline's."""
    return {name: round(value / figures[baseline], 2) for name, value in figures.items()}


def optional(module: str) -> Any:
    """A library that only a baseline needs; None, with a printed note, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        print(f"skipped the baseline {module}: not installed (pip install {module})")
        return None


def table(title: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Print rows of cells in columns, the first row being the head."""
    cells = [[f"{c:,.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*cells, fillvalue="")]
    print(f"\n{title}")
    for row in cells:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))]
        print("  " + "  ".join(padded).rstrip())


def conclude(figures: dict[str, Any], path: Path | None) -> dict[str, Any]:
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def processes() -> list[tuple[str, int, float]]:
    """(driver, jvm or worker; resident bytes; CPU seconds, those of dead children included) of this process and all
    below it. [] where neither psutil nor /proc is there."""
    try:
        import psutil
    except ImportError:
        return list(_from_proc())
    me = psutil.Process()
    found = []
    for process in [me, *me.children(recursive=True)]:
        try:
            kind = "driver" if process == me else "jvm" if "java" in process.name() else "worker"
            found.append((kind, process.memory_info().rss, sum(process.cpu_times()[:4])))
        except psutil.Error:
            continue
    return found


def _from_proc() -> Iterator[tuple[str, int, float]]:
    states: dict[int, tuple[str, list[str]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        states[int(path.parent.name)] = (head.partition("(")[2], rest.split())
    ours, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, (_, fields) in states.items() if int(fields[1]) in ours} - ours
        ours, grown = ours | more, bool(more)
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for pid in ours & set(states):
        name, fields = states[pid]
        kind = "driver" if pid == os.getpid() else "jvm" if "java" in name else "worker"
        yield kind, int(fields[21]) * page, sum(map(int, fields[11:15])) / tick


class PeakMemory:
    """Within the block, measures the greatest sum of resident bytes of each kind of process, and of all processes. A
    page that workers share counts once for each."""

    def __init__(self, every: float = 0.2) -> None:
        self.every = every
        self.peak: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.every):
            now: dict[str, int] = {}
            for kind, resident, _ in processes():
                for name in (kind, "all"):
                    now[name] = now.get(name, 0) + resident
            self.peak = {k: max(self.peak.get(k, 0), now.get(k, 0)) for k in {*self.peak, *now}}


# --- what is measured here ------------------------------------------------------------------------------------------


def read_lines(dump: Path, megabytes: float) -> list[bytes]:
    """Lines of a dump, without brackets, at most so many bytes of long and of short ones each."""
    room = {True: megabytes * 1e6, False: megabytes * 1e6}
    kept = []
    with bz2.open(dump) if dump.suffix == ".bz2" else dump.open("rb") as file:
        for line in file:
            if len(line) > 3 and room[len(line) >= LONG] > 0:
                kept.append(line)
                room[len(line) >= LONG] -= len(line)
    return kept


_CLAIMS = get_type_hints(Item)["claims"].__args__[0]
_FIXED_CLAIMS = msgspec.defstruct(
    "Claims", [(f.name, f.type, msgspec.field(default_factory=list)) for f in msgspec.structs.fields(_CLAIMS)], gc=False
)
FIXED = msgspec.defstruct(
    "Item",
    [
        (f.name, _FIXED_CLAIMS | tuple[()] if f.name == "claims" else f.type, f.default)
        for f in msgspec.structs.fields(Item)
    ],
    gc=False,
)


def measure_parse(lines: list[bytes], repeats: int) -> dict[str, Any]:
    """MB per CPU-second of each way, of long and of short lines."""
    orjson = optional("orjson")
    result = {}
    for kind, part in (
        ("long", [x for x in lines if len(x) >= LONG]),
        ("short", [x for x in lines if len(x) < LONG]),
    ):
        if not part:
            continue
        bare = [line.strip().removesuffix(b",") for line in part]
        amount = sum(map(len, part)) / 1e6
        ways = {"json": partial(_each, json.loads, bare, amount)}
        if orjson is not None:
            ways["orjson"] = partial(_each, orjson.loads, bare, amount)
        ways["msgspec"] = partial(_each, msgspec.json.Decoder(FIXED).decode, bare, amount)
        ways["lean"] = partial(_each, msgspec.json.Decoder(Item).decode, bare, amount)
        ways |= {"parse": partial(_each, parse, part, amount), "kernel": partial(_kernel, _batches(part), amount)}
        rates = measure(ways, repeats)
        result[kind] = {
            "lines": len(part),
            "bytes_per_line": round(1e6 * amount / len(part)),
            "mb_per_cpu_second": rates,
            "microseconds_per_line": {n: round(1e6 * amount / len(part) / rate, 1) for n, rate in rates.items()},
            "times_json": against(rates, "json"),
            "times_msgspec": against(rates, "msgspec"),
            "times_lean": against(rates, "lean"),
        }
    return result


def _each(work: Callable[[bytes], Any], lines: list[bytes], amount: float) -> float:
    for line in lines:
        with suppress(ValueError):  # the sample's dump holds broken lines
            work(line)
    return amount


def _kernel(batches: list[pa.RecordBatch], amount: float) -> float:
    for _ in read_items(batches):
        pass
    return amount


def _batches(lines: list[bytes], rows: int = 2048) -> list[pa.RecordBatch]:
    return [
        pa.record_batch([pa.array(lines[i : i + rows], pa.binary())], names=["value"])
        for i in range(0, len(lines), rows)
    ]


def name_rows(lines: list[bytes]) -> pa.Table:
    """NAME_ROWS of the lines' items, without anchors and popularity."""
    parts: dict[str, list[pa.RecordBatch]] = {}
    for kind, batch in read_items(_batches(lines)):
        parts.setdefault(kind, []).append(batch)
    names, entities = pa.Table.from_batches(parts["names"]), pa.Table.from_batches(parts["entities"])
    most = entities.select(["entity_id", "sitelinks"]).group_by("entity_id").aggregate([("sitelinks", "max")])
    fame = WEIGHTS.sitelinks * np.log1p(most["sitelinks_max"].to_numpy()) + WEIGHTS.popularity * np.log1p(
        WEIGHTS.unknown
    )
    joined = names.join(pa.table({"entity_id": most["entity_id"], "fame": fame}), "entity_id", join_type="inner")
    columns = {
        "count": pa.array([0] * joined.num_rows, pa.int64()),
        "unlinked": pa.nulls(joined.num_rows, pa.int64()),
        "links": pa.array([0] * joined.num_rows, pa.int64()),
    }
    for name, values in columns.items():
        joined = joined.append_column(name, values)
    joined = joined.select(NAME_ROWS.names).cast(NAME_ROWS)
    return joined.sort_by([("normal_form", "ascending"), ("entity_id", "ascending")]).combine_chunks()


def surfaces_row_by_row(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[int, float]], float]]:
    """The formulas of wikidata.priors, one surface after the other."""
    order = {kind: place for place, kind in enumerate(KINDS)}
    for form, group in itertools.groupby(rows, key=lambda r: r["normal_form"]):
        names = list(group)
        best: dict[int, tuple[float, int]] = {}
        for r in names:
            weight = KINDS[r["kind"]] * math.exp(r["fame"]) * (1.0 + r["links"]) ** WEIGHTS.links
            before = best.get(r["entity_id"], (0.0, 0))
            best[r["entity_id"]] = (max(weight, before[0]), before[1] + r["count"])
        priors = smoothed([n for _, n in best.values()], [w for w, _ in best.values()])
        candidates = sorted(zip(best, priors, strict=True), key=lambda c: (-c[1], c[0]))[: LIMITS.max_candidates]
        forms = sorted({r["surface"] for r in names})[: LIMITS.max_forms]
        kind = min((r["kind"] for r in names), key=order.__getitem__)
        anchors = sum(n for _, n in best.values())
        yield form, candidates, link_probability(base_link_probability(form, kind, forms), anchors)


def measure_surfaces(lines: list[bytes], repeats: int, baseline_rows: int = 60_000) -> dict[str, Any]:
    """Surfaces per CPU-second; the baseline runs on the first rows only."""
    rows = name_rows(lines)
    plain = rows.slice(0, baseline_rows).to_pylist()
    batches = rows.to_batches(max_chunksize=20_000)
    rates = measure(
        {
            "rows": lambda: sum(1 for _ in surfaces_row_by_row(plain)),
            "kernel": lambda: sum(batch.num_rows for batch in surfaces_kernel(batches)),
        },
        repeats,
    )
    return {"names": rows.num_rows, "surfaces_per_cpu_second": rates, "times_rows": against(rates, "rows")}


_VALUES = "map<string, struct<value: string>>"
_STATEMENTS = {
    kind: f"array<struct<mainsnak: struct<datavalue: struct<value: {value}>>, rank: string>>"
    for kind, value in (
        ("_EntityId", "struct<id: string, `numeric-id`: bigint>"),
        ("_Monolingual", "struct<text: string, language: string>"),
        ("str", "string"),
    )
}


def spark_schema() -> str:
    """What `wikidata.items` reads of a line, as Spark is told of it."""
    fields = _CLAIMS.__annotations__
    claims = (f"{name}: {next(s for kind, s in _STATEMENTS.items() if kind in said)}" for name, said in fields.items())
    return (
        f"type string, id string, redirect string, lastrevid bigint, labels {_VALUES}, descriptions {_VALUES}, "
        "aliases map<string, array<struct<value: string>>>, sitelinks map<string, struct<title: string>>, "
        f"claims struct<{', '.join(claims)}>"
    )


def measure_readers(dump: Path, repeats: int) -> dict[str, Any]:
    """CPU and wall seconds of both ways, medians of interleaved rounds after one that is not counted."""
    session = build(configuration.load(None, ["session.master=local[2]"]))

    def nowhere(frame: Any) -> None:
        frame.write.format("noop").mode("overwrite").save()

    in_tasks = read_in_tasks(session, recognised([str(dump)], DUMP))
    if in_tasks is None:
        raise SystemExit(f"--dump {dump} is compressed: unpack it")
    pieces, lines_of = in_tasks

    def rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _, batch in read_items(lines_of(batches)):
            yield pa.record_batch([pa.array([batch.num_rows])], ["rows"])

    def kernel() -> None:
        nowhere(pieces.mapInArrow(rows, "rows bigint"))

    ways = {"json": lambda: nowhere(session.read.schema(spark_schema()).json(str(dump))), "kernel": kernel}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            cpu, wall = sum(p[2] for p in processes()), time.perf_counter()
            way()
            spent[name].append((sum(p[2] for p in processes()) - cpu, time.perf_counter() - wall))
    found = {
        what: {name: round(statistics.median(s[n] for s in each[1:]), 2) for name, each in spent.items()}
        for n, what in enumerate(("cpu_seconds", "wall_seconds"))
    }
    return {**found, "json_times_kernel": {w: round(f["json"] / max(f["kernel"], 0.01), 2) for w, f in found.items()}}


def measure_stages(data: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """(stages, prior): both stages on Spark, from nothing, against the bare kernels; and what they made."""
    with tempfile.TemporaryDirectory() as folder:
        config = data.config(f"{folder}/kb")
        session = build(config)
        both = pipeline(config, lambda: session)
        # A session's start is not the stages' cost.
        session.range(1).count()
        held = sum(resident for kind, resident, _ in processes() if kind == "driver")
        cpu, wall = sum(p[2] for p in processes()), time.perf_counter()
        with PeakMemory() as memory:
            run, _ = both.run(STAGES)
        wall = time.perf_counter() - wall
        cpu = sum(p[2] for p in processes()) - cpu
        commits = {stage: run.committed(stage)[0] for stage in STAGES}
        prior = measure_prior(data, run, both.tables)
    lines = read_lines(data.dump, float("inf"))
    kernels = cpu_seconds_of_kernels(lines)
    stages = {
        "dump_mb": round(sum(map(len, lines)) / 1e6, 1),
        "entities": commits["knowledge_base"].rows("kb/entities"),
        "surfaces": commits["surfaces"].rows("kb/surfaces"),
        "kernels_cpu_seconds": round(kernels, 2),
        "wall_seconds": {**{s: round(c.seconds, 1) for s, c in commits.items()}, "both": round(wall, 1)},
        "cpu_seconds": round(cpu, 1),
        "cpu_times_kernels": round(cpu / kernels, 2),
        "wall_times_kernels": round(wall / kernels, 2),
        "driver_mb_before": round(held / 1e6),
        "peak_mb": {kind: round(size / 1e6) for kind, size in sorted(memory.peak.items())},
    }
    return stages, prior


def cpu_seconds_of_kernels(lines: list[bytes]) -> float:
    """CPU seconds of `read_items` and `priors.surfaces` over these lines, in this process."""
    batches, started = _batches(lines), time.process_time()
    for _ in read_items(batches):
        pass
    spent = time.process_time() - started
    named = name_rows(lines).to_batches(max_chunksize=20_000)
    started = time.process_time()
    for _ in surfaces_kernel(named):
        pass
    return spent + time.process_time() - started


def measure_prior(data: Source, run: Run, tables: Tables) -> dict[str, Any]:
    """How often the right entity is first, and is there at all: by prior, and by two rankings that do not use it."""
    surfaces = tables.load("kb/surfaces", run.committed("surfaces"), ["normal_form", "candidates"])
    entities = tables.load("kb/entities", run.committed("knowledge_base"), ["entity_id", "sitelinks"])
    held = dict(zip(surfaces["normal_form"].to_pylist(), range(surfaces.num_rows), strict=True))
    candidates = surfaces["candidates"].combine_chunks()
    sitelinks = dict(zip(*(entities[c].to_pylist() for c in ("entity_id", "sitelinks")), strict=True))
    result = {}
    for name, texts in data.gold.items():
        count = among = 0
        right = {"lowest id": 0, "sitelinks": 0, "prior": 0}
        for gold in texts:
            for start, end, truth in gold.mentions:
                key = first_key(normal_form(gold.text[start:end]), held)
                ids = [c["entity_id"] for c in candidates[held[key]].as_py()] if key is not None else []
                count += 1
                among += truth in ids
                if ids:
                    right["prior"] += ids[0] == truth
                    right["sitelinks"] += min(ids, key=lambda e: (-sitelinks[e], e)) == truth
                    right["lowest id"] += min(ids) == truth
        result[name] = {
            "mentions": count,
            "top1": {way: round(hits / max(count, 1), 4) for way, hits in right.items()},
            "among_20": round(among / max(count, 1), 4),
            "prior_times_sitelinks": round(right["prior"] / max(right["sitelinks"], 1), 3),
        }
    return result


def show(figures: dict[str, Any]) -> None:
    print(f"input: {figures['input']}")
    for kind, f in figures["parse"].items():
        head = ("way", "MB/CPU-s", "us/line", "times json", "times msgspec", "times lean")
        rates = f["mb_per_cpu_second"]
        table(
            f"parse, {f['lines']:,} {kind} lines of {f['bytes_per_line']:,} bytes (baseline: json.loads)",
            [
                head,
                *(
                    (
                        w,
                        rates[w],
                        f["microseconds_per_line"][w],
                        *(f[t][w] for t in ("times_json", "times_msgspec", "times_lean")),
                    )
                    for w in rates
                ),
            ],
        )
    if r := figures.get("readers"):
        ways = [(way, r["cpu_seconds"][way], r["wall_seconds"][way]) for way in r["cpu_seconds"]]
        times = ("json / kernel", *r["json_times_kernel"].values())
        table("readers on Spark (baseline: spark.read.json)", [("way", "CPU s", "wall s"), *ways, times])
    s = figures["surfaces"]
    rates = s["surfaces_per_cpu_second"]
    table(
        f"surfaces of {s['names']:,} names (baseline: one after the other in plain Python)",
        [("way", "surfaces/CPU-s", "times rows"), *((w, rates[w], s["times_rows"][w]) for w in rates)],
    )
    if t := figures.get("stages"):
        table(
            f"stages on Spark, {t['entities']:,} entities, {t['dump_mb']} MB of dump "
            f"(baseline: the bare kernels, {t['kernels_cpu_seconds']} CPU-s)",
            [
                ("", "seconds", "times kernels"),
                ("wall", t["wall_seconds"]["both"], t["wall_times_kernels"]),
                ("CPU of all processes", t["cpu_seconds"], t["cpu_times_kernels"]),
            ],
        )
        peaks = ", ".join(f"{kind} {size:,}" for kind, size in t["peak_mb"].items())
        print(f"  peak resident MB: {peaks} (the driver held {t['driver_mb_before']:,} before)")
    for name, p in figures.get("prior", {}).items():
        table(
            f"prior, {p['mentions']:,} mentions of {name}, spans given (baselines: the same candidates, ranked so)",
            [
                ("first by", "right"),
                *p["top1"].items(),
                ("(among the 20)", p["among_20"]),
                ("prior / sitelinks", p["prior_times_sitelinks"]),
            ],
        )


def main(arguments: list[str]) -> dict[str, Any]:
    parser = arguments_of(__doc__ or "")
    parser.add_argument(
        "--dump", type=Path, help="a plain dump whose lines are read, in place of the data's, and readers"
    )
    parser.add_argument("--megabytes", type=float, default=24, help="of long and of short lines each, for parse")
    parser.add_argument("--no-spark", action="store_true", help="leave out stages, prior and readers")
    options = parser.parse_args(arguments)
    data = source(options.data, options.gold_texts)
    figures: dict[str, Any] = {"input": data.name}
    if not options.no_spark:  # measured first, while this process holds nothing else
        figures["stages"], figures["prior"] = measure_stages(data)
        if options.dump is not None:
            figures["readers"] = measure_readers(options.dump, options.repeats)
    lines = read_lines(options.dump or data.dump, options.megabytes)
    figures["parse"] = measure_parse(lines, options.repeats)
    figures["surfaces"] = measure_surfaces(lines, options.repeats)
    show(figures)
    return conclude(figures, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
