"""Commit records: what each stage made of each unit, kept in a journal per stage.

    <output>/_commits/<stage>/journal-<number>.json    commits that were made together, and units that were dropped

A journal file is written in one step and never changed, so a kill leaves all of it or nothing. Later files overrule
earlier ones. Thousands of units are read by one listing and a few files; `fold` makes one file of all. Outputs of
earlier versions hold a file per unit (`<unit>.json`), which counts as older than any journal.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from i2e_pipeline.core import files

_REMEDY = "remove it, and `i2e run` makes again what it recorded"
_JOURNAL = "journal-"
_FOLDED_ABOVE = 16
"""Journal files of a stage that may lie there when it is done."""


@dataclass(frozen=True)
class WrittenFile:
    path: str
    """relative to the table's folder: unit=<unit>/part-….parquet"""
    rows: int
    bytes: int
    digest: str = ""
    """Names its content (core/digests.py); empty in records of earlier versions."""


@dataclass(frozen=True)
class Commit:
    """What a stage made of a unit."""

    stage: str
    unit: str
    fingerprint: str
    components: dict[str, Any]
    """What the fingerprint is made of, so that a difference can be named."""
    files: dict[str, list[WrittenFile]]
    rows_in: int
    rows_out: int
    rejected: dict[str, int]
    seconds: float = 0.0
    """On the clock, since the stage's units before became whole; units that became so together share it."""
    facts: dict[str, Any] = field(default_factory=dict)
    task_seconds: float = 0.0
    """Spent by tasks in the kernel and in writing, added up; 0 in records of earlier versions."""
    edition: str = ""
    """Names what rows that were tried again have changed in it, or in what it was made of. Stages behind it see it."""

    def rows(self, table: str) -> int:
        return sum(f.rows for f in self.files.get(table, []))


class Records:
    """The journals below one folder. One process writes them at a time; its threads may."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._known: dict[str, dict[str, Commit]] = {}
        self._last: dict[str, int] = {}
        """Number of each stage's last journal file."""

    def stages(self) -> list[str]:
        """Names of all stages that have left records, those that no config names any more among them."""
        return files.list_folders(self.folder)

    def read(self, stage: str, broken: dict[str, str] | None = None) -> dict[str, Commit]:
        """The commits of a stage by unit, sorted, as they lie there now.

        broken   gets what is wrong with files that cannot be read, by their names without `.json`; then the commits are
                 those of the others. None: such a file is a RecordError
        """
        with self._lock:
            found = files.records(files.join(self.folder, stage), _REMEDY, broken)
            journals = sorted(name for name in found if name.startswith(_JOURNAL))
            commits: dict[str, Commit] = {}
            for name in [*(name for name in found if not name.startswith(_JOURNAL)), *journals]:
                try:
                    if name in journals:
                        _replay(found[name], commits)
                    else:
                        commits[name] = commit_of(found[name])
                except files.RecordError as error:
                    if broken is None:
                        raise files.RecordError(f"{files.join(self.folder, stage, name)}.json: {error}") from None
                    broken[name] = str(error)
            if broken:
                return dict(sorted(commits.items()))
            last = journals[-1].removeprefix(_JOURNAL) if journals else "0"
            self._last[stage] = int(last) if last.isdecimal() else 0
            self._known[stage] = dict(sorted(commits.items()))
            return dict(self._known[stage])

    def known(self, stage: str) -> Mapping[str, Commit]:
        """The same as this process read or wrote it last."""
        with self._lock:
            if stage not in self._known:
                self.read(stage)
            return self._known[stage]

    def add(self, stage: str, commits: Sequence[Commit]) -> None:
        """Write the records of units that were made together; from then on they count."""
        with self._lock:
            self.known(stage)
            self._write(stage, commits)
            self._known[stage] |= {c.unit: c for c in commits}

    def drop(self, stage: str, units: Iterable[str]) -> None:
        """From now on these units' commits do not count; units without one are passed over."""
        with self._lock:
            gone = sorted(set(units) & self.known(stage).keys())
            if gone:
                self._write(stage, [], gone=gone)
                for unit in gone:
                    del self._known[stage][unit]

    def fold(self, stage: str, files_left: int = _FOLDED_ABOVE) -> None:
        """Make one journal file of more than so many. A kill at any point leaves the same commits."""
        folder = files.join(self.folder, stage)
        with self._lock:
            old = [i.path for i in files.list_files(folder) if i.path.endswith(".json") and not files.is_hidden(i.path)]
            if len(old) <= files_left:
                return
            commits = self.read(stage)
            self._write(stage, list(commits.values()), anew=True)
            for name in old:
                files.remove(files.join(folder, name))

    def _write(self, stage: str, commits: Sequence[Commit], gone: Sequence[str] = (), anew: bool = False) -> None:
        components: dict[str, dict[str, Any]] = {}
        records = []
        for commit in commits:
            # Units of a stage share them, most often all of them.
            components[commit.fingerprint] = commit.components
            records.append({**asdict(commit), "components": None})
        number = self._last[stage] + 1
        journal = {"anew": anew, "gone": list(gone), "components": components, "commits": records}
        path = files.join(self.folder, stage, f"{_JOURNAL}{number:09}.json")
        files.write_bytes(path, json.dumps(journal, ensure_ascii=False, separators=(",", ":")).encode())
        self._last[stage] = number


