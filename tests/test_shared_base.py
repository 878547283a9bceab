"""One knowledge base for many outputs: made once, read by all, and never changed under a reader."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands import entity
from i2e_pipeline.commands.clean import clean
from i2e_pipeline.commands.doctor import examine
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core import lock as lock_module
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.lock import exclusive
from i2e_pipeline.engine.records import Commit, Records
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.stages import pipeline
from tests.chain import content, run, settings

MADE = ("knowledge_base", "surfaces")


@pytest.fixture
def bases(tmp_path: Path) -> Path:
    return tmp_path / "bases"


def shared(world: Path, output: Path, bases: Path | str, *overrides: str) -> Config:
    return settings(world, output, f"knowledge_base.path={bases}", *overrides)


def without_dump(world: Path, output: Path, bases: Path | str, *overrides: str) -> Config:
    gone = [f"knowledge_base.{name}=null" for name in ("dump", "popularity", "anchors")]
    return shared(world, output, bases, *gone, *overrides)


def records(bases: Path) -> dict[str, Commit]:
    """What lies there, by folder."""
    folders = sorted(p for p in bases.iterdir() if p.is_dir())
    found = {f.name: Records(str(f / "_commits")).read(f.name.rpartition("-")[0]) for f in folders}
    return {name: of_stage["all"] for name, of_stage in found.items() if of_stage}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.long
def test_outputs_share_one_and_hold_none(world: Path, whole: Path, tmp_path: Path, bases: Path, spark: Any) -> None:
    """The second reads no dump, with or without naming it, and its dataset is that of an output with its own."""
    first = run(shared(world, tmp_path / "a", bases), spark)
    assert first["knowledge_base"] == first["surfaces"] == 1
    assert content(tmp_path / "a") == content(whole)
    made, before = records(bases), stamps(bases)
    assert {name.rpartition("-")[0] for name in made} == set(MADE)
    for name, overrides in {"named": (), "unnamed": ("without",)}.items():
        config = (without_dump if overrides else shared)(world, tmp_path / name, bases)
        done = run(config, spark)
        assert [done[stage] for stage in MADE] == [0, 0]
        assert content(tmp_path / name) == content(whole)
        assert run(config, spark) == dict.fromkeys(done, 0)
    assert stamps(bases) == before  # nothing was written, laid-out files neither
    assert not list(tmp_path.glob("*/kb"))
    assert not list(tmp_path.glob("*/_commits/surfaces"))


def test_an_own_one_is_copied_and_what_was_made_with_it_stays(
    world: Path, whole: Path, tmp_path: Path, bases: Path, spark: Any
) -> None:
    """An output that begins to share: no stage works again, and the dump is not read."""
    shutil.copytree(whole, tmp_path / "own")
    config = shared(world, tmp_path / "own", bases)
    done = run(config, spark)
    assert not any(n for stage, n in done.items() if stage not in MADE)
    copied = {name.rpartition("-")[0]: commit for name, commit in records(bases).items()}
    own = Tables(str(whole))
    assert copied == {stage: own.commits(stage)["all"] for stage in MADE}  # seconds and all: made there, not here
    opened = pipeline(config, lambda: spark)
    assert {f.kind for f in clean(opened)} == {"moved"}
    assert not (tmp_path / "own" / "_commits" / "surfaces" / "all.json").exists()
    assert not list((tmp_path / "own" / "kb").rglob("*.parquet"))
    assert not any(run(config, spark).values())
    assert entity.describe(opened, "Mercury")
    back = settings(world, tmp_path / "own")
    assert [n for stage, n in run(back, spark).items() if stage not in MADE] == [0] * 9


def test_another_setting_is_another_folder(world: Path, tmp_path: Path, bases: Path, spark: Any) -> None:
    """What changes the names alone reads no dump again; the older ones stay, and are compared with."""
    run(shared(world, tmp_path / "a", bases), spark, *MADE)
    first, before = records(bases), stamps(bases)
    run(shared(world, tmp_path / "b", bases, "knowledge_base.max_candidates=19", "link.max_candidates=8"), spark, *MADE)
    second = records(bases)
    assert sorted(name.rpartition("-")[0] for name in second) == ["knowledge_base", "surfaces", "surfaces"]
    run(shared(world, tmp_path / "b", bases, "knowledge_base.skip=[]"), spark, *MADE)
    third = records(bases)
    assert sorted(name.rpartition("-")[0] for name in third) == ["knowledge_base"] * 2 + ["surfaces"] * 3
    assert {path: third_stamp for path, third_stamp in stamps(bases).items() if path in before} == before
    (new,) = (commit for name, commit in third.items() if name not in second and name.startswith("knowledge_base"))
    assert "changes" in new.facts
    assert first.items() <= second.items() <= third.items()


def test_without_a_dump_the_one_that_fits_is_taken(world: Path, tmp_path: Path, bases: Path, spark: Any) -> None:
    with pytest.raises(StageError, match=r"bases holds none that is whole"):
        run(without_dump(world, tmp_path / "c", bases), spark, *MADE)
    run(shared(world, tmp_path / "a", bases), spark, *MADE)
    with pytest.raises(StageError, match=r"holds none that fits: .*was made otherwise \(languages: .*now \['de'\]"):
        run(without_dump(world, tmp_path / "c", bases, "knowledge_base.languages=[de]"), spark, *MADE)
    other = ("knowledge_base.max_candidates=19", "link.max_candidates=8")
    run(shared(world, tmp_path / "b", bases, *other), spark, *MADE)
    with pytest.raises(StageError, match=r"holds several: name one of .*surfaces-"):
        run(without_dump(world, tmp_path / "c", bases, "link.max_candidates=8"), spark, *MADE)
    assert not any(run(without_dump(world, tmp_path / "c", bases, *other), spark, *MADE).values())
    for folder in bases.glob("surfaces-*"):
        config = without_dump(world, tmp_path / "c", folder, "link.max_candidates=8")
        assert not any(run(config, spark, *MADE).values())
        (kb,) = (f for f in examine(config) if "made by another output" in f.said)
        assert str(folder) in kb.said
    with pytest.raises(StageError, match=r"knowledge_base-\w+ is what knowledge_base made: name the folder surfaces-"):
        run(without_dump(world, tmp_path / "c", next(bases.glob("knowledge_base-*"))), spark, *MADE)


def test_it_is_not_made_again_under_its_readers(world: Path, tmp_path: Path, bases: Path, spark: Any) -> None:
    config = shared(world, tmp_path / "a", bases)
    run(config, spark, *MADE)
    with pytest.raises(StageError, match=r"surfaces-\w+ is read by other outputs, and is not made again under them"):
        run(config, spark, *MADE, redo=("surfaces",))
    (folder,) = bases.glob("surfaces-*")
    next((folder / "kb" / "surfaces" / "unit=all").iterdir()).unlink()  # it is no longer whole: nobody can read it
    assert run(config, spark, *MADE) == {"knowledge_base": 0, "surfaces": 1}


def test_who_comes_meanwhile_waits(
    world: Path, tmp_path: Path, bases: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a knowledge base that two outputs write at the same time."""
    monkeypatch.setattr(lock_module, "_LOOKED", 60.0)  # the holder does not see that its lock is changed
    run(shared(world, tmp_path / "a", bases), spark, *MADE)
    (folder,) = bases.glob("surfaces-*")
    hidden = folder / "_commits" / "elsewhere"
    (folder / "_commits" / "surfaces").rename(hidden)  # as if it were being made …
    done: dict[str, Mapping[str, int]] = {}
    with exclusive(str(folder)):
        lock = folder / "_lock"
        held = lock.read_text()
        lock.write_text(held.replace('"host": "', '"host": "not-'))  # … by another machine
        config = shared(world, tmp_path / "b", bases)
        waiting = threading.Thread(target=lambda: done.update(b=run(config, spark, *MADE)))
        waiting.start()
        time.sleep(6)
        assert waiting.is_alive()
        hidden.rename(folder / "_commits" / "surfaces")
        lock.write_text(held)
    waiting.join(60)
    assert done == {"b": {"knowledge_base": 0, "surfaces": 0}}


@pytest.mark.long
def test_one_that_was_killed_while_it_was_made(world: Path, tmp_path: Path, bases: Path, spark: Any) -> None:
    """Nothing half is read as whole, and the next output makes it."""
    config = shared(world, tmp_path / "a", bases)
    file = tmp_path / "config.yaml"
    file.write_text(configuration.dump(config))
    command = [sys.executable, "-m", "i2e_pipeline.cli", "run", "--config", str(file), "--until", "surfaces"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(bases.glob("knowledge_base-*/_staging/**/*.parquet")) and time.monotonic() < deadline:
            assert child.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert list(bases.glob("knowledge_base-*/_staging/*"))
    assert records(bases) == {}
    with pytest.raises(StageError, match="holds none that is whole"):
        run(without_dump(world, tmp_path / "b", bases), spark, *MADE)
    assert run(shared(world, tmp_path / "b", bases), spark, *MADE) == dict.fromkeys(MADE, 1)
    assert not list(bases.glob("*/_staging/*"))
    assert not list(bases.glob("*/_lock"))
