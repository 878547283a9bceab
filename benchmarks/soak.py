"""Half an hour of one driver: does anything of it grow that should not, and is the dataset right at the end?

    python benchmarks/soak.py [--minutes 30] [--rows 120] [--json benchmarks/results/soak.json]
                              [--plot docs/images/soak.svg]

One process with one Spark session runs the chain again and again over an input that grows: each step brings a file of
--rows new rows and asks for something more, in turn: rows that were rejected are tried again (`i2e retry`), another
threshold labels all units anew, the list of exclusions grows by an image and loses its oldest, a unit is forgotten. So
every stage works for the whole time, and what depends on all units has more to do each time.

Another process looks on. Of each ten seconds it keeps the most of: memory by role (benchmarks/memory.py says which
figure of which role, and why), what is kept on Java's heap, open files, threads, processes, and files in the
driver's temporary folder and in `_staging`. At the end an undisturbed run makes the same dataset of the same input in
another output, and the two are compared, row by row.

`grew`: the median of the last fifth of the time against that of the second fifth (the first is warming up). What is
kept per unit and commit grows with them; `units` says how many there were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from memory import Held, config, heap, held

from i2e_pipeline.pages import svg
from i2e_pipeline.pages.palette import SERIES
from i2e_pipeline.sample import compose

WINDOW = 10.0
"""Seconds of which a sample is the most."""
HARD = ("truncated", "html", "null image", "empty caption", "duplicate")
"""Kinds of rows that each file has one of: something to reject, and something to try again."""
RETRIED = ("truncated_image", "not_an_image")
THRESHOLDS = (0.2, 0.35)
LAST_THRESHOLD = 0.25
CYCLE = ("grow", "retry", "grow", "threshold", "grow", "exclude", "grow", "forget")
"""What a step asks for; each adds a file, too."""


# --- the driver -----------------------------------------------------------------------------------------------------


def drive() -> None:
    """Carries out what comes on standard input, a line of JSON a step, and answers with a line each."""
    import i2e_pipeline
    from i2e_pipeline import stages
    from i2e_pipeline.commands.run import run
    from i2e_pipeline.engine.retrying import retry

    for line in sys.stdin:
        step = json.loads(line)
        began = time.monotonic()
        if step["do"] == "retry":
            whole = stages.pipeline(stages.load(step["config"], step["set"]))
            with whole.exclusive():
                tried = retry(whole, RETRIED)
                done = run(whole)
            step["tried_again"] = sum(sum(t.rows.values()) for t in tried)
        else:
            done = i2e_pipeline.run(step["config"], set=step["set"], forget=step.get("forget", ()))
        worked = {state.stage.name: len(state.to_do) for state in done.states}
        rows = sum(unit.rows for unit in done.run.units)
        answer = {"worked": worked, "rows": rows, "units": len(done.run.units), "seconds": time.monotonic() - began}
        print("done " + json.dumps(step | answer), flush=True)


class Driver:
    """A process that runs `drive`, with a temporary folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        # The launcher reads it. spark.driver.extraJavaOptions would take the place of what the session sets there.
        options = f"-Djava.io.tmpdir={self.temporary}"
        environment = {"TMPDIR": str(self.temporary), "SPARK_LOCAL_DIRS": str(self.temporary)}
        self._log = folder / "said"
        with open(self._log, "w") as said:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--drive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                text=True, env=os.environ | environment | {"JDK_JAVA_OPTIONS": options},
            )  # fmt: skip

    def ask(self, step: dict[str, Any]) -> dict[str, Any]:
        """Have a step carried out. Raises SystemExit where it fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(step) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("done "):
                found: dict[str, Any] = json.loads(line.removeprefix("done "))
                return found
        raise SystemExit(f"the driver ended at {step}:\n{self._log.read_text()[-5000:]}")

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait()


# --- who looks on ---------------------------------------------------------------------------------------------------


class Watch:
    """Within the block, samples of the driver, its processes and its files, one a window."""

    def __init__(self, driver: Driver, folder: Path, window: float, look_every: float = 30.0) -> None:
        self.driver, self.folder, self.window, self.look_every = driver, folder, window, look_every
        self.samples: list[dict[str, float]] = []
        self.rows = 0
        """Done so far, as the driver said last."""
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        most: dict[str, float] = {}
        ends, looks = self._began + self.window, self._began
        seen = {"live heap MB": 0.0, "kept heap MB": 0.0}
        while not self._stop.wait(1.0):
            for name, value in self._now().items():
                most[name] = max(most.get(name, 0.0), value)
            if time.monotonic() >= looks:
                looks += self.look_every
                if found := heap(self.driver.process.pid):
                    seen = {"live heap MB": found.live / 1e6, "kept heap MB": found.kept / 1e6}
            if time.monotonic() >= ends:
                most |= seen | {"minute": (time.monotonic() - self._began) / 60, "rows": self.rows}
                self.samples.append({name: round(value, 2) for name, value in most.items()})
                most, ends = {}, ends + self.window

    def _now(self) -> dict[str, float]:
        roles = held(self.driver.process.pid)
        found = _of(roles)
        files, size = _lying(self.driver.temporary)
        staged, _ = _lying(self.folder / "out" / "_staging")
        return found | {"temporary files": files, "temporary MB": size / 1e6, "staged files": staged}


def _of(roles: dict[str, Held]) -> dict[str, float]:
    found: dict[str, float] = {
        "driver MB": roles["driver"].rss / 1e6, "jvm MB": roles["jvm"].rss / 1e6,
        "workers MB": roles["workers"].pss / 1e6, "largest worker MB": roles["workers"].largest / 1e6,
        "processes": sum(one.processes for one in roles.values()),
    }  # fmt: skip
    for role, one in roles.items():
        found |= {f"{role} files": one.files, f"{role} threads": one.threads}
    return found


def _lying(folder: Path) -> tuple[int, int]:
    """Files below a folder, and their bytes."""
    count = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # it has gone meanwhile
                continue
            count += 1
    return count, size


# --- what is asked for ----------------------------------------------------------------------------------------------


def steps(folder: Path, rows: int, cycle: Sequence[str] = CYCLE) -> Iterator[dict[str, Any]]:
    """Steps without an end; each has laid out its file, and what else it asks for, when it is handed out."""
    draw = random.Random(30)
    listed: list[str] = []
    threshold = THRESHOLDS[0]
    number = 0
    while True:
        for do in cycle:
            kinds = [(kind, number % compose.HARD[kind]) for kind in HARD]
            ordinary = [("", number * rows + i) for i in range(rows)]
            path = folder / "pairs" / f"{number:05}.parquet"
            compose.write_shard(path.with_name(".new"), [*ordinary, *kinds], number * (rows + len(kinds)))
            path.with_name(".new").rename(path)
            step: dict[str, Any] = {"do": do, "number": number}
            if do == "threshold":
                threshold = THRESHOLDS[1] if threshold == THRESHOLDS[0] else THRESHOLDS[0]
            elif do == "exclude":
                images = ds.dataset(folder / "out" / "i2e" / "images", format="parquet")
                ids = sorted(images.to_table(columns=["image_id"])["image_id"].to_pylist())
                listed += [draw.choice(ids).hex() if isinstance(ids[0], bytes) else draw.choice(ids)]
                if len(listed) > 8:
                    listed.pop(0)
                (folder / "lists" / "images.txt").write_text("\n".join(listed) + "\n")
            elif do == "forget":
                step["forget"] = [_unit_to_forget(folder, draw)]
            yield step | _settings(folder, threshold)
            number += 1


def _settings(folder: Path, threshold: float) -> dict[str, Any]:
    return {
        "config": str(folder / "config.yaml"),
        "set": [f"label.threshold={threshold}", f"select.exclude={folder}/lists"],
    }


def _unit_to_forget(folder: Path, draw: random.Random) -> str:
    """A unit's name. Its file leaves the input that the dataset is made of at the end."""
    from i2e_pipeline.engine.units import Units

    unit = draw.choice(Units(str(folder / "out")).known())
    for file in unit.files:
        name = Path(file.path).name
        (folder / "forgotten").mkdir(exist_ok=True)
        (folder / "forgotten" / name).touch()
    return unit.name