def _replay(journal: Any, commits: dict[str, Commit]) -> None:
    """Do to the commits what a journal file says. Raises RecordError where it is none."""
    try:
        anew, gone, made, components = (journal[name] for name in ("anew", "gone", "commits", "components"))
        if not (isinstance(anew, bool) and isinstance(gone, list) and isinstance(made, list)):
            raise TypeError("anew, gone or commits is of another kind")
        if not (isinstance(components, dict) and all(isinstance(unit, str) for unit in gone)):
            raise TypeError("components or gone is of another kind")
        read = [commit_of(record, components) for record in made]
    except (KeyError, TypeError, AttributeError) as error:
        raise files.RecordError(f"it is no journal of commits ({error!r}): {_REMEDY}") from None
    if anew:
        commits.clear()
    for unit in gone:
        commits.pop(unit, None)
    commits |= {commit.unit: commit for commit in read}


_NAME = re.compile(r"(?!\.)[\w.=-]{1,200}")
"""Stages and units are parts of paths."""
_DIGEST = re.compile(r"[0-9a-f]*")
_MOST = (1 << 63) - 1


def is_name(value: Any) -> bool:
    """Whether it can name a stage, a unit or a folder of staging, also where the output is somebody else's."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def is_count(value: Any) -> bool:
    """Whether it counts rows or bytes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_below(path: str) -> bool:
    return files.is_below(path) and not {"", "."} & set(path.split("/"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST


def commit_of(record: Any, components: Mapping[str, Any] | None = None) -> Commit:
    """A commit from its JSON form. Raises RecordError where it is none.

    components   by fingerprint, where the record leaves them out
    What a record names is read, moved and removed, and what it counts is added up: an output may be somebody else's.
    """
    try:
        written = {t: [WrittenFile(**f) for f in fs] for t, fs in record["files"].items()}
        if components is not None:
            record = {**record, "components": components[record["fingerprint"]]}
        made = Commit(**{**record, "files": written})
        named = [(table, file.path) for table, listed in written.items() for file in listed]
        for of, path in named:
            if not (isinstance(path, str) and _is_below(of) and _is_below(path) and "=" in path.partition("/")[0]):
                raise files.RecordError(f"it names what is not below its table ({path!r} of {of!r}): {_REMEDY}")
    except (KeyError, TypeError, AttributeError) as error:
        raise files.RecordError(f"it is no record of a commit ({error!r}): {_REMEDY}") from None
    if wrong := _wrong(made):
        raise files.RecordError(f"it is no record of a commit ({wrong}): {_REMEDY}")
    return made


def _wrong(made: Commit) -> str:
    """What of a commit is not of the kind that it should be; empty where all is."""
    for what, name in (("stage", made.stage), ("unit", made.unit)):
        if not is_name(name):
            return f"{what}: {name!r} is no name"
    counts = {"rows_in": made.rows_in, "rows_out": made.rows_out}
    for listed in made.files.values():
        for file in listed:
            counts |= {f"rows of {file.path}": file.rows, f"bytes of {file.path}": file.bytes}
            if not (isinstance(file.digest, str) and _DIGEST.fullmatch(file.digest)):
                return f"digest of {file.path}: {file.digest!r} is none"
    if not isinstance(made.rejected, dict):
        return f"rejected: {made.rejected!r} says no reasons"
    counts |= {f"rejected.{reason}": count for reason, count in made.rejected.items()}
    for what, count in counts.items():
        if not is_count(count):
            return f"{what}: {count!r} is no count"
    for what, number in (("seconds", made.seconds), ("task_seconds", made.task_seconds)):
        if not _is_number(number):
            return f"{what}: {number!r} is no number of seconds"
    for what, text in (("fingerprint", made.fingerprint), ("edition", made.edition)):
        if not isinstance(text, str):
            return f"{what}: {text!r} is no text"
    if not isinstance(made.facts, dict):
        return f"facts: {made.facts!r} names none"
    sections = [made.components, *(made.components.get(n, {}) for n in _SECTIONS)] if _is_tree(made.components) else [0]
    return "" if all(map(_is_tree, sections)) else "components: its parts are of another kind"


_SECTIONS = ("settings", "after", "weighs")


def _is_tree(value: Any) -> bool:
    return isinstance(value, dict)
