"""A stage that looks at pixels: leaves out what a small model calls unsafe.

    stages: [screen.py:Screen]        # or, once `pip install ./examples` was run, the name `screen`
    screen: {model: screen_model.json, threshold: 0.8}

The model here is a stand-in, a logistic regression on the colours of the image; put your own in its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from i2e_pipeline import (
    IMAGE_REASONS,
    Content,
    ImageLimits,
    Passed,
    Plan,
    Rejected,
    Run,
    Section,
    Stage,
    StoredImages,
    Table,
    open_rgb,
    part,
)

SCREENED = pa.schema([pa.field("pair_id", pa.binary(16), nullable=False), pa.field("unsafe", pa.float32())])


class Screen(Stage):
    """Stands between `score` and `label`: what it rejects gets no label."""

    name = "screen"
    does = "leave out what a model calls unsafe"
    rows_are = "pairs"
    after = ("score",)
    reads = ("scores",)
    narrows = "scores"
    tables = {"screened": Table(SCREENED, key=("pair_id",), holds="how unsafe the model calls each image that stays")}
    passes = Passed("screened", ("pair_id",))
    reasons = {**IMAGE_REASONS, "unsafe": "The model calls the image unsafe."}
    features = ("unsafe",)
    sees_images = True

    class Settings(Section):
        model: Annotated[str, Content()]
        """JSON with `weights` (64, one a colour) and `bias`."""
        threshold: float = Field(0.9, ge=0, le=1)
        """Images that the model gives more than this are left out."""

    def rows_to_do(self, run: Run, unit: str) -> int:
        return run.rows("scores", unit, by=("pair_id",))

    def plan(self, run: Run, unit: str) -> Plan:
        pairs = run.read("scores", unit, ["pair_id", "shard", "row"]).distinct()
        model, open_shard, threshold = run.ship(run.settings.model), run.open_shards(unit), run.settings.threshold

        def make_kernel() -> Callable[..., Iterator[tuple[str, pa.RecordBatch]]]:
            return partial(judge, open_shard=open_shard, model=load(model.local()), threshold=threshold)

        return Plan(run.in_shard_order(pairs, unit), make_kernel, rows_expected=self.rows_to_do(run, unit))


def judge(
    batches: Iterator[pa.RecordBatch], open_shard: Callable, model: Callable[[Image.Image], float], threshold: float
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Kernel: batches of (pair_id, shard, row) in, each row out as `screened` or as a reject. Knows no Spark."""
    limits = ImageLimits()
    with StoredImages(open_shard) as stored:
        for rows in batches:
            opened = [open_rgb(image, limits) for image in stored.of(rows)]
            scores = [None if isinstance(image, Rejected) else model(image[0]) for image in opened]
            reasons = [
                image.reason if isinstance(image, Rejected) else unfit(score, threshold)
                for image, score in zip(opened, scores, strict=True)
            ]
            judged = rows.append_column("unsafe", pa.array(scores, pa.float32()))
            details = [None if score is None else f"unsafe {score:.3f}" for score in scores]
            yield from part("screened", judged, reasons, details, key="pair_id", columns=["pair_id", "unsafe"])


def unfit(score: float | None, threshold: float) -> str | None:
    """Why an image goes no further, or None."""
    return "unsafe" if score is not None and score > threshold else None


def load(path: str) -> Callable[[Image.Image], float]:
    """The model: an RGB image to a number in [0, 1]."""
    read = json.loads(Path(path).read_text(encoding="utf-8"))
    weights, bias = np.array(read["weights"], dtype=np.float64), float(read["bias"])

    def unsafe(image: Image.Image) -> float:
        pixels = np.asarray(image.resize((32, 32), Image.Resampling.BOX)).reshape(-1, 3) >> 6
        colours = np.bincount(pixels @ [16, 4, 1], minlength=64) / len(pixels)
        return float(1 / (1 + np.exp(-(colours @ weights + bias))))

    return unsafe
