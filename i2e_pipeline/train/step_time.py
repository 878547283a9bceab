"""Where the time of a step goes, and how much of a device's arithmetic it uses.

towers     forward pass
losses     with what ranks exchange for them, and the entity head
backward   with the exchange of gradients, and the gathers of sharded weights
update     clipping, optimizer and head, and the step's own numbers

`between` is from one step's update to the next one's forward pass: evaluations, checkpoints, waiting for the loader (of
which the loader knows how long the host waited). On a card times are those of its own timeline, read when it has
passed, so that nobody waits for it. (Of a Mac's GPU nothing is said: the host only queues there.)
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.train.encoders import Towers, tower_of
from i2e_pipeline.train.shared_negatives import statistics_left

PARTS = ("towers", "losses", "backward", "update")
BETWEEN = "between"
PEAK_TFLOPS = {
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "B200": 2250.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "L40S": 362.0,
    "L4": 121.0,
}
"""10¹² operations a second in dense bfloat16, by the words of a card's name, the most of them first; makers' data
sheets [unverified]."""


class StepTime:
    """Seconds of each part since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._card: Any = torch.cuda if device.type == "cuda" else None
        self._says_nothing = device.type == "mps"
        self._totals = dict.fromkeys((*PARTS, BETWEEN), 0.0)
        self._under_way: deque[tuple[str, Any, Any]] = deque()
        self._updated: Any = None
        """When the last update was over."""

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What runs in the block, or is queued for the card in it, is of this part."""
        first = self._now()
        if self._updated is not None:
            self._add(BETWEEN, self._updated, first)
            self._updated = None
        yield
        last = self._now()
        self._add(part, first, last)
        if part == PARTS[-1]:
            self._updated = last

    def _now(self) -> Any:
        if self._card is None:
            return time.perf_counter()
        event = self._card.Event(enable_timing=True)
        event.record()
        return event

    def _add(self, part: str, first: Any, last: Any) -> None:
        if self._card is None:
            self._totals[part] += last - first
        else:
            self._under_way.append((part, first, last))

    def totals(self) -> dict[str, float]:
        """Of what the device has done by now; nothing where that cannot be said."""
        if self._says_nothing:
            return {}
        while self._under_way and self._under_way[0][2].query():
            part, first, last = self._under_way.popleft()
            self._totals[part] += first.elapsed_time(last) / 1000
        return dict(self._totals)


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of the towers, forward and backward (twice the forward; none through a frozen tower).
    What is computed again, for shared negatives or to save memory, is not counted, and the head is not either."""

    per_image: float
    per_token: float

    def of(self, images: int, tokens: int) -> float:
        """tokens   of all texts together, with what they are padded to"""
        return images * self.per_image + tokens * self.per_token


def operations(towers: Towers, uses_text: bool) -> Operations:
    """Counted by torch on two images and two texts of full length; towers are on the CPU still."""
    from torch.utils.flop_counter import FlopCounterMode

    def counted(tower: str, call: Any) -> float:
        trained = any(p.requires_grad for name, p in towers.named_parameters() if tower_of(name) == tower)
        with torch.compiler.set_stance("force_eager"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        return float(counter.get_total_flops()) * (3 if trained else 1) / 2

    # As in training, where patches may be dropped; of two images, for batch norms that one pixel is left of want two.
    training, side, token = towers.training, towers.image_size, 0.0
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # of a frozen tower: one kernel, which the counter does not know
    with torch.random.fork_rng(devices=[]), statistics_left(towers):
        towers.train()
        image = counted("image", lambda: towers.images(torch.zeros((2, 3, side, side), dtype=torch.uint8)))
        if uses_text:
            length = int(towers.architecture["text_cfg"].get("context_length", 77))
            token = counted("text", lambda: towers.texts(torch.zeros((2, length), dtype=torch.int64))) / length
    torch.backends.mha.set_fastpath_enabled(fast)
    towers.train(training)
    return Operations(image, token)


def peak_flops(config: TrainConfig, device: torch.device) -> float | None:
    """Operations a second that a rank's device can do at most; None where neither the config nor its name says."""
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    if device.type != "cuda" or config.precision != "bfloat16":
        return None
    words = set(re.split(r"[\s-]+", torch.cuda.get_device_name(device)))
    if "MIG" in words:  # a part of a card, whose share its name does not say
        return None
    best_first = sorted(PEAK_TFLOPS.items(), key=lambda known: -len(known[0].split()))
    return next((tflops * 1e12 for known, tflops in best_first if words.issuperset(known.split())), None)
