"""How fast `i2e explore` answers, and in how much memory, on a made-up dataset of any size.

    python benchmarks/explore.py [--entities 20000] [--images 100000] [--into FOLDER] [--browser] [--json FILE]

Writes the dataset (explore_dataset.py) where it is not there yet, starts `i2e explore` on it as a user does, and asks
over HTTP. Each question is asked of things that were not asked for before. Printed are the median, the slowest of
twenty and the slowest, in milliseconds, beside the bound; the memory of the server at its most; and how much longer
the same questions take of the Parquet files without an index, asked of DuckDB in the same run. With --browser the first
view and pages of entities are loaded in headless Chromium, until all that is seen of them is there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.explore_dataset import write_dataset

BOUNDS = {"first view": 1000, "hits while typing": 100, "an entity's page": 300}
"""Milliseconds that were asked for, at 2 M entities and 10 M images."""


def timed(ask: Callable[[Any], object], of: Iterable[Any]) -> np.ndarray:
    """Milliseconds of each question."""
    taken = []
    for one in of:
        started = time.perf_counter()
        ask(one)
        taken.append(1000 * (time.perf_counter() - started))
    return np.array(taken)


def told(taken: np.ndarray) -> dict[str, float]:
    return {
        "median": round(float(np.median(taken)), 1),
        "one of twenty": round(float(np.quantile(taken, 0.95)), 1),
        "slowest": round(float(taken.max()), 1),
    }


def peak_mb(process: subprocess.Popen[str]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0


def serve(folder: str, index: Path) -> tuple[subprocess.Popen[str], str, float]:
    """The app in a process of its own, its address, and the seconds until it answers."""
    command = [sys.executable, "-m", "i2e_pipeline.cli", "explore", folder, "--port", "0", "--index", str(index)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--marks", str(index / "marks.jsonl")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().split()
    if not address:
        raise SystemExit(f"`i2e explore {folder}` did not start")
    return process, address[0].rstrip("/"), time.monotonic() - started


def get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return bytes(answer.read())


def in_browser(base: str, pages: Sequence[str], jump: bool = False) -> np.ndarray:
    """Milliseconds from asking for a page until its load event: pictures that are seen are there. jump: from there to
    the end of its list, until the last card has its image."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(base + "/keys")
        taken = []
        for page in pages:
            browser.get(base + page)
            if jump:
                browser.set_script_timeout(30)
                taken.append(float(browser.execute_async_script(_JUMP)))
                continue
            entry = "const n = performance.getEntriesByType('navigation')[0]; return n.loadEventEnd"
            taken.append(float(browser.execute_script(entry)))
        return np.array(taken)
    finally:
        browser.quit()


_JUMP = """
const done = arguments[0], list = document.querySelector('ul.grid'), from = performance.now();
const last = Math.min(list.dataset.total, list.dataset.window) - 1;
scrollTo({top: document.documentElement.scrollHeight, behavior: 'instant'});
const look = () => document.querySelector(`li[data-n="${last}"] img`) ? done(performance.now() - from)
  : setTimeout(look, 5);
look();
"""


