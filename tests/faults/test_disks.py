"""Disks that are full, folders that may not be written or that go away under a run: said at once, and mended by room.

The disks are small tmpfs, which want the right to mount.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.tables import tables
from tests.faults import injector, processes
from tests.faults.disks import Disk, NoRight, fills_up, last_words
from tests.faults.injector import World

pytestmark = pytest.mark.faults


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[Disk]]:
    made: list[Disk] = []
    yield made
    for one in made:
        one.free()


def disk(folder: Path, megabytes: float) -> Disk:
    try:
        return Disk(folder, megabytes)
    except NoRight as error:
        pytest.skip(str(error))


def test_a_disk_that_fills_up_under_the_output(still: World, disks: list[Disk], tmp_path: Path) -> None:
    """Catches: half files that are read, a trace that names no folder, a run that does not go on when there is room."""
    disks.append(small := disk(tmp_path / "small", 1))
    outcome = fills_up(still, small)
    assert outcome.survived, outcome


@pytest.mark.long
def test_a_disk_for_temporary_files_that_is_full(still: World, disks: list[Disk], tmp_path: Path) -> None:
    disks.append(small := disk(tmp_path / "small", 60))
    output = still.place / "scratch-full"
    config = injector.configured(still.place, output)
    (small.folder / "filler").write_bytes(bytes(1 << 20) * 58)
    code, said = injector.ran(config, TMPDIR=str(small.folder), SPARK_LOCAL_DIRS=str(small.folder))
    assert code in (1, 2), said
    words = last_words(said)
    assert "No space left on device" in words or "cannot be written" in words, words
    assert "Traceback" not in said, said
    (small.folder / "filler").unlink()
    small.resize(2000)
    code, said = injector.ran(config, "--until", "link", TMPDIR=str(small.folder), SPARK_LOCAL_DIRS=str(small.folder))
    assert code == 0, said
    found = tables(output)
    assert found["candidates"] == still.whole["candidates"]
    assert found["kb/entities"] == still.whole["kb/entities"]


MAPPED = """
import sys
from i2e_pipeline.core import arrays
with arrays.new(sys.argv[1] + "/arrays", "header") as writer:
    writer.create("vectors", (1 << 20,), "float64")[:] = 1.0
"""


def test_a_mapped_array_for_which_there_is_no_room(disks: list[Disk], tmp_path: Path) -> None:
    """Catches: SIGBUS, which ends the driver without a word."""
    disks.append(small := disk(tmp_path / "small", 4))
    done = subprocess.run(
        [sys.executable, "-c", MAPPED, str(small.folder)], cwd=injector.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"No space left on device: '{small.folder}/arrays'" in done.stderr.splitlines()[-1]
    assert not list(small.folder.iterdir())


@pytest.mark.long
def test_an_output_that_becomes_read_only(still: World, disks: list[Disk], tmp_path: Path) -> None:
    disks.append(small := disk(tmp_path / "small", 200))
    output = small.folder / "out"
    config = injector.configured(still.place, still.place / "read-only", f"output={output}")
    running = injector.start(config)
    try:
        assert processes.waited(lambda: (output / "_commits" / "surfaces").exists(), 120)
        for _ in range(50):  # as long as a file is open for writing the disk is busy
            if subprocess.run(["mount", "-o", "remount,ro", str(small.folder)], capture_output=True).returncode == 0:
                break
            time.sleep(0.05)
        else:
            pytest.fail("the disk is busy")
        code = running.wait(120)
    finally:
        injector.stop(running)
    said = config.with_suffix(".log").read_text()
    assert code == 1, said
    assert "Read-only file system" in last_words(said), said
    assert "Traceback" not in said, said
    code, said = injector.ran(config)
    assert code == 2, said
    assert f"output: {output} cannot be written (Read-only file system)" in said


def test_an_output_that_is_removed_under_a_run(still: World) -> None:
    output = still.place / "removed"
    config = injector.configured(still.place, output)
    running = injector.start(config)
    try:
        assert processes.waited(lambda: (output / "_commits" / "extract").exists(), 120)
        os.rename(output, still.place / "elsewhere")
        began = time.monotonic()
        code = running.wait(60)
        assert time.monotonic() - began < 40
    finally:
        injector.stop(running)
    shutil.rmtree(still.place / "elsewhere")
    said = config.with_suffix(".log").read_text()
    assert code == 1, said
    assert f"i2e: {output}/_lock was removed, and maybe the folder with it" in last_words(said), said
    assert "Traceback" not in said, said
