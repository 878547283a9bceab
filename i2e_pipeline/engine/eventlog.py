"""What Spark's own log says that a run did: bytes shuffled, spilled and read, kernels that ran twice, skew, idle time.

Reads    an event log: spark.eventLog.enabled, spark.eventLog.dir; a file, or the folder of a rolling one, plain or zstd
Writes   an Audit: figures per stage of ours, whose jobs bear its name (progress.job_group), and of the run

The log is read line by line, and what is kept grows with the number of tasks. Spark's own metrics know the JVM alone:
what a Python worker spends is in a task's time, not in its CPU time.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError

OTHER = "(no stage)"
"""Jobs that bear no stage's name: figures of the report, for the most part."""
MIN_TASKS = 4
"""A Spark stage of fewer tasks has no median to be compared with."""
MIN_RECORDS = 1000
"""A task with fewer records is small, whatever the others have."""
_STARTED, _SENT = "time to start Python workers", "data sent to Python workers"
_EXCHANGE = re.compile(r"^\(\d+\) Exchange\nInput(?: \[\d+\])?: \[([^\]]*)\]", re.MULTILINE)
_NUMBERED = re.compile(r"#\d+L?|\bplan_id=\d+|\[id=#?\d+\]|@[0-9a-f]+")
_PARTS = re.compile(r"events_(\d+)_")


class EventLogError(I2EError, ValueError):
    """An event log that cannot be read; the message names it and the way out."""


@dataclass
class StageAudit:
    """What the jobs of one stage of ours did."""

    jobs: int = 0
    spark_stages: int = 0
    tasks: int = 0
    failed_tasks: int = 0
    task_seconds: float = 0.0
    """From launch to finish, over all tasks: what the stage held of the cluster's cores."""
    read_bytes: int = 0
    read_rows: int = 0
    shuffle_bytes: int = 0
    """Written to shuffles."""
    shuffle_rows: int = 0
    widest_row: float = 0.0
    """Bytes a row, on the mean, of the shuffle that has the widest ones. An image has some tens of thousands."""
    spilled_bytes: int = 0
    """To disk."""
    python_tasks: int = 0
    python_started: int = 0
    """Python workers that were started for this stage, and not found waiting."""
    kernels: int = 0
    """Plans in which a kernel was given rows."""
    kernels_repeated: int = 0
    """Those that were given the same rows by the same plan as another of the same job group."""
    skew_records: float = 1.0
    """Rows that a shuffle brought to the largest task over the median, in the Spark stage where that is worst."""
    skew_seconds: float = 1.0
    """The same of the tasks' time."""
    columns: set[str] = field(default_factory=set)
    """Columns that crossed a shuffle."""


@dataclass
class Audit:
    """What one application did."""

    stages: dict[str, StageAudit]
    """By stage of ours, in the order in which they began; OTHER last."""
    seconds: float
    """From the first job's start to the last one's end."""
    driver_only_seconds: float
    """Of these, in which no task ran."""
    by_stage_driver_only: dict[str, float]
    """The same within each stage's first and last job."""

    @property
    def driver_only(self) -> float:
        """Share of the run in which only the driver worked."""
        return self.driver_only_seconds / self.seconds if self.seconds else 0.0

    def total(self, name: str) -> Any:
        return sum(getattr(stage, name) for stage in self.stages.values())


def audit(path: str, min_records: int = MIN_RECORDS) -> Audit:
    """The figures of an event log. Raises EventLogError.

    min_records   Spark stages whose largest task has fewer count as small, and are passed over for the skew
    """
    return summarize(events(path), min_records)


def events(path: str) -> Iterator[dict[str, Any]]:
    """The events of a log, in their order."""
    for part in _parts(path):
        filesystem, inner = files.open_filesystem(part)
        codec = "zstd" if part.removesuffix(".inprogress").endswith((".zstd", ".zst")) else None
        if part.removesuffix(".inprogress").endswith((".lz4", ".snappy", ".lzf")):
            raise EventLogError(
                f"{part}: only plain and zstd logs are read here: set spark.eventLog.compression.codec=zstd"
            )
        with filesystem.open_input_stream(inner, compression=codec) as stream:
            for line in io.TextIOWrapper(io.BufferedReader(_Whole(stream)), encoding="utf-8"):
                try:
                    event = json.loads(line)
                except ValueError:
                    if part.endswith(".inprogress"):
                        return  # the line that is being written
                    raise EventLogError(f"{part} holds a line that is no event: {line[:60]!r}") from None
                yield event


