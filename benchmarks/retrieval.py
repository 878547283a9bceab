"""What exact retrieval costs: seconds beside a bare torch.topk over the same product, and memory beside the vectors.

    python benchmarks/retrieval.py [--images 12000] [--width 1024] [--gallery 100000 --queries 1000] [--block-mb 256]

Random vectors of length 1; each way runs in a process of its own, which reports its peak memory (ru_maxrss) above that
after the vectors were made. The ways:

    product   the baseline: float32 matrix product in blocks and torch.topk of each, k = 10, with no rule for ties and
              last bits
    exact     the same in float64: the price of exactness in the protocols
    top_k     evaluate.retrieval.top_k: exact scores, stated ties
    gpr       evaluate.gpr1200.gpr: the rank of every image's ten, and average precision
    gallery   top_k of --queries against a gallery of --gallery; gallery product is its baseline

The printed mAP of random vectors on the GPR protocol must be near what is expected of them: 10.2 % for 12,000 images in
classes of 10. On a shared machine compare the ratios of CPU seconds, not seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CLASS_SIZE = 10
K = 10
BASELINES = {"exact": "product", "top_k": "product", "gpr": "product", "gallery": "gallery product"}


def unit_vectors(count: int, width: int, seed: int) -> np.ndarray:
    x_ND = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    for start in range(0, count, 1000):  # in parts: a memory peak here would hide the one to be measured
        x_ND[start : start + 1000] /= np.linalg.norm(x_ND[start : start + 1000], axis=1, keepdims=True)
    return x_ND


def bare(queries_QD: np.ndarray, gallery_GD: np.ndarray, block_mb: float, double: bool) -> None:
    """torch.topk over blocks of the product that take as much as a block of the protocols does."""
    import torch

    kind = torch.float64 if double else torch.float32
    gallery = torch.from_numpy(gallery_GD).to(kind)
    rows = max(1, int(block_mb * 2**20 / (gallery.element_size() * len(gallery))))
    for start in range(0, len(queries_QD), rows):
        torch.topk(torch.from_numpy(queries_QD[start : start + rows]).to(kind) @ gallery.T, K)


def one(way: str, images: int, width: int, queries: int, gallery: int, block_mb: float) -> dict[str, Any]:
    """Seconds and peak memory of one way, in this process."""
    import torch  # noqa: F401  imported before memory is looked at

    from i2e_pipeline.evaluate.gpr1200 import gpr
    from i2e_pipeline.evaluate.retrieval import top_k

    large = way.startswith("gallery")
    gallery_GD = unit_vectors(gallery if large else images, width, 0)
    queries_QD = unit_vectors(queries, width, 1) if large else gallery_GD
    labels_N = np.arange(len(gallery_GD)) // CLASS_SIZE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu_started = time.perf_counter(), time.process_time()
    found: dict[str, Any] = {}
    if way in ("product", "gallery product", "exact"):
        bare(queries_QD, gallery_GD, block_mb, double=way == "exact")
    elif way == "gpr":
        figures = gpr(gallery_GD, labels_N, block_mb=block_mb)
        found = {"mAP": figures["mAP"], "mAP_expected_of_random_vectors": figures["mAP_of_random_vectors"]}
    else:
        top_k(queries_QD, gallery_GD, K, block_mb)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    unit = 1 if sys.platform == "darwin" else 1024
    megabytes = round(peak * unit / 2**20, 1)
    return {"seconds": round(seconds, 6), "cpu_seconds": round(cpu, 6), "mb_beside_vectors": megabytes, **found}


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000, help="queries and gallery at once, in classes of 10")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000, help="against --gallery")
    parser.add_argument("--block-mb", type=float, default=256)
    parser.add_argument("--ways", nargs="+", default=[*BASELINES.values(), *BASELINES], help="of those above")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--in-this-process", action="store_true", help="measure --ways here, one line of JSON each")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    size = (options.images, options.width, options.queries, options.gallery, options.block_mb)
    if options.in_this_process:
        for way in options.ways:
            print(json.dumps(one(way, *size)))
        return {}
    ways: dict[str, dict[str, Any]] = {}
    for _ in range(options.repeats):
        for way in dict.fromkeys(options.ways):
            found = _apart(way, arguments)
            if way not in ways or found["seconds"] < ways[way]["seconds"]:
                ways[way] = found
    figures: dict[str, Any] = {
        "images": options.images, "width": options.width, "gallery": options.gallery, "queries": options.queries,
        "block_mb": options.block_mb, "ways": ways,
    }  # fmt: skip
    for ratio, of in (("times_the_baseline", "seconds"), ("times_the_baseline_in_cpu_seconds", "cpu_seconds")):
        figures[ratio] = {
            way: round(ways[way][of] / ways[base][of], 2)
            for way, base in BASELINES.items() if way in ways and base in ways
        }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def _apart(way: str, arguments: list[str]) -> dict[str, Any]:
    """The figures of one way from a process of its own."""
    command = [sys.executable, __file__, *arguments, "--in-this-process", "--ways", way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
