"""The settings that most tests of scoring want: a small model on the CPU."""

from __future__ import annotations

import pytest

from i2e_pipeline.core.config import ScoreConfig


@pytest.fixture(scope="session")
def config(encoder_config: ScoreConfig) -> ScoreConfig:
    return encoder_config
