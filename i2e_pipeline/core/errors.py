"""What is said to users. A command prints such an error as one line; every other exception keeps its traceback.

Each room has its own classes, which derive from `I2EError` and, where callers know them as such, from a builtin too
(`class ConfigError(I2EError, ValueError)`). A builtin exception alone is a fault of the code and is shown as one.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the exit code of a command says; `i2e --help` prints this list."""

    about: str

    def __new__(cls, code: int, about: str) -> ExitCode:
        self = int.__new__(cls, code)
        self._value_, self.about = code, about
        return self

    DONE = 0, "all was done, or nothing was to do"
    FAULT = 1, "a run failed, or a check of `i2e doctor` or `i2e verify`; what was made is kept"
    MISTAKE = 2, "what was asked for cannot be done: an argument, a setting, an input, the environment"
    HUNG_UP = 129, "its terminal or session was closed (SIGHUP); the same command goes on where it was"
    INTERRUPTED = 130, "somebody stopped it (Ctrl-C); the same command goes on where it was"
    UNREAD = 141, "nobody reads its output any more (`| head`)"
    ENDED = 143, "somebody ended it (SIGTERM); the same command goes on where it was"


class I2EError(Exception):
    """Something that a user can mend; the message names the place, the value and the way out."""

    exit_code: ClassVar[ExitCode] = ExitCode.MISTAKE
    """Of a command that ends with it."""


def first_line(error: BaseException) -> str:
    """What an exception says first; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class NoSuchFile(I2EError, FileNotFoundError):
    """A path that a user named leads to nothing."""


class AlreadyThere(I2EError, FileExistsError):
    """A file that must not exist yet does."""
