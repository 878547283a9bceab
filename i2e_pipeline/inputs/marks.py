"""Marks: what somebody who looked at an image says of one of its labels. Beside `truth.py`, the other source of truth.

Reads    a file of JSON lines, on a disk or a store; the last line of an (image_id, entity_id) counts
Writes   one line more, on a disk

A mark speaks of its label alone: that Q308 is right says nothing of the image's other labels. A line is appended by one
write, so that two processes may mark into one file. What a process that was killed left of its line, the next one
closes with TORN, and readers pass over it. A line that cannot be read otherwise is an error: a mark that is lost unseen
is worse than a command that stops.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError, NoSuchFile

log = logging.getLogger(__name__)

RIGHT, WRONG, OTHER, UNSURE, CLEARED = "right", "wrong", "other", "unsure", "cleared"
KINDS = (RIGHT, WRONG, OTHER, UNSURE, CLEARED)
"""`other`: the image shows something else, `Mark.other` where it is known what. `cleared` takes a mark back."""
MARKS = pa.schema(
    [
        pa.field("image_id", pa.binary(16), nullable=False),
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("mark", pa.string(), nullable=False),
        ("other", pa.int64()),
        ("probability", pa.float64()),
        ("weight", pa.float64()),
        ("at", pa.timestamp("us", "UTC")),
        ("by", pa.string()),
    ]
)
"""What `read` returns. `weight` is null where nobody drew the label: it was chosen by eye."""
FILE = "marks.jsonl"
"""What it is called where it lies beside the tables of a run."""
_MOST = 256 << 20
"""Bytes: a million marks and more, each of which somebody made by hand."""
TORN = b" #torn"
"""What ends a line whose writer was killed in the middle of it."""
_HEX = re.compile(r"[0-9a-f]{32}\Z")
_TAIL = 1 << 16
"""Bytes from the end that hold the last line: a line is some 200 long."""
_REMEDY = "mend or delete the line"


class MarkError(I2EError, ValueError):
    """A mark that is none, or a file that cannot be read; the message names file and line."""


@dataclass(frozen=True)
class Mark:
    """One line of the file. Raises MarkError for values that are no mark."""

    image_id: str
    """32 hex digits."""
    entity_id: int
    mark: str
    """One of KINDS."""
    other: int | None = None
    """The entity that the image shows instead; with `other` alone."""
    probability: float | None = None
    """Of the label, when it was marked."""
    weight: float | None = None
    """How many labels a drawn one stands for (label/drawing.py), relative to others; None: it was not drawn."""
    at: str = ""
    """ISO 8601 in UTC; `append` fills in the time where it is empty."""
    by: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.image_id, str) or not _HEX.match(self.image_id):
            raise MarkError(f"image_id: {self.image_id!r} is no id of an image: 32 hex digits are")
        _entity("entity_id", self.entity_id)
        if self.mark not in KINDS:
            raise MarkError(f"mark: {self.mark!r} is none of {', '.join(KINDS)}")
        if self.other is not None:
            _entity("other", self.other)
            if self.mark != OTHER or self.other == self.entity_id:
                raise MarkError(f"other: Q{self.other} goes with the mark {OTHER!r}, and is another entity")
        if self.probability is not None and not (_number(self.probability) and 0 <= self.probability <= 1):
            raise MarkError(f"probability: {self.probability!r} is no number from 0 to 1")
        if self.weight is not None and not (_number(self.weight) and 0 < self.weight < float("inf")):
            raise MarkError(f"weight: {self.weight!r} is no number above 0")
        if not isinstance(self.at, str) or (self.by is not None and not isinstance(self.by, str)):
            raise MarkError("at and by are texts")
        if self.at:
            _time(self.at)


def _entity(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 63:
        raise MarkError(f"{name}: {value!r} is no entity: a whole number, 42 for Q42, is")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _time(said: str) -> datetime:
    try:
        # Python 3.10 knows no Z.
        at = datetime.fromisoformat(said[:-1] + "+00:00" if said.endswith("Z") else said)
    except ValueError:
        raise MarkError(f"at: {said!r} is no time: 2026-05-01T12:00:00Z is") from None
    return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)


def append(path: str, mark: Mark) -> None:
    """Add a mark to the file, which is made where there is none; when this returns, it is on the disk.

    Raises MarkError for a path on a store, whose objects cannot be appended to.
    """
    if not files.is_local(path):
        raise MarkError(f"{path}: marks are appended to a file on a disk; copy it to the store when it is done")
    place = Path(path.removeprefix("file://"))
    place.parent.mkdir(parents=True, exist_ok=True)
    said = asdict(mark)
    said["at"] = said["at"] or datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = json.dumps(said).encode() + b"\n"
    handle = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        line = _closing(handle) + line
        # Another process may have seen the same torn line: then a line says TORN and nothing else.
        if os.write(handle, line) != len(line):
            raise MarkError(f"{path}: the disk took only a part of the mark; make room and mark again")
        os.fsync(handle)
    finally:
        os.close(handle)


def _closing(handle: int) -> bytes:
    """What must stand before the next line: nothing, or what ends a line that has no end."""
    size = os.fstat(handle).st_size
    tail = os.pread(handle, _TAIL, max(0, size - _TAIL))
    if not tail or tail.endswith(b"\n"):
        return b""
    try:
        json.loads(tail[tail.rfind(b"\n") + 1 :].strip())  # as `read` does
    except (ValueError, RecursionError):
        return TORN + b"\n"
    return b"\n"  # whole: somebody's editor left no newline, or the writer was killed just before it


def read(path: str) -> pa.Table:
    """The marks that count, MARKS: of each label the last one, none that was taken back; in the order of their lines.

    A label that was once drawn stays a drawn one when it is marked again without a weight: that it was drawn does not
    depend on what was said of it. Raises NoSuchFile, and MarkError, with file and line, for what is no mark.
    """
    latest: dict[tuple[str, int], Mark] = {}
    for mark in _marks(path):
        key = mark.image_id, mark.entity_id
        before = latest.pop(key, None)
        if mark.weight is None and before is not None and before.mark != CLEARED and before.weight is not None:
            mark = Mark(**{**asdict(mark), "weight": before.weight})
        latest[key] = mark
    rows = [
        {**asdict(m), "image_id": bytes.fromhex(m.image_id), "at": _time(m.at) if m.at else None}
        for m in latest.values()
        if m.mark != CLEARED
    ]
    return pa.Table.from_pylist(rows, MARKS)


def forget(path: str, image_ids: Set[str]) -> int:
    """Write the file again without the marks of these images, for those that must leave no trace; how many lines went.

    image_ids   32 hex digits each. Nobody may append meanwhile: what is appended is lost.
    """
    kept, lines = [], files.read_bytes(path).splitlines(keepends=True)
    for line in lines:
        # An id that stands anywhere in a line, torn or not, goes with it.
        named = re.findall(rb"[0-9a-fA-F]{32}", line)
        if not any(one.decode().lower() in image_ids for one in named):
            kept.append(line)
    if len(kept) < len(lines):
        files.write_bytes(path, b"".join(kept))
    return len(lines) - len(kept)


def _marks(path: str) -> Iterator[Mark]:
    try:
        content = files.read_bytes(path, _MOST)
    except FileNotFoundError:
        raise NoSuchFile(f"{path}: no such file; `i2e explore` writes marks") from None
    except files.TooLarge as error:
        raise MarkError(f"{error}, which is no file of marks: name another one") from None
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        where, line = f"{path}, line {number}", line.strip()
        if not line:
            continue
        if line.endswith(TORN.strip()):
            log.warning("%s was not written to its end, and says nothing", where)
            continue
        try:
            said = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                log.warning("%s, the last, was not written to its end, and says nothing", where)
                continue
            raise MarkError(f"{where} is no JSON ({error}): {_REMEDY}") from None
        try:
            yield _mark(said)
        except MarkError as error:
            raise MarkError(f"{where}: {error}: {_REMEDY}") from None


def _mark(said: Any) -> Mark:
    if not isinstance(said, dict) or not {"image_id", "entity_id", "mark"} <= said.keys():
        raise MarkError("a mark has image_id, entity_id and mark")
    known = {name: said[name] for name in MARKS.names if name in said}
    if isinstance(known["image_id"], str):
        known["image_id"] = known["image_id"].lower()
    return Mark(**{**known, "at": known.get("at") or ""})
