"""Where the time of a step goes, and how much of a device's arithmetic it uses.

towers     forward pass
losses     with what ranks exchange for them, and the entity head
backward   with the exchange of gradients, and the gathers of sharded weights
update     clipping, optimizer and head, and the step's own numbers

What waits for the loader is counted by the loader (dataset.py). On a card times are those of its own timeline, read
when it has passed, so that nobody waits for it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.train.encoders import Towers, tower_of

PARTS = ("towers", "losses", "backward", "update")
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
"""10¹² operations a second in dense bfloat16, by what a card's name has in it; makers' data sheets [unverified]."""


class StepTime:
    """Seconds of each part since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._card: Any = torch.cuda if device.type == "cuda" else None
        self._totals = dict.fromkeys(PARTS, 0.0)
        self._under_way: deque[tuple[str, Any, Any]] = deque()

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What runs in the block, or is queued for the card in it, is of this part."""
        if self._card is None:
            began = time.perf_counter()
            yield
            self._totals[part] += time.perf_counter() - began
            return
        first, last = (self._card.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._under_way.append((part, first, last))

    def totals(self) -> dict[str, float]:
        """Of what the device has done by now."""
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
    """Counted by torch on one image and one text of full length; towers are on the CPU still."""
    from torch.utils.flop_counter import FlopCounterMode

    def counted(tower: str, call: Any) -> float:
        trained = any(p.requires_grad for name, p in towers.named_parameters() if tower_of(name) == tower)
        with torch.compiler.set_stance("force_eager"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        return float(counter.get_total_flops()) * (3 if trained else 1)

    training, fast = towers.training, torch.backends.mha.get_fastpath_enabled()
    towers.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel that the counter does not know
    side = towers.image_size
    image = counted("image", lambda: towers.images(torch.zeros((1, 3, side, side), dtype=torch.uint8)))
    token = 0.0
    if uses_text:
        length = int(towers.architecture["text_cfg"].get("context_length", 77))
        token = counted("text", lambda: towers.texts(torch.zeros((1, length), dtype=torch.int64))) / length
    torch.backends.mha.set_fastpath_enabled(fast)
    towers.train(training)
    return Operations(image, token)


def peak_flops(config: TrainConfig, device: torch.device) -> float | None:
    """Operations a second that a rank's device can do at most; None where neither the config nor its name says."""
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    if device.type != "cuda" or config.precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for known, tflops in PEAK_TFLOPS.items() if known in name), None)
