"""Signal handlers of a command, which end with it. How commands end is in tests/test_cli.py."""

from __future__ import annotations

import signal

from i2e_pipeline.core import ending

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def test_a_session_that_is_built_after_a_command_takes_no_signal_to_it() -> None:
    """Catches: a program that calls a command and then builds a session, whose first Ctrl-C does nothing."""
    before = [signal.getsignal(number) for number in NUMBERS]
    command = ending.begin()
    assert command is not None
    assert [signal.getsignal(number) for number in NUMBERS] == 3 * [command._handle]
    command.restore()
    ending.keep()
    assert [signal.getsignal(number) for number in NUMBERS] == before
