"""A standalone cluster of real processes: a master and two workers, started as a stranger's machines would start them.

They have a clean environment, another home and working folder, and nothing of the repository on their path. What
drivers are called with stands in docs/cluster.md: the tests take its lines out of the page and run them as they are.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cluster.md"
BIN = Path(sys.prefix) / "bin"
SITE = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
TORCH = ("torch", "functorch", "triton", "nvidia", "cuda", "sympy", "mpmath", "networkx")
"""Beginnings of the names of torch and what it brings: what an image for GPUs has of its own."""

QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:CICompilerCount=1"
"""Six JVMs share two cores, and live for half a minute."""


def block(name: str) -> str:
    """The lines of the page that are marked `<!-- run: NAME -->`."""
    found = re.search(rf"<!-- run: {name} -->\n\n((?:    .*\n|\n)+)", PAGE.read_text(encoding="utf-8"))
    assert found, f"{PAGE} marks no block {name}"
    return "\n".join(line.removeprefix("    ") for line in found[1].splitlines())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Cluster:
    """Master and workers, and how a driver beside them is called."""

    folder: Path
    master: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """One of Spark's daemons, as `env -i` starts it, in a folder that is its home, too."""
        import pyspark

        from i2e_pipeline.engine.java import home

        own = self.folder / name
        own.mkdir(exist_ok=True)
        clean = {
            "JDK_JAVA_OPTIONS": QUICK,
            "PATH": "/usr/bin:/bin",
            "HOME": str(own),
            "JAVA_HOME": home(),
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
        with (own / "log").open("ab") as log:
            process = subprocess.Popen(
                [str(spark_class), *arguments],
                cwd=own, env=clean | environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_master(self) -> None:
        port = free_port()
        self.master = f"spark://127.0.0.1:{port}"
        self.start(
            "master", "org.apache.spark.deploy.master.Master",
            "--host", "127.0.0.1", "--port", str(port), "--webui-port", str(free_port()),
        )  # fmt: skip
        self._wait("master", "New state: ALIVE")

    def start_worker(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        process = self.start(
            name, "org.apache.spark.deploy.worker.Worker",
            "--cores", "1", "--memory", "3g", "--webui-port", "0", "--work-dir", str(self.folder / name / "work"),
            *arguments, self.master, **environment,
        )  # fmt: skip
        self._wait(name, "Successfully registered with master")
        return process

    def _wait(self, name: str, words: str) -> None:
        until = time.monotonic() + 60
        while words not in (log := (self.folder / name / "log").read_text(errors="replace")):
            assert time.monotonic() < until, f"{name} does not come up: {log[-2000:]}"
            time.sleep(0.1)

    def stop(self, process: subprocess.Popen[Any]) -> None:
        """With all that it started, which is of its group."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)

    def run(self, script: str, cwd: Path = ROOT, timeout: float = 480, **variables: str) -> tuple[int, str]:
        """A script with the environment that a user has who activated the project's; exit code and all it said."""
        theirs = {k: v for k, v in os.environ.items() if not k.startswith(("PYSPARK", "SPARK", "PYTHON", "I2E"))}
        theirs |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "MASTER": self.master}
        # Two drivers and two workers share the cores of this machine.
        theirs |= {
            "JDK_JAVA_OPTIONS": QUICK,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DRIVER_MEMORY": "1g",
            "SPARK_EXECUTOR_MEMORY": "1g",
        }
        running = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=cwd, env=theirs | variables, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = running.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode(errors="replace")
            raise AssertionError(f"not done in {timeout:g} s:\n{said[-3000:]}\n{self.said_by_executors()}") from None
        finally:
            self.stop(running)
        return running.returncode, said

    def said_by_executors(self) -> str:
        """The last lines of the newest: a driver waits for ever for executors that do not start, as on a full disk."""
        logs = sorted(self.folder.rglob("work/*/*/stderr"), key=lambda log: log.stat().st_mtime)[-2:]
        free = shutil.disk_usage(self.folder).free >> 20
        return "\n".join([f"{free} MB free", *(f"{log}:\n{log.read_text(errors='replace')[-1500:]}" for log in logs)])

    def submit(self, options: str, then: str, config: Path, **variables: str) -> tuple[int, str]:
        """The page's lines of `options`, and then what is called with them."""
        return self.run(f"{options}\n{then}", CONFIG=str(config), **variables)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """What the page's `make dist` leaves. Workers find torch in a folder that holds it alone, as an image's would."""
    if worker_id == "master":
        return make_dist()
    # Test processes side by side share it: the first makes it.
    shared = tmp_path_factory.getbasetemp().parent
    with FileLock(shared / "dist.lock"):
        if not (shared / "dist.made").exists():
            make_dist()
            (shared / "dist.made").touch()
    return ROOT / "dist"


def make_dist() -> Path:
    # At a place that stays, since the packed environment is kept by what it is made of.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "i2e-pipeline" / "torch-of-the-machine"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    for entry in SITE.iterdir():
        if re.split(r"[-_.]", entry.name)[0].startswith(TORCH):
            (cache / entry.name).symlink_to(entry)
    lines = block("dist").replace("make dist", f"make -o {sys.prefix}/.installed VENV={sys.prefix} dist")
    done = subprocess.run(
        ["bash", "-euc", lines],
        cwd=ROOT, env={**os.environ, "TORCH_FROM": str(cache)}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((ROOT / "dist").glob("*.zip"))) == 1
    return ROOT / "dist"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        started.start_master()
        for name in ("a", "b"):
            started.workers[name] = started.start_worker(name)
        yield started
    finally:
        for process in reversed(started.processes):
            started.stop(process)


@pytest.fixture(scope="session")
def unpacked(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed environment as an image or a machine's disk holds it."""
    folder = tmp_path_factory.mktemp("environment")
    with tarfile.open(packed / "environment.tar.gz") as archive:
        archive.extractall(folder, filter="fully_trusted")
    return folder
