"""Can the places that a config names be opened at all? Asked before any work, so that the answer names the setting.

A store that cannot be reached is otherwise found out in the middle, by whichever client asks first, in its own words.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from i2e_pipeline.core import files, stores
from i2e_pipeline.core.errors import I2EError

_PATIENCE = 30.0
"""Seconds for a store's first answer. Some clients ask for a quarter of an hour before they say anything."""

Found = TypeVar("Found")


class PlaceError(I2EError, OSError):
    """A folder that cannot be used or written; the message names the setting and the remedy."""


def refuse_closed(path: str, setting: str) -> None:
    """Raise StoreFault for a folder in a store that cannot be opened, PlaceError for one that a file stands in the way
    of. One that is not there yet is none."""
    if files.is_local(path):
        _refuse_file(Path(path.removeprefix("file://")).absolute(), path, setting)
        return
    try:
        lacking = answered(lambda: "" if files.exists(path) else files.no_bucket(path))
    except I2EError:
        raise
    except Exception as error:
        raise stores.fault(error, path, setting) from None
    if lacking:
        raise stores.fault(lacking, path, setting)


def refuse_unwritable(path: str, setting: str) -> None:
    """Raise PlaceError or StoreFault for a folder in which no file can be made; it is made where it is missing."""
    refuse_closed(path, setting)
    tried = files.join(path, f".i2e.{uuid.uuid4().hex}.tmp")
    try:
        files.write_bytes(tried, bytes(1 << 16))
        files.remove(tried)
    except I2EError:
        raise
    except OSError as error:
        if not files.is_local(path):
            raise stores.fault(error, path, setting) from None
        raise PlaceError(
            f"{setting}: {path} cannot be written ({error.strerror or error}): name a folder of yours, on a disk with "
            "room"
        ) from None


_OF_THE_MACHINE = {
    errno.ENOSPC: "free some space, or name a place on a larger disk",
    errno.EDQUOT: "free some of your quota, or name a place on another disk",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "name a place of yours, or ask for the right to it",
    errno.EPERM: "name a place of yours, or ask for the right to it",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f unlimited)",
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096)",
    errno.ENFILE: "close other programs, or raise the machine's limit of open files",
    errno.EIO: "look at the disk: it does not read or write any more",
    errno.ENAMETOOLONG: "name a shorter path",
}
"""What the machine refuses, and the remedy. No other error of a file is anybody's but the code's."""


class InTheWay(PlaceError):
    """A file where a folder is wanted, or a folder in the place of a file."""


_A_FOLDER_TO_ARROW = re.compile(r"path '(.+)' is a directory")
"""What Arrow says of one that is read as a file, without a number of an error."""


def later_fault(error: BaseException) -> PlaceError | None:
    """What the machine refused in the middle of a command, as users are told it; None for every other error.

    InTheWay for what is no fault of the machine's, but of what lies where.
    """
    if not isinstance(error, OSError):
        return None
    if in_the_way := _in_the_way(error):
        return InTheWay(in_the_way)
    if error.errno not in _OF_THE_MACHINE:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return PlaceError(f"{where}{error.strerror}: {_OF_THE_MACHINE[error.errno]}")


def _in_the_way(error: OSError) -> str | None:
    # Of a rename the second path is the one that a user knows.
    where = error.filename2 or error.filename
    if arrows := _A_FOLDER_TO_ARROW.search(str(error)):
        return f"{arrows[1]} is a folder, and a file is wanted there: move it, or name another place"
    if error.errno == errno.EISDIR:
        return f"{where or error.strerror} is a folder, and a file is wanted there: move it, or name another place"
    made = error.errno == errno.EEXIST and where is not None and os.path.lexists(where) and not os.path.isdir(where)
    if made or error.errno == errno.ENOTDIR:
        return f"{where or error.strerror}: a file is where a folder is wanted: move it, or name another place"
    return None


def answered(ask: Callable[[], Found]) -> Found:
    """What a store answers. Raises TimeoutError where it says nothing for long."""
    found: list[Found] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            failed.append(error)

    asking = threading.Thread(target=work, name="i2e-ask", daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"its server does not answer within {_PATIENCE:.0f} seconds")
    return found[0]


def _refuse_file(folder: Path, path: str, setting: str) -> None:
    for place in (folder, *folder.parents):
        if os.path.isdir(place):
            return
        if os.path.lexists(place):
            what = "a file" if os.path.exists(place) else "a link that leads nowhere"
            raise PlaceError(f"{setting}: {path}: {place} is {what}: name a folder")
