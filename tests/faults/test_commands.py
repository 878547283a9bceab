"""Commands beside `run` that die at one of their changes: the same command goes on, to what it makes undisturbed.

Each is carried out once in peace, which counts its changes. Then it dies at some of them, drawn by a seed, on a fresh
copy each time, is called again, and what is there must be whole and equal.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.stages import load, pipeline
from tests.cluster.tables import tables
from tests.faults import injector
from tests.faults.conftest import LONG
from tests.faults.injector import World
from tests.marks import but_one

pytestmark = [pytest.mark.faults, pytest.mark.delta]

STORAGES = ("parquet", "delta")


@dataclass
class Forks:
    """Commands that are carried out in forks of one process (dying.py)."""

    process: subprocess.Popen[str]
    folder: Path
    count: int = 0
    said: str = ""

    def __call__(self, *arguments: str, dies_at: str | None = None) -> tuple[int, list[str]]:
        """Exit code of a command, and the changes that it made; `said` has its words."""
        self.count += 1
        log, changes = self.folder / f"{self.count}.log", self.folder / f"{self.count}.changes"
        told = {"arguments": arguments, "dies_at": dies_at, "changes": str(changes), "log": str(log)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(told), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        self.said = log.read_text(errors="replace") if log.exists() else ""
        return code, changes.read_text().splitlines()


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("forks")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.dying", "--each"],
        cwd=injector.ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield Forks(process, folder)
        finally:
            injector.stop(process)


@dataclass(frozen=True)
class Job:
    """A command on a fresh copy of what it changes."""

    arguments: Sequence[str]
    written: Path
    """What it writes."""
    config: str = ""
    """Of what is verified and cleaned, where it is an output."""
    content: Callable[[Path], Any] = field(default=tables)


Prepared = Callable[[Path], Job]
"""A job in a folder that is not there yet."""


def survives(
    prepared: Prepared, forks: Forks, place: Path, deaths: int, seed: str, known: tuple[Any, int] | None = None
) -> None:
    """Deaths at changes drawn from as many equal parts of a command, each followed by the command again.

    known   what it makes, and how many changes it makes at least; None: it is carried out to see that
    """
    if known is None:
        undisturbed = prepared(place / "undisturbed")
        code, made = forks(*undisturbed.arguments)
        assert code == 0, forks.said
        known = undisturbed.content(undisturbed.written), len(made)
        shutil.rmtree(place / "undisturbed")
    wanted, changes = known
    assert changes > deaths
    draw, died = random.Random(seed), 0
    for n in range(deaths):
        at = draw.randrange(n * changes // deaths, (n + 1) * changes // deaths)
        job = prepared(place / f"death-{n}")
        code, made = forks(*job.arguments, dies_at=f"{at}:")
        assert code in (0, -signal.SIGKILL), forks.said
        died += code != 0  # threads make their changes in another order, and some fewer
        said = f"{seed}: death at change {at} of {changes}: {made[-1]}"
        a_minute_passes(job.written)
        code, _ = forks(*job.arguments)
        assert code == 0, f"{said}\n{forks.said}"
        if job.config:
            code, _ = forks("verify", "--deep", "--config", job.config)
            assert code == 0, f"{said}\n{forks.said}"
            code, _ = forks("clean", "--config", job.config)
            assert code == 0, f"{said}\n{forks.said}"
        assert job.content(job.written) == wanted, said
        left_nothing(job.written, said)
        shutil.rmtree(place / f"death-{n}")
    assert died >= deaths - 1


def a_minute_passes(output: Path) -> None:
    """What is unfinished for so long is nobody's."""
    for path in output.parent.rglob(".*.tmp"):
        os.utime(path, (0, 0), follow_symlinks=False)


def left_nothing(output: Path, said: str) -> None:
    assert not list(output.rglob(".*.tmp")), said
    assert not (output / "_lock").exists(), said
    if (output / "_commits").exists():
        tables = Tables(str(output))
        staged = [p for p in (output / "_staging").rglob("*") if p.is_file()]
        assert not staged, said
        assert not tables.missing_files(injector.commits(output).values()), said
        if not (output / "labels" / "_delta_log").exists():
            assert not tables.orphans(), said
        else:
            assert not injector.unnamed(output), said


