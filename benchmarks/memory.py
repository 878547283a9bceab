"""Does memory grow with the rows? Peaks of every process of `i2e run` over 1, 2, 4, 8 and 16 times the same rows.

    python benchmarks/memory.py [--rows 3000] [--files 4] [--sizes 1 2 4 8 16] [--units 625 2500 10000] [--waves 1500]
                                [--json FILE]

One world is composed for the largest size; a smaller one has the first of its files, so that units are of the same size
throughout and only their number grows. Each size is a run of its own, in processes of its own, and all of them are read
from /proc twice a second, by role:

driver   the Python that was started                      resident: RSS
jvm      Spark's Java (in local mode tasks run in it too) resident: RSS, and the live heap
workers  Spark's Python workers and the daemon that they fork from
           sum      PSS: a page that n processes share counts 1/n in each. The gazetteer, entities' vectors and what
                    was imported before the fork are such pages; the sum of RSS counts them once a worker
           largest  RSS of one process, which is what a container's limit for one would have to hold

RSS of Java says what its collector left lying, up to -Xmx. What it needs is what is still reachable: every
--live-every seconds all garbage is collected and what is left is counted by class (jcmd, of a JDK). `live heap` is all
of that; `kept` is without arrays of long. These are the pages in which tasks at work sort and aggregate rows: Spark
gives them to whoever asks, up to spark.memory.fraction of the heap, and then writes to the disk. A leak is in `kept`.

--waves: the same sizes again (of those the smallest, one between and the largest) in waves of so many rows, two waves
or more at each size: what grows with a wave is then the same at every size. 0: leave it out.

--units: the driver over so many files of ten rows without images, each a unit, up to the stage `extract`: what the
lists of files, units and commits take, per unit. 0: leave it out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from i2e_pipeline.sample import compose, embedded

ROLES = ("driver", "jvm", "workers")


@dataclass
class Held:
    """What the processes of one role hold at one time; bytes."""

    rss: int = 0
    pss: int = 0
    uss: int = 0
    """In no other process."""
    largest: int = 0
    """RSS of the largest process."""
    processes: int = 0
    threads: int = 0
    files: int = 0
    """Open file descriptors."""

    def add(self, pid: int) -> None:
        """Count a process too. Raises OSError when it has ended."""
        place = Path("/proc") / str(pid)
        parts = _kilobytes((place / "smaps_rollup").read_text())
        rss = 1024 * parts["Rss"]
        self.rss += rss
        self.pss += 1024 * parts["Pss"]
        self.uss += 1024 * (parts["Private_Clean"] + parts["Private_Dirty"])
        self.largest = max(self.largest, rss)
        self.processes += 1
        self.threads += len(os.listdir(place / "task"))
        self.files += len(os.listdir(place / "fd"))


def _kilobytes(text: str) -> dict[str, int]:
    return {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def tree(root: int) -> Iterator[tuple[int, str]]:
    """(pid, role) of a process and all below it. Below Java all are workers."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                head, _, rest = (entry / "stat").read_text().rpartition(")")
            except OSError:  # it has ended meanwhile
                continue
            names[int(entry.name)] = head.partition("(")[2]
            children.setdefault(int(rest.split()[1]), []).append(int(entry.name))
    wave = [(root, "driver")]
    while wave:
        yield from wave
        wave = [(child, _role(names.get(child, ""), role)) for pid, role in wave for child in children.get(pid, ())]


def _role(name: str, above: str) -> str:
    return "jvm" if name == "java" and above == "driver" else "workers" if above in ("jvm", "workers") else "driver"


def held(root: int) -> dict[str, Held]:
    """What a process and all below it hold now, by role."""
    found = {role: Held() for role in ROLES}
    for pid, role in tree(root):
        try:
            found[role].add(pid)
        except (OSError, KeyError):  # it has ended, or it is the parent's copy on its way to exec
            continue
    return found


