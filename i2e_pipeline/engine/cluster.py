"""What is true of a cluster and not of one machine: looked at before the first stage, by one tiny job.

Driver and workers need not share a folder, a disk, an environment or a clock. What goes wrong when they were thought to
share it is a run that ends with "264,482 rows in, 0 out", or with a Java trace that names no cause.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, GpuExecutor, paths
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.causes import cause
from i2e_pipeline.engine.environment import WORKERS_NEED
from i2e_pipeline.engine.master import is_local, master_of

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

NEEDED = tuple(WORKERS_NEED)
"""Packages that every stage's workers import."""
USEFUL = ("ftfy", "regex", "spacy", "torch", "open_clip_torch", "pillow-heif", "pillow-jxl-plugin")
"""Packages that some stages' workers import. Without the last two a worker rejects images that another one reads."""
_MAX_SKEW = 60.0
"""Seconds. Stores refuse requests whose time is off by 15 minutes; what is unfinished for a minute counts as left by a
writer that died (core/files.py)."""
_MOST_TASKS = 512


class ClusterError(I2EError, RuntimeError):
    """Something that driver and workers must share and do not; the message says the remedy."""


# Paths


def refuse_relative(config: Config) -> None:
    """Raise ClusterError, before anything is started, where a path of the config is relative and workers are elsewhere:
    each would take it for one below its own working folder."""
    master = master_of(config)
    if is_local(master):
        return
    wrong = [(key, path) for key, path in paths(config) if files.is_local(path) and not _is_absolute(path)]
    if wrong:
        said = "\n".join(f"{key}: {path} is relative" for key, path in wrong)
        raise ClusterError(
            f"{said}\nThe workers of {master} have working folders of their own. Write the path from the root, of a "
            f"place that every machine sees ({os.path.abspath(wrong[0][1])}?), or a URI (s3://, gs://, abfs://, hdfs://)"
        )


def _is_absolute(path: str) -> bool:
    return os.path.isabs(path.removeprefix("file://"))


_READ_BY_WORKERS = ("pairs.path", "knowledge_base.", "session.shared_folders")


# What the workers say


@dataclass
class Seen:
    """What the workers of one machine said, and what the driver says of itself."""

    host: str
    python: str = ""
    executable: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    code: str = ""
    """Digest of this project's modules as they import it; empty: they cannot."""
    error: str = ""
    """Why they cannot."""
    memory: int = 0
    """bytes"""
    gpus: list[str] = field(default_factory=list)
    """Addresses that Spark gave to tasks."""
    skew: float = 0.0
    """Seconds by which its clock is off from the driver's, at least."""
    paths: dict[str, str] = field(default_factory=dict)
    """By path, what is wrong with it; empty where it is as it must be."""


Places = Sequence[tuple[str, str]]
"""Settings and their paths."""


def check(spark: SparkSession, config: Config, writes: Places | None = None, reads: Places | None = None) -> None:
    """Raise ClusterError where the workers cannot do what a run asks of them; once for each session and output. With a
    local master there is nothing to ask.

    writes, reads   what workers write to and read; None: what stages do, which is the output, and the inputs
    """
    context = spark.sparkContext
    key = (context.applicationId, config.output, *(writes or ()), *(reads or ()))
    if is_local(context.master) or key in _checked:
        return
    workers = survey(spark, config, writes, reads)
    wrong, notes = faults(workers)
    for note in notes:
        log.warning("cluster: %s", note)
    if wrong:
        raise ClusterError("\n".join(wrong))
    log.info("cluster: %s, %d machine%s", context.master, len(workers), "s" * (len(workers) != 1))
    _checked.add(key)


_checked: set[tuple[Any, ...]] = set()


def survey(
    spark: SparkSession, config: Config, writes: Places | None = None, reads: Places | None = None
) -> list[Seen]:
    """Ask the workers that are there now; one answer for each machine. Raises ClusterError where none can answer."""
    context = spark.sparkContext
    token = uuid.uuid4().hex[:12]
    writes = [("output", config.output)] if writes is None else writes
    if reads is None:
        # A folder that outputs share is made by the first of them.
        named = [place for place in paths(config) if place[0].startswith(_READ_BY_WORKERS)]
        reads = [place for place in named if place[0] != "knowledge_base.path" or files.exists(place[1])]
    folders = {files.join(path, f"_cluster-{token}"): f"{key}: {path}" for key, path in writes}
    wanted = {_fixed(path): f"{key}: {path}" for key, path in reads}
    for folder in folders:
        files.write_bytes(files.join(folder, "driver"), token.encode())
    # Twice as many as there are cores, each of a tenth of a second, so that every executor gets some.
    tasks = min(_MOST_TASKS, 2 * max(1, context.defaultParallelism))
    look = _looking(list(folders), list(wanted), [*NEEDED, *USEFUL], token)
    started = time.time()
    try:
        said = [json.loads(answer) for answer in context.parallelize(range(tasks), tasks).map(look).collect()]
        ended = time.time()
        for folder, setting in folders.items():
            there = {info.path for info in files.list_files(folder)}
            for answer in said:
                if answer.get("wrote", {}).get(folder) and answer["wrote"][folder] not in there:
                    answer["paths"][folder] = (
                        "what a worker wrote there, the driver does not see: it is no shared folder"
                    )
                answer["paths"] = {
                    (setting if path == folder else wanted.get(path, path)): why
                    for path, why in answer["paths"].items()
                }
    except Exception as error:
        if not type(error).__module__.startswith(("pyspark", "py4j")):
            raise
        raise ClusterError(_no_answer(str(error), str(context.master))) from None
    finally:
        for folder in folders:
            files.remove(folder)
    found: dict[str, Seen] = {}
    for answer in said:
        seen = found.setdefault(answer["host"], Seen(**{k: v for k, v in answer.items() if k not in ("wrote", "time")}))
        seen.gpus = sorted({*seen.gpus, *answer["gpus"]})
        seen.paths |= {path: why for path, why in answer["paths"].items() if why}
        seen.skew = max(seen.skew, started - answer["time"], answer["time"] - ended)
    return [found[host] for host in sorted(found)]


