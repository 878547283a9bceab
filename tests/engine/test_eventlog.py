"""What a run's event log says: of made-up events, and of the chain on a corpus with hub surfaces."""

from __future__ import annotations

import bz2
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from i2e_pipeline.engine import eventlog
from i2e_pipeline.engine.eventlog import EventLogError, covered, summarize
from i2e_pipeline.sample import embedded
from i2e_pipeline.sample.world import load_world

ROOT = Path(__file__).parent.parent.parent
SQL = "org.apache.spark.sql.execution.ui.SparkListener"


def job(number: int, group: str | None, *stages: int, at: int = 0) -> dict[str, Any]:
    properties = {} if group is None else {"spark.jobGroup.id": group}
    return {"Event": "SparkListenerJobStart", "Job ID": number, "Stage IDs": list(stages), "Submission Time": at,
            "Properties": properties}  # fmt: skip


def ended(number: int, at: int) -> dict[str, Any]:
    return {"Event": "SparkListenerJobEnd", "Job ID": number, "Completion Time": at}


def task(stage: int, start: int, stop: int, read: int = 0, sent: dict[int, int] | None = None, started: int = 0,
         shuffle: tuple[int, int] = (0, 0), spilled: int = 0, failed: bool = False,
         fetched: int = 0) -> dict[str, Any]:  # fmt: skip
    python = [{"ID": i, "Name": "data sent to Python workers", "Update": str(n)} for i, n in (sent or {}).items()]
    if started:
        python.append({"ID": 99, "Name": "time to start Python workers", "Update": str(started)})
    return {
        "Event": "SparkListenerTaskEnd", "Stage ID": stage, "Stage Attempt ID": 0,
        "Task End Reason": {"Reason": "ExceptionFailure" if failed else "Success"},
        "Task Info": {"Launch Time": start, "Finish Time": stop, "Accumulables": python},
        "Task Metrics": {
            "Disk Bytes Spilled": spilled, "Input Metrics": {"Bytes Read": 10 * read, "Records Read": read},
            "Shuffle Read Metrics": {"Total Records Read": fetched},
            "Shuffle Write Metrics": {"Shuffle Bytes Written": shuffle[0], "Shuffle Records Written": shuffle[1]},
        },
    }  # fmt: skip


def plan_of(execution: int, group: str, metric: int, scan: str = "texts", exchange: str = "") -> dict[str, Any]:
    node = {
        "nodeName": "MapInArrow", "simpleString": f"MapInArrow kernel(text#{execution}7)",
        "metrics": [{"name": "data sent to Python workers", "accumulatorId": metric}],
        "children": [{"nodeName": "Scan", "simpleString": f"Scan {scan}#{execution}1", "metrics": [], "children": []}],
    }  # fmt: skip
    described = f"(2) Exchange\nInput [2]: [{exchange}]\nArguments: hash" if exchange else ""
    return {"Event": f"{SQL}SQLExecutionStart", "executionId": execution, "jobGroupId": group, "sparkPlanInfo": node,
            "physicalPlanDescription": described}  # fmt: skip


def test_bytes_and_tasks_are_counted_by_the_stage_whose_job_it_was() -> None:
    found = summarize([
        job(0, "link/u-1", 0, at=0), task(0, 0, 1000, read=5, shuffle=(300, 3), spilled=7), ended(0, 1000),
        job(1, None, 1, at=1000), task(1, 1000, 1500), ended(1, 1500),
    ])  # fmt: skip
    assert list(found.stages) == ["link", eventlog.OTHER]
    link = found.stages["link"]
    assert (link.read_bytes, link.shuffle_bytes, link.spilled_bytes, link.widest_row) == (50, 300, 7, 100)
    assert (link.tasks, link.task_seconds) == (1, 1.0)


def test_time_without_a_task_is_the_drivers() -> None:
    found = summarize([
        job(0, "link/u-1", 0, at=0), task(0, 2000, 6000), task(0, 3000, 5000), ended(0, 10_000),
    ])  # fmt: skip
    assert (found.seconds, found.driver_only_seconds) == (10.0, 6.0)
    assert found.driver_only == pytest.approx(0.6)
    assert found.by_stage_driver_only == {"link": 6.0}
    assert covered([(0, 2), (1, 3), (5, 6)], 0, 10) == 4


