"""What the tests of a process share: one Spark session, a small world and a run over it, and the rules of the suite.

Rules: a test that starts Spark bears the mark `spark` (the fixture gives it); `--no-jvm` makes a JVM a failure; in CI a
skip is a failure, unless the machine cannot have what is missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from i2e_pipeline.core import config
from tests import examples  # noqa: F401  (registers the profiles)

hypothesis_settings.load_profile("tests")

NO_JVM = "a JVM was started under --no-jvm: mark the test `spark`"
MAY_BE_MISSING = ("I2E_REAL_DATA", "a GPU", "Linux's /proc", "the right to mount")
"""Reasons of skips that stand in CI too: data that is not everybody's, kinds of machines, and rights on them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-jvm", action="store_true", help="a test that starts a JVM fails")


FAKE_JAVA = """#!/bin/sh
echo "$0 $*" >> "$(dirname "$0")/../started"
exit 1
"""
FORBIDDEN = pytest.StashKey[Path]()
"""Where a child's start of Java leaves its trace, under --no-jvm."""


def pytest_configure(config: pytest.Config) -> None:
    os.environ.pop("COLUMNS", None)  # xdist's workers have that of their terminal, and commands take it for a user's
    if not config.getoption("--no-jvm"):
        return
    # A child finds this as its Java.
    home = Path(tempfile.mkdtemp(prefix="no-java-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    config.stash[FORBIDDEN] = home / "started"
    java = home / "bin" / "java"
    java.parent.mkdir()
    java.write_text(FAKE_JAVA)
    java.chmod(0o755)
    os.environ["JAVA_HOME"] = str(home)
    os.environ["PATH"] = f"{java.parent}{os.pathsep}{os.environ['PATH']}"
    sys.addaudithook(_no_java)


def _no_java(event: str, arguments: tuple[Any, ...]) -> None:
    """In this process every start of Java or Spark's scripts is stopped, whichever Java it is."""
    if event == "subprocess.Popen":
        program, command = arguments[:2]
        first = command if isinstance(command, str | bytes) else next(iter(command), "")
        for called in (program, first):
            if called and Path(os.fsdecode(called)).name in ("java", "spark-submit", "spark-class"):
                pytest.fail(NO_JVM)


@pytest.fixture(autouse=True)
def _no_java_in_children(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    started = request.config.stash.get(FORBIDDEN, None)
    if started is not None and started.exists():
        called = started.read_text()
        started.unlink()
        pytest.fail(f"{NO_JVM}: {called}")


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in {"spark", "browser"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(name)


def _fails_in_ci(reason: str) -> bool:
    return os.environ.get("CI") == "true" and not any(allowed in reason for allowed in MAY_BE_MISSING)


def _no_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if report.skipped and not hasattr(report, "wasxfail") and _fails_in_ci(reason):
        report.outcome = "failed"
        report.longrepr = f"CI skips nothing that it can install. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    _no_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    _no_skip(report)
    return report


_HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


@pytest.fixture(autouse=True)
def handlers_of_signals_stay() -> Iterator[None]:
    """A command that was ended leaves its handlers, since its process is at its end; here the next test is not. Those
    of the beginning are put back before a test, too: what a module shares was made before this fixture."""
    _put_back()
    yield
    _put_back()


def _put_back() -> None:
    for number, handler in _HANDLERS.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """Two cores, so that order and partitions can go wrong; with Delta's jars where they can be had."""
    from i2e_pipeline.engine.session import SessionError, build

    settings = ["session.master=local[2]", "session.driver_memory=1g", "session.shuffle_partitions=2"]
    try:
        session = build(config.load(None, [*settings, "storage.format=delta"]), "tests")
    except SessionError:  # neither Ivy's cache nor Maven has the jars, or there is no Java: then this says so
        session = build(config.load(None, settings), "tests")
    yield session
    session.stop()


@pytest.fixture(autouse=True)
def _delta_jars(request: pytest.FixtureRequest) -> None:
    """Tests marked `delta` are skipped where the session could not be built with Delta's jars."""
    if request.node.get_closest_marker("delta"):
        extensions = request.getfixturevalue("spark").conf.get("spark.sql.extensions", "")
        if "delta" not in extensions:
            pytest.skip("Delta's jars cannot be had: no Maven, and none in Ivy's cache")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium as a selenium driver; what pages write to the console is in `get_log("browser")`."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on the path (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    opened.set_page_load_timeout(60)
    yield opened
    opened.quit()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data, where I2E_REAL_DATA names one; tests that use it are skipped elsewhere."""
    folder = os.environ.get("I2E_REAL_DATA")
    if not folder:
        pytest.skip("I2E_REAL_DATA names no folder of real data")
    if not Path(folder).is_dir():
        pytest.fail(f"I2E_REAL_DATA={folder} is no folder")
    return Path(folder).resolve()


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
    run(settings(world, output, "run.waves_in_flight=1", "run.wave_units=1"), spark)
    assert len(content(output)[0]) > 20
    return output


@pytest.fixture(scope="session")
def reported(world: Path, tmp_path_factory: pytest.TempPathFactory, spark: Any) -> config.Config:
    """The config of a finished output with all that `i2e run` leaves beside the tables: settings, figures, report."""
    from i2e_pipeline.commands.run import run
    from i2e_pipeline.stages import pipeline
    from tests.chain import settings

    made = settings(world, tmp_path_factory.mktemp("reported") / "out")
    run(pipeline(made, lambda: spark))
    return made


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