def measure(entities: int, images: int, into: Path, questions: int, browser: bool) -> dict[str, Any]:
    folder = write_dataset(into / "i2e", entities, images)
    index = into / "explore"
    fresh = not index.exists()
    process, base, seconds = serve(str(folder), index)
    try:
        result: dict[str, Any] = {"entities": entities, "images": images, "building_mb": round(peak_mb(process))}
        result["built_seconds" if fresh else "opened_seconds"] = round(seconds, 1)
        if fresh:
            # Opened again: what a reader waits for on every other day.
            process.terminate()
            process.wait(30)
            process, base, seconds = serve(str(folder), index)
            result["opened_seconds"] = round(seconds, 1)
        rng = np.random.default_rng(0)
        listed = json.loads(get(f"{base}/api/images?most=240"))["rows"]
        names = [row["name"] for row in listed if row["name"]]
        typed = [
            name[: int(rng.integers(1, 8))]
            for name in (names[int(i)] for i in rng.integers(len(names), size=questions))
        ]
        most = re.findall(r'href="/entities/Q(\d+)"', get(f"{base}/entities").decode())[:10]
        some = list(dict.fromkeys([*most, *(str(row["entity_id"]) for row in listed)]))[:questions]
        pictures = [row["image_id"] for row in listed][:questions]
        get(f"{base}/")
        asked = {
            "first view": ["/"] * 10,
            "hits while typing": [f"/api/hits?q={urllib.parse.quote(t)}" for t in typed],
            "an entity's page": [f"/entities/Q{i}" for i in some],
            "a page of a scrolled list": [
                f"/api/images?entity={most[0]}&offset={int(o)}" for o in rng.integers(images // 100, size=questions)
            ],
            "entities of a kind, by images": ["/entities?min_images=5&sort=fame", "/entities?script=Latin&sort=name"]
            * 5,
            "an image's page": [f"/images/{i}" for i in pictures],
            "a picture": [f"/images/{i}/picture" for i in pictures],
        }
        result["ms"] = {what: told(timed(lambda path: get(base + path), paths)) for what, paths in asked.items()}
        if browser:
            result["browser_ms"] = {
                "first view": told(in_browser(base, ["/"] * 5)),
                "an entity's page": told(in_browser(base, [f"/entities/Q{i}" for i in some[:20]])),
                "to the end of its images": told(in_browser(base, [f"/entities/Q{i}" for i in most[:5]], jump=True)),
            }
        result["serving_mb"] = round(peak_mb(process))
        result["index_mb"] = round(sum(f.stat().st_size for f in index.rglob("*") if f.is_file()) / 1e6)
        result["without_index"] = without_index(str(folder), typed[:3], some[:3], result["ms"])
        return result
    finally:
        process.terminate()
        process.wait(30)


def without_index(folder: str, typed: Sequence[str], some: Sequence[str], ms: dict[str, Any]) -> dict[str, float]:
    """How many times longer the questions take of the files."""
    import duckdb

    made = duckdb.connect()
    entities = f"'{folder}/statistics/entities/*/*.parquet'"
    hits = timed(
        lambda t: made.execute(
            f"SELECT name FROM {entities} WHERE lower(name) LIKE ? OR len(list_filter(aliases, lambda a: "
            "lower(a) LIKE ?)) > 0 ORDER BY images DESC LIMIT 12",
            [f"{t.lower()}%"] * 2,
        ).fetchall(),
        typed,
    )
    labels = timed(
        lambda i: made.execute(
            f"SELECT image_id, label.score FROM (SELECT image_id, unnest(labels) AS label FROM "
            f"'{folder}/images/*/*.parquet') WHERE label.entity_id = ? ORDER BY 2 DESC LIMIT 60",
            [int(i)],
        ).fetchall(),
        some,
    )
    return {
        "hits while typing": round(float(np.median(hits)) / ms["hits while typing"]["median"], 1),
        "an entity's page": round(float(np.median(labels)) / ms["an entity's page"]["median"], 1),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--into", type=Path, default=Path("out/benchmarks/explore"))
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--browser", action="store_true", help="load pages in headless Chromium, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = measure(options.entities, options.images, options.into, options.questions, options.browser)
    print(f"{result['entities']:,} entities, {result['images']:,} images; index {result['index_mb']:,} MB", end="")
    built = ""
    if "built_seconds" in result:
        built = f", built in {result['built_seconds']} s with at most {result['building_mb']:,} MB of memory"
    print(f"{built}, opened in {result['opened_seconds']} s; server at its most {result['serving_mb']:,} MB")
    print(f"{'milliseconds':32}{'median':>9}{'1 of 20':>9}{'slowest':>9}{'asked':>8}{'without index':>16}")
    for part in ("ms", "browser_ms"):
        for what, taken in result.get(part, {}).items():
            bound = f"≤ {BOUNDS[what]}" if what in BOUNDS else ""
            times = f"{result['without_index'][what]}x" if part == "ms" and what in result["without_index"] else ""
            name = f"{what}, in Chromium" if part == "browser_ms" else what
            print(f"{name:32}{taken['median']:9}{taken['one of twenty']:9}{taken['slowest']:9}{bound:>8}{times:>16}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