def test_a_kernel_that_is_given_the_same_rows_again_ran_twice() -> None:
    """Catches: a count() before the write, which scores every image a second time."""
    counted = [plan_of(1, "score/u-1", 10), job(0, "score/u-1", 0), task(0, 0, 1, sent={10: 500})]
    written = [plan_of(2, "score/u-1", 20), job(1, "score/u-1", 1), task(1, 1, 2, sent={20: 500})]
    other_rows = [plan_of(3, "score/u-1", 30), job(2, "score/u-1", 2), task(2, 2, 3, sent={30: 400})]
    other_unit = [plan_of(4, "score/u-2", 40), job(3, "score/u-2", 3), task(3, 3, 4, sent={40: 500})]
    other_plan = [plan_of(5, "score/u-1", 50, "pairs"), job(4, "score/u-1", 4), task(4, 4, 5, sent={50: 500})]
    found = summarize([*counted, *written, *other_rows, *other_unit, *other_plan])
    assert (found.stages["score"].kernels, found.stages["score"].kernels_repeated) == (5, 1)
    assert summarize([*counted, *other_rows, *other_unit, *other_plan]).total("kernels_repeated") == 0


def test_a_task_that_failed_is_no_second_run() -> None:
    events = [plan_of(1, "score/u-1", 10), job(0, "score/u-1", 0), task(0, 0, 1, sent={10: 500}, failed=True),
              task(0, 1, 2, sent={10: 500}, started=30)]  # fmt: skip
    score = summarize(events).stages["score"]
    assert (score.failed_tasks, score.kernels, score.kernels_repeated) == (1, 1, 0)
    assert (score.python_tasks, score.python_started) == (1, 1)


def test_columns_that_cross_a_shuffle_are_named() -> None:
    found = summarize([plan_of(1, "score/u-1", 10, exchange="jpg#12, row#3L")])
    assert found.stages["score"].columns == {"jpg", "row"}


def test_skew_is_the_largest_task_over_the_median() -> None:
    """Of rows from a shuffle, among the tasks that had any: how a table's files are cut says nothing of its keys."""

    def skew(*rows: int, fetched: bool = True) -> float:
        tasks = [task(0, 0, 100, fetched=n) if fetched else task(0, 0, 100, read=n) for n in rows]
        return summarize([job(0, "link/u-1", 0), *tasks]).stages["link"].skew_records

    assert skew(1000, 1000, 1000, 5000) == 5.0
    assert skew(1, 1, 1, 50) == 1.0
    assert skew(0, 0, 0, 0, 5000) == 1.0
    assert skew(1000, 1000, 1000, 5000, fetched=False) == 1.0


def test_a_rolling_log_is_read_in_order_plain_and_packed(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "eventlog_v2_app"
    folder.mkdir(parents=True)
    (folder / "appstatus_app").touch()
    for number in (1, 2, 10):
        line = json.dumps(job(number, "link/u-1", number)) + "\n"
        with pa.CompressedOutputStream(str(folder / f"events_{number}_app.zstd"), "zstd") as stream:
            stream.write(line.encode())
    assert [e["Job ID"] for e in eventlog.events(str(tmp_path / "logs"))] == [1, 2, 10]
    plain = tmp_path / "app"
    plain.write_text(json.dumps(job(0, None, 0)) + "\n")
    assert [e["Job ID"] for e in eventlog.events(str(plain))] == [0]


def test_what_is_no_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(EventLogError, match="there is no event log"):
        eventlog.audit(str(tmp_path / "nowhere"))
    for name in ("a", "b"):
        (tmp_path / name).write_text("")
    with pytest.raises(EventLogError, match="holds 2 event logs: name one of them"):
        eventlog.audit(str(tmp_path))
    (tmp_path / "a").write_text("<html>\n")
    with pytest.raises(EventLogError, match="a line that is no event"):
        eventlog.audit(str(tmp_path / "a"))
    (tmp_path / "app.lz4").write_text("")
    with pytest.raises(EventLogError, match="codec=zstd"):
        eventlog.audit(str(tmp_path / "app.lz4"))


# The chain, on a corpus whose names are as unequal as the web's

HUBS = {"Q60": ("New York", "most populous city in the United States"), "Q19809": ("Christmas", "holiday")}
PAIRS, FILES = 3000, 2


def with_hubs(world: Path, folder: Path) -> None:
    """The small world's dump and sources, and two entities more, which texts name more often than any other."""
    lines = bz2.decompress((world / "dump.json.bz2").read_bytes()).decode().splitlines()
    model = json.loads(next(line for line in lines if '"Q9202"' in line and '"labels"' in line).rstrip(","))
    more = []
    for qid, (name, description) in HUBS.items():
        item = model | {
            "id": qid, "aliases": {}, "labels": {"en": {"language": "en", "value": name}}, "claims": {},
            "descriptions": {"en": {"language": "en", "value": description}},
        }  # fmt: skip
        more.append(json.dumps(item) + ",")
    (folder / "dump.json").write_text("\n".join([lines[0], *more, *lines[1:]]) + "\n", encoding="utf-8")
    (folder / "popularity.csv").write_text(
        (world / "popularity.csv").read_text() + "".join(f"{q},300\n" for q in HUBS), encoding="utf-8"
    )
    anchors = (world / "anchors.tsv").read_text()
    (folder / "anchors.tsv").write_text(anchors + "".join(f"{n}\t{q}\t5000\n" for q, (n, _) in HUBS.items()))


def zipf_pairs(folder: Path) -> int:
    """Pairs whose k-th most frequent name stands in 1/k as many texts as the first; returns the images' bytes."""
    rng = random.Random(0)
    names = [name for name, _ in HUBS.values()] + [e.label for e in load_world().depicted]
    weights = [1 / rank for rank in range(1, len(names) + 1)]
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        noise, "JPEG", quality=95
    )
    stored = [noise.getvalue() + i.to_bytes(4, "big") for i in range(PAIRS)]
    rows = [
        {
            "key": str(i), "url": f"https://example.org/{i}.jpg", "jpg": stored[i],
            "caption": f"a photo of {rng.choices(names, weights)[0]} number {i}",
        }
        for i in range(PAIRS)
    ]  # fmt: skip
    folder.mkdir()
    for n in range(FILES):
        pq.write_table(pa.Table.from_pylist(rows[n::FILES]), folder / f"{n}.parquet", row_group_size=200)
    return sum(map(len, stored))