def faults(workers: Sequence[Seen]) -> tuple[list[str], list[str]]:
    """What must not be, and what is worth a note."""
    wrong: list[str] = []
    notes: list[str] = []
    here = ".".join(map(str, sys.version_info[:2]))
    for seen in workers:
        at = f"workers on {seen.host}"
        if ".".join(seen.python.split(".")[:2]) != here:
            wrong.append(
                f"{at} run Python {seen.python} ({seen.executable}), the driver {here}: none can take "
                "the other's functions. Set PYSPARK_PYTHON to the same version"
            )
            continue
        lacking = [name for name in NEEDED if name not in seen.packages and _version(name)]
        if lacking:
            wrong.append(
                f"{at} lack {', '.join(lacking)} ({seen.executable}): give them an environment by --archives and "
                "PYSPARK_PYTHON (docs/cluster.md), or install the packages there"
            )
        elif seen.error:
            wrong.append(
                f"{at} cannot import this project ({seen.error}): --py-files dist/*.zip, as `make dist` makes it"
            )
        elif seen.code != code():
            wrong.append(
                f"{at} have other code of this project than the driver: run `make dist` again, and give driver and "
                "workers the same"
            )
        if seen.skew > _MAX_SKEW:
            wrong.append(f"the clock of {seen.host} is {seen.skew:.0f} s off from the driver's: set both by NTP")
        wrong += [f"{path}: {why} (seen by {at})" for path, why in seen.paths.items()]
        for name in (*NEEDED, *USEFUL):
            mine, theirs = _version(name), seen.packages.get(name)
            if mine and theirs != mine and name not in lacking:
                notes.append(f"{name} is {theirs or 'missing'} for {at}, {mine} for the driver")
    return wrong, notes


def _fixed(path: str) -> str:
    """A path, or of a glob the folder before its first wildcard."""
    base = re.split(r"[*?[]", path, maxsplit=1)[0] if "://" not in path or "?" not in path else path
    return base if base == path else base.rpartition("/")[0] or "/"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def code() -> str:
    """A digest of this project's modules, as this process imports them, from a folder or a zip."""
    digest = hashlib.blake2b(digest_size=16)

    def add(place: Any, name: str) -> None:
        for entry in sorted(place.iterdir(), key=lambda e: str(e.name)):
            if entry.name.endswith(".py"):
                digest.update(f"{name}/{entry.name}\0".encode() + entry.read_bytes())
            elif entry.is_dir() and entry.name != "__pycache__":
                add(entry, f"{name}/{entry.name}")

    for package in ("i2e_pipeline", "wikidata"):
        add(resources.files(package), package)
    return digest.hexdigest()


def look_at(folders: Sequence[str], reads: Sequence[str], token: str) -> tuple[dict[str, str], dict[str, str]]:
    """In a worker: what is wrong with each path, and the file that it wrote into each folder."""
    wrong: dict[str, str] = {}
    wrote: dict[str, str] = {}
    for folder in folders:
        try:
            if not files.exists(files.join(folder, "driver")):
                wrong[folder] = "what the driver wrote there, workers do not see: it is no shared folder"
                continue
            wrote[folder] = f"{uuid.uuid4().hex}.worker"
            files.write_bytes(files.join(folder, wrote[folder]), token.encode())
        except Exception as error:
            wrong[folder] = f"workers cannot write there ({_first_line(error)})"
    for path in reads:
        try:
            if not files.exists(path):
                wrong[path] = "workers do not see it"
        except Exception as error:
            wrong[path] = f"workers cannot read it ({_first_line(error)})"
    return wrong, wrote


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def _looking(folders: list[str], reads: list[str], packages: list[str], token: str) -> Callable[[int], str]:
    """What a task does. It travels as a whole and imports nothing but Python's own modules before it has looked whether
    the worker has them: that this project cannot be imported is one of the things to be said."""

    def look(_: int) -> str:
        import json
        import os
        import platform
        import socket
        import sys
        import time
        from importlib import metadata

        now = time.time()
        time.sleep(0.1)
        found = {}
        for name in packages:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        seen = {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "executable": sys.executable,
            "packages": found,
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "time": now,
            "code": "",
            "error": "",
            "paths": {},
            "wrote": {},
            "gpus": [],
        }
        try:
            from pyspark import TaskContext

            held = TaskContext.get().resources()  # type: ignore[union-attr]
            seen["gpus"] = list(held["gpu"].addresses) if "gpu" in held else []
            from i2e_pipeline.engine import cluster

            seen["code"] = cluster.code()
            seen["paths"], seen["wrote"] = cluster.look_at(folders, reads, token)
        except ImportError as error:
            seen["error"] = str(error)
        return json.dumps(seen)

    return look


