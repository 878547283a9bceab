"""Progress as log records: whoever runs a command sees plain lines, whoever imports the package decides himself.

Every module logs to its own logger below "i2e_pipeline" and sets nothing up. A command calls `to_terminal` around its
work, a process that only works (a rank that Spark started) calls `set_up` once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from i2e_pipeline.core.secrets import Hiding
from i2e_pipeline.core.terminal import shown

LOGGER = "i2e_pipeline"
_WITH_TIMES = "I2E_LOG_TIMES"


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a record comes: tests and notebooks put another in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        raise AttributeError("this handler writes to sys.stderr, whatever that is at the time")


class _Line(logging.Formatter):
    """The message alone, or after date and time; decided per record, as stderr may change."""

    _dated = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return shown(self._dated.format(record) if with_times() else super().format(record))


def with_times() -> bool:
    """Whether lines bear date and time: where stderr is a file, under spark-submit where it is no terminal (a cluster's
    log), and wherever I2E_LOG_TIMES=1 asks for it."""
    if os.environ.get(_WITH_TIMES) == "1" or _is_file(sys.stderr):
        return True
    return "PYSPARK_GATEWAY_PORT" in os.environ and not sys.stderr.isatty()


def _is_file(stream: TextIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # a stream without a file behind it
        return False


def set_up() -> None:
    """From now on the package's records of level INFO and above go to stderr; a second call changes nothing.

    The root logger stays as it is. It gets no record of ours either: open_clip logs through `logging.warning`, which
    gives the root logger a handler of its own, and every line would stand there twice.
    """
    logger = logging.getLogger(LOGGER)
    if any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        return
    handler = _ToStderr()
    handler.setFormatter(_Line())
    handler.addFilter(Hiding())
    logger.addHandler(handler)
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


@contextlib.contextmanager
def to_terminal() -> Iterator[None]:
    """`set_up` for the length of the block; afterwards the package's logger is as the caller had it."""
    logger = logging.getLogger(LOGGER)
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    set_up()
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.propagate = propagate
        logger.setLevel(level)


@contextlib.contextmanager
def muted(level: int) -> Iterator[None]:
    """Nobody's records of this level and below are seen in the block; a caller's own `logging.disable` stands."""
    manager = logging.root.manager
    before = manager.disable
    logging.disable(max(level, before))
    try:
        yield
    finally:
        logging.disable(before)