class Sampler:
    """Within the block, reads the processes below `root` every so many seconds."""

    def __init__(self, root: int, every: float = 0.5) -> None:
        self.root, self.every = root, every
        self.peak: dict[str, Held] = {role: Held() for role in ROLES}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.every):
            for role, now in held(self.root).items():
                most = self.peak[role]
                for name, value in vars(now).items():
                    setattr(most, name, max(getattr(most, name), value))


@dataclass
class Heap:
    """What is reachable on Java's heap; bytes."""

    live: int = 0
    kept: int = 0
    """Without arrays of long, which are the pages that tasks at work sort and aggregate rows in."""


def histogram(text: str) -> Heap | None:
    """Reads `jcmd PID GC.class_histogram`; None where it says nothing."""
    total = re.search(r"^Total\s+\d+\s+(\d+)", text, re.MULTILINE)
    if not total:
        return None
    pages = re.search(r"^\s*\d+:\s+\d+\s+(\d+)\s+\[J\b", text, re.MULTILINE)
    return Heap(int(total[1]), int(total[1]) - (int(pages[1]) if pages else 0))


def heap(root: int) -> Heap | None:
    """Has the Java below a process collect all garbage, and looks at what is left. None without Java or jcmd."""
    jcmd = shutil.which("jcmd")
    for pid, role in tree(root):
        if role == "jvm" and jcmd:
            said = subprocess.run(
                [jcmd, str(pid), "GC.class_histogram"], capture_output=True, text=True, check=False
            ).stdout
            return histogram(said)
    return None


def _look(root: int, every: float, stop: threading.Event, found: list[Heap]) -> None:
    while every and not stop.wait(every):
        if now := heap(root):
            found.append(now)


def watched(arguments: Sequence[str], folder: Path, live_every: float) -> dict[str, Any]:
    """Runs `i2e` with these arguments; its peaks by role in MB, and its seconds."""
    began, stop = time.monotonic(), threading.Event()
    heaps: list[Heap] = []
    with open(folder / "said", "w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "i2e_pipeline.cli", *arguments], stdout=said, stderr=subprocess.STDOUT
        )
        looker = threading.Thread(target=_look, args=(process.pid, live_every, stop, heaps), daemon=True)
        looker.start()
        with Sampler(process.pid) as sampler:
            code = process.wait()
        stop.set()
        looker.join()
    if code:
        raise SystemExit(f"i2e {' '.join(arguments)} ended with {code}:\n{(folder / 'said').read_text()}")
    peak = sampler.peak
    return {
        "seconds": round(time.monotonic() - began, 1),
        "driver": _mb(peak["driver"].rss), "jvm": _mb(peak["jvm"].rss),
        "jvm_live_heap": _mb(max((h.live for h in heaps), default=0)),
        "jvm_kept": _mb(max((h.kept for h in heaps), default=0)),
        "workers": _mb(peak["workers"].pss), "largest_worker": _mb(peak["workers"].largest),
        "worker_processes": peak["workers"].processes,
        "threads": {role: peak[role].threads for role in ROLES}, "files": {role: peak[role].files for role in ROLES},
    }  # fmt: skip


def _mb(size: int) -> float:
    return round(size / 1e6, 1)


