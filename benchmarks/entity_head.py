"""What a step of classification over very many entities costs, in time and memory, against the usual ways.

    python benchmarks/entity_head.py [--classes 200000] [--width 256] [--batch 256] [--sample 0.1] [--threads 1]
    python benchmarks/entity_head.py --gpu      125 k, 1.4 M and 2 M classes x 512, batch 4,096, on one CUDA card

A step is the loss of a batch of image vectors, their gradient, and the update of the class vectors. Ways, all with
cosines, the same margin and temperature, and float32 class vectors:

    head          i2e_pipeline.train.entity_head.EntityHead: rows copied, row-sparse gradient, row-wise Adagrad
    head-bf16     the same with bfloat16 class vectors
    head-full     the same over all classes (head.sample 1)
    partial-sgd   the shape of Partial FC v2 (arXiv 2203.15565) as arcface_torch has it: the batch's classes and random
                  others, drawn by the largest of as many random numbers as there are classes; the rows are taken from
                  a Parameter by index, so autograd makes a gradient as large as the Parameter, which SGD with momentum
                  and weight decay then goes through whole
    partial-adamw the same with AdamW
    sparse-sgd    the same rows by embedding(sparse=True), whose gradient is as large as the rows alone, and plain SGD:
                  torch's has neither momentum nor weight decay for sparse gradients that would stay sparse
    sparse-adam   the same with SparseAdam, which keeps two moments of every class vector and moves those of the rows
    full-adamw    softmax over all classes and AdamW

seconds      per step, the median after one that warms up: CPU seconds of the process, or seconds of the card
peak_mb      the most memory beside what the process had before it made class vectors (on a card: allocated by torch)
rule_mb      class vectors + one float per row + batch terms: the rows of a step and their gradient (2 S D), a slice of
             logits (B S, at most 2^26), images, scaled images and their gradients (4 B D), all in float32

Each way runs in a process of its own. `seconds_times_head` says how many times the head's time a way takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # imported by optimizers at their first step, which is not to be measured
from torch import Tensor
from torch.nn import functional

from i2e_pipeline.core.config import HeadConfig
from i2e_pipeline.train.entity_head import LOGITS, EntityHead
from i2e_pipeline.train.parallel import World

MARGIN, TEMPERATURE = 0.15, 1 / 32
RULE = 1.15
"""The head's peak is to stay below this many times rule_mb."""

Step = Callable[[Tensor, Tensor, int], None]
"""(image_BD that wants a gradient, class_B as a loader has it, on the host; number of the step)."""


def head(classes: int, width: int, sample: float, world: World, dtype: str = "float32") -> Step:
    made = EntityHead(classes, width, config_of(sample, dtype), world, seed=0)

    def step(image_BD: Tensor, class_B: Tensor, number: int) -> None:
        made.loss(image_BD, class_B, class_B[:, None], number).backward()
        made.step(0.1)

    return step


def config_of(sample: float, dtype: str = "float32") -> HeadConfig:
    settings = {"margin": MARGIN, "temperature": TEMPERATURE, "sample": sample, "sample_min": 1, "dtype": dtype}
    return HeadConfig.model_validate(settings)


OPTIMIZERS: dict[str, Callable[[Tensor], torch.optim.Optimizer]] = {
    "sgd": lambda weight_ND: torch.optim.SGD([weight_ND], lr=0.1, momentum=0.9, weight_decay=5e-4),
    "adamw": lambda weight_ND: torch.optim.AdamW([weight_ND], lr=1e-3),
    "sparse-sgd": lambda weight_ND: torch.optim.SGD([weight_ND], lr=0.1),
    "sparse-adam": lambda weight_ND: torch.optim.SparseAdam([weight_ND], lr=1e-3),
}


def as_parameter(
    classes: int, width: int, sample: float, world: World, optimizer: str, rows_ND: Tensor | None = None
) -> Step:  # fmt: skip
    """Class vectors as one Parameter, random if not given. Samples classes as Partial FC v2 does; sample 1 takes
    all."""
    if rows_ND is None:
        rows_ND = torch.empty(classes, width, device=world.device).normal_(std=0.01)
    weight_ND = torch.nn.Parameter(rows_ND)
    updates = OPTIMIZERS[optimizer](weight_ND)
    sparse = optimizer.startswith("sparse")
    compared = round(sample * classes)

    def step(image_BD: Tensor, class_B: Tensor, number: int) -> None:
        rows_SD: Tensor = weight_ND
        target_B = class_B = world.on_device(class_B)
        if sample < 1:
            drawn_N = torch.rand(classes, device=world.device)
            drawn_N[class_B] = 2.0
            row_S = torch.topk(drawn_N, compared).indices.sort().values
            rows_SD = functional.embedding(row_S, weight_ND, sparse=True) if sparse else weight_ND[row_S]
            target_B = torch.searchsorted(row_S, class_B)
        logit_BS = image_BD @ functional.normalize(rows_SD).T
        margin_BS = torch.zeros_like(logit_BS).scatter_(1, target_B[:, None], MARGIN)
        functional.cross_entropy((logit_BS - margin_BS) / TEMPERATURE, target_B).backward()
        updates.step()
        updates.zero_grad(set_to_none=True)

    return step


