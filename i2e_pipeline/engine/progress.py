"""What the user sees while a stage runs: one line, rows done of all, rows/s, time left.

Fed by Spark's status API, so it costs the job nothing. On a terminal the line is redrawn; elsewhere a stage prints
when it starts and when it is done.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from pyspark import SparkContext


class StageProgress:
    """Progress of one stage over its units."""

    def __init__(
        self, name: str, does: str, rows: int, context: SparkContext | None, out: TextIO | None = None
    ) -> None:
        self.name, self.does, self.rows, self.context = name, does, rows, context
        self.out = out or sys.stderr
        self.live = self.out.isatty()
        self.done = 0
        self.in_flight: dict[str, list[int]] = {}
        """Job group of each wave that is worked on: its rows, and those of its units that are done."""
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> StageProgress:
        self.started = time.monotonic()
        if self.live:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        if self.live:
            self.thread.join()
            self.out.write("\r\x1b[K")
            self.out.flush()

    def begin(self, group: str, rows: int) -> None:
        """A wave of so many rows is worked on."""
        with self.lock:
            self.in_flight[group] = [rows, 0]

    def add(self, group: str, rows: int) -> None:
        """A unit of a wave is done."""
        with self.lock:
            self.in_flight[group][1] += rows

    def end(self, group: str) -> None:
        """A wave is over; what of it was not done comes again, or has failed."""
        with self.lock:
            self.done += self.in_flight.pop(group)[1]

    def _watch(self) -> None:
        while not self.stop.wait(0.5):
            try:
                rows = self._rows_now()
            except Exception:  # Spark's JVM is gone: who waits for its jobs says so
                return
            self.out.write("\r\x1b[K" + self.line(rows))
            self.out.flush()

    def _rows_now(self) -> float:
        with self.lock:
            waiting = dict(self.in_flight)
            done = self.done
        return done + sum(max(known, rows * self._share_done(group)) for group, (rows, known) in waiting.items())

    def _share_done(self, group: str) -> float:
        """Share of a wave's tasks that are done. Tasks of skipped or coming stages are not known: an estimate."""
        if self.context is None:
            return 0.0
        tracker = self.context.statusTracker()
        tasks = completed = 0
        for job in tracker.getJobIdsForGroup(group):
            info = tracker.getJobInfo(job)
            for stage in info.stageIds if info else ():
                stage_info = tracker.getStageInfo(stage)
                if stage_info:
                    tasks += stage_info.numTasks
                    completed += stage_info.numCompletedTasks
        return completed / tasks if tasks else 0.0

    def line(self, rows: float) -> str:
        seconds = time.monotonic() - self.started
        speed = rows / seconds if seconds > 0 else 0.0
        if not self.rows:
            return f"{self.name:<15} {self.does} … {seconds:.0f} s"
        left = f"{clock((self.rows - rows) / speed)} left" if speed > 0 else "…"
        return f"{self.name:<15} {self.does}  {rows:,.0f}/{self.rows:,} rows  {speed:,.0f} rows/s  {left}"


def job_group(stage: str, wave: str) -> str:
    """Name under which Spark knows the jobs of a wave."""
    return f"{stage}/{wave}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
