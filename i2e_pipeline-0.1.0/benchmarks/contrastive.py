"""What a contrastive step costs: samples per second, against open_clip's own training loop.

    python benchmarks/contrastive.py [--model ViT-B-16] [--batch 32] [--precision bfloat16] [--device cuda]

Same weights, images, texts, loss, batch, precision, clipping and AdamW, data in memory, in one run:

    open_clip    open_clip_train.train.train_one_epoch on images that are normalised already
    whole        the trainer's step (towers, recipe clip_alt_text, clipping, AdamW, clamp) on uint8 images, with texts
                 of full length as open_clip takes them
    step         the same with texts cut to the longest of the batch, as the trainer does: open_clip's towers add their
                 whole table of positions and cannot take shorter ones
    entities     the same with the recipe contrastive: equal entities are not negatives

Figures are medians of --rounds interleaved rounds of --steps steps. Samples per CPU second count the processor time of
all threads. On a shared machine these can be compared, while samples per second depend on what others left over. `loss`
is the mean loss of the last batch. Those of the first three ways must agree; otherwise the ways did not do the same
work.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from i2e_pipeline.core.config import EncoderConfig, OptimizerConfig, TrainConfig
from i2e_pipeline.core.files import find
from i2e_pipeline.sample import compose
from i2e_pipeline.train import strategy
from i2e_pipeline.train.batch import Batch
from i2e_pipeline.train.encoders import Towers, build
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.recipes import recipe

SMALL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 192, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 4},
}
"""ViT of 64 px: seconds per step on one core."""
RATE, CLIP_NORM = 1e-4, 1.0


class Work:
    """The batches, in memory, on the device that they are trained on."""

    def __init__(self, towers: Towers, texts: list[str], size: int, count: int, device: torch.device) -> None:
        draws = torch.Generator().manual_seed(0)
        side = towers.image_size
        self.size, self.device, self.batches = size, device, []
        cycle = itertools.cycle(texts)
        for _ in range(count):
            self.batches.append(
                Batch(
                    pixels_BCHW=torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=draws),
                    class_B=torch.randint(0, 50, (size,), generator=draws),
                    classes_BK=torch.randint(0, 50, (size, 1), generator=draws),
                    tokens_BL=towers.tokenizer(list(itertools.islice(cycle, size))),
                    teacher_BT=None,
                    image_ids=(),
                )
            )
        mean, std = (torch.tensor(towers.preprocessing[k]).view(-1, 1, 1) for k in ("mean", "std"))
        self.normalised = [(b.pixels_BCHW / 255 - mean) / std for b in self.batches]


class Ours:
    """A step as trainer.py takes it."""

    def __init__(self, towers: Towers, work: Work, config: TrainConfig, trims: bool) -> None:
        self.towers, self.work, self.config, self.trims = towers.to(work.device), work, config, trims
        self.recipe = recipe(config)
        self.optimizer = strategy.optimizer_of(self.towers, config.optimizer)
        self.world = World(device=work.device)
        self.loss = 0.0

    def __call__(self) -> None:
        self.towers.train()
        loss = torch.zeros(())
        for batch in self.work.batches:
            assert batch.tokens_BL is not None
            tokens_BL = self.towers.trim(batch.tokens_BL) if self.trims else batch.tokens_BL
            with autocast(self.config.precision, self.work.device):
                encoded = self.towers(self._moved(batch.pixels_BCHW), self._moved(tokens_BL))
                on_device = replace(batch, classes_BK=self._moved(batch.classes_BK))
                loss = self.recipe.losses(encoded, on_device, None, self.world, 0)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(self.towers.parameters(), CLIP_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.towers.clamp()
        self.loss = float(loss.detach())

    def _moved(self, x: Tensor) -> Tensor:
        return x.to(self.work.device, non_blocking=True)


class OpenClip:
    """open_clip's loop, with the arguments that its command line would have set."""

    def __init__(self, towers: Towers, work: Work, config: TrainConfig) -> None:
        from open_clip import ClipLoss
        from open_clip_train.train import train_one_epoch

        self.model = copy.deepcopy(towers.model).to(work.device)
        self.model.output_dict = True
        self.model.logit_scale = nn.Parameter(self.model.logit_scale.detach().squeeze())
        self.train = train_one_epoch
        self.work = work
        self.criterion = ClipLoss(cache_labels=True)
        self.loss = 0.0

        def criterion(**features: Any) -> dict[str, Tensor]:
            losses: dict[str, Tensor] = self.criterion(**features)
            self.last = losses["contrastive_loss"].detach()
            return losses

        self.noted = criterion
        optimizer = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self.arguments = SimpleNamespace(
            device=str(work.device), precision="fp32" if config.precision == "float32" else "amp_bf16", accum_freq=1,
            distill=False, skip_scheduler=True, grad_clip_norm=CLIP_NORM, horovod=False, batch_size=work.size,
            world_size=1, rank=0, local_rank=0, log_every_n_steps=10**9, wandb=False, distributed=False,
        )  # fmt: skip
        self.data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=_Loader(work))}

    def __call__(self) -> None:
        self.train(self.model, self.data, self.noted, 0, self.optimizer, None, None, None, self.arguments)
        self.loss = float(self.last)