@pytest.fixture(scope="module")
def zipf(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[eventlog.Audit, int]:
    """The audit of a run over that corpus, and the bytes of its images.

    Spark decides by size what it broadcasts, merges and splits; its bounds are made small here, as the corpus is, so
    that it meets the joins that it would meet on a cluster.
    """
    folder = tmp_path_factory.mktemp("zipf")
    (folder / "log").mkdir()
    with_hubs(world, folder)
    size = zipf_pairs(folder / "pairs")
    conf = {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": (folder / "log").as_uri(),
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
        "spark.sql.adaptive.skewJoin.skewedPartitionFactor": "2",
        "spark.sql.adaptive.skewJoin.skewedPartitionThresholdInBytes": "8k",
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": "8k",
    }
    tree = embedded.tree([f"output={folder}/out", f"pairs.path={folder}/pairs/*.parquet"])
    for key, file in (("dump", "dump.json"), ("popularity", "popularity.csv"), ("anchors", "anchors.tsv")):
        tree["knowledge_base"][key] = str(folder / file)
    tree["session"] = {"master": "local[2]", "shuffle_partitions": 8, "driver_memory": "1g", "conf": conf}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "i2e_pipeline.cli", "run", "--config", str(folder / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return eventlog.audit(str(folder / "log"), min_records=100), size


@pytest.mark.spark
@pytest.mark.slow
def test_no_image_crosses_a_shuffle(zipf: tuple[eventlog.Audit, int]) -> None:
    audit, images = zipf
    for name in ("pairs", "extract", "link", "entity_vectors", "score", "label", "select", "publish"):
        stage = audit.stages[name]
        assert stage.widest_row < 1000, f"{name}: a shuffle of {stage.widest_row:.0f} bytes a row"
        assert not stage.columns & {"jpg", "image", "bytes"}, f"{name} shuffles {sorted(stage.columns)}"
        # Images are small in this world; label, with the words of each mention, moves a third as much.
        assert stage.shuffle_bytes < images / 2.5, f"{name} shuffles {stage.shuffle_bytes:,} bytes of {images:,}"


@pytest.mark.spark
@pytest.mark.slow
def test_no_kernel_runs_twice_and_nothing_is_spilled(zipf: tuple[eventlog.Audit, int]) -> None:
    audit, _ = zipf
    for name, stage in audit.stages.items():
        assert stage.kernels_repeated == 0, f"{name} gave the same rows to a kernel again"
        assert (stage.spilled_bytes, stage.failed_tasks) == (0, 0), name
    assert all(audit.stages[name].kernels for name in ("pairs", "extract", "link", "score", "label", "publish"))


@pytest.mark.spark
@pytest.mark.slow
def test_hub_surfaces_do_not_hold_a_stage_up(zipf: tuple[eventlog.Audit, int]) -> None:
    """In this small world the task that links the most common name has 3.2 times the median's rows."""
    audit, _ = zipf
    assert {n: round(s.skew_records, 1) for n, s in audit.stages.items() if s.skew_records > 3.5} == {}
