"""Every job by spark-submit on a standalone cluster, by the page's own lines; every table as in local mode.

Catches: what works only where driver and worker share a folder, a path, an environment or a process.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from i2e_pipeline.core.config import dump
from i2e_pipeline.sample import compose
from tests.chain import settings
from tests.cluster.conftest import ROOT, Cluster, block
from tests.cluster.tables import tables

pytestmark = pytest.mark.cluster

FEW = ("session.shuffle_partitions=2",)
GPU = '{"name": "gpu", "addresses": ["3"]}'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that every machine sees, and every test process; its input is two small shards."""
    if worker_id == "master":
        folder = tmp_path_factory.mktemp("shared")
        compose.compose(folder / "input", rows=80, shards=2)
        return folder
    folder = tmp_path_factory.getbasetemp().parent / "shared"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            compose.compose(folder / "input", rows=80, shards=2)
    return folder


def configured(place: Path, output: str, *overrides: str) -> Path:
    file = place / f"{output}.yaml"
    file.write_text(dump(settings(place / "input", place / output, *FEW, *overrides)))
    return file


@pytest.fixture(scope="module")
def local(place: Path) -> Path:
    """The same config in local mode."""
    with FileLock(place / "local.lock"):
        if not (place / "local" / "i2e" / "manifest.json").exists():
            run_locally(place)
    return place / "local"


