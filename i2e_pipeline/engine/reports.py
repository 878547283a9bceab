"""Reports of tasks, heard the moment each task is done and not when its whole Spark job is.

They come through an accumulator, whose updates Spark's scheduler applies once for each task of a job's last stage,
however often the task was tried. There is one for all jobs of a Spark context, so none are left behind.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from pyspark.accumulators import AccumulatorParam

if TYPE_CHECKING:
    from pyspark import Accumulator, SparkContext

_Said = list[tuple[str, str]]
"""Job and report."""


class _InWorker(AccumulatorParam[Any]):
    """Collects what a task says."""

    def zero(self, value: _Said) -> _Said:
        return []

    def addInPlace(self, value1: _Said, value2: _Said) -> _Said:
        return value1 + value2


class _InDriver(_InWorker):
    """Hands on what arrives, and keeps nothing."""

    def __init__(self) -> None:
        self.listeners: dict[str, Callable[[str], None]] = {}

    def addInPlace(self, value1: _Said, value2: _Said) -> _Said:
        for job, report in value2:
            if listener := self.listeners.get(job):
                listener(report)
        return []

    def __reduce__(self) -> Any:
        return (_InWorker, ())


class Report:
    """Called in a worker: says something of a job to the driver."""

    def __init__(self, accumulator: Accumulator[Any], job: str) -> None:
        self._accumulator, self._job = accumulator, job

    def __call__(self, said: str) -> None:
        self._accumulator.add([(self._job, said)])


_LOCK = Lock()
_OF: weakref.WeakKeyDictionary[SparkContext, Accumulator[Any]] = weakref.WeakKeyDictionary()


@contextmanager
def listening(context: SparkContext, job: str, listener: Callable[[str], None]) -> Iterator[Report]:
    """Within the block, `listener` is called with each report of a job, in a thread of Spark's: it must be quick."""
    with _LOCK:
        if context not in _OF:
            _OF[context] = context.accumulator([], _InDriver())
        accumulator = _OF[context]
    param: Any = accumulator.accum_param
    param.listeners[job] = listener
    try:
        yield Report(accumulator, job)
    finally:
        del param.listeners[job]
