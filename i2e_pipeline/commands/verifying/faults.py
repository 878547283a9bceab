"""What is wrong with an output, and how it is mended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum


class Mend(Enum):
    """How `i2e repair` mends a fault: it takes away what is damaged, and a run makes what is missing."""

    REDO = "made again"
    RESTORE = "put back from the seal"
    LAY_OUT = "laid out again"
    LOG = "its log is written anew from the commit records"
    CARD = "card and manifest are written again"
    REPORT = "the report is made again"
    UNIT = "the unit is read again, and every stage works on it"
    INDEX = "made again of the input file, which must be what it was"
    LIST = "written again from the commit records"
    REMOVE = "removed"
    SEAL = "what it alone vouched for is made again, and the output sealed"
    RUN = "the next run leaves it out"
    COPY = "copy the dataset again, or verify and repair the output that it is of"
    NOTHING = "nothing here can: put a copy of it in its place"
    INPUT = "put the file back as it was; the embedded sample's is composed again"


BY_HAND = (Mend.COPY, Mend.NOTHING)


@dataclass(frozen=True)
class Fault:
    check: str
    """What found it: one of CHECKS."""
    path: str
    """relative to the output, or to the folder of tables that outputs share"""
    what: str
    """What is wrong, in words that need no code."""
    mend: Mend
    stage: str = ""
    unit: str = ""
    root: str = ""
    """Where it lies, if not in the output."""

    def __str__(self) -> str:
        of = ", ".join(f"{kind} {name}" for kind, name in (("stage", self.stage), ("unit", self.unit)) if name)
        return f"{self.path}{f' ({of})' if of else ''}: {self.what}"


CHECKS = {
    "records": "records can be read, none is missing, and they add up: rows in = rows out + rejected",
    "files": "files of tables are there, as long as they were",
    "digests": "every byte of them is what was written",
    "footers": "they are Parquet files of their table's columns, with the rows that were recorded",
    "logs": "Delta's logs name these files and no others",
    "sealed": "records, card, report and files for workers are what was sealed; there are no other records",
    "dataset": "the manifest counts what lies there, and class indices are one for each class",
    "labels": "labels of images bear their entities' class indices",
    "images": "images can be decoded, and are what their ids say",
    "excluded": "what select.exclude lists is not there",
    "input": "input files are what they were when they were read, as far as their digests say",
}


@dataclass
class Verified:
    """What was looked at, and what is wrong."""

    faults: list[Fault] = field(default_factory=list)
    looked_at: Counter[str] = field(default_factory=Counter)
    """By check: how many files, rows or images."""
    changed: Counter[str] = field(default_factory=Counter)
    """By check: how many of them are others than they were, which is no fault of the output."""
    bytes: int = 0
    """That were compared with digests."""
    notes: list[str] = field(default_factory=list)
    """What is no fault, and what could not be looked at."""

    def mendable(self) -> bool:
        """Whether `i2e repair` can do something."""
        return any(fault.mend not in BY_HAND for fault in self.faults)

    def add(self, check: str, count: int = 1) -> None:
        self.looked_at[check] += count

    def fault(
        self, check: str, path: str, what: str, mend: Mend, stage: str = "", unit: str = "", root: str = ""
    ) -> None:
        self.faults.append(Fault(check, path, what, mend, stage, unit, root))