def run_locally(place: Path) -> None:
    config = configured(place, "local")
    command = [sys.executable, "-m", "i2e_pipeline.cli", "run", "--config", str(config)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def jobs(*names: str) -> str:
    """The page's lines for some of the jobs that they name."""
    lines = block("standalone")
    named = re.search(r"for job in (.*); do", lines)
    assert named
    assert set(names) <= set(named[1].split())
    return lines.replace(named[1], " ".join(names))


def same_tables(output: Path, local: Path) -> None:
    here, there = tables(output), tables(local)
    assert here.keys() == there.keys()
    assert [name for name in there if here[name] != there[name]] == []
    assert sum(there["i2e/images"].values()) > 10


@pytest.mark.xdist_group("one cluster")
def test_every_job_on_parquet_while_a_worker_dies_and_another_joins(
    cluster: Cluster, place: Path, local: Path, unpacked: Path
) -> None:
    """Catches: addFile of a folder; models that only the first executors got."""
    output, config = place / "parquet", configured(place, "parquet")
    died = threading.Event()

    def kill() -> None:
        """The machine of a worker is lost while texts are worked on, and a new one comes."""
        while not (output / "_commits" / "extract").exists() and not died.is_set():
            time.sleep(0.1)
        if not died.is_set():
            cluster.stop(cluster.workers.pop("a"))
            cluster.workers["late"] = cluster.start_worker("late")
            died.set()

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        # By --py-files and --archives alone; every executor unpacks these anew, so not for all jobs.
        code, said = cluster.submit(block("options"), jobs("build_knowledge_base"), config)
        assert code == 0, said
        others = jobs("extract_entities", "link_entities", "score_images", "build_dataset", "report")
        code, said = cluster.submit(
            block("unpacked"), f"{block('doctor')}\n{others}", config, ENVIRONMENT=str(unpacked)
        )
        assert code == 0, said
        assert died.is_set()
    finally:
        died.set()
        killing.join()
    same_tables(output, local)
    assert (output / "report.html").is_file()
    assert list((output / "_shipped").glob("recognizer-*.tar"))
    # What workers ran came to their folders by spark-submit alone: no line of theirs names the project's own folder.
    logs = "".join(log.read_text(errors="replace") for log in cluster.folder.rglob("work/*/*/stderr"))
    assert "i2e_pipeline" in logs
    assert f"{ROOT}/i2e_pipeline" not in logs


@pytest.mark.long
@pytest.mark.xdist_group("another")
def test_every_job_on_delta_with_the_jars_of_the_page(
    cluster: Cluster, place: Path, local: Path, unpacked: Path, tmp_path: Path
) -> None:
    """On machines that have the environment; scoring on GPU executors of its own, which a script makes believe in."""
    config = configured(place, "delta", "storage.format=delta")
    script = tmp_path / "gpus.sh"
    script.write_text(f"#!/bin/sh\necho '{GPU}'\n")
    script.chmod(0o755)
    resources = f"-Dspark.worker.resource.gpu.amount=1 -Dspark.worker.resource.gpu.discoveryScript={script}"
    gpu = cluster.start_worker("gpu", "--cores", "2", SPARK_WORKER_OPTS=resources)
    try:
        dynamic = (
            f"--conf spark.dynamicAllocation.enabled=true --conf spark.dynamicAllocation.shuffleTracking.enabled=true "
            f"--conf spark.dynamicAllocation.maxExecutors=1 --conf spark.executor.cores=1 "
            f"--conf spark.eventLog.enabled=true --conf spark.eventLog.compress=false --conf spark.eventLog.dir=file://{tmp_path}"
        )
        executor = "session.gpu_executor={gpus: 1, cores: 1, memory: 1g, overhead: 512m}"
        lines = (
            jobs("build_knowledge_base", "extract_entities", "link_entities", "score_images", "build_dataset")
            .replace(
                "jobs/$job.py",
                f"$([ $job = score_images ] && echo '{dynamic}') jobs/$job.py",
            )
            .replace('--config "$CONFIG"', f"--config \"$CONFIG\" --set '{executor}'")
        )
        options = f"{block('unpacked')}\n{block('delta')}"
        code, said = cluster.submit(options, lines, config, ENVIRONMENT=str(unpacked))
        assert code == 0, said
    finally:
        cluster.stop(gpu)
    same_tables(place / "delta", local)
    (events,) = tmp_path.glob("*app-*")
    logged = [json.loads(line) for file in ([events] if events.is_file() else sorted(events.glob("events_*")))
              for line in file.read_text().splitlines()]  # fmt: skip
    scored = [e["Stage Info"] for e in logged if e["Event"] == "SparkListenerStageCompleted"]
    assert any(stage["Resource Profile Id"] > 0 and "Failure Reason" not in stage for stage in scored)


@pytest.mark.long
@pytest.mark.xdist_group("another")
def test_ranks_train_on_two_workers(cluster: Cluster, place: Path, local: Path, unpacked: Path) -> None:
    shutil.copytree(local / "i2e", place / "trained" / "i2e")
    few = "train.steps=3 train.data.batch_size=8 train.data.hold_out_entities=0 train.device=cpu train.threads=1"
    code, said = cluster.submit(
        block("unpacked"), f"{block('train').strip()} {few}", configured(place, "trained"), ENVIRONMENT=str(unpacked)
    )
    assert code == 0, said
    (trained,) = (place / "trained" / "train").iterdir()
    assert json.loads((trained / "outcome.json").read_text())["steps"] == 3
    assert json.loads((trained / "journal.jsonl").read_text().split("\n")[0])["ranks"] == 2


@pytest.mark.xdist_group("another")
def test_tasks_are_told_their_gpu(cluster: Cluster, place: Path, unpacked: Path, tmp_path: Path) -> None:
    script = tmp_path / "gpus.sh"
    script.write_text(f"#!/bin/sh\necho '{GPU}'\n")
    script.chmod(0o755)
    resources = f"-Dspark.worker.resource.gpu.amount=1 -Dspark.worker.resource.gpu.discoveryScript={script}"
    gpu = cluster.start_worker("with-gpu", SPARK_WORKER_OPTS=resources)
    ask = "--conf spark.executor.resource.gpu.amount=1 --conf spark.task.resource.gpu.amount=1"
    try:
        code, said = cluster.submit(
            f'{block("unpacked")}\nOPTIONS="$OPTIONS {ask}"',
            block("doctor"),
            configured(place, "asked"),
            ENVIRONMENT=str(unpacked),
        )
    finally:
        cluster.stop(gpu)
    assert code == 0, said
    assert "GPUs 3," in said


@pytest.mark.xdist_group("one cluster")
@pytest.mark.parametrize(
    ("options", "overrides", "variables", "words"),
    [
        ("", ("output=out/here",), {}, ("output: out/here is relative", "a URI")),
        ("", (), {"PYSPARK_PYTHON": "nowhere/python"}, ("have no nowhere/python", "--archives")),
        ("--py-files", (), {}, ("cannot import this project", "--py-files dist/*.zip")),
        ("", ("storage.format=delta",), {}, ("--packages io.delta:delta-spark_4.1_2.13:", "--conf spark.sql.ext")),
    ],
    ids=["relative output", "no such python", "no --py-files", "no Delta"],
)
def test_what_is_missing_is_said_before_the_first_stage(
    options: str,
    overrides: tuple[str, ...],
    variables: dict[str, str],
    words: tuple[str, ...],
    cluster: Cluster,
    place: Path,
    unpacked: Path,
) -> None:
    """Catches: a minute of work, then a Java trace, or "264,482 rows in, 0 out"."""
    output = f"refused-{len(list(place.glob('refused-*')))}"
    config = configured(place, output, *overrides)
    lines = block("unpacked")
    if "PYSPARK_PYTHON" in variables:
        lines += f"\nexport PYSPARK_PYTHON={variables['PYSPARK_PYTHON']}"
    if options:
        lines += '\nOPTIONS="--master $MASTER"'
    code, said = cluster.submit(
        lines,
        'spark-submit $OPTIONS jobs/build_knowledge_base.py --config "$CONFIG"',
        config,
        ENVIRONMENT=str(unpacked),
    )
    last = [line for line in said.splitlines() if " INFO " not in line][-8:]
    assert code == 2, said
    assert all(word in "\n".join(last) for word in words), said[-3000:]
    assert "Traceback" not in said
    assert not (place / output / "kb").exists()