# --- what came of it ------------------------------------------------------------------------------------------------


def content(output: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """What a dataset says of each image and each entity, by id; an image's bytes by their digest. Class indices are
    left out: they depend on the order in which entities came."""
    images: dict[Any, Any] = {}
    for batch in ds.dataset(output / "i2e" / "images", format="parquet").to_batches(batch_size=256):
        for row in batch.to_pylist():
            if row["image_id"] in images:
                raise SystemExit(f"image {row['image_id']} stands twice in {output}")
            labels = [{k: _rounded(v) for k, v in x.items() if k != "class_index"} for x in row.pop("labels")]
            row["image"] = hashlib.sha256(row["image"]["bytes"]).hexdigest()
            row.pop("unit", None)
            images[row["image_id"]] = repr((sorted(row.items()), sorted(map(repr, labels))))
    entities = {}
    for row in ds.dataset(output / "i2e" / "entities", format="parquet").to_table().to_pylist():
        if not row["retired"]:
            entities[row["entity_id"]] = repr(sorted((k, _rounded(v)) for k, v in row.items() if k != "class_index"))
    return images, entities


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def compared(one: Path, other: Path) -> dict[str, int]:
    """Rows of two datasets: in both alike, in one alone, in both and unlike."""
    found = {"alike": 0, "lost": 0, "too many": 0, "unlike": 0}
    for ours, theirs in zip(content(one), content(other), strict=True):
        found["lost"] += len(theirs.keys() - ours.keys())
        found["too many"] += len(ours.keys() - theirs.keys())
        for key in ours.keys() & theirs.keys():
            found["alike" if ours[key] == theirs[key] else "unlike"] += 1
    return found


def grew(samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of each figure the median of the second and of the last fifth of the time, and their quotient."""
    fifth = max(1, len(samples) // 5)
    found = {}
    for name in samples[-1]:
        if name not in ("minute", "rows"):
            early, late = (
                statistics.median(s.get(name, 0.0) for s in part)
                for part in (samples[fifth : 2 * fifth], samples[-fifth:])
            )
            found[name] = {"early": round(early, 1), "late": round(late, 1), "times": round(late / (early or 1), 3)}
    return found


_PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "memory, MB", "MB",
        (("jvm MB", "Java, resident"), ("workers MB", "Python workers, together"), ("driver MB", "driver's Python"),
         ("kept heap MB", "kept on Java's heap")),
    ),
    ("open files", "", (("jvm files", "Java"), ("workers files", "workers"), ("driver files", "driver's Python"))),
    ("threads", "", (("jvm threads", "Java"), ("workers threads", "workers"), ("driver threads", "driver's Python"))),
    (
        "temporary files", "",
        (("temporary files", "the driver's temporary folder"), ("staged files", "_staging")),
    ),
    ("rows in the dataset's input", "", (("rows", "rows"),)),
)  # fmt: skip
_PANEL, _HEAD, _GAP = 110.0, 44.0, 34.0


def plot(samples: Sequence[dict[str, float]], title: str) -> str:
    """Curves over the minutes, a panel for each kind of figure, each from zero."""
    minutes = samples[-1]["minute"] or 1.0
    body, y = [svg.text(0, 16, title, strong=True)], 34.0
    height = 34 + len(_PANELS) * (_HEAD + _PANEL + _GAP)
    for heading, _, series in _PANELS:
        most = max(max(s.get(name, 0.0) for s in samples) for name, _ in series) or 1.0
        body += [
            svg.text(0, y + 14, heading, strong=True),
            svg.text(100, y + 14, f"at most {most:,.0f}", "end", muted=True),
        ]
        top = y + _HEAD
        body += [svg.hline(top), svg.hline(top + _PANEL)]
        for n, (name, said) in enumerate(series):
            points = [(100 * s["minute"] / minutes, top + _PANEL * (1 - s.get(name, 0.0) / most)) for s in samples]
            body.append(svg.curve(points, height, SERIES[n]))
            at = 25.0 * n
            body += [svg.swatch(at, y + 34, SERIES[n]), svg.text(at + 2.4, y + 34, said, muted=True)]
        for quarter in range(5):
            anchor = "start" if quarter == 0 else "end" if quarter == 4 else "middle"
            said = f"{minutes * quarter / 4:.1f}".removesuffix(".0") + (" minutes" if quarter == 4 else "")
            body.append(svg.text(25.0 * quarter, top + _PANEL + 17, said, anchor, muted=True))
        y = top + _PANEL + _GAP
    return svg.drawing(height, body, title, width="900")


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, help="end after so many, whatever the time")
    parser.add_argument("--rows", type=int, default=120, help="of each step's file, without the hard ones")
    parser.add_argument("--cycle", nargs="+", default=CYCLE, choices=sorted(set(CYCLE)), help="what steps ask for")
    parser.add_argument("--window", type=float, default=WINDOW, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.drive:
        drive()
        return {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("pairs", "lists"):
            (folder / name).mkdir()
        (folder / "lists" / "images.txt").write_text("# nobody yet\n")
        compose.compose(folder / "world", rows=1, shards=1, processes=1)
        config(folder, folder / "world", "run.allow_empty=true", "select.min_images_per_entity=1")
        figures = soak(folder, options)
    if options.json:
        # A line for each sample.
        said = json.dumps(figures).replace('{"minute"', '\n{"minute"').replace('{"driver MB"', '\n{"driver MB"')
        options.json.write_text(said + "\n", encoding="utf-8")
    if options.plot:
        said = f"{figures['minutes']:.0f} minutes of one driver: {figures['steps']} runs, {figures['rows']:,} rows"
        options.plot.write_text(plot(figures["samples"], said) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in figures.items() if k != "samples"}, indent=1))
    return figures


def soak(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    driver, done = Driver(folder), []
    ends = time.monotonic() + 60 * options.minutes
    with Watch(driver, folder, options.window) as watch:
        for step in steps(folder, options.rows, options.cycle):
            if time.monotonic() >= ends or len(done) == options.steps:
                break
            done.append(driver.ask(step))
            watch.rows = done[-1]["rows"]
            print(
                f"{done[-1]['number']:4} {done[-1]['do']:<10} {done[-1]['seconds']:6.1f} s", file=sys.stderr, flush=True
            )
        (folder / "pairs" / f"{step['number']:05}.parquet").unlink()  # of the step that was not carried out
        last = {"do": "last", "number": step["number"], **_settings(folder, LAST_THRESHOLD)}
        done.append(driver.ask(last))
        watch.rows = done[-1]["rows"]
    idle = held(driver.process.pid)
    code = driver.end()
    left = _left(driver.temporary)
    staged = _lying(folder / "out" / "_staging")[0]
    for name in (folder / "forgotten").glob("*"):
        (folder / "pairs" / name.name).unlink(missing_ok=True)
    again = _undisturbed(folder, last)
    worked: dict[str, int] = {}
    for step in done:
        for stage, units in step["worked"].items():
            worked[stage] = worked.get(stage, 0) + units
    samples = watch.samples or [{"minute": 0.0, "rows": 0.0}]
    return {
        "minutes": round(samples[-1]["minute"], 1), "steps": len(done), "rows": done[-1]["rows"],
        "units": done[-1]["units"], "units worked on": worked,
        "asked": {do: sum(s["do"] == do for s in done) for do in dict.fromkeys((*CYCLE, "last"))},
        "tried again": sum(s.get("tried_again", 0) for s in done), "exit code": code,
        "processes at the end": {role: one.processes for role, one in idle.items()},
        "left in the temporary folder": left, "files left in _staging": staged, "orphans": again["orphans"],
        "dataset against an undisturbed run": again["dataset"], "grew": grew(samples), "samples": samples,
    }  # fmt: skip


def _left(temporary: Path) -> list[str]:
    """What the driver has not taken with it, by name, beside what this machine keeps for the next (core/machine.py)."""
    ends = time.monotonic() + 60  # Java clears up behind Python's end
    while names := [
        name for name in os.listdir(temporary) if not name.startswith((f"i2e-{os.getuid()}", "torchinductor", "liblz4"))
    ]:
        if time.monotonic() > ends:
            break
        time.sleep(1)
    return sorted(names)


def _undisturbed(folder: Path, last: dict[str, Any]) -> dict[str, Any]:
    """One run over the same input in another output, in a process of its own; how the dataset differs from it."""
    from i2e_pipeline.engine.tables import Tables

    driver = [sys.executable, "-m", "i2e_pipeline.cli", "run", "--config", last["config"]]
    for setting in [*last["set"], f"output={folder}/once"]:
        driver += ["--set", setting]
    subprocess.run(driver, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    orphans = len(Tables(str(folder / "out")).orphans())
    return {"orphans": orphans, "dataset": compared(folder / "out", folder / "once")}


if __name__ == "__main__":
    main(sys.argv[1:])
