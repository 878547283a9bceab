"""What the package logs is seen once, as plain lines or with times, and a caller's own settings are left alone."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from i2e_pipeline.core import logs

log = logging.getLogger("i2e_pipeline.some.module")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package's logger as at a program's start, and as it was afterwards."""
    monkeypatch.delenv("I2E_LOG_TIMES", raising=False)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    logger = logging.getLogger(logs.LOGGER)
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


def test_lines_are_plain_and_go_to_stderr_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a line per call of set_up, or one more by a handler that a library gave the root logger."""
    logs.set_up()
    logs.set_up()
    log.info("step %d", 3)
    log.debug("not this")
    assert capsys.readouterr() == ("", "step 3\n")


def test_lines_go_to_the_stderr_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a handler that keeps the stream it began with, which a test or a notebook has closed."""
    logs.set_up()
    for _ in range(2):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        log.info("here")
        assert sys.stderr.getvalue() == "here\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("variables", "stream", "dated"),
    [
        ({}, io.StringIO, False),
        ({}, Terminal, False),
        ({"PYSPARK_GATEWAY_PORT": "1"}, io.StringIO, True),
        ({"PYSPARK_GATEWAY_PORT": "1"}, Terminal, False),
        ({"I2E_LOG_TIMES": "1"}, Terminal, True),
        ({"I2E_LOG_TIMES": "0"}, io.StringIO, False),
    ],
)
def test_lines_bear_times_in_the_logs_of_a_cluster_and_where_asked_for(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], stream: type[io.StringIO], dated: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream())
    logs.set_up()
    log.warning("half")
    written = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d half\n" if dated else "half\n", written)


def test_the_root_logger_is_not_touched_and_the_level_of_a_caller_stands(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    logging.getLogger(logs.LOGGER).setLevel(logging.WARNING)
    logs.set_up()
    log.info("not asked for")
    log.warning("asked for")
    assert capsys.readouterr().err == "asked for\n"
    assert (list(root.handlers), root.level) == before


def test_a_command_leaves_the_logger_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a program that calls a command once and whose own handlers get nothing ever after."""
    with pytest.raises(ValueError, match="in the block"), logs.to_terminal():
        raise ValueError("in the block")
    caplog.set_level(logging.INFO, logs.LOGGER)
    log.info("after")
    assert caplog.messages == ["after"]
    assert not logging.getLogger(logs.LOGGER).handlers


@pytest.mark.parametrize("before", [logging.NOTSET, logging.INFO, logging.CRITICAL])
def test_muting_keeps_what_a_caller_disabled(before: int) -> None:
    """Catches: records that a caller had switched off come back, in the block or after it."""
    other = logging.getLogger("another library")
    logging.disable(before)
    try:
        with logs.muted(logging.WARNING):
            assert not other.isEnabledFor(logging.WARNING)
            assert other.isEnabledFor(logging.ERROR) == (before < logging.ERROR)
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)
