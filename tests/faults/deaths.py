"""Where a run may die: at a commit point, chosen by what it is about to change (dying.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from i2e_pipeline.engine.records import Commit
from tests.faults import injector

DEATH = "death at a commit point"
FIRST = {
    "parquet": [
        "1: write_bytes .*/units/",  # a unit is known, the next is not
        r"1: move_file .*/kb/",  # after staging, between two of its moves
        "write_bytes .*/_commits/extract/",  # all is in place, and no record
        "replace .*/_commits/score/",  # the record is written, and has no name yet
        "remove .*/_staging/label",  # the record counts, what it was made in lies there
        "write_bytes .*/i2e/manifest.json",
    ],
    "delta": [
        "1: write_transaction ",  # the table of rejects is there, and another stage's rows are to come
        r"DeltaLog\.replace .*/mentions",  # moved, and not in the log
        "after the transaction .*/scores",  # in the log, and no record
        "create_table .*/i2e/images",
    ],
}
"""Of runs that make everything for the first time."""
AGAIN = {
    "parquet": [
        "1: remove .*/labels/",  # one of two units' old files are gone
        "move_file .*/i2e/images/",  # the manifest is gone, too
        "1: move_file .*/i2e/images/",
        "write_bytes .*/i2e/manifest.json",  # all is made, and the manifest is not written again
    ],
    "delta": [
        r"1: DeltaLog\.replace .*/labels",
        "move_file .*/i2e/images/",
        "after the transaction .*/i2e/images",
        "write_bytes .*/i2e/manifest.json",
    ],
}
"""Of runs that make over again what is there."""
OTHER = "label.threshold=0.4"
"""What lets labels be made over again."""


def died(config: Path, at: str, *overrides: str) -> bool:
    """Whether a run came by that place, and died there; it has ended well else."""
    listed = config.with_suffix(".changes")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.dying", "run", "--config", str(config), "--set", "run.wave_units=1",
         *overrides],
        cwd=injector.ROOT, env={**os.environ, "I2E_DIES_AT": at, "I2E_CHANGES": str(listed)},
        capture_output=True, text=True, timeout=injector.RUNS,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode != 0


def chain(config: Path, output: Path, places: Sequence[str], outcome: injector.Outcome, *overrides: str) -> None:
    """Deaths at these places, each in a run of its own, and a run to the end."""
    before: dict[str, Commit] = {}
    for place in places:
        if died(config, place, *overrides):
            last = config.with_suffix(".changes").read_text().splitlines()[-1]
            outcome.faults.append(injector.Fault(DEATH, _stage(last), 0.0, code=-9, at=last.replace(str(output), "")))
        else:
            outcome.too_late += 1
        outcome.runs += 1
        before = injector.kept(output, before if not overrides else {}, outcome)
    code, said = injector.ran(config, "--set", "run.wave_units=1", *overrides)
    assert code == 0, said
    injector.kept(output, before, outcome)


def _stage(change: str) -> str:
    """The stage that is named by a change, where one is."""
    return next((s for s in injector.STAGES if f"/{s}/" in change or change.endswith(f"/{s}")), "")
