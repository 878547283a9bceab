"""Ranks start from a server that has imported what they need: a second instead of ten for each."""

from __future__ import annotations

import logging
import multiprocessing

import pytest

multiprocessing.set_forkserver_preload(
    ["i2e_pipeline.cli", "i2e_pipeline.train.trainer", "i2e_pipeline.evaluate.in_training", "torch.distributed.fsdp",
     "open_clip", "pytest"]
)  # fmt: skip


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    """`caplog` holds the lines of progress, too."""
    caplog.set_level(logging.INFO, "i2e_pipeline")