def _no_answer(said: str, master: str) -> str:
    """Why the first job failed, with the remedy."""
    remedy = (
        "PYSPARK_PYTHON names the python of the workers, by a path on their machines or in the environment that "
        "--archives brings (PYSPARK_PYTHON=./environment/bin/python), PYSPARK_DRIVER_PYTHON that of the driver "
        "(docs/cluster.md)"
    )
    asked = os.environ.get("PYSPARK_PYTHON", "python3")
    if found := re.search(r'Cannot run program "([^"]+)".*', said):
        return f"the workers of {master} have no {found[1]} (PYSPARK_PYTHON={asked}). {remedy}"
    if found := re.search(r"Python in worker has different version: (.+?) than that in driver: ([\d.]+)", said):
        return (
            f"the workers of {master} run Python {found[1]}, the driver {found[2]} (PYSPARK_PYTHON={asked}). {remedy}"
        )
    if "PYTHON_VERSION_MISMATCH" in said:
        found = re.search(r"\[PYTHON_VERSION_MISMATCH\] (.+)", said)
        return f"{found[1] if found else 'driver and workers run other versions of Python'}. {remedy}"
    if found := re.search(r"No module named '?pyspark", said):
        return f"the python of the workers of {master} does not find pyspark (PYSPARK_PYTHON={asked}). {remedy}"
    return f"the workers of {master} (PYSPARK_PYTHON={asked}) cannot run a job: {cause(said)}. {remedy}"


# GPUs


def profile(spark: SparkSession, config: Config) -> ResourceProfile | None:
    """What a stage that runs a model asks of executors and tasks; None: what spark-submit asked for.

    Raises ClusterError where the config asks for executors of their own and the cluster does not allocate dynamically.
    """
    wanted, application = config.session.gpu_executor, spark.sparkContext.applicationId
    if not wanted.gpus or is_local(spark.sparkContext.master):
        return None
    if (application, wanted) in _profiles:
        return _profiles[application, wanted]
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") != "true":
        raise ClusterError(
            "session.gpu_executor: executors of another kind can be had only where the cluster allocates dynamically: "
            "--conf spark.dynamicAllocation.enabled=true, with shuffle tracking or a shuffle service; or gpus: 0"
        )
    from pyspark.resource import ExecutorResourceRequests, ResourceProfileBuilder, TaskResourceRequests

    script = wanted.discovery or str(spark.conf.get("spark.executor.resource.gpu.discoveryScript", "") or "")
    executor = (
        ExecutorResourceRequests()
        .cores(wanted.cores)
        .memory(wanted.memory)
        .memoryOverhead(wanted.overhead)
        .resource("gpu", wanted.gpus, script)
    )
    task = TaskResourceRequests().cpus(max(1, wanted.cores // wanted.gpus)).resource("gpu", 1)
    # One for all jobs: Spark takes each new one for executors of another kind.
    _profiles[application, wanted] = ResourceProfileBuilder().require(executor).require(task).build
    return _profiles[application, wanted]


_profiles: dict[tuple[Any, GpuExecutor], ResourceProfile] = {}


def task_device(wanted: str) -> str:
    """In a worker: where its task runs a model. Of `auto` and `cuda`, the card that Spark gave to the task.

    Spark's address of a GPU is its number on the machine, or in the container. Where CUDA_VISIBLE_DEVICES hides some,
    torch counts those that are left.
    """
    from pyspark import TaskContext

    task = TaskContext.get()
    held = task.resources() if task is not None else {}
    if wanted not in ("auto", "cuda") or "gpu" not in held or not held["gpu"].addresses:
        return wanted
    import torch

    if wanted == "auto" and not torch.cuda.is_available():
        return "cpu"
    return card(held["gpu"].addresses[0], os.environ.get("CUDA_VISIBLE_DEVICES"))


def card(address: str, visible: str | None) -> str:
    """Torch's name of the GPU at Spark's address."""
    seen = [v.strip() for v in visible.split(",")] if visible else []
    if address in seen:
        return f"cuda:{seen.index(address)}"
    if address.isdigit():
        return f"cuda:{address}"
    raise ClusterError(
        f"Spark names a GPU {address!r}, and CUDA_VISIBLE_DEVICES={visible!r} does not: let the discovery script print "
        "the numbers of the cards, as nvidia-smi does"
    )


def task_cores(default: int) -> int:
    """In a worker: the cores of its task. Torch must be told: by itself it takes all cores of the machine."""
    from pyspark import TaskContext

    task = TaskContext.get()
    return task.cpus() if task is not None else default