def published(output: Path) -> tuple[Any, Any]:
    """The rows of the dataset but for class indices, which are the first output's."""
    read = DeltaTable if storage_of(output) == "delta" else None
    found = {}
    for name in ("images", "entities"):
        folder = output / "i2e" / name
        found[name] = (read(folder).to_pyarrow_dataset() if read else ds.dataset(folder)).to_table().to_pylist()
    images = {
        row["image_id"]: (row["image"]["bytes"], sorted((x["entity_id"], round(x["score"], 4)) for x in row["labels"]))
        for row in found["images"]
    }
    return images, {row["entity_id"]: row["name"] for row in found["entities"] if not row["retired"]}


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, still: World) -> Path:
    return injector.whole_as(still, request.param)


def storage_of(output: Path) -> str:
    return str(json.loads((output / "_storage.json").read_text())["format"])


def copied(still: World, finished: Path, to: Path, *overrides: str) -> tuple[Path, Path]:
    """The config and the output of a copy."""
    shutil.copytree(finished, to / "out")
    return configured(still, finished, to, *overrides), to / "out"


def configured(still: World, finished: Path, to: Path, *overrides: str) -> Path:
    to.mkdir(exist_ok=True)
    return injector.configured(still.place, to / "out", f"storage.format={storage_of(finished)}", *overrides)


def draws(often: int) -> int:
    return often * (3 if LONG else 1)


@pytest.mark.long
@pytest.mark.parametrize("finished", STORAGES, indirect=True)
def test_merge(finished: Path, still: World, forks: Forks, tmp_path: Path) -> None:
    """Of two outputs with a unit each."""
    units = sorted(p.stem for p in (finished / "units").glob("u-*.json"))
    halves = [copied(still, finished, tmp_path / unit) for unit in units]
    for (config, _), other in zip(halves, reversed(units), strict=True):
        never_had(config, other)

    def prepared(place: Path) -> Job:
        place.mkdir()
        config = ("--config", str(halves[0][0]), "--set", f"output={place}/out")
        arguments = ("merge", *(str(output) for _, output in halves), "--to", str(place / "out"), *config)
        return Job(arguments, place / "out")

    survives(prepared, forks, tmp_path, draws(4), f"merge {storage_of(finished)}")
    # Nothing is published there until a run has decided over all units.
    if LONG or storage_of(finished) == "delta":
        job = prepared(tmp_path / "then-run")
        code, _ = forks(*job.arguments, dies_at="100:")
        assert code == -signal.SIGKILL
        for command in (job.arguments, ("run", *job.arguments[-4:]), ("verify", "--deep", *job.arguments[-4:])):
            code, _ = forks(*command)
            assert code == 0, forks.said
        assert published(job.written) == published(finished)


def never_had(config: Path, unit: str) -> None:
    """Take a unit out of an output, so that nothing knows that it was there."""
    whole = pipeline(load(str(config)))
    with whole.exclusive():
        for stage in whole.stages:
            if stage.scope == "unit":
                whole.tables.discard(stage.name, [unit])
        for stage in ("select", "finish"):  # which were made of all units
            whole.tables.discard(stage, list(whole.tables.commits(stage)))
        Path(whole.tables.path("units", f"{unit}.json")).unlink()


@pytest.mark.long
@pytest.mark.parametrize("finished", STORAGES, indirect=True)
def test_clean(finished: Path, still: World, forks: Forks, tmp_path: Path) -> None:
    """Small files put together, and all that it removes: what killed runs left, orphans, other knowledge bases."""

    def prepared(place: Path) -> Job:
        config, output = copied(still, finished, place)
        for name in ("_staging/label/x.parquet", "_texts/x", "_explore/x", "labels/unit=u-0/x.parquet"):
            path = output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(output / "_storage.json", path)
        shutil.copytree(next((output / "kb" / "gazetteer").iterdir()), output / "kb" / "gazetteer" / "another")
        return Job(("clean", "--merge", "--config", str(config)), output, str(config))

    survives(prepared, forks, tmp_path, draws(4), f"clean {storage_of(finished)}")