class _Whole(io.RawIOBase):
    """A stream of pyarrow's as Python's text layer wants it, ending where a log that is being written breaks off."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError:
            return 0
        buffer[: len(data)] = data
        return len(data)


def _parts(path: str) -> list[str]:
    """The files of a log: itself, the parts of a rolling one, or those of the only log in a folder."""
    filesystem, inner = files.open_filesystem(path)
    kind = filesystem.get_file_info(inner).type
    if kind == pafs.FileType.File:
        return [path]
    if kind == pafs.FileType.NotFound:
        raise EventLogError(
            f"there is no event log {path}: run with spark.eventLog.enabled=true and spark.eventLog.dir"
        )
    names = [f.path for f in files.list_files(path) if "/" not in f.path and not f.path.startswith(".")]
    parts = sorted((int(found[1]), name) for name in names if (found := _PARTS.match(name)))
    if parts:
        return [files.join(path, name) for _, name in parts]
    inside = sorted([*files.list_folders(path), *names])
    if len(inside) != 1:
        hint = f": name one of them, for example {inside[-1]}" if inside else ""
        raise EventLogError(f"{path} holds {len(inside)} event logs{hint}")
    return _parts(files.join(path, inside[0]))


def summarize(log: Iterable[dict[str, Any]], min_records: int = MIN_RECORDS) -> Audit:
    """The figures of events."""
    reader = _Reader(min_records)
    for event in log:
        reader.take(event)
    return reader.result()


def _columns(plan: str) -> set[str]:
    """Names of the columns that cross an exchange of a plan, as Spark describes it."""
    found = set()
    for inside in _EXCHANGE.findall(plan):
        found |= {column.split("#")[0].strip() for column in inside.split(", ") if "#" in column}
    return found


class _Reader:
    """Gathers events; `result` reckons."""

    def __init__(self, min_records: int) -> None:
        self.min_records = min_records
        self.stages: defaultdict[str, StageAudit] = defaultdict(StageAudit)
        self.group_of_job: dict[int, str] = {}
        self.group_of: dict[int, str] = {}
        self.jobs: dict[int, tuple[float, float]] = {}
        self.busy: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self.of_tasks: defaultdict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
        self.shuffles: defaultdict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
        self.executions: dict[int, tuple[str, str]] = {}
        self.node_of: dict[int, tuple[int, str]] = {}
        self.given: Counter[int] = Counter()

    def take(self, event: dict[str, Any]) -> None:
        name = event["Event"].rpartition(".")[2]
        method = getattr(self, f"_{name}", None)
        if method is not None:
            method(event)

    def _SparkListenerJobStart(self, event: dict[str, Any]) -> None:
        group = (event.get("Properties") or {}).get("spark.jobGroup.id") or ""
        stage = self._stage(group)
        stage.jobs += 1
        self.group_of_job[event["Job ID"]] = group
        for number in event["Stage IDs"]:
            self.group_of.setdefault(number, group)
        self.jobs[event["Job ID"]] = event["Submission Time"] / 1000, event["Submission Time"] / 1000

    def _SparkListenerJobEnd(self, event: dict[str, Any]) -> None:
        if event["Job ID"] in self.jobs:
            self.jobs[event["Job ID"]] = self.jobs[event["Job ID"]][0], event["Completion Time"] / 1000

    def _SparkListenerStageCompleted(self, event: dict[str, Any]) -> None:
        self._of(event["Stage Info"]["Stage ID"]).spark_stages += 1

    def _SparkListenerTaskEnd(self, event: dict[str, Any]) -> None:
        number, info = event["Stage ID"], event["Task Info"]
        stage = self._of(number)
        began, ended = info["Launch Time"] / 1000, info["Finish Time"] / 1000
        stage.tasks += 1
        stage.task_seconds += ended - began
        self.busy[self._name(self.group_of.get(number, ""))].append((began, ended))
        metrics = event.get("Task Metrics") or {}
        stage.spilled_bytes += metrics.get("Disk Bytes Spilled", 0)
        read, written = metrics.get("Input Metrics", {}), metrics.get("Shuffle Write Metrics", {})
        fetched = metrics.get("Shuffle Read Metrics", {})
        stage.read_bytes += read.get("Bytes Read", 0)
        stage.read_rows += read.get("Records Read", 0)
        stage.shuffle_bytes += written.get("Shuffle Bytes Written", 0)
        stage.shuffle_rows += written.get("Shuffle Records Written", 0)
        attempt = number, event["Stage Attempt ID"]
        self.shuffles[attempt][0] += written.get("Shuffle Bytes Written", 0)
        self.shuffles[attempt][1] += written.get("Shuffle Records Written", 0)
        if event["Task End Reason"]["Reason"] != "Success":
            stage.failed_tasks += 1
            return
        self.of_tasks[attempt].append((fetched.get("Total Records Read", 0), ended - began))
        updates = {a["ID"]: a for a in info.get("Accumulables", ()) if "Python" in (a.get("Name") or "")}
        stage.python_tasks += bool(updates)
        stage.python_started += any(a["Name"] == _STARTED and int(a["Update"]) > 0 for a in updates.values())
        for identity, accumulable in updates.items():
            if accumulable["Name"] == _SENT:
                self.given[identity] += int(accumulable["Update"])

    def _SparkListenerSQLExecutionStart(self, event: dict[str, Any]) -> None:
        group = event.get("jobGroupId") or ""
        number = event["executionId"]
        self._stage(group).columns.update(_columns(event.get("physicalPlanDescription", "")))
        kernels = sorted(self._kernels(number, event["sparkPlanInfo"]))
        self.executions[number] = group, " ; ".join(kernels)

    def _SparkListenerSQLAdaptiveExecutionUpdate(self, event: dict[str, Any]) -> None:
        number = event["executionId"]
        group = self.executions.get(number, ("", ""))[0]
        self._stage(group).columns.update(_columns(event.get("physicalPlanDescription", "")))
        self._kernels(number, event["sparkPlanInfo"])

    def _kernels(self, execution: int, node: dict[str, Any]) -> list[str]:
        """The kernels of a plan, each with all below it, as text without the numbers that every plan has anew."""
        found = [text for child in node["children"] for text in self._kernels(execution, child)]
        if "InArrow" in node["nodeName"]:
            for metric in node["metrics"]:
                if metric["name"] == _SENT:
                    self.node_of[metric["accumulatorId"]] = execution, node["nodeName"]
            found.append(_text(node))
        return found

    def _name(self, group: str) -> str:
        return group.partition("/")[0] if "/" in group else OTHER

    def _stage(self, group: str) -> StageAudit:
        return self.stages[self._name(group)]

    def _of(self, spark_stage: int) -> StageAudit:
        return self._stage(self.group_of.get(spark_stage, ""))

    def result(self) -> Audit:
        for (number, _), (size, rows) in self.shuffles.items():
            stage = self._of(number)
            stage.widest_row = max(stage.widest_row, size / rows if rows else 0.0)
        for (number, _), tasks in self.of_tasks.items():
            stage = self._of(number)
            # Tasks that were given nothing had no key to work on: units, for one, are fewer than partitions.
            tasks = [each for each in tasks if each[0]]
            if len(tasks) >= MIN_TASKS:
                records, seconds = [rows for rows, _ in tasks], [took for _, took in tasks]
                if max(records) >= self.min_records:
                    stage.skew_records = max(stage.skew_records, max(records) / median(records))
                    stage.skew_seconds = max(stage.skew_seconds, max(seconds) / max(median(seconds), 0.1))
        self._count_kernels()
        spans = list(self.jobs.values())
        first, last = min((s[0] for s in spans), default=0.0), max((s[1] for s in spans), default=0.0)
        working = [span for each in self.busy.values() for span in each]
        own: dict[str, float] = {}
        for name in self.stages:
            within = [self.jobs[j] for j, group in self.group_of_job.items() if self._name(group) == name]
            if within:
                begin, end = min(w[0] for w in within), max(w[1] for w in within)
                own[name] = round(end - begin - covered(working, begin, end), 3)
        order = sorted(self.stages, key=lambda name: name == OTHER)
        return Audit(
            {name: self.stages[name] for name in order},
            round(last - first, 3),
            round(last - first - covered(working, first, last), 3),
            own,
        )

    def _count_kernels(self) -> None:
        given_to: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for identity, size in self.given.items():
            if identity in self.node_of and size:
                given_to[self.node_of[identity][0]][size] += 1
        runs: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
        for execution, sizes in given_to.items():
            group, text = self.executions.get(execution, ("", ""))
            stage = self._stage(group)
            stage.kernels += sizes.total()
            runs[group, text, tuple(sorted(sizes.elements()))] += 1
            kinds = text.split(" ; ")
            if len(set(kinds)) < len(kinds):  # the same kernel on the same rows twice in one plan
                stage.kernels_repeated += sum(n - 1 for n in sizes.values())
        for (group, _, sizes_of), times in runs.items():
            self._stage(group).kernels_repeated += (times - 1) * len(sizes_of)


def _text(node: dict[str, Any]) -> str:
    return _NUMBERED.sub("", f"{node['simpleString']}({', '.join(map(_text, node['children']))})")


def covered(spans: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    """How long of a time at least one of the spans lasts."""
    total, at = 0.0, begin
    for start, stop in sorted(spans):
        start, stop = max(start, at), min(stop, end)
        if stop > start:
            total += stop - start
            at = stop
    return total
