"""What reinforcement costs and spares: bytes an image, its time, and a step with and without the teacher.

    python benchmarks/reinforcement.py [--parquet 'PAIRS/*.parquet'] [--teacher MODEL …] [--model MODEL]
                                       [--images 512] [--augmentations 5] [--batch 64] [--steps 4]

Without arguments: images of the embedded sample, its scorer as teacher, and a student of its architecture. In one run,
interleaved, medians of --repeats rounds:

    reinforce    all of `i2e reinforce`: read, decode, cut, encode images and texts, write
    forward      the teachers' forward passes alone, on the same views and texts, prepared and in memory

    plain        training steps without distillation, their images read and cut by the trainer's loader
    stored       the same with affinities to the stored vectors
    teacher      the same with affinities to vectors that the teachers make of the batch's own pixels and texts

All figures are of processor time of all threads: on a shared machine these can be compared. `bytes_per_image` is what
lies on the disk, with the image's share of the entities' vectors; `vector_bytes` are those of its vectors before
compression, which gains little on them. `times_forward` and `times_plain` are ratios within the run. After how many
passes over the images the stored vectors have cost less than a teacher in every step is `worth_after_epochs`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.loader import read_stored, sources, write_dataset
from i2e_pipeline.commands.reinforcing import Wanted, reinforce
from i2e_pipeline.core.config import DataConfig, TextConfig, TrainConfig
from i2e_pipeline.core.packaged import folder
from i2e_pipeline.dataset.published import open_published
from i2e_pipeline.images.encoder import Encoder
from i2e_pipeline.train import strategy
from i2e_pipeline.train.batch import Batch, TeacherSpace
from i2e_pipeline.train.dataset import Loader
from i2e_pipeline.train.encoders import Towers, build
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.recipes import recipe
from i2e_pipeline.train.reinforced import open_reinforced
from i2e_pipeline.train.reinforcing import Models, TeacherConfig
from i2e_pipeline.train.samples import Samples

CLIP_NORM = 1.0
SAMPLE = f"local-dir:{folder('i2e_pipeline')}/sample/models/scorer"


def settings(options: argparse.Namespace, affinity: float, tables: str) -> TrainConfig:
    return TrainConfig.model_validate({
        "recipe": "clip_alt_text",
        "encoder": {"model": options.model},
        "data": {"batch_size": options.batch, "workers": 1, "hold_out_entities": 0, "hold_out_images": 0},
        "reinforce": {"affinity": affinity, "folder": tables},
    })  # fmt: skip


class Steps:
    """Some steps of a training, one call after the other, as trainer.py takes them."""

    def __init__(self, dataset: str, config: TrainConfig, steps: int, teachers: list[Encoder] | None = None) -> None:
        """teachers   of a training that asks them itself; None: what is stored, or none"""
        published = open_published(dataset)
        self.samples, self.config, self.steps = Samples.open(published, config), config, steps
        self.tables = open_reinforced(config.reinforce, published) if config.reinforce.reads and not teachers else None
        self.teachers = teachers
        self.text_of: dict[bytes, str] = {}
        self.towers: Towers = build(config.encoder, config.loss, 0)
        self.recipe, self.optimizer = recipe(config), strategy.optimizer_of(self.towers, config.optimizer)
        self.start = 0

    def __call__(self) -> None:
        stop = self.start + self.steps * self.config.data.batch_size
        loader = Loader(
            self.samples, self.config, side=self.towers.image_size, start=self.start, stop=stop,
            tokenizer=self.tokens, text_probabilities=self.recipe.text_probabilities(), reinforced=self.tables,
        )  # fmt: skip
        self.start = stop
        self.towers.train()
        for batch in loader:
            batch = self.taught(batch)
            encoded = self.towers(batch.pixels_BCHW, self.towers.trim(batch.tokens_BL))
            self.recipe.losses(encoded, batch, None, World(), 0)["loss"].backward()
            nn.utils.clip_grad_norm_(self.towers.parameters(), CLIP_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.towers.clamp()

    def tokens(self, texts: list[str]) -> torch.Tensor:
        """The trainer's tokens; what was tokenised is noted for the teachers."""
        tokens_NL = self.towers.tokenizer(texts)
        self.text_of.update(zip((row.tobytes() for row in tokens_NL.to(torch.int64).numpy()), texts, strict=True))
        return tokens_NL

    def taught(self, batch: Batch) -> Batch:
        """The batch with the teachers' vectors, made now."""
        if self.teachers is None:
            return batch
        assert batch.tokens_BL is not None
        pixels_BHWC = batch.pixels_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
        texts = [self.text_of[row.tobytes()] for row in batch.tokens_BL.numpy()]
        image_BT = np.concatenate([teacher.images(pixels_BHWC) for teacher in self.teachers], axis=1)
        text_BT = np.concatenate([teacher.texts(texts) for teacher in self.teachers], axis=1)
        return replace(
            batch,
            teacher_BT=torch.from_numpy(image_BT),
            teacher_text_BT=torch.from_numpy(text_BT),
            teachers=tuple(TeacherSpace(teacher.width, teacher.scale) for teacher in self.teachers),
        )