@pytest.mark.long
@pytest.mark.parametrize("finished", STORAGES if LONG else ["delta"], indirect=True)
def test_purge(finished: Path, still: World, forks: Forks, tmp_path: Path) -> None:
    """Images of both units, by address."""
    listed = tmp_path / "listed.txt"
    for folder in (finished / "pairs").glob("unit=*"):
        urls = pq.read_table(folder, columns=["url"], partitioning=None)["url"].to_pylist()
        with listed.open("a") as out:
            out.writelines(f"{url}\n" for url in urls[:9])
    base = tmp_path / "base"
    config, _ = copied(still, finished, base, f"select.exclude={listed}")
    code, said = injector.ran(config)
    assert code == 0, said

    def prepared(place: Path) -> Job:
        config, output = copied(still, base / "out", place, f"select.exclude={listed}")
        return Job(("clean", "--purge", "--config", str(config)), output, str(config))

    survives(prepared, forks, tmp_path, draws(4), f"purge {storage_of(finished)}")


@pytest.mark.parametrize("form", but_one("webdataset", ["parquet", "webdataset", "hf", "open_clip-csv"]))
def test_export(form: str, still: World, forks: Forks, tmp_path: Path) -> None:
    def prepared(place: Path) -> Job:
        place.mkdir()
        arguments = ("export", "--format", form, "--to", str(place), "--config", str(still.place / "whole.yaml"))
        return Job(arguments, place / "i2e", content=by_bytes)

    survives(prepared, forks, tmp_path, draws(3), form)


def by_bytes(folder: Path) -> dict[str, bytes]:
    """Every file."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# With Spark: on one storage each, where time is short


@pytest.mark.long
@pytest.mark.parametrize("finished", STORAGES if LONG else ["parquet"], indirect=True)
def test_forget(finished: Path, still: World, forks: Forks, tmp_path: Path) -> None:
    unit = min((finished / "units").glob("u-*.json")).stem

    def prepared(place: Path) -> Job:
        config, output = copied(still, finished, place)
        return Job(("run", "--forget", unit, "--config", str(config)), output, str(config))

    survives(prepared, forks, tmp_path, draws(1), f"forget {storage_of(finished)}")


@pytest.mark.long
@pytest.mark.parametrize("finished", STORAGES if LONG else ["delta"], indirect=True)
def test_retry(finished: Path, still: World, forks: Forks, tmp_path: Path) -> None:
    """Of images that were too large for a limit that is wider now."""
    base = tmp_path / "base"
    config, _ = copied(still, finished, base, "score.max_pixels=50000")
    code, said = injector.ran(config, "--until", "score")
    assert code == 0, said

    def prepared(place: Path) -> Job:
        config, output = copied(still, base / "out", place)
        arguments = ("retry", "--reason", "too_many_pixels", "--config", str(config))
        return Job(arguments, output, str(config))

    survives(prepared, forks, tmp_path, draws(1), f"retry {storage_of(finished)}", (tables(finished), 100))


@pytest.mark.long
@pytest.mark.parametrize("finished", STORAGES if LONG else ["parquet"], indirect=True)
def test_repair(finished: Path, still: World, forks: Forks, tmp_path: Path) -> None:
    """Of a record that the seal holds, a file of a table and the card."""

    def prepared(place: Path) -> Job:
        config, output = copied(still, finished, place)
        (journal, *_) = (output / "_commits" / "score").glob("*.json")
        journal.write_bytes(journal.read_bytes().replace(b'"rows"', b'"rowz"', 1))
        labels = min((output / "labels").rglob("unit=*/*.parquet"))
        labels.write_bytes(labels.read_bytes()[:-9])
        (output / "i2e" / "README.md").unlink()
        return Job(("repair", "--config", str(config)), output, str(config))

    survives(prepared, forks, tmp_path, draws(1), f"repair {storage_of(finished)}", (tables(finished), 100))