WAYS: dict[str, Callable[[int, int, float, World], Step]] = {
    "head": head,
    "head-bf16": partial(head, dtype="bfloat16"),
    "head-full": lambda classes, width, sample, world: head(classes, width, 1.0, world),
    "partial-sgd": partial(as_parameter, optimizer="sgd"),
    "partial-adamw": partial(as_parameter, optimizer="adamw"),
    "sparse-sgd": partial(as_parameter, optimizer="sparse-sgd"),
    "sparse-adam": partial(as_parameter, optimizer="sparse-adam"),
    "full-adamw": lambda classes, width, sample, world: as_parameter(classes, width, 1.0, world, optimizer="adamw"),
}


def run(way: str, classes: int, options: argparse.Namespace, answer: Connection) -> None:
    """One way, in a process of its own."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    world = World(device=torch.device(options.device))
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, for every way
    # A small step first, so that the code is in memory before the peak is measured. Its sample has room for all of the
    # batch's classes: they are looked for among the sampled ones, and a card does not survive an index out of range.
    few = 4 * options.batch
    WAYS[way](few, options.width, 0.5, world)(*batch(few, options, world.device), 0)
    before = reset_peak(world.device)
    spent = []
    try:
        step = WAYS[way](classes, options.width, options.sample, world)
        for number in range(options.steps + 1):
            images = batch(classes, options, world.device)
            started = clock(world.device)
            step(*images, number)
            spent.append(clock(world.device) - started)
    except torch.cuda.OutOfMemoryError:
        answer.send({"failed": "out of memory"})
        return
    peak = (peak_bytes(world.device) - before) / 2**20
    answer.send({"seconds": round(statistics.median(spent[1:]), 4), "peak_mb": round(peak, 1)})


def batch(classes: int, options: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    image_BD = functional.normalize(torch.randn(options.batch, options.width, device=device))
    return image_BD.requires_grad_(), torch.randint(classes, (options.batch,))


def clock(device: torch.device) -> float:
    """CPU seconds of this process, which other processes on the machine disturb less than they do its wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def reset_peak(device: torch.device) -> int:
    """Bytes in use now; the peak is measured from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")


def resident(what: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


def rule_bytes(way: str, classes: int, options: argparse.Namespace) -> int:
    """Bytes that the head should need: weights, a float per row, and what a batch needs."""
    compared = classes if way == "head-full" else min(classes, round(options.sample * classes) + options.batch)
    number = 2 if way == "head-bf16" else 4
    weights = number * classes * options.width
    slice_of_logits = min(options.batch * compared, LOGITS)
    batch_terms = 4 * (2 * compared * options.width + slice_of_logits + 4 * options.batch * options.width)
    return weights + 4 * classes + batch_terms


def measure(way: str, classes: int, options: argparse.Namespace) -> dict[str, Any]:
    # Not forked from this process: what it has freed before would be handed out again and hide what a way takes.
    context: Any = multiprocessing.get_context("spawn" if options.device == "cuda" else "forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "i2e_pipeline.train.entity_head"])
    here, there = context.Pipe()
    process = context.Process(target=run, args=(way, classes, options, there))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        found = {"failed": "killed, most likely for its memory"}
    process.join()
    if way.startswith("head") and "peak_mb" in found:
        rule = rule_bytes(way, classes, options) / 2**20
        found |= {"rule_mb": round(rule, 1), "peak_times_rule": round(found["peak_mb"] / rule, 3)}
    return found


def compare(classes: int, options: argparse.Namespace) -> dict[str, Any]:
    ways = {}
    for way in options.ways:
        ways[way] = measure(way, classes, options)
        print(classes, way, ways[way], file=sys.stderr, flush=True)
    base = ways["head"]
    return {
        "classes": classes,
        "ways": ways,
        "seconds_times_head": {
            way: round(found["seconds"] / base["seconds"], 2)
            for way, found in ways.items()
            if way != "head" and "seconds" in found and "seconds" in base
        },
        "peak_times_head": {
            way: round(found["peak_mb"] / base["peak_mb"], 2)
            for way, found in ways.items()
            if way != "head" and "peak_mb" in found and base.get("peak_mb")  # 0: below the imports' own peak
        },
    }


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[200_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sample", type=float, default=0.1, help="share of the classes that a step compares with")
    parser.add_argument("--steps", type=int, default=3, help="after one that warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="'head' is always among them")
    parser.add_argument("--gpu", action="store_true", help="the sizes for a CUDA card")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    options.ways = ["head", *(way for way in options.ways if way != "head")]
    if options.gpu:
        options.device, options.classes, options.width = "cuda", [125_000, 1_400_000, 2_000_000], 512
        options.batch, options.steps = 4096, 10
    figures = {
        "width": options.width,
        "batch": options.batch,
        "sample": options.sample,
        "threads": options.threads,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "rule": f"peak_times_rule <= {RULE}",
        "sizes": [compare(classes, options) for classes in options.classes],
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