def forward(teachers: list[Encoder], views: int, texts: list[str]) -> Callable[[], None]:
    """The teachers on so many views and these texts."""
    draws = np.random.default_rng(0)
    pixels = [draws.integers(0, 256, (64, t.side, t.side, 3), dtype=np.uint8) for t in teachers]

    def run() -> None:
        for teacher, of_64 in zip(teachers, pixels, strict=True):
            for start in range(0, views, 64):
                teacher.images(of_64[: min(64, views - start)])
            teacher.texts(texts)

    return run


def measure(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Processor seconds of each way: medians of interleaved rounds, after one that warms up."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if turn:
                spent[name].append(time.process_time() - began)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", nargs="+", help="Parquet files, folders or globs (default: the sample's images)")
    parser.add_argument("--image-column", default="jpg")
    parser.add_argument("--teacher", nargs="+", default=[SAMPLE], help="of one input size, the student's")
    parser.add_argument("--model", default=SAMPLE, help="the student, as train.encoder.model")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--augmentations", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="per round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stored = read_stored(*sources(options), options.images)
    models = Models(tuple(TeacherConfig(model=name, device="cpu") for name in options.teacher), threads=1)
    teachers, _ = models.loaded()
    with tempfile.TemporaryDirectory() as place:
        dataset, tables = write_dataset(stored, Path(place) / "i2e"), f"{place}/reinforced"
        wanted = Wanted(models, options.augmentations, DataConfig(), TextConfig().template)

        def again() -> None:
            shutil.rmtree(tables, ignore_errors=True)
            reinforce(dataset, wanted, tables)

        texts = [f"photo number {n} of a thing on a table" for n in range(len(stored))]
        making = {"reinforce": again, "forward": forward(teachers, len(stored) * options.augmentations, texts)}
        made = measure(making, options.repeats)
        done = reinforce(dataset, wanted, tables)
        steps = {
            "plain": Steps(dataset, settings(options, 0.0, tables), options.steps),
            "stored": Steps(dataset, settings(options, 0.7, tables), options.steps),
            "teacher": Steps(dataset, settings(options, 0.7, tables), options.steps, teachers),
        }
        trained = measure(dict(steps), options.repeats)
    seen = options.steps * options.batch
    spared = (trained["teacher"] - trained["stored"]) / seen
    figures = {
        "images": len(stored),
        "augmentations": options.augmentations,
        "kilobytes_of_image": round(sum(map(len, stored)) / len(stored) / 1000, 1),
        "bytes_per_image": round(done.bytes / done.images),
        "vector_bytes": done.vector_bytes,
        "cpu_ms_per_image": {name: round(1000 * seconds / len(stored), 2) for name, seconds in made.items()},
        "times_forward": round(made["reinforce"] / made["forward"], 2),
        "cpu_ms_per_image_of_a_step": {name: round(1000 * seconds / seen, 2) for name, seconds in trained.items()},
        "times_plain": {name: round(seconds / trained["plain"], 2) for name, seconds in trained.items()},
        "worth_after_epochs": round(made["reinforce"] / len(stored) / spared, 1) if spared > 0 else None,
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