class _Loader:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.num_batches, self.num_samples = len(work.batches), work.size * len(work.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return zip(self.work.normalised, (b.tokens_BL for b in self.work.batches), strict=True)


def autocast(precision: str, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def alt_texts(patterns: list[str], column: str) -> list[str]:
    texts = [t for info in find(tuple(patterns), ".parquet") for t in pq.read_table(info.path)[column].to_pylist()]
    return [text for text in texts if text]


def measure(ways: dict[str, Callable[[], None]], samples: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Samples per second and per CPU second of each way, medians of interleaved rounds; the first warms up."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began, worked = time.perf_counter(), time.process_time()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                wall[name].append(samples / (time.perf_counter() - began))
                processor[name].append(samples / (time.process_time() - worked))
    both = {"samples_per_second": wall, "samples_per_cpu_second": processor}
    return {kind: {name: round(statistics.median(v), 2) for name, v in rates.items()} for kind, rates in both.items()}


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as train.encoder.model (default: a small ViT of 64 px)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1, help="per round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the blocks, of ours only")
    parser.add_argument("--pairs", nargs="+", help="Parquet files of alt-texts (default: the sample's)")
    parser.add_argument("--text-column", default="caption")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    if not options.pairs:
        compose.compose(Path("out/sample/input"))
        options.pairs = ["out/sample/input/pairs/*.parquet"]
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            (Path(folder) / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL}))
        encoder = EncoderConfig(model=options.model or f"local-dir:{folder}", compile=options.compile)
        # No weight decay: open_clip applies it to other weights than the trainer does, and the two would drift apart.
        optimizer = OptimizerConfig(learning_rate=RATE, weight_decay=0.0, clip_norm=CLIP_NORM)
        of = {
            name: TrainConfig(recipe=name, encoder=encoder, optimizer=optimizer, precision=options.precision)
            for name in ("clip_alt_text", "contrastive")
        }
        towers = [build(encoder, of["contrastive"].loss, 0) for _ in range(3)]
        plain = build(encoder.model_copy(update={"compile": False}), of["contrastive"].loss, 0)
    device = torch.device(options.device)
    work = Work(plain, alt_texts(options.pairs, options.text_column), options.batch, options.steps, device)
    ways: dict[str, Any] = {
        "open_clip": OpenClip(plain, work, of["clip_alt_text"]),
        "whole": Ours(towers[0], work, of["clip_alt_text"], trims=False),
        "step": Ours(towers[1], work, of["clip_alt_text"], trims=True),
        "entities": Ours(towers[2], work, of["contrastive"], trims=True),
    }
    rates = measure(ways, options.batch * options.steps, options.rounds, device)
    base = rates["samples_per_cpu_second" if device.type == "cpu" else "samples_per_second"]
    lengths = [plain.trim(b.tokens_BL).shape[1] for b in work.batches if b.tokens_BL is not None]
    figures = {
        "model": options.model or "ViT of 64 px",
        "device": str(device),
        "threads": options.threads,
        "precision": options.precision,
        "batch": options.batch,
        "tokens": {"whole": work.batches[0].tokens_BL.shape[1], "step": round(statistics.mean(lengths), 1)},  # type: ignore[union-attr]
        **rates,
        "times_open_clip": {name: round(rate / base["open_clip"], 2) for name, rate in base.items()},
        "loss": {name: round(way.loss, 4) for name, way in ways.items()},
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
