"""What is said to users. A command prints such an error as one line; every other exception keeps its traceback.

Each room has its own classes, which derive from `I2EError` and, where callers know them as such, from a builtin too
(`class ConfigError(I2EError, ValueError)`). A builtin exception alone is a fault of the code and is shown as one.
"""

from __future__ import annotations

from typing import ClassVar


class I2EError(Exception):
    """Something that a user can mend; the message names the place, the value and the way out."""

    exit_code: ClassVar[int] = 2
    """Of a command that ends with it."""


class NoSuchFile(I2EError, FileNotFoundError):
    """A path that a user named leads to nothing."""


class AlreadyThere(I2EError, FileExistsError):
    """A file that must not exist yet does."""
