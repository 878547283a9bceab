"""What the exact nearest of millions of entities costs: seconds and memory beside a plain product in blocks.

    python benchmarks/oven.py [--candidates 2000000] [--queries 1000] [--width 256] [--block-mb 256] [--rounds 3]

Random vectors of length 1 lie on disk as `i2e evaluate` keeps those of entities' texts, 32,768 a part, and each way
reads them from there. A share of the candidates stands twice, as entities of one name do. The ways, each in a process
of its own, one after the other in each round:

    product   the baseline: float32 product of all queries with a part, the highest of each kept; which of near equals
              it takes depends on the blocks
    top_one   evaluate.top_one: exact, of equals the first
    exact     evaluate.retrieval.top_k with k = 1 of each part: exact by float64 products

Peak memory is what the process has beyond its queries (ru_maxrss). On a shared machine compare the ratios of CPU
seconds, medians over the rounds, not seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("product", "top_one", "exact")
PART = 1 << 15
TWINS = 50
"""One candidate in so many is the one before it again."""


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    x_ND = rng.standard_normal((count, width), dtype=np.float32)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND


def write(folder: Path, candidates: int, width: int) -> None:
    for number, start in enumerate(range(0, candidates, PART)):
        count = min(PART, candidates - start)
        vectors_CD = unit(np.random.default_rng([1, number]), count, width)
        vectors_CD[1::TWINS] = vectors_CD[: count - 1 : TWINS][: len(vectors_CD[1::TWINS])]
        np.savez(folder / f"part-{number:06d}.npz", ids=np.arange(start, start + count), vectors=vectors_CD)


def parts(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for path in sorted(folder.glob("part-*.npz")):
        with np.load(path) as stored:
            yield stored["ids"], stored["vectors"]


def product(queries_QD: np.ndarray, folder: Path, block_mb: float) -> np.ndarray:
    """The ids of the highest float32 products."""
    import torch

    asked_QD = torch.from_numpy(queries_QD)
    best_Q, ids_Q = torch.full((len(queries_QD),), -2.0), torch.full((len(queries_QD),), -1)
    for ids_C, vectors_CD in parts(folder):
        rows = max(1, int(block_mb * 2**20 / (4 * len(ids_C))))
        gallery_DC, named_C = torch.from_numpy(vectors_CD).T, torch.from_numpy(ids_C)
        for start in range(0, len(queries_QD), rows):
            highest_B, place_B = (asked_QD[start : start + rows] @ gallery_DC).max(dim=1)
            here = slice(start, start + rows)
            better_B = highest_B > best_Q[here]
            ids_Q[here] = torch.where(better_B, named_C[place_B], ids_Q[here])
            best_Q[here] = torch.where(better_B, highest_B, best_Q[here])
    return ids_Q.numpy()


def top_one(queries_QD: np.ndarray, folder: Path, block_mb: float) -> np.ndarray:
    from i2e_pipeline.evaluate.top_one import Block
    from i2e_pipeline.evaluate.top_one import top_one as nearest

    return nearest(queries_QD, (Block(*part) for part in parts(folder)), block_mb).ids_Q


def exact(queries_QD: np.ndarray, folder: Path, block_mb: float) -> np.ndarray:
    from i2e_pipeline.evaluate.retrieval import top_k

    best_Q, ids_Q = np.full(len(queries_QD), -2.0), np.full(len(queries_QD), -1)
    for ids_C, vectors_CD in parts(folder):
        scores_Q1, index_Q1 = top_k(queries_QD, vectors_CD, 1, block_mb)
        better_Q = scores_Q1[:, 0] > best_Q
        best_Q[better_Q], ids_Q[better_Q] = scores_Q1[better_Q, 0], ids_C[index_Q1[better_Q, 0]]
    return ids_Q


def one(way: str, folder: Path, queries: int, width: int, block_mb: float) -> dict[str, Any]:
    """Seconds, peak memory and answers of one way, in this process."""
    import torch  # imported before memory is looked at

    queries_QD = unit(np.random.default_rng(0), queries, width)
    torch.from_numpy(queries_QD) @ torch.from_numpy(queries_QD).T  # the library's own threads and buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.perf_counter(), time.process_time()
    ids_Q = {"product": product, "top_one": top_one, "exact": exact}[way](queries_QD, folder, block_mb)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    mb = kilobytes / (2**20 if sys.platform == "darwin" else 2**10)
    return {"seconds": seconds, "cpu_seconds": cpu, "mb": mb, "ids": ids_Q.tolist()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=2_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--block-mb", type=float, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--in", dest="folder", type=Path, help="measure --ways here, on parts that lie there")
    options = parser.parse_args(arguments)
    if options.folder:
        for way in options.ways:
            print(json.dumps(one(way, options.folder, options.queries, options.width, options.block_mb)))
        return {}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), options.candidates, options.width)
        for _ in range(options.rounds):
            for way in options.ways:
                found[way].append(_apart(way, place, options))
    middle = {
        way: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds", "mb")}
        for way, runs in found.items()
    }
    answers = {way: runs[0]["ids"] for way, runs in found.items()}
    figures = {
        "candidates": options.candidates, "queries": options.queries, "width": options.width,
        "block_mb": options.block_mb, "gallery_mb": round(options.candidates * options.width * 4 / 2**20),
        "ways": {way: {key: round(value, 2) for key, value in of.items()} for way, of in middle.items()},
        "times_the_product_in_cpu_seconds": {
            way: _times(runs, found["product"])
            for way, runs in found.items() if "product" in found and way != "product"
        },
        "answers_as_top_one": {
            way: sum(a == b for a, b in zip(ids, answers["top_one"], strict=True))
            for way, ids in answers.items() if "top_one" in answers
        },
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    return figures


def _times(runs: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> float:
    """The median over the rounds of the ratio within a round."""
    ratios = [mine["cpu_seconds"] / theirs["cpu_seconds"] for mine, theirs in zip(runs, base, strict=True)]
    return round(statistics.median(ratios), 2)


def _apart(way: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one way from a process of its own."""
    size = ["--queries", str(options.queries), "--width", str(options.width), "--block-mb", str(options.block_mb)]
    command = [sys.executable, __file__, "--in", folder, "--ways", way, *size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    main()
