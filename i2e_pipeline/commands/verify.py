"""`i2e verify`: is an output, or a dataset by itself, still what was written?

Reads    an output: commit records, the files that they name, the seal (engine/seal.py), Delta's logs, the dataset
         a dataset by itself: its list of digests, manifest, footers, entities, labels and images
Writes   nothing

Quick, it lists files, reads records and footers, and looks at a sample of images. `--deep` reads every byte; on a
cluster its workers do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from i2e_pipeline.commands.verifying import dataset, stored
from i2e_pipeline.commands.verifying.faults import CHECKS, Fault, Mend, Verified
from i2e_pipeline.core import digests, files, lock
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.inputs import marks

log = logging.getLogger(__name__)

SAMPLE = 64
"""Images that are decoded."""


class NothingToVerify(I2EError):
    """Nothing was written there; the message says where was looked."""


class WrittenMeanwhile(I2EError):
    """Somebody wrote the output while it was looked at, so that what was seen is of no one state."""


def verify(pipeline: Pipeline, deep: bool = False, sample: int = SAMPLE) -> Verified:
    """An output as it lies there, whatever config made it. Raises Held while somebody writes it, and WrittenMeanwhile
    where somebody did since this began."""
    root = pipeline.tables.root
    lock.refuse_held(root)
    before = _records(root)
    found = look_through(pipeline, deep, sample)
    lock.refuse_held(root)
    if _records(root) != before:
        raise WrittenMeanwhile(f"{root} was written while it was looked at: verify it again")
    return found


def _records(root: str) -> list[files.FileInfo]:
    return files.list_files(files.join(root, "_commits"))


def look_through(pipeline: Pipeline, deep: bool, sample: int = SAMPLE) -> Verified:
    """The same for who holds the output."""
    tables, found = pipeline.tables, Verified()
    if not tables.committed_stages() and not files.exists(tables.path("i2e", "manifest.json")):
        raise NothingToVerify(f"{tables.root} holds nothing that a run has made: name its output, or its config")
    stored.described(pipeline, found)
    commits = stored.recorded(pipeline, found)
    units = stored.registered(pipeline, commits, found)
    with suppress(I2EError):  # columns that are kept of the input; where units no longer agree on them, a run says so
        pipeline.open(units)
    stored.rows_add_up(pipeline, commits, units, found)
    stored.none_is_missing(pipeline, commits, units, found)
    named = stored.stored_in(tables, commits)
    whole = stored.lie_there(named, found)
    if deep:
        whole = stored.every_byte(pipeline, whole, found)
    stored.footers(pipeline, whole, units, found)
    stored.logs(pipeline, named, found)
    stored.sealed(pipeline, commits, units, found, deep)
    stored.left_over(pipeline, named, found)
    if deep:
        stored.input_files(pipeline, units, found)
    if files.exists(tables.path("i2e", "manifest.json")):  # one that went is missed by the seal
        _published(pipeline, found, deep, sample)
    else:
        found.notes.append("nothing is published yet: `i2e run` ends what was begun")
    _marks(tables.path(marks.FILE), found)
    found.faults = _each_once(found.faults, tables.root)
    return found


def verify_dataset(folder: str, deep: bool = False, sample: int = SAMPLE) -> Verified:
    """A dataset without the tables of its run. Raises NothingToVerify where there is none."""
    if files.exists(files.join(folder, "i2e", "manifest.json")):
        folder = files.join(folder, "i2e")
    has_list = files.exists(files.join(folder, digests.LIST))
    if not has_list and not files.exists(files.join(folder, "manifest.json")):
        raise NothingToVerify(f"{folder} holds neither a run's output nor a dataset: no _commits, and no manifest.json")
    if not has_list and not files.exists(files.join(folder, "images")):
        raise NothingToVerify(
            f"{folder} is an export in the form of another tool, whose shards that tool checks: verify the dataset "
            "that it is of"
        )
    found = Verified()
    listed = dataset.listed(folder, found, deep)
    if not listed:
        found.notes.append(
            f"no {digests.LIST} that can be read lies beside it, so there are no digests to compare with. With --deep "
            "every page is read, and every image compared with its id; of texts and scores a wrong byte may go unseen"
        )
    if (of := dataset.opened(folder, "", found)) is not None:
        if deep and not listed:
            dataset.pages(of)
        _rows(of, deep, sample, every=deep and not listed)
    found.faults = [replace(fault, mend=Mend.COPY) for fault in _each_once(found.faults, folder)]
    return found


def _published(pipeline: Pipeline, found: Verified, deep: bool, sample: int) -> None:
    if any(fault.path.startswith("i2e/") and fault.check in ("files", "digests", "footers") for fault in found.faults):
        found.notes.append("the published rows were not looked into: files of theirs are damaged")
        return
    of = dataset.opened(pipeline.tables.path("i2e"), "i2e", found)
    if of is not None:
        _rows(of, deep, sample, every=False)
        dataset.excluded(of, pipeline.config.select.exclude)


def _rows(of: dataset.Dataset, deep: bool, sample: int, every: bool) -> None:
    dataset.counts(of, dataset.labels(of, deep))
    dataset.images(of, sample, every)


def _marks(path: str, found: Verified) -> None:
    if not files.exists(path):
        return
    try:
        marks.read(path)
    except I2EError as error:
        found.notes.append(str(error))


def _each_once(faults: list[Fault], output: str) -> list[Fault]:
    """The first fault of each file. A record that can be put back has no other."""
    faults = [replace(fault, root="") if fault.root == output else fault for fault in faults]
    restored = {(f.root, f.path) for f in faults if f.mend is Mend.RESTORE}
    by_path: dict[tuple[str, str, str], Fault] = {}
    for fault in faults:
        if fault.check == "records" and (fault.root, fault.path) in restored:
            continue
        by_path.setdefault((fault.root, fault.path, fault.unit), fault)
    return list(by_path.values())


def as_json(found: Verified) -> dict[str, Any]:
    return {
        "whole": not found.faults,
        "looked_at": dict(found.looked_at),
        "changed": dict(found.changed),
        "bytes_compared": found.bytes,
        "faults": [_fault_as_json(fault) for fault in found.faults],
        "notes": found.notes,
    }


def _fault_as_json(fault: Fault) -> Mapping[str, str]:
    named = {"check": fault.check, "path": fault.path, "what": fault.what, "stage": fault.stage, "unit": fault.unit}
    return {**{k: v for k, v in named.items() if v}, "repair": fault.mend.value}


_SHOWN = 40


def told(found: Verified) -> list[str]:
    """What was looked at, and what is wrong, as lines."""
    lines = []
    wrong = {check: sum(fault.check == check for fault in found.faults) for check in CHECKS}
    for check, about in CHECKS.items():
        if found.looked_at[check] or wrong[check]:
            others = found.changed[check]
            state = f"{wrong[check]:,} WRONG" if wrong[check] else f"{others:,} CHANGED" if others else "whole"
            lines.append(f"{check:<9} {state:<9} of {found.looked_at[check]:>9,}  {about}")
    if found.bytes:
        lines.append(f"{found.bytes / 1e6:,.1f} MB were read and compared")
    for fault in found.faults[:_SHOWN]:
        lines += [f"- {fault}", f"  repair: {fault.mend.value}"]
    if len(found.faults) > _SHOWN:
        lines.append(f"- and {len(found.faults) - _SHOWN:,} more: --json FILE has all of them")
    lines += [f"note: {note}" for note in found.notes]
    return lines
