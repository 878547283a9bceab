"""The learning rate's course: a linear rise, then half a cosine down to zero (arXiv 1608.03983, Eq. 5)."""

from __future__ import annotations

import math

from i2e_pipeline.core.errors import I2EError


class ScheduleError(I2EError, ValueError):
    """The warm-up leaves no step for training."""


def factor(step: int, steps: int, warmup: float) -> float:
    """What peak rates are multiplied by at a step, in [0, 1].

    step    the one about to be done, from 0; `steps` and beyond give 0
    warmup  below 1: share of all steps; else steps. The last step of the rise runs at the peak.
    """
    rise = round(warmup * steps) if warmup < 1 else round(warmup)
    if rise >= steps:
        raise ScheduleError(
            f"train.optimizer.warmup: {rise:,} steps of warm-up in a training of {steps:,} never leave the rise: "
            "give a share (0.05), or more train.steps"
        )
    if step < rise:
        return (step + 1) / rise
    done = min(1.0, (step - rise) / (steps - rise))
    return 0.5 * (1 + math.cos(math.pi * done))
