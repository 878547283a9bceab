"""A session for this folder's tests; goes when tests/conftest.py brings one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    from i2e_pipeline import session
    from i2e_pipeline.config import Config

    built = session.build(
        Config.model_validate({"session": {"master": "local[2]", "shuffle_partitions": 2, "driver_memory": "1g"}})
    )
    yield built
    built.stop()