def config(folder: Path, world: Path, *overrides: str) -> Path:
    """The sample's settings over folder/pairs into folder/out, a file each unit, as a file."""
    settings = embedded.tree([f"output={folder}/out", f"pairs.path={folder}/pairs/*.parquet", *overrides])
    for name in ("dump", "popularity", "anchors"):
        settings["knowledge_base"][name] = str(world / Path(settings["knowledge_base"][name]).name)
    settings["pairs"]["files_per_unit"] = 1
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def over_rows(
    root: Path, world: Path, files: int, sizes: Sequence[int], live_every: float, *overrides: str
) -> dict[str, Any]:
    """Peaks by size: so many times the rows in so many times the files."""
    found = {}
    for size in sizes:
        folder = root / f"rows-{size}"
        (folder / "pairs").mkdir(parents=True)
        for shard in sorted((world / "pairs").iterdir())[: size * files]:
            os.link(shard, folder / "pairs" / shard.name)
        counted = sum(pq.read_metadata(path).num_rows for path in (folder / "pairs").iterdir())
        made = config(folder, world, "run.allow_empty=true", *overrides)
        figures = watched(["run", "--config", str(made)], folder, live_every)
        found[str(size)] = {"rows": counted, "units": size * files, **figures}
        print(f"{size}x: {json.dumps(found[str(size)])}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    return found


def over_units(root: Path, world: Path, counts: Sequence[int], live_every: float) -> dict[str, Any]:
    """Peaks by number of units: files of ten rows that have texts and no images, up to the stage `extract`."""
    rows = pa.concat_tables([pq.read_table(path, columns=["key", "url", "caption"]) for path in _shards(world)])
    texts = [text for text in rows["caption"].to_pylist() if text and len(text) < 1000]
    found = {}
    for count in counts:
        folder = root / f"units-{count}"
        (folder / "pairs").mkdir(parents=True)
        for n in range(count):
            captions = [f"{texts[(10 * n + i) % len(texts)]} {n}" for i in range(10)]
            keys = [f"{n}-{i}" for i in range(10)]
            urls = [f"https://example.org/{key}" for key in keys]
            jpg = pa.nulls(10, pa.binary())
            table = pa.table({"key": keys, "url": urls, "caption": captions, "jpg": jpg})
            pq.write_table(table, folder / "pairs" / f"{n:06}.parquet")
        figures = watched(["run", "--config", str(config(folder, world)), "--until", "extract"], folder, live_every)
        found[str(count)] = {"units": count, **figures}
        print(f"{count} units: {json.dumps(found[str(count)])}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    return found


def _shards(world: Path) -> list[Path]:
    return sorted((world / "pairs").iterdir())


_SHOWN = {
    "driver": "driver Python", "jvm": "driver Java", "jvm_live_heap": "live heap", "jvm_kept": "kept",
    "workers": "workers, sum", "largest_worker": "largest worker",
}  # fmt: skip


def shown(found: dict[str, Any], title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in (first, *_SHOWN.values(), "s"):
        table.add_column(heading, justify="right")
    base = next(iter(found.values()))
    for figures in found.values():
        cells = [f"{figures[name]:,.0f} ({figures[name] / (base[name] or 1):.2f})" for name in _SHOWN]
        table.add_row(f"{figures[first]:,}", *cells, f"{figures['seconds']:,.0f}")
    return table


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000, help="of the smallest size")
    parser.add_argument("--files", type=int, default=4, help="of the smallest size, each a unit")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--waves", type=int, default=1500, metavar="ROWS", help="0: leave it out")
    parser.add_argument("--units", type=int, nargs="+", default=[625, 2500, 10000], help="0: leave it out")
    parser.add_argument("--live-every", type=float, default=10, metavar="SECONDS", help="between full collections")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as place:
        root, largest = Path(place), max(options.sizes)
        world = root / "world"
        compose.compose(world, rows=largest * options.rows, shards=largest * options.files)
        figures = {"rows": over_rows(root, world, options.files, options.sizes, options.live_every)}
        console.print(shown(figures["rows"], "Peaks in MB, and how many times those of the smallest size", "rows"))
        if options.waves:
            some = sorted({options.sizes[n] for n in (0, len(options.sizes) // 2, -1)})
            waves = f"run.wave_rows={options.waves}"
            figures["waves"] = over_rows(root, world, options.files, some, options.live_every, waves)
            console.print(shown(figures["waves"], f"The same in waves of {options.waves:,} rows", "rows"))
        if any(options.units):
            figures["units"] = over_units(root, world, options.units, options.live_every)
            console.print(shown(figures["units"], "The driver over units of ten rows, up to `extract`", "units"))
            few, many = (list(figures["units"].values())[n] for n in (0, -1))
            each = (many["driver"] - few["driver"]) / (many["units"] - few["units"]) if many is not few else 0.0
            figures["driver_kb_a_unit"] = round(1000 * each, 1)
            console.print(f"each further unit: {figures['driver_kb_a_unit']} KB of the driver's Python")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
