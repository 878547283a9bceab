"""Somebody ends a job that spark-submit started: it is over within seconds, says so, and leaves no process and no lock.

`i2e run` itself is asked to end in the chains of test_kills.py. Here the JVM is above the driver, and whoever kills the
process that he started asks the JVM.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import injector, processes
from tests.faults.cluster import PATH, LightCluster
from tests.faults.conftest import LONG
from tests.faults.injector import ENDS_WITHIN, World

pytestmark = pytest.mark.faults

WAYS = [
    ("all", signal.SIGINT),  # a terminal's Ctrl-C
    ("spark-submit", signal.SIGTERM),
    ("all", signal.SIGTERM),
    ("driver", signal.SIGTERM),
    ("spark-submit", signal.SIGINT),
    ("all", signal.SIGHUP),  # a closed ssh session
]


def submitted(config: Path, job: str, *options: str) -> subprocess.Popen[bytes]:
    import pyspark

    with config.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), *options,
             f"{injector.ROOT}/jobs/{job}.py", "--config", str(config)],
            cwd=config.parent, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable,
                 "PYTHONPATH": PATH, "SPARK_LOCAL_IP": "127.0.0.1", "JAVA_HOME": _java()},
        )  # fmt: skip


def _java() -> str:
    from i2e_pipeline.engine import java

    return java.home()


def driver_of(submit: int) -> int | None:
    return next((pid for pid in processes.children(submit) if b"jobs/" in processes.command_of(pid)), None)


def ended(config: Path, output: Path, whom: str, number: int, share: float, *options: str) -> None:
    running = submitted(config, "build_knowledge_base", *options)
    try:
        assert processes.waited(lambda: any((output / "_staging").glob("*")), 120), said(config)
        time.sleep(share * 3)
        had = [running.pid, *processes.below(running.pid)]
        driver = driver_of(running.pid)
        assert driver is not None
        if whom == "all":
            os.killpg(running.pid, number)
        else:
            os.kill(driver if whom == "driver" else running.pid, number)
        code = running.wait(ENDS_WITHIN)
        assert processes.waited(lambda: not any(map(processes.alive, had)), ENDS_WITHIN), (
            [(pid, processes.command_of(pid)[:200]) for pid in had if processes.alive(pid)], said(config),
        )  # fmt: skip
    finally:
        injector.stop(running)
    assert code in (128 + number, -number), said(config)
    if whom == "driver":  # what it says comes out through the JVM, which may be gone before where it was asked, too
        assert "goes on" in said(config)
    assert "Traceback" not in said(config), said(config)
    assert not (output / "_lock").exists()


def test_ctrl_c_twice_is_a_sentence(still: World) -> None:
    """Catches: the second, in the middle of what Spark's handler does for the first, as a trace of that handler."""
    output = still.place / "twice"
    config = injector.configured(still.place, output)
    with config.with_suffix(".log").open("ab") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "i2e_pipeline.cli", "run", "--config", str(config)], cwd=config.parent,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": PATH},
        )  # fmt: skip
    try:
        assert processes.waited(lambda: any((output / "_staging").glob("*")), 120), said(config)
        os.killpg(running.pid, signal.SIGINT)
        time.sleep(0.3)
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(ENDS_WITHIN) == 130, said(config)
    finally:
        injector.stop(running)
    assert "i2e: interrupted; the next run goes on" in said(config)
    assert "Traceback" not in said(config)
    assert "signal_handler" not in said(config)
    assert not (output / "_lock").exists()


def said(config: Path) -> str:
    return config.with_suffix(".log").read_text(errors="replace")


@pytest.mark.parametrize(("whom", "number"), WAYS if LONG else WAYS[:1])
def test_a_local_job(whom: str, number: int, still: World) -> None:
    name = f"submitted-{whom}-{signal.Signals(number).name}"
    output = still.place / name
    config = injector.configured(still.place, output)
    ended(config, output, whom, number, random.Random(name).random(), "--master", "local[2]")


@pytest.mark.long
@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize(("whom", "number"), WAYS[:2] if LONG else WAYS[1:2])
def test_a_job_on_a_cluster(whom: str, number: int, still: World, cluster: LightCluster) -> None:
    cluster.replenish()
    name = f"on-cluster-{whom}-{signal.Signals(number).name}"
    output = still.place / name
    config = injector.configured(still.place, output)
    ended(
        config, output, whom, number, random.Random(name).random(),
        "--master", cluster.master, "--conf", f"spark.executorEnv.PYTHONPATH={PATH}", "--driver-memory", "1g",
        "--executor-memory", "1g", "--executor-cores", "1", "--conf", "spark.driver.host=127.0.0.1",
    )  # fmt: skip
    # Its executors end with it.
    assert processes.waited(lambda: not cluster.executors(), 60)
