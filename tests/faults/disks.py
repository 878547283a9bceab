"""A disk that is full: a small tmpfs, which wants the right to mount."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.faults import injector
from tests.faults.injector import World

FULL = "disk full"


class NoRight(RuntimeError):
    """Of this user, to mount a file system."""


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path, megabytes: float) -> None:
        self.folder = folder
        folder.mkdir()
        self._call("mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", str(folder))

    def resize(self, megabytes: float, *options: str) -> None:
        wanted = ",".join(("remount", f"size={int(megabytes * 1024)}k", *options))
        self._call("mount", "-o", wanted, str(self.folder))

    def free(self) -> None:
        self._call("umount", "-l", str(self.folder))

    def _call(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode:
            raise NoRight(f"the right to mount a tmpfs is not this user's: {done.stderr.strip()}")


def last_words(said: str) -> str:
    return said[said.rfind("i2e: ") :] if "i2e: " in said else said[-2000:]


def used(folder: Path) -> float:
    """Megabytes of a folder, as a disk counts them."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file()) / 1e6


def fills_up(still: World, disk: Disk) -> injector.Outcome:
    """A run whose output's disk has half of the room that it takes, and another one when there is more."""
    whole = used(still.place / "whole")
    disk.resize(whole * 0.5)
    output = disk.folder / "out"
    config = injector.configured(still.place, still.place / "full", f"output={output}")
    code, said = injector.ran(config)
    assert code == 1, said
    words = last_words(said)
    assert str(output) in words, words
    assert "No space left on device" in words, words
    assert "free some space" in words, words
    assert "Traceback" not in said, said
    before = injector.commits(output)
    assert before

    disk.resize(whole * 4)
    code, said = injector.ran(config)
    assert code == 0, said
    now = injector.commits(output)
    assert {name: now[name] for name in before} == before
    outcome = injector.Outcome(0, "local", "parquet", runs=2)
    stage = next((s for s in injector.STAGES if not any(n.startswith(f"{s}/") for n in before)), injector.STAGES[-1])
    outcome.faults.append(injector.Fault(FULL, stage, 0.0, code=1, kept=len(before), said=words))
    injector.judge(still.whole, output, "parquet", outcome)
    return outcome
