"""One Spark session for the whole run, tuned for many tiny jobs; where the real data lies."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core import config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """Two cores, so that order and partitions can go wrong; Delta's jars are there for the tests that need them."""
    from i2e_pipeline.engine.session import build

    settings = ["session.master=local[2]", "session.driver_memory=1g", "session.shuffle_partitions=2"]
    if delta_jars():
        settings.append("storage.format=delta")
    session = build(config.load(None, settings), "tests")
    yield session
    session.stop()


@functools.cache
def delta_jars() -> bool:
    """Can Delta's jars be had, from Ivy's cache or from Maven? Where not, tests marked `delta` are skipped."""
    script = (
        "from i2e_pipeline import config, session\n"
        "session.build(config.load(None, ['session.master=local[1]', 'storage.format=delta']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=300)
    return done.returncode == 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("delta") and not delta_jars():
        pytest.skip("Delta's jars cannot be had: no Maven, and none in Ivy's cache")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data to run on; tests that use it are skipped where it is absent."""
    folder = Path(os.environ.get("I2E_REAL_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set I2E_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of the sample world, its dump and its sources."""
    from i2e_pipeline.sample import compose

    folder = tmp_path_factory.mktemp("world") / "input"
    compose.compose(folder, rows=75, shards=3)
    return folder


@pytest.fixture(scope="session")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory, spark: Any) -> Path:
    """One run over all three shards: what every other way must give."""
    from tests.chain import content, run, settings

    output = tmp_path_factory.mktemp("whole") / "out"
    run(settings(world, output, "run.units_in_flight=1"), spark)
    images, entities = content(output)
    assert len(images) > 20
    assert sorted(e["class_index"] for e in entities.values()) == list(range(len(entities)))
    return output


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Names of small open_clip models with random weights, by kind (small_models.MODELS)."""
    from tests.small_models import write_model

    made: dict[str, str] = {}

    def model(kind: str) -> str:
        if kind not in made:
            made[kind] = write_model(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return model


@pytest.fixture(scope="session")
def encoder_config(models: Callable[[str], str]) -> config.ScoreConfig:
    return config.ScoreConfig(model=models("vit"), batch_size=4, device="cpu")


@pytest.fixture(scope="session")
def encoder(encoder_config: config.ScoreConfig) -> Any:
    from i2e_pipeline.images.encoder import load

    return load(encoder_config)
