"""What a training step costs on this machine: images/s, use of the card's arithmetic, the head's share, memory.

    python benchmarks/training.py [--model ViT-B-16 ViT-L-14] [--recipes …] [--batch 1024] [--classes 2000000]
                                  [--precision bfloat16] [--peak-tflops 989] [--micro-batches 8] [--steps 10]

Batches are random and lie on the device already: what is measured is the step (towers forward and backward, losses,
entity head, AdamW), without the loader (loader.py). Recipes are measured one after the other in the same process.

images_per_second    of the whole step, median of the steps after two that warm up
mfu                  floating-point operations of the towers (counted by torch on one forward pass, times three for the
                     backward pass) per second, as a share of --peak-tflops (989: an H200's dense bfloat16); with
                     recomputed activations the operations done again are not counted
head_share           time of the entity head's loss and update within the step
peak_gib             most memory that torch held on the card
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from i2e_pipeline.core.config import RECIPES, TrainConfig
from i2e_pipeline.train import strategy
from i2e_pipeline.train.batch import Batch
from i2e_pipeline.train.encoders import Towers, build
from i2e_pipeline.train.entity_head import EntityHead
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.recipes import recipe


def batch_of(towers: Towers, size: int, classes: int, text: bool, device: torch.device) -> Batch:
    draw = torch.Generator().manual_seed(0)
    side = towers.image_size
    class_B = torch.randint(0, classes, (size,), generator=draw)
    tokens_BL = towers.trim(towers.tokenizer([f"a photo of thing number {i}, seen from afar" for i in range(size)]))
    return Batch(
        pixels_BCHW=torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=draw).to(device),
        class_B=class_B,  # on the host, as the trainer leaves labels
        classes_BK=class_B[:, None],
        tokens_BL=tokens_BL.to(device) if text else None,
        teacher_BT=None,
        image_ids=(),
    )


def measure(model: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    world = World(device=device)
    config = TrainConfig.model_validate({
        "recipe": name, "precision": options.precision,
        "encoder": {"model": model, "compile": options.compile, "checkpoint_activations": options.recompute},
        "head": {"sample": options.sample},
    })  # fmt: skip
    chosen = recipe(config)
    towers = build(config.encoder, config.loss, 0, uses_text=chosen.uses_text)
    module = strategy.wrap(towers, config, world)
    optimizer = strategy.optimizer_of(towers, config.optimizer)
    head = EntityHead(options.classes, towers.width, config.head, world, 0) if chosen.uses_classes else None
    size = options.batch // options.micro_batches
    batch = batch_of(towers, size, options.classes, chosen.uses_text, device)
    torch.set_float32_matmul_precision("high")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(batch.pixels_BCHW[:1], None if batch.tokens_BL is None else batch.tokens_BL[:1])
    operations = 3 * counter.get_total_flops() * options.batch
    in_head = 0.0

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    if head is not None:
        loss_of, step_of = head.loss, head.step

        def timed(call: Any) -> Any:
            def wrapper(*arguments: Any) -> Any:
                nonlocal in_head
                began = now()
                found = call(*arguments)
                in_head += now() - began
                return found

            return wrapper

        head.loss, head.step = timed(loss_of), timed(step_of)  # type: ignore[method-assign]
    seconds, shares = [], []
    for step in range(options.steps + 2):
        in_head, began = 0.0, now()
        for _ in range(options.micro_batches):
            narrow = torch.autocast(device.type, torch.bfloat16)
            with narrow if options.precision == "bfloat16" else contextlib.nullcontext():
                losses = chosen.losses(module(batch.pixels_BCHW, batch.tokens_BL), batch, head, world, step)
            (losses["loss"] / options.micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if head is not None:
            head.step(0.1)
        seconds.append(now() - began)
        shares.append(in_head / seconds[-1])
    median = statistics.median(seconds[2:])
    found = {
        "model": model, "recipe": name, "images_per_second": round(options.batch / median, 1),
        "mfu": round(operations / median / (options.peak_tflops * 1e12), 4), "head_share": None, "peak_gib": None,
    }  # fmt: skip
    if head is not None:
        found["head_share"] = round(statistics.median(shares[2:]), 4)
    if device.type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        torch.cuda.reset_peak_memory_stats()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a training step, by model and recipe.")
    parser.add_argument("--model", nargs="+", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--recipes", nargs="+", default=["supervised", "contrastive", "multi_task"], choices=RECIPES)
    parser.add_argument("--batch", type=int, default=1024, help="images of a step")
    parser.add_argument("--micro-batches", type=int, default=8, help="1,024 images of ViT-L-14 at once want 270 GB")
    parser.add_argument("--classes", type=int, default=2_000_000)
    parser.add_argument("--sample", type=float, default=0.1, help="share of the classes that a step compares with")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true", help="activations (train.encoder.checkpoint_activations)")
    parser.add_argument("--device", help="default: cuda where there is one")
    options = parser.parse_args()
    options.micro_batches = min(options.micro_batches, options.batch)
    if not options.device and not torch.cuda.is_available():
        print("no CUDA card here: --device cpu measures a CPU; take a small --model and --batch")
        return
    for model in options.model:
        for name in options.recipes:
            print(json.dumps(measure(model, name, options)), flush=True)


if __name__ == "__main__":
    main()
